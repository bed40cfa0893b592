//! Host ports that a new pod must not have: reserved ones, and those that no packet can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use cni::json::Json;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{Mapping, Protocol, Snat};

impl Mapping {
    /// The host address; if the mapping is for all, the unspecified address of each family. The
    /// port of each can be mapped once.
    pub fn host_ips(&self) -> Vec<IpAddr> {
        let all = || vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        self.host_ip.map_or_else(all, |ip| vec![ip])
    }

    /// Why no packet to its host address can reach a pod; `None` if one can.
    pub fn unreachable(&self, snat: Snat) -> Option<String> {
        // A packet from the node's loopback leaves for a pod only with `route_localnet` and
        // with another source address.
        let ip = self.host_ip.filter(IpAddr::is_loopback)?;
        let reason = match ip {
            IpAddr::V6(_) => "IPv6 has no route_localnet",
            IpAddr::V4(_) if snat == Snat::Off => "snat is false",
            IpAddr::V4(_) => return None,
        };
        Some(format!("hostIP {ip} leads to no pod: {reason}"))
    }
}

/// An entry of `reservedPorts`: a port or a range of ports, of one protocol or of all. In JSON:
/// `22`, `"10248-10259"`, `"53/udp"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedPorts {
    ports: RangeInclusive<u16>,
    /// `None` for all of them.
    protocol: Option<Protocol>,
}

impl ReservedPorts {
    /// Parses an entry.
    ///
    /// # Errors
    /// `"x" is no port and no range of ports` and the like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, protocol)) => (ports, Some(protocol)),
            None => (text, None),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |digits: &str| {
            let plain = digits.bytes().all(|it| it.is_ascii_digit());
            let number = digits.parse::<u16>().ok().filter(|it| plain && *it != 0);
            number.ok_or_else(|| format!("{text:?} is no port and no range of ports"))
        };
        let ports = port(first)?..=port(last)?;
        if ports.is_empty() {
            return Err(format!("{text:?} ends before it begins"));
        }
        let unknown = || format!("{text:?}: the protocol must be tcp, udp or sctp");
        let protocol = protocol.map(|name| Protocol::parse(name).ok_or_else(unknown));
        Ok(Self {
            ports,
            protocol: protocol.transpose()?,
        })
    }

    /// Whether the host port of `mapping` is one of them.
    pub fn has(&self, mapping: &Mapping) -> bool {
        self.ports.contains(&mapping.host_port)
            && self.protocol.is_none_or(|it| it == mapping.protocol)
    }
}

impl<'de> Deserialize<'de> for ReservedPorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match &Json::deserialize(deserializer)? {
            Json::Number(number) if !number.is_f64() => Self::parse(&number.to_string()),
            Json::String(text) => Self::parse(text),
            other => {
                let expected = &"a port or a range of ports";
                return Err(D::Error::invalid_type(other.unexpected(), expected));
            }
        };
        parsed.map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_port: u16, protocol: Protocol) -> Mapping {
        Mapping {
            host_ip: None,
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn a_port_a_range_and_a_protocol_are_read() {
        for (text, port, protocol, has) in [
            ("22", 22, Protocol::Tcp, true),
            ("22", 22, Protocol::Sctp, true),
            ("22", 23, Protocol::Tcp, false),
            ("10248-10259", 10259, Protocol::Udp, true),
            ("10248-10259", 10260, Protocol::Udp, false),
            ("53/udp", 53, Protocol::Udp, true),
            ("53/UDP", 53, Protocol::Tcp, false),
            ("1-65535/sctp", 9, Protocol::Sctp, true),
        ] {
            let reserved = ReservedPorts::parse(text).unwrap();
            assert_eq!(reserved.has(&mapping(port, protocol)), has, "{text} {port}");
        }
    }

    #[test]
    fn what_is_no_range_of_ports_is_refused() {
        for text in [
            "", "0", "65536", "+1", "-1", "1-", "2-1", "22/icmp", "22/", " 22", "ssh",
        ] {
            assert!(ReservedPorts::parse(text).is_err(), "{text:?}");
        }
    }
}
