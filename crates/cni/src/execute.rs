//! Feeding a program that was executed and hearing it out, within limits: one that
//! hangs, or prints without end, must not do the same to us.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Output};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::Code;
use crate::process::{is_later, poll_timeout, wait_until};

/// How long a program may run. Kubelet gives a sandbox up after four minutes, the other
/// runtimes sooner: nobody waits for the answer of one that takes longer.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How much a plugin may print on either stream: as much as we read ourselves.
pub const MOST_SAID: usize = crate::file::LONGEST as usize;

/// What is read at once.
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
    /// Those of a plugin.
    pub const PLUGIN: Self = Self {
        time: PATIENCE,
        output: MOST_SAID,
    };
    /// Those of a program that lists the rules of a node: the services of a large cluster
    /// take some ten megabytes.
    pub const LISTING: Self = Self {
        time: PATIENCE,
        output: 8 * MOST_SAID,
    };
}

/// A limit that a program went beyond; it has been killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// It ran too long: it may do better the next time.
    Time(Duration),
    /// It printed too much.
    Output(usize),
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "killed: no end after {} s", limit.as_secs()),
            Self::Output(limit) => write!(f, "killed: it printed more than {limit} bytes"),
        }
    }
}

impl std::error::Error for Beyond {}

impl Beyond {
    /// The limit that an error is about, if it is about one.
    fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// The error of a program that could not be executed or heard out. One that took too long
/// may do better the next time: code 11.
pub fn failure(program: &Path, error: io::Error) -> anyhow::Error {
    let what = format!("execute {}", program.display());
    match Beyond::of(&error) {
        Some(beyond @ Beyond::Time(_)) => Code::TryAgain.err(format!("{what}: {beyond}")).into(),
        _ => anyhow::Error::from(error).context(what),
    }
}

/// Feeds a program, the leader of a process group of its own, whose streams are pipes, hears
/// it out and waits for its end. Beyond a limit its group is killed.
///
/// # Errors
/// [`Beyond`] a limit; or when a stream breaks. The program has ended by then all the same:
/// a roll-back must not come before what the program is about to do.
pub fn finish(mut child: Child, stdin: &[u8], limits: Limits) -> io::Result<Output> {
    let heard = hear_out(&mut child, stdin, limits);
    if heard.is_err() {
        kill(&mut child);
    }
    heard
}

fn hear_out(child: &mut Child, stdin: &[u8], limits: Limits) -> io::Result<Output> {
    let deadline = Instant::now() + limits.time;
    let [stdout, stderr] = talk(child, stdin, deadline, limits)?;
    let ended = wait_until(child, deadline)?;
    Ok(Output {
        status: ended.ok_or_else(|| beyond(Beyond::Time(limits.time)))?,
        stdout,
        stderr,
    })
}

fn beyond(limit: Beyond) -> io::Error {
    io::Error::other(limit)
}

/// Kills the program and what it has started, and sees it end, unless the kernel cannot end it.
fn kill(child: &mut Child) {
    // It has not been waited for, so the number is its own, and its group's if it leads one.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.kill();
    let _ = wait_until(child, Instant::now() + Duration::from_secs(5));
}

/// Writes what is to be said and reads what is answered, as the program wants it: it may
/// print before it has read everything, and on either stream first.
fn talk(
    child: &mut Child,
    stdin: &[u8],
    deadline: Instant,
    limits: Limits,
) -> io::Result<[Vec<u8>; 2]> {
    let mut feed = Feed::new(child.stdin.take(), stdin)?;
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let mut streams = [Heard::new(stdout)?, Heard::new(stderr)?];
    loop {
        feed.write()?;
        for stream in &mut streams {
            stream.read(limits.output)?;
        }
        let open: Vec<_> = streams
            .iter()
            .filter_map(|stream| stream.awaited())
            .chain(feed.awaited())
            .collect();
        // What it does not read when it says nothing any more, it does not want.
        if streams.iter().all(|stream| stream.pipe.is_none()) {
            return Ok(streams.map(|stream| stream.said));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(beyond(Beyond::Time(limits.time)));
        }
        wait_for_any(open, left)?;
    }
}

fn wait_for_any(mut open: Vec<PollFd<'_>>, limit: Duration) -> io::Result<()> {
    match poll(&mut open, poll_timeout(limit)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn do_not_block(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// What is still to be written; the pipe is closed after it, because plugins read to the end.
struct Feed<'a> {
    pipe: Option<ChildStdin>,
    rest: &'a [u8],
}

impl<'a> Feed<'a> {
    fn new(pipe: Option<ChildStdin>, rest: &'a [u8]) -> io::Result<Self> {
        pipe.iter()
            .try_for_each(|pipe| do_not_block(pipe.as_fd()))?;
        Ok(Self { pipe, rest })
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(pipe) = &mut self.pipe {
            if self.rest.is_empty() {
                self.pipe = None;
                return Ok(());
            }
            match pipe.write(self.rest) {
                Ok(written) => self.rest = &self.rest[written..],
                Err(error) if is_later(&error) => return Ok(()),
                // A plugin that does not read (VERSION) is not at fault.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.pipe = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn awaited(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        Some(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT))
    }
}

/// A stream and what was said on it.
struct Heard {
    pipe: Option<std::fs::File>,
    said: Vec<u8>,
}

impl Heard {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        pipe.iter()
            .try_for_each(|pipe| do_not_block(pipe.as_fd()))?;
        Ok(Self {
            pipe: pipe.map(std::fs::File::from),
            said: Vec::new(),
        })
    }

    fn read(&mut self, limit: usize) -> io::Result<()> {
        let mut piece = [0; PIECE];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut piece) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.said.extend(&piece[..length]),
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.said.len() > limit {
                return Err(beyond(Beyond::Output(limit)));
            }
        }
        Ok(())
    }

    fn awaited(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        Some(PollFd::new(pipe.as_fd(), PollFlags::POLLIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[expect(clippy::disallowed_methods, reason = "a program of a line of shell")]
    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn beyond_what(script: &str) -> Option<Beyond> {
        let limits = Limits {
            time: Duration::from_secs(2),
            output: 100_000,
        };
        Beyond::of(&finish(shell(script), b"{}", limits).unwrap_err())
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_has_started() {
        let time = Some(Beyond::Time(Duration::from_secs(2)));
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("left");
        for script in [
            "sleep 1000",
            // Its streams are closed, and it goes on.
            "exec <&- >&- 2>&-; sleep 1000",
            // It has ended, and what it has started has not.
            "sleep 1000 & exit 0",
            "trap '' TERM HUP INT; while :; do sleep 1; done",
        ] {
            let script = format!("echo $$ > {}; {script}", left.display());
            assert_eq!(beyond_what(&script), time, "{script}");
            let group: i32 = std::fs::read_to_string(&left)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            // Where nothing buries orphans, as in a container without an init, they stay.
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
        let output = Some(Beyond::Output(100_000));
        assert_eq!(beyond_what("yes"), output);
        assert_eq!(beyond_what("yes >&2"), output);
        assert_eq!(beyond_what("head -c 100001 /dev/zero; sleep 1000"), output);
    }

    #[test]
    fn what_is_within_limits_is_heard() {
        let hear = |script: &str, stdin: &[u8]| {
            let output = finish(shell(script), stdin, Limits::PLUGIN).unwrap();
            (
                output.status.code(),
                output.stdout.len(),
                output.stderr.len(),
            )
        };
        assert_eq!(hear("exit 3", b"{}"), (Some(3), 0, 0));
        assert_eq!(
            hear("cat; cat >&2", &[b' '; 300_000]),
            (Some(0), 300_000, 0)
        );
        let both = "head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; cat >&2";
        assert_eq!(hear(both, &[b' '; 300_000]), (Some(0), 200_000, 500_000));
        // It answers when it has ended itself.
        assert_eq!(
            hear("(sleep 0.3; echo late) & exit 0", b""),
            (Some(0), 5, 0)
        );
        assert_eq!(
            hear("exec >&- 2>&-; sleep 0.3; exit 4", b""),
            (Some(4), 0, 0)
        );
    }
}
