//! The machine and the programs that are measured.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

use crate::process::{self, Call};
use crate::results::Machine;
use crate::side::Programs;

/// Queries the kernel and the programs.
///
/// # Errors
/// When a program that must exist cannot be executed.
pub fn describe(programs: &Programs) -> Result<Machine> {
    let uname = uname().context("ask for the kernel's name")?;
    let kernel = [uname.sysname(), uname.release(), uname.machine()];
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let models = cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("model name"));
    let cpu = models.clone().next().unwrap_or("unknown");
    Ok(Machine {
        date: printed("/usr/bin/date", &["-u", "+%F"])?,
        kernel: kernel.map(|part| part.to_string_lossy()).join(" "),
        cpus: std::thread::available_parallelism()?.get(),
        cpu: cpu.trim_matches([' ', '\t', ':']).to_owned(),
        state: String::new(),
        podwire: format!("{} ({}), {C_LIBRARY}", env!("CARGO_PKG_VERSION"), commit()),
        go: peer(&programs.go),
        other: programs.other.as_deref().map(version).transpose()?,
        programs: vec![
            printed("/usr/sbin/iptables", &["--version"])?,
            printed("/usr/sbin/nft", &["--version"])?,
            printed("/usr/bin/ip", &["-V"])?,
        ],
    })
}

fn printed(program: &str, args: &[&str]) -> Result<String> {
    Ok(process::output(program, args)?.trim().to_owned())
}

/// What `make build` links with on this machine: this program is built for the same target.
const C_LIBRARY: &str = if cfg!(target_env = "musl") {
    "musl"
} else {
    "glibc"
};

/// The commit that is checked out, and whether anything that ships was changed since.
fn commit() -> String {
    let git = |args: &[&str]| printed("/usr/bin/git", args);
    let Ok(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown commit".to_owned();
    };
    let shipped = [
        "status",
        "--porcelain",
        "--",
        "crates",
        "plugins",
        "ipam",
        "podwire",
    ];
    match git(&shipped).as_deref() {
        Ok("") => commit,
        _ => format!("{commit} and changes"),
    }
}

/// The name and version that the plugins in a directory print when they are executed without
/// `CNI_COMMAND`.
fn version(dir: &Path) -> Result<String> {
    let done = process::run(Call::new(dir.join("bridge"), &[]))?;
    let line = done.stderr.lines().next().unwrap_or_default().to_owned();
    Ok(format!("{line} in {}", dir.display()))
}

fn peer(dir: &Path) -> String {
    let format = [
        "-W",
        "-f",
        "${Package} ${Version}",
        "containernetworking-plugins",
    ];
    let debian = printed("/usr/bin/dpkg-query", &format);
    match debian {
        Ok(version) if dir == Path::new("/usr/lib/cni") => version,
        _ => format!("in {}", dir.display()),
    }
}
