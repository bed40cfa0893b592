//! A socket: requests and their answers, dumps, batches.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netns::NetNs;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockType, bind, send, setsockopt, socket,
    sockopt,
};

use crate::message::{Message, Request, messages};
use crate::protocol::Protocol;
use crate::system::{attach_filter, receive, set_option};
use crate::{Backoff, Error, Refusal, wait_readable};

/// How long one request may take. The kernel answers within microseconds, but a request waits for the
/// requests of other programs: for the routing lock, for commits of nf_tables.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of the longest datagram that can be read. The kernel makes none above 32 KiB unless
/// one message needs it: a link may have 64 KiB of alternative names.
const DATAGRAM: usize = 256 * 1024;

/// The buffer into which datagrams are read: one for all sockets, as a plugin opens three, and the
/// kernel has to provide its pages. A thread that finds it in use makes another one.
static BUFFER: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn shared_buffer() -> MutexGuard<'static, Vec<u8>> {
    BUFFER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A netlink socket. It belongs to the network namespace in which it was opened, wherever it
/// is used. Requests need privileges, opening does not.
pub struct Socket<P> {
    fd: OwnedFd,
    sequence: Cell<u32>,
    /// Whether it has an address: the kernel gives it one with the first request.
    bound: Cell<bool>,
    /// Whether `NETLINK_GET_STRICT_CHK` was set.
    strict: Cell<bool>,
    /// Whether `NETLINK_CAP_ACK` was set.
    capped: Cell<bool>,
    protocol: PhantomData<P>,
}

/// The result of a dump.
#[derive(Debug)]
pub struct Dump<T> {
    /// What was found.
    pub entries: Vec<T>,
    /// The list changed during each attempt: entries may be missing or stand twice.
    pub interrupted: bool,
}

impl<P> fmt::Debug for Socket<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.fd.as_raw_fd())
    }
}

impl<P> AsFd for Socket<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<P: Protocol> Socket<P> {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses, or does not know the protocol.
    pub fn open() -> Result<Self, Error> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, P::NUMBER)
            .map_err(|errno| Error::new("open a netlink socket", errno))?;
        let socket = Self::over(fd);
        // The kernel explains its errors, since 4.12.
        let _ = socket.set_option(libc::NETLINK_EXT_ACK, 1);
        Ok(socket)
    }

    /// Opens a socket inside `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered; as [`Socket::open`].
    pub fn open_in(netns: &NetNs) -> anyhow::Result<Self>
    where
        P: Send,
    {
        Ok(netns.enter(Self::open)??)
    }

    /// Uses a socket that is open already.
    pub fn over(fd: OwnedFd) -> Self {
        Self {
            fd,
            // 0 is the number of the kernel's own messages.
            sequence: Cell::new(1),
            bound: Cell::default(),
            strict: Cell::default(),
            capped: Cell::default(),
            protocol: PhantomData,
        }
    }

    /// Sends a request, passes each answer to `hear`, and waits for the acknowledgement.
    ///
    /// # Errors
    /// The kernel refuses; `ETIMEDOUT`.
    pub fn request(
        &self,
        request: &Request<P>,
        hear: impl FnMut(Message<'_>),
    ) -> Result<(), Refusal> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.exchange(request, flags, hear).map(drop)
    }

    /// Sends a request that has exactly one answer, which is its acknowledgement as well, and
    /// returns what `read` makes of it.
    ///
    /// # Errors
    /// The kernel refuses; `ETIMEDOUT`.
    pub fn get<T>(
        &self,
        request: &Request<P>,
        read: impl Fn(Message<'_>) -> T,
    ) -> Result<T, Refusal> {
        let sequence = self.send_one(request, libc::NLM_F_REQUEST)?;
        let mut answer = Err(Errno::EBADMSG.into());
        self.receive(|message| {
            if message.sequence != sequence {
                return false;
            }
            answer = match message.outcome() {
                Some(Err(refusal)) => Err(refusal),
                Some(Ok(())) => Err(Errno::EBADMSG.into()),
                None => Ok(read(message)),
            };
            true
        })?;
        answer
    }

    /// Sends a request for a list and returns what `pick` finds in each entry. While the kernel
    /// marks the list as changed, it is requested again.
    ///
    /// # Errors
    /// The kernel refuses; `ETIMEDOUT`.
    pub fn dump<T, I: IntoIterator<Item = T>>(
        &self,
        request: &Request<P>,
        pick: impl Fn(Message<'_>) -> I,
    ) -> Result<Dump<T>, Refusal> {
        if P::STRICT_DUMPS && !self.strict.replace(true) {
            let _ = self.set_option(libc::NETLINK_GET_STRICT_CHK, 1);
        }
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let mut backoff = Backoff::new(P::DUMP_ATTEMPTS, P::DUMP_PATIENCE);
        loop {
            let mut entries = Vec::new();
            let interrupted =
                self.exchange(request, flags, |message| entries.extend(pick(message)))?;
            if !interrupted || !backoff.again() {
                return Ok(Dump {
                    entries,
                    interrupted,
                });
            }
        }
    }

    /// Sends a request for a list and returns what `pick` finds in its first datagram: some kilobytes,
    /// however long the list is. It is the last request over this socket, which has the rest to read.
    ///
    /// # Errors
    /// The kernel refuses; `ETIMEDOUT`.
    pub fn begin_dump<T, I: IntoIterator<Item = T>>(
        &self,
        request: &Request<P>,
        pick: impl Fn(Message<'_>) -> I,
    ) -> Result<Vec<T>, Refusal> {
        self.send_one(request, libc::NLM_F_REQUEST | libc::NLM_F_DUMP)?;
        let (mut entries, mut result) = (Vec::new(), Ok(()));
        let until = Instant::now() + DEADLINE;
        while !self.try_receive(|message| match message.outcome() {
            Some(outcome) => result = outcome,
            None => entries.extend(pick(message)),
        })? {
            wait_readable([self.as_fd()], until)?;
        }
        result.map(|()| entries)
    }

    /// Sends `requests` as one datagram, which the kernel carries out in order before the send
    /// returns. Returns the errors, with the index of the request that each is about.
    ///
    /// Only the request `acknowledged` requests an acknowledgement: one for each request would overflow
    /// the receive buffer. The kernel reports errors in any case, and all of them before that
    /// acknowledgement; `is_final` selects the errors after which it does not come.
    ///
    /// # Errors
    /// The socket fails. Some requests may have been carried out then.
    pub fn batch(
        &self,
        requests: &[Request<P>],
        acknowledged: usize,
        is_final: impl Fn(usize, Errno) -> bool,
    ) -> Result<Vec<(usize, Refusal)>, Errno> {
        if !self.capped.replace(true) {
            // Errors come without the request that they are about. Before 4.3 they have it.
            let _ = self.set_option(libc::NETLINK_CAP_ACK, 1);
        }
        let mut datagram = Vec::new();
        let first = self.sequence.get();
        for (index, request) in requests.iter().enumerate() {
            let mut flags = libc::NLM_F_REQUEST;
            if index == acknowledged {
                flags |= libc::NLM_F_ACK;
            }
            request.append(&mut datagram, flags, self.next_sequence());
        }
        self.send(&datagram)?;

        let mut refused = Vec::new();
        self.receive(|message| {
            let index = message.sequence.wrapping_sub(first) as usize;
            let Some(outcome) = message.outcome().filter(|_| index < requests.len()) else {
                return false;
            };
            let Err(refusal) = outcome else {
                return index == acknowledged;
            };
            let is_last = index == acknowledged || is_final(index, refusal.errno);
            refused.push((index, refusal));
            is_last
        })?;
        Ok(refused)
    }

    /// Takes the number of the next request, for a request that is sent by other means.
    pub fn next_sequence(&self) -> u32 {
        let sequence = self.sequence.get();
        // Not 0: see `over`.
        self.sequence.set(sequence.checked_add(1).unwrap_or(1));
        sequence
    }

    /// Receives the messages that are sent to a multicast group (`RTNLGRP_*`), or no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_membership(&self, group: u32, member: bool) -> Result<(), Errno> {
        // The kernel sends nothing to a socket without an address.
        if !self.bound.replace(true) {
            bind(self.fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        }
        let option = if member {
            libc::NETLINK_ADD_MEMBERSHIP
        } else {
            libc::NETLINK_DROP_MEMBERSHIP
        };
        self.set_option(option, group as i32)
    }

    /// Receives only what the classic BPF `program` accepts; everything, if it is empty.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_filter(&self, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
        if program.is_empty() {
            return set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0);
        }
        attach_filter(self.as_fd(), program)
    }

    /// Reads one datagram, if there is one, and passes its messages to `hear`. Returns whether
    /// there was one. Does not wait.
    ///
    /// # Errors
    /// `ENOBUFS` when the kernel has dropped messages; others when the socket fails.
    pub fn try_receive(&self, hear: impl FnMut(Message<'_>)) -> Result<bool, Errno> {
        let mut buffer = std::mem::take(&mut *shared_buffer());
        buffer.clear();
        buffer.reserve(DATAGRAM);
        let received = receive(self.as_fd(), &mut buffer);
        match received {
            // Other processes can send, too: only messages of the kernel are read.
            Ok(0) => messages(&buffer).for_each(hear),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                *shared_buffer() = buffer;
                return Ok(false);
            }
            Err(errno) => return Err(errno),
        }
        // The other end of a pair of sockets is closed: nothing more will come.
        let closed = buffer.is_empty() && received == Ok(0);
        *shared_buffer() = buffer;
        if closed {
            Err(Errno::EBADMSG)
        } else {
            Ok(true)
        }
    }

    /// Returns whether the kernel has marked a dump as interrupted.
    fn exchange(
        &self,
        request: &Request<P>,
        flags: i32,
        mut hear: impl FnMut(Message<'_>),
    ) -> Result<bool, Refusal> {
        let sequence = self.send_one(request, flags)?;
        let (mut interrupted, mut result) = (false, Ok(()));
        self.receive(|message| {
            if message.sequence != sequence {
                return false; // a late answer to an earlier request
            }
            interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
            let outcome = message.outcome();
            let is_last = outcome.is_some();
            match outcome {
                Some(outcome) => result = outcome,
                None => hear(message),
            }
            is_last
        })?;
        result.map(|()| interrupted)
    }

    fn send_one(&self, request: &Request<P>, flags: i32) -> Result<u32, Errno> {
        let sequence = self.next_sequence();
        self.send(&request.to_bytes(flags, sequence))?;
        Ok(sequence)
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Errno> {
        self.bound.set(true);
        loop {
            match send(self.fd.as_raw_fd(), datagram, MsgFlags::empty()) {
                // The request has not begun.
                Err(Errno::EINTR) => {}
                Err(Errno::EMSGSIZE) => {
                    // It has to fit into the send buffer, with the kernel's own overhead.
                    let size = datagram.len() * 2;
                    setsockopt(&self.fd, sockopt::SndBufForce, &size)
                        .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &size))?;
                    let sent = send(self.fd.as_raw_fd(), datagram, MsgFlags::empty());
                    return sent.map(drop);
                }
                sent => return sent.map(drop),
            }
        }
    }

    /// Passes messages to `is_last` until it returns true.
    fn receive(&self, mut is_last: impl FnMut(Message<'_>) -> bool) -> Result<(), Errno> {
        let until = Instant::now() + DEADLINE;
        let mut done = false;
        loop {
            // Most answers have arrived before the send returns.
            if !self.try_receive(|message| done = done || is_last(message))? {
                wait_readable([self.as_fd()], until)?;
                continue;
            }
            if done {
                return Ok(());
            }
            // There may be many messages, and the last may never come.
            if Instant::now() >= until {
                return Err(Errno::ETIMEDOUT);
            }
        }
    }

    fn set_option(&self, option: i32, value: i32) -> Result<(), Errno> {
        set_option(self.as_fd(), libc::SOL_NETLINK, option, &value)
    }
}
