//! The client of the resolver's socket.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::{Reply, Request};

const PATH: &str = "/run/podwire/podwired.sock";

/// The limit for an answer in bytes: that to a name with some thousand addresses.
const LONGEST: usize = 1024 * 1024;

/// How long to wait before another attempt, where the resolver has too many clients.
const PAUSE: Duration = Duration::from_millis(1);

/// The resolver's socket.
#[derive(Clone, Debug)]
pub struct Resolver(PathBuf);

/// No resolver listens on the socket, or it has ended before it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    path: PathBuf,
    errno: Errno,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, why) = (self.path.display(), cni::reason(&self.errno.into()));
        write!(f, "connect to the resolver at {path}: {why}")
    }
}

impl std::error::Error for Unreachable {}

impl Default for Resolver {
    /// `/run/podwire/podwired.sock`
    fn default() -> Self {
        Self::at(PATH)
    }
}

impl Resolver {
    /// The resolver that listens at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Sends a request and waits for its answer, for `patience` in all.
    ///
    /// # Errors
    /// [`Unreachable`] where no resolver listens; the resolver's own reason; no answer in time.
    pub fn ask(&self, request: &Request, patience: Duration) -> Result<Reply> {
        let deadline = Instant::now() + patience;
        let stream = self.connect(deadline)?;
        let describe = || format!("ask the resolver at {}", self.0.display());
        let line = match converse(stream, request, deadline) {
            // It has ended in between.
            Err(error) if has_hung_up(&error) => {
                return Err(self.unreachable(Errno::ECONNRESET).into());
            }
            line => line.with_context(describe)?,
        };
        match line.parse().with_context(describe)? {
            Reply::Error(why) => bail!("{}: {why}", describe()),
            reply => Ok(reply),
        }
    }

    fn connect(&self, deadline: Instant) -> Result<UnixStream> {
        let address = UnixAddr::new(self.0.as_path())?;
        // Without blocking: connect(2) waits without a limit where the backlog is full (unix(7)).
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .context("open a socket for the resolver")?;
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
            path: self.0.clone(),
            errno,
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn converse(mut stream: UnixStream, request: &Request, deadline: Instant) -> io::Result<String> {
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

    fn request() -> Request {
        Request::Read("web/a:eth0".parse().unwrap())
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
        for (answer, servers) in [
            ("{\"servers\":[\"10.1.0.1\",\"fd00::1\"]}\n", 2),
            ("{\"servers\":[]}\n", 0),
        ] {
            let _ = std::fs::remove_file(&path);
            let server = answering(UnixListener::bind(&path).unwrap(), answer);
            match Resolver::at(&path).ask(&request(), LONG).unwrap() {
                Reply::Servers(found) => assert_eq!(found.len(), servers),
                other => panic!("{other}"),
            }
            assert_eq!(server.join().unwrap(), format!("{}\n", request()));
        }
    }

    #[test]
    fn the_resolvers_reason_is_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let server = answering(
            UnixListener::bind(&path).unwrap(),
            "{\"error\":\"no role names\"}\n",
        );
        let error = Resolver::at(&path).ask(&request(), LONG).unwrap_err();
        assert!(error.to_string().ends_with(": no role names"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn without_a_resolver_the_error_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let resolver = Resolver::at(&path);
        let error = resolver.ask(&request(), LONG).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error}");
        // One that was killed leaves its socket.
        drop(UnixListener::bind(&path).unwrap());
        let error = resolver.ask(&request(), LONG).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error}");
    }

    #[test]
    fn a_resolver_that_ends_before_its_answer_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let error = Resolver::at(&path).ask(&request(), LONG).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error:#}");
        server.join().unwrap();
    }

    #[test]
    fn a_resolver_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let short = Duration::from_millis(20);
        // It does not even accept: first the request waits in vain, then the connection.
        let mut clients = Vec::new();
        while let Ok(client) = Resolver::at(&path).connect(Instant::now()) {
            clients.push(client);
        }
        let error = Resolver::at(&path).ask(&request(), short).unwrap_err();
        assert!(error.is::<Unreachable>(), "{error}");
        clients.clear();
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        let error = Resolver::at(&path).ask(&request(), short).unwrap_err();
        assert!(
            format!("{error:#}").ends_with("no answer in time"),
            "{error:#}"
        );
    }
}
