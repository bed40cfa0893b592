//! Many changes in one system call.
//!
//! The kernel carries out all messages of a datagram, in order, before the send
//! returns. It answers a message that asks for no acknowledgement only if it has
//! failed, so thousands of changes cost a send and a read for every hundred and fifty.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc::MSG_DONTWAIT,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use crate::{Error, refusal::Refusal};

/// How many messages go in one datagram. Were all of them to fail, their errors
/// (at most 1,300 bytes each, in the kernel's count) would still fit into a socket's
/// receive buffer as it is by default, 208 KiB.
const AT_ONCE: usize = 150;

/// How long the kernel may take for one datagram.
const DEADLINE: Duration = Duration::from_secs(10);

/// A change: the message, and its flags beside `NLM_F_REQUEST`.
pub(crate) type Change = (RouteNetlinkMessage, u16);

/// A socket for changes of one network namespace.
pub(crate) struct Batch {
    socket: Socket,
}

impl Batch {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let op = "open a netlink socket";
        let socket = Socket::new(NETLINK_ROUTE).map_err(|error| Error::io(op, &error))?;
        // Errors come without the message that they are about. Before 4.3 they have it.
        let _ = socket.set_cap_ack(true);
        // And with the kernel's own words.
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket })
    }

    /// Makes all changes, in order, whatever becomes of each. Returns why
    /// those that failed did, by their place in `changes`.
    ///
    /// # Errors
    /// When the socket fails; some changes may have been made then.
    pub(crate) fn make(&self, changes: Vec<Change>) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut failed = Vec::new();
        let mut changes = changes.into_iter().enumerate().peekable();
        while changes.peek().is_some() {
            let part: Vec<_> = changes.by_ref().take(AT_ONCE).collect();
            self.send(part, &mut failed)
                .map_err(|errno| Error::new("change many entries at once", errno))?;
        }
        Ok(failed)
    }

    fn send(
        &self,
        part: Vec<(usize, Change)>,
        failed: &mut Vec<(usize, Refusal)>,
    ) -> Result<(), Errno> {
        let mut datagram = Vec::new();
        let last = part.last().map_or(0, |(index, _)| *index);
        for (index, (message, flags)) in part {
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | flags;
            if index == last {
                header.flags |= NLM_F_ACK;
            }
            header.sequence_number = sequence(index);
            let mut message = NetlinkMessage::new(header, message.into());
            message.finalize();
            let start = datagram.len();
            // Messages in a datagram begin at multiples of four (NLMSG_ALIGNTO).
            datagram.resize((start + message.buffer_len()).next_multiple_of(4), 0);
            message.serialize(&mut datagram[start..]);
        }
        let kernel = SocketAddr::new(0, 0);
        let sent = self.socket.send_to(&datagram, &kernel, 0);
        sent.map_err(|error| raw(&error))?;
        self.collect(last, failed)
    }

    /// Reads errors until the acknowledgement of the last message.
    fn collect(&self, last: usize, failed: &mut Vec<(usize, Refusal)>) -> Result<(), Errno> {
        let until = Instant::now() + DEADLINE;
        let mut buffer = Vec::with_capacity(16 * 1024);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) => match raw(&error) {
                    Errno::EAGAIN => {
                        self.wait(until)?;
                        continue;
                    }
                    Errno::EINTR => continue,
                    errno => return Err(errno),
                },
            }
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|_| Errno::EBADMSG)?;
                let length = message.header.length as usize;
                rest = rest
                    .get(length.next_multiple_of(4).max(16)..)
                    .unwrap_or_default();
                let NetlinkPayload::Error(answer) = message.payload else {
                    continue;
                };
                let index = index(message.header.sequence_number);
                let flags = message.header.flags;
                let refusal = Refusal::read(flags, answer.raw_code(), &answer.header);
                failed.extend(refusal.map(|it| (index, it)));
                if index == last {
                    return Ok(());
                }
            }
        }
    }

    fn wait(&self, until: Instant) -> Result<(), Errno> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => Err(Errno::ETIMEDOUT),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// 0 is the kernel's own: sequence numbers begin at 1.
fn sequence(index: usize) -> u32 {
    (index as u32).wrapping_add(1)
}

fn index(sequence: u32) -> usize {
    sequence.wrapping_sub(1) as usize
}

fn raw(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
