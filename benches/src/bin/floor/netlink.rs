//! Netlink by hand: one socket, one request, one answer at a time.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// `NLM_F_REQUEST`, on every request.
pub const REQUEST: u16 = 1;
/// `NLM_F_ACK`: acknowledge success, too.
pub const ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`: list all.
pub const DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`.
pub const CREATE: u16 = 0x600;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;

/// A message under construction: header, fixed part, attributes.
pub struct Message(Vec<u8>);

impl Message {
    /// A request with its fixed part (`struct ifinfomsg`, `ifaddrmsg`, …).
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend(fixed);
        Self(bytes)
    }

    /// Appends an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// Appends an attribute that is text and ends with a zero byte.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute that contains the attributes that `fill` appends.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.push(kind, &[]);
        let mut filled = fill(self);
        let length = u16::try_from(filled.0.len() - start).unwrap_or(u16::MAX);
        filled.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// Appends bytes that are no attribute: the header of a veth's peer.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// The finished message.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A socket.
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// One for links, addresses and routes, in the thread's namespace; notified of
    /// changes of the groups (`RTMGRP_*`).
    pub fn route(groups: u32) -> Result<Self> {
        Self::open(SockProtocol::NetlinkRoute, groups)
    }

    /// One for nf_tables.
    pub fn netfilter() -> Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter, 0)
    }

    fn open(protocol: SockProtocol, groups: u32) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        if groups != 0 {
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        }
        let buffer = vec![0; 32 * 1024];
        Ok(Self { fd, buffer })
    }

    /// Sends bytes.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).context("send a request")?;
        Ok(())
    }

    /// Receives a datagram and calls `each` with type and body of its messages,
    /// until that returns an answer.
    ///
    /// # Errors
    /// The kernel's refusal, or the error of `each`.
    pub fn receive<T>(
        &mut self,
        mut each: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        let mut rest = &self.buffer[..length];
        while let Some((head, _)) = rest.split_first_chunk::<HEADER>() {
            let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let kind = u16::from_ne_bytes([head[4], head[5]]);
            let body = rest.get(HEADER..size).context("a message is cut off")?;
            if kind == ERROR {
                refused(body)?;
            }
            if let Some(answer) = each(kind, body) {
                return Ok(Some(answer));
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(None)
    }

    /// Sends a request and waits for its acknowledgement.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ask(&mut self, request: Message) -> Result<()> {
        self.send(&request.finish())?;
        self.wait(|kind, _| (kind == ERROR).then_some(()))
    }

    /// Sends a request and waits for the object that it names.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn get<T>(&mut self, request: Message, read: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        self.send(&request.finish())?;
        self.wait(|_, body| read(body))
    }

    /// Sends a dump request and counts the objects.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn count(&mut self, request: Message) -> Result<usize> {
        self.send(&request.finish())?;
        let mut found = 0;
        self.wait(|kind, _| {
            found += 1;
            (kind == DONE).then_some(())
        })?;
        Ok(found - 1)
    }

    /// Receives until `each` has an answer.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn wait<T>(&mut self, mut each: impl FnMut(u16, &[u8]) -> Option<T>) -> Result<T> {
        loop {
            if let Some(answer) = self.receive(&mut each)? {
                return Ok(answer);
            }
        }
    }
}

fn refused(body: &[u8]) -> Result<()> {
    let code = body
        .first_chunk::<4>()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    match code {
        0 => Ok(()),
        code => Err(Errno::from_raw(-code)).context("the kernel refused"),
    }
}
