//! Which attachments use the rules that a network's attachments share: one file per attachment,
//! so that DEL finds out in a few system calls, for any number of pods, whether it is the last.
//!
//! `/run/podwire/shared/<network namespace>/<network>/<use>/<attachment>`: a use is a rule, such
//! as `masquerade-10.1.0.0_24`. `rmdir(2)` of a use succeeds when its last file is gone. Nodes may
//! share one `/run`, hence the node's namespace.
//!
//! An ADD writes its file before it adds the rules, under a shared lock. A call that removes rules
//! holds the lock exclusively from before it looks at the users until the rules are gone. A
//! removed directory cannot be written to, so an ADD that waited for its lock starts again.
//!
//! The files are a hint: they are lost with `/run`, and pods of earlier releases and of the Go
//! plugins have none.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cni::lock::{self, Lock};
use cni::{Attachment, Code, names};
use netns::NetNs;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// Only root writes here. A boot clears it, as it clears the rules.
const BASE: &str = "/run";
const FIRST: &str = "podwire";
const SECOND: &str = "shared";

/// How often a directory is created that other calls remove at the same time.
const ATTEMPTS: u32 = 100;

/// The largest file in bytes: it contains a few addresses.
const LONGEST: u64 = 4096;

/// The users of what the attachments of one network share.
#[derive(Debug)]
pub struct Users {
    /// The directories from [`BASE`] to the one above the network's, each with the name of the
    /// next.
    above: Vec<(Directory, String)>,
    dir: Directory,
    lock: Option<Lock>,
}

/// There cannot be files of ours: a directory of ours cannot be created, or something of another
/// user or program is in its place. No ADD can have written any, so DEL has none to remove.
#[derive(Debug)]
pub struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

impl Users {
    /// For an ADD: creates the directory, with a lock that excludes calls that remove rules.
    ///
    /// # Errors
    /// The directory cannot be written: [`Unavailable`] if it can never be; code 11 if another
    /// program holds the lock for too long.
    pub fn open_shared(network: &str) -> Result<Self> {
        Self::locked(network, lock::shared)
    }

    /// To remove rules: creates the directory, with a lock that excludes all other calls.
    ///
    /// # Errors
    /// As [`Users::open_shared`].
    pub fn open_exclusive(network: &str) -> Result<Self> {
        Self::locked(network, lock::exclusive)
    }

    /// Opens the directory without a lock; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be opened: [`Unavailable`] if there can be none.
    pub fn find(network: &str) -> Result<Option<Self>> {
        Self::open(network, false).with_context(|| describe(network))
    }

    fn locked(network: &str, lock: fn(File, &Path) -> Result<Lock>) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let Some(mut users) = Self::open(network, true).with_context(|| describe(network))?
            else {
                continue;
            };
            let dir = File::from(users.dir.0.try_clone()?);
            users.lock = Some(lock(dir, &users.path())?);
            // The previous holder of the lock may have removed the directory.
            if fstat(&users.dir.0).context("look at a directory")?.st_nlink > 0 {
                return Ok(users);
            }
        }
        let what = describe(network);
        Err(Code::TryAgain
            .err(format!("{what}: other calls remove it again and again"))
            .into())
    }

    /// The directories of all networks of this node's namespace.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn directories() -> Result<Vec<String>> {
        match Self::open_node(false)? {
            Some(node) => node.dir.entries().context("read the users of all networks"),
            None => Ok(Vec::new()),
        }
    }

    /// `None` if a directory is missing: without `make`, or removed in the meantime.
    fn open(network: &str, make: bool) -> Result<Option<Self>> {
        let Some(mut users) = Self::open_node(make)? else {
            return Ok(None);
        };
        let found = users.enter(&names::short(network), make)?;
        Ok(found.then_some(users))
    }

    /// Opens the directory that contains the directories of the networks.
    fn open_node(make: bool) -> Result<Option<Self>> {
        let dir = match Directory::open_at(AT_FDCWD, BASE) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(refusal(AT_FDCWD, BASE, errno)),
        };
        let mut users = Self {
            above: Vec::new(),
            dir,
            lock: None,
        };
        // Where nothing is shared, the first directory is missing already.
        let found = users.enter(FIRST, make)?
            && users.enter(SECOND, make)?
            && users.enter(&NetNs::current_name()?, make)?;
        Ok(found.then_some(users))
    }

    /// Enters a directory; false if it is missing, or removed as soon as it was created.
    fn enter(&mut self, name: &str, make: bool) -> Result<bool> {
        let mut next = self.dir.open(name);
        if make && matches!(next, Err(Errno::ENOENT)) {
            self.dir
                .make(name)
                .map_err(|errno| Unavailable(format!("make {name:?}: {errno}")))?;
            next = self.dir.open(name);
        }
        match next {
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(refusal(&self.dir.0, name, errno)),
            Ok(next) => {
                let dir = std::mem::replace(&mut self.dir, next);
                self.above.push((dir, name.to_owned()));
                Ok(true)
            }
        }
    }

    fn path(&self) -> PathBuf {
        let names = self.above.iter().map(|(_, name)| name.as_str());
        [BASE].into_iter().chain(names).collect()
    }

    /// Notes that the attachment uses `what`, with `content` for its DEL. Returns whether it is
    /// the first user of it.
    ///
    /// # Errors
    /// The file cannot be written, or something else is in its place.
    pub fn note(&self, what: &str, attachment: &Attachment, content: &str) -> Result<bool> {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_TRUNC | file_flags();
        let name = file_name(&attachment.alias());
        let mut first = false;
        for _ in 0..ATTEMPTS {
            let dir = match self.dir.open(what) {
                Err(Errno::ENOENT) => {
                    first = true;
                    self.dir.make(what).and_then(|()| self.dir.open(what))
                }
                other => other,
            };
            let file = dir.and_then(|dir| openat(&dir.0, name.as_str(), flags, private(0o600)));
            match file {
                // The DEL of the last user has just removed the directory.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).with_context(|| format!("note a user of {what}")),
                Ok(file) => {
                    if !content.is_empty() {
                        File::from(file).write_all(content.as_bytes())?;
                    }
                    return Ok(first);
                }
            }
        }
        Err(Errno::ENOENT).with_context(|| format!("note a user of {what}"))
    }

    /// The content of the attachment's file; `None` if it cannot be read.
    pub fn content(&self, what: &str, attachment: &Attachment) -> Option<String> {
        let dir = self.dir.open(what).ok()?;
        dir.content(&file_name(&attachment.alias())).ok()
    }

    /// The contents of all files of `what`, an error for one that cannot be read: first of the
    /// attachments with one of `aliases`, then of the others.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn contents(&self, what: &str, aliases: &[String]) -> Result<[Vec<Result<String>>; 2]> {
        let dir = match self.dir.open(what) {
            Err(Errno::ENOENT) => return Ok(Default::default()),
            other => other,
        };
        let read = || format!("read {}", self.path().join(what).display());
        let dir = dir.with_context(read)?;
        let these = file_names(aliases);
        let names = dir.entries().with_context(read)?.into_iter();
        let (these, others) = names.partition::<Vec<_>, _>(|name| these.contains(name));
        let content = |name: &String| {
            let path = || self.path().join(what).join(name);
            let content = dir.content(name);
            content.with_context(|| format!("read {}", path().display()))
        };
        Ok([these, others].map(|part| part.iter().map(content).collect()))
    }

    /// Removes an attachment. Returns whether others use everything that it used; false if it was
    /// not noted.
    ///
    /// # Errors
    /// A directory cannot be read, or a file cannot be removed. A second call continues.
    pub fn forget(&self, attachment: &Attachment) -> Result<bool> {
        let name = file_name(&attachment.alias());
        let (mut known, mut was_last) = (false, false);
        self.for_each_use(|what, dir| {
            if dir.remove_file(&name)? {
                known = true;
                was_last |= self.dir.remove_dir(what)?;
            }
            Ok(())
        })?;
        Ok(known && !was_last)
    }

    /// Removes all attachments but those with `aliases`.
    ///
    /// # Errors
    /// As [`Users::forget`].
    pub fn retain(&self, aliases: &[String]) -> Result<()> {
        let kept = file_names(aliases);
        self.for_each_use(|what, dir| {
            for name in dir.entries()? {
                if !kept.contains(&name) {
                    dir.remove_file(&name)?;
                }
            }
            self.dir.remove_dir(what).map(drop)
        })
    }

    /// Removes the attachments from all uses whose names begin with `prefix`.
    ///
    /// # Errors
    /// As [`Users::forget`].
    pub fn end(&self, prefix: &str) -> Result<()> {
        self.for_each_use(|what, dir| {
            if !what.starts_with(prefix) {
                return Ok(());
            }
            for name in dir.entries()? {
                dir.remove_file(&name)?;
            }
            self.dir.remove_dir(what).map(drop)
        })
    }

    /// Calls `act` for each use. An error of one does not stop the others.
    fn for_each_use(
        &self,
        mut act: impl FnMut(&str, &Directory) -> Result<(), Errno>,
    ) -> Result<()> {
        let mut failed = None;
        for what in self.uses()? {
            let done = match self.dir.open(&what) {
                Ok(dir) => act(&what, &dir),
                // Removed in the meantime, or another program's.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
                Err(errno) => Err(errno),
            };
            if let Err(errno) = done {
                failed.get_or_insert((what, errno));
            }
        }
        match failed {
            None => Ok(()),
            Some((what, errno)) => {
                let (path, why) = (self.path().join(what), cni::reason(&errno.into()));
                Err(anyhow::anyhow!(
                    "remove a user from {}: {why}",
                    path.display()
                ))
            }
        }
    }

    /// The uses that have users. One that cannot be read counts as used.
    ///
    /// # Errors
    /// The network's directory cannot be read.
    pub fn used(&self) -> Result<Vec<String>> {
        let is_used = |what: &String| {
            let is_empty = self.dir.open(what).and_then(|dir| dir.is_empty());
            !is_empty.unwrap_or(false)
        };
        Ok(self.uses()?.into_iter().filter(is_used).collect())
    }

    /// Whether attachments without one of `aliases` use anything.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn has_others(&self, aliases: &[String]) -> Result<bool> {
        let these = file_names(aliases);
        for what in self.uses()? {
            let names = self.dir.open(&what)?.entries()?;
            if names.iter().any(|name| !these.contains(name)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the attachment with this alias is noted.
    pub fn knows(&self, alias: &str) -> bool {
        let name = file_name(alias);
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let has = |what: &String| {
            let dir = self.dir.open(what);
            dir.is_ok_and(|dir| fstatat(&dir.0, name.as_str(), flags).is_ok())
        };
        self.uses().unwrap_or_default().iter().any(has)
    }

    /// Removes empty directories: uses, the network's, those above it.
    pub fn tidy(self) {
        for what in self.uses().unwrap_or_default() {
            let _ = self.dir.remove_dir(&what);
        }
        for (dir, name) in self.above.iter().rev() {
            if !matches!(dir.remove_dir(name), Ok(true)) {
                return;
            }
        }
    }

    /// Removes the directories above those of networks if they are empty: a killed call may have made
    /// nothing else.
    pub fn tidy_above() {
        let all = Path::new(BASE).join(FIRST).join(SECOND);
        let of_node = NetNs::current_name().map(|it| all.join(it));
        for dir in of_node.into_iter().chain([all]) {
            let _ = fs::remove_dir(dir);
        }
    }

    fn uses(&self) -> Result<Vec<String>> {
        let read = || format!("read {}", self.path().display());
        self.dir.entries().with_context(read)
    }
}

/// An open directory. No symbolic link is followed below it.
#[derive(Debug)]
struct Directory(OwnedFd);

impl Directory {
    fn open_at(above: impl AsFd, name: &str) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(above, name, flags, Mode::empty()).map(Self)
    }

    fn open(&self, name: &str) -> Result<Self, Errno> {
        Self::open_at(&self.0, name)
    }

    /// Makes a directory, unless it exists.
    fn make(&self, name: &str) -> Result<(), Errno> {
        match mkdirat(&self.0, name, private(0o700)) {
            Err(Errno::EEXIST) => Ok(()),
            done => done,
        }
    }

    /// The names in it.
    fn entries(&self) -> Result<Vec<String>, Errno> {
        self.map_entries(|names| names.collect())
    }

    /// Whether nothing is in it. Of many names only the first ones are read.
    fn is_empty(&self) -> Result<bool, Errno> {
        self.map_entries(|names| names.next().transpose().map(|first| first.is_none()))
    }

    fn map_entries<T>(
        &self,
        map: impl FnOnce(&mut dyn Iterator<Item = Result<String, Errno>>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut dir = nix::dir::Dir::from_fd(self.open(".")?.0)?;
        let names = dir.iter().map(|entry| {
            let entry = entry?;
            Ok(entry.file_name().to_string_lossy().into_owned())
        });
        let is_above = |name: &Result<String, Errno>| matches!(name.as_deref(), Ok("." | ".."));
        map(&mut names.filter(|name| !is_above(name)))
    }

    /// False if it is missing or has entries.
    fn remove_dir(&self, name: &str) -> Result<bool, Errno> {
        match unlinkat(&self.0, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// False if there is no file of ours.
    fn remove_file(&self, name: &str) -> Result<bool, Errno> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            // A directory is another program's. A read-only file system has no file of ours.
            Err(Errno::ENOENT | Errno::EISDIR | Errno::EROFS) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn content(&self, name: &str) -> io::Result<String> {
        let flags = OFlag::O_RDONLY | file_flags();
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            let why = format!("is not a regular file of at most {LONGEST} bytes");
            return Err(io::Error::other(why));
        }
        let mut content = String::new();
        file.take(LONGEST).read_to_string(&mut content)?;
        Ok(content)
    }
}

/// The error of a directory that was not opened: [`Unavailable`] if it is not ours. In a user
/// namespace, the machine's `/run` is another user's.
fn refusal(above: impl AsFd, name: &str, errno: Errno) -> anyhow::Error {
    let is_of_other = || {
        let found = fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        found.is_ok_and(|it| it.st_uid != geteuid().as_raw())
    };
    match errno {
        Errno::ENOTDIR | Errno::ELOOP => Unavailable(errno.to_string()).into(),
        Errno::EACCES if is_of_other() => Unavailable(errno.to_string()).into(),
        errno => errno.into(),
    }
}

fn describe(network: &str) -> String {
    format!("open the users of network {network} in {BASE}/{FIRST}/{SECOND}")
}

/// A hash: an alias may be longer than a file name, and contains slashes.
fn file_name(alias: &str) -> String {
    names::prefixed(40, "", alias)
}

fn file_names(aliases: &[String]) -> Vec<String> {
    aliases.iter().map(|alias| file_name(alias)).collect()
}

/// Opening a pipe must not block.
fn file_flags() -> OFlag {
    OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC
}

fn private(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}
