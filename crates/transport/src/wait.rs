//! Waits for a descriptor that can be read, and between two attempts.

use std::os::fd::BorrowedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until one of `fds` can be read, and returns which can. An error or the other end's
/// close counts, too: the read reports it.
///
/// # Errors
/// `ETIMEDOUT` at `until`.
pub fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    until: Instant,
) -> Result<[bool; N], Errno> {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last wait does not spin.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => return Ok(fds.each_ref().map(|fd| fd.any().unwrap_or(true))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// How often, and how long, to repeat an attempt that fails because other programs change the same
/// objects.
#[derive(Debug)]
pub struct Backoff {
    attempts: usize,
    until: Instant,
    pause: Option<Duration>,
}

impl Backoff {
    /// Allows as many attempts as `attempts` and `patience` allow, whichever allows more.
    pub fn new(attempts: usize, patience: Duration) -> Self {
        Self {
            attempts,
            until: Instant::now() + patience,
            pause: None,
        }
    }

    /// To be called after a failed attempt: pauses and returns true if another attempt may follow.
    pub fn again(&mut self) -> bool {
        self.attempts = self.attempts.saturating_sub(1);
        let again = self.attempts > 0 || Instant::now() < self.until;
        if again {
            // Two processes that collided once must not collide again in step.
            let id = || Duration::from_micros(u64::from(std::process::id() % 64));
            let pause = self.pause.unwrap_or_else(id);
            sleep(pause);
            self.pause =
                Some((pause * 2 + Duration::from_micros(50)).min(Duration::from_millis(5)));
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_descriptor_that_stays_silent_times_out() {
        let (one, two) = UnixDatagram::pair().unwrap();
        let start = Instant::now();
        let until = start + Duration::from_millis(20);
        let silent = wait_readable([one.as_fd()], until);
        assert_eq!(silent, Err(Errno::ETIMEDOUT));
        assert!(start.elapsed() >= Duration::from_millis(20));
        two.send(b"x").unwrap();
        let readable = wait_readable([two.as_fd(), one.as_fd()], Instant::now());
        assert_eq!(readable, Ok([false, true]));
    }

    #[test]
    fn attempts_end_when_both_limits_are_reached() {
        let mut few = Backoff::new(3, Duration::ZERO);
        assert_eq!([few.again(), few.again(), few.again()], [true, true, false]);
        let mut patient = Backoff::new(0, Duration::from_secs(60));
        assert!(patient.again());
    }
}
