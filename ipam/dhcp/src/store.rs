//! Leases on disk: one file for each, so that a daemon that starts again goes on
//! where the one before it ended, however that ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cni::{file, reason};
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};

use crate::lease::Identity;
use crate::terms::Terms;

/// Where leases are kept, below the prefix for the host's root.
const ROOT: &str = "/var/lib/cni/dhcp";
const SUFFIX: &str = ".json";
const UNFINISHED: &str = ".new";

/// The longest file of a lease: a server's answer has 64 KiB, written in up to four characters
/// for each byte, and a plugin's configuration adds options.
const LONGEST: u64 = 1024 * 1024;

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// Where the pod's interface is.
    pub place: Place,
    /// What the client says of itself.
    pub identity: Identity,
    /// The metric of the routes, 0 for none.
    pub priority: u32,
    /// What is granted; `None` while an address is sought again.
    pub grant: Option<Grant>,
}

/// Who holds a lease.
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
    /// The client identifier, which is that of the Go daemon, so that a server
    /// gives the same address whichever of the two asks. Cut off where the Go
    /// daemon does: an option has room for 255 bytes, one of which is its type.
    pub fn client_id(&self) -> String {
        let (id, network, ifname) = (&self.container_id, &self.network, &self.ifname);
        let mut text = format!("{id}/{network}/{ifname}");
        let end = (0..=254).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default().min(text.len()));
        text
    }

    /// The name of its file.
    fn file_name(&self) -> String {
        let all = format!("{}/{}/{}", self.container_id, self.network, self.ifname);
        cni::names::prefixed(32, "", &all) + SUFFIX
    }
}

/// An interface in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The namespace's path, as the daemon sees it.
    pub netns: PathBuf,
    /// Device and inode, which tell it from another that has its path by now.
    pub inode: (u64, u64),
    /// The interface's hardware address.
    pub mac: [u8; 6],
}

/// A lease with the wall clock's times, which survive a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// On which terms.
    pub terms: Terms,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The hardware address that the server, or the relay before it, answered from.
    pub server_mac: [u8; 6],
}

/// The directory of one daemon's leases, held by one program at a time.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// Held as long as this lives.
    _lock: Flock<File>,
}

/// Where the daemon that listens at `socket` keeps its leases. Daemons that
/// listen at different places know nothing of each other.
pub fn directory(host_prefix: &str, socket: &str) -> PathBuf {
    // As systemd-escape(1) makes a name of a path, for people to recognise.
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
    /// Takes the directory, which is made if need be, without what a daemon that was
    /// killed had not written to its end. `None` when another program has it.
    ///
    /// # Errors
    /// When it cannot be made or opened.
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
            // A link here would have us keep leases where another program wants them.
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
                .open(dir);
            let file = match opened {
                Ok(file) => file,
                // Another has just removed it as it was empty.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => bail!(fault("open directory", &error)),
            };
            let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                return Ok(None);
            };
            // Removed between opening and locking: what we hold is nothing's lock.
            if same_file(&lock, dir) {
                remove_unfinished(dir);
                let dir = dir.to_owned();
                return Ok(Some(Self { dir, _lock: lock }));
            }
        }
    }

    /// Every lease on disk. One that cannot be read is told on standard error, and
    /// stays for the next daemon; one that makes no sense would make none next time, and is
    /// removed.
    ///
    /// # Errors
    /// When nobody can say which there are: not to know of leases is not to have none.
    pub fn load(&self) -> Result<Vec<Record>> {
        let unknown = |error: io::Error| {
            anyhow::anyhow!("list leases in {}: {}", self.dir.display(), reason(&error))
        };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(unknown)? {
            let entry = entry.map_err(unknown)?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.ends_with(SUFFIX) {
                match file::read(&path, LONGEST).map(|(text, _)| serde_json::from_slice(&text)) {
                    Ok(Ok(record)) => records.push(record),
                    Ok(Err(error)) => {
                        cni::log(format_args!(
                            "drop lease {}: parse: {error}",
                            path.display()
                        ));
                        let _ = fs::remove_file(&path);
                    }
                    Err(error) => {
                        cni::log(format_args!(
                            "lease {} is not held: {}",
                            path.display(),
                            reason(&error)
                        ));
                    }
                }
            }
        }
        Ok(records)
    }

    /// Writes a lease, in place of what was known of it. Whatever kills us in
    /// between leaves the old file or the new one. It is not forced to the disk:
    /// the pods, whose leases these are, do not survive a loss of power either.
    ///
    /// # Errors
    /// When the disk is full or read-only.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.dir.join(record.owner.file_name());
        let spare = spare(&path);
        let text = serde_json::to_vec(record)?;
        let written = file::replace(&spare, &text).and_then(|()| fs::rename(&spare, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&spare);
            anyhow::anyhow!("write lease {}: {}", path.display(), reason(&error))
        })
    }

    /// The lease of `owner`, if it is known.
    pub fn find(&self, owner: &Owner) -> Option<Record> {
        read(&self.dir.join(owner.file_name())).ok()
    }

    /// Forgets a lease.
    ///
    /// # Errors
    /// When the disk is read-only.
    pub fn remove(&self, owner: &Owner) -> Result<()> {
        let path = self.dir.join(owner.file_name());
        // A read-only disk says so of what is not there, too, and a directory is no lease.
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
    /// An empty directory says nothing.
    fn drop(&mut self) {
        if fs::remove_dir(&self.dir).is_ok()
            && let Some(root) = self.dir.parent()
        {
            let _ = fs::remove_dir(root);
        }
    }
}

/// Nobody is writing them: that takes the lock. What stays is in nobody's way.
fn remove_unfinished(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten();
    for entry in entries.map_while(Result::ok) {
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Where a lease is written before it takes the place of the one before.
fn spare(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn read(path: &Path) -> Result<Record> {
    let (text, _) = file::read(path, LONGEST).context("read")?;
    serde_json::from_slice(&text).context("parse")
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
    fn what_is_saved_is_loaded_and_nothing_else() {
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
    fn what_is_no_file_is_no_lease_and_stays() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dhcp/x");
        let store = Store::open(&dir).unwrap().unwrap();
        let owner = record("a").owner;
        fs::create_dir(dir.join(owner.file_name())).unwrap();
        assert_eq!(store.load().unwrap(), []);
        store.remove(&owner).unwrap();
        assert!(dir.join(owner.file_name()).exists());
        fs::remove_dir_all(&dir).unwrap();
        assert!(store.load().is_err());
    }

    #[test]
    fn one_program_at_a_time_has_the_directory_and_an_empty_one_is_removed() {
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
