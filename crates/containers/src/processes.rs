//! Processes: children in namespaces of their own, descriptors of processes, signals. By system
//! calls that nix lacks.

#![allow(
    unsafe_code,
    reason = "clone, fork, and system calls on process descriptors"
)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// The exit status of a child whose task panics: that of a failure of ours, as in docker run.
const PANICKED: u8 = 125;

/// A descriptor of a process. It never means another process, even if the id is used again.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Of the process `pid`.
    ///
    /// # Errors
    /// `ESRCH` if there is none; `ENOSYS` before Linux 5.3.
    pub fn open(pid: Pid) -> Result<Self, Errno> {
        // SAFETY: takes two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal to the process. One that has ended gets none, without an error.
    ///
    /// # Errors
    /// The caller may not send it.
    pub fn signal(&self, number: i32) -> Result<(), Errno> {
        let none = std::ptr::null::<libc::siginfo_t>();
        let fd = self.0.as_raw_fd();
        // SAFETY: the descriptor is open; a null pointer means the siginfo of kill(2).
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, none, 0) };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Waits at most `limit` for the end of the process; whether it has ended.
    pub fn ends_within(&self, limit: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, limit) {
                Err(Errno::EINTR) => {}
                ready => return ready.is_ok_and(|count| count > 0),
            }
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    /// Its id.
    pub pid: Pid,
    /// Its descriptor, readable when it has ended.
    pub handle: Handle,
}

impl Child {
    /// Waits for its end, and returns the status as a shell does: 128 + n for signal n.
    ///
    /// # Errors
    /// Those of wait(2).
    pub fn wait(&self) -> Result<u8, Errno> {
        loop {
            match waitpid(self.pid, None) {
                Err(Errno::EINTR) => {}
                status => return Ok(exit_status(status?).unwrap_or(PANICKED)),
            }
        }
    }
}

/// The exit status of a process that has ended.
pub fn exit_status(status: WaitStatus) -> Option<u8> {
    match status {
        WaitStatus::Exited(_, code) => Some(code as u8),
        WaitStatus::Signaled(_, number, _) => Some(128 + number as u8),
        _ => None,
    }
}

/// Starts a child in new namespaces, which runs `task` and ends with its status. It has a copy of
/// our memory and of our descriptors, and no other thread.
///
/// # Errors
/// Those of clone3(2): `EPERM` without CAP_SYS_ADMIN, `ENOSPC` for too many namespaces.
pub fn fork(namespaces: CloneFlags, task: impl FnOnce() -> u8) -> Result<Child, Errno> {
    let mut pidfd: RawFd = -1;
    let flags = CloneFlags::from_bits_retain(libc::CLONE_PIDFD) | namespaces;
    let arguments = CloneArgs {
        flags: flags.bits() as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is fork(2): the child runs on a copy of this stack. podwire has
    // no second thread here (no crate that runs before leaves one), so no lock of the allocator or
    // of the standard library is held by a thread that the child lacks. `arguments` and `pidfd` are
    // live, and the size is that of the structure.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArgs>(),
        )
    };
    if Errno::result(pid)? == 0 {
        let status = catch_unwind(AssertUnwindSafe(task)).unwrap_or(PANICKED);
        // SAFETY: ends the process. The handlers of exit(3) are the parent's.
        unsafe { libc::_exit(status.into()) }
    }
    // SAFETY: the kernel has just made it for us.
    let handle = Handle(unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Child {
        pid: Pid::from_raw(pid as i32),
        handle,
    })
}

/// `struct clone_args` of linux/sched.h, in its first version.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Replaces this process by `command`, found in PATH, with `environment`. It starts with the signal
/// handling that a shell gives its commands.
///
/// Returns only with the error.
pub fn execute(command: &[CString], environment: &[CString]) -> Errno {
    // SAFETY: no handler is installed; Rust's runtime ignores SIGPIPE, and a command must not.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    // Cannot fail: the set is valid.
    let _ = SigSet::empty().thread_set_mask();
    match command.first() {
        Some(program) => match nix::unistd::execvpe(program, command, environment) {
            Err(errno) => errno,
        },
        None => Errno::ENOENT,
    }
}

/// Closes all descriptors but the standard streams: a process that outlives its caller must not keep
/// the caller's open. To be called before any other is opened.
pub fn close_inherited() {
    // SAFETY: by contract, no value of this process owns one of these descriptors.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3, RawFd::MAX, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_the_status_of_its_task() {
        let child = fork(CloneFlags::empty(), || 7).unwrap();
        assert!(child.handle.ends_within(PollTimeout::from(5000u16)));
        assert_eq!(child.wait(), Ok(7));
    }

    #[test]
    fn a_signal_ends_a_child_with_the_status_of_a_shell() {
        let child = fork(CloneFlags::empty(), || {
            std::thread::sleep(std::time::Duration::from_secs(20));
            0
        });
        let child = child.unwrap();
        child.handle.signal(libc::SIGKILL).unwrap();
        assert_eq!(child.wait(), Ok(137));
        child.handle.signal(libc::SIGKILL).unwrap();
    }
}
