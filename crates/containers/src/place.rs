//! What `podwire run` keeps of a container that runs: a directory below /run, which is gone after a
//! reboot, as the container is.
//!
//! The supervisor of the container holds a lock on the directory as long as it lives. So a directory
//! without the lock is left over ([`crate::sweep()`]), and a name is free when the lock can be taken.

use std::cmp::Reverse;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use cni::file::{self, LONGEST};
use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::processes::Handle;

/// The directory of all containers.
const ROOT: &str = "/run/podwire/run";

/// How long a directory without a record may be locked: its container is being made, or its rest
/// removed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A container, as it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// Its id, 64 hex digits: `CNI_CONTAINERID`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The command with its arguments.
    pub command: Vec<String>,
    /// When it was started, in seconds since 1970.
    pub created: u64,
    /// The nanoseconds beyond them.
    pub created_nanos: u32,
    /// `none`, `host`, `container:ID`, or empty with networks of its own.
    pub mode: String,
    /// Its host name.
    pub hostname: String,
    /// The path of its network namespace.
    pub netns: String,
    /// Its published ports.
    pub ports: Vec<Published>,
    /// The ports that it has without publishing them, such as `80/tcp`.
    pub exposed: Vec<String>,
    /// What its resolver is to use.
    pub dns: Resolver,
    /// The cache that has its attachments.
    pub cache_dir: PathBuf,
}

/// What `--dns…` says; what is empty is taken from the networks, or from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolver {
    /// The name servers.
    pub servers: Vec<String>,
    /// The domains to search; `.` alone means none.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// A published port, in the form of the capability `portMappings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Published {
    /// The port on the node.
    pub host_port: u16,
    /// The port in the container.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The node's address; empty for all.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// The directory of a container, locked.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
    /// The lock goes when the last copy is closed, which a killed process does, too.
    _lock: File,
}

impl Place {
    /// Takes the name for a new container. If a killed one has left something there, it is still
    /// there ([`Place::record`]).
    ///
    /// # Errors
    /// A container with this name runs; the directory cannot be made.
    pub fn take(name: &str) -> Result<Self> {
        file::make_private_dir(Path::new(ROOT)).with_context(|| format!("make {ROOT}"))?;
        let dir = Path::new(ROOT).join(name);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("make {}", dir.display()));
                }
                _ => {}
            }
            if let Some(lock) = lock(&dir, FlockArg::LockExclusiveNonblock)? {
                return Ok(Self { dir, _lock: lock });
            }
            if let Ok(Some(record)) = read(&dir) {
                bail!(
                    "Conflict. The container name \"/{name}\" is already in use by container \
                     \"{}\". You have to stop that container to be able to reuse that name.",
                    record.id
                );
            }
            if Instant::now() > deadline {
                bail!("lock {}: another podwire holds it", dir.display());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Takes what a container has left; `None` while the container runs, or if it has left nothing.
    pub(crate) fn take_left(name: &str) -> Result<Option<Self>> {
        let dir = Path::new(ROOT).join(name);
        let taken = lock(&dir, FlockArg::LockExclusiveNonblock)?;
        Ok(taken.map(|lock| Self { dir, _lock: lock }))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file of the container.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What is recorded, by a container that was killed.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn record(&self) -> Result<Option<Record>> {
        read(&self.dir)
    }

    /// Records the container. A reader sees all of it or nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, record: &Record) -> Result<()> {
        let (new, file) = (self.file("record.new"), self.file("record"));
        let document = serde_json::to_vec(record)?;
        let written = write_private(&new, &document).and_then(|()| fs::rename(&new, &file));
        written.with_context(|| format!("write {}", file.display()))
    }

    /// Records the container's first process.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pid(&self, pid: Pid) -> Result<()> {
        let file = self.file("pid");
        let written = write_private(&file, pid.to_string().as_bytes());
        written.with_context(|| format!("write {}", file.display()))
    }

    /// Forgets the first process. Called before it is reaped: as long as the file exists, the id is
    /// not used again.
    pub fn forget_pid(&self) {
        let _ = fs::remove_file(self.file("pid"));
    }

    /// Removes the directory with its files.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove(&self) -> Result<()> {
        let removed = fs::remove_dir_all(&self.dir);
        removed.with_context(|| format!("remove {}", self.dir.display()))
    }
}

/// Writes a file that only root can read.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
    let (mut file, _) = file::open(path, flags)?;
    io::Write::write_all(&mut file, content)
}

/// A lock on the directory; `None` if another process has one, or the directory is gone.
fn lock(dir: &Path, how: FlockArg) -> Result<Option<File>> {
    let locked = || -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true);
        options.custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits());
        let file = match options.open(dir) {
            Err(error) if file::is_absent(&error) => return Ok(None),
            file => file?,
        };
        match flock(&file, how) {
            Err(Errno::EWOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // The one that had the lock may have removed the directory.
        let (there, ours) = (fs::symlink_metadata(dir), file.metadata()?);
        let is_ours = |it: fs::Metadata| (it.dev(), it.ino()) == (ours.dev(), ours.ino());
        Ok(there.is_ok_and(is_ours).then_some(file))
    };
    locked().with_context(|| format!("lock {}", dir.display()))
}

/// flock(2) without a guard: `nix::fcntl::Flock` unlocks when it is dropped, also for the other
/// processes that have inherited the descriptor.
#[expect(deprecated, reason = "see above")]
pub(crate) fn flock(file: &File, how: FlockArg) -> Result<(), Errno> {
    nix::fcntl::flock(file.as_raw_fd(), how)
}

fn read(dir: &Path) -> Result<Option<Record>> {
    let file = dir.join("record");
    let read = match file::read(&file, LONGEST) {
        Err(error) if file::is_absent(&error) => return Ok(None),
        read => read,
    };
    let (text, _) = read.with_context(|| format!("read {}", file.display()))?;
    let record = serde_json::from_slice(&text);
    record.with_context(|| format!("parse {}", file.display()))
}

/// The names of all directories, sorted.
pub(crate) fn names() -> Result<Vec<String>> {
    let entries = match fs::read_dir(ROOT) {
        Err(error) if file::is_absent(&error) => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {ROOT}"))?,
    };
    let names = entries.filter_map(|it| it.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}

/// The containers that run, the newest first.
///
/// # Errors
/// The directory or a record cannot be read.
pub fn running() -> Result<Vec<Record>> {
    let mut all = Vec::new();
    for name in names()? {
        let dir = Path::new(ROOT).join(name);
        if is_locked(&dir)? {
            all.extend(read(&dir)?);
        }
    }
    all.sort_by_key(|it| Reverse((it.created, it.created_nanos)));
    Ok(all)
}

fn is_locked(dir: &Path) -> Result<bool> {
    // A shared lock, which two of these calls can have at once.
    Ok(lock(dir, FlockArg::LockSharedNonblock)?.is_none() && dir.is_dir())
}

/// The container of `podwire run` that `word` names: its id, its name, or a prefix of the id that
/// no other container has.
///
/// # Errors
/// Several ids have the prefix.
pub fn find(word: &str) -> Result<Option<Record>> {
    let all = running()?;
    let exact = |it: &&Record| it.id == word || it.name == word;
    if let Some(record) = all.iter().find(exact) {
        return Ok(Some(record.clone()));
    }
    let mut prefixed = all
        .into_iter()
        .filter(|it| !word.is_empty() && it.id.starts_with(word));
    match (prefixed.next(), prefixed.next()) {
        (Some(_), Some(_)) => bail!("Multiple IDs found with provided prefix: {word}"),
        (found, _) => Ok(found),
    }
}

impl Record {
    /// A record with the present time.
    pub fn new(id: String, name: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        Self {
            id,
            name,
            created: now.as_secs(),
            created_nanos: now.subsec_nanos(),
            ..Self::default()
        }
    }

    /// The first twelve digits of the id, as commands show it.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// The container's directory.
    pub fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// The container's first process, if it still runs.
    pub fn process(&self) -> Option<Handle> {
        let file = self.dir().join("pid");
        let read = || {
            fs::read_to_string(&file)
                .ok()?
                .parse()
                .ok()
                .map(Pid::from_raw)
        };
        let pid: Pid = read()?;
        let handle = Handle::open(pid).ok()?;
        // The supervisor removes the file before it reaps the process: while it is there, and the
        // supervisor lives, the id has not been used again.
        let lives = is_locked(&self.dir()).unwrap_or(false) && read() == Some(pid);
        lives.then_some(handle)
    }
}
