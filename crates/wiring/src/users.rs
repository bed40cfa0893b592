//! Who uses the rules that the attachments of a network share: one empty file for each of them,
//! so that a DEL knows in a few system calls, whatever the number of pods, whether it is the
//! last.
//!
//! `/run/podwire/shared/<network namespace>/<network>/<use>/<attachment>`: a use is a rule, such
//! as `masquerade-10.1.0.0_24`. `rmdir(2)` of a use succeeds when its last file is gone. The
//! namespace is the node's own: nodes may share one `/run`.
//!
//! An ADD writes its file before it makes the rules, under a lock that it shares with others of its
//! kind; who takes rules away holds the lock alone from before the users are looked at until
//! the rules are gone. A directory that is removed cannot be written to, so an ADD that waited
//! for the lock of such a one begins again.
//!
//! All of it is a hint. It is lost with `/run`, and the pods of earlier releases and of the Go
//! plugins are not in it.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use cni::lock::{self, Lock};
use cni::{Attachment, Code, names};
use netns::NetNs;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// Only root writes here. It is gone after a boot, as the rules are.
const BASE: &str = "/run";

/// How often a directory that others remove meanwhile is made anew.
const ATTEMPTS: u32 = 100;

/// No file is longer: it names some addresses.
const LONGEST: u64 = 4096;

/// The users of what the attachments of one network share.
#[derive(Debug)]
pub struct Users {
    /// From [`BASE`] down to the directory above the network's, each with the name of the
    /// next one.
    above: Vec<(OwnedFd, String)>,
    dir: OwnedFd,
    lock: Option<Lock>,
}

/// Why there are no files of ours: no ADD can have written any, so a DEL has none to remove.
#[derive(Debug)]
pub enum NoPlace {
    /// Something of others lies in the place of a directory of ours, or the directory is another
    /// user's, as `/run` of the machine is in a user namespace.
    Others(Errno),
    /// A directory that is missing cannot be made.
    Unwritable(String, Errno),
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Others(errno) => write!(f, "{errno}"),
            Self::Unwritable(name, errno) => write!(f, "make {name:?}: {errno}"),
        }
    }
}

impl std::error::Error for NoPlace {}

/// What is left after an attachment was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It was not known.
    Unknown,
    /// Others use what it used.
    Users,
    /// It was the last user of something.
    Nobody,
}

impl Users {
    /// For an ADD: makes the directory, and waits until no other call removes rules.
    ///
    /// # Errors
    /// Nothing can be written there, with [`NoPlace`] where nothing of ours can be there at all;
    /// code 11 if another holds the lock for too long.
    pub fn join(network: &str) -> Result<Self> {
        Self::locked(network, lock::shared)
    }

    /// For who takes rules away: makes the directory, and keeps others out until this is dropped.
    ///
    /// # Errors
    /// As [`Users::join`].
    pub fn alone(network: &str) -> Result<Self> {
        Self::locked(network, lock::exclusive)
    }

    /// The directory as it is, without a lock; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be looked at, with [`NoPlace`] where nothing of ours can be there at all.
    pub fn find(network: &str) -> Result<Option<Self>> {
        Self::walk(network, false).with_context(|| describe(network))
    }

    fn locked(network: &str, lock: fn(File, &std::path::Path) -> Result<Lock>) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let Some(mut users) = Self::walk(network, true).with_context(|| describe(network))?
            else {
                continue;
            };
            let dir = File::from(users.dir.try_clone()?);
            users.lock = Some(lock(dir, &users.path())?);
            // The former holder of the lock may have removed it.
            if fstat(&users.dir).context("look at a directory")?.st_nlink > 0 {
                return Ok(users);
            }
        }
        let what = describe(network);
        Err(Code::TryAgain
            .err(format!("{what}: it is removed again and again"))
            .into())
    }

    fn path(&self) -> PathBuf {
        let names = self.above.iter().map(|(_, name)| name.as_str());
        [BASE].into_iter().chain(names).collect()
    }

    /// `None` if a directory is missing: without `make`, or removed meanwhile.
    fn walk(network: &str, make: bool) -> Result<Option<Self>> {
        let Some(mut path) = Path::new()? else {
            return Ok(None);
        };
        // Where nothing is shared, there is not even the first one.
        let found = path.step(FIRST, make)?
            && path.step(SECOND, make)?
            && path.step(&NetNs::current_name()?, make)?
            && path.step(&names::short(network), make)?;
        if !found {
            return Ok(None);
        }
        let Path { above, dir } = path;
        let lock = None;
        Ok(Some(Self { above, dir, lock }))
    }

    /// Writes down that the attachment uses `what`; `content` is for its own DEL. Whether it is
    /// the first user of it.
    ///
    /// # Errors
    /// Nothing can be written there, or something else is in the place of the file.
    pub fn note(&self, what: &str, attachment: &Attachment, content: &str) -> Result<bool> {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_TRUNC | file_flags();
        let name = file_name(&attachment.alias());
        let mut first = false;
        for _ in 0..ATTEMPTS {
            let dir = match openat(&self.dir, what, directory(), Mode::empty()) {
                Err(Errno::ENOENT) => {
                    first = true;
                    make_and_open(&self.dir, what)
                }
                other => other,
            };
            let file = dir.and_then(|dir| openat(&dir, name.as_str(), flags, private(0o600)));
            match file {
                // The last user has just gone, and its DEL has removed the directory.
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

    /// What was noted with the attachment; `None` if that cannot be told.
    pub fn content(&self, what: &str, attachment: &Attachment) -> Option<String> {
        let dir = openat(&self.dir, what, directory(), Mode::empty()).ok()?;
        content_of(&dir, &file_name(&attachment.alias()))
    }

    /// What was noted with each attachment that uses `what`: first with those that have one of
    /// these aliases, then with the others; `None` where that cannot be told.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn contents(&self, what: &str, aliases: &[String]) -> Result<[Vec<Option<String>>; 2]> {
        let dir = match openat(&self.dir, what, directory(), Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(Default::default()),
            other => other,
        };
        let read = || format!("read {}", self.path().join(what).display());
        let dir = dir.with_context(read)?;
        let these: Vec<_> = aliases.iter().map(|it| file_name(it)).collect();
        let names = entries(&dir).with_context(read)?.into_iter();
        let parts: (Vec<_>, Vec<_>) = names.partition(|name| these.contains(name));
        Ok([parts.0, parts.1].map(|part| part.iter().map(|it| content_of(&dir, it)).collect()))
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// A directory cannot be read, or a file that is there cannot be removed: called again, this
    /// goes on.
    pub fn forget(&self, attachment: &Attachment) -> Result<Left> {
        let name = file_name(&attachment.alias());
        let mut left = Left::Unknown;
        self.for_each_use(|what, dir| {
            if !remove(dir, &name)? {
                return Ok(());
            }
            match unlinkat(&self.dir, what, UnlinkatFlags::RemoveDir) {
                Ok(()) => left = Left::Nobody,
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOENT) => {
                    if left == Left::Unknown {
                        left = Left::Users;
                    }
                }
                Err(errno) => return Err(errno),
            }
            Ok(())
        })?;
        Ok(left)
    }

    /// Forgets all attachments but those with these aliases.
    ///
    /// # Errors
    /// As [`Users::forget`].
    pub fn retain(&self, aliases: &[String]) -> Result<()> {
        let kept: Vec<_> = aliases.iter().map(|it| file_name(it)).collect();
        self.for_each_use(|what, dir| {
            for name in entries(dir)? {
                if !kept.contains(&name) {
                    remove(dir, &name)?;
                }
            }
            match unlinkat(&self.dir, what, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOENT) => Ok(()),
                Err(errno) => Err(errno),
            }
        })
    }

    /// Does `remove` for each use. What fails for one does not keep it from the others.
    fn for_each_use(
        &self,
        mut remove: impl FnMut(&str, &OwnedFd) -> Result<(), Errno>,
    ) -> Result<()> {
        let mut failed = None;
        for what in self.uses()? {
            let done = match openat(&self.dir, what.as_str(), directory(), Mode::empty()) {
                Ok(dir) => remove(&what, &dir),
                // Gone meanwhile, or another program's.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
                Err(errno) => Err(errno),
            };
            if let Err(errno) = done {
                let path = self.path().join(&what);
                failed.get_or_insert((path, errno));
            }
        }
        match failed {
            None => Ok(()),
            Some((path, errno)) => {
                let (path, why) = (path.display(), cni::reason(&errno.into()));
                Err(anyhow::anyhow!("remove a user from {path}: {why}"))
            }
        }
    }

    /// The uses that have users. One that cannot be read has.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn used(&self) -> Result<Vec<String>> {
        let is_used = |what: &String| {
            let dir = openat(&self.dir, what.as_str(), directory(), Mode::empty());
            let names = dir.ok().and_then(|dir| entries(&dir).ok());
            names.is_none_or(|names| !names.is_empty())
        };
        Ok(self.uses()?.into_iter().filter(is_used).collect())
    }

    /// Whether attachments with other aliases than these use anything.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn has_others(&self, aliases: &[String]) -> Result<bool> {
        let these: Vec<_> = aliases.iter().map(|it| file_name(it)).collect();
        for what in self.uses()? {
            let dir = openat(&self.dir, what.as_str(), directory(), Mode::empty())?;
            if entries(&dir)?.iter().any(|name| !these.contains(name)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the attachment with this alias is known.
    pub fn knows(&self, alias: &str) -> bool {
        let name = file_name(alias);
        let has = |what: &String| {
            let dir = openat(&self.dir, what.as_str(), directory(), Mode::empty());
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            dir.is_ok_and(|dir| openat(&dir, name.as_str(), flags, Mode::empty()).is_ok())
        };
        self.uses().unwrap_or_default().iter().any(has)
    }

    /// Removes what is empty: uses, the network's directory, those above it.
    pub fn tidy(self) {
        for what in self.uses().unwrap_or_default() {
            let _ = unlinkat(&self.dir, what.as_str(), UnlinkatFlags::RemoveDir);
        }
        for (dir, name) in self.above.iter().rev() {
            if unlinkat(dir, name.as_str(), UnlinkatFlags::RemoveDir).is_err() {
                return;
            }
        }
    }

    fn uses(&self) -> Result<Vec<String>> {
        entries(&self.dir).with_context(|| format!("read {}", self.path().display()))
    }
}

const FIRST: &str = "podwire";
const SECOND: &str = "shared";

/// A way down from [`BASE`] that follows no link.
struct Path {
    above: Vec<(OwnedFd, String)>,
    dir: OwnedFd,
}

impl Path {
    /// `None` if not even [`BASE`] is there.
    fn new() -> Result<Option<Self>> {
        let above = Vec::new();
        match openat(AT_FDCWD, BASE, directory(), Mode::empty()) {
            Ok(dir) => Ok(Some(Self { above, dir })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(refusal(AT_FDCWD, BASE, errno)),
        }
    }

    /// Goes into a directory; false if it is missing, or was removed as soon as it was made.
    fn step(&mut self, name: &str, make: bool) -> Result<bool> {
        let mut next = openat(&self.dir, name, directory(), Mode::empty());
        if make && matches!(next, Err(Errno::ENOENT)) {
            match mkdirat(&self.dir, name, private(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(NoPlace::Unwritable(name.to_owned(), errno).into()),
            }
            next = openat(&self.dir, name, directory(), Mode::empty());
        }
        match next {
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(refusal(&self.dir, name, errno)),
            Ok(next) => {
                let dir = std::mem::replace(&mut self.dir, next);
                self.above.push((dir, name.to_owned()));
                Ok(true)
            }
        }
    }
}

/// Why a directory was not opened: [`NoPlace`] where it is none of ours.
fn refusal(above: impl AsFd, name: &str, errno: Errno) -> anyhow::Error {
    let is_others = || {
        let there = fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        there.is_ok_and(|it| it.st_uid != geteuid().as_raw())
    };
    match errno {
        Errno::ENOTDIR | Errno::ELOOP => NoPlace::Others(errno).into(),
        Errno::EACCES if is_others() => NoPlace::Others(errno).into(),
        errno => errno.into(),
    }
}

/// Removes a file; false if there is none of ours.
fn remove(dir: &OwnedFd, name: &str) -> Result<bool, Errno> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => Ok(true),
        // A directory there is another program's. Nothing is kept on what cannot be written.
        Err(Errno::ENOENT | Errno::EISDIR | Errno::EROFS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn describe(network: &str) -> String {
    format!("open the users of network {network} in {BASE}/{FIRST}/{SECOND}")
}

/// Hashed: an alias may be longer than a file name, and has slashes.
fn file_name(alias: &str) -> String {
    names::prefixed(40, "", alias)
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// Opening a pipe does not block, and a link is not followed.
fn file_flags() -> OFlag {
    OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC
}

fn private(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

fn make_and_open(above: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(above, name, private(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => openat(above, name, directory(), Mode::empty()),
        Err(errno) => Err(errno),
    }
}

/// The names in a directory.
fn entries(dir: &OwnedFd) -> Result<Vec<String>, Errno> {
    let own = openat(dir, ".", directory(), Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(own)?.iter() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn content_of(dir: &OwnedFd, name: &str) -> Option<String> {
    let flags = OFlag::O_RDONLY | file_flags();
    let file = File::from(openat(dir, name, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return None;
    }
    let mut content = String::new();
    file.take(LONGEST).read_to_string(&mut content).ok()?;
    Some(content)
}
