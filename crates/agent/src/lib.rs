//! The client of the socket of `podwired`: one line each way, and every wait has a limit. What the
//! lines say is the matter of the role that answers.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Where the socket is, unless a configuration names another.
pub const PATH: &str = "/run/podwire/podwired.sock";

/// The limit for an answer in bytes: that to a list of some hundred thousand addresses.
const LONGEST: usize = 64 * 1024 * 1024;

/// How long to wait before another attempt, where the agent has too many clients.
const PAUSE: Duration = Duration::from_millis(1);

/// The agent's socket.
#[derive(Clone, Debug)]
pub struct Socket {
    path: PathBuf,
    /// What answers, for errors.
    what: &'static str,
}

/// Nothing listens on the socket, or it has ended before it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    path: PathBuf,
    what: &'static str,
    errno: Errno,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, why) = (self.path.display(), cni::reason(&self.errno.into()));
        write!(f, "connect to the {} at {path}: {why}", self.what)?;
        match self.errno {
            Errno::ENOENT | Errno::ECONNREFUSED => f.write_str(": podwired does not run"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Unreachable {}

impl Socket {
    /// The socket at `path`; `what` answers there, such as `resolver`.
    pub fn at(path: impl Into<PathBuf>, what: &'static str) -> Self {
        let path = path.into();
        Self { path, what }
    }

    /// Sends a line and waits for its answer, for `patience` in all.
    ///
    /// # Errors
    /// [`Unreachable`] where nothing listens; no answer in time.
    pub fn ask(&self, line: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let stream = self.connect(deadline)?;
        match converse(stream, line, deadline) {
            // It has ended in between.
            Err(error) if has_hung_up(&error) => Err(self.unreachable(Errno::ECONNRESET).into()),
            line => line.with_context(|| self.describe()),
        }
    }

    /// What an error of [`Socket::ask`], or of its answer, begins with.
    pub fn describe(&self) -> String {
        format!("ask the {} at {}", self.what, self.path.display())
    }

    fn connect(&self, deadline: Instant) -> Result<UnixStream> {
        let address = UnixAddr::new(self.path.as_path())?;
        // Without blocking: connect(2) waits without a limit where the backlog is full (unix(7)).
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .context("open a socket for the agent")?;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => break,
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => sleep(PAUSE),
                Err(errno) => return Err(self.unreachable(errno).into()),
            }
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    fn unreachable(&self, errno: Errno) -> Unreachable {
        Unreachable {
            path: self.path.clone(),
            what: self.what,
            errno,
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn converse(mut stream: UnixStream, request: &str, deadline: Instant) -> io::Result<String> {
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    while !line.ends_with(b"\n") {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => line.extend_from_slice(&piece[..length]),
            // The time is over.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(late()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if line.len() > LONGEST {
            return Err(io::Error::other("the answer is too long"));
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}

fn has_hung_up(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// The time that is left. A time-out of zero would mean no limit.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(late())
    } else {
        Ok(left)
    }
}

fn late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "no answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    const LONG: Duration = Duration::from_secs(20);

    const REQUEST: &str = "{\"names\":{\"read\":\"web/a:eth0\"}}";

    fn socket(path: &Path) -> Socket {
        Socket::at(path, "resolver")
    }

    /// Answers one request.
    fn answering(listener: UnixListener, answer: &'static str) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            // In pieces, as a stream may deliver it.
            for piece in answer.as_bytes().chunks(7) {
                stream.write_all(piece).unwrap();
            }
            line
        })
    }

    #[test]
    fn a_request_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        for answer in ["{\"servers\":[\"10.1.0.1\",\"fd00::1\"]}\n", "{}\n"] {
            let _ = std::fs::remove_file(&path);
            let server = answering(UnixListener::bind(&path).unwrap(), answer);
            assert_eq!(socket(&path).ask(REQUEST, LONG).unwrap(), answer);
            assert_eq!(server.join().unwrap(), format!("{REQUEST}\n"));
        }
    }

    #[test]
    fn without_an_agent_the_error_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let agent = socket(&path);
        let error = agent.ask(REQUEST, LONG).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error}");
        // One that was killed leaves its socket.
        drop(UnixListener::bind(&path).unwrap());
        let error = agent.ask(REQUEST, LONG).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error}");
    }

    #[test]
    fn an_agent_that_ends_before_its_answer_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let error = socket(&path).ask(REQUEST, LONG).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error:#}");
        server.join().unwrap();
    }

    #[test]
    fn an_agent_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let short = Duration::from_millis(20);
        // It does not even accept: first the request waits in vain, then the connection.
        let mut clients = Vec::new();
        while let Ok(client) = socket(&path).connect(Instant::now()) {
            clients.push(client);
        }
        let error = socket(&path).ask(REQUEST, short).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error}");
        clients.clear();
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        let error = socket(&path).ask(REQUEST, short).unwrap_err();
        assert!(
            format!("{error:#}").ends_with("no answer in time"),
            "{error:#}"
        );
    }
}
