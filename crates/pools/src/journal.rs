//! What the node has handed out, on disk: one JSON document in a line for each change.
//!
//! A line is complete or absent: it is one write(2), and a file that ends within a line loses that
//! line, whose change no caller has seen. Nothing is synced to the disk: what a power failure takes
//! away belonged to pods that it took away, too. So a journal of another boot is worth nothing, and
//! a new one begins with a new name, which [`Claim`](crate::Claim) has.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cni::file;
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::book::{Lease, Owner};
use crate::time::{Time, boot};

/// Some hundred thousand leases.
const LONGEST: u64 = 512 << 20;

/// A file is written anew when it has twice the lines of its begin, and this many.
const SLACK: usize = 10_000;

/// A change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// An address was handed out.
    Lease {
        /// The pool.
        pool: String,
        /// The lease.
        lease: Lease,
    },
    /// An address was released.
    Release {
        /// The pool.
        pool: String,
        /// The address.
        ip: std::net::IpAddr,
        /// The lease's number.
        sequence: u64,
        /// When.
        at: Time,
    },
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    journal: String,
    boot: String,
}

/// What a DEL leaves for an agent that is away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LateRelease {
    /// Whose addresses are free.
    pub owner: Owner,
    /// When the DEL was: later leases of that owner stay.
    pub at: Time,
}

/// The journal of a node. One process has it.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: File,
    head: Head,
    lines: usize,
    /// After it was written anew.
    lines_at_first: usize,
    length: u64,
    _lock: Flock<File>,
}

impl Journal {
    /// Opens the journal in `dir`, and returns the changes since its begin. It is empty if the node
    /// has been started again since.
    ///
    /// # Errors
    /// Another process has it; it cannot be read or written; a line in its middle is damaged.
    pub fn open(dir: &Path) -> Result<(Self, Vec<Change>)> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let lock = lock(dir)?;
        let path = dir.join(NAME);
        let boot = boot().context("read the boot id")?;
        let (head, changes) = match read(&path)? {
            Some((head, changes)) if head.boot == boot => (head, changes),
            _ => {
                let journal = fresh_name().context("read /proc/sys/kernel/random/uuid")?;
                (Head { journal, boot }, Vec::new())
            }
        };
        let (file, length) = write_anew(dir, &head, &changes)?;
        let journal = Self {
            dir: dir.to_owned(),
            file,
            head,
            lines: changes.len(),
            lines_at_first: changes.len(),
            length,
            _lock: lock,
        };
        Ok((journal, changes))
    }

    /// Its name: another one after each boot.
    pub fn name(&self) -> &str {
        &self.head.journal
    }

    /// The boot in which it is written.
    pub fn boot(&self) -> &str {
        &self.head.boot
    }

    /// Adds a change. After an error it is not there.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn append(&mut self, change: &Change) -> Result<()> {
        let mut line = serde_json::to_vec(change)?;
        line.push(b'\n');
        let written = self.file.write_all(&line);
        if written.is_err() {
            // The begin of a line, on a full disk: the next one would be unreadable.
            let _ = self.file.set_len(self.length);
        }
        written.with_context(|| format!("write {}", self.dir.join(NAME).display()))?;
        self.lines += 1;
        self.length += line.len() as u64;
        Ok(())
    }

    /// Whether most lines are history.
    pub fn is_long(&self) -> bool {
        self.lines > 2 * self.lines_at_first + SLACK
    }

    /// Replaces all changes by `state`, which has the same outcome.
    ///
    /// # Errors
    /// Those of write(2) and rename(2); the journal is as before.
    pub fn replace(&mut self, state: &[Change]) -> Result<()> {
        (self.file, self.length) = write_anew(&self.dir, &self.head, state)?;
        self.lines = state.len();
        self.lines_at_first = state.len();
        Ok(())
    }

    /// What DELs have left while no agent ran; `None` if nothing.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn late(&self) -> Result<Option<LateReleases>> {
        let path = self.dir.join(LATE);
        if !path.exists() {
            return Ok(None);
        }
        let lock = lock_late(&self.dir)?;
        Ok(Some(LateReleases {
            all: read_late(&path)?,
            path,
            _lock: lock,
        }))
    }
}

/// What DELs have left. No DEL adds to it as long as this lives.
#[derive(Debug)]
pub struct LateReleases {
    /// In their order.
    pub all: Vec<LateRelease>,
    path: PathBuf,
    _lock: cni::lock::Lock,
}

impl LateReleases {
    /// All of them are done.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn finish(self) -> Result<()> {
        file::remove(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

/// Leaves a release for the agent that starts next, if the journal has a lease to release: a line in
/// one file, and not more of them than leases, however often a runtime repeats its DEL.
///
/// # Errors
/// The file cannot be read or written.
pub fn leave_release(dir: &Path, owner: &Owner) -> Result<()> {
    let now = Time::now();
    let newest = match leases_on_disk(dir, owner) {
        Ok(leases) => leases.iter().map(|it| it.at).max(),
        // The agent that can read the journal decides.
        Err(_) => Some(now),
    };
    let Some(newest) = newest else {
        return Ok(());
    };
    let path = dir.join(LATE);
    let late = LateRelease {
        owner: owner.clone(),
        at: now,
    };
    // What a kill has cut off before it stays a line of its own.
    let line = format!("\n{}\n", serde_json::to_string(&late)?);
    let _lock = lock_late(dir)?;
    let known = read_late(&path)?;
    if known.iter().any(|it| it.owner == *owner && it.at >= newest) {
        return Ok(());
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND;
    let opened = file::open(&path, flags);
    let written = opened.and_then(|(mut file, _)| file.write_all(line.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}

/// The leases of `owner`, for a caller beside or without the agent.
///
/// # Errors
/// The journal cannot be read.
pub fn leases_on_disk(dir: &Path, owner: &Owner) -> Result<Vec<Lease>> {
    let Some((head, changes)) = read(&dir.join(NAME))? else {
        return Ok(Vec::new());
    };
    if head.boot != boot()? {
        return Ok(Vec::new());
    }
    let mut leases = Vec::new();
    for change in changes {
        match change {
            Change::Lease { lease, .. } if lease.owner == *owner => leases.push(lease),
            Change::Release { ip, sequence, .. } => {
                leases.retain(|it| (it.ip, it.sequence) != (ip, sequence));
            }
            Change::Lease { .. } => {}
        }
    }
    Ok(leases)
}

const NAME: &str = "journal";
const DRAFT: &str = "journal.new";
const LOCK: &str = "lock";
const LATE: &str = "released";
const LATE_LOCK: &str = "released.lock";

fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join(LOCK);
    let opened = file::open(&path, OFlag::O_RDWR | OFlag::O_CREAT);
    let (file, _) = opened.with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, errno)) => bail!("another agent has {}: {errno}", path.display()),
    }
}

fn lock_late(dir: &Path) -> Result<cni::lock::Lock> {
    let path = dir.join(LATE_LOCK);
    let opened = file::open(&path, OFlag::O_RDWR | OFlag::O_CREAT);
    let (file, _) = opened.with_context(|| format!("open {}", path.display()))?;
    cni::lock::exclusive(file, &path)
}

/// What DELs have left so far. A line that a kill has cut off is that of a DEL that has not succeeded.
fn read_late(path: &Path) -> Result<Vec<LateRelease>> {
    let content = match file::read(path, LONGEST) {
        Ok((content, _)) => content,
        Err(error) if file::is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let lines = content.split(|it| *it == b'\n');
    Ok(lines
        .filter_map(|it| serde_json::from_slice(it).ok())
        .collect())
}

fn fresh_name() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .trim()
        .to_owned())
}

/// The head and the changes; `None` if there is no journal.
fn read(path: &Path) -> Result<Option<(Head, Vec<Change>)>> {
    let describe = || format!("read {}", path.display());
    let content = match file::read(path, LONGEST) {
        Ok((content, _)) => content,
        Err(error) if file::is_absent(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(describe),
    };
    parse(&content).with_context(describe)
}

/// Reads a journal; `None` if it has not even a head.
///
/// # Errors
/// Which line is damaged. An incomplete one at the end is no damage.
fn parse(content: &[u8]) -> Result<Option<(Head, Vec<Change>)>> {
    let complete = content.iter().rposition(|it| *it == b'\n');
    let Some(end) = complete else { return Ok(None) };
    let mut lines = content[..end].lines();
    let Some(head) = lines.next() else {
        return Ok(None);
    };
    let head: Head = serde_json::from_str(&head?).context("line 1")?;
    let mut changes = Vec::new();
    for (number, line) in lines.enumerate() {
        let change = serde_json::from_str(&line?);
        changes.push(change.with_context(|| format!("line {}", number + 2))?);
    }
    Ok(Some((head, changes)))
}

/// Whether `content` is a journal, for a fuzzer.
#[doc(hidden)]
pub fn is_journal(content: &[u8]) -> bool {
    parse(content).is_ok_and(|it| it.is_some())
}

/// Writes the journal in the place of what was there, and opens it for more.
fn write_anew(dir: &Path, head: &Head, changes: &[Change]) -> Result<(File, u64)> {
    let (path, draft) = (dir.join(NAME), dir.join(DRAFT));
    let describe = || format!("write {}", path.display());
    let mut content = serde_json::to_vec(head)?;
    content.push(b'\n');
    for change in changes {
        serde_json::to_writer(&mut content, change)?;
        content.push(b'\n');
    }
    file::replace(&draft, &content).with_context(describe)?;
    fs::rename(&draft, &path).with_context(describe)?;
    let opened = file::open(&path, OFlag::O_WRONLY | OFlag::O_APPEND);
    let (file, metadata) = opened.with_context(describe)?;
    Ok((file, metadata.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(text: &str) -> Change {
        Change::Release {
            pool: text.into(),
            ip: "10.0.0.1".parse().unwrap(),
            sequence: 1,
            at: Time(5),
        }
    }

    #[test]
    fn a_journal_has_what_was_written_up_to_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, changes) = Journal::open(dir.path()).unwrap();
        assert!(changes.is_empty());
        let name = journal.name().to_owned();
        journal.append(&change("a")).unwrap();
        journal.append(&change("b")).unwrap();
        assert!(Journal::open(dir.path()).is_err(), "another process has it");
        drop(journal);
        let path = dir.path().join(NAME);
        let mut content = fs::read(&path).unwrap();
        content.extend(b"{\"release\":{\"po");
        fs::write(&path, &content).unwrap();
        let (journal, changes) = Journal::open(dir.path()).unwrap();
        assert_eq!((journal.name(), changes.len()), (name.as_str(), 2));
        drop(journal);
        content.extend(b"\n{}\n");
        fs::write(&path, &content).unwrap();
        let error = Journal::open(dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("line 4"), "{error:#}");
    }

    #[test]
    fn a_journal_of_another_boot_is_empty_and_has_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&change("a")).unwrap();
        let (name, boot) = (journal.name().to_owned(), journal.boot().to_owned());
        drop(journal);
        let path = dir.path().join(NAME);
        let content = fs::read_to_string(&path).unwrap();
        fs::write(&path, content.replace(&boot, "another")).unwrap();
        let (journal, changes) = Journal::open(dir.path()).unwrap();
        assert!(changes.is_empty() && journal.name() != name);
    }

    #[test]
    fn late_releases_are_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let owner = |id: &str| Owner {
            network: "n".into(),
            container: id.into(),
            ifname: "eth0".into(),
        };
        let lease = |id: &str, sequence| Change::Lease {
            pool: "p".into(),
            lease: Lease {
                ip: "10.0.0.1".parse().unwrap(),
                owner: owner(id),
                sequence,
                at: Time::now(),
                namespace: None,
                name: None,
            },
        };
        leave_release(dir.path(), &owner("a")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.append(&lease("a", 1)).unwrap();
        journal.append(&lease("b", 2)).unwrap();
        // A runtime repeats DELs, also those of attachments that have nothing.
        for id in ["a", "b", "a", "other", "b"] {
            leave_release(dir.path(), &owner(id)).unwrap();
        }
        // The agent was back in between.
        journal.append(&lease("a", 3)).unwrap();
        leave_release(dir.path(), &owner("a")).unwrap();
        let late = journal.late().unwrap().unwrap();
        let owners: Vec<&Owner> = late.all.iter().map(|it| &it.owner).collect();
        assert_eq!(owners, [&owner("a"), &owner("b"), &owner("a")]);
        late.finish().unwrap();
        assert!(journal.late().unwrap().is_none());
    }
}
