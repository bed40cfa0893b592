//! What a process inherits from its caller and has to repair: signals and standard streams.
//! Also waiting for a child with a time limit.

#![allow(
    unsafe_code,
    reason = "signal dispositions, and system calls that no crate of ours has"
)]

use std::fmt;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};

/// Resets signals that the caller ignored or blocked, for this process and its children:
/// exec(2) passes both on. Every `main` calls this first.
pub fn start() {
    let needed = [
        // If it is ignored, the kernel reaps our children, and wait(2) fails with ECHILD.
        Signal::SIGCHLD,
        // iptables waits for its lock with an alarm.
        Signal::SIGALRM,
        // SIGHUP and SIGINT stay ignored: nohup(1) relies on it.
        Signal::SIGTERM,
    ];
    for number in needed {
        // SAFETY: no handler is installed; the default action replaces the ignored signal.
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
    // Cannot fail: the set is valid.
    let _ = SigSet::empty().thread_set_mask();
}

/// Whether standard output was closed when the program began.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Rust's runtime replaces a closed standard stream by `/dev/null`, so that no file or socket
/// gets its number. After that, a closed standard output cannot be detected, so this function
/// checks it earlier: the C library calls the functions in this section before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        // SAFETY: reads a flag of a descriptor, which may be closed.
        let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        // Other failures do not mean that it is closed.
        let closed = closed && Errno::last() == Errno::EBADF;
        CLOSED.store(closed, Ordering::Relaxed);
    }
    look
};

/// Standard output without a buffer: a program that is killed has printed all of a document
/// or nothing. Writing to a closed stream is an error; the standard library ignores it.
#[derive(Clone, Copy, Debug)]
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if CLOSED.load(Ordering::Relaxed) {
            return Err(Errno::EBADF.into());
        }
        Ok(nix::unistd::write(std::io::stdout(), bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes a line to standard error, which runtimes log. Errors are ignored; `eprintln!` would
/// panic if standard error is a file on a full disk.
pub fn log(line: fmt::Arguments<'_>) {
    // In one write(2), so that lines of several programs do not mix.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Waits for the end of `child` until `deadline`; `None` if it still runs then.
///
/// # Errors
/// As wait(2).
pub fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    let ended = pidfd(child);
    let mut nap = Duration::from_micros(50);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        match &ended {
            Some(ended) => readable(ended, left)?,
            None => {
                sleep(nap.min(left));
                nap = (nap * 2).min(Duration::from_millis(5));
            }
        }
    }
}

fn readable(fd: &OwnedFd, limit: Duration) -> std::io::Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, poll_timeout(limit)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A timeout for poll(2), at least one millisecond.
pub(crate) fn poll_timeout(limit: Duration) -> PollTimeout {
    let millis = limit.as_millis().clamp(1, i32::MAX as u128) as i32;
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// A descriptor that becomes readable when the child ends; `None` before Linux 5.3.
fn pidfd(child: &Child) -> Option<OwnedFd> {
    // SAFETY: takes two numbers. The child was not waited for, so its id is not reused.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made it for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the stream was not ready, or a signal interrupted the call.
pub(crate) fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
