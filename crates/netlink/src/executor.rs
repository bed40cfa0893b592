//! Requests, one at a time, over rtnetlink without a runtime. This is the only
//! file that knows of futures: rtnetlink's connection is one, so it is polled
//! by hand, and when it has nothing to read, poll(2) waits for the socket.
//!
//! It is also where the rules of the netlink protocol are kept: a deadline for
//! every request, interrupted dumps, no truncated message.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    os::fd::AsFd,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::BufMut;
use futures::{FutureExt, StreamExt, task::noop_waker_ref};
use netns::NetNs;
use nix::{
    errno::Errno,
    libc::{MSG_DONTWAIT, MSG_TRUNC},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_EXCL,
        NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    proto::{Connection, ConnectionHandle, NetlinkCodec, from_socket_with_codec},
    sys::{AsyncSocket, Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use crate::{
    Error,
    answer::{Answer, Message},
    refusal::Refusal,
};

/// How long the kernel may take for one request. It answers within
/// microseconds; what can take longer is a crowd waiting for the routing lock.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// How often an interrupted dump is asked for again, as the Go plugins do.
const DUMP_TRIES: usize = 5;

/// A request socket of one network namespace. Cheap to clone: clones share the
/// socket. All calls are synchronous.
///
/// The socket belongs to the namespace it was opened in for as long as it
/// lives, from whatever namespace it is used.
#[derive(Clone)]
pub struct Netlink {
    wire: Rc<RefCell<Wire>>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Netlink")
    }
}

struct Wire {
    connection: Connection<Message, PolledSocket>,
    handle: ConnectionHandle<Message>,
    strict: bool,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self::over(open_socket()?))
    }

    /// Opens a socket inside `netns`, to be used from here.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &NetNs) -> anyhow::Result<Self> {
        Ok(Self::over(netns.enter(open_socket)??))
    }

    /// Over a socket that was opened in the namespace that is meant.
    pub(crate) fn over(socket: Socket) -> Self {
        let socket = PolledSocket {
            socket,
            may_read: Cell::new(false),
            starved: Cell::new(false),
            failure: Cell::new(None),
            datagram: RefCell::new(Vec::with_capacity(DATAGRAM)),
        };
        // The stream of unsolicited messages is dropped: we join no group.
        let (connection, handle, _) = from_socket_with_codec::<_, _, NetlinkCodec>(socket);
        Self {
            wire: Rc::new(RefCell::new(Wire {
                connection,
                handle,
                strict: false,
            })),
        }
    }

    /// Uses the socket past the connection, between two requests.
    pub(crate) fn with_socket<T>(&self, use_it: impl FnOnce(&mut Socket) -> T) -> T {
        use_it(self.wire.borrow_mut().connection.socket_mut().socket_mut())
    }

    /// Changes something: sends `message` with `flags` and waits for the
    /// kernel's acknowledgement. `op` is only called to name a failure.
    pub(crate) fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        op: impl Fn() -> String,
    ) -> Result<(), Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        self.exchange(message, flags)
            .map(drop)
            .map_err(|refusal| Error::refused(op(), refusal))
    }

    /// Makes something that must not be there, as [`Netlink::change`]. Kernels since 6.2
    /// tell at once what they have made; `None` from others.
    pub(crate) fn create(
        &self,
        message: RouteNetlinkMessage,
        op: impl Fn() -> String,
    ) -> Result<Option<Answer>, Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        self.exchange(message, flags)
            .map(|mut reply| reply.answers.pop())
            .map_err(|refusal| Error::refused(op(), refusal))
    }

    /// Asks for one thing, without a dump.
    pub(crate) fn get(
        &self,
        message: RouteNetlinkMessage,
        op: impl Fn() -> String,
    ) -> Result<Answer, Error> {
        self.ask(Message::Request(message))
            .map_err(|refusal| Error::refused(op(), refusal))
    }

    /// Asks for all that match `message`. What rtnetlink does not understand is left out.
    pub(crate) fn dump(
        &self,
        message: RouteNetlinkMessage,
        op: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let answers = self.dump_answers(message, op)?;
        Ok(answers.iter().filter_map(Answer::decode).collect())
    }

    /// The same, as it came.
    ///
    /// The kernel marks a dump during which the list changed: entries may be
    /// missing from it or appear twice. It is asked for again then, and in the
    /// end taken as it is.
    pub(crate) fn dump_answers(
        &self,
        message: RouteNetlinkMessage,
        op: impl Fn() -> String,
    ) -> Result<Vec<Answer>, Error> {
        self.wire.borrow_mut().filter_strictly();
        let mut tries = 0;
        loop {
            tries += 1;
            let dump = self
                .exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)
                .map_err(|refusal| Error::refused(op(), refusal))?;
            if !dump.interrupted {
                return Ok(dump.answers);
            }
            if tries == DUMP_TRIES {
                cni::log(format_args!(
                    "{}: interrupted {tries} times, going on with what was seen",
                    op()
                ));
                return Ok(dump.answers);
            }
        }
    }

    /// The same for any message.
    pub(crate) fn ask(&self, message: Message) -> Result<Answer, Refusal> {
        // No NLM_F_ACK: the answer is the acknowledgement.
        let mut reply = self.exchange_any(message, NLM_F_REQUEST)?;
        reply.answers.pop().ok_or(Errno::EBADMSG.into())
    }

    fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Reply, Refusal> {
        self.exchange_any(Message::Request(message), flags)
    }

    fn exchange_any(&self, message: Message, flags: u16) -> Result<Reply, Refusal> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        self.wire.borrow_mut().block_on(message)
    }
}

/// What came back for one request.
#[derive(Default)]
struct Reply {
    answers: Vec<Answer>,
    interrupted: bool,
}

impl Wire {
    /// Drives the connection until `request` is answered in full.
    fn block_on(&mut self, request: NetlinkMessage<Message>) -> Result<Reply, Refusal> {
        let until = Instant::now() + DEADLINE;
        // A dump that fails says so in its last message.
        self.connection.set_forward_done(true);
        let kernel = SocketAddr::new(0, 0);
        let Ok(mut answers) = self.handle.request(request, kernel) else {
            return Err(self.failure().into());
        };
        let mut reply = Reply::default();
        // Nobody is ever woken: what is pending is polled again below.
        let mut context = Context::from_waker(noop_waker_ref());
        loop {
            // Sends what is queued, or reads at most one datagram.
            if self.connection.poll_unpin(&mut context).is_ready() {
                return Err(self.failure().into());
            }
            while let Poll::Ready(answer) = answers.poll_next_unpin(&mut context) {
                match answer {
                    Some(message) => reply.take(message)?,
                    None => return Ok(reply),
                }
            }
            self.connection.socket_mut().ready(until)?;
        }
    }

    /// Why the connection broke, for every request from then on.
    fn failure(&mut self) -> Errno {
        let failure = self.connection.socket_mut().failure.get();
        failure.unwrap_or(Errno::EPIPE)
    }

    /// Lets the kernel select what a dump returns: without this option it
    /// ignores most of a request's fields (linux/netlink.h, since 4.20; older
    /// kernels refuse the option and callers select again anyway).
    fn filter_strictly(&mut self) {
        if !self.strict {
            let socket = self.connection.socket_mut().socket_mut();
            let _ = socket.set_netlink_get_strict_chk(true);
            self.strict = true;
        }
    }
}

impl Reply {
    fn take(&mut self, message: NetlinkMessage<Message>) -> Result<(), Refusal> {
        let flags = message.header.flags;
        self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
        let refusal = match message.payload {
            NetlinkPayload::InnerMessage(Message::Answer(answer)) => {
                self.answers.push(answer);
                None
            }
            NetlinkPayload::Error(error) => Refusal::read(flags, error.raw_code(), &error.header),
            NetlinkPayload::Done(done) => Refusal::of_dump(done.code, &done.extended_ack),
            NetlinkPayload::Overrun(_) => Some(Errno::ENOBUFS.into()),
            _ => None,
        };
        refusal.map_or(Ok(()), Err)
    }
}

/// A socket of the calling thread's network namespace.
pub(crate) fn open_socket() -> Result<Socket, Error> {
    let socket = Socket::new(NETLINK_ROUTE);
    let socket = socket.map_err(|error| Error::io("open a netlink socket", &error))?;
    // The kernel's own words about an error; before 4.12 it has none.
    let _ = socket.set_ext_ack(true);
    Ok(socket)
}

/// A netlink socket that is only read when it is worth a system call.
struct PolledSocket {
    socket: Socket,
    /// One datagram may be read: the kernel queues the answer before a send
    /// returns, so a request and its answer cost two system calls.
    may_read: Cell<bool>,
    /// The last read found nothing.
    starved: Cell<bool>,
    /// Why the connection broke: rtnetlink itself forgets it.
    failure: Cell<Option<Errno>>,
    /// What was read last. The memory is the kernel's until something is written there.
    datagram: RefCell<Vec<u8>>,
}

/// Bytes of the longest datagram that is read whole.
const DATAGRAM: usize = 256 * 1024;

impl PolledSocket {
    /// Allows one more read; waits for something to read if there was nothing.
    fn ready(&self, until: Instant) -> Result<(), Errno> {
        if self.starved.take() {
            wait_readable(&self.socket, until)?;
        }
        self.may_read.set(true);
        Ok(())
    }

    fn fail<T>(&self, error: io::Error) -> Poll<io::Result<T>> {
        let errno = error.raw_os_error().map(Errno::from_raw);
        self.failure.set(errno);
        Poll::Ready(Err(error))
    }
}

impl AsyncSocket for PolledSocket {
    fn socket_ref(&self) -> &Socket {
        &self.socket
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(protocol)?,
            may_read: Cell::new(false),
            starved: Cell::new(false),
            failure: Cell::new(None),
            datagram: RefCell::new(Vec::with_capacity(DATAGRAM)),
        })
    }

    fn poll_send(&self, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Sending to the kernel runs the request: it neither waits nor stops halfway.
        match uninterrupted(|| self.socket.send(buf, 0)) {
            Ok(sent) => Poll::Ready(Ok(sent)),
            Err(error) => self.fail(error),
        }
    }

    fn poll_send_to(
        &self,
        _: &mut Context<'_>,
        buf: &[u8],
        addr: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        match uninterrupted(|| self.socket.send_to(buf, addr, 0)) {
            Ok(sent) => Poll::Ready(Ok(sent)),
            Err(error) => self.fail(error),
        }
    }

    fn poll_recv<B: BufMut>(&self, context: &mut Context<'_>, buf: &mut B) -> Poll<io::Result<()>> {
        self.poll_recv_from(context, buf).map_ok(drop)
    }

    fn poll_recv_from<B: BufMut>(
        &self,
        _: &mut Context<'_>,
        buf: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        if !self.may_read.take() {
            return Poll::Pending;
        }
        // The kernel makes no datagram above 32 KiB unless one message needs it: a link may
        // have 64 KiB of other names alone. MSG_TRUNC returns the true length: a message
        // that was cut must never be taken for a whole one.
        let mut datagram = self.datagram.borrow_mut();
        datagram.clear();
        match self
            .socket
            .recv_from(&mut *datagram, MSG_DONTWAIT | MSG_TRUNC)
        {
            Ok((length, _)) if length > datagram.len() => {
                self.fail(io::Error::from_raw_os_error(Errno::EMSGSIZE as i32))
            }
            Ok((_, sender)) => {
                buf.put_slice(&datagram);
                Poll::Ready(Ok(sender))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.starved.set(true);
                Poll::Pending
            }
            // Nothing was read: the next round tries again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Poll::Pending,
            Err(error) => self.fail(error),
        }
    }

    fn poll_recv_from_full(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let mut buf = Vec::with_capacity(64 * 1024);
        self.poll_recv_from(context, &mut buf)
            .map_ok(|sender| (buf, sender))
    }
}

/// Repeats what a signal interrupted: a request that was, has not begun.
fn uninterrupted(send: impl Fn() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Waits until `socket` can be read.
fn wait_readable(socket: &Socket, until: Instant) -> Result<(), Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that the last wait does not spin.
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            // An error condition counts as readable: the read reports it.
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Hears of every change of an IPv6 address in the namespace where it was made.
pub(crate) struct AddressMonitor {
    socket: Socket,
}

impl AddressMonitor {
    /// RTNLGRP_IPV6_IFADDR is group 9 (linux/rtnetlink.h); a bind takes a mask.
    const IPV6_IFADDR: u32 = 1 << (9 - 1);

    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = open_socket()?;
        socket
            .bind(&SocketAddr::new(0, Self::IPV6_IFADDR))
            .map_err(|error| Error::io("listen for IPv6 addresses", &error))?;
        Ok(Self { socket })
    }

    /// Waits for the next change, or until `until`, whichever is first.
    pub(crate) fn wait(&self, until: Instant) {
        if wait_readable(&self.socket, until).is_ok() {
            // What happened does not matter: the caller looks for itself.
            let mut event = Vec::with_capacity(4096);
            while self.socket.recv(&mut event, MSG_DONTWAIT).is_ok() {
                event.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_core::DoneMessage;

    fn part(flags: u16) -> NetlinkMessage<Message> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let answer = Message::Answer(Answer::new(16, &[]));
        NetlinkMessage::new(header, NetlinkPayload::InnerMessage(answer))
    }

    fn end(code: i32) -> NetlinkMessage<Message> {
        let mut done = DoneMessage::default();
        done.code = code;
        NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Done(done))
    }

    #[test]
    fn one_marked_part_makes_a_dump_an_interrupted_one() {
        let mut reply = Reply::default();
        reply.take(part(0)).unwrap();
        assert!(!reply.interrupted);
        reply.take(part(NLM_F_DUMP_INTR)).unwrap();
        reply.take(part(0)).unwrap();
        reply.take(end(0)).unwrap();
        assert!(reply.interrupted);
        assert_eq!(reply.answers.len(), 3);
    }

    #[test]
    fn a_dump_may_fail_in_its_last_message() {
        let mut reply = Reply::default();
        assert_eq!(reply.take(end(-2)), Err(Errno::ENOENT.into()));
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_given_up() {
        let socket = open_socket().unwrap();
        let start = Instant::now();
        let until = start + Duration::from_millis(20);
        assert_eq!(wait_readable(&socket, until), Err(Errno::ETIMEDOUT));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let mut socket = PolledSocket::new(NETLINK_ROUTE).unwrap();
        // A request of struct nlmsghdr and ifinfomsg: RTM_GETLINK (18) of index 1.
        let mut request = [0; 32];
        request[0] = 32;
        request[4] = 18;
        request[6] = NLM_F_REQUEST as u8;
        request[20] = 1;
        let kernel = SocketAddr::new(0, 0);
        socket.socket_mut().send_to(&request, &kernel, 0).unwrap();
        socket.may_read.set(true);
        let mut context = Context::from_waker(noop_waker_ref());
        socket.datagram = RefCell::new(Vec::with_capacity(64));
        let mut bytes = Vec::new();
        let Poll::Ready(Err(error)) = socket.poll_recv_from(&mut context, &mut bytes) else {
            panic!("a cut message was taken for a whole one");
        };
        assert_eq!(error.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        assert_eq!(socket.failure.take(), Some(Errno::EMSGSIZE));
    }
}
