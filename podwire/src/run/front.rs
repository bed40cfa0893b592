//! The front of a container: passes signals on to it, and waits for its end.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use containers::Place;
use containers::processes::{self, Child};
use networks::NetworkList;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::plan::Plan;
use super::supervisor::{Report, supervise};
use super::{Dirs, Job};
use crate::output::print;

/// `si_code` of a signal of the kernel, such as of Ctrl-C at a terminal (sigaction(2)).
const SI_KERNEL: i32 = 0x80;

/// The signals that are passed on to the command.
const PASSED: [Signal; 6] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Runs a command and returns its exit status; with `detached`, prints the container's id and returns
/// when the command has been started.
///
/// # Errors
/// The container cannot be made.
pub fn run(
    plan: Plan,
    dirs: &Dirs,
    detached: bool,
    find: &dyn Fn(&str) -> Result<NetworkList>,
) -> Result<u8> {
    for warning in &plan.warnings {
        cni::log(format_args!("{warning}"));
    }
    let job = Job::new(plan, dirs, detached, find)?;
    let place = Place::take(&job.record.name)?;
    place.clear()?;
    let signals = block()?;
    let ((control, passed), (reports, report)) = (pipe()?, pipe()?);
    let mut ours = Some((passed, reports));
    let supervisor = processes::fork(CloneFlags::empty(), || {
        drop(ours.take());
        supervise(&job, &place, report, control)
    });
    let supervisor = supervisor.context("start the supervisor")?;
    let (passed, reports) = ours.take().context("the pipes are gone")?;
    // While the supervisor works.
    let swept = containers::sweep(&dirs.cache);
    let mut front = Front {
        signals: descriptor(&signals)?,
        passed,
        reports,
        read: Vec::new(),
    };
    let outcome = front.attend(&job);
    if let Err(error) = swept {
        cni::log(format_args!("podwire: {error:#}"));
    }
    match outcome? {
        Some(status) => Ok(status),
        None => after_the_supervisor(&supervisor, &place),
    }
}

/// Blocks the signals that are passed on. Children inherit that: no supervisor dies of them.
fn block() -> Result<SigSet> {
    let signals: SigSet = PASSED.into_iter().collect();
    signals.thread_block().context("block signals")?;
    Ok(signals)
}

fn descriptor(signals: &SigSet) -> Result<SignalFd> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(signals, flags).context("signalfd")
}

/// The signals that came, without those of the terminal: the command is in the terminal's process
/// group, too, and has got them itself.
fn received(signals: &SignalFd) -> Vec<u32> {
    let all = std::iter::from_fn(|| signals.read_signal().ok().flatten());
    let of_processes = all.filter(|it| it.ssi_code != SI_KERNEL);
    of_processes.map(|it| it.ssi_signo).collect()
}

/// Waits until one of two descriptors is readable or closed; which ones are.
fn wait_for(fds: [BorrowedFd<'_>; 2]) -> Result<[bool; 2]> {
    loop {
        let mut fds = fds.map(|it| PollFd::new(it, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            polled => polled.context("poll")?,
        };
        return Ok(fds.map(|it| it.any().unwrap_or(true)));
    }
}

/// Starts a child, passes signals on to it, and returns its exit status.
///
/// # Errors
/// It cannot be started.
pub fn pass_signals(start: impl FnOnce() -> Result<Child>) -> Result<u8> {
    let signals = descriptor(&block()?)?;
    let child = start()?;
    loop {
        let [signalled, ended] = wait_for([signals.as_fd(), child.handle.as_fd()])?;
        if signalled {
            for number in received(&signals) {
                let _ = child.handle.signal(number as i32);
            }
        }
        if ended {
            return child.wait().context("wait for the command");
        }
    }
}

/// Removes what a killed supervisor has left.
fn after_the_supervisor(supervisor: &Child, place: &Place) -> Result<u8> {
    let status = supervisor.wait().context("wait for the supervisor")?;
    place.clear()?;
    place.remove()?;
    bail!("the supervisor of the container has ended with status {status}; its rest is removed")
}

/// What the front waits for.
struct Front {
    signals: SignalFd,
    passed: PipeWriter,
    reports: PipeReader,
    read: Vec<u8>,
}

impl Front {
    /// Passes signals on until the supervisor reports the end; `None` if it ends without a report.
    fn attend(&mut self, job: &Job) -> Result<Option<u8>> {
        loop {
            let [signals, reports] = wait_for([self.signals.as_fd(), self.reports.as_fd()])?;
            if signals {
                self.pass();
            }
            if reports && let Some(outcome) = self.report(job)? {
                return Ok(outcome);
            }
        }
    }

    fn pass(&mut self) {
        for number in received(&self.signals) {
            let _ = self.passed.write_all(&[number as u8]);
        }
    }

    /// Reads reports; the outcome if one is the last.
    fn report(&mut self, job: &Job) -> Result<Option<Option<u8>>> {
        let mut piece = [0; 4096];
        let length = self
            .reports
            .read(&mut piece)
            .context("read from the supervisor")?;
        if length == 0 {
            return Ok(Some(None));
        }
        self.read.extend(&piece[..length]);
        while let Some(end) = self.read.iter().position(|it| *it == b'\n') {
            let line: Vec<_> = self.read.drain(..=end).collect();
            match serde_json::from_slice(&line).context("parse the supervisor's report")? {
                Report::Started if job.detached => {
                    print(&job.record.id)?;
                    return Ok(Some(Some(0)));
                }
                Report::Started => {}
                Report::Failed { status, text } => {
                    cni::log(format_args!("podwire: {text}"));
                    return Ok(Some(Some(status)));
                }
                Report::Ended { status } => return Ok(Some(Some(status))),
            }
        }
        Ok(None)
    }
}
