//! Networks that are kept apart though this node forwards for all of them: what comes
//! from a device of one leaves by a device of the same, or by one of none.
//!
//! A node forwards between any two of its interfaces, so pods of two networks that are
//! told apart by their VNI would reach each other through their gateways. Two sets and one
//! rule see to it, however many networks there are. What was sent to a port of the node that
//! leads to a pod passes: who publishes a port means everybody.

use super::error::Error;
use super::expression::Statement;
use super::listing;
use super::socket::Socket;
use super::transaction::{
    Chain, Change, Element, Family, Hook, Part, Point, Rule, Set, Table, Transaction, Type, fitting,
};

const TABLE: Table = Table {
    family: Family::Inet,
    name: "podwire_networks",
    comment: "",
};
const FORWARD: &str = "forward";

/// The devices of all networks.
const DEVICES: Set = Set {
    name: "devices",
    key: &[Type::Interface],
    value: &[],
};
/// Pairs of devices of one network.
const INSIDE: Set = Set {
    name: "inside",
    key: &[Type::Interface, Type::Interface],
    value: &[],
};

/// A network that is kept apart from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart {
    /// Its name.
    pub network: String,
    /// The names of its devices on this node: its bridge, and what leads to other nodes.
    pub devices: Vec<String>,
}

impl Apart {
    fn elements(&self) -> Vec<Element> {
        let owner = fitting(&comment(&self.network)).to_owned();
        let element = |set, names: &[&String]| Element {
            set,
            key: names.iter().map(|name| Part::interface(name)).collect(),
            value: Vec::new(),
            owner: owner.clone(),
        };
        let mut all = Vec::new();
        for one in &self.devices {
            all.push(element(DEVICES, &[one]));
            let others = self.devices.iter();
            all.extend(others.map(|other| element(INSIDE, &[one, other])));
        }
        all
    }
}

/// Changes that keep the network apart; none if it is.
pub fn add(socket: &Socket, wanted: &Apart) -> Result<Transaction, Error> {
    let entered = is_entered(socket)?;
    let mut missing = wanted.elements();
    // All of a network's are written in one transaction: the last one stands for them,
    // and an ADD among many has to ask for no more.
    let last = missing.last().map(|it| (it.set, it.key.clone()));
    if let (true, Some((set, key))) = (entered, last)
        && listing::entry_at(socket, TABLE, set, &key)?.is_some()
    {
        return Ok(Transaction::new());
    }
    missing.clear();
    for element in wanted.elements() {
        if listing::entry_at(socket, TABLE, element.set, &element.key)?.is_none() {
            missing.push(element);
        }
    }
    Ok(additions(entered, missing))
}

/// Changes that take away what is there for the network.
pub fn remove(socket: &Socket, network: &str) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    let comment = comment(network);
    let owner = fitting(&comment);
    for set in [DEVICES, INSIDE] {
        for entry in listing::entries(socket, TABLE, set, |it| it == owner)? {
            let element = Element {
                set,
                key: entry.key,
                value: entry.value,
                owner: entry.owner,
            };
            changes.push(Change::DeleteElement(TABLE, element));
        }
    }
    Ok(changes)
}

/// What is missing, in words; `None` if nothing is.
pub fn missing(socket: &Socket, wanted: &Apart) -> Result<Option<String>, Error> {
    if !is_entered(socket)? {
        return Ok(Some(format!("no rules in chain {TABLE} {FORWARD}")));
    }
    for element in wanted.elements() {
        if listing::entry_at(socket, TABLE, element.set, &element.key)?.is_none() {
            let what = Change::CreateElement(TABLE, element).describe();
            return Ok(Some(format!("not done: {what}")));
        }
    }
    Ok(None)
}

fn comment(network: &str) -> String {
    format!("net: {network}")
}

fn rules() -> [Rule; 2] {
    [
        Rule::new([Statement::Redirected, Statement::Return]),
        Rule::new([
            Statement::InterfaceIn(DEVICES.name),
            Statement::OutInterfaceIn(DEVICES.name),
            Statement::InterfacesNotIn(INSIDE.name),
            Statement::Drop,
        ]),
    ]
}

/// Whether the rules are there, in their order; others between them are an administrator's.
fn is_entered(socket: &Socket) -> Result<bool, Error> {
    let found = listing::rules(socket, TABLE, None)?;
    let mut found = found.iter().filter(|it| it.chain == FORWARD);
    Ok(rules()
        .iter()
        .all(|rule| found.any(|it| it.does(Family::Inet, rule))))
}

fn additions(entered: bool, missing: Vec<Element>) -> Transaction {
    let mut changes = Transaction::new();
    if entered && missing.is_empty() {
        return changes;
    }
    changes.push(Change::AddTable(TABLE));
    for set in [DEVICES, INSIDE] {
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
        for rule in rules() {
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
        let wanted = Apart {
            network: "mynet".into(),
            devices: vec!["vxbr0".into(), "vxlan.5".into()],
        };
        let expected = "\
add table inet podwire_networks
add set inet podwire_networks devices { type ifname ; }
add set inet podwire_networks inside { type ifname . ifname ; }
add chain inet podwire_networks forward { type filter hook forward priority 0 ; policy accept ; }
flush chain inet podwire_networks forward
add rule inet podwire_networks forward ct status dnat return
add rule inet podwire_networks forward iifname @devices oifname @devices iifname . oifname != @inside drop
create element inet podwire_networks devices { \"vxbr0\" comment \"net: mynet\" }
create element inet podwire_networks inside { \"vxbr0\" . \"vxbr0\" comment \"net: mynet\" }
create element inet podwire_networks inside { \"vxbr0\" . \"vxlan.5\" comment \"net: mynet\" }
create element inet podwire_networks devices { \"vxlan.5\" comment \"net: mynet\" }
create element inet podwire_networks inside { \"vxlan.5\" . \"vxbr0\" comment \"net: mynet\" }
create element inet podwire_networks inside { \"vxlan.5\" . \"vxlan.5\" comment \"net: mynet\" }
";
        assert_eq!(additions(false, wanted.elements()).to_string(), expected);
        assert!(additions(true, Vec::new()).is_empty());
    }
}
