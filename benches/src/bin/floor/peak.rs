//! The most memory that a program held.

// SAFETY of the one `unsafe`: see there. nix has no getrusage of children by wait4.
#![allow(unsafe_code)]

use std::io::{Write, stderr};
use std::process::Command;

use anyhow::{Result, bail};
use nix::libc;

/// Runs the program and prints the most that it, or a program that it waited
/// for, had resident, in KiB, as the last line on standard error.
pub fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status()?;
    if !status.success() {
        bail!("{program} failed");
    }
    // SAFETY: all zeroes is a value of this plain structure of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a variable of ours that outlives the call.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    nix::errno::Errno::result(result)?;
    writeln!(stderr(), "peak {}", usage.ru_maxrss)?;
    Ok(())
}
