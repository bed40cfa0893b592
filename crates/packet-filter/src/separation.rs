//! Networks that are kept apart though this node forwards for all of them: what comes
//! from a device of one leaves by a device of the same, or by one of none.
//!
//! A node forwards between any two of its interfaces, so pods of two networks that are
//! told apart by their VNI would reach each other through their gateways. Two sets and one
//! rule see to it, however many networks there are. What was sent to a port of the node that
//! leads to a pod passes: who publishes a port means everybody.

use cni::names;

use nftables::Error;
use nftables::Socket;
use nftables::Statement;
use nftables::listing;
use nftables::{
    Chain, Change, Element, Family, Hook, Part, Point, Rule, Set, Table, Transaction, Type,
};

const TABLE: Table = Table {
    family: Family::Inet,
    name: "podwire_networks",
    comment: "",
};
const FORWARD: &str = "forward";

/// The two sets.
#[derive(Clone, Copy)]
struct Layout {
    /// The devices of all networks.
    members: Set,
    /// Pairs of devices of one network.
    pairs: Set,
}

const LAYOUT: Layout = layout("members", "pairs");

/// That of podwire 2.0.0 and earlier. `devices` is a word of nft's language, and nft printed the
/// elements as empty texts, so that a saved rule set could not be loaded again.
const OLD_LAYOUT: Layout = layout("devices", "inside");

const fn layout(members: &'static str, pairs: &'static str) -> Layout {
    Layout {
        members: Set {
            name: members,
            key: &[Type::Interface],
            value: &[],
        },
        pairs: Set {
            name: pairs,
            key: &[Type::Interface, Type::Interface],
            value: &[],
        },
    }
}

impl Layout {
    fn sets(self) -> [Set; 2] {
        [self.members, self.pairs]
    }

    fn rules(self) -> [Rule; 2] {
        [
            Rule::new([Statement::Redirected, Statement::Return]),
            Rule::new([
                Statement::InterfaceIn(self.members.name),
                Statement::OutInterfaceIn(self.members.name),
                Statement::InterfacesNotIn(self.pairs.name),
                Statement::Drop,
            ]),
        ]
    }

    /// Whether the rules are there, in their order; others between them are an administrator's.
    fn is_entered(self, socket: &Socket) -> Result<bool, Error> {
        let found = listing::rules(socket, TABLE, None)?;
        let mut found = found.iter().filter(|it| it.chain == FORWARD);
        Ok(self
            .rules()
            .iter()
            .all(|rule| found.any(|it| it.does(Family::Inet, rule))))
    }

    /// The elements whose owner is `wanted`.
    fn entries(
        self,
        socket: &Socket,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<Element>, Error> {
        let mut all = Vec::new();
        for set in self.sets() {
            let entries = listing::entries(socket, TABLE, set, &wanted)?;
            all.extend(entries.into_iter().map(|entry| Element {
                set,
                key: entry.key,
                value: entry.value,
                owner: entry.owner,
            }));
        }
        Ok(all)
    }

    /// Those of `elements` that are not there.
    fn missing(self, socket: &Socket, elements: Vec<Element>) -> Result<Vec<Element>, Error> {
        let mut missing = Vec::new();
        for element in elements {
            if listing::entry_at(socket, TABLE, element.set, &element.key)?.is_none() {
                missing.push(element);
            }
        }
        Ok(missing)
    }
}

/// A network that is kept apart from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Separation {
    /// Its name.
    pub network: String,
    /// The names of its devices on this node: its bridge, and what leads to other nodes.
    pub devices: Vec<String>,
}

impl Separation {
    fn elements(&self, layout: Layout) -> Vec<Element> {
        let owner = comment(&self.network);
        let element = |set, names: &[&String]| Element {
            set,
            key: names.iter().map(|name| Part::interface(name)).collect(),
            value: Vec::new(),
            owner: owner.clone(),
        };
        let mut all = Vec::new();
        for one in &self.devices {
            all.push(element(layout.members, &[one]));
            let others = self.devices.iter();
            all.extend(others.map(|other| element(layout.pairs, &[one, other])));
        }
        all
    }
}

/// Changes that keep the network apart; none if it is.
pub fn add(socket: &Socket, wanted: &Separation) -> Result<Transaction, Error> {
    let entered = LAYOUT.is_entered(socket)?;
    let elements = wanted.elements(LAYOUT);
    // All of a network's are written in one transaction: the last one stands for them,
    // and an ADD among many has to ask for no more.
    if let (true, Some(last)) = (entered, elements.last())
        && listing::entry_at(socket, TABLE, last.set, &last.key)?.is_some()
    {
        return Ok(Transaction::new());
    }
    let missing = LAYOUT.missing(socket, elements)?;
    let mut changes = additions(entered, missing);
    if !entered && OLD_LAYOUT.is_entered(socket)? {
        changes.extend(replacement(&OLD_LAYOUT.entries(socket, |_| true)?, wanted));
    }
    Ok(changes)
}

/// What follows new rules where those of an earlier release were: its elements in our sets, but for
/// those of `wanted`, which are there already; its sets go.
fn replacement(old: &[Element], wanted: &Separation) -> Transaction {
    let own = comment(&wanted.network);
    let mut changes = Transaction::new();
    for element in old.iter().filter(|it| it.owner != own) {
        let is_member = element.set == OLD_LAYOUT.members;
        let set = match is_member {
            true => LAYOUT.members,
            false => LAYOUT.pairs,
        };
        let element = Element {
            set,
            ..element.clone()
        };
        changes.push(Change::CreateElement(TABLE, element));
    }
    for set in OLD_LAYOUT.sets() {
        changes.push(Change::DeleteSet(TABLE, set));
    }
    changes
}

/// Changes that take away what is there for the network.
pub fn remove(socket: &Socket, network: &str) -> Result<Transaction, Error> {
    let owner = comment(network);
    let mut changes = Transaction::new();
    for layout in [LAYOUT, OLD_LAYOUT] {
        for element in layout.entries(socket, |it| it == owner)? {
            changes.push(Change::DeleteElement(TABLE, element));
        }
    }
    Ok(changes)
}

/// What is missing, in words; `None` if nothing is.
pub fn missing(socket: &Socket, wanted: &Separation) -> Result<Option<String>, Error> {
    let layout = match OLD_LAYOUT.is_entered(socket)? {
        true => OLD_LAYOUT,
        false => LAYOUT,
    };
    if !layout.is_entered(socket)? {
        return Ok(Some(format!("no rules in chain {TABLE} {FORWARD}")));
    }
    let mut missing = layout.missing(socket, wanted.elements(layout))?.into_iter();
    Ok(missing.next().map(|element| {
        let what = Change::CreateElement(TABLE, element).describe();
        format!("not done: {what}")
    }))
}

/// Two networks whose names begin alike for long have no comment in common.
fn comment(network: &str) -> String {
    format!("net: {}", names::short(network))
}

fn additions(entered: bool, missing: Vec<Element>) -> Transaction {
    let mut changes = Transaction::new();
    if entered && missing.is_empty() {
        return changes;
    }
    changes.push(Change::AddTable(TABLE));
    for set in LAYOUT.sets() {
        changes.push(Change::AddSet(TABLE, set));
    }
    changes.push(Change::AddChain(
        TABLE,
        Chain {
            name: FORWARD.into(),
            hook: Some(Hook {
                kind: "filter",
                point: Point::Forward,
                priority: 0,
            }),
            comment: "",
        },
    ));
    if !entered {
        changes.push(Change::FlushChain(TABLE, FORWARD.into()));
        for rule in LAYOUT.rules() {
            changes.push(Change::AddRule(TABLE, FORWARD.into(), rule));
        }
    }
    for element in missing {
        changes.push(Change::CreateElement(TABLE, element));
    }
    changes
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
        assert_eq!(replacement(&old, &own).to_string(), expected);
    }
}
