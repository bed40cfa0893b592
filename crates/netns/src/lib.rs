//! Opens a network namespace, and runs code inside it.
//!
//! This is the only crate that calls `setns`. A closure runs inside the namespace, and the thread is
//! back in its own namespace when the closure ends, by an early `?` or a panic, too. A thread that
//! cannot return, after several attempts, ends the process.
//!
//! Enter a namespace only where there is no other way: for sysctls, and to open sockets. A socket that
//! was opened inside works from outside.

mod error;
mod system;

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use cni::own_netns;
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        stat::fstat,
        statfs::{FsType, PROC_SUPER_MAGIC, statfs},
    },
};

pub use error::{Error, is_gone};
use error::{failed, magic, other_kind};

/// The magic number of nsfs, where namespaces live since Linux 3.19
/// (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// A network namespace, held open.
///
/// Clones share one descriptor. The namespace exists at least as long as the value, even if its path
/// is unmounted.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path`, usually `/run/netns/…` or `/proc/…/ns/net`.
    ///
    /// # Errors
    /// If nothing or no network namespace is at the path, an error for which [`is_gone`] holds; if the
    /// path cannot be examined or opened, any other error.
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// let error = netns::NetNs::open(Path::new("/run/netns/nope")).unwrap_err();
    /// assert!(netns::is_gone(&error));
    /// assert_eq!(
    ///     error.to_string(),
    ///     r#"failed to Statfs "/run/netns/nope": no such file or directory"#,
    /// );
    /// ```
    pub fn open(path: &Path) -> Result<Self, Error> {
        let found = statfs(path)
            .map_err(|errno| failed("failed to Statfs", path, errno))?
            .filesystem_type();
        // Before Linux 3.19 a namespace was a file of procfs.
        if found != NSFS_MAGIC && found != PROC_SUPER_MAGIC {
            return Err(magic(path, found.0 as u64));
        }
        let file = File::open(path).map_err(|error| unopened(path, &error))?;
        if system::is_network(file.as_fd()) == Some(false) {
            return Err(other_kind("open", path));
        }
        Ok(Self {
            fd: Arc::new(file.into()),
            path: path.to_owned(),
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// As [`own_netns::open`].
    pub fn current() -> Result<Self, Error> {
        let path = PathBuf::from(own_netns::PATH);
        match own_netns::open() {
            Ok(fd) => Ok(Self {
                fd: Arc::new(fd),
                path,
            }),
            Err(error) => Err(unopened(&path, &error)),
        }
    }

    /// A new namespace, with nothing but a loopback interface that is down. It ends with the value, and
    /// with the sockets that were opened in it.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; `ENOSPC` when the user has too many.
    pub fn unnamed() -> anyhow::Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            anyhow::Ok(Self::current()?)
        });
        match made.join() {
            Ok(made) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Whether both are the same namespace, even if their paths differ: device and inode identify it
    /// (namespaces(7)).
    ///
    /// # Errors
    /// When a descriptor cannot be examined.
    pub fn same_as(&self, other: &Self) -> Result<bool, Error> {
        Ok(self.identity()? == other.identity()?)
    }

    /// A file name for the namespace of the calling thread: its inode, and since Linux 5.14 its
    /// cookie. The kernel uses an inode again for another namespace, but a cookie never until the
    /// next boot.
    ///
    /// # Errors
    /// As [`NetNs::current`]; no socket can be made.
    pub fn current_name() -> Result<String, Error> {
        let here = Self::current()?;
        let (_, inode) = here.identity()?;
        // An error, because the name without the cookie would be another one.
        let cookie = system::cookie().map_err(|errno| failed("examine", &here.path, errno))?;
        Ok(match cookie {
            Some(cookie) => format!("{inode}-{cookie}"),
            None => inode.to_string(),
        })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `inside` in this namespace and returns what it returned.
    ///
    /// The calling thread enters the namespace and returns. A thread of its own would wait for a CPU
    /// on a node where many pods start: with it, an ADD among 250 pods took 4.2 ms of CPU time
    /// instead of 2.8. It is used where the caller's namespace cannot be entered again: in a user
    /// namespace that does not own it. A socket that `inside` returns stays in this namespace and
    /// can be used from outside.
    ///
    /// # Errors
    /// When no thread can be started, or the namespace cannot be entered; the closure has not
    /// run then.
    ///
    /// ```
    /// # fn main() -> anyhow::Result<()> {
    /// let here = netns::NetNs::current()?;
    /// let forwards = here.enter(|| std::fs::read("/proc/sys/net/ipv4/ip_forward"))??;
    /// assert!(forwards == b"0\n" || forwards == b"1\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let Some(_return) = Return::to_here() else {
            return self.enter_on_a_thread(inside);
        };
        self.move_thread_in()
            .map_err(|errno| failed("enter", &self.path, errno))?;
        Ok(inside())
    }

    fn enter_on_a_thread<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let entered = thread::scope(|scope| {
            let thread = thread::Builder::new()
                .spawn_scoped(scope, || {
                    self.move_thread_in()?;
                    Ok::<T, Errno>(inside())
                })
                .context("start a thread for a network namespace")?;
            match thread.join() {
                Ok(entered) => anyhow::Ok(entered),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        entered
            .map_err(|errno| failed("enter", &self.path, errno))
            .map_err(Into::into)
    }

    /// Moves the calling process into this namespace for good. For a process with one thread that is
    /// to execute a command there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn join(&self) -> Result<(), Error> {
        let moved = self.move_thread_in();
        moved.map_err(|errno| failed("enter", &self.path, errno))
    }

    /// Moves the calling thread into this namespace.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    fn move_thread_in(&self) -> Result<(), Errno> {
        nix::sched::setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
    }

    fn identity(&self) -> Result<(u64, u64), Error> {
        let stat = fstat(self.fd.as_fd()).map_err(|errno| failed("examine", &self.path, errno))?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

fn unopened(path: &Path, error: &std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    failed("open", path, errno)
}

/// Moves the calling process for good into the network, mount and UTS namespace of another one, and
/// its children into that one's process namespace (`nsenter --target PID --all`). `process` is a
/// descriptor of pidfd_open(2). For a process with one thread.
///
/// # Errors
/// `ESRCH` if the process has ended; `EINVAL` before Linux 5.8.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn join_process(process: BorrowedFd<'_>) -> Result<(), Errno> {
    let all = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    nix::sched::setns(process, all | CloneFlags::CLONE_NEWPID)
}

/// How often a thread tries to return to its namespace, and how long it waits in between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// Returns the calling thread to its namespace when it is dropped.
struct Return(NetNs);

impl Return {
    /// To the namespace where the thread is now; `None` if it could not return there.
    fn to_here() -> Option<Self> {
        let here = NetNs::current().ok()?;
        here.move_thread_in().ok()?;
        Some(Self(here))
    }
}

impl Drop for Return {
    fn drop(&mut self) {
        // The same call succeeded a moment ago, so only a lack of memory can be the cause, and that may
        // end.
        for _ in 0..ATTEMPTS {
            if self.0.move_thread_in().is_ok() {
                return;
            }
            thread::sleep(PAUSE);
        }
        // What the caller does next must happen in its own namespace.
        std::process::abort();
    }
}

impl AsFd for NetNs {
    /// The descriptor, for a netlink attribute that names a namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
