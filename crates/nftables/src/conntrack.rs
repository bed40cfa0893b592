//! Connections that the kernel tracks (ctnetlink): lists and deletes them.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use nix::libc;
use transport::{Error, attributes, find, find_in};

use crate::{Attributes, Protocol, Request, Socket};

// linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// net/netfilter/nf_internals.h: protocol, destination port.
const FILTER_FLAGS: u32 = 1 << 3 | 1 << 5;

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its transport protocol, by its number.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The client sends to this address.
    pub destination: SocketAddr,
    /// The answers come from this address: another one where the destination is translated.
    pub answers_from: SocketAddr,
    /// The attributes that identify it.
    identity: Attributes,
}

impl Connection {
    /// A connection that the kernel does not have: for tests of code that compares them.
    pub fn udp(destination: SocketAddr, answers_from: SocketAddr) -> Self {
        Self {
            protocol: Protocol::Udp.number(),
            client: SocketAddr::new(destination.ip(), 0),
            destination,
            answers_from,
            identity: Attributes::new(),
        }
    }

    fn read(answer: &[u8]) -> Option<Self> {
        let mut identity = Attributes::new();
        for (kind, value) in attributes(answer) {
            identity = match kind {
                CTA_TUPLE_ORIG => identity.bytes(kind | NLA_F_NESTED, value),
                CTA_ID | CTA_ZONE => identity.bytes(kind, value),
                _ => identity,
            };
        }
        let original = find(answer, CTA_TUPLE_ORIG)?;
        let reply = find(answer, CTA_TUPLE_REPLY)?;
        let (destination, source) = (
            [CTA_IP_V4_DST, CTA_IP_V6_DST],
            [CTA_IP_V4_SRC, CTA_IP_V6_SRC],
        );
        Some(Self {
            protocol: *find_in(original, &[CTA_TUPLE_PROTO, CTA_PROTO_NUM])?.first()?,
            client: end(original, source, CTA_PROTO_SRC_PORT)?,
            destination: end(original, destination, CTA_PROTO_DST_PORT)?,
            answers_from: end(reply, source, CTA_PROTO_SRC_PORT)?,
            identity,
        })
    }
}

const NLA_F_NESTED: u16 = 0x8000;

/// One end of a tuple.
fn end(tuple: &[u8], [v4, v6]: [u16; 2], port: u16) -> Option<SocketAddr> {
    let addresses = find(tuple, CTA_TUPLE_IP)?;
    let v4 = find(addresses, v4).and_then(|it| <[u8; 4]>::try_from(it).ok());
    let v6 = find(addresses, v6).and_then(|it| <[u8; 16]>::try_from(it).ok());
    let ip = v4.map(IpAddr::from).or(v6.map(IpAddr::from))?;
    let port = find_in(tuple, &[CTA_TUPLE_PROTO, port])?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some(SocketAddr::new(ip, port))
}

/// The UDP connections to `port` of any address: `conntrack -L -p udp --orig-port-dst PORT`. Kernels
/// before 5.8 do not filter: the result then contains other connections.
///
/// # Errors
/// What the kernel refuses.
pub fn list_udp(socket: &Socket, ipv4: bool, port: u16) -> Result<Vec<Connection>, Error> {
    let protocol = Attributes::new()
        .bytes(CTA_PROTO_NUM, &[Protocol::Udp.number()])
        .bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
    let tuple = Attributes::new().nest(CTA_TUPLE_PROTO, &protocol);
    let flags = Attributes::new().bytes(CTA_FILTER_ORIG_FLAGS, &FILTER_FLAGS.to_ne_bytes());
    let which = Attributes::new()
        .nest(CTA_TUPLE_ORIG, &tuple)
        .nest(CTA_FILTER, &flags);
    socket
        .dump(&request(IPCTNL_MSG_CT_GET, ipv4, &which), Connection::read)
        .map_err(|refusal| Error::refused(format!("list connections to udp port {port}"), refusal))
}

/// All connections of a family that have ports: `conntrack -L`. Not for the hot path.
///
/// # Errors
/// What the kernel refuses.
pub fn list(socket: &Socket, ipv4: bool) -> Result<Vec<Connection>, Error> {
    let request = request(IPCTNL_MSG_CT_GET, ipv4, &Attributes::new());
    socket
        .dump(&request, Connection::read)
        .map_err(|refusal| Error::refused("list connections", refusal))
}

/// Deletes a connection: `conntrack -D`. A connection that no longer exists is no error.
///
/// # Errors
/// The kernel refuses.
pub fn delete(socket: &Socket, connection: &Connection) -> Result<(), Error> {
    let ipv4 = connection.destination.is_ipv4();
    let request = request(IPCTNL_MSG_CT_DELETE, ipv4, &connection.identity);
    match socket.get(&request, |_| Some(())) {
        Err(refusal) if refusal.errno != Errno::ENOENT => {
            Err(Error::refused("delete a udp connection", refusal))
        }
        _ => Ok(()),
    }
}

fn request(message: u16, ipv4: bool, attributes: &Attributes) -> Request {
    let kind = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | message;
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    Request::netfilter(kind, 0, [family as u8, 0], attributes)
}
