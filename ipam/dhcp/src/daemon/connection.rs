//! One connection of a plugin: bytes in, calls out; answers in, bytes out.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::gob::{Decoder, LONGEST, Value};
use crate::rpc::{Answer, Arguments, CONNECTED, Header, describe_answers, write_answer};

/// The longest request line with its headers, in bytes.
const LONGEST_GREETING: usize = 8192;

/// A call that came in.
#[derive(Debug)]
pub struct Call {
    /// The method, and the sequence number for the answer.
    pub header: Header,
    pub arguments: Arguments,
}

/// A connection, in non-blocking mode.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Whether the HTTP greeting is done.
    tunnel: bool,
    decoder: Decoder,
    /// The descriptions of types that precede the first answer.
    types: Vec<u8>,
    /// The header of a call whose arguments have not come yet.
    header: Option<Header>,
    /// The key of the lease that the plugin waits for.
    pub waits_for: Option<u32>,
}

/// The other end has closed the connection, or does not speak the protocol.
#[derive(Debug)]
pub struct Closed;

impl Connection {
    /// Takes over `stream`.
    ///
    /// # Errors
    /// When it cannot be set to non-blocking mode.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut types = Vec::new();
        describe_answers(&mut types);
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            tunnel: false,
            decoder: Decoder::default(),
            types,
            header: None,
            waits_for: None,
        })
    }

    /// Reads what has arrived, and returns the calls that are complete.
    ///
    /// # Errors
    /// When the connection is to be dropped.
    pub fn read(&mut self) -> Result<Vec<Call>, Closed> {
        let mut buffer = [0; 16384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Closed),
                Ok(length) => self.input.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
            if self.input.len() > LONGEST + 16 {
                return Err(Closed);
            }
        }
        if !self.tunnel {
            self.greet()?;
        }
        let mut calls = Vec::new();
        while self.tunnel {
            let value = self.decoder.next(&mut self.input).map_err(|_| Closed)?;
            let Some(value) = value else { break };
            calls.extend(self.take(&value));
        }
        Ok(calls)
    }

    /// The call whose arguments `value` is; `None` after a header.
    fn take(&mut self, value: &Value) -> Option<Call> {
        match self.header.take() {
            None => {
                self.header = Some(Header::of(value));
                None
            }
            Some(header) => Some(Call {
                header,
                arguments: Arguments::of(value),
            }),
        }
    }

    /// Go's client sends an HTTP CONNECT request first, as to a proxy.
    fn greet(&mut self) -> Result<(), Closed> {
        let end = |mark: &[u8]| {
            let found = self.input.windows(mark.len()).position(|it| it == mark);
            found.map(|start| start + mark.len())
        };
        let Some(end) = end(b"\r\n\r\n").or_else(|| end(b"\n\n")) else {
            let too_long = self.input.len() > LONGEST_GREETING;
            return if too_long { Err(Closed) } else { Ok(()) };
        };
        let request: Vec<u8> = self.input.drain(..end).collect();
        if !request.starts_with(b"CONNECT /_goRPC_ HTTP/") {
            self.output
                .extend(b"HTTP/1.0 405 Method Not Allowed\r\n\r\n405 must CONNECT\n");
            let _ = self.write();
            return Err(Closed);
        }
        self.tunnel = true;
        self.output.extend(CONNECTED);
        self.write()
    }

    /// Answers a call.
    ///
    /// # Errors
    /// When the connection is to be dropped.
    pub fn answer(&mut self, header: &Header, answer: &Answer) -> Result<(), Closed> {
        self.output.append(&mut self.types);
        write_answer(&mut self.output, header, answer);
        self.write()
    }

    /// Writes as much as fits.
    ///
    /// # Errors
    /// When the connection is to be dropped.
    pub fn write(&mut self) -> Result<(), Closed> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(Closed),
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
