//! Runs a program whose wall clock is wrong, by as much as a file says at each moment: a clock that an
//! operator or a time server sets, for one program alone.
//!
//! The kernel cannot do that (its time namespaces leave CLOCK_REALTIME alone), so the program is
//! traced: it does not find the vDSO, asks by system calls then, and those for the wall clock are
//! answered here.

// SAFETY of the `unsafe` blocks: see `start`.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods)] // starts the program

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::tracer::spawn_stopped;

/// Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
const CLOCK_GETTIME: u64 = 228;
const GETTIMEOFDAY: u64 = 96;
const TIME: u64 = 201;

/// linux/auxvec.h
const AT_NULL: i64 = 0;
const AT_IGNORE: i64 = 1;
const AT_SYSINFO_EHDR: i64 = 33;

const WORD: u64 = 8;

/// Runs `argv` with the seconds in `file` added to its wall clock. Returns its status.
///
/// # Errors
/// When the program cannot be started or followed.
pub fn run(file: &Path, argv: &[String]) -> Result<i32> {
    let root = start(argv)?;
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => continue,
            status => status?,
        };
        match status {
            WaitStatus::PtraceEvent(thread, _, event) => {
                if event == ptrace::Event::PTRACE_EVENT_SECCOMP as i32 {
                    // A thread that was killed meanwhile cannot be read.
                    let _ = answer(thread, file);
                }
                go_on(thread, None)?;
            }
            // A new thread begins with a SIGSTOP of the tracing.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => go_on(thread, None)?,
            WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal))?,
            WaitStatus::Exited(process, code) if process == root => return Ok(code),
            WaitStatus::Signaled(process, signal, _) if process == root => {
                return Ok(128 + signal as i32);
            }
            _ => {}
        }
    }
}

/// Starts the program; it stands before its first instruction, and does not find the vDSO.
fn start(argv: &[String]) -> Result<Pid> {
    let (program, arguments) = argv.split_first().context("no program to trace")?;
    let mut command = Command::new(program);
    command.args(arguments);
    let mut filter = filter();
    let prepare = move || {
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        ptrace::traceme()?;
        // SAFETY: prctl(2) reads `program` and the filter that it points to; both outlive the call.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
        };
        Errno::result(done)?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes three
    // system calls and neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
    let pid = spawn_stopped(&mut command)?;
    ptrace::setoptions(
        pid,
        Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            // If we are killed, the kernel kills it.
            | Options::PTRACE_O_EXITKILL,
    )?;
    hide_vdso(pid)?;
    go_on(pid, None)?;
    Ok(pid)
}

/// Stops at the calls that ask for the wall clock (seccomp(2)). All others are as fast as without a
/// tracer: programs look at CLOCK_MONOTONIC all the time.
fn filter() -> [libc::sock_filter; 9] {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let ret = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, k: u32| libc::sock_filter { code, jt, jf: 0, k };
    [
        // The number of the call.
        step(load, 0, 0),
        step(equal, 6, GETTIMEOFDAY as u32),
        step(equal, 5, TIME as u32),
        libc::sock_filter {
            jf: 3,
            ..step(equal, 0, CLOCK_GETTIME as u32)
        },
        // The clock: the first argument, after number, architecture and address.
        step(load, 0, 16),
        step(equal, 2, libc::CLOCK_REALTIME as u32),
        step(equal, 1, libc::CLOCK_REALTIME_COARSE as u32),
        step(ret, 0, libc::SECCOMP_RET_ALLOW),
        step(ret, 0, libc::SECCOMP_RET_TRACE),
    ]
}

/// Takes the vDSO out of the auxiliary vector, which follows the arguments and the environment on the
/// stack of a program that has just been executed.
fn hide_vdso(pid: Pid) -> Result<()> {
    let mut at = ptrace::getregs(pid)?.rsp;
    let read = |at: u64| ptrace::read(pid, at as ptrace::AddressType);
    at += WORD * (read(at)?.cast_unsigned() + 2);
    while read(at)? != 0 {
        at += WORD;
    }
    at += WORD;
    loop {
        match read(at)? {
            AT_NULL => return Ok(()),
            AT_SYSINFO_EHDR => ptrace::write(pid, at as ptrace::AddressType, AT_IGNORE)?,
            _ => {}
        }
        at += 2 * WORD;
    }
}

/// Answers a call that asks for the wall clock.
fn answer(thread: Pid, file: &Path) -> Result<()> {
    let mut registers = ptrace::getregs(thread)?;
    let place = match registers.orig_rax {
        CLOCK_GETTIME => registers.rsi,
        _ => registers.rdi,
    };
    let offset = fs::read_to_string(file).unwrap_or_default();
    let offset: i64 = offset.trim().parse().unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seconds = now.as_secs().cast_signed() + offset;
    let fraction = match registers.orig_rax {
        CLOCK_GETTIME => Some(now.subsec_nanos()),
        GETTIMEOFDAY => Some(now.subsec_micros()),
        _ => None,
    };
    if place != 0 {
        ptrace::write(thread, place as ptrace::AddressType, seconds)?;
        if let Some(fraction) = fraction {
            let place = (place + WORD) as ptrace::AddressType;
            ptrace::write(thread, place, fraction.into())?;
        }
    }
    registers.rax = match registers.orig_rax {
        TIME => seconds.cast_unsigned(),
        _ => 0,
    };
    // Number -1: the kernel executes no call.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(thread, registers)?;
    Ok(())
}

fn go_on(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::cont(thread, signal) {
        // It was killed in the meantime: the next wait reports that.
        Err(Errno::ESRCH) => Ok(()),
        done => Ok(done?),
    }
}
