//! Leases on disk, a file for each, so that a restarted daemon goes on with them, however
//! the previous one ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use cni::{file, reason};
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::lease::Identity;
use crate::terms::Terms;

/// Where leases are kept, below -hostprefix.
const ROOT: &str = "/var/lib/cni/dhcp";
const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".new";

/// The longest file of a lease in bytes: an answer has at most 64 KiB, written in up to four
/// characters for each byte, and a configuration adds options.
const MAX_SIZE: u64 = 1024 * 1024;

/// A lease as it is on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The attachment that it is for.
    pub owner: Owner,
    /// The pod's interface.
    pub place: Place,
    /// The client's options.
    pub identity: Identity,
    /// The metric of the routes, 0 for none.
    pub priority: u32,
    /// The grant; `None` while an address is being acquired again.
    pub grant: Option<Grant>,
}

/// The attachment that a lease is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// The network's name.
    pub network: String,
    /// `CNI_IFNAME`
    pub ifname: String,
}

impl Owner {
    /// The client identifier: the Go daemon's, so that a server gives the same address to
    /// both. Cut off where the Go daemon does: an option has room for 255 bytes, one of which
    /// is the identifier's type.
    pub fn client_id(&self) -> String {
        let mut text = self.path();
        let end = (0..=254).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default().min(text.len()));
        text
    }

    fn path(&self) -> String {
        format!("{}/{}/{}", self.container_id, self.network, self.ifname)
    }

    /// The name of the lease's file.
    fn file_name(&self) -> String {
        cni::names::prefixed(32, "", &self.path()) + SUFFIX
    }
}

/// An interface in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The namespace's path, as the daemon sees it.
    pub netns: PathBuf,
    /// The namespace's device and inode: its path may lead to another one later.
    pub inode: (u64, u64),
    /// The interface's hardware address.
    pub mac: [u8; 6],
}

/// What a server has granted, with times of the wall clock, which survive a reboot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// The terms.
    pub terms: Terms,
    /// When it was requested, in seconds since 1970.
    pub since: u64,
    /// The hardware address that the server, or the relay before it, answered from.
    pub server_mac: [u8; 6],
}

/// What is on disk.
#[derive(Debug, Default)]
pub struct Leases {
    /// The leases.
    pub records: Vec<Record>,
    /// The files that cannot be read, and why.
    pub unread: Vec<(PathBuf, io::Error)>,
}

impl Leases {
    /// Fails if the kernel refused to read a file, such as when too many are open: it may have a lease. A link, a pipe
    /// or a file that is too long has none.
    ///
    /// # Errors
    /// `read lease /…/x.json: permission denied`
    pub fn ensure_all_read(&self) -> Result<()> {
        let refused = |(path, error): &&(PathBuf, io::Error)| {
            let is_file = fs::symlink_metadata(path).is_ok_and(|it| it.is_file());
            is_file && error.raw_os_error().is_some()
        };
        match self.unread.iter().find(refused) {
            Some((path, error)) => bail!("read lease {}: {}", path.display(), reason(error)),
            None => Ok(()),
        }
    }
}

/// The directory of one daemon's leases, locked by one process at a time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// Where the daemon with this socket keeps its leases. Daemons with different sockets are
/// independent.
pub fn directory(host_prefix: &str, socket: &str) -> PathBuf {
    // The name that systemd-escape(1) makes of a path, so that an administrator can read it.
    let mut name = String::new();
    for c in socket.trim_matches('/').chars() {
        match c {
            '/' => name.push('-'),
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') => name.push(c),
            c => c
                .to_string()
                .bytes()
                .for_each(|byte| name.push_str(&format!("\\x{byte:02x}"))),
        }
    }
    if name.len() > 200 {
        name = cni::names::prefixed(32, "", socket);
    }
    Path::new(&format!("{host_prefix}{ROOT}")).join(name)
}

impl Store {
    /// Locks the directory, created if need be, and removes the incomplete files of a daemon
    /// that was killed. `None` when another process has the lock.
    ///
    /// # Errors
    /// When it cannot be created or opened.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        loop {
            let fault = |what: &str, error: &io::Error| {
                format!("{what} {}: {}", dir.display(), reason(error))
            };
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir);
            if let Err(error) = made {
                bail!(fault("make directory", &error));
            }
            // O_NOFOLLOW: a symbolic link could lead to another program's directory.
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
                .open(dir);
            let file = match opened {
                Ok(file) => file,
                // Another process has just removed the empty directory.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => bail!(fault("open directory", &error)),
            };
            let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                return Ok(None);
            };
            // Otherwise it was removed between opening and locking.
            if same_file(&lock, dir) {
                remove_unfinished(dir);
                let dir = dir.to_owned();
                return Ok(Some(Self { dir, _lock: lock }));
            }
        }
    }

    /// Every lease on disk. A file that cannot be read stays for the next daemon; one that cannot be
    /// parsed is logged and removed. A directory is not a lease.
    ///
    /// # Errors
    /// When the directory cannot be listed: that must not look like a node without leases.
    pub fn load(&self) -> Result<Leases> {
        let unknown = |error: io::Error| {
            anyhow::anyhow!("list leases in {}: {}", self.dir.display(), reason(&error))
        };
        let mut leases = Leases::default();
        for entry in fs::read_dir(&self.dir).map_err(unknown)? {
            let entry = entry.map_err(unknown)?;
            if !entry.file_name().to_string_lossy().ends_with(SUFFIX) {
                continue;
            }
            let path = entry.path();
            let shown = path.display();
            match file::read(&path, MAX_SIZE).map(|(text, _)| serde_json::from_slice(&text)) {
                Ok(Ok(record)) => leases.records.push(record),
                Ok(Err(error)) => {
                    cni::log(format_args!("drop lease {shown}: parse: {error}"));
                    let _ = fs::remove_file(&path);
                }
                Err(error) => leases.unread.push((path, error)),
            }
        }
        Ok(leases)
    }

    /// Writes a lease in place of its earlier file. After a kill at any moment there is the
    /// old file or the new one. There is no fsync: the pods do not survive a loss of power
    /// either.
    ///
    /// # Errors
    /// When the disk is full or read-only.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.dir.join(record.owner.file_name());
        let unfinished = path.with_extension("new");
        let text = serde_json::to_vec(record)?;
        let written = file::replace(&unfinished, &text);
        let written = written.and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            anyhow::anyhow!("write lease {}: {}", path.display(), reason(&error))
        })
    }

    /// The lease of `owner`, if there is one that can be read.
    pub fn find(&self, owner: &Owner) -> Option<Record> {
        let path = self.dir.join(owner.file_name());
        let (text, _) = file::read(&path, MAX_SIZE).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes a lease.
    ///
    /// # Errors
    /// When the disk is read-only.
    pub fn remove(&self, owner: &Owner) -> Result<()> {
        let path = self.dir.join(owner.file_name());
        // EROFS comes for a missing file, too; and a directory is not a lease.
        if let Err(error) = fs::remove_file(&path)
            && !is_gone(&path)
            && !path.is_dir()
        {
            bail!("remove lease {}: {}", path.display(), reason(&error))
        }
        Ok(())
    }
}

impl Drop for Store {
    /// Removes the directory if it is empty.
    fn drop(&mut self) {
        if fs::remove_dir(&self.dir).is_ok()
            && let Some(root) = self.dir.parent()
        {
            let _ = fs::remove_dir(root);
        }
    }
}

/// Under the lock, no other process writes such files. One that cannot be removed does no
/// harm.
fn remove_unfinished(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten();
    for entry in entries.map_while(Result::ok) {
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn same_file(open: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |data: fs::Metadata| (data.dev(), data.ino());
    let ours = open.metadata().map(identity);
    ours.is_ok_and(|ours| fs::metadata(path).map(identity).is_ok_and(|it| it == ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(container: &str) -> Record {
        Record {
            owner: Owner {
                container_id: container.into(),
                network: "lan".into(),
                ifname: "eth0".into(),
            },
            place: Place {
                netns: "/run/netns/a".into(),
                inode: (4, 5),
                mac: [2, 0, 0, 0, 0, 1],
            },
            identity: Identity {
                options: vec![(61, b"\0a/lan/eth0".to_vec())],
                requested: vec![1, 3],
                ..Identity::default()
            },
            priority: 0,
            grant: None,
        }
    }

    #[test]
    fn saved_leases_are_loaded() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dhcp/run-cni-dhcp.sock");
        let store = Store::open(&dir).unwrap().unwrap();
        store.save(&record("a")).unwrap();
        store.save(&record("a")).unwrap();
        store.save(&record("b")).unwrap();
        drop(store);
        fs::write(dir.join("x.json"), "{").unwrap();
        fs::write(dir.join("y.new"), "{").unwrap();
        let store = Store::open(&dir).unwrap().unwrap();
        assert!(!dir.join("y.new").exists());
        let mut ids: Vec<_> = store
            .load()
            .unwrap()
            .records
            .into_iter()
            .map(|it| it.owner.container_id)
            .collect();
        ids.sort();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
        for entry in fs::read_dir(&dir).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(store.find(&record("a").owner).is_some());
        store.remove(&record("a").owner).unwrap();
        store.remove(&record("a").owner).unwrap();
        assert!(store.find(&record("a").owner).is_none());
    }

    #[test]
    fn a_directory_is_not_a_lease_and_stays() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dhcp/x");
        let store = Store::open(&dir).unwrap().unwrap();
        let owner = record("a").owner;
        fs::create_dir(dir.join(owner.file_name())).unwrap();
        assert_eq!(store.load().unwrap().records, []);
        store.load().unwrap().ensure_all_read().unwrap();
        store.remove(&owner).unwrap();
        assert!(dir.join(owner.file_name()).exists());
        fs::remove_dir_all(&dir).unwrap();
        assert!(store.load().is_err());
    }

    #[test]
    fn only_a_file_that_the_kernel_refuses_to_read_may_have_a_lease() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&place.path().join("dhcp/x")).unwrap().unwrap();
        store.save(&record("a")).unwrap();
        std::os::unix::fs::symlink("/dev/null", store.dir.join("b.json")).unwrap();
        let mut leases = store.load().unwrap();
        assert_eq!(leases.records, [record("a")]);
        assert_eq!(leases.unread.len(), 1);
        leases.ensure_all_read().unwrap();
        // Root can read every file.
        let file = store.dir.join(record("a").owner.file_name());
        let refused = io::Error::from_raw_os_error(nix::libc::EMFILE);
        leases.unread.push((file.clone(), refused));
        let error = leases.ensure_all_read().unwrap_err().to_string();
        let expected = format!("read lease {}: too many open files", file.display());
        assert_eq!(error, expected);
    }

    #[test]
    fn one_process_at_a_time_has_the_directory_and_an_empty_one_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dhcp/x");
        let store = Store::open(&dir).unwrap().unwrap();
        assert!(Store::open(&dir).unwrap().is_none());
        drop(store);
        assert!(!dir.exists());
        assert!(Store::open(&dir).unwrap().is_some());
    }

    #[test]
    fn directories_are_named_after_sockets() {
        assert_eq!(
            directory("", "/run/cni/dhcp.sock"),
            Path::new("/var/lib/cni/dhcp/run-cni-dhcp.sock")
        );
        assert_eq!(
            directory("/host", "/run/a-b/c d"),
            Path::new("/host/var/lib/cni/dhcp/run-a\\x2db-c\\x20d")
        );
    }

    #[test]
    fn the_client_identifier_is_that_of_the_go_daemon() {
        let mut owner = record("a").owner;
        assert_eq!(owner.client_id(), "a/lan/eth0");
        owner.container_id = "c".repeat(300);
        assert_eq!(owner.client_id(), "c".repeat(254));
    }
}
