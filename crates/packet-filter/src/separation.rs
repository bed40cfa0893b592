//! Separation of networks that this node forwards for: a packet that comes from a device of one
//! network leaves by a device of the same network, or by one of no network.
//!
//! A node forwards between any two of its interfaces, so pods of two networks with different VNIs
//! would reach each other through their gateways. Two sets and one rule prevent that, for any
//! number of networks. Packets to a published port pass: it is published to all.

use anyhow::Result;
use nftables::listing::{self, has_in_order};
use nftables::{
    Chain, Element, Error, Family, Field, Part, Point, Rule, Set, Socket, Statement, Table,
    Transaction, Type,
};

use crate::backend::{Nftables, complete, network_comment};
use crate::inventory::{Applied, Subject};
use crate::vxlan_guard;

const TABLE: Table = Table::new(Family::Inet, "podwire_networks");
const FORWARD: &str = "forward";

/// A network that is separated from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Separation {
    /// Its name.
    pub network: String,
    /// The names of its devices on this node: its bridge, and the device that leads to other nodes.
    pub devices: Vec<String>,
}

impl Nftables {
    /// Drops packets that would be forwarded from a network to other separated networks. It can be
    /// repeated.
    pub fn ensure_separation(&self, wanted: &Separation) -> Result<()> {
        self.transact(|socket| add(socket, wanted))
    }

    /// Fails if something of a network's separation is missing.
    pub fn check_separation(&self, wanted: &Separation) -> Result<()> {
        complete(missing(&self.socket, wanted)?)
    }

    /// Deletes what belongs to a network whose devices are gone: its separation and its VXLAN guard.
    pub fn delete_network(&self, network: &str) -> Result<()> {
        self.transact(|socket| {
            let mut changes = remove(socket, network)?;
            changes.extend(vxlan_guard::remove(socket, network)?);
            Ok(changes)
        })
    }
}

/// The two sets.
#[derive(Clone, Copy)]
struct Layout {
    /// The devices of all networks.
    members: Set,
    /// Pairs of devices of one network.
    pairs: Set,
}

const LAYOUT: Layout = layout("members", "pairs");

/// The layout of podwire 2.0.0 and earlier. `devices` is a word of nft's language: nft printed the
/// elements as empty texts, so that a saved rule set could not be loaded again.
const OLD_LAYOUT: Layout = layout("devices", "inside");

const fn layout(members: &'static str, pairs: &'static str) -> Layout {
    Layout {
        members: Set::new(members, &[Type::Interface]),
        pairs: Set::new(pairs, &[Type::Interface, Type::Interface]),
    }
}

impl Layout {
    fn sets(self) -> [Set; 2] {
        [self.members, self.pairs]
    }

    fn rules(self) -> [Rule; 2] {
        let (from, to) = (Field::Interface, Field::OutInterface);
        [
            Rule::new([Statement::Redirected, Statement::Return]),
            Rule::new([
                Statement::In(vec![from], self.members.name),
                Statement::In(vec![to], self.members.name),
                Statement::NotIn(vec![from, to], self.pairs.name),
                Statement::Drop,
            ]),
        ]
    }

    fn is_installed(self, socket: &Socket) -> Result<bool, Error> {
        let found = listing::rules(socket, TABLE)?;
        Ok(has_in_order(&found, FORWARD, &self.rules()))
    }

    /// The elements of `wanted` that are not there.
    fn missing(self, socket: &Socket, wanted: &Separation) -> Result<Vec<Element>, Error> {
        let mut missing = Vec::new();
        for element in wanted.elements(self) {
            if listing::element_at(socket, TABLE, element.set, &element.key)?.is_none() {
                missing.push(element);
            }
        }
        Ok(missing)
    }
}

impl Separation {
    fn elements(&self, layout: Layout) -> Vec<Element> {
        let comment = network_comment(&self.network);
        let part = |name: &String| Part::interface(name);
        let mut all = Vec::new();
        for one in &self.devices {
            all.push(layout.members.element([part(one)], [], &comment));
            let pairs = self.devices.iter().map(|other| [part(one), part(other)]);
            all.extend(pairs.map(|key| layout.pairs.element(key, [], &comment)));
        }
        all
    }
}

/// Changes that separate the network; none if it is.
pub fn add(socket: &Socket, wanted: &Separation) -> Result<Transaction, Error> {
    let installed = LAYOUT.is_installed(socket)?;
    // All elements of a network are written in one transaction: the last one stands for them, and
    // an ADD among many needs one lookup.
    if let (true, Some(last)) = (installed, wanted.elements(LAYOUT).last())
        && listing::element_at(socket, TABLE, last.set, &last.key)?.is_some()
    {
        return Ok(Transaction::new());
    }
    let mut changes = additions(installed, LAYOUT.missing(socket, wanted)?);
    if !installed && OLD_LAYOUT.is_installed(socket)? {
        let old = listing::elements(socket, TABLE, &OLD_LAYOUT.sets(), |_| true)?;
        changes.extend(replacement(old, wanted));
    }
    Ok(changes)
}

/// Changes that follow new rules if an earlier release had rules: they add its elements to our
/// sets, except those of `wanted`, which are added already, and delete its sets.
fn replacement(old: Vec<Element>, wanted: &Separation) -> Transaction {
    let own = network_comment(&wanted.network);
    let mut changes = Transaction::new();
    for element in old.into_iter().filter(|it| it.comment != own) {
        let set = if element.set == OLD_LAYOUT.members {
            LAYOUT.members
        } else {
            LAYOUT.pairs
        };
        changes.create_element(TABLE, Element { set, ..element });
    }
    for set in OLD_LAYOUT.sets() {
        changes.delete_set(TABLE, set);
    }
    changes
}

/// Changes that remove the elements of the network.
fn remove(socket: &Socket, network: &str) -> Result<Transaction, Error> {
    let comment = network_comment(network);
    let mut changes = Transaction::new();
    for sets in [LAYOUT.sets(), OLD_LAYOUT.sets()] {
        for element in listing::elements(socket, TABLE, &sets, |it| it == comment)? {
            changes.delete_element(TABLE, element);
        }
    }
    Ok(changes)
}

/// What is missing, as a text; `None` if nothing is.
fn missing(socket: &Socket, wanted: &Separation) -> Result<Option<String>, Error> {
    let layout = if OLD_LAYOUT.is_installed(socket)? {
        OLD_LAYOUT
    } else if LAYOUT.is_installed(socket)? {
        LAYOUT
    } else {
        return Ok(Some(format!("no rules in chain {TABLE} {FORWARD}")));
    };
    let missing = additions(true, layout.missing(socket, wanted)?);
    let first = missing.changes().first();
    Ok(first.map(|change| format!("not done: {}", change.describe())))
}

fn additions(installed: bool, missing: Vec<Element>) -> Transaction {
    let mut changes = Transaction::new();
    if !installed {
        changes.add_table(TABLE);
        for set in LAYOUT.sets() {
            changes.add_set(TABLE, set);
        }
        let chain = Chain::hooked(FORWARD, "filter", Point::Forward, 0);
        changes.fill_chain(TABLE, chain, LAYOUT.rules());
    }
    for element in missing {
        changes.create_element(TABLE, element);
    }
    changes
}

/// The effect of the elements, for people.
pub fn inventory(socket: &Socket) -> Result<Vec<Applied>, Error> {
    let sets = [LAYOUT.sets(), OLD_LAYOUT.sets()].concat();
    let found = listing::elements(socket, TABLE, &sets, |_| true)?;
    let found = found.iter();
    Ok(found
        .map(|it| Applied::element(Subject::Separation, TABLE, it))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sets_and_one_rule_keep_networks_apart() {
        let wanted = Separation {
            network: "mynet".into(),
            devices: vec!["vxbr0".into(), "vxlan.5".into()],
        };
        let expected = "\
add table inet podwire_networks
add set inet podwire_networks members { type ifname ; }
add set inet podwire_networks pairs { type ifname . ifname ; }
add chain inet podwire_networks forward { type filter hook forward priority 0 ; policy accept ; }
flush chain inet podwire_networks forward
add rule inet podwire_networks forward ct status dnat return
add rule inet podwire_networks forward iifname @members oifname @members iifname . oifname != @pairs drop
create element inet podwire_networks members { \"vxbr0\" comment \"net: mynet\" }
create element inet podwire_networks pairs { \"vxbr0\" . \"vxbr0\" comment \"net: mynet\" }
create element inet podwire_networks pairs { \"vxbr0\" . \"vxlan.5\" comment \"net: mynet\" }
create element inet podwire_networks members { \"vxlan.5\" comment \"net: mynet\" }
create element inet podwire_networks pairs { \"vxlan.5\" . \"vxbr0\" comment \"net: mynet\" }
create element inet podwire_networks pairs { \"vxlan.5\" . \"vxlan.5\" comment \"net: mynet\" }
";
        assert_eq!(
            additions(false, wanted.elements(LAYOUT)).to_string(),
            expected
        );
        assert!(additions(true, Vec::new()).is_empty());
    }

    #[test]
    fn what_an_earlier_release_kept_apart_stays_so() {
        let apart = |network: &str, device: &str| Separation {
            network: network.into(),
            devices: vec![device.into()],
        };
        let (own, other) = (apart("mynet", "vxbr0"), apart("other", "vxbr1"));
        let mut old = own.elements(OLD_LAYOUT);
        old.extend(other.elements(OLD_LAYOUT));
        let expected = "\
create element inet podwire_networks members { \"vxbr1\" comment \"net: other\" }
create element inet podwire_networks pairs { \"vxbr1\" . \"vxbr1\" comment \"net: other\" }
delete set inet podwire_networks devices
delete set inet podwire_networks inside
";
        assert_eq!(replacement(old, &own).to_string(), expected);
    }
}
