//! Requests of one network namespace: built from rtnetlink's messages, sent over [`transport`].
//!
//! An answer about a link is read attribute by attribute ([`Link::read`](crate::Link)), not by
//! rtnetlink: it has about a hundred attributes, of which we need a dozen. To parse them all
//! costs more than the rest of the request, and one that a newer kernel writes differently would
//! hide the whole link. Everything else is parsed by rtnetlink ([`decode`]).

use std::{rc::Rc, time::Instant};

use netns::NetNs;
use rtnetlink::{
    packet_core::{
        NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, NetlinkDeserializable, NetlinkHeader,
        NetlinkSerializable,
    },
    packet_route::RouteNetlinkMessage,
};
use transport::{Message, Refusal, Request, Route, Socket, wait_readable};

use crate::Error;

/// How many changes go in one datagram. If all of them fail, their errors (at most 1,300 bytes
/// each, as the kernel counts) still fit into a receive buffer of the default size, 208 KiB.
const AT_ONCE: usize = 150;

/// A change: the message, and its flags.
pub(crate) type Change = (RouteNetlinkMessage, u16);

/// A socket for requests to one network namespace. Clones share it. All calls are synchronous.
///
/// It belongs to the namespace in which it was opened, wherever it is used.
#[derive(Clone, Debug)]
pub struct Netlink {
    pub(crate) socket: Rc<Socket<Route>>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self::over(Socket::open()?))
    }

    /// Opens a socket inside `netns`, to be used from here.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket.
    pub fn open_in(netns: &NetNs) -> anyhow::Result<Self> {
        Ok(Self::over(Socket::open_in(netns)?))
    }

    /// Uses a socket that is open already.
    pub(crate) fn over(socket: Socket<Route>) -> Self {
        Self {
            socket: Rc::new(socket),
        }
    }

    /// Sends a change and waits for the kernel's acknowledgement. `op` names it in errors.
    pub(crate) fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        op: impl Fn() -> String,
    ) -> Result<(), Error> {
        self.socket
            .request(&request(&message, flags), |_| ())
            .map_err(|refusal| Error::refused(op(), refusal))
    }

    /// Creates an object that must not exist, and returns what `read` finds in the kernel's
    /// description of it. Kernels before 6.2 send none.
    pub(crate) fn create<T>(
        &self,
        message: RouteNetlinkMessage,
        read: impl Fn(Message<'_>) -> Option<T>,
        op: impl Fn() -> String,
    ) -> Result<Option<T>, Error> {
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        let mut created = None;
        self.socket
            .request(&request(&message, flags), |answer| created = read(answer))
            .map_err(|refusal| Error::refused(op(), refusal))?;
        Ok(created)
    }

    /// Carries out all changes, in order, even if some fail. Returns the place in `changes` of each
    /// that failed, and the reason.
    ///
    /// # Errors
    /// The socket fails; some changes may have been made then.
    pub(crate) fn change_all(&self, changes: &[Change]) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut failed = Vec::new();
        for (part, changes) in changes.chunks(AT_ONCE).enumerate() {
            let requests: Vec<_> = changes.iter().map(|it| request(&it.0, it.1)).collect();
            let refused = self
                .socket
                .batch(&requests, requests.len() - 1, |_, _| false)
                .map_err(|errno| Error::new("change many entries at once", errno))?;
            let place = |(index, refusal)| (part * AT_ONCE + index, refusal);
            failed.extend(refused.into_iter().map(place));
        }
        Ok(failed)
    }

    /// Requests one object, and returns what `read` makes of it.
    pub(crate) fn get<T>(
        &self,
        message: RouteNetlinkMessage,
        read: impl Fn(Message<'_>) -> T,
        op: impl Fn() -> String,
    ) -> Result<T, Error> {
        self.socket
            .get(&request(&message, 0), read)
            .map_err(|refusal| Error::refused(op(), refusal))
    }

    /// Requests all objects that match `message`, and returns what `read` finds in each. Objects
    /// that rtnetlink cannot parse are left out.
    pub(crate) fn dump<T, I: IntoIterator<Item = T>>(
        &self,
        message: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> I,
        op: impl Fn() -> String,
    ) -> Result<Vec<T>, Error> {
        let read = |answer: Message<'_>| decode(answer).map(&read).into_iter().flatten();
        self.dump_undecoded(message, read, op)
    }

    /// The same, with answers that rtnetlink has not parsed.
    pub(crate) fn dump_undecoded<T, I: IntoIterator<Item = T>>(
        &self,
        message: RouteNetlinkMessage,
        read: impl Fn(Message<'_>) -> I,
        op: impl Fn() -> String,
    ) -> Result<Vec<T>, Error> {
        let dump = self
            .socket
            .dump(&request(&message, 0), read)
            .map_err(|refusal| Error::refused(op(), refusal))?;
        if dump.interrupted {
            cni::log(format_args!(
                "{}: interrupted by changes again and again, going on with what was read",
                op()
            ));
        }
        Ok(dump.entries)
    }
}

fn request(message: &RouteNetlinkMessage, flags: u16) -> Request<Route> {
    let mut body = vec![0; NetlinkSerializable::buffer_len(message)];
    message.serialize(&mut body);
    Request::new(message.message_type(), flags, body)
}

/// The message as rtnetlink reads it; `None` where it does not understand something.
pub(crate) fn decode(message: Message<'_>) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = message.kind;
    RouteNetlinkMessage::deserialize(&header, message.body).ok()
}

/// Accepts that what was to be deleted does not exist.
pub(crate) fn unless_absent(deleted: Result<(), Error>) -> Result<(), Error> {
    match deleted {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// Receives an event for each change of an IPv6 address in the namespace where it was opened.
pub(crate) struct AddressMonitor(Socket<Route>);

impl AddressMonitor {
    pub(crate) fn open() -> Result<Self, Error> {
        /// linux/rtnetlink.h
        const RTNLGRP_IPV6_IFADDR: u32 = 9;
        let socket = Socket::open()?;
        socket
            .set_membership(RTNLGRP_IPV6_IFADDR, true)
            .map_err(|errno| Error::new("listen for IPv6 addresses", errno))?;
        Ok(Self(socket))
    }

    /// Waits for the next change, or until `until`. It does not report the change: the caller
    /// queries the addresses.
    pub(crate) fn wait(&self, until: Instant) {
        use std::os::fd::AsFd;
        if wait_readable([self.0.as_fd()], until).is_ok() {
            while self.0.try_receive(|_| ()).is_ok_and(|received| received) {}
        }
    }
}
