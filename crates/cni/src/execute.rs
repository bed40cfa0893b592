//! Writes to and reads from a program that was executed, within limits: a program that hangs
//! or prints endlessly must not block the plugin.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::Code;
use crate::process::{is_later, poll_timeout, wait_until};

/// How long a program may run. Kubelet abandons a sandbox after four minutes, other runtimes
/// sooner, so a later answer is of no use.
const TIME: Duration = Duration::from_secs(300);

/// How many bytes a plugin may print on either stream: the limit of our own input.
const OUTPUT: usize = crate::file::LONGEST as usize;

/// How long [`finish_at_output`] waits for output.
const OUTPUT_PATIENCE: Duration = Duration::from_millis(50);

/// Bytes per read(2).
const PIECE: usize = 16 * 1024;

/// Limits of one execution.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From start to end.
    pub time: Duration,
    /// Bytes on each stream.
    pub output: usize,
}

impl Limits {
    /// For a plugin.
    pub const PLUGIN: Self = Self {
        time: TIME,
        output: OUTPUT,
    };
    /// For a program that lists the rules of a node: those of a large cluster's services are
    /// about ten megabytes.
    pub const LISTING: Self = Self {
        time: TIME,
        output: 8 * OUTPUT,
    };
}

/// A limit that a program exceeded; it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// It ran too long; it may be faster the next time.
    Time(Duration),
    /// It printed too much.
    Output(usize),
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "killed: no end after {} s", limit.as_secs()),
            Self::Output(limit) => write!(f, "killed: it printed more than {limit} bytes"),
        }
    }
}

impl std::error::Error for Exceeded {}

impl Exceeded {
    /// The limit that `error` reports, if it does.
    fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// The error of a program that could not be executed, or exceeded a limit. A timeout has
/// code 11: the program may be faster the next time.
pub fn failure(program: &Path, error: io::Error) -> anyhow::Error {
    let what = format!("execute {}", program.display());
    match Exceeded::of(&error) {
        Some(exceeded @ Exceeded::Time(_)) => {
            Code::TryAgain.err(format!("{what}: {exceeded}")).into()
        }
        _ => anyhow::Error::from(error).context(what),
    }
}

/// Starts a program for [`finish`]: its streams are pipes, and it leads a process group of its own,
/// so that it can be killed together with its children.
///
/// Ctrl-C on a terminal does not reach the group. A plugin then finds its output closed, and rolls
/// back.
///
/// # Errors
/// As execve(2).
pub fn start(command: &mut Command) -> io::Result<Child> {
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Writes `stdin` to a program of [`start`], reads its output and waits for its end. A program that
/// exceeds a limit is killed with its group.
///
/// # Errors
/// [`Exceeded`] a limit; a broken stream. The program has ended in any case: a roll-back must
/// not run before the program's last action.
pub fn finish(child: Child, stdin: &[u8], limits: Limits) -> io::Result<Output> {
    finish_within(child, stdin, limits, None)
}

/// The same for a program that prints something when its work is done, and ends after its input. In
/// between, calls `at_output` with its process id, while the program still has its files open. The
/// input of a program that prints nothing ends after 50 ms.
///
/// # Errors
/// As [`finish`].
pub fn finish_at_output(
    child: Child,
    stdin: &[u8],
    limits: Limits,
    mut at_output: impl FnMut(u32),
) -> io::Result<Output> {
    finish_within(child, stdin, limits, Some(&mut at_output))
}

fn finish_within(
    mut child: Child,
    stdin: &[u8],
    limits: Limits,
    at_output: Option<AtOutput<'_>>,
) -> io::Result<Output> {
    let output = communicate(&mut child, stdin, limits, at_output);
    if output.is_err() {
        kill(&mut child);
    }
    output
}

type AtOutput<'a> = &'a mut dyn FnMut(u32);

fn communicate(
    child: &mut Child,
    stdin: &[u8],
    limits: Limits,
    at_output: Option<AtOutput<'_>>,
) -> io::Result<Output> {
    let deadline = Instant::now() + limits.time;
    let [stdout, stderr] = exchange(child, stdin, deadline, limits, at_output)?;
    let ended = wait_until(child, deadline)?;
    Ok(Output {
        status: ended.ok_or_else(|| exceeded(Exceeded::Time(limits.time)))?,
        stdout,
        stderr,
    })
}

fn exceeded(limit: Exceeded) -> io::Error {
    io::Error::other(limit)
}

/// Kills the program and its children and waits for its end, at most 5 s.
fn kill(child: &mut Child) {
    // It was not waited for, so its process id is not reused.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.kill();
    let _ = wait_until(child, Instant::now() + Duration::from_secs(5));
}

/// Writes to and reads from the program at the same time: it may print before it has read
/// everything, and on either stream first.
fn exchange(
    child: &mut Child,
    stdin: &[u8],
    deadline: Instant,
    limits: Limits,
    mut at_output: Option<AtOutput<'_>>,
) -> io::Result<[Vec<u8>; 2]> {
    let mut feed = Feed::new(child.stdin.take(), stdin)?;
    feed.is_held = at_output.is_some();
    let patience = Instant::now() + OUTPUT_PATIENCE;
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let mut streams = [Stream::new(stdout)?, Stream::new(stderr)?];
    loop {
        feed.write()?;
        for stream in &mut streams {
            stream.read(limits.output)?;
        }
        let has_output = !streams[0].content.is_empty();
        if feed.is_held && (has_output || Instant::now() >= patience) {
            if let Some(at_output) = at_output.take().filter(|_| has_output) {
                at_output(child.id());
            }
            feed.is_held = false;
            continue;
        }
        let open: Vec<_> = streams
            .iter()
            .filter_map(|stream| stream.poll_fd())
            .chain(feed.poll_fd())
            .collect();
        // A program that has closed its output does not need the rest of its input.
        if streams.iter().all(|stream| stream.pipe.is_none()) {
            return Ok(streams.map(|stream| stream.content));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(exceeded(Exceeded::Time(limits.time)));
        }
        let left = if feed.is_held {
            left.min(OUTPUT_PATIENCE)
        } else {
            left
        };
        wait_for_any(open, left)?;
    }
}

fn wait_for_any(mut open: Vec<PollFd<'_>>, limit: Duration) -> io::Result<()> {
    match poll(&mut open, poll_timeout(limit)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn set_nonblocking(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The input that is not yet written. The pipe is closed after it: plugins read to its end.
struct Feed<'a> {
    pipe: Option<ChildStdin>,
    rest: &'a [u8],
    /// Whether the pipe stays open after the input.
    is_held: bool,
}

impl<'a> Feed<'a> {
    fn new(pipe: Option<ChildStdin>, rest: &'a [u8]) -> io::Result<Self> {
        pipe.iter()
            .try_for_each(|pipe| set_nonblocking(pipe.as_fd()))?;
        Ok(Self {
            pipe,
            rest,
            is_held: false,
        })
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(pipe) = &mut self.pipe {
            if self.rest.is_empty() {
                if !self.is_held {
                    self.pipe = None;
                }
                return Ok(());
            }
            match pipe.write(self.rest) {
                Ok(written) => self.rest = &self.rest[written..],
                Err(error) if is_later(&error) => return Ok(()),
                // A plugin need not read its input (VERSION).
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.pipe = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_fd(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref().filter(|_| !self.rest.is_empty())?;
        Some(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT))
    }
}

/// An output stream and the bytes read from it.
struct Stream {
    pipe: Option<std::fs::File>,
    content: Vec<u8>,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        pipe.iter()
            .try_for_each(|pipe| set_nonblocking(pipe.as_fd()))?;
        Ok(Self {
            pipe: pipe.map(std::fs::File::from),
            content: Vec::new(),
        })
    }

    fn read(&mut self, limit: usize) -> io::Result<()> {
        let mut piece = [0; PIECE];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut piece) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.content.extend(&piece[..length]),
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.content.len() > limit {
                return Err(exceeded(Exceeded::Output(limit)));
            }
        }
        Ok(())
    }

    fn poll_fd(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        Some(PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a program of one line of shell")]
    fn shell(script: &str) -> Child {
        start(Command::new("sh").args(["-c", script])).unwrap()
    }

    fn exceeded_by(script: &str) -> Option<Exceeded> {
        let limits = Limits {
            time: Duration::from_secs(2),
            output: 100_000,
        };
        Exceeded::of(&finish(shell(script), b"{}", limits).unwrap_err())
    }

    #[test]
    fn the_input_is_held_until_the_output_begins() {
        for (script, called) in [
            ("read line; echo done; read end || exit 7", true),
            ("read line; read end || exit 7", false),
            ("exit 7", false),
        ] {
            let mut seen = None;
            let at_output = |pid: u32| seen = Some(Path::new(&format!("/proc/{pid}")).exists());
            let done = finish_at_output(shell(script), b"x\n", Limits::PLUGIN, at_output);
            assert_eq!(done.unwrap().status.code(), Some(7), "{script}");
            assert_eq!(seen, called.then_some(true), "{script}");
        }
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_has_started() {
        let time = Some(Exceeded::Time(Duration::from_secs(2)));
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("left");
        for script in [
            "sleep 1000",
            // It closes its streams and continues.
            "exec <&- >&- 2>&-; sleep 1000",
            // It has ended, but its child has not.
            "sleep 1000 & exit 0",
            "trap '' TERM HUP INT; while :; do sleep 1; done",
        ] {
            let script = format!("echo $$ > {}; {script}", left.display());
            assert_eq!(exceeded_by(&script), time, "{script}");
            let group: i32 = std::fs::read_to_string(&left)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            // In a container without an init, orphans stay as zombies.
            let gone =
                || killpg(Pid::from_raw(group), None) == Err(Errno::ESRCH) || are_dead(group);
            let deadline = Instant::now() + Duration::from_secs(20);
            while !gone() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(gone(), "{script}");
        }
    }

    fn are_dead(group: i32) -> bool {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        stats
            .filter_map(|stat| {
                let words: Vec<String> = stat
                    .rsplit_once(')')?
                    .1
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect();
                (words.get(2)? == &group.to_string()).then(|| words[0].clone())
            })
            .all(|state| state == "Z")
    }

    #[test]
    fn output_has_a_limit_on_either_stream() {
        let output = Some(Exceeded::Output(100_000));
        assert_eq!(exceeded_by("yes"), output);
        assert_eq!(exceeded_by("yes >&2"), output);
        assert_eq!(exceeded_by("head -c 100001 /dev/zero; sleep 1000"), output);
    }

    #[test]
    fn output_within_the_limits_is_complete() {
        let run = |script: &str, stdin: &[u8]| {
            let output = finish(shell(script), stdin, Limits::PLUGIN).unwrap();
            (
                output.status.code(),
                output.stdout.len(),
                output.stderr.len(),
            )
        };
        assert_eq!(run("exit 3", b"{}"), (Some(3), 0, 0));
        assert_eq!(run("cat; cat >&2", &[b' '; 300_000]), (Some(0), 300_000, 0));
        let both = "head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; cat >&2";
        assert_eq!(run(both, &[b' '; 300_000]), (Some(0), 200_000, 500_000));
        // Its child prints after it has ended.
        assert_eq!(run("(sleep 0.3; echo late) & exit 0", b""), (Some(0), 5, 0));
        assert_eq!(
            run("exec >&- 2>&-; sleep 0.3; exit 4", b""),
            (Some(4), 0, 0)
        );
    }
}
