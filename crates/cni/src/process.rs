//! What a process inherits from its caller and cannot take as it is: signals and the
//! standard streams. And the end of a child, which must not be waited for without a limit.

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

/// Undoes what a caller had ignored or blocked, and what exec(2) hands down: for us and for
/// what we execute. The first thing that every `main` does.
pub fn start() {
    let needed = [
        // Ignored, the kernel buries our children, and wait(2) fails with ECHILD.
        Signal::SIGCHLD,
        // iptables waits for its lock with an alarm.
        Signal::SIGALRM,
        // The polite end. That of a terminal (SIGHUP, SIGINT) is nohup's to ignore.
        Signal::SIGTERM,
    ];
    for number in needed {
        // SAFETY: no handler is installed; the default action replaces the ignored signal.
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
    // Does not fail: the set is a valid one.
    let _ = SigSet::empty().thread_set_mask();
}

/// Whether standard output was closed when the program began.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Rust's runtime opens `/dev/null` in the place of a standard stream that is closed, so that
/// no file or socket gets its number. Afterwards a caller who closed standard output looks
/// like one who wants no answer, so we look before: the C library calls what is in this
/// section first of all.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        // SAFETY: asks for a flag of a descriptor, which may be closed.
        let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        // No other failure means that it is closed.
        let closed = closed && Errno::last() == Errno::EBADF;
        CLOSED.store(closed, Ordering::Relaxed);
    }
    look
};

/// Standard output without a buffer: a program that is killed has printed all of a document
/// or nothing. Fails where the standard library takes what is written to a closed stream
/// for written.
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

/// Tells the reader of the runtime's log something that is no failure. That nobody can read
/// it is none either: `eprintln!` would panic where standard error is a full disk.
pub fn log(line: fmt::Arguments<'_>) {
    // At once, so that lines of several programs stay lines.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Waits for the end of `child`, until `deadline`; `None` when it still runs then.
///
/// # Errors
/// Those of wait(2).
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

/// For poll(2), in milliseconds, and not less than one.
pub(crate) fn poll_timeout(limit: Duration) -> PollTimeout {
    let millis = limit.as_millis().clamp(1, i32::MAX as u128) as i32;
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

/// A descriptor that can be read when the child has ended; none before Linux 5.3.
fn pidfd(child: &Child) -> Option<OwnedFd> {
    // SAFETY: takes two numbers. The child has not been waited for, so the id is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made it for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether an error says that a stream was not ready.
pub(crate) fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
