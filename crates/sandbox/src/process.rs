//! Run one child process with a time limit and collect its output.

// SAFETY of the one `unsafe`: see `die_with_the_sandbox`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a child may live unless the test says otherwise. No plugin has a
/// reason to take a tenth of it: a plugin that hangs makes pods hang.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// `limit` on a usual machine; more, by the factor that `SANDBOX_SLOWNESS` says,
/// where every instruction is emulated.
pub fn in_time(limit: Duration) -> Duration {
    let slowness = std::env::var("SANDBOX_SLOWNESS");
    limit * slowness.ok().and_then(|it| it.parse().ok()).unwrap_or(1)
}

/// What the child gets as standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdout {
    /// A pipe that the test reads.
    Captured,
    /// A pipe without a reader: writing fails with EPIPE, as when the
    /// runtime died meanwhile.
    NoReader,
    /// `/dev/full`: writing fails with ENOSPC.
    Full,
}

/// What a child left behind when it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit status; 128 + signal number if a signal ended it, as in a shell.
    pub code: i32,
    /// Everything written to standard output.
    pub stdout: String,
    /// Everything written to standard error.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

/// How to feed and bound a child.
pub(crate) struct Run {
    pub stdin: Vec<u8>,
    pub stdout: Stdout,
    pub limit: Duration,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            stdin: Vec::new(),
            stdout: Stdout::Captured,
            limit: TIME_LIMIT,
        }
    }
}

/// Connects the command's descriptors; the caller spawns it where it belongs.
pub(crate) fn prepare(command: &mut Command, run: &Run) -> io::Result<()> {
    let stdout = match run.stdout {
        Stdout::Captured => Stdio::piped(),
        Stdout::NoReader => {
            let (reader, writer) = io::pipe()?;
            drop(reader);
            writer.into()
        }
        Stdout::Full => OpenOptions::new().write(true).open("/dev/full")?.into(),
    };
    // An own process group, so that a child that hangs goes with its children.
    command
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .process_group(0);
    Ok(())
}

/// Has the kernel kill the child when the thread that started it ends, however it
/// ends: a test program that is killed cannot clean up after itself.
pub(crate) fn die_with_the_sandbox(command: &mut Command) {
    let arrange = || Ok(set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the
    // closure makes one prctl system call and neither allocates nor takes a lock.
    unsafe { command.pre_exec(arrange) };
}

/// Feeds the child, drains it, waits for it. `Err` holds the story of a child
/// that outlived its limit; by then it has been killed.
pub(crate) fn finish(mut child: Child, run: Run) -> Result<Finished, String> {
    let started = Instant::now();
    let deadline = started + run.limit;
    let mut talk = Talk::new(&mut child, run.stdin).map_err(|e| format!("set up pipes: {e}"))?;
    let talked = talk.until(deadline);
    let (stdout, stderr) = talk.heard();
    let waited = talked.and_then(|()| wait(&mut child, deadline));
    match waited {
        Ok(status) => Ok(Finished {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout,
            stderr,
            elapsed: started.elapsed(),
        }),
        Err(cause) => {
            kill_group(&mut child);
            Err(format!(
                "{cause} after {:?}; stdout so far: {stdout:?}; stderr so far: {stderr:?}",
                started.elapsed()
            ))
        }
    }
}

fn kill_group(child: &mut Child) {
    // The group is the child's own (see `prepare`), and the child has not been
    // waited for, so the id cannot have been taken by another process.
    if let Ok(id) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn wait(child: &mut Child, deadline: Instant) -> Result<std::process::ExitStatus, String> {
    // Pipes closed means that the end is near: short naps cost less than they save.
    let mut nap = Duration::from_micros(50);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() > deadline => return Err("did not end".into()),
            Ok(None) => std::thread::sleep(nap),
            Err(e) => return Err(format!("wait: {e}")),
        }
        nap = (nap * 2).min(Duration::from_millis(5));
    }
}

/// The three pipes of a child, served by one poll loop.
struct Talk {
    stdin: Option<File>,
    to_send: Vec<u8>,
    sent: usize,
    pipes: [Option<File>; 2],
    heard: [Vec<u8>; 2],
}

impl Talk {
    fn new(child: &mut Child, to_send: Vec<u8>) -> io::Result<Self> {
        let stdin = child
            .stdin
            .take()
            .map(|p| File::from(std::os::fd::OwnedFd::from(p)));
        let stdout = child
            .stdout
            .take()
            .map(|p| File::from(std::os::fd::OwnedFd::from(p)));
        let stderr = child
            .stderr
            .take()
            .map(|p| File::from(std::os::fd::OwnedFd::from(p)));
        for file in [&stdin, &stdout, &stderr].into_iter().flatten() {
            fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            stdin,
            to_send,
            sent: 0,
            pipes: [stdout, stderr],
            heard: [Vec::new(), Vec::new()],
        })
    }

    fn heard(&self) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&self.heard[0]), text(&self.heard[1]))
    }

    fn until(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            self.send();
            self.listen();
            if self.pipes.iter().all(Option::is_none) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("still holds its standard output or error open".into());
            }
            self.pause(left);
        }
    }

    fn pause(&self, left: Duration) {
        let mut waits = Vec::new();
        if let Some(file) = &self.stdin {
            waits.push(poll_on(file.as_fd(), PollFlags::POLLOUT));
        }
        for file in self.pipes.iter().flatten() {
            waits.push(poll_on(file.as_fd(), PollFlags::POLLIN));
        }
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // An interrupted poll is a short one: the loop looks again.
        let _ = poll(&mut waits, left);
    }

    fn send(&mut self) {
        while let Some(file) = &mut self.stdin {
            match file.write(&self.to_send[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A child may end without reading: that is its right.
                Err(_) => self.stdin = None,
            }
            if self.sent == self.to_send.len() {
                self.stdin = None;
            }
        }
    }

    fn listen(&mut self) {
        for (pipe, heard) in self.pipes.iter_mut().zip(&mut self.heard) {
            let Some(file) = pipe else { continue };
            match file.read_to_end(heard) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => *pipe = None,
            }
        }
    }
}

fn poll_on(fd: BorrowedFd<'_>, what: PollFlags) -> PollFd<'_> {
    PollFd::new(fd, what)
}
