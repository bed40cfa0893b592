//! flock(2) with a time limit: a program that hangs while it holds a lock must not block all
//! others.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread::Builder;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};

use crate::error::Code;
use crate::system_error::SystemError;

/// How long to wait for a lock. Plugins hold theirs for milliseconds, and runtimes repeat a
/// call that fails with code 11.
const PATIENCE: Duration = Duration::from_secs(20);

/// A lock, released on drop.
#[derive(Debug)]
pub struct Lock(Option<Flock<File>>);

impl From<Flock<File>> for Lock {
    fn from(held: Flock<File>) -> Self {
        Self(Some(held))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(Err((held, _))) = self.0.take().map(Flock::unlock) {
            // Its own drop would panic. The kernel releases the lock when the process ends.
            std::mem::forget(held);
        }
    }
}

/// Takes an exclusive lock on `file`, a file or directory at `path`.
///
/// # Errors
/// Code 11 if another program holds the lock for 20 s, with its process id if the kernel
/// shows it; the errors of flock(2).
pub fn exclusive(file: File, path: &Path) -> Result<Lock> {
    lock_within(file, path, LOCK_EX, PATIENCE)
}

/// Takes a shared lock on `file`.
///
/// # Errors
/// As [`exclusive`].
pub fn shared(file: File, path: &Path) -> Result<Lock> {
    lock_within(file, path, LOCK_SH, PATIENCE)
}

/// How to take a lock without waiting, and with waiting.
type How = [FlockArg; 2];
const LOCK_EX: How = [FlockArg::LockExclusiveNonblock, FlockArg::LockExclusive];
const LOCK_SH: How = [FlockArg::LockSharedNonblock, FlockArg::LockShared];

fn lock_within(file: File, path: &Path, how: How, patience: Duration) -> Result<Lock> {
    let [at_once, waiting_for_it] = how;
    let failed = |errno| SystemError::new(format!("lock {}", path.display()), errno);
    let waiting = match Flock::lock(file, at_once) {
        Ok(lock) => return Ok(Lock(Some(lock))),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(failed(errno).into()),
    };
    let metadata = waiting.metadata()?;
    // flock(2) has no time limit. A thread that gets the lock too late releases it.
    let (answer, answered) = channel();
    Builder::new()
        .name("lock".into())
        .stack_size(64 * 1024)
        .spawn(move || answer.send(wait(waiting, waiting_for_it)))?;
    match answered.recv_timeout(patience) {
        Ok(lock) => Ok(lock.map_err(failed)?),
        Err(_) => Err(held(path, &metadata, patience).into()),
    }
}

fn wait(mut file: File, how: FlockArg) -> Result<Lock, Errno> {
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(Lock(Some(lock))),
            Err((waiting, Errno::EINTR)) => file = waiting,
            Err((_, errno)) => return Err(errno),
        }
    }
}

fn held(path: &Path, metadata: &Metadata, patience: Duration) -> crate::Error {
    let who = match holder(metadata) {
        Some(pid) => format!("process {pid}"),
        None => "another program".to_owned(),
    };
    let (path, seconds) = (path.display(), patience.as_secs());
    Code::TryAgain.err(format!(
        "lock {path}: {who} has held it for more than {seconds} s"
    ))
}

/// The process that holds a flock(2) on a file. The kernel does not show it if the process is
/// in another process namespace or has left the lock to a child.
pub fn holder(metadata: &Metadata) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let holder = holder_in(&locks, metadata.dev(), metadata.ino());
    holder.filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

/// Searches lines like `1: FLOCK  ADVISORY  WRITE 4711 08:02:393219 0 EOF` (proc_locks(5)). In
/// lines of waiting processes, an arrow follows the number.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let &[_, "FLOCK", _, _, pid, at, ..] = words.as_slice() else {
            return None;
        };
        pid.parse().ok().filter(|pid| *pid > 0 && at == file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use nix::sys::stat::makedev;

    #[test]
    fn the_holder_is_not_a_waiting_process() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 08:02:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 2 08:02:8 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 3 08:02:7 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 08:03:7 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 4711 08:02:7 0 EOF\n";
        assert_eq!(holder_in(locks, makedev(8, 2), 7), Some(4711));
        assert_eq!(holder_in(locks, makedev(8, 2), 8), Some(2));
        assert_eq!(holder_in(locks, makedev(8, 3), 7), None);
        assert_eq!(holder_in("", makedev(8, 3), 7), None);
    }

    #[test]
    fn waiting_for_a_lock_has_a_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let first = exclusive(open(), file.path()).unwrap();
        let short = Duration::from_millis(50);
        let error = lock_within(open(), file.path(), LOCK_EX, short).unwrap_err();
        let error = Error::from_chain(&error);
        assert_eq!(error.code, 11);
        let held = format!(
            "lock {}: process {} has held it",
            file.path().display(),
            std::process::id()
        );
        assert!(error.msg.starts_with(&held), "{}", error.msg);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| exclusive(open(), file.path()).map(drop));
            std::thread::sleep(short);
            drop(first);
            second.join().unwrap().unwrap();
        });
        // The thread that waited too long has released its lock.
        exclusive(open(), file.path()).unwrap();
    }
}
