//! Links: a pod reaches some ports of another pod of its network, although the pods of the network
//! do not reach each other.
//!
//! Each link is an element of two sets. The rule looks up [`LINKS`], whose elements belong to the
//! pod that opens connections. The elements of [`LINKED`] name the owner of the other end. So a
//! link is found by either end, and both elements are removed with the first end that is deleted.

use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;
use nftables::{Element, Family, Part, Protocol, Set, Transaction, Type, listing};

use super::{FAMILIES, table};
use crate::backend::Nftables;
use crate::ports::layout::{is_of_network, owner, owner_comment};

const KEY: &[Type] = &[Type::Address, Type::Address, Type::Protocol, Type::Port];

/// Which pod reaches which port of which other pod.
pub(super) const LINKS: Set = Set::new("links", KEY);
/// The same keys, with the owner of the address that is reached.
pub(super) const LINKED: Set = Set::new("linked", KEY);

/// The links of a pod to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// The pod's attachment.
    pub owner: Attachment,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The pods that it reaches.
    pub to: Vec<Linked>,
}

/// A pod that another one reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Its attachment.
    pub owner: Attachment,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports that are reached.
    pub ports: Vec<(Protocol, u16)>,
}

/// Links of which one end is gone.
#[derive(Debug)]
pub struct OldLinks {
    elements: Vec<(Family, Element)>,
    /// The addresses of both ends that no other link has.
    pub addresses: Vec<IpAddr>,
}

impl Nftables {
    /// Lets the pod reach the others. It can be repeated.
    pub fn link(&self, wanted: &Links) -> Result<()> {
        self.transact(|socket| super::link(socket, wanted))
    }

    /// The links that begin or end at this attachment.
    pub fn links_of(&self, attachment: &Attachment) -> Result<OldLinks> {
        let own = owner(attachment);
        self.old_links(&|it| it == own)
    }

    /// The links of `network` that begin or end at an attachment that is not `valid`.
    pub fn stale_links(&self, network: &str, valid: &[ValidAttachment]) -> Result<OldLinks> {
        let alive = valid.iter();
        let alive = alive.map(|it| owner_comment(network, &it.container_id, &it.ifname));
        let alive: Vec<_> = alive.collect();
        self.old_links(&|it| is_of_network(it, network) && !alive.iter().any(|one| one == it))
    }

    fn old_links(&self, is_gone: &dyn Fn(&str) -> bool) -> Result<OldLinks> {
        let mut old = OldLinks {
            elements: Vec::new(),
            addresses: Vec::new(),
        };
        for family in FAMILIES {
            if !listing::has_table(&self.socket, family, table(family).name)? {
                continue;
            }
            let all = listing::elements(&self.socket, table(family), &[LINKS, LINKED], |_| true)?;
            let ends = all.iter().filter(|it| is_gone(&it.comment));
            let keys: Vec<_> = ends.map(|it| it.key.clone()).collect();
            let (gone, kept): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|it| keys.contains(&it.key));
            let used: Vec<_> = kept.iter().flat_map(addresses).collect();
            let unused = gone.iter().flat_map(addresses);
            old.addresses.extend(unused.filter(|it| !used.contains(it)));
            old.elements.extend(gone.into_iter().map(|it| (family, it)));
        }
        old.addresses.sort();
        old.addresses.dedup();
        Ok(old)
    }

    /// Removes links.
    pub fn remove_links(&self, old: &OldLinks) -> Result<()> {
        self.transact(|socket| {
            let mut changes = Transaction::new();
            for (family, element) in &old.elements {
                let table = table(*family);
                // Another call may have removed it, or made another link at its key.
                if listing::element_at(socket, table, element.set, &element.key)?.as_ref()
                    == Some(element)
                {
                    changes.delete_element(table, element.clone());
                }
            }
            Ok(changes)
        })
    }
}

impl OldLinks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }
}

impl Links {
    /// The links to those pods that are `wanted`.
    pub(crate) fn to_those(&self, wanted: impl Fn(&Linked) -> bool) -> Self {
        let mut links = self.clone();
        links.to.retain(wanted);
        links
    }

    pub(super) fn elements(&self, family: Family) -> Vec<Element> {
        let is_of_family = |it: &&IpAddr| it.is_ipv6() == (family == Family::Ip6);
        let mut all = Vec::<Element>::new();
        let own = owner(&self.owner);
        for to in &self.to {
            let theirs = owner(&to.owner);
            for from in self.addresses.iter().filter(is_of_family) {
                for address in to.addresses.iter().filter(is_of_family) {
                    for (protocol, port) in &to.ports {
                        let key = [
                            Part::Address(*from),
                            Part::Address(*address),
                            Part::Protocol(*protocol),
                            Part::Port(*port),
                        ];
                        if !all.iter().any(|it| it.key == key) {
                            all.push(LINKS.element(key, [], &own));
                            all.push(LINKED.element(key, [], &theirs));
                        }
                    }
                }
            }
        }
        all
    }
}

/// The addresses of an element's key: of the client, and of the server.
pub(super) fn addresses(element: &Element) -> Vec<IpAddr> {
    let parts = element.key.iter();
    let addresses = parts.filter_map(|it| match it {
        Part::Address(ip) => Some(*ip),
        _ => None,
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_an_element_for_each_port_of_each_family() {
        let attachment = |id: &str| Attachment::parse("mynet", id, "eth0").unwrap();
        let addresses = |all: &[&str]| all.iter().map(|it| it.parse().unwrap()).collect();
        let links = Links {
            owner: attachment("web"),
            addresses: addresses(&["10.1.0.2", "fd01::2"]),
            to: vec![Linked {
                owner: attachment("db"),
                addresses: addresses(&["10.1.0.3", "fd01::3"]),
                ports: vec![
                    (Protocol::Tcp, 80),
                    (Protocol::Udp, 53),
                    (Protocol::Tcp, 80),
                ],
            }],
        };
        let texts = |family| -> Vec<_> {
            let elements = links.elements(family).into_iter();
            elements
                .map(|it| format!("{} {} {}", it.set.name, it.key_text(), it.comment))
                .collect()
        };
        let expected = [
            "links 10.1.0.2 . 10.1.0.3 . tcp . 80 mynet/web/eth0",
            "linked 10.1.0.2 . 10.1.0.3 . tcp . 80 mynet/db/eth0",
            "links 10.1.0.2 . 10.1.0.3 . udp . 53 mynet/web/eth0",
            "linked 10.1.0.2 . 10.1.0.3 . udp . 53 mynet/db/eth0",
        ];
        assert_eq!(texts(Family::Ip), expected);
        assert_eq!(texts(Family::Ip6).len(), 4);
    }
}
