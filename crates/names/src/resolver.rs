//! The client of the resolver, a role of the agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::Socket;
use anyhow::{Context, Result, bail};

use crate::{Reply, Request};

/// The resolver's socket.
#[derive(Clone, Debug)]
pub struct Resolver(Socket);

impl Default for Resolver {
    /// `/run/podwire/podwired.sock`
    fn default() -> Self {
        Self::at(agent::PATH)
    }
}

impl Resolver {
    /// The resolver that listens at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Socket::at(path, "resolver"))
    }

    /// Sends a request and waits for its answer, for `patience` in all.
    ///
    /// # Errors
    /// [`Unreachable`](crate::Unreachable) where no resolver listens; the resolver's own reason; no
    /// answer in time.
    pub fn ask(&self, request: &Request, patience: Duration) -> Result<Reply> {
        let line = self.0.ask(&request.to_string(), patience)?;
        match line.parse().with_context(|| self.0.describe())? {
            Reply::Error(why) => bail!("{}: {why}", self.0.describe()),
            reply => Ok(reply),
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_resolvers_reason_is_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream)
                .read_line(&mut String::new())
                .unwrap();
            stream
                .write_all(b"{\"error\":\"no role names\"}\n")
                .unwrap();
        });
        let request = Request::Read("web/a:eth0".parse().unwrap());
        let error = Resolver::at(&path).ask(&request, Duration::from_secs(20));
        let error = error.unwrap_err();
        assert!(error.to_string().ends_with(": no role names"), "{error}");
        server.join().unwrap();
    }
}
