//! Runs a program under ptrace(2) with all its threads and children, and injects a fault at one of its system calls: kills
//! processes, or makes the call fail.
//!
//! A separate process (`faults trace …`) runs between the test and the plugin, as strace does, so that it can wait for every
//! child. The plugin keeps the test's standard streams.

// SAFETY of the one `unsafe`: see `start`.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods)] // starts the program

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::calls;
use crate::strike::{Call, Deed, Report, Strike, Struck};

/// Runs `argv` and injects the fault `strike`. Returns a report with the status of the program.
///
/// # Errors
/// When the program cannot be started or followed.
pub fn run(argv: &[String], strike: Strike) -> Result<Report> {
    // The children of a killed plugin become ours, so that we can wait for them.
    nix::sys::prctl::set_child_subreaper(true)?;
    let root = start(argv)?;
    let mut tracer = Tracer {
        root,
        strike,
        leader: HashMap::from([(root, root)]),
        names: HashMap::new(),
        pending: HashMap::new(),
        report: Report::default(),
        over: false,
    };
    tracer.follow()?;
    Ok(tracer.report)
}

/// Starts a program under trace, and waits until it has stopped before its first instruction.
///
/// # Errors
/// When it cannot be started, or does not stop.
pub(crate) fn spawn_stopped(command: &mut Command) -> Result<Pid> {
    let program = command.get_program().display().to_string();
    let child = command
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let pid = Pid::from_raw(child.id().try_into()?);
    match waitpid(pid, None)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(pid),
        other => bail!("{program} did not stop at its start: {other:?}"),
    }
}

/// Starts the program; it stands before its first instruction.
fn start(argv: &[String]) -> Result<Pid> {
    let (program, arguments) = argv.split_first().context("no program to trace")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let traced = || Ok(ptrace::traceme()?);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes one ptrace system call
    // and neither allocates nor takes a lock.
    unsafe { command.pre_exec(traced) };
    let pid = spawn_stopped(&mut command)?;
    let follow = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        // If we are killed, the kernel kills them.
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, follow)?;
    ptrace::syscall(pid, None)?;
    Ok(pid)
}

struct Tracer {
    root: Pid,
    strike: Strike,
    /// Of each thread, the process that it belongs to.
    leader: HashMap<Pid, Pid>,
    /// Of each process, its name since it last executed something.
    names: HashMap<Pid, String>,
    /// What a thread's call is to return when it does.
    pending: HashMap<Pid, u64>,
    report: Report,
    /// The fault was injected, or cannot be any more.
    over: bool,
}

impl Tracer {
    fn follow(&mut self) -> Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                status => status?,
            };
            match status {
                WaitStatus::PtraceSyscall(thread) => self.at_syscall(thread)?,
                WaitStatus::PtraceEvent(thread, _, event) => {
                    if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
                        self.names.remove(&thread);
                    }
                    go_on(thread, None)?;
                }
                // A new thread or child begins with a SIGSTOP from the kernel's tracing, not from a process.
                WaitStatus::Stopped(thread, Signal::SIGSTOP) => go_on(thread, None)?,
                WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal))?,
                WaitStatus::Exited(process, code) => self.ended(process, code),
                WaitStatus::Signaled(process, signal, _) => {
                    self.ended(process, 128 + signal as i32)
                }
                _ => {}
            }
        }
    }

    fn ended(&mut self, process: Pid, code: i32) {
        if process == self.root {
            self.report.status = code;
        }
        self.leader.remove(&process);
    }

    fn at_syscall(&mut self, thread: Pid) -> Result<()> {
        // The registers of a thread that was killed meanwhile cannot be read.
        let Ok(mut registers) = ptrace::getregs(thread) else {
            return Ok(());
        };
        // The kernel marks the entry so (arch/x86/entry/common.c).
        let at_entry = registers.rax == Errno::ENOSYS.negated();
        // A call that we replaced by none comes back with that mark still on it.
        if let Some(value) = self.pending.remove(&thread) {
            registers.rax = value;
            ptrace::setregs(thread, registers)?;
        } else if at_entry {
            let call = calls::name(registers.orig_rax, registers.rsi);
            if self.is_the_one(thread, &call) {
                return self.hit(thread, &call);
            }
        }
        go_on(thread, None)
    }

    /// Counts a call. Returns whether it is the one for the fault.
    fn is_the_one(&mut self, thread: Pid, call: &str) -> bool {
        if self.over {
            return false;
        }
        let process = self.leader_of(thread);
        if self.strike.deed == Deed::KillDelegate && process == self.root {
            return false;
        }
        if self.strike.deed == Deed::Watch {
            let call = Call {
                program: self.name(process),
                name: call.to_owned(),
                by_delegate: process != self.root,
            };
            self.report.calls.push(call);
        }
        if self.strike.call.is_some_and(|it| it != call) {
            return false;
        }
        self.report.counted += 1;
        self.report.counted == self.strike.point
    }

    fn hit(&mut self, thread: Pid, call: &str) -> Result<()> {
        self.over = true;
        let process = self.leader_of(thread);
        let mut struck = Struck {
            program: self.name(process),
            call: call.to_owned(),
            ..Struck::default()
        };
        match self.strike.deed {
            Deed::Watch => {}
            Deed::KillChain | Deed::KillDaemon => {
                let all: BTreeMap<_, _> = self.leader.values().map(|it| (*it, ())).collect();
                all.into_keys().for_each(end);
            }
            Deed::KillPlugin => {
                end(self.root);
                if process != self.root {
                    go_on(thread, None)?;
                }
            }
            Deed::KillDelegate => end(process),
            Deed::Pause { milliseconds } => {
                // A thread that makes a call at this time waits for the tracer.
                sleep(Duration::from_millis(milliseconds));
                go_on(thread, None)?;
            }
            Deed::Fail { choice } | Deed::FailDaemon { choice } => {
                let Some(errno) = calls::errors(call).get(choice) else {
                    return go_on(thread, None);
                };
                self.refuse(thread, call, *errno)?;
                struck.errno = *errno as i32;
                go_on(thread, None)?;
            }
        }
        self.report.struck = Some(struck);
        Ok(())
    }

    /// Makes the call that `thread` is about to make fail.
    fn refuse(&mut self, thread: Pid, call: &str, errno: Errno) -> Result<()> {
        // A close that fails has closed nevertheless (close(2)).
        if call != "close" {
            let mut registers = ptrace::getregs(thread)?;
            registers.orig_rax = u64::MAX;
            ptrace::setregs(thread, registers)?;
        }
        let value = match call {
            // It returns the current break, which glibc takes as a failure.
            "brk" => 0,
            _ => errno.negated(),
        };
        self.pending.insert(thread, value);
        Ok(())
    }

    fn leader_of(&mut self, thread: Pid) -> Pid {
        *self.leader.entry(thread).or_insert_with(|| {
            let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
            line.and_then(|id| id.trim().parse().ok())
                .map_or(thread, Pid::from_raw)
        })
    }

    fn name(&mut self, process: Pid) -> String {
        let read = || fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        let name = self
            .names
            .entry(process)
            .or_insert_with(|| read().trim().to_owned());
        name.clone()
    }
}

/// The value by which a system call says that it failed.
trait Negated {
    fn negated(self) -> u64;
}

impl Negated for Errno {
    fn negated(self) -> u64 {
        (-i64::from(self as i32)).cast_unsigned()
    }
}

fn end(process: Pid) {
    // Not waited for yet, so the id is still its own.
    let _ = kill(process, Signal::SIGKILL);
}

fn go_on(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(thread, signal) {
        // It was killed in the meantime: the next wait reports that.
        Err(Errno::ESRCH) => Ok(()),
        done => Ok(done?),
    }
}
