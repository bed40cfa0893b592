//! The resolver of `podwired`: has it read records, and starts it if it does not run.

use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use names::{Entry, Reply, Request, Resolver, Unreachable};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The program that contains the resolver.
const PROGRAM: &str = "podwired";

/// Where administrators and packages install daemons (hier(7)). A runtime's PATH need not have
/// them.
const USUAL: [&str; 2] = ["/usr/local/sbin", "/usr/sbin"];

/// How long an answer of a resolver may take. It needs a fraction of a millisecond; a node under
/// load may need longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a start may take: podwired reads the records of all pods, 50,000 in a second or two.
const START: Duration = Duration::from_secs(10);

/// Why a pod's names are not answered.
#[derive(Debug)]
pub enum Unanswered {
    /// There is no podwired on the node.
    None(anyhow::Error),
    /// It does not answer now.
    Now(anyhow::Error),
}

/// Has the resolver read a record, and returns the addresses at which it answers for the network.
/// If no resolver listens, starts podwired if `may_start`.
///
/// # Errors
/// The names are not answered.
pub fn announce(entry: &Entry, may_start: bool) -> Result<Vec<IpAddr>, Unanswered> {
    match ask(entry) {
        Err(error) if may_start && error.is::<Unreachable>() => {
            let Some(program) = find() else {
                let usual = USUAL.join(" nor in ");
                let looked =
                    format!("{PROGRAM} is neither beside the plugin, nor in PATH, nor in {usual}");
                return Err(Unanswered::None(error.context(looked)));
            };
            start(&program).map_err(Unanswered::Now)?;
            ask(entry).map_err(Unanswered::Now)
        }
        answer => answer.map_err(Unanswered::Now),
    }
}

/// Has the resolver forget a record that was removed. Without a resolver there is nothing to forget.
///
/// # Errors
/// It does not answer.
pub fn forget(entry: &Entry) -> Result<()> {
    match ask(entry) {
        Err(error) if error.is::<Unreachable>() => Ok(()),
        answer => answer.map(drop),
    }
}

fn ask(entry: &Entry) -> Result<Vec<IpAddr>> {
    match Resolver::default().ask(&Request::Read(entry.clone()), PATIENCE)? {
        Reply::Servers(servers) => Ok(servers),
        other => bail!("the resolver answered something else: {other}"),
    }
}

/// Finds podwired. The programs of the suite are usually in one directory.
fn find() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok();
    let beside = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).filter(|it| it.is_absolute());
    let mut directories = beside
        .into_iter()
        .chain(path)
        .chain(USUAL.map(PathBuf::from));
    directories.find_map(|it| Some(it.join(PROGRAM)).filter(|it| it.is_file()))
}

/// Executes podwired, and returns when its socket accepts connections, or that of a podwired that
/// another plugin has started. The process leaves our session and outlives us.
#[expect(
    clippy::disallowed_methods,
    reason = "podwired is no plugin: it has to outlive this process"
)]
fn start(program: &Path) -> Result<()> {
    let describe = || format!("start {}", program.display());
    let mut command = Command::new(program);
    command.arg("--on-demand");
    // It must not inherit the variables of the ADD, nor our streams: the runtime waits for their
    // end.
    command.env_clear().current_dir("/");
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().with_context(describe)?;
    if let Some(stdout) = child.stdout.take() {
        await_end(stdout).with_context(describe)?;
    }
    // If it ended with an error, it failed to start.
    match child.try_wait().with_context(describe)? {
        Some(status) if !status.success() => bail!("{}: it ended with {status}", describe()),
        _ => Ok(()),
    }
}

/// podwired closes its standard output when its socket accepts connections.
fn await_end(mut stdout: ChildStdout) -> Result<()> {
    let deadline = Instant::now() + START;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(millis)?) {
            Err(Errno::EINTR) => continue,
            Ok(0) => bail!("it is not ready after {} s", START.as_secs()),
            other => other?,
        };
        if stdout.read(&mut [0; 64])? == 0 {
            return Ok(());
        }
    }
}
