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

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cni::{Attachment, Code, names};
use netns::NetNs;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Only root writes here. It is gone after a boot, as the rules are.
const BASE: &str = "/run";

/// How long a lock is waited for: who holds it alone needs some milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

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
    lock: Option<Flock<File>>,
}

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
    /// For an ADD: makes the directory, and waits until nobody takes rules away.
    ///
    /// # Errors
    /// Nothing can be written there; code 11 if another holds the lock for too long.
    pub fn join(network: &str) -> Result<Self> {
        Self::locked(network, FlockArg::LockSharedNonblock)
    }

    /// For who takes rules away: makes the directory, and keeps others out until this is dropped.
    ///
    /// # Errors
    /// As [`Users::join`].
    pub fn alone(network: &str) -> Result<Self> {
        Self::locked(network, FlockArg::LockExclusiveNonblock)
    }

    /// The directory as it is, without a lock; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn find(network: &str) -> Result<Option<Self>> {
        Self::walk(network, false).with_context(|| describe(network))
    }

    fn locked(network: &str, how: FlockArg) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let Some(mut users) = Self::walk(network, true).with_context(|| describe(network))?
            else {
                continue;
            };
            users.lock = Some(lock(&users.dir, how).with_context(|| describe(network))?);
            // Whoever had the lock before may have removed it.
            if fstat(&users.dir).context("look at a directory")?.st_nlink > 0 {
                return Ok(users);
            }
        }
        let what = describe(network);
        Err(Code::TryAgain
            .err(format!("{what}: it is removed again and again"))
            .into())
    }

    /// `None` if a directory is missing: without `make`, or removed meanwhile.
    fn walk(network: &str, make: bool) -> Result<Option<Self>> {
        let mut path = Path::new()?;
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
        let name = file_name(&attachment.alias());
        let flags = OFlag::O_RDONLY | file_flags();
        let file = File::from(openat(&dir, name.as_str(), flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            return None;
        }
        let mut content = String::new();
        file.take(LONGEST).read_to_string(&mut content).ok()?;
        Some(content)
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn forget(&self, attachment: &Attachment) -> Result<Left> {
        let name = file_name(&attachment.alias());
        let mut left = Left::Unknown;
        for what in self.uses()? {
            let Ok(dir) = openat(&self.dir, what.as_str(), directory(), Mode::empty()) else {
                continue;
            };
            if unlinkat(&dir, name.as_str(), UnlinkatFlags::NoRemoveDir).is_err() {
                continue;
            }
            match unlinkat(&self.dir, what.as_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) => left = Left::Nobody,
                Err(_) if left == Left::Unknown => left = Left::Users,
                Err(_) => {}
            }
        }
        Ok(left)
    }

    /// Forgets all attachments but those with these aliases.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn retain(&self, aliases: &[String]) -> Result<()> {
        let kept: Vec<_> = aliases.iter().map(|it| file_name(it)).collect();
        for what in self.uses()? {
            let Ok(dir) = openat(&self.dir, what.as_str(), directory(), Mode::empty()) else {
                continue;
            };
            for name in entries(&dir)? {
                if !kept.contains(&name) {
                    let _ = unlinkat(&dir, name.as_str(), UnlinkatFlags::NoRemoveDir);
                }
            }
            let _ = unlinkat(&self.dir, what.as_str(), UnlinkatFlags::RemoveDir);
        }
        Ok(())
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
        entries(&self.dir)
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
    fn new() -> Result<Self, Errno> {
        let dir = open(BASE, directory(), Mode::empty())?;
        let above = Vec::new();
        Ok(Self { above, dir })
    }

    /// Goes into a directory; false if it is missing, or was removed as soon as it was made.
    fn step(&mut self, name: &str, make: bool) -> Result<bool, Errno> {
        let next = match openat(&self.dir, name, directory(), Mode::empty()) {
            Err(Errno::ENOENT) if make => make_and_open(&self.dir, name),
            other => other,
        };
        match next {
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
            Ok(next) => {
                let dir = std::mem::replace(&mut self.dir, next);
                self.above.push((dir, name.to_owned()));
                Ok(true)
            }
        }
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

/// A pipe holds nobody up, and a link is not followed.
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
fn entries(dir: &OwnedFd) -> Result<Vec<String>> {
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

/// Waits for a lock, but not for ever.
fn lock(dir: &OwnedFd, how: FlockArg) -> Result<Flock<File>> {
    let mut file = File::from(dir.try_clone()?);
    let until = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((unlocked, Errno::EWOULDBLOCK)) if Instant::now() < until => file = unlocked,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Code::TryAgain.err("the lock is held").into());
            }
            Err((_, errno)) => return Err(errno.into()),
        }
        sleep(Duration::from_micros(500));
    }
}
