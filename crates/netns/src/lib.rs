//! Opens a network namespace, and runs code inside it.
//!
//! This is the only crate that calls `setns`. A closure runs inside the namespace on a thread that
//! ends afterwards: whatever happens there, an early `?` or a panic, the caller has never left its
//! own namespace.
//!
//! Enter only for what has no other way: sysctls, and opening sockets. A socket that was opened
//! inside works from outside.

mod error;
mod system;

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    sched::CloneFlags,
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
    /// One for which [`is_gone`] holds if there is nothing at the path, or no network
    /// namespace; any other if the path cannot be examined or opened.
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
        let file = File::open(path).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            failed("open", path, errno)
        })?;
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
    /// As [`NetNs::open`], when /proc is not mounted.
    pub fn current() -> Result<Self, Error> {
        // Not /proc/self, which is the main thread: it may be in another namespace.
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether both are the same namespace, whatever their paths: device and inode identify it
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
    /// It runs on a thread of its own. A panic inside is resumed in the caller. A socket that
    /// `inside` returns stays in this namespace and can be used from outside.
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

    /// Starts to run `inside` in this namespace, as [`NetNs::enter`], while the caller goes on.
    ///
    /// # Errors
    /// When no thread can be started.
    ///
    /// ```
    /// # fn main() -> anyhow::Result<()> {
    /// let here = netns::NetNs::current()?;
    /// let entering = here.begin(|| std::fs::read("/proc/sys/net/ipv4/ip_forward"))?;
    /// // Other work.
    /// let forwards = entering.wait()??;
    /// assert!(forwards == b"0\n" || forwards == b"1\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<Entering<T>> {
        let netns = self.clone();
        let thread = thread::Builder::new()
            .spawn(move || {
                netns.move_thread_in()?;
                Ok(inside())
            })
            .context("start a thread for a network namespace")?;
        Ok(Entering {
            thread: Some(thread),
            path: self.path.clone(),
        })
    }

    /// Moves the calling thread, which must end soon, into this namespace.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    fn move_thread_in(&self) -> Result<(), Errno> {
        nix::sched::setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)
    }

    fn identity(&self) -> Result<(u64, u64), Error> {
        let stat = fstat(self.fd.as_fd()).map_err(|errno| failed("examine", &self.path, errno))?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

/// Code that [`NetNs::begin`] has started in a namespace. A drop waits for its end, so that nothing
/// runs in the namespace during a clean-up.
#[derive(Debug)]
pub struct Entering<T> {
    thread: Option<JoinHandle<Result<T, Errno>>>,
    path: PathBuf,
}

impl<T> Entering<T> {
    /// Waits for the result of the code. A panic inside is resumed here.
    ///
    /// # Errors
    /// When the namespace could not be entered; the code has not run then.
    pub fn wait(mut self) -> Result<T, Error> {
        let Some(thread) = self.thread.take() else {
            unreachable!("only wait and drop take it");
        };
        match thread.join() {
            Ok(entered) => entered.map_err(|errno| failed("enter", &self.path, errno)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl<T> Drop for Entering<T> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl AsFd for NetNs {
    /// The descriptor, for a netlink attribute that names a namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
