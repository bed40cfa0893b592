//! Holders of a host port that a newer ADD displaced. They are kept in the kernel, so that they get
//! the port back when the newer holder is deleted.
//!
//! The map `displaced` has one element for each port of each displaced holder. Its key is the host
//! port (with the address 0.0.0.0 or :: for a port of all addresses) and the pod's port. Its value
//! is the place in the queue for that host port: the highest number was displaced last and comes
//! back first. Its comment is the owner. The map is empty on a node where nothing was displaced, and
//! no packet is looked up in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftables::{Element, Error, Family, Part, Socket, Transaction, listing};

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
    fn read(entry: Element) -> Option<Self> {
        let [Part::Number(order)] = entry.value[..] else {
            return None;
        };
        let [Part::Address(host), protocol, port, pod, pod_port] = entry.key[..] else {
            return None;
        };
        let value = [pod, pod_port];
        let port = if host.is_unspecified() {
            PORTS.element([protocol, port], value, entry.comment)
        } else {
            let key = [Part::Address(host), protocol, port];
            HOSTIP_PORTS.element(key, value, entry.comment)
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
        let key: Vec<_> = key.copied().collect();
        DISPLACED.element(key, [Part::Number(self.order)], &self.port.comment)
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

/// Whether the holder of `element`, whose port another holds now, is in the queue.
pub fn is_remembered(socket: &Socket, family: Family, element: &Element) -> Result<bool, Error> {
    let port = element.clone();
    let key = Waiting { port, order: 0 }.element(family).key;
    let found = listing::element_at(socket, table(family), DISPLACED, &key)?;
    Ok(found.is_some_and(|it| it.comment == element.comment))
}

/// The displaced holders of one family.
pub struct Displaced {
    family: Family,
    all: Vec<Waiting>,
}

impl Displaced {
    /// Those that the kernel has.
    pub fn read(socket: &Socket, family: Family) -> Result<Self, Error> {
        let entries = listing::elements(socket, table(family), &[DISPLACED], |_| true)?;
        let all = entries.into_iter().filter_map(Waiting::read).collect();
        Ok(Self { family, all })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Deletes those that are `is_stale`.
    pub fn delete(&mut self, is_stale: impl Fn(&Waiting) -> bool) -> Transaction {
        let mut changes = Transaction::new();
        let family = self.family;
        self.all.retain(|waiting| {
            let goes = is_stale(waiting);
            if goes {
                let element = waiting.element(family);
                changes.delete_element(table(family), element);
            }
            !goes
        });
        changes
    }

    /// Adds `former`, whose port `by` gets now: it is the first to come back. Elements for that port
    /// are deleted that belong to the new holder, or lead where `former` leads.
    pub fn displace(&mut self, former: Element, by: &str) -> Transaction {
        let mut changes = self.delete(|waiting| {
            waiting.waits_for(&former)
                && (waiting.port.comment == by
                    || waiting.port.comment == former.comment
                    || waiting.port.value == former.value)
        });
        let orders = self.all.iter().filter(|it| it.waits_for(&former));
        let order = orders.map(|it| it.order).max().unwrap_or(0) + 1;
        changes.extend(self.add(former, order));
        changes
    }

    /// Adds those of `losers` that are not there yet, older than all others that wait for their
    /// port. All are for one host port, the newest first.
    pub fn add_below(&mut self, losers: &[Element]) -> Transaction {
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
        changes.extend(self.delete(|it| it.waits_for(first)));
        let mut kept: Vec<_> = others.into_iter().map(|it| it.port).collect();
        kept.retain(|it| {
            let mut new = missing.iter();
            new.all(|new| new.value != it.value && new.comment != it.comment)
        });
        let from_oldest = missing.into_iter().rev().chain(kept);
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
        changes.add_table(table);
        changes.add_set(table, DISPLACED);
        changes.create_element(table, element);
        changes
    }

    /// Gives the port that `gone` held to the one that was displaced last, if there is any.
    pub fn restore(&mut self, gone: &Element) -> Transaction {
        let waiting = self.all.iter().filter(|it| it.waits_for(gone));
        let Some(next) = waiting.max_by_key(|it| it.order).cloned() else {
            return Transaction::new();
        };
        let mut changes = self.delete(|it| *it == next);
        changes.create_element(table(self.family), next.port);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nftables::Protocol;

    fn port(owner: &str, host: Option<&str>, pod: u8) -> Element {
        let mut key = vec![Part::Protocol(Protocol::Tcp), Part::Port(8080)];
        let set = match host {
            Some(host) => {
                key.insert(0, Part::Address(host.parse().unwrap()));
                HOSTIP_PORTS
            }
            None => PORTS,
        };
        let value = [Part::Address([10, 1, 0, pod].into()), Part::Port(80)];
        set.element(key, value, owner)
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
            .map(|it| (it.port.comment.as_str(), of(it)))
            .collect();
        all.sort_by_key(|it| it.1);
        all
    }

    #[test]
    fn the_last_to_be_displaced_is_the_first_to_come_back() {
        let mut displaced = none();
        displaced.displace(port("a", None, 2), "b");
        let changes = displaced.displace(port("b", None, 3), "c").to_string();
        assert!(changes.ends_with(
            "create element ip podwire_hostports displaced { 0.0.0.0 . tcp . 8080 . 10.1.0.3 . 80 comment \"b\" : 0x00000002 }\n"
        ), "{changes}");
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
        displaced.displace(port("a", None, 2), "b");
        displaced.displace(port("b", None, 3), "a");
        assert_eq!(owners(&displaced), [("b", 1)]);
    }

    #[test]
    fn what_was_forgotten_is_older_than_what_was_not() {
        let mut displaced = none();
        displaced.displace(port("c", None, 4), "d");
        let losers = [port("c", None, 4), port("b", None, 3), port("a", None, 2)];
        displaced.add_below(&losers);
        assert_eq!(owners(&displaced), [("a", 1), ("b", 2), ("c", 3)]);
        assert!(displaced.add_below(&losers).is_empty());
    }

    #[test]
    fn elements_read_back_as_they_were_written() {
        for host in [None, Some("192.0.2.7")] {
            let waiting = Waiting {
                port: port("a", host, 2),
                order: 7,
            };
            let entry = waiting.element(Family::Ip);
            assert_eq!(Waiting::read(entry), Some(waiting));
        }
    }
}
