//! The first process of a container: it makes the namespaces ready, starts the command, passes
//! signals on to it and reaps orphans. With its end, the kernel kills everything in the container.

use std::ffi::CString;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netlink::Netlink;
use netns::NetNs;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, setpgid};

use crate::processes::{self, Child, exit_status};

/// The exit status of a container that podwire could not start, as in docker run.
const FAILED: u8 = 125;
/// The command cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

/// What of the node a container does not share.
#[derive(Clone, Debug, Default)]
pub struct Isolation {
    /// Whether it has a network namespace of its own.
    pub own_network: bool,
    /// The namespace that it shares with another container.
    pub network: Option<NetNs>,
    /// Its host name.
    pub hostname: String,
    /// Files, and where it sees them. What does not exist on the node is left out.
    pub files: Vec<(PathBuf, &'static str)>,
    /// The command with its arguments.
    pub command: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
}

/// A container's first process, which waits for [`Init::go`].
#[derive(Debug)]
pub struct Init {
    /// The process.
    pub child: Child,
    go: PipeWriter,
    failure: PipeReader,
}

/// The outcome of the start of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs.
    Well,
    /// It does not: the exit status, and why.
    Not(u8, String),
}

impl Init {
    /// Starts it. It dies with this process.
    ///
    /// # Errors
    /// The namespaces cannot be made.
    pub fn start(isolation: &Isolation) -> Result<Self> {
        let ((wait, go), (failure, report)) = (pipe()?, pipe()?);
        let mut flags =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID;
        flags.set(CloneFlags::CLONE_NEWNET, isolation.own_network);
        let mut ours = Some((go, failure));
        let child = processes::fork(flags, || {
            // With a copy of its own end, it would wait for itself.
            drop(ours.take());
            live(isolation, wait, report)
        });
        let child = child.context("make the namespaces of a container")?;
        let (go, failure) = ours.take().context("the pipes are gone")?;
        Ok(Self { child, go, failure })
    }

    /// Starts the command, and returns when it is executed.
    ///
    /// # Errors
    /// The first process does not answer.
    pub fn go(&mut self) -> Result<Started> {
        // If it has ended, its report says why.
        let _ = self.go.write_all(b"g");
        let mut report = Vec::new();
        self.failure.read_to_end(&mut report)?;
        Ok(match report.split_first() {
            None => Started::Well,
            Some((status, text)) => {
                Started::Not(*status, String::from_utf8_lossy(text).into_owned())
            }
        })
    }
}

/// The life of the first process; its exit status is the command's.
fn live(isolation: &Isolation, mut wait: PipeReader, mut report: PipeWriter) -> u8 {
    // Signals that are not blocked are lost: the default of a first process is to ignore them.
    let _ = SigSet::all().thread_block();
    if let Err(error) = prepare(isolation) {
        return fail(&mut report, FAILED, &format!("{error:#}"));
    }
    if !matches!(wait.read(&mut [0]), Ok(1)) {
        // The supervisor has given up, or is gone.
        return FAILED;
    }
    let command = processes::fork(CloneFlags::empty(), || {
        let errno = processes::execute(&isolation.command, &isolation.environment);
        let (status, text) = not_executed(&isolation.command, errno);
        fail(&mut report, status, &text)
    });
    let command = match command {
        Ok(command) => command,
        Err(errno) => return fail(&mut report, FAILED, &format!("fork: {}", errno.desc())),
    };
    // The command's copy is closed by exec(2), which the supervisor waits for.
    drop(report);
    // The command stays in the process group of the caller, and gets the terminal's signals from the
    // kernel. This process must not pass them on once more.
    let _ = setpgid(Pid::this(), Pid::from_raw(0));
    pass_signals(command.pid)
}

/// The exit status and the text for a command that execve(2) has refused.
pub fn not_executed(command: &[CString], errno: Errno) -> (u8, String) {
    let program = command.first().map(|it| it.to_string_lossy());
    let program = program.unwrap_or_default();
    let (status, why) = match errno {
        Errno::ENOENT if program.contains('/') => (NOT_FOUND, "no such file or directory"),
        Errno::ENOENT => (NOT_FOUND, "executable file not found in $PATH"),
        Errno::EACCES => (NOT_EXECUTABLE, "permission denied"),
        errno => (NOT_EXECUTABLE, errno.desc()),
    };
    (status, format!("exec: {program:?}: {why}"))
}

fn fail(report: &mut PipeWriter, status: u8, text: &str) -> u8 {
    let _ = report.write_all(&[&[status], text.as_bytes()].concat());
    status
}

/// Passes signals on to the command until it ends, reaps orphans, and returns the command's status.
fn pass_signals(command: Pid) -> u8 {
    let all = SigSet::all();
    loop {
        match all.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(command) {
                    return status;
                }
            }
            Ok(other) => {
                let _ = kill(command, other);
            }
            // A real-time signal, which nix has no name for.
            Err(_) => {}
        }
    }
}

/// Reaps all processes that have ended; the status of `command` if it is one of them.
fn reap(command: Pid) -> Option<u8> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(status) if status.pid() == Some(command) => ended = exit_status(status),
            Ok(_) => {}
        }
    }
}

/// Makes the namespaces ready.
fn prepare(isolation: &Isolation) -> Result<()> {
    // In a process namespace of its own, it takes the container with it.
    set_pdeathsig(Signal::SIGKILL).context("prctl PR_SET_PDEATHSIG")?;
    if let Some(network) = &isolation.network {
        network.join()?;
    }
    sethostname(&isolation.hostname).context("set the host name")?;
    // Mounts in here stay in here. Those that the node removes, such as other containers' network
    // namespaces, go here, too.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).context("mount --make-rslave /")?;
    mount_new("proc", "/proc")?;
    if isolation.own_network || isolation.network.is_some() {
        show_devices()?;
    }
    if isolation.own_network {
        // ip link set lo up
        let netlink = Netlink::open()?;
        netlink.set_up(netlink.get_link("lo")?.index)?;
    }
    for (source, target) in &isolation.files {
        bind(source, target)?;
    }
    Ok(())
}

/// `mount -t KIND KIND TARGET`. Where the node hides a part of it, as in an unprivileged container,
/// the kernel forbids a new one, and the old one stays.
fn mount_new(kind: &str, target: &str) -> Result<bool> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some(kind), target, Some(kind), flags, None::<&str>) {
        Err(Errno::EPERM) => Ok(false),
        mounted => mounted
            .map(|()| true)
            .with_context(|| format!("mount {target}")),
    }
}

/// Mounts a /sys with the devices of the container's network namespace. It has no cgroups: those of
/// the node stay.
fn show_devices() -> Result<()> {
    const CGROUPS: &str = "/sys/fs/cgroup";
    let cgroups = File::open(CGROUPS).ok();
    if mount_new("sysfs", "/sys")?
        && let Some(cgroups) = cgroups
    {
        let handle = format!("/proc/self/fd/{}", cgroups.as_raw_fd());
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        // Without them, the container lacks a view that it cannot use.
        let _ = mount(
            Some(handle.as_str()),
            CGROUPS,
            None::<&str>,
            flags,
            None::<&str>,
        );
    }
    Ok(())
}

/// `mount --bind SOURCE TARGET`, where a link as the target is followed.
fn bind(source: &Path, target: &str) -> Result<()> {
    match mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    ) {
        Err(Errno::ENOENT) if source.exists() => Ok(()),
        bound => bound.with_context(|| format!("bind {} to {target}", source.display())),
    }
}
