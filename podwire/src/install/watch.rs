//! Repeats an installation whenever its directories change: the package kubernetes-cni replaces
//! `/opt/cni/bin` as a whole, and other installers write the same names.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Runs at least this often, in milliseconds: some file systems report no changes.
const INTERVAL: u16 = 60_000;
/// The least time between two runs: other programs replace many files at once, and another
/// installer may answer each of ours.
const REST: Duration = Duration::from_secs(1);

/// Runs `install`, and again after each change in `dirs`, until SIGTERM or SIGINT. The runs
/// report their own errors: the next one may succeed.
///
/// # Errors
/// The kernel refuses to report signals or changes.
pub fn watch(dirs: &[PathBuf], mut install: impl FnMut()) -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    // As the first process of a container, it would not get them otherwise.
    signals.thread_block().context("block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let ended = SignalFd::with_flags(&signals, flags).context("signalfd")?;
    loop {
        let begin = Instant::now();
        // Made before the run: a change during it is not missed, at the cost of one more run.
        let changes = changes_in(dirs)?;
        install();
        let changes = match changes {
            None => changes_in(dirs)?,
            some => some,
        };
        if happens(&ended, changes.as_ref(), INTERVAL)? {
            return Ok(());
        }
        let left = REST.saturating_sub(begin.elapsed()).as_millis();
        if happens(&ended, None, left as u16)? {
            return Ok(());
        }
    }
}

/// Reports changes in the directories; `None` if one does not exist.
fn changes_in(dirs: &[PathBuf]) -> Result<Option<Inotify>> {
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    let changes = changes.context("inotify")?;
    let all = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    for dir in dirs {
        if changes.add_watch(dir, all).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(changes))
}

/// Waits for a change, a signal, or `limit` milliseconds. Returns whether a signal has come.
fn happens(ended: &SignalFd, changes: Option<&Inotify>, limit: u16) -> Result<bool> {
    let mut fds = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    fds.extend(changes.map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, PollTimeout::from(limit)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno).context("poll"),
    }
    Ok(fds[0].any().unwrap_or_default())
}
