//! Addresses as configurations and results write them, their networks, and their numbers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An address with its prefix, `10.1.0.2/24`; the host bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(pub IpNetwork);

impl Cidr {
    /// The address, host bits included.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// The length of the prefix in bits.
    pub fn prefix(self) -> u8 {
        self.0.prefix()
    }

    /// Its network: the same without host bits.
    pub fn network(self) -> Self {
        Self(network_of(self.0))
    }

    /// Whether this is 0.0.0.0/0 or ::/0.
    pub fn is_default(self) -> bool {
        self.prefix() == 0 && self.ip().is_unspecified()
    }
}

impl FromStr for Cidr {
    type Err = String;

    /// `ipnetwork` also accepts a netmask after the slash; CIDR notation does not.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid CIDR address: {text}");
        let (ip, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let ip: IpAddr = ip.parse().map_err(|_| invalid())?;
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let prefix = prefix.parse().map_err(|_| invalid())?;
        IpNetwork::new(ip, prefix).map(Self).map_err(|_| invalid())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip(), self.prefix())
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One network or a list of networks; an empty text is an empty list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cidrs(pub Vec<Cidr>);

impl<'de> Deserialize<'de> for Cidrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Cidrs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a network, or a list of networks")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cidrs, E> {
                if text.is_empty() {
                    return Ok(Cidrs::default());
                }
                let one = text.parse().map_err(E::custom)?;
                Ok(Cidrs(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Cidrs, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(Cidrs(all))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

/// The network of an address: the same without host bits.
pub fn network_of(address: IpNetwork) -> IpNetwork {
    // The prefix is valid, as it is that of a network already.
    IpNetwork::new(address.network(), address.prefix()).unwrap_or(address)
}

/// Whether an address is alone in its network: /32, or /128.
pub fn is_single(address: IpNetwork) -> bool {
    u32::from(address.prefix()) == width(address.ip())
}

/// Whether this is a link-local address of IPv6: it means nothing without an interface.
pub fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// Whether the kernel must be told that the gateway `gw` is on the link (`ip route … onlink`), because
/// none of the interface's `networks` contains it: some providers route single addresses (/32) so.
pub fn needs_onlink(gw: IpAddr, mut networks: impl Iterator<Item = IpNetwork>) -> bool {
    !is_link_local_v6(gw) && !networks.any(|network| network.contains(gw))
}

/// How many bits an address has.
pub fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// An address as a number.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address with this number, of the family of `like`.
pub fn numbered(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // Numbers of IPv4 addresses have 32 bits, so nothing is lost.
        IpAddr::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

/// Parses an address; the text of the error is the Go plugins'.
pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>()
        .map(|ip| ip.to_canonical())
        .map_err(|_| format!("invalid IP address: {text}"))
}

/// For `#[serde(deserialize_with)]`: an address, unset when the text is empty.
pub fn optional_ip<'de, D: Deserializer<'de>>(d: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(None);
    }
    parse_ip(&text).map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_keeps_its_host_bits() {
        let cidr: Cidr = "10.1.2.3/24".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.1.2.3/24");
        assert_eq!(
            "FD00::2/64".parse::<Cidr>().unwrap().to_string(),
            "fd00::2/64"
        );
    }

    #[test]
    fn invalid_cidrs_are_refused() {
        for text in [
            "10.1.2.3",
            "10.1.2.3/33",
            "10.1.2.3/255.255.255.0",
            "x/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "",
        ] {
            assert_eq!(
                text.parse::<Cidr>(),
                Err(format!("invalid CIDR address: {text}"))
            );
        }
    }
}
