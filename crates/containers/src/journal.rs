//! The attachments that podwire makes for containers, recorded before they are made.
//!
//! libcni's cache knows an attachment only when it is complete, and a runtime knows only its own.
//! The files here say what has to be removed when podwire is killed in between, and when the
//! container's namespace is gone. They lie beside the cache, so they outlive a reboot, as addresses
//! reserved on disk do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cni::file::{self, LONGEST, is_at};
use cni::lock::Lock;
use netns::NetNs;
use networks::CachedAttachment;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, FlockArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::place::flock;

/// The directory of the records.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
}

/// A recorded attachment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// What the plugins get, without a result.
    pub attachment: CachedAttachment,
    /// The namespace itself ([`NetNs::current_name`]): the path may lead to another one by now.
    pub namespace: String,
    /// Where the plugins were.
    pub plugin_dirs: Vec<PathBuf>,
    /// The directory of the network's configuration.
    pub conf_dir: PathBuf,
    /// The network with the highest number has the container's default route.
    pub gateway_priority: i64,
    /// The container's further names in the network.
    pub aliases: Vec<String>,
    /// The lines of its /etc/hosts for the containers that it is linked to in the network.
    pub hosts: Vec<String>,
}

/// How long plugins may take to end after the podwire that has started them was killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A record that no other process can take.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    lock: File,
}

impl Journal {
    /// The journal beside the cache in `cache_dir`, usually /var/lib/cni.
    pub fn in_dir(cache_dir: &Path) -> Self {
        Self {
            dir: cache_dir.join("podwire"),
        }
    }

    fn make(&self) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.dir);
        made.with_context(|| format!("make {}", self.dir.display()))
    }

    /// A lock for the moment in which a free interface name is chosen and recorded.
    ///
    /// # Errors
    /// Code 11 if another process keeps it for long.
    pub fn lock(&self) -> Result<Lock> {
        self.make()?;
        let dir = File::open(&self.dir);
        let dir = dir.with_context(|| format!("open {}", self.dir.display()))?;
        cni::lock::exclusive(dir, &self.dir)
    }

    /// Records an attachment that is about to be made. Until the record is dropped, [`crate::sweep()`]
    /// leaves it alone.
    ///
    /// # Errors
    /// It is recorded already; the file cannot be written.
    pub fn begin(&self, entry: &Entry) -> Result<Held> {
        let path = self.dir.join(entry.attachment.file_name());
        self.make()?;
        let document = serde_json::to_vec(entry)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let begun = begin_at(&path, &document);
            match begun.with_context(|| format!("write {}", path.display()))? {
                Begun::Held(held) => return Ok(held),
                Begun::Swept if Instant::now() < deadline => sleep(Duration::from_millis(1)),
                Begun::Swept => bail!("lock {}: another podwire holds it", path.display()),
                Begun::Recorded => bail!("{} is attached already", entry.attachment.label()),
            }
        }
    }

    /// Takes the record of an attachment, to remove it; `None` while another process makes or
    /// removes it, or without a record.
    pub(crate) fn take(&self, path: &Path) -> Result<Option<(Held, Option<Entry>)>> {
        let taken = || -> io::Result<Option<Held>> {
            let file = match file::open(path, OFlag::O_RDONLY) {
                Err(error) if file::is_absent(&error) => return Ok(None),
                file => file?.0,
            };
            if !lock_left(&file)? {
                return Ok(None);
            }
            Ok(is_at(&file, path).then(|| Held {
                path: path.to_owned(),
                lock: file,
            }))
        };
        let taken = taken().with_context(|| format!("lock {}", path.display()))?;
        // A process that was killed before it had written the record has not done anything else.
        Ok(taken.map(|held| (held, read(path).ok())))
    }

    /// The files of all records.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if file::is_absent(&error) => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("read {}", self.dir.display()))?,
        };
        Ok(entries.filter_map(|it| Some(it.ok()?.path())).collect())
    }

    /// The records of a container's attachments, by the interfaces' names.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of_container(&self, id: &str) -> Result<Vec<Entry>> {
        let part = format!("-{id}-");
        let mut files = self.files()?;
        files.retain(|it| {
            it.file_name()
                .is_some_and(|it| it.to_string_lossy().contains(&part))
        });
        let entries = files.iter().filter_map(|it| read(it).ok());
        let mut entries: Vec<_> = entries
            .filter(|it| it.attachment.container_id == id)
            .collect();
        entries.sort_by_key(|it| natural(&it.attachment.ifname));
        Ok(entries)
    }

    /// Forgets an attachment that has been removed.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self, attachment: &CachedAttachment) -> Result<()> {
        let path = self.dir.join(attachment.file_name());
        file::remove(&path).with_context(|| format!("remove {}", path.display()))
    }
}

/// What came of the attempt to make a record.
enum Begun {
    Held(Held),
    /// Another attachment has it.
    Recorded,
    /// A sweep removes a file without content at this moment: it may have found ours between its
    /// creation and its lock, or that of a process that was killed there.
    Swept,
}

/// Makes and locks the record at `path`. Only content makes a file a record, and the caller has the
/// lock of the journal: an empty one is of no other process that begins.
fn begin_at(path: &Path, document: &[u8]) -> io::Result<Begun> {
    let (mut file, _) = file::open(path, OFlag::O_WRONLY | OFlag::O_CREAT)?;
    let locked = flock(&file, FlockArg::LockExclusiveNonblock);
    if file.metadata()?.len() > 0 {
        return Ok(Begun::Recorded);
    }
    if locked.is_err() || !is_at(&file, path) {
        return Ok(Begun::Swept);
    }
    file.write_all(document)?;
    let path = path.to_owned();
    Ok(Begun::Held(Held { path, lock: file }))
}

/// The order of interfaces: eth2 precedes eth10.
pub fn natural(name: &str) -> (String, u64) {
    let digits = name.trim_end_matches(|it: char| it.is_ascii_digit()).len();
    let (word, number) = name.split_at(digits);
    (word.to_owned(), number.parse().unwrap_or_default())
}

/// Locks a record; false if the podwire that holds it lives. If it was killed, its plugins may still
/// run and hold the lock: what they do is to be removed, too, so this waits for them.
fn lock_left(file: &File) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(file, FlockArg::LockExclusiveNonblock) {
            Err(Errno::EWOULDBLOCK) => {}
            locked => return Ok(locked.map(|()| true)?),
        }
        if cni::lock::holder(&file.metadata()?).is_some() || Instant::now() > deadline {
            return Ok(false);
        }
        sleep(Duration::from_millis(2));
    }
}

impl Held {
    /// Lets the programs that this process starts from now on hold the record, too: if this process
    /// is killed, nothing removes the attachment while a plugin still makes it.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn share_with_plugins(&self) -> Result<()> {
        fcntl(&self.lock, FcntlArg::F_SETFD(FdFlag::empty())).context("share a lock")?;
        Ok(())
    }

    /// Removes the record.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<()> {
        let path = self.path.display().to_string();
        file::remove(&self.path).with_context(|| format!("remove {path}"))
    }
}

impl Entry {
    /// Whether the namespace is gone. One that cannot be examined is not.
    pub(crate) fn is_gone(&self) -> bool {
        match NetNs::open(Path::new(&self.attachment.netns)) {
            Err(error) => netns::is_gone(&error),
            Ok(netns) => match netns.enter(NetNs::current_name) {
                Ok(Ok(name)) => name != self.namespace,
                _ => false,
            },
        }
    }
}

fn read(path: &Path) -> Result<Entry> {
    let (text, _) = file::read(path, LONGEST)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use networks::Attachment;

    fn entry() -> Entry {
        let attachment = Attachment {
            owner: cni::Attachment::parse("n", "c", "eth0").unwrap(),
            netns: "/run/netns/none".into(),
            args: None,
            capability_args: None,
        };
        Entry {
            attachment: CachedAttachment::planned(&attachment, b"{}"),
            ..Entry::default()
        }
    }

    #[test]
    fn a_record_is_held_while_its_attachment_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::in_dir(dir.path());
        let held = journal.begin(&entry()).unwrap();
        let again = journal.begin(&entry()).unwrap_err();
        assert_eq!(again.to_string(), "n/c/eth0 is attached already");
        let files = journal.files().unwrap();
        assert_eq!(files.len(), 1);
        assert!(journal.take(&files[0]).unwrap().is_none());
        drop(held);
        // Processes inherit the lock, also one that another test starts at
        // this moment: they hold it until they execute their program or end.
        let (held, read) = (0..500)
            .find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                journal.take(&files[0]).unwrap()
            })
            .unwrap();
        assert_eq!(read, Some(entry()));
        assert_eq!(journal.of_container("c").unwrap(), [entry()]);
        held.remove().unwrap();
        assert!(journal.take(&files[0]).unwrap().is_none());
    }

    #[test]
    fn a_record_that_was_never_written_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::in_dir(dir.path());
        drop(journal.begin(&entry()).unwrap());
        let file = &journal.files().unwrap()[0];
        fs::write(file, "").unwrap();
        let (_, read) = journal.take(file).unwrap().unwrap();
        assert_eq!(read, None);
        assert!(entry().is_gone());
    }

    #[test]
    fn a_sweep_that_finds_a_record_before_its_content_does_not_refuse_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::in_dir(dir.path());
        drop(journal.begin(&entry()).unwrap());
        let path = journal.files().unwrap().remove(0);
        fs::write(&path, "").unwrap();
        let (swept, _) = journal.take(&path).unwrap().unwrap();
        let begun = std::thread::scope(|scope| {
            let begun = scope.spawn(|| journal.begin(&entry()));
            sleep(Duration::from_millis(100));
            swept.remove().unwrap();
            begun.join().unwrap()
        });
        assert!(is_at(&begun.unwrap().lock, &path));
        assert_eq!(journal.of_container("c").unwrap(), [entry()]);
    }

    #[test]
    fn interfaces_are_sorted_by_number() {
        let mut names = ["eth10", "eth2", "net1", "eth0"];
        names.sort_by_key(|it| natural(it));
        assert_eq!(names, ["eth0", "eth2", "eth10", "net1"]);
    }
}
