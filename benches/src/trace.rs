//! strace: how many system calls a call makes, and which programs it executes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::process::Call;

const STRACE: &str = "/usr/bin/strace";

/// The counts of a trace, of all processes and threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// System calls.
    pub system_calls: usize,
    /// Programs executed, the traced one among them.
    pub programs: usize,
}

impl std::ops::AddAssign for Trace {
    fn add_assign(&mut self, other: Self) {
        self.system_calls += other.system_calls;
        self.programs += other.programs;
    }
}

/// A file for a trace.
///
/// # Errors
/// When it cannot be made.
pub fn file() -> Result<NamedTempFile> {
    NamedTempFile::new().context("make a file for a trace")
}

/// The call under strace, all system calls written to `file`.
pub fn of_everything(call: &Call, file: &Path) -> Call {
    call.by(
        STRACE,
        &["-f", "-qq", "-o", &file.display().to_string(), "--"],
    )
}

/// The call under strace, executed programs written to `file`; the rest is hardly slowed.
pub fn of_programs(call: &Call, file: &Path) -> Call {
    let file = file.display().to_string();
    let only = [
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        "trace=execve",
        "-o",
        &file,
        "--",
    ];
    call.by(STRACE, &only)
}

/// Reads a trace.
///
/// # Errors
/// When it cannot be read.
pub fn read(file: &Path) -> Result<Trace> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Trace {
    // `PID name(…` begins a call; signals, ends and `<... name resumed>` do not.
    let call = |line: &&str| {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
    };
    let executed = |line: &&str| line.contains("execve(") || line.contains("execve resumed");
    Trace {
        system_calls: text.lines().filter(call).count(),
        programs: text
            .lines()
            .filter(|l| executed(l) && l.trim_end().ends_with(" = 0"))
            .count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once_and_programs_when_they_started() {
        let trace = parse(
            "12 execve(\"/bin/a\", [\"a\"], 0x7 /* 3 vars */) = 0\n\
             12 read(0, \"\", 32) = 0\n\
             13 execve(\"/x/iptables\", [\"iptables\"], 0x7) = -1 ENOENT (No such file)\n\
             13 execve(\"/y/iptables\", [\"iptables\"], 0x7 <unfinished ...>\n\
             12 futex(0x1, FUTEX_WAIT <unfinished ...>\n\
             13 <... execve resumed>) = 0\n\
             12 <... futex resumed>) = 0\n\
             13 --- SIGCHLD {si_signo=SIGCHLD} ---\n\
             13 +++ exited with 0 +++\n",
        );
        let expected = Trace {
            system_calls: 5,
            programs: 2,
        };
        assert_eq!(trace, expected);
    }
}
