//! Tracked UDP connections to published ports. A connection that the kernel tracks goes on as it
//! began: one to a pod that is gone leads nowhere. UDP has no end, so that may last for ever.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use nftables::conntrack::{self, Connection};
use nftables::{Element, Part, Protocol, Socket};
use nix::ifaddrs::getifaddrs;

use super::layout::{FAMILIES, mappings, pod};
use super::nftables::mapping;
use crate::ports::HostPorts;

/// A published UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpPort {
    /// The address of the node; `None` for all of them.
    host_ip: Option<IpAddr>,
    /// The port of the node.
    port: u16,
    /// The pod's end.
    to: SocketAddr,
}

/// Which connections to a published port are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Connections that lead to the pod.
    ToPod,
    /// Connections that lead elsewhere.
    Elsewhere,
}

impl UdpPort {
    /// The UDP ports among `published`.
    pub fn all(published: &HostPorts) -> Vec<Self> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let Some(pod) = pod(published, family) else {
                continue;
            };
            let udp = mappings(published, family).filter(|it| it.protocol == Protocol::Udp);
            all.extend(udp.map(|mapping| Self {
                host_ip: mapping.specific_host_ip(),
                port: mapping.host_port,
                to: SocketAddr::new(pod, mapping.container_port),
            }));
        }
        all
    }

    /// The UDP port that an element maps.
    pub fn of(element: &Element) -> Option<Self> {
        let mapping = mapping(element).filter(|it| it.protocol == Protocol::Udp)?;
        let [Part::Address(pod), ..] = element.value[..] else {
            return None;
        };
        Some(Self {
            host_ip: mapping.host_ip,
            port: mapping.host_port,
            to: SocketAddr::new(pod, mapping.container_port),
        })
    }

    fn key(&self) -> (bool, u16) {
        (self.to.is_ipv4(), self.port)
    }

    fn has(&self, connection: &Connection, connections: Connections, local: &Local) -> bool {
        let destination = connection.destination.ip();
        let to_pod = connection.answers_from == self.to;
        connection.protocol == Protocol::Udp.number()
            && connection.destination.port() == self.port
            && match connections {
                // The address may have left the node before the pod did.
                Connections::ToPod => to_pod,
                // A `hostIP` may be another machine's: its connections only pass through.
                Connections::Elsewhere => {
                    let applies = self.host_ip.is_none_or(|ip| ip == destination);
                    !to_pod && applies && local.has(destination)
                }
            }
    }
}

/// Deletes tracked connections to published ports, but only to addresses of the node: others may
/// have the same port elsewhere. A failure is logged and is no error: the ports are published, or
/// are not any more.
pub fn delete_connections(socket: &Socket, published: &[UdpPort], connections: Connections) {
    if let Err(error) = try_delete(socket, published, connections) {
        cni::log(format_args!("{error:#}"));
    }
}

fn try_delete(socket: &Socket, published: &[UdpPort], connections: Connections) -> Result<()> {
    if published.is_empty() {
        return Ok(());
    }
    let local = Local(local_addresses()?);
    let mut keys: Vec<_> = published.iter().map(UdpPort::key).collect();
    keys.sort_unstable();
    keys.dedup();
    for (ipv4, port) in keys {
        let is_of_port = |it: &&UdpPort| it.key() == (ipv4, port);
        let published: Vec<_> = published.iter().filter(is_of_port).collect();
        for connection in conntrack::list_udp(socket, ipv4, port)? {
            if published
                .iter()
                .any(|it| it.has(&connection, connections, &local))
            {
                conntrack::delete(socket, &connection)?;
            }
        }
    }
    Ok(())
}

/// The addresses of the calling thread's network namespace: `ip address show`.
///
/// # Errors
/// What the kernel refuses.
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
    fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.0.contains(&ip) || is_routed_here(ip)
    }
}

/// Whether a route of type `local` delivers packets to `ip` to this node, though no interface has
/// that address: to such a destination the kernel sends from the destination itself
/// (`ip_route_output_key_hash_rcu` in net/ipv4/route.c). Nothing is sent.
fn is_routed_here(ip: IpAddr) -> bool {
    const DISCARD: u16 = 9;
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
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

    fn connection(destination: &str, answers_from: &str) -> Connection {
        Connection::udp(destination.parse().unwrap(), answers_from.parse().unwrap())
    }

    #[test]
    fn connections_of_others_to_the_same_port_elsewhere_stay() {
        let local = Local(vec!["192.0.2.1".parse().unwrap()]);
        let dns = connection("203.0.113.53:53", "203.0.113.53:53");
        assert!(!published(None).has(&dns, Connections::Elsewhere, &local));
        assert!(!published(None).has(&dns, Connections::ToPod, &local));
        // Nor do those to an address of another machine that a mapping names.
        assert!(!published(Some("203.0.113.53")).has(&dns, Connections::Elsewhere, &local));
    }

    #[test]
    fn connections_past_the_pod_are_deleted_and_those_to_it_are_not() {
        let addresses = ["192.0.2.1", "192.0.2.2"];
        let local = Local(addresses.map(|ip| ip.parse().unwrap()).into());
        let before = connection("192.0.2.1:53", "192.0.2.1:53");
        let other_pod = connection("127.0.0.1:53", "10.22.0.9:53");
        let now = connection("192.0.2.1:53", "10.22.0.2:5353");
        let all = published(None);
        assert!(all.has(&before, Connections::Elsewhere, &local));
        assert!(all.has(&other_pod, Connections::Elsewhere, &local));
        assert!(!all.has(&now, Connections::Elsewhere, &local));
        assert!(!published(Some("192.0.2.2")).has(&before, Connections::Elsewhere, &local));
        assert!(published(Some("192.0.2.1")).has(&before, Connections::Elsewhere, &local));
    }

    #[test]
    fn a_pod_that_leaves_takes_its_own_connections_along() {
        let now = connection("192.0.2.1:53", "10.22.0.2:5353");
        let other = connection("192.0.2.1:53", "10.22.0.9:53");
        let none = Local(Vec::new());
        assert!(published(None).has(&now, Connections::ToPod, &none));
        assert!(!published(None).has(&other, Connections::ToPod, &none));
    }
}
