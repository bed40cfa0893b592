//! Chooses the address of an ADD. Nothing here accesses the disk: reservations are behind
//! [`Store`], which a test keeps in memory.

use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::Cidr;

use crate::range::{Range, RangeSet};

/// The reservations of a network, from the view of one owner. It holds the network's lock.
pub trait Store {
    /// The container of the owner, for errors.
    fn container_id(&self) -> &str;
    /// The addresses that the owner already holds.
    fn held(&self) -> &[IpAddr];
    /// The address that was reserved last from range set `set`.
    fn last_reserved(&self, set: usize) -> Option<IpAddr>;
    /// Whether `ip` is not reserved.
    fn is_free(&mut self, ip: IpAddr) -> Result<bool>;
    /// Reserves `ip`; false if it is already reserved. The next address of range set `set`
    /// follows it; `None` for an address outside the ranges.
    fn reserve(&mut self, ip: IpAddr, set: Option<usize>) -> Result<bool>;
    /// Releases reservations that certainly have no container; false if there are none.
    fn reclaim(&mut self) -> Result<bool>;
}

/// An address that was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address with the prefix of its subnet.
    pub address: Cidr,
    /// The gateway of that subnet.
    pub gateway: IpAddr,
}

/// Why no address was reserved; the texts are the Go plugin's.
#[derive(Debug)]
pub enum Refusal {
    /// The requested address belongs to the gateway.
    Gateway(IpAddr),
    /// The requested address of that range set is reserved.
    Unavailable(IpAddr, String),
    /// The container has an address of this set already.
    Duplicate(IpAddr, String),
    /// All addresses of that range set are reserved.
    Exhausted(String),
    /// The reservations could not be read or written.
    Store(anyhow::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(ip) => write!(f, "requested ip {ip} is subnet's gateway"),
            Self::Unavailable(ip, set) => {
                write!(
                    f,
                    "requested IP address {ip} is not available in range set {set}"
                )
            }
            Self::Duplicate(ip, container) => write!(
                f,
                "{ip} has been allocated to {container}, duplicate allocation is not allowed"
            ),
            Self::Exhausted(set) => write!(f, "no IP addresses available in range set: {set}"),
            Self::Store(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Store(error)
    }
}

/// Reserves an address of `set`, the range set number `number`: `requested`, which must lie in
/// the set or in one of its subnets, or else the next free one after the last.
pub fn allocate<S: Store>(
    set: &RangeSet,
    number: usize,
    requested: Option<IpAddr>,
    store: &mut S,
) -> Result<Lease, Refusal> {
    match requested {
        Some(ip) => reserve_requested(set, number, ip, store),
        None => reserve_next(set, number, store),
    }
}

fn reserve_requested<S: Store>(
    set: &RangeSet,
    number: usize,
    ip: IpAddr,
    store: &mut S,
) -> Result<Lease, Refusal> {
    let unavailable = || Refusal::Unavailable(ip, set.to_string());
    let inside = set.range_of(ip);
    let range = inside.or_else(|| set.outside(ip)).ok_or_else(unavailable)?;
    let round = inside.map(|_| number);
    if ip == range.gateway() {
        return Err(Refusal::Gateway(ip));
    }
    if store.reserve(ip, round)? || (store.reclaim()? && store.reserve(ip, round)?) {
        return lease(range, ip);
    }
    Err(unavailable())
}

fn reserve_next<S: Store>(set: &RangeSet, number: usize, store: &mut S) -> Result<Lease, Refusal> {
    if let Some(ip) = store.held().iter().find(|ip| set.contains(**ip)) {
        return Err(Refusal::Duplicate(*ip, store.container_id().to_owned()));
    }
    loop {
        let last = store.last_reserved(number);
        for ip in set.round_robin(last) {
            if store.is_free(ip)?
                && store.reserve(ip, Some(number))?
                && let Some(range) = set.range_of(ip)
            {
                return lease(range, ip);
            }
        }
        if !store.reclaim()? {
            return Err(Refusal::Exhausted(set.to_string()));
        }
    }
}

fn lease(range: &Range, ip: IpAddr) -> Result<Lease, Refusal> {
    Ok(Lease {
        address: range.cidr(ip)?,
        gateway: range.gateway(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::RangeKeys;
    use std::collections::{BTreeMap, BTreeSet};

    /// Reservations in memory.
    #[derive(Default)]
    struct Memory {
        owner: String,
        reserved: BTreeMap<IpAddr, String>,
        held: Vec<IpAddr>,
        last: BTreeMap<usize, IpAddr>,
        leftover: BTreeSet<IpAddr>,
    }

    impl Memory {
        fn be(&mut self, owner: &str) {
            self.owner = owner.to_owned();
            let mine = |(ip, holder): (&IpAddr, &String)| (holder == owner).then_some(*ip);
            self.held = self.reserved.iter().filter_map(mine).collect();
        }

        fn release(&mut self, owner: &str) {
            self.reserved.retain(|_, holder| holder != owner);
        }
    }

    impl Store for Memory {
        fn container_id(&self) -> &str {
            &self.owner
        }

        fn held(&self) -> &[IpAddr] {
            &self.held
        }

        fn last_reserved(&self, set: usize) -> Option<IpAddr> {
            self.last.get(&set).copied()
        }

        fn is_free(&mut self, ip: IpAddr) -> Result<bool> {
            Ok(!self.reserved.contains_key(&ip))
        }

        fn reserve(&mut self, ip: IpAddr, set: Option<usize>) -> Result<bool> {
            if self.reserved.contains_key(&ip) {
                return Ok(false);
            }
            self.reserved.insert(ip, self.owner.clone());
            self.last.extend(set.map(|set| (set, ip)));
            Ok(true)
        }

        fn reclaim(&mut self) -> Result<bool> {
            let leftover = std::mem::take(&mut self.leftover);
            self.reserved.retain(|ip, _| !leftover.contains(ip));
            Ok(!leftover.is_empty())
        }
    }

    fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
        let keys = |(subnet, start, end): &(&str, &str, &str)| RangeKeys {
            subnet: Some(subnet.parse().unwrap()),
            range_start: start.parse().ok(),
            range_end: end.parse().ok(),
            gateway: None,
        };
        RangeSet::new(&ranges.iter().map(keys).collect::<Vec<_>>()).unwrap()
    }

    fn request(store: &mut Memory, set: &RangeSet, owner: &str, requested: &str) -> String {
        store.be(owner);
        match allocate(set, 0, requested.parse().ok(), store) {
            Ok(lease) => lease.address.to_string(),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn a_requested_address_is_taken_or_refused_with_its_reason() {
        let (mut store, set) = (Memory::default(), set(&[("10.0.0.0/29", "", "")]));
        assert_eq!(request(&mut store, &set, "a", "10.0.0.4"), "10.0.0.4/29");
        assert_eq!(
            request(&mut store, &set, "b", "10.0.0.4"),
            "requested IP address 10.0.0.4 is not available in range set 10.0.0.1-10.0.0.6"
        );
        assert_eq!(
            request(&mut store, &set, "b", "10.0.0.1"),
            "requested ip 10.0.0.1 is subnet's gateway"
        );
        assert_eq!(
            request(&mut store, &set, "a", ""),
            "10.0.0.4 has been allocated to a, duplicate allocation is not allowed"
        );
    }

    #[test]
    fn an_address_outside_the_range_is_given_once_and_is_not_the_last_of_the_round() {
        let ranges = [("10.0.0.0/24", "10.0.0.100", "10.0.0.102")];
        let (mut store, set) = (Memory::default(), set(&ranges));
        assert_eq!(request(&mut store, &set, "a", ""), "10.0.0.100/24");
        assert_eq!(request(&mut store, &set, "b", "10.0.0.7"), "10.0.0.7/24");
        let refused = "requested IP address 10.0.0.7 is not available";
        assert!(request(&mut store, &set, "c", "10.0.0.7").starts_with(refused));
        assert_eq!(request(&mut store, &set, "d", ""), "10.0.0.101/24");
        for unusable in ["10.0.0.0", "10.0.0.255", "10.0.0.1", "10.0.1.7"] {
            let answer = request(&mut store, &set, "e", unusable);
            assert!(answer.starts_with("requested "), "{answer}");
        }
    }

    #[test]
    fn leftovers_are_touched_only_when_nothing_else_is_free() {
        let (mut store, set) = (Memory::default(), set(&[("10.0.0.0/29", "", "10.0.0.4")]));
        for owner in ["a", "b"] {
            request(&mut store, &set, owner, "");
        }
        store.leftover = ["10.0.0.2".parse().unwrap()].into();
        assert_eq!(request(&mut store, &set, "c", ""), "10.0.0.4/29");
        assert_eq!(store.reserved.len(), 3);
        assert_eq!(request(&mut store, &set, "d", ""), "10.0.0.2/29");
        assert!(request(&mut store, &set, "e", "").starts_with("no IP addresses"));
        store.leftover = ["10.0.0.3".parse().unwrap()].into();
        assert_eq!(request(&mut store, &set, "e", "10.0.0.3"), "10.0.0.3/29");
    }

    /// xorshift64: the same sequence at every run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    /// The order of the Go plugin: from the one after the last through every range, without
    /// reserved addresses and gateways.
    fn expected(all: &[IpAddr], last: Option<IpAddr>, held: &Memory) -> Option<IpAddr> {
        let start = last.and_then(|last| all.iter().position(|ip| *ip == last));
        let start = start.map_or(0, |at| at + 1);
        let turn = |step| all[(start + step) % all.len()];
        (0..all.len())
            .map(turn)
            .find(|ip| !held.reserved.contains_key(ip))
    }

    #[test]
    fn any_sequence_of_adds_and_dels_follows_the_model() {
        let set = set(&[
            ("10.0.0.0/28", "10.0.0.2", "10.0.0.9"),
            ("10.0.1.0/30", "", ""),
            ("10.0.2.0/24", "10.0.2.250", ""),
        ]);
        let all: Vec<IpAddr> = set.round_robin(None).collect();
        assert_eq!(all.len(), 8 + 1 + 5);
        for seed in 1..=50 {
            let (mut numbers, mut store) = (Numbers(seed), Memory::default());
            for _ in 0..500 {
                let owner = format!("c{}", numbers.below(20));
                if numbers.below(3) == 0 {
                    store.release(&owner);
                    continue;
                }
                store.be(&owner);
                let (before, last) = (store.reserved.len(), store.last_reserved(0));
                let expected = expected(&all, last, &store);
                match allocate(&set, 0, None, &mut store) {
                    Ok(lease) => assert_eq!(Some(lease.address.ip()), expected),
                    Err(Refusal::Duplicate(ip, _)) => assert_eq!(store.reserved[&ip], owner),
                    Err(Refusal::Exhausted(_)) => assert_eq!(before, all.len()),
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}
