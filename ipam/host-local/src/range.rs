//! Ranges of addresses, checked once.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use anyhow::Result;
use cni::Cidr;
use cni::address::{number, numbered, width};
use cni::faults::{Checks, Fault, Faults};

use crate::conf::RangeKeys;

/// Addresses of one subnet, from `start` to `end`, both inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: Cidr,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

/// Ranges of one family that do not overlap: an ADD gets one address from all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl Range {
    /// Checks `keys`. The texts of the errors are the Go plugin's.
    ///
    /// # Errors
    /// The key at fault and why.
    fn new(keys: &RangeKeys) -> Result<Self, (&'static str, String)> {
        let Some(subnet) = keys.subnet else {
            return Err(("subnet", "range without a subnet".to_owned()));
        };
        let (bits, prefix) = (width(subnet.ip()), subnet.prefix());
        if u32::from(prefix) + 2 > bits {
            let why = format!("Network {subnet} too small to allocate from");
            return Err(("subnet", why));
        }
        let (network, last) = (subnet.0.network(), subnet.0.broadcast());
        if subnet.ip() != network {
            let why = format!(
                "Network has host bits set. For a subnet mask of length {prefix} the network address is {network}"
            );
            return Err(("subnet", why));
        }
        if network.is_ipv6() && network.is_multicast() {
            let why = format!("no interface can have an address of {subnet}");
            return Err(("subnet", why));
        }
        let first = numbered(number(network) + 1, network);
        // IPv6 has no broadcast address.
        let last = numbered(number(last) - u128::from(last.is_ipv4()), network);

        let inside = |ip: IpAddr| same_family(ip, network) && subnet.0.contains(ip);
        let outside = |key, what, ip| Err((key, format!("{what} {ip} not in network {subnet}")));
        if let Some(start) = keys.range_start {
            let behind_end = keys.range_end.is_some_and(|end| start > end);
            if !inside(start) || behind_end {
                return outside("rangeStart", "RangeStart", start);
            }
        }
        let start = keys.range_start.unwrap_or(first);
        if let Some(end) = keys.range_end
            && (!inside(end) || end < start)
        {
            return outside("rangeEnd", "RangeEnd", end);
        }
        let end = keys.range_end.unwrap_or(last);
        if start > end {
            return outside("rangeStart", "RangeStart", start);
        }
        Ok(Self {
            subnet,
            start,
            end,
            gateway: keys.gateway.unwrap_or(first),
        })
    }

    /// Whether `ip` lies between the start and the end.
    pub fn contains(&self, ip: IpAddr) -> bool {
        same_family(ip, self.start) && self.start <= ip && ip <= self.end
    }

    /// The gateway of the subnet.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// `ip` with the prefix of the subnet.
    pub fn cidr(&self, ip: IpAddr) -> Result<Cidr> {
        Ok(Cidr(ipnetwork::IpNetwork::new(ip, self.subnet.prefix())?))
    }

    /// Whether `ip` can be the address of a host of the subnet.
    fn is_host(&self, ip: IpAddr) -> bool {
        let subnet = self.subnet.0;
        let inside = same_family(ip, subnet.network()) && subnet.contains(ip);
        let is_broadcast = ip.is_ipv4() && ip == subnet.broadcast();
        inside && ip != subnet.network() && !is_broadcast
    }

    fn overlaps(&self, other: &Self) -> bool {
        same_family(self.start, other.start) && self.start <= other.end && other.start <= self.end
    }

    fn numbers(&self) -> RangeInclusive<u128> {
        number(self.start)..=number(self.end)
    }

    fn total(&self) -> u128 {
        let (start, end) = self.numbers().into_inner();
        end - start + 1 - u128::from(self.contains(self.gateway))
    }

    /// The addresses of `span` without the gateway.
    fn addresses(&self, span: RangeInclusive<u128>) -> impl Iterator<Item = IpAddr> {
        span.map(|number| numbered(number, self.start))
            .filter(|ip| *ip != self.gateway)
    }
}

impl RangeSet {
    /// Checks the ranges: one family, no overlaps.
    ///
    /// # Errors
    /// Code 7, each fault with its key in the set: `[1].rangeStart`.
    pub fn new(keys: &[RangeKeys]) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let mut ranges: Vec<Range> = Vec::new();
        for (index, keys) in keys.iter().enumerate() {
            let range = Range::new(keys);
            let fault = |(key, why)| Fault::new(format!("[{index}].{key}"), why);
            ranges.extend(checks.take(range.map_err(fault)));
        }
        if keys.is_empty() {
            checks.add(Fault::new("", "empty range set"));
        }
        // The index of a range among those without a fault is not that of its keys.
        if ranges.len() == keys.len() {
            check_together(&ranges, &mut checks);
        }
        checks.finish(|| Some(Self(ranges)))
    }

    /// The subnet of each range, and its gateway.
    pub fn subnets(&self) -> impl Iterator<Item = (Cidr, IpAddr)> {
        self.0.iter().map(|range| (range.subnet, range.gateway))
    }

    /// The first and the last address of each range.
    pub fn bounds(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.0.iter().map(|range| (range.start, range.end))
    }

    /// Whether an ADD gets an IPv4 address from this set.
    pub fn is_ipv4(&self) -> bool {
        self.0[0].start.is_ipv4()
    }

    /// How many addresses can be handed out.
    pub fn total(&self) -> u128 {
        self.0.iter().map(Range::total).sum()
    }

    /// Whether `ip` lies in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.range_of(ip).is_some()
    }

    /// The range in which `ip` lies.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(ip))
    }

    /// Whether `ip` is the gateway of one of the ranges.
    pub fn has_gateway(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == ip)
    }

    /// The range whose subnet has `ip` as the address of a host, although `ip` lies in no range.
    pub fn outside(&self, ip: IpAddr) -> Option<&Range> {
        if self.contains(ip) {
            return None;
        }
        self.0.iter().find(|range| range.is_host(ip))
    }

    /// Whether an address lies in both sets.
    pub fn overlaps(&self, other: &Self) -> bool {
        let with_other = |range: &Range| other.0.iter().any(|theirs| range.overlaps(theirs));
        self.0.iter().any(with_other)
    }

    /// Every address that can be handed out, once: from the one after `last` through all ranges
    /// to `last` itself; from the start of the first range if no range has `last`. The
    /// addresses are computed lazily: an IPv6 range may have 2^64.
    pub fn round_robin(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let at = last.and_then(|last| {
            let index = self.0.iter().position(|range| range.contains(last))?;
            Some((index, number(last)))
        });
        let index = at.map_or(0, |(index, _)| index);
        let (before, after) = (&self.0[..index], &self.0[index + 1..]);
        let range = &self.0[index];
        let (start, end) = range.numbers().into_inner();
        let (head, tail) = match at {
            None => (Some(start..=end), None),
            Some((_, last)) => ((last < end).then(|| last + 1..=end), Some(start..=last)),
        };
        let part = |span: Option<_>| span.into_iter().flat_map(|span| range.addresses(span));
        let others = after.iter().chain(before);
        part(head)
            .chain(others.flat_map(|range| range.addresses(range.numbers())))
            .chain(part(tail))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

fn check_together(ranges: &[Range], checks: &mut Checks) {
    let behind = |index| ranges.iter().enumerate().skip(index + 1);
    for (index, _) in behind(0).filter(|(_, it)| !same_family(it.start, ranges[0].start)) {
        checks.add(Fault::new(format!("[{index}]"), "mixed address families"));
    }
    for (index, range) in ranges.iter().enumerate() {
        for (other_index, other) in behind(index).filter(|(_, other)| range.overlaps(other)) {
            let why = format!("subnets {range} and {other} overlap");
            checks.add(Fault::new(format!("[{other_index}]"), why));
        }
    }
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(subnet: &str, start: &str, end: &str) -> RangeKeys {
        let ip = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        RangeKeys {
            subnet: Some(subnet.parse().unwrap()),
            range_start: ip(start),
            range_end: ip(end),
            gateway: None,
        }
    }

    fn range(subnet: &str, start: &str, end: &str) -> String {
        match Range::new(&keys(subnet, start, end)) {
            Ok(range) => format!("{range} gateway {}", range.gateway()),
            Err((_, why)) => why,
        }
    }

    #[test]
    fn defaults_leave_out_the_network_and_the_broadcast_address() {
        for (subnet, expected) in [
            ("10.0.0.0/24", "10.0.0.1-10.0.0.254 gateway 10.0.0.1"),
            ("10.0.0.4/30", "10.0.0.5-10.0.0.6 gateway 10.0.0.5"),
            ("0.0.0.0/0", "0.0.0.1-255.255.255.254 gateway 0.0.0.1"),
            ("fd00::/126", "fd00::1-fd00::3 gateway fd00::1"),
            (
                "::/0",
                "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff gateway ::1",
            ),
        ] {
            assert_eq!(range(subnet, "", ""), expected);
        }
    }

    #[test]
    fn faults_have_the_texts_of_the_go_plugin() {
        let outside = "RangeStart 10.0.1.0 not in network 10.0.0.0/24";
        assert_eq!(range("10.0.0.0/24", "10.0.1.0", ""), outside);
        for (start, end, expected) in [
            (
                "",
                "10.0.1.0",
                "RangeEnd 10.0.1.0 not in network 10.0.0.0/24",
            ),
            (
                "",
                "10.0.0.0",
                "RangeEnd 10.0.0.0 not in network 10.0.0.0/24",
            ),
            (
                "10.0.0.9",
                "10.0.0.5",
                "RangeStart 10.0.0.9 not in network 10.0.0.0/24",
            ),
            (
                "10.0.0.255",
                "",
                "RangeStart 10.0.0.255 not in network 10.0.0.0/24",
            ),
            (
                "fd00::1",
                "",
                "RangeStart fd00::1 not in network 10.0.0.0/24",
            ),
        ] {
            assert_eq!(range("10.0.0.0/24", start, end), expected);
        }
        for subnet in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127"] {
            let expected = format!("Network {subnet} too small to allocate from");
            assert_eq!(range(subnet, "", ""), expected);
        }
        assert_eq!(
            range("10.0.0.9/24", "", ""),
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0"
        );
    }

    #[test]
    fn a_set_is_one_family_without_overlaps() {
        let set = |keys: &[RangeKeys]| match RangeSet::new(keys) {
            Ok(set) => set.to_string(),
            Err(faults) => format!("{}: {}", faults.first().key, faults.first().error),
        };
        let low = keys("10.0.0.0/24", "", "10.0.0.9");
        let high = keys("10.0.0.0/24", "10.0.0.10", "");
        assert_eq!(set(&[]), ": empty range set");
        assert_eq!(
            set(&[low.clone(), keys("fd00::/64", "", "")]),
            "[1]: mixed address families"
        );
        assert_eq!(
            set(&[low.clone(), high]),
            "10.0.0.1-10.0.0.9,10.0.0.10-10.0.0.254"
        );
        assert_eq!(
            set(&[low, keys("10.0.0.0/16", "", "")]),
            "[1]: subnets 10.0.0.1-10.0.0.9 and 10.0.0.1-10.0.255.254 overlap"
        );
    }

    #[test]
    fn round_robin_visits_every_address_once_and_the_last_one_last() {
        let set = RangeSet::new(&[
            keys("10.0.0.0/29", "", ""),
            keys("10.0.1.0/29", "10.0.1.2", "10.0.1.2"),
            keys("10.0.2.0/29", "10.0.2.1", "10.0.2.2"),
        ])
        .unwrap();
        let visit = |last: &str| -> Vec<String> {
            let last = last.parse().ok();
            set.round_robin(last).map(|ip| ip.to_string()).collect()
        };
        let all = "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.1.2 10.0.2.2";
        let all: Vec<_> = all.split(' ').map(str::to_owned).collect();
        assert_eq!(visit(""), all);
        assert_eq!(visit("192.0.2.1"), all);
        for turn in 0..all.len() {
            let mut expected = all.clone();
            expected.rotate_left(turn);
            assert_eq!(visit(&expected[expected.len() - 1]), expected);
        }
    }

    #[test]
    fn a_huge_range_is_not_enumerated() {
        let set = RangeSet::new(&[keys("fd00::/8", "", "")]).unwrap();
        let last = "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().ok();
        let mut visit = set.round_robin(last);
        assert_eq!(visit.next(), "fd00::2".parse().ok());
        assert_eq!(visit.next(), "fd00::3".parse().ok());
    }
}
