//! Processes that outlive the one that was measured. Their time counts for the call that left them,
//! and the next call is measured after their end.

// SAFETY of each `unsafe`: see there. nix has no wait4.
#![allow(unsafe_code)]

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;

/// What a child may still have to do when its parent has answered.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// From now on, orphans of our children become our children.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("adopt orphans")
}

/// Waits for all orphans, and returns the CPU time that they took. To be called
/// when no child is running that another part of this program waits for.
///
/// # Errors
/// When one does not end.
pub fn wait() -> Result<Duration> {
    let start = Instant::now();
    let mut cpu = Duration::ZERO;
    loop {
        match reap()? {
            Reaped::Ended(spent) => cpu += spent,
            Reaped::NoneLeft => return Ok(cpu),
            Reaped::StillRunning if start.elapsed() > TIME_LIMIT => bail!("an orphan does not end"),
            Reaped::StillRunning => sleep(Duration::from_micros(500)),
        }
    }
}

enum Reaped {
    Ended(Duration),
    StillRunning,
    NoneLeft,
}

fn reap() -> Result<Reaped> {
    let mut status = 0;
    // SAFETY: all zeroes is a value of this plain structure of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables of ours that outlive the call.
    let waited = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    match Errno::result(waited) {
        Ok(0) => Ok(Reaped::StillRunning),
        Ok(_) => Ok(Reaped::Ended(crate::process::cpu(&usage))),
        Err(Errno::ECHILD) => Ok(Reaped::NoneLeft),
        Err(errno) => Err(errno).context("wait for orphans"),
    }
}
