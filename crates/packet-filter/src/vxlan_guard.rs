//! Who may send a VXLAN network's packets to this node.
//!
//! The kernel takes every UDP packet that has the port and the VNI, whatever interface it
//! came in by and whoever sent it: a pod that sends one to its gateway is in the network,
//! and so is a neighbour of the node. So such packets are dropped
//!
//! - in `prerouting` where they come in by an interface that is no uplink of the network,
//!   to the node and through it: with `ipMasq`, a pod's packet would reach another node
//!   with this node's address. A known peer may come by any interface that leads to it.
//!   The chain comes after the destination was translated, and before the source is;
//! - in `input` where the peers are known and the source is none of them. What is only
//!   forwarded from an uplink may be of other hosts.
//!
//! Packets with another VNI pass: they are of other programs, which use the same port. The
//! first fragment of a packet may be too short to tell its VNI. No program sends such
//! fragments, and without the first there is no packet: they are dropped.
//!
//! All of it is sets, so a packet costs the same among any number of networks and peers.

use std::collections::HashSet;
use std::net::IpAddr;

use cni::names;

use nftables::Error;
use nftables::Socket;
use nftables::Statement;
use nftables::listing;
use nftables::{
    Chain, Change, Element, Family, Hook, Part, Point, Rule, Set, Table, Transaction, Type,
};

/// The UDP ports of all networks.
const PORTS: Set = Set {
    name: "ports",
    key: &[Type::Port],
    value: &[],
};
/// All networks.
const NETWORKS: Set = Set {
    name: "networks",
    key: &[Type::Port, Type::Vni],
    value: &[],
};
/// Those whose peers are known.
const CLOSED: Set = Set {
    name: "closed",
    key: &[Type::Port, Type::Vni],
    value: &[],
};
/// By which interfaces the packets of a network come in.
const UPLINKS: Set = Set {
    name: "uplinks",
    key: &[Type::Interface, Type::Port, Type::Vni],
    value: &[],
};
/// From whom.
const PEERS: Set = Set {
    name: "peers",
    key: &[Type::Address, Type::Port, Type::Vni],
    value: &[],
};
const SETS: [Set; 5] = [PORTS, NETWORKS, CLOSED, UPLINKS, PEERS];

/// After the destination is translated (-100).
const AFTER_DNAT: i32 = -50;
const LOOPBACK: &str = "lo";
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// A VXLAN network of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanGuard {
    /// Its name.
    pub network: String,
    /// An address of the underlay, for its family.
    pub local: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The names of the interfaces that its packets come in by.
    pub uplinks: Vec<String>,
    /// The addresses of all hosts that may send; `None` where they are not known.
    pub peers: Option<Vec<IpAddr>>,
}

impl VxlanGuard {
    fn table(&self) -> Table {
        table(match self.local {
            IpAddr::V4(_) => Family::Ip,
            IpAddr::V6(_) => Family::Ip6,
        })
    }

    fn key(&self) -> [Part; 2] {
        [Part::Port(self.port), Part::Vni(self.vni)]
    }

    /// What of it is not the network's own, but all networks' with its port.
    fn port_element(&self) -> Element {
        Element {
            set: PORTS,
            key: vec![Part::Port(self.port)],
            value: Vec::new(),
            owner: String::new(),
        }
    }

    fn elements(&self) -> Vec<Element> {
        let owner = owner(&self.network);
        let element = |set, first: Option<Part>| Element {
            set,
            key: first.into_iter().chain(self.key()).collect(),
            value: Vec::new(),
            owner: owner.clone(),
        };
        let mut all = vec![element(NETWORKS, None)];
        let uplinks = self.uplinks.iter();
        all.extend(uplinks.map(|name| element(UPLINKS, Some(Part::interface(name)))));
        if let Some(peers) = &self.peers {
            all.push(element(CLOSED, None));
            let mut seen = HashSet::new();
            let peers = peers.iter().filter(|ip| seen.insert(**ip));
            all.extend(peers.map(|ip| element(PEERS, Some(Part::Address(*ip)))));
        }
        all
    }
}

/// Whether the network is guarded, as far as one question can tell: all of a network's is
/// written in one transaction.
pub fn is_known(socket: &Socket, wanted: &VxlanGuard) -> Result<bool, Error> {
    let found = listing::entry_at(socket, wanted.table(), NETWORKS, &wanted.key())?;
    Ok(found.is_some_and(|it| it.owner == owner(&wanted.network)))
}

/// Changes that make the kernel drop what is not `wanted`, and forget what it knew of the
/// network before; none if nothing differs.
pub fn add(socket: &Socket, wanted: &VxlanGuard) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let table = table(family);
        if table == wanted.table() {
            changes.extend(ensure(socket, table, wanted)?);
        } else {
            // The underlay had another family.
            changes.extend(remove_from(socket, table, &wanted.network)?);
        }
    }
    Ok(changes)
}

/// Changes that take away what is there for the network; with the last network, all of it.
pub fn remove(socket: &Socket, network: &str) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        changes.extend(remove_from(socket, table(family), network)?);
    }
    Ok(changes)
}

/// What is missing, in words; `None` if nothing is.
pub fn missing(socket: &Socket, wanted: &VxlanGuard) -> Result<Option<String>, Error> {
    let table = wanted.table();
    if !is_entered(socket, table)? {
        return Ok(Some(format!("no rules, or others, in table {table}")));
    }
    let (missing, stale) = difference(socket, table, wanted)?;
    let missing = missing
        .into_iter()
        .map(|it| Change::CreateElement(table, it));
    let stale = stale.into_iter().map(|it| Change::DeleteElement(table, it));
    let first = missing.chain(stale).next();
    Ok(first.map(|change| format!("not done: {}", change.describe())))
}

fn table(family: Family) -> Table {
    Table {
        family,
        name: "podwire_vxlan",
        comment: "",
    }
}

/// The comment of what is a network's.
fn owner(network: &str) -> String {
    format!("net: {}", names::short(network))
}

fn ensure(socket: &Socket, table: Table, wanted: &VxlanGuard) -> Result<Transaction, Error> {
    let entered = is_entered(socket, table)?;
    let (missing, stale) = difference(socket, table, wanted)?;
    let others = networks(socket, table, &wanted.network)?;
    let unused = unused_ports(&stale, &others, Some(wanted.port));
    let mut changes = Transaction::new();
    for element in stale.into_iter().chain(unused) {
        changes.push(Change::DeleteElement(table, element));
    }
    changes.extend(additions(table, entered, &missing));
    Ok(changes)
}

fn remove_from(socket: &Socket, table: Table, network: &str) -> Result<Transaction, Error> {
    let stale = of_network(socket, table, network)?;
    let mut changes = Transaction::new();
    if stale.is_empty() {
        return Ok(changes);
    }
    let others = networks(socket, table, network)?;
    if others.is_empty() {
        changes.push(Change::DeleteTable(table));
        return Ok(changes);
    }
    let unused = unused_ports(&stale, &others, None);
    for element in stale.into_iter().chain(unused) {
        changes.push(Change::DeleteElement(table, element));
    }
    Ok(changes)
}

/// What is wanted and not there; what is there for the network and not wanted.
fn difference(
    socket: &Socket,
    table: Table,
    wanted: &VxlanGuard,
) -> Result<(Vec<Element>, Vec<Element>), Error> {
    let present = of_network(socket, table, &wanted.network)?;
    let mut missing = wanted.elements();
    let place = |it: &Element| (it.set.name, it.key.clone());
    let wanted_places: HashSet<_> = missing.iter().map(place).collect();
    let present_places: HashSet<_> = present.iter().map(place).collect();
    missing.retain(|it| !present_places.contains(&place(it)));
    let mut stale = present;
    stale.retain(|it| !wanted_places.contains(&place(it)));
    let port = wanted.port_element();
    if listing::entry_at(socket, table, PORTS, &port.key)?.is_none() {
        missing.push(port);
    }
    // Of a network that had another name.
    if let Some(entry) = listing::entry_at(socket, table, NETWORKS, &wanted.key())?
        && entry.owner != owner(&wanted.network)
    {
        stale.extend(of_owner(socket, table, &entry.owner)?);
    }
    Ok((missing, stale))
}

/// What is there for the network.
fn of_network(socket: &Socket, table: Table, network: &str) -> Result<Vec<Element>, Error> {
    of_owner(socket, table, &owner(network))
}

fn of_owner(socket: &Socket, table: Table, owner: &str) -> Result<Vec<Element>, Error> {
    let mut all = Vec::new();
    for set in SETS {
        let found = listing::entries(socket, table, set, |it| it == owner)?;
        all.extend(found.into_iter().map(|entry| Element {
            set,
            key: entry.key,
            value: entry.value,
            owner: entry.owner,
        }));
    }
    Ok(all)
}

/// The keys of all networks but one.
fn networks(socket: &Socket, table: Table, but: &str) -> Result<Vec<Vec<Part>>, Error> {
    let owner = owner(but);
    let others = listing::entries(socket, table, NETWORKS, |it| it != owner)?;
    Ok(others.into_iter().map(|it| it.key).collect())
}

/// The ports of those of `gone` that are networks, unless one of `others` has the same, or
/// it is the port that `stays`.
fn unused_ports(gone: &[Element], others: &[Vec<Part>], stays: Option<u16>) -> Vec<Element> {
    let ports: HashSet<Part> = gone
        .iter()
        .filter(|it| it.set == NETWORKS)
        .filter_map(|it| it.key.first().copied())
        .filter(|port| stays.is_none_or(|it| *port != Part::Port(it)))
        .filter(|port| !others.iter().any(|key| key.first() == Some(port)))
        .collect();
    let element = |port| Element {
        set: PORTS,
        key: vec![port],
        value: Vec::new(),
        owner: String::new(),
    };
    ports.into_iter().map(element).collect()
}

/// Chains and their rules: those that packets enter first go to the others.
fn chains() -> [(Chain, Vec<Rule>); 4] {
    let hook = |point, priority| {
        Some(Hook {
            kind: "filter",
            point,
            priority,
        })
    };
    let chain = |name: &'static str, hook| Chain {
        name: name.into(),
        hook,
        comment: "",
    };
    let enter = |to: &str| {
        vec![Rule::new([
            Statement::UdpPortIn(PORTS.name),
            Statement::Goto(to.to_owned()),
        ])]
    };
    let local = || Rule::new([Statement::Interface(LOOPBACK.to_owned()), Statement::Return]);
    let interfaces = vec![
        local(),
        Rule::new([Statement::VxlanNotIn(NETWORKS.name), Statement::Return]),
        Rule::new([
            Statement::InterfaceAndVxlanIn(UPLINKS.name),
            Statement::Return,
        ]),
        Rule::new([
            Statement::SourceAndVxlanIn(PEERS.name),
            Statement::ReversePath,
            Statement::Return,
        ]),
        Rule::new([Statement::Drop]),
    ];
    let hosts = vec![
        local(),
        Rule::new([Statement::VxlanNotIn(CLOSED.name), Statement::Return]),
        Rule::new([Statement::SourceAndVxlanIn(PEERS.name), Statement::Return]),
        Rule::new([Statement::Drop]),
    ];
    [
        (chain("interfaces", None), interfaces),
        (chain("hosts", None), hosts),
        (
            chain("prerouting", hook(Point::Prerouting, AFTER_DNAT)),
            enter("interfaces"),
        ),
        (chain("input", hook(Point::Input, 0)), enter("hosts")),
    ]
}

/// Whether the rules are there, in their order; others between them are an administrator's.
fn is_entered(socket: &Socket, table: Table) -> Result<bool, Error> {
    let found = listing::rules(socket, table, None)?;
    Ok(chains().iter().all(|(chain, rules)| {
        let mut found = found.iter().filter(|it| it.chain == chain.name);
        rules
            .iter()
            .all(|rule| found.any(|it| it.does(table.family, rule)))
    }))
}

fn additions(table: Table, entered: bool, missing: &[Element]) -> Transaction {
    let mut changes = Transaction::new();
    if entered && missing.is_empty() {
        return changes;
    }
    if !entered {
        changes.push(Change::AddTable(table));
        for set in SETS {
            changes.push(Change::AddSet(table, set));
        }
        for (chain, _) in chains() {
            changes.push(Change::AddChain(table, chain));
        }
        for (chain, rules) in chains() {
            changes.push(Change::FlushChain(table, chain.name.clone()));
            for rule in rules {
                changes.push(Change::AddRule(table, chain.name.clone(), rule));
            }
        }
    }
    for element in missing {
        changes.push(Change::CreateElement(table, element.clone()));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> VxlanGuard {
        VxlanGuard {
            network: "mynet".into(),
            local: IpAddr::from([192, 0, 2, 1]),
            port: 4789,
            vni: 5,
            uplinks: vec!["eth0".into()],
            peers: Some(vec![IpAddr::from([192, 0, 2, 2])]),
        }
    }

    #[test]
    fn sets_and_a_few_rules_guard_all_networks() {
        let wanted = guard();
        let expected = "\
add table ip podwire_vxlan
add set ip podwire_vxlan ports { type inet_service ; }
add set ip podwire_vxlan networks { typeof udp dport . @th,96,24 ; }
add set ip podwire_vxlan closed { typeof udp dport . @th,96,24 ; }
add set ip podwire_vxlan uplinks { typeof iifname . udp dport . @th,96,24 ; }
add set ip podwire_vxlan peers { typeof ip saddr . udp dport . @th,96,24 ; }
add chain ip podwire_vxlan interfaces
add chain ip podwire_vxlan hosts
add chain ip podwire_vxlan prerouting { type filter hook prerouting priority -50 ; policy accept ; }
add chain ip podwire_vxlan input { type filter hook input priority 0 ; policy accept ; }
flush chain ip podwire_vxlan interfaces
add rule ip podwire_vxlan interfaces iifname \"lo\" return
add rule ip podwire_vxlan interfaces udp dport . @th,96,24 != @networks return
add rule ip podwire_vxlan interfaces iifname . udp dport . @th,96,24 @uplinks return
add rule ip podwire_vxlan interfaces ip saddr . udp dport . @th,96,24 @peers fib saddr . iif oif exists return
add rule ip podwire_vxlan interfaces drop
flush chain ip podwire_vxlan hosts
add rule ip podwire_vxlan hosts iifname \"lo\" return
add rule ip podwire_vxlan hosts udp dport . @th,96,24 != @closed return
add rule ip podwire_vxlan hosts ip saddr . udp dport . @th,96,24 @peers return
add rule ip podwire_vxlan hosts drop
flush chain ip podwire_vxlan prerouting
add rule ip podwire_vxlan prerouting udp dport @ports goto interfaces
flush chain ip podwire_vxlan input
add rule ip podwire_vxlan input udp dport @ports goto hosts
create element ip podwire_vxlan networks { 4789 . 0x5 comment \"net: mynet\" }
create element ip podwire_vxlan uplinks { \"eth0\" . 4789 . 0x5 comment \"net: mynet\" }
create element ip podwire_vxlan closed { 4789 . 0x5 comment \"net: mynet\" }
create element ip podwire_vxlan peers { 192.0.2.2 . 4789 . 0x5 comment \"net: mynet\" }
";
        let changes = additions(wanted.table(), false, &wanted.elements());
        assert_eq!(changes.to_string(), expected);
        assert!(additions(wanted.table(), true, &[]).is_empty());
    }

    #[test]
    fn a_port_goes_with_the_last_network_that_has_it() {
        let gone = guard().elements();
        let ports = |others: &[Vec<Part>], stays| unused_ports(&gone, others, stays).len();
        assert_eq!(ports(&[], None), 1);
        assert_eq!(ports(&[], Some(4789)), 0);
        assert_eq!(ports(&[vec![Part::Port(4789), Part::Vni(6)]], None), 0);
        assert_eq!(ports(&[vec![Part::Port(8472), Part::Vni(6)]], None), 1);
    }
}
