//! Starts a program and measures it, at the same cost for every suite.
//!
//! The child is started by posix_spawn (by vfork), which copies nothing of this program; it reads
//! its standard input from a file in memory and writes into another, so no process waits for a
//! pipe. The clock runs from before the spawn until the child was seen to have ended.

// This program has to start programs; plugins may not.
#![allow(clippy::disallowed_methods)]
// SAFETY of each `unsafe`: see there. nix has neither pidfd_open nor wait4, and rlimits only with
// a feature that nothing else needs.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// No measured call takes a tenth of it; a call that hangs ends the run.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A program to run, with all its input.
#[derive(Clone, Debug)]
pub struct Call {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its standard input.
    pub stdin: String,
}

impl Call {
    /// A program with arguments, the usual `PATH`, and nothing to read.
    pub fn new(program: impl Into<PathBuf>, args: &[&str]) -> Self {
        Self {
            program: program.into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
            stdin: String::new(),
        }
    }

    /// The same call made by another program, which gets it as arguments.
    pub fn by(&self, program: impl Into<PathBuf>, args: &[&str]) -> Self {
        let mut outer = Self::new(program, args);
        outer.args.push(self.program.display().to_string());
        outer.args.extend(self.args.iter().cloned());
        outer.env = self.env.clone();
        outer.stdin = self.stdin.clone();
        outer
    }
}

/// The outcome of a call.
#[derive(Debug)]
pub struct Done {
    /// From the spawn to the end.
    pub elapsed: Duration,
    /// CPU time of the program and of all that it started and waited for.
    pub cpu: Duration,
    /// Whether it ended with status 0.
    pub succeeded: bool,
    /// What it printed.
    pub stdout: String,
    /// What it printed as error.
    pub stderr: String,
}

/// A program that runs.
struct Started {
    call: Call,
    at: Instant,
    pid: i32,
    /// Readable once the child has ended.
    ended: OwnedFd,
    stdout: File,
    stderr: File,
}

impl Done {
    /// All that it printed, for a message.
    pub fn printed(&self) -> String {
        format!("{}{}", self.stdout, self.stderr).trim().to_owned()
    }
}

/// Runs the call.
///
/// # Errors
/// When it cannot be started, hangs, or ends with another status than 0.
pub fn run(call: Call) -> Result<Done> {
    let name = call.program.display().to_string();
    let done = start(call)?.finish()?;
    if !done.succeeded {
        bail!("{name} failed: {}", done.printed());
    }
    Ok(done)
}

/// Runs a program with arguments and returns what it printed.
///
/// # Errors
/// As [`run`].
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    Ok(run(Call::new(program, args))?.stdout)
}

/// Runs a program with arguments that reads `stdin`.
///
/// # Errors
/// As [`run`].
pub fn feed(program: &str, args: &[&str], stdin: String) -> Result<()> {
    let mut call = Call::new(program, args);
    call.stdin = stdin;
    run(call).map(drop)
}

/// Starts all calls, one right after the other, and waits for all of them.
///
/// The time of each is its own, from its spawn to its end, in the order of the
/// calls; the second value is the time from the first spawn to the last end.
///
/// # Errors
/// When one cannot be started or hangs. The [`Done`] of a call says whether it failed.
pub fn storm(calls: Vec<Call>) -> Result<(Vec<Done>, Duration)> {
    let prepared: Vec<_> = calls.into_iter().map(prepare).collect::<Result<_>>()?;
    let first = Instant::now();
    let mut running = Vec::new();
    for ready in prepared {
        running.push(spawn(ready)?);
    }
    let mut order: Vec<usize> = (0..running.len()).collect();
    let mut done = Vec::new();
    while !running.is_empty() {
        let ended = first_ended(&running)?;
        done.push((order.swap_remove(ended), running.swap_remove(ended).reap()?));
    }
    let total = first.elapsed();
    done.sort_by_key(|(call, _)| *call);
    Ok((done.into_iter().map(|(_, done)| done).collect(), total))
}

/// Raises this program's limit of open files as far as permitted: a storm needs some for each pod.
///
/// # Errors
/// When the kernel refuses.
pub fn allow_many_files() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a variable of ours that outlives the call.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    nix::errno::Errno::result(got).context("read the limit of open files")?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the same.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    nix::errno::Errno::result(set).context("raise the limit of open files")?;
    Ok(())
}

fn first_ended(running: &[Started]) -> Result<usize> {
    let mut waits: Vec<PollFd<'_>> = running.iter().map(Started::wait_for).collect();
    let limit = PollTimeout::try_from(TIME_LIMIT).unwrap_or(PollTimeout::MAX);
    poll(&mut waits, limit).context("wait for programs")?;
    let ended = waits.iter().position(|wait| wait.any().unwrap_or(false));
    if ended.is_none() {
        running.iter().for_each(Started::kill);
        bail!("{} programs did not end", running.len());
    }
    Ok(ended.unwrap_or_default())
}

/// Everything that can be prepared before the time is taken.
struct Ready {
    call: Call,
    command: Command,
    stdout: File,
    stderr: File,
}

fn prepare(call: Call) -> Result<Ready> {
    let mut stdin = in_memory()?;
    stdin.write_all(call.stdin.as_bytes())?;
    stdin.rewind()?;
    let (stdout, stderr) = (in_memory()?, in_memory()?);
    let mut command = Command::new(&call.program);
    command
        .args(&call.args)
        .env_clear()
        .envs(call.env.iter().map(|(name, value)| (name, value)))
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    Ok(Ready {
        call,
        command,
        stdout,
        stderr,
    })
}

fn in_memory() -> Result<File> {
    let fd = memfd_create("measure", MFdFlags::MFD_CLOEXEC).context("make a file in memory")?;
    Ok(File::from(fd))
}

fn start(call: Call) -> Result<Started> {
    spawn(prepare(call)?)
}

fn spawn(mut ready: Ready) -> Result<Started> {
    let at = Instant::now();
    let child = ready
        .command
        .spawn()
        .with_context(|| format!("start {}", ready.call.program.display()))?;
    let pid = i32::try_from(child.id()).context("a process id")?;
    Ok(Started {
        ended: pidfd(pid)?,
        call: ready.call,
        stdout: ready.stdout,
        stderr: ready.stderr,
        at,
        pid,
    })
}

fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = nix::errno::Errno::result(fd).context("watch a child")?;
    // SAFETY: the kernel has just returned this descriptor; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

impl Started {
    fn wait_for(&self) -> PollFd<'_> {
        PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)
    }

    fn finish(self) -> Result<Done> {
        first_ended(std::slice::from_ref(&self))?;
        self.reap()
    }

    /// Takes the status of a child that has ended.
    fn reap(self) -> Result<Done> {
        let mut status = 0;
        // SAFETY: all zeroes is a value of this plain structure of integers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to variables of ours that outlive the call.
        let waited = unsafe { libc::wait4(self.pid, &raw mut status, 0, &raw mut usage) };
        let elapsed = self.at.elapsed();
        nix::errno::Errno::result(waited).context("wait for a child")?;
        Ok(Done {
            elapsed,
            cpu: cpu(&usage),
            succeeded: status == 0,
            stdout: text(self.stdout)?,
            stderr: text(self.stderr)?,
        })
    }

    fn kill(&self) {
        eprintln!("killing {}, which hangs", self.call.program.display());
        // Not waited for yet: the id is still our child's.
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

fn text(mut file: File) -> Result<String> {
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)
        .context("read what a program printed")?;
    Ok(text)
}

/// CPU time, of the program and of the kernel for it.
pub fn cpu(usage: &libc::rusage) -> Duration {
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn time(spent: libc::timeval) -> Duration {
    let seconds = u64::try_from(spent.tv_sec).unwrap_or_default();
    let micros = u64::try_from(spent.tv_usec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}
