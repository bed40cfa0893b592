//! The plugin's end of the daemon's socket.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Code, Error, reason};
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::gob::{Decoder, LONGEST, Value};
use crate::rpc::{ALLOCATE, Arguments, CONNECT, result_of, write_call};

/// Limit of all calls but [`ALLOCATE`], which waits for a DHCP server.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The greeting of Go's server and of ours.
const GREETING: &str = "200 Connected to Go RPC";

/// A connection to the daemon.
pub struct Client {
    stream: UnixStream,
    socket: String,
}

/// Why a call has no result.
#[derive(Debug)]
pub enum Failure {
    /// No process listens on the socket.
    Unreachable(String),
    /// The daemon does not answer, or not in the protocol.
    Broken(String),
    /// The daemon answers with this error.
    Refused(String),
}

/// The advice when no daemon runs.
pub const HELP: &str = "the daemon keeps the leases: systemctl enable --now cni-dhcp.socket";

impl Client {
    /// Connects to the daemon at `socket`.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] and [`Failure::Broken`], with the Go plugin's texts.
    pub fn dial(socket: &str) -> Result<Self, Failure> {
        let unreachable = |error: &std::io::Error| {
            Failure::Unreachable(format!(
                "error dialing DHCP daemon: dial unix {socket}: connect: {}",
                reason(error)
            ))
        };
        let stream = connect(Path::new(socket)).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => broken(socket, "it accepts no connection"),
            _ => unreachable(&error),
        })?;
        let mut client = Self {
            stream,
            socket: socket.to_owned(),
        };
        client.greet()?;
        Ok(client)
    }

    fn greet(&mut self) -> Result<(), Failure> {
        self.set_timeout(TIMEOUT)?;
        self.send(CONNECT)?;
        let mut greeting = Vec::new();
        let mut byte = [0];
        // Byte by byte: what follows the empty line belongs to the decoder.
        while !greeting.ends_with(b"\n\n") && !greeting.ends_with(b"\r\n\r\n") {
            if greeting.len() > 4096 || self.receive(&mut byte)? == 0 {
                return Err(self.broken("unexpected HTTP response"));
            }
            greeting.push(byte[0]);
        }
        let greeting = String::from_utf8_lossy(&greeting).into_owned();
        match greeting.lines().next() {
            Some(line) if line.ends_with(GREETING) => Ok(()),
            _ => Err(self.broken("unexpected HTTP response")),
        }
    }

    /// Calls `method` and waits for its answer.
    ///
    /// # Errors
    /// [`Failure::Refused`] with the daemon's error; the others as with [`Client::dial`].
    pub fn call(mut self, method: &str, arguments: &Arguments) -> Result<AddResult, Failure> {
        self.set_timeout(match method {
            ALLOCATE => cni::execute::Limits::PLUGIN.time,
            _ => TIMEOUT,
        })?;
        self.send(&write_call(method, arguments))?;
        let (mut decoder, mut input) = (Decoder::default(), Vec::new());
        let answer = self.next(&mut decoder, &mut input)?;
        let error = answer.text("Error");
        if !error.is_empty() {
            return Err(Failure::Refused(error));
        }
        self.next(&mut decoder, &mut input)
            .map(|body| result_of(&body))
    }

    fn next(&mut self, decoder: &mut Decoder, input: &mut Vec<u8>) -> Result<Value, Failure> {
        loop {
            match decoder.next(input) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(why) => return Err(self.broken(&format!("malformed gob: {why}"))),
            }
            let mut buffer = [0; 4096];
            let length = self.receive(&mut buffer)?;
            if length == 0 || input.len() > LONGEST + 16 {
                return Err(self.broken("unexpected EOF"));
            }
            input.extend(&buffer[..length]);
        }
    }

    fn set_timeout(&self, timeout: Duration) -> Result<(), Failure> {
        let set = self.stream.set_read_timeout(Some(timeout));
        set.and_then(|()| self.stream.set_write_timeout(Some(TIMEOUT)))
            .map_err(|error| self.broken(&reason(&error)))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = self.stream.write_all(bytes);
        sent.map_err(|error| self.broken(&reason(&error)))
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(self.broken("no answer"));
                }
                Err(error) => return Err(self.broken(&reason(&error))),
                Ok(length) => return Ok(length),
            }
        }
    }

    fn broken(&self, why: &str) -> Failure {
        broken(&self.socket, why)
    }
}

fn broken(socket: &str, why: &str) -> Failure {
    Failure::Broken(format!("DHCP daemon at {socket}: {why}"))
}

/// Connects. The send timeout limits connect(2), too, which blocks while the queue of a
/// daemon that hangs is full.
pub(crate) fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    setsockopt(
        &socket,
        SendTimeout,
        &TimeVal::seconds(TIMEOUT.as_secs() as i64),
    )?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

impl Failure {
    /// The plugin's error: code 11 when a later try may find a daemon, or a server that
    /// answers.
    pub fn into_error(self, method: &str) -> Error {
        match self {
            Self::Unreachable(msg) => Code::TryAgain.err(msg).details(HELP),
            Self::Broken(why) => Code::TryAgain.err(format!("error calling {method}: {why}")),
            Self::Refused(why) => {
                let try_again = why == NO_MORE_TRIES;
                let code = if try_again {
                    Code::TryAgain
                } else {
                    Code::Internal
                };
                code.err(format!("error calling {method}: {why}"))
            }
        }
    }
}

/// The daemon's error when no server has granted an address in time.
pub const NO_MORE_TRIES: &str = "no more tries";
