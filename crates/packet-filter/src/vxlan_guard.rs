//! The VXLAN guard: which hosts may send a VXLAN network's packets to this node.
//!
//! The kernel accepts every UDP packet with the port and the VNI, from any interface and any sender:
//! a pod that sends one to its gateway is in the network, and so is a neighbour of the node. So such
//! packets are dropped
//!
//! - in `prerouting` where they come in by an interface that is no uplink of the network, to the node
//!   and through it: with `ipMasq`, a pod's packet would reach another node with this node's
//!   address. A known peer may come by any interface that leads to it. The chain comes after the
//!   translation of the destination, and before that of the source;
//! - in `input` where the peers are known and the source is none of them. What is only forwarded
//!   from an uplink may belong to other hosts.
//!
//! Packets with another VNI pass: they belong to other programs that use the same port. The first
//! fragment of a packet may be too short to have a VNI. No program sends such fragments, and without
//! the first there is no packet: they are dropped.
//!
//! All of this is in sets, so the cost of a packet does not depend on the number of networks and
//! peers.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::Result;
use nftables::listing::{self, has_in_order};
use nftables::{
    Chain, Element, Error, Family, Field, Part, Point, Rule, Set, Socket, Statement, Table,
    Transaction, Type,
};

use crate::backend::{Nftables, complete, network_comment};
use crate::inventory::{Applied, Subject};

/// The UDP ports of all networks.
const PORTS: Set = Set::new("ports", &[Type::Port]);
/// All networks.
const NETWORKS: Set = Set::new("networks", &[Type::Port, Type::Vni]);
/// The networks whose peers are known.
const CLOSED: Set = Set::new("closed", &[Type::Port, Type::Vni]);
/// The interfaces by which the packets of a network come in.
const UPLINKS: Set = Set::new("uplinks", &[Type::Interface, Type::Port, Type::Vni]);
/// The hosts that may send.
const PEERS: Set = Set::new("peers", &[Type::Address, Type::Port, Type::Vni]);
const SETS: [Set; 5] = [PORTS, NETWORKS, CLOSED, UPLINKS, PEERS];

/// After the destination is translated (-100).
const AFTER_DNAT: i32 = -50;
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
    /// The names of the interfaces by which its packets come in.
    pub uplinks: Vec<String>,
    /// The addresses of all hosts that may send; `None` where they are not known.
    pub peers: Option<Vec<IpAddr>>,
}

impl Nftables {
    /// Drops VXLAN packets that `wanted`, one for each network, does not allow. It can be repeated.
    pub fn ensure_vxlan_guards(&self, wanted: &[VxlanGuard]) -> Result<()> {
        self.transact(|socket| add(socket, wanted))
    }

    /// Whether the network is guarded, by one lookup: all elements of a network are written in one
    /// transaction.
    pub fn has_vxlan_guard(&self, wanted: &VxlanGuard) -> Result<bool> {
        let found = listing::element_at(&self.socket, wanted.table(), NETWORKS, &wanted.key())?;
        Ok(found.is_some_and(|it| it.comment == network_comment(&wanted.network)))
    }

    /// Fails if something of it is missing, or if more is there.
    pub fn check_vxlan_guard(&self, wanted: &VxlanGuard) -> Result<()> {
        complete(missing(&self.socket, wanted)?)
    }
}

impl VxlanGuard {
    fn table(&self) -> Table {
        table(if self.local.is_ipv4() {
            Family::Ip
        } else {
            Family::Ip6
        })
    }

    fn key(&self) -> [Part; 2] {
        [Part::Port(self.port), Part::Vni(self.vni)]
    }

    fn elements(&self) -> Vec<Element> {
        let comment = network_comment(&self.network);
        let [port, vni] = self.key();
        let element = |set: Set, key: &[Part]| set.element(key, [], &comment);
        let mut all = vec![element(NETWORKS, &[port, vni])];
        let uplinks = self.uplinks.iter().map(|name| Part::interface(name));
        all.extend(uplinks.map(|uplink| element(UPLINKS, &[uplink, port, vni])));
        if let Some(peers) = &self.peers {
            all.push(element(CLOSED, &[port, vni]));
            let mut seen = HashSet::new();
            let peers = peers.iter().filter(|ip| seen.insert(**ip));
            all.extend(peers.map(|ip| element(PEERS, &[Part::Address(*ip), port, vni])));
        }
        all
    }
}

/// The element of a port. It belongs to all networks with that port.
fn port_element(port: Part) -> Element {
    PORTS.element([port], [], "")
}

/// Changes that make the kernel drop packets that are not `wanted`, and remove other elements of
/// these networks; none if nothing differs.
pub fn add(socket: &Socket, wanted: &[VxlanGuard]) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let table = table(family);
        let (here, others): (Vec<_>, Vec<_>) = wanted.iter().partition(|it| it.table() == table);
        if !here.is_empty() {
            changes.extend(ensure(socket, table, &here)?);
        }
        for other in others {
            // The underlay had another family.
            changes.extend(remove_from(socket, table, &other.network)?);
        }
    }
    Ok(changes)
}

/// Changes that remove the elements of the network; with the last network, everything.
pub fn remove(socket: &Socket, network: &str) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        changes.extend(remove_from(socket, table(family), network)?);
    }
    Ok(changes)
}

/// What is missing, as a text; `None` if nothing is.
fn missing(socket: &Socket, wanted: &VxlanGuard) -> Result<Option<String>, Error> {
    let table = wanted.table();
    if !is_installed(socket, table)? {
        return Ok(Some(format!("no rules, or others, in table {table}")));
    }
    let Difference { missing, stale, .. } = difference(socket, table, &[wanted])?;
    let mut changes = additions(table, true, missing);
    delete_all(&mut changes, table, stale);
    let first = changes.changes().first();
    Ok(first.map(|change| format!("not done: {}", change.describe())))
}

fn table(family: Family) -> Table {
    Table::new(family, "podwire_vxlan")
}

fn delete_all(changes: &mut Transaction, table: Table, elements: Vec<Element>) {
    for element in elements {
        changes.delete_element(table, element);
    }
}

fn ensure(socket: &Socket, table: Table, wanted: &[&VxlanGuard]) -> Result<Transaction, Error> {
    let installed = is_installed(socket, table)?;
    let found = difference(socket, table, wanted)?;
    let unused = unused_ports(&found.stale, &found.staying);
    let mut changes = Transaction::new();
    delete_all(&mut changes, table, found.stale);
    delete_all(&mut changes, table, unused);
    changes.extend(additions(table, installed, found.missing));
    Ok(changes)
}

fn remove_from(socket: &Socket, table: Table, network: &str) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    let stale = of_comment(socket, table, &network_comment(network))?;
    if stale.is_empty() {
        return Ok(changes);
    }
    let others = networks(socket, table, network)?;
    if others.is_empty() {
        changes.delete_table(table);
    } else {
        let unused = unused_ports(&stale, &others);
        delete_all(&mut changes, table, stale);
        delete_all(&mut changes, table, unused);
    }
    Ok(changes)
}

/// The changes to make.
struct Difference {
    /// The elements that are wanted and missing.
    missing: Vec<Element>,
    /// Existing elements of the wanted networks that are not wanted.
    stale: Vec<Element>,
    /// The keys of all networks afterwards.
    staying: Vec<Vec<Part>>,
}

fn difference(socket: &Socket, table: Table, wanted: &[&VxlanGuard]) -> Result<Difference, Error> {
    let mut missing: Vec<Element> = wanted.iter().flat_map(|it| it.elements()).collect();
    let id = |it: &Element| (it.set.name, it.key.clone(), it.comment.clone());
    let wanted_ids: HashSet<_> = missing.iter().map(id).collect();
    let mut staying: Vec<Vec<Part>> = wanted.iter().map(|it| it.key().into()).collect();
    let keys: HashSet<Vec<Part>> = staying.iter().cloned().collect();
    let mut comments: HashSet<String> = wanted
        .iter()
        .map(|it| network_comment(&it.network))
        .collect();
    let networks = listing::elements(socket, table, &[NETWORKS], |_| true)?;
    let renamed = networks.iter().filter(|it| keys.contains(&it.key));
    comments.extend(renamed.map(|it| it.comment.clone()));
    let others = networks
        .into_iter()
        .filter(|it| !comments.contains(&it.comment));
    staying.extend(others.map(|it| it.key));
    let mut stale = listing::elements(socket, table, &SETS, |it| comments.contains(it))?;
    let present_ids: HashSet<_> = stale.iter().map(id).collect();
    missing.retain(|it| !present_ids.contains(&id(it)));
    stale.retain(|it| !wanted_ids.contains(&id(it)));
    for port in wanted.iter().map(|it| it.port).collect::<HashSet<_>>() {
        let port = port_element(Part::Port(port));
        if listing::element_at(socket, table, PORTS, &port.key)?.is_none() {
            missing.push(port);
        }
    }
    Ok(Difference {
        missing,
        stale,
        staying,
    })
}

fn of_comment(socket: &Socket, table: Table, comment: &str) -> Result<Vec<Element>, Error> {
    listing::elements(socket, table, &SETS, |it| it == comment)
}

/// The keys of all networks but one.
fn networks(socket: &Socket, table: Table, but: &str) -> Result<Vec<Vec<Part>>, Error> {
    let own = network_comment(but);
    let others = listing::elements(socket, table, &[NETWORKS], |it| it != own)?;
    Ok(others.into_iter().map(|it| it.key).collect())
}

/// The ports of the networks among `gone`, without those of `others`.
fn unused_ports(gone: &[Element], others: &[Vec<Part>]) -> Vec<Element> {
    let networks = gone.iter().filter(|it| it.set == NETWORKS);
    let ports: HashSet<Part> = networks
        .filter_map(|it| it.key.first().copied())
        .filter(|port| !others.iter().any(|key| key.first() == Some(port)))
        .collect();
    ports.into_iter().map(port_element).collect()
}

/// Chains and their rules: the hooked ones lead to the others.
fn chains() -> [(Chain, Vec<Rule>); 4] {
    let (port, vni) = (Field::UdpPort, Field::Vni);
    let rule = |statements: &[Statement]| Rule::new(statements);
    let enter = |to: &str| {
        let is_vxlan = Statement::In(vec![port], PORTS.name);
        vec![rule(&[is_vxlan, Statement::Goto(to.to_owned())])]
    };
    let local = || rule(&[Statement::Interface("lo".into()), Statement::Return]);
    let not_in = |set: Set| {
        let condition = Statement::NotIn(vec![port, vni], set.name);
        rule(&[condition, Statement::Return])
    };
    let from_uplink = Statement::In(vec![Field::Interface, port, vni], UPLINKS.name);
    let from_peer = Statement::In(vec![Field::Source, port, vni], PEERS.name);
    let interfaces = vec![
        local(),
        not_in(NETWORKS),
        rule(&[from_uplink, Statement::Return]),
        rule(&[from_peer.clone(), Statement::ReversePath, Statement::Return]),
        rule(&[Statement::Drop]),
    ];
    let hosts = vec![
        local(),
        not_in(CLOSED),
        rule(&[from_peer, Statement::Return]),
        rule(&[Statement::Drop]),
    ];
    let prerouting = Chain::hooked("prerouting", "filter", Point::Prerouting, AFTER_DNAT);
    let input = Chain::hooked("input", "filter", Point::Input, 0);
    [
        (Chain::new("interfaces"), interfaces),
        (Chain::new("hosts"), hosts),
        (prerouting, enter("interfaces")),
        (input, enter("hosts")),
    ]
}

fn is_installed(socket: &Socket, table: Table) -> Result<bool, Error> {
    let found = listing::rules(socket, table)?;
    let has = |(chain, rules): &(Chain, Vec<Rule>)| has_in_order(&found, &chain.name, rules);
    Ok(chains().iter().all(has))
}

fn additions(table: Table, installed: bool, missing: Vec<Element>) -> Transaction {
    let mut changes = Transaction::new();
    if !installed {
        changes.add_table(table);
        for set in SETS {
            changes.add_set(table, set);
        }
        for (chain, _) in chains() {
            changes.add_chain(table, chain);
        }
        for (chain, rules) in chains() {
            changes.refill_chain(table, chain.name, rules);
        }
    }
    for element in missing {
        changes.create_element(table, element);
    }
    changes
}

/// The effect of the elements, for people: the networks that are guarded.
pub fn inventory(socket: &Socket) -> Result<Vec<Applied>, Error> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let table = table(family);
        for element in listing::elements(socket, table, &[NETWORKS], |_| true)? {
            all.push(Applied::element(Subject::VxlanGuard, table, &element));
        }
    }
    Ok(all)
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
        let changes = additions(wanted.table(), false, wanted.elements());
        assert_eq!(changes.to_string(), expected);
        assert!(additions(wanted.table(), true, Vec::new()).is_empty());
    }

    #[test]
    fn a_port_goes_with_the_last_network_that_has_it() {
        let gone = guard().elements();
        let ports = |others: &[Vec<Part>]| unused_ports(&gone, others).len();
        assert_eq!(ports(&[]), 1);
        assert_eq!(ports(&[vec![Part::Port(4789), Part::Vni(6)]]), 0);
        assert_eq!(ports(&[vec![Part::Port(8472), Part::Vni(6)]]), 1);
    }
}
