//! Connections of UDP that the kernel remembers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;

use crate::error::Error;
use crate::family::Protocol;
use crate::message::{self, Attributes, Head};
use crate::socket::Socket;

/// A published UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpPort {
    /// The address of the node; `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// The port of the node.
    pub port: u16,
    /// The pod's end.
    pub to: SocketAddr,
}

/// Which connections to a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that lead to the pod.
    To,
    /// Those that lead elsewhere.
    NotTo,
}

// linux/netfilter/nfnetlink_conntrack.h
const CT: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
const GET: u16 = CT | 1;
const DELETE: u16 = CT | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
/// net/netfilter/nf_internals.h: protocol, destination port.
const FILTER_FLAGS: u32 = 1 << 3 | 1 << 5;

/// Deletes connections to published ports:
/// `conntrack -D -p udp --orig-port-dst PORT`, but only those of `which`, and
/// only to addresses of the node: others may have the same port elsewhere.
pub fn flush(socket: &Socket, published: &[UdpPort], which: Which) -> Result<()> {
    if published.is_empty() {
        return Ok(());
    }
    let local = Local::list()?;
    let mut ports: Vec<_> = published
        .iter()
        .map(|it| (it.to.is_ipv4(), it.port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    for (ipv4, port) in ports {
        let wanted: Vec<_> = published
            .iter()
            .filter(|it| (it.to.is_ipv4(), it.port) == (ipv4, port))
            .collect();
        for answer in list(socket, ipv4, port)? {
            let Some(flow) = Flow::read(&answer) else {
                continue;
            };
            if wanted.iter().any(|it| flow.is_hit(it, which, &local)) {
                delete(socket, ipv4, &answer)?;
            }
        }
    }
    Ok(())
}

/// Both ends that matter of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    protocol: u8,
    /// Where the client sends to.
    asked: SocketAddr,
    /// Who answers.
    answers: SocketAddr,
}

impl Flow {
    fn read(connection: &[u8]) -> Option<Self> {
        let protocol = message::find_in(connection, &[TUPLE_ORIG, TUPLE_PROTO, PROTO_NUM])?;
        Some(Self {
            protocol: *protocol.first()?,
            asked: end(connection, TUPLE_ORIG, [2, 4], PROTO_DST_PORT)?,
            answers: end(connection, TUPLE_REPLY, [1, 3], PROTO_SRC_PORT)?,
        })
    }

    fn is_hit(&self, published: &UdpPort, which: Which, local: &Local) -> bool {
        let asked = self.asked.ip();
        let to_pod = self.answers == published.to;
        self.protocol == Protocol::Udp.number()
            && self.asked.port() == published.port
            && match which {
                // The address may have left the node before the pod did.
                Which::To => to_pod,
                // A `hostIP` may be another machine's: its connections only pass through.
                Which::NotTo => {
                    !to_pod && published.host_ip.is_none_or(|ip| ip == asked) && local.has(asked)
                }
            }
    }
}

fn end(connection: &[u8], tuple: u16, ip: [u16; 2], port: u16) -> Option<SocketAddr> {
    let tuple = message::find(connection, tuple)?;
    let addresses = message::find(tuple, TUPLE_IP)?;
    let v4 = message::find(addresses, ip[0]).and_then(|it| <[u8; 4]>::try_from(it).ok());
    let v6 = message::find(addresses, ip[1]).and_then(|it| <[u8; 16]>::try_from(it).ok());
    let ip = v4.map(IpAddr::from).or(v6.map(IpAddr::from))?;
    let port = message::find_in(tuple, &[TUPLE_PROTO, port])?;
    Some(SocketAddr::new(
        ip,
        u16::from_be_bytes(port.try_into().ok()?),
    ))
}

/// The connections to `port`, whatever the address. Kernels before 5.8 do not
/// filter: the caller looks again.
fn list(socket: &Socket, ipv4: bool, port: u16) -> Result<Vec<Vec<u8>>, Error> {
    let protocol = Attributes::new()
        .bytes(PROTO_NUM, &[Protocol::Udp.number()])
        .bytes(PROTO_DST_PORT, &port.to_be_bytes());
    let flags = Attributes::new().bytes(FILTER_ORIG_FLAGS, &FILTER_FLAGS.to_ne_bytes());
    let which = Attributes::new()
        .nest(TUPLE_ORIG, &Attributes::new().nest(TUPLE_PROTO, &protocol))
        .nest(FILTER, &flags);
    socket
        .dump(head(GET, ipv4), &which)
        .map_err(|errno| Error::new(format!("list connections to udp port {port}"), errno))
}

/// Deletes one connection, by its tuple, number and zone as they were listed.
fn delete(socket: &Socket, ipv4: bool, connection: &[u8]) -> Result<(), Error> {
    let mut which = Attributes::new();
    for (kind, value) in message::attributes(connection) {
        which = match kind {
            TUPLE_ORIG => which.bytes(kind | NESTED, value),
            ID | ZONE => which.bytes(kind, value),
            _ => which,
        };
    }
    match socket.request(head(DELETE, ipv4), &which) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::new("delete a udp connection", errno)),
    }
}

const NESTED: u16 = 0x8000;

fn head(kind: u16, ipv4: bool) -> Head {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    Head {
        kind,
        flags: 0,
        family: family as u8,
        resource: 0,
    }
}

/// The addresses of the calling thread's network namespace: `ip address show`.
///
/// # Errors
/// The kernel cannot be asked.
pub fn local_addresses() -> Result<Vec<IpAddr>> {
    let interfaces = getifaddrs().context("list addresses")?;
    let addresses = interfaces.filter_map(|it| it.address);
    let addresses = addresses.filter_map(|it| {
        let v4 = it.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        v4.or_else(|| it.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())))
    });
    Ok(addresses.collect())
}

/// The addresses of the node.
struct Local(Vec<IpAddr>);

impl Local {
    fn list() -> Result<Self> {
        Ok(Self(local_addresses()?))
    }

    fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.0.contains(&ip) || is_routed_here(ip)
    }
}

/// Whether a route of type `local` has the node take what is sent to `ip`, though no
/// interface has that address: to such a destination the kernel sends from the destination
/// itself (`ip_route_output_key_hash_rcu` in net/ipv4/route.c). Nothing is sent.
fn is_routed_here(ip: IpAddr) -> bool {
    const DISCARD: u16 = 9;
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, DISCARD))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(host_ip: Option<&str>) -> UdpPort {
        UdpPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            port: 53,
            to: "10.22.0.2:5353".parse().unwrap(),
        }
    }

    fn flow(asked: &str, answers: &str) -> Flow {
        Flow {
            protocol: 17,
            asked: asked.parse().unwrap(),
            answers: answers.parse().unwrap(),
        }
    }

    #[test]
    fn connections_of_others_to_the_same_port_elsewhere_stay() {
        let local = Local(vec!["192.0.2.1".parse().unwrap()]);
        let dns = flow("203.0.113.53:53", "203.0.113.53:53");
        assert!(!dns.is_hit(&published(None), Which::NotTo, &local));
        assert!(!dns.is_hit(&published(None), Which::To, &local));
        // Nor do those to an address of another machine that a mapping names.
        assert!(!dns.is_hit(&published(Some("203.0.113.53")), Which::NotTo, &local));
    }

    #[test]
    fn what_went_past_the_pod_is_flushed_and_what_goes_to_it_is_not() {
        let local = Local(
            ["192.0.2.1", "192.0.2.2"]
                .map(|ip| ip.parse().unwrap())
                .into(),
        );
        let before = flow("192.0.2.1:53", "192.0.2.1:53");
        let other_pod = flow("127.0.0.1:53", "10.22.0.9:53");
        let now = flow("192.0.2.1:53", "10.22.0.2:5353");
        let all = published(None);
        assert!(before.is_hit(&all, Which::NotTo, &local));
        assert!(other_pod.is_hit(&all, Which::NotTo, &local));
        assert!(!now.is_hit(&all, Which::NotTo, &local));
        assert!(!before.is_hit(&published(Some("192.0.2.2")), Which::NotTo, &local));
        assert!(before.is_hit(&published(Some("192.0.2.1")), Which::NotTo, &local));
    }

    #[test]
    fn a_pod_that_leaves_takes_its_own_connections_along() {
        let now = flow("192.0.2.1:53", "10.22.0.2:5353");
        let other = flow("192.0.2.1:53", "10.22.0.9:53");
        assert!(now.is_hit(&published(None), Which::To, &Local(Vec::new())));
        assert!(!other.is_hit(&published(None), Which::To, &Local(Vec::new())));
    }
}
