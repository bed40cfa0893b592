//! Holders of a host port that a newer ADD displaced. They are remembered in the kernel, so
//! that the port is theirs again when the newer one is deleted.
//!
//! Map `displaced` has one element for each port of each displaced holder. Its key is the
//! host port (with the address 0.0.0.0 or :: for a port of all addresses) and the pod's
//! port, its value the place in the order of those who wait for that host port: the highest
//! number was displaced last and comes back first. Its comment is the owner. The map is
//! empty on a node where nothing has been displaced, and no packet ever looks at it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftables::Error;
use nftables::Socket;
use nftables::listing::{self, Entry};
use nftables::{Change, Element, Family, Part, Transaction};

use super::layout::{DISPLACED, HOSTIP_PORTS, PORTS, table};

/// A displaced holder of one host port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What comes back: an element of `ports` or `hostip_ports`.
    pub port: Element,
    /// Its place: the highest comes back first.
    order: u32,
}

impl Waiting {
    fn read(entry: Entry) -> Option<Self> {
        let [Part::Number(order)] = entry.value[..] else {
            return None;
        };
        let [Part::Address(host), protocol, port, pod, pod_port] = entry.key[..] else {
            return None;
        };
        let (set, key) = match host.is_unspecified() {
            true => (PORTS, vec![protocol, port]),
            false => (HOSTIP_PORTS, vec![Part::Address(host), protocol, port]),
        };
        let value = vec![pod, pod_port];
        let owner = entry.owner;
        let port = Element {
            set,
            key,
            value,
            owner,
        };
        Some(Self { port, order })
    }

    /// Its element of `displaced`.
    fn element(&self, family: Family) -> Element {
        let all = match family {
            Family::Ip6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let of_all = (self.port.set == PORTS).then_some(Part::Address(all));
        let key = of_all.iter().chain(&self.port.key).chain(&self.port.value);
        Element {
            set: DISPLACED,
            key: key.copied().collect(),
            value: vec![Part::Number(self.order)],
            owner: self.port.owner.clone(),
        }
    }

    /// Whether it waits for the host port of `element`.
    fn waits_for(&self, element: &Element) -> bool {
        (self.port.set, &self.port.key) == (element.set, &element.key)
    }
}

/// Whether `element` maps a host port.
pub fn is_port(element: &Element) -> bool {
    [PORTS, HOSTIP_PORTS].contains(&element.set)
}

/// Whether `element`, which another holds the port of, is remembered.
pub fn is_remembered(socket: &Socket, family: Family, element: &Element) -> Result<bool, Error> {
    let port = element.clone();
    let key = Waiting { port, order: 0 }.element(family).key;
    let found = listing::entry_at(socket, table(family), DISPLACED, &key)?;
    Ok(found.is_some_and(|it| it.owner == element.owner))
}

/// The displaced holders of one family.
pub struct Displaced {
    family: Family,
    all: Vec<Waiting>,
}

impl Displaced {
    /// Those that the kernel remembers.
    pub fn read(socket: &Socket, family: Family) -> Result<Self, Error> {
        let entries = listing::entries(socket, table(family), DISPLACED, |_| true)?;
        let all = entries.into_iter().filter_map(Waiting::read).collect();
        Ok(Self { family, all })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Forgets those that are `doomed`.
    pub fn forget(&mut self, doomed: impl Fn(&Waiting) -> bool) -> Transaction {
        let mut changes = Transaction::new();
        let family = self.family;
        self.all.retain(|waiting| {
            let goes = doomed(waiting);
            if goes {
                let element = waiting.element(family);
                changes.push(Change::DeleteElement(table(family), element));
            }
            !goes
        });
        changes
    }

    /// Remembers `former`, whose port `by` gets now: it is the first to come back. What
    /// waited for that port and is of the new holder is forgotten, and so is what would
    /// lead where `former` leads.
    pub fn remember(&mut self, former: Element, by: &str) -> Transaction {
        let mut changes = self.forget(|waiting| {
            waiting.waits_for(&former)
                && (waiting.port.owner == by
                    || waiting.port.owner == former.owner
                    || waiting.port.value == former.value)
        });
        let orders = self.all.iter().filter(|it| it.waits_for(&former));
        let order = orders.map(|it| it.order).max().unwrap_or(0) + 1;
        changes.extend(self.add(former, order));
        changes
    }

    /// Remembers those of `losers` that are not remembered yet as older than all others
    /// that wait for their port. All are for one host port, the newest first.
    pub fn remember_below(&mut self, losers: &[Element]) -> Transaction {
        let known = |it: &Element| self.all.iter().any(|waiting| waiting.port == *it);
        let mut missing: Vec<Element> = Vec::new();
        for loser in losers.iter().filter(|it| !known(it)) {
            if missing.iter().all(|it| it.value != loser.value) {
                missing.push(loser.clone());
            }
        }
        let mut changes = Transaction::new();
        let Some(first) = missing.first() else {
            return changes;
        };
        let of_port = |it: &&Waiting| it.waits_for(first);
        let mut others: Vec<_> = self.all.iter().filter(of_port).cloned().collect();
        others.sort_by_key(|it| it.order);
        let gone = |it: &Waiting| it.waits_for(first);
        changes.extend(self.forget(gone));
        let mut stays: Vec<_> = others.into_iter().map(|it| it.port).collect();
        stays.retain(|it| {
            let mut new = missing.iter();
            new.all(|new| new.value != it.value && new.owner != it.owner)
        });
        let from_oldest = missing.into_iter().rev().chain(stays);
        for (port, order) in from_oldest.zip(1..) {
            changes.extend(self.add(port, order));
        }
        changes
    }

    fn add(&mut self, port: Element, order: u32) -> Transaction {
        let waiting = Waiting { port, order };
        let (table, element) = (table(self.family), waiting.element(self.family));
        self.all.push(waiting);
        let mut changes = Transaction::new();
        // A node whose tables an older version made has no such map.
        changes.push(Change::AddTable(table));
        changes.push(Change::AddSet(table, DISPLACED));
        changes.push(Change::CreateElement(table, element));
        changes
    }

    /// Gives the port that `gone` held to the one that was displaced last, if there is any.
    pub fn restore(&mut self, gone: &Element) -> Transaction {
        let waiting = self.all.iter().filter(|it| it.waits_for(gone));
        let Some(next) = waiting.max_by_key(|it| it.order).cloned() else {
            return Transaction::new();
        };
        let mut changes = self.forget(|it| *it == next);
        changes.push(Change::CreateElement(table(self.family), next.port));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Protocol;

    fn port(owner: &str, host: Option<&str>, pod: u8) -> Element {
        let mut key = vec![Part::Protocol(Protocol::Tcp), Part::Port(8080)];
        let set = match host {
            Some(host) => {
                key.insert(0, Part::Address(host.parse().unwrap()));
                HOSTIP_PORTS
            }
            None => PORTS,
        };
        Element {
            set,
            key,
            value: vec![Part::Address([10, 1, 0, pod].into()), Part::Port(80)],
            owner: owner.into(),
        }
    }

    fn none() -> Displaced {
        Displaced {
            family: Family::Ip,
            all: Vec::new(),
        }
    }

    fn owners(displaced: &Displaced) -> Vec<(&str, u32)> {
        let of = |it: &'_ Waiting| it.order;
        let mut all: Vec<_> = displaced
            .all
            .iter()
            .map(|it| (it.port.owner.as_str(), of(it)))
            .collect();
        all.sort_by_key(|it| it.1);
        all
    }

    #[test]
    fn the_last_to_be_displaced_is_the_first_to_come_back() {
        let mut displaced = none();
        displaced.remember(port("a", None, 2), "b");
        let told = displaced.remember(port("b", None, 3), "c").to_string();
        assert!(told.ends_with(
            "create element ip podwire_hostports displaced { 0.0.0.0 . tcp . 8080 . 10.1.0.3 . 80 comment \"b\" : 0x00000002 }\n"
        ), "{told}");
        assert_eq!(
            displaced.restore(&port("c", None, 4)).to_string(),
            "delete element ip podwire_hostports displaced { 0.0.0.0 . tcp . 8080 . 10.1.0.3 . 80 }\n\
             create element ip podwire_hostports ports { tcp . 8080 comment \"b\" : 10.1.0.3 . 80 }\n"
        );
        assert_eq!(owners(&displaced), [("a", 1)]);
        let other = displaced.restore(&port("x", Some("192.0.2.1"), 9));
        assert!(other.is_empty(), "another port");
    }

    #[test]
    fn a_holder_that_takes_its_port_back_waits_no_more() {
        let mut displaced = none();
        displaced.remember(port("a", None, 2), "b");
        displaced.remember(port("b", None, 3), "a");
        assert_eq!(owners(&displaced), [("b", 1)]);
    }

    #[test]
    fn what_was_forgotten_is_older_than_what_was_not() {
        let mut displaced = none();
        displaced.remember(port("c", None, 4), "d");
        let losers = [port("c", None, 4), port("b", None, 3), port("a", None, 2)];
        displaced.remember_below(&losers);
        assert_eq!(owners(&displaced), [("a", 1), ("b", 2), ("c", 3)]);
        assert!(displaced.remember_below(&losers).is_empty());
    }

    #[test]
    fn elements_read_back_as_they_were_written() {
        for host in [None, Some("192.0.2.7")] {
            let waiting = Waiting {
                port: port("a", host, 2),
                order: 7,
            };
            let Element {
                key, value, owner, ..
            } = waiting.element(Family::Ip);
            let entry = Entry { key, value, owner };
            assert_eq!(Waiting::read(entry), Some(waiting));
        }
    }
}
