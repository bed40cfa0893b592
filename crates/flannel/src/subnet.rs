//! The subnets of a node: in the store they are the key of its lease.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// The subnets of a node's pods. As a key: `10.5.3.0-24`, and with IPv6 `10.5.3.0-24&fd00:5:3::-64`.
/// flannel has no key without IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    /// Its IPv4 subnet.
    pub v4: Ipv4Network,
    /// Its IPv6 subnet, in a network of both families.
    pub v6: Option<Ipv6Network>,
}

impl Subnet {
    /// What stands for a node that has no subnet of its own: its address in the underlay.
    pub fn host(ip: Ipv4Addr) -> Self {
        Self {
            v4: ip.into(),
            v6: None,
        }
    }

    /// Whether a subnet of one is in a subnet of the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        let v6 = match (self.v6, other.v6) {
            (Some(ours), Some(theirs)) => {
                ours.contains(theirs.network()) || theirs.contains(ours.network())
            }
            _ => false,
        };
        self.v4.contains(other.v4.network()) || other.v4.contains(self.v4.network()) || v6
    }

    /// Both subnets, as far as they are there.
    pub fn all(&self) -> impl Iterator<Item = IpNetwork> {
        let v6 = self.v6.map(IpNetwork::V6);
        std::iter::once(IpNetwork::V4(self.v4)).chain(v6)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.network(), self.v4.prefix())?;
        if let Some(v6) = self.v6 {
            write!(f, "&{}-{}", v6.network(), v6.prefix())?;
        }
        Ok(())
    }
}

impl FromStr for Subnet {
    type Err = String;

    /// Reads the last part of a key.
    fn from_str(text: &str) -> Result<Self, String> {
        let odd = || format!("{text:?} is not ADDRESS-LENGTH or ADDRESS-LENGTH&ADDRESS-LENGTH");
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let v4 = network(v4)
            .and_then(|(ip, length): (Ipv4Addr, u8)| Ipv4Network::new(ip, length).ok())
            .and_then(|it| Ipv4Network::new(it.network(), it.prefix()).ok());
        let v6 = v6.map(|v6| {
            network(v6)
                .and_then(|(ip, length): (Ipv6Addr, u8)| Ipv6Network::new(ip, length).ok())
                .and_then(|it| Ipv6Network::new(it.network(), it.prefix()).ok())
                .ok_or_else(odd)
        });
        Ok(Self {
            v4: v4.ok_or_else(odd)?,
            v6: v6.transpose()?,
        })
    }
}

fn network<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (ip, length) = text.rsplit_once('-')?;
    Some((ip.parse().ok()?, length.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flannels() {
        for key in ["10.5.52.0-24", "10.5.52.0-24&fd00:1::-64"] {
            assert_eq!(key.parse::<Subnet>().unwrap().to_string(), key);
        }
        for odd in [
            "",
            "10.5.52.0",
            "10.5.52.0-33",
            "fd00::-64",
            "10.5.52.0-24&",
            "10.5.52.0/24",
        ] {
            assert!(odd.parse::<Subnet>().is_err(), "{odd}");
        }
    }

    #[test]
    fn subnets_overlap_in_either_family() {
        let subnet = |text: &str| text.parse::<Subnet>().unwrap();
        let ours = subnet("10.5.1.0-24&fd00:1::-64");
        assert!(ours.overlaps(&subnet("10.5.0.0-16")));
        assert!(ours.overlaps(&subnet("10.6.0.0-16&fd00:1::-48")));
        assert!(!ours.overlaps(&subnet("10.5.2.0-24&fd00:2::-64")));
    }
}
