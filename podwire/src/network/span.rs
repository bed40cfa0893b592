//! Addresses as numbers: intervals of one family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::address::number;
use ipnetwork::IpNetwork;

/// The addresses from the first to the last one, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whether they are IPv4.
    pub is_ipv4: bool,
    /// The first one.
    pub first: u128,
    /// The last one.
    pub last: u128,
}

impl Span {
    /// All addresses of a network.
    pub fn of(network: IpNetwork) -> Self {
        Self::between(network.network(), network.broadcast())
    }

    /// The addresses of one family from `first` to `last`.
    pub fn between(first: IpAddr, last: IpAddr) -> Self {
        Self {
            is_ipv4: first.is_ipv4(),
            first: number(first),
            last: number(last),
        }
    }

    /// The addresses of a network that its members can have: not the network's own, which routers
    /// answer in IPv6, nor the broadcast address of IPv4.
    pub fn usable(network: IpNetwork) -> Self {
        let all = Self::of(network);
        Self {
            first: all.first + 1,
            last: all.last - u128::from(all.is_ipv4),
            ..all
        }
    }

    /// Whether an address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.is_ipv4 == other.is_ipv4 && self.first <= other.last && other.first <= self.last
    }

    /// Whether `ip` is one of them.
    pub fn contains(self, ip: IpAddr) -> bool {
        self.overlaps(Self::between(ip, ip))
    }

    /// The addresses in both; `None` if there are none.
    pub fn within(self, other: Self) -> Option<Self> {
        self.overlaps(other).then_some(Self {
            first: self.first.max(other.first),
            last: self.last.min(other.last),
            ..self
        })
    }

    /// How many there are.
    pub fn count(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// The address with this number.
    pub fn address(self, number: u128) -> IpAddr {
        if self.is_ipv4 {
            Ipv4Addr::from(number as u32).into()
        } else {
            Ipv6Addr::from(number).into()
        }
    }

    /// The first address and the last one.
    pub fn ends(self) -> [IpAddr; 2] {
        [self.first, self.last].map(|it| self.address(it))
    }

    /// What is left without some addresses: intervals in ascending order.
    pub fn without(self, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<Self> {
        let mut holes: Vec<_> = addresses
            .into_iter()
            .filter(|it| self.contains(*it))
            .map(number)
            .collect();
        holes.sort_unstable();
        holes.dedup();
        let (mut left, mut next) = (Vec::new(), self.first);
        for hole in holes {
            if next < hole {
                left.push(Self {
                    first: next,
                    last: hole - 1,
                    ..self
                });
            }
            next = hole + 1;
        }
        if next <= self.last {
            left.push(Self {
                first: next,
                ..self
            });
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Span {
        Span::of(text.parse().unwrap())
    }

    #[test]
    fn networks_overlap_in_one_family_only() {
        assert!(span("10.1.0.0/16").overlaps(span("10.1.2.0/24")));
        assert!(!span("10.1.0.0/24").overlaps(span("10.1.1.0/24")));
        assert!(!span("0.0.0.0/0").overlaps(span("::/0")));
        assert_eq!(span("::/0").count(), u128::MAX);
    }

    #[test]
    fn addresses_are_cut_out() {
        let ip = |last: u8| IpAddr::from([10, 1, 0, last]);
        let left =
            Span::usable("10.1.0.0/29".parse().unwrap()).without([ip(6), ip(1), ip(3), ip(99)]);
        let ends: Vec<_> = left.iter().map(|it| it.ends()).collect();
        assert_eq!(ends, [[ip(2), ip(2)], [ip(4), ip(5)]]);
    }
}
