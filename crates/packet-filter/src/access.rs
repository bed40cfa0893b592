//! Access to networks for which this node forwards: which hosts reach their pods, and which hosts
//! their pods reach. The modes are those of Docker's bridge networks.
//!
//! There is a table for each family, with the same few rules for any number of networks and pods. A
//! network consists of elements of sets: its devices, by mode, and the pairs of its devices. A
//! packet of a connection that was let through before passes first. Packets that were redirected
//! pass where ports may be published: they are published to all. A packet to a pod's own address
//! was not redirected, so it does not pass, not even to a published port.
//!
//! A rule here can only drop. Packets that other tables drop stay dropped, except those that the
//! policy of iptables would drop ([`forwarding`]).

mod forwarding;
mod links;

use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;
use nftables::listing::{self, has_in_order};
use nftables::{
    Chain, Element, Error, Family, Field, Part, Point, Protocol, Rule, Set, Socket, Statement,
    Table, Transaction, Type,
};

use self::links::{LINKED, LINKS};
pub use self::links::{Linked, Links, OldLinks};
use crate::backend::{Nftables, complete, network_comment};
use crate::inventory::{Applied, Subject};
use crate::ports::layout::{is_of_network, owner, owner_comment};

/// Devices of networks whose pods are reached from other networks only through published ports.
const NAT: Set = Set::new("nat_devices", &[Type::Interface]);
/// The same for ports that are opened.
const ROUTED: Set = Set::new("routed_devices", &[Type::Interface]);
/// Devices of networks without a way out or in.
const INTERNAL: Set = Set::new("internal_devices", &[Type::Interface]);
/// The devices of these whose networks do not reach this node, either.
const ISOLATED: Set = Set::new("isolated_devices", &[Type::Interface]);
/// Pairs of devices of one network.
const WITHIN: Set = Set::new("within", &[Type::Interface, Type::Interface]);
/// Pairs of devices of one network whose pods are isolated from each other. Nodes have the set by this
/// name since it exists.
const ISOLATED_PODS: Set = Set::new("apart", &[Type::Interface, Type::Interface]);
/// Devices for which iptables accepts what its policy would drop.
const ACCEPTED: Set = Set::new("accepted_devices", &[Type::Interface]);
/// Opened ports of pods.
const OPENED: Set = Set::new("opened_ports", &[Type::Address, Type::Protocol, Type::Port]);

/// The sets that have the elements of pods.
const OF_PODS: [Set; 3] = [OPENED, LINKS, LINKED];

/// The sets that have the elements of networks.
const OF_NETWORKS: [Set; 7] = [
    NAT,
    ROUTED,
    INTERNAL,
    ISOLATED,
    WITHIN,
    ISOLATED_PODS,
    ACCEPTED,
];

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// What the node forwards between a network's pods and hosts outside of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayMode {
    /// To published ports; everything from them.
    Nat,
    /// Everything.
    NatUnprotected,
    /// To opened ports, and pings; everything from them.
    Routed,
    /// Nothing.
    Internal,
    /// Nothing; the node itself is not reached, either.
    Isolated,
}

/// The access to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The network's name.
    pub network: String,
    /// The names of its devices on this node: its bridge, and the device that leads to other nodes.
    pub devices: Vec<String>,
    /// The mode of IPv4, and that of IPv6.
    pub modes: [GatewayMode; 2],
    /// Whether the node forwards nothing between pods of the network, except to published ports.
    pub isolates_pods: bool,
}

/// The ports of a pod that are opened where the mode is [`GatewayMode::Routed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPorts {
    /// The pod's attachment.
    pub owner: Attachment,
    /// Its addresses of the families with that mode.
    pub addresses: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<(Protocol, u16)>,
}

impl Nftables {
    /// Allows exactly the access that is `wanted`, whatever was allowed before. It can be repeated.
    pub fn ensure_access(&self, wanted: &Access) -> Result<()> {
        self.transact(|socket| add(socket, wanted))
    }

    /// Fails if something is missing, or if more is there.
    pub fn check_access(&self, wanted: &Access) -> Result<()> {
        complete(undone(&add(&self.socket, wanted)?))?;
        self.check_forwarded(wanted)
    }

    /// Whether there are rules about the access to the network.
    pub fn has_access(&self, network: &str) -> Result<bool> {
        let comment = network_comment(network);
        for family in FAMILIES {
            let found = listing::elements(&self.socket, table(family), &OF_NETWORKS, |it| {
                it == comment
            })?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lifts the restrictions of the network; with the last network, the tables are deleted.
    pub fn remove_access(&self, network: &str) -> Result<()> {
        self.drop_forwarded(network)?;
        let comment = network_comment(network);
        self.transact(|socket| remove(socket, &OF_NETWORKS, &|it| it == comment))
    }

    /// Opens the ports. It can be repeated.
    pub fn open_ports(&self, wanted: &OpenPorts) -> Result<()> {
        self.transact(|socket| open(socket, wanted))
    }

    /// Fails unless the ports are opened.
    pub fn check_open_ports(&self, wanted: &OpenPorts) -> Result<()> {
        complete(undone(&open(&self.socket, wanted)?))
    }

    /// Closes the ports of this owner, and no other's.
    pub fn close_ports(&self, owner: &Attachment) -> Result<()> {
        let own = self::owner(owner);
        self.transact(|socket| remove(socket, &[OPENED], &|it| it == own))
    }

    /// Closes the ports of attachments to `network` that are not `valid`.
    pub fn collect_open_ports(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        let alive: Vec<_> = valid
            .iter()
            .map(|it| owner_comment(network, &it.container_id, &it.ifname))
            .collect();
        let is_gone = |it: &str| is_of_network(it, network) && !alive.iter().any(|one| one == it);
        self.transact(|socket| remove(socket, &[OPENED], &is_gone))
    }
}

impl Access {
    fn mode(&self, family: Family) -> GatewayMode {
        self.modes[usize::from(family == Family::Ip6)]
    }

    fn elements(&self, family: Family) -> Vec<Element> {
        let comment = network_comment(&self.network);
        let (mode, part) = (self.mode(family), |name: &String| Part::interface(name));
        let of_mode: &[Set] = match mode {
            GatewayMode::Nat => &[NAT],
            GatewayMode::NatUnprotected => &[],
            GatewayMode::Routed => &[ROUTED],
            GatewayMode::Internal => &[INTERNAL],
            GatewayMode::Isolated => &[INTERNAL, ISOLATED],
        };
        let pairs = if self.isolates_pods {
            Some(ISOLATED_PODS)
        } else {
            (mode != GatewayMode::NatUnprotected).then_some(WITHIN)
        };
        let mut all = Vec::new();
        for one in &self.devices {
            all.extend(
                of_mode
                    .iter()
                    .map(|it| it.element([part(one)], [], &comment)),
            );
            if let Some(pairs) = pairs {
                let others = self.devices.iter().map(|other| [part(one), part(other)]);
                all.extend(others.map(|key| pairs.element(key, [], &comment)));
            }
        }
        all
    }

    /// The elements that stand for rules of iptables.
    fn accepted(&self) -> Vec<Element> {
        let comment = network_comment(&self.network);
        let element = |it: &String| ACCEPTED.element([Part::interface(it)], [], &comment);
        self.devices.iter().map(element).collect()
    }

    /// The keys that the network's elements may have.
    fn keys(&self) -> Vec<(Set, Vec<Part>)> {
        let part = |name: &String| Part::interface(name);
        let mut all = Vec::new();
        for one in &self.devices {
            let sets = [NAT, ROUTED, INTERNAL, ISOLATED];
            all.extend(sets.map(|set| (set, vec![part(one)])));
            for other in &self.devices {
                let pair = vec![part(one), part(other)];
                all.extend([WITHIN, ISOLATED_PODS].map(|set| (set, pair.clone())));
            }
        }
        all
    }
}

impl OpenPorts {
    fn elements(&self, family: Family) -> Vec<Element> {
        let comment = owner(&self.owner);
        let is_of_family = |it: &&IpAddr| it.is_ipv6() == (family == Family::Ip6);
        let mut all = Vec::<Element>::new();
        for address in self.addresses.iter().filter(is_of_family) {
            for (protocol, port) in &self.ports {
                let key = [
                    Part::Address(*address),
                    Part::Protocol(*protocol),
                    Part::Port(*port),
                ];
                if !all.iter().any(|it| it.key == key) {
                    all.push(OPENED.element(key, [], &comment));
                }
            }
        }
        all
    }
}

fn table(family: Family) -> Table {
    Table::new(family, "podwire_access")
}

/// The chains and their rules.
fn chains() -> [(Chain, Vec<Rule>); 5] {
    let (from, to) = (Field::Interface, Field::OutInterface);
    let is_in = |field, set: Set| Statement::In(vec![field], set.name);
    let is_pair = |set: Set| Statement::In(vec![from, to], set.name);
    let pass = |condition| Rule::new([condition, Statement::Return]);
    let drop = |condition| Rule::new([condition, Statement::Drop]);
    let goto = |chain: &str| Statement::Goto(chain.into());
    let judge = |condition, chain| Rule::new([condition, goto(chain)]);
    let opened = vec![Field::Destination, Field::Protocol, Field::Port];
    let linked = [&[Field::Source], &opened[..]].concat();
    let forward = vec![
        pass(Statement::Established),
        pass(is_pair(WITHIN)),
        pass(Statement::In(linked, LINKS.name)),
        judge(is_pair(ISOLATED_PODS), "to_published"),
        drop(is_in(from, INTERNAL)),
        drop(is_in(to, INTERNAL)),
        judge(is_in(to, NAT), "to_published"),
        judge(is_in(to, ROUTED), "to_opened"),
    ];
    let to_published = vec![pass(Statement::Redirected), Rule::new([Statement::Drop])];
    let to_opened = vec![
        pass(Statement::EchoRequest),
        pass(Statement::In(opened, OPENED.name)),
        Rule::new([goto("to_published")]),
    ];
    let hooked = |name, point| Chain::hooked(name, "filter", point, 0);
    [
        (Chain::new("to_published"), to_published),
        (Chain::new("to_opened"), to_opened),
        (hooked("forward", Point::Forward), forward),
        (
            hooked("input", Point::Input),
            vec![drop(is_in(from, ISOLATED))],
        ),
        (
            hooked("output", Point::Output),
            vec![
                drop(is_in(to, ISOLATED)),
                // Linked pods reach each other only through the node.
                Rule::new([
                    Statement::RedirectAdvice,
                    Statement::In(vec![to, to], ISOLATED_PODS.name),
                    Statement::Drop,
                ]),
            ],
        ),
    ]
}

fn is_installed(socket: &Socket, family: Family) -> Result<bool, Error> {
    let found = listing::rules(socket, table(family))?;
    let has = |(chain, rules): &(Chain, Vec<Rule>)| has_in_order(&found, &chain.name, rules);
    Ok(chains().iter().all(has))
}

fn installation(family: Family) -> Transaction {
    let (mut changes, table) = (Transaction::new(), table(family));
    changes.add_table(table);
    for set in OF_NETWORKS.into_iter().chain(OF_PODS) {
        changes.add_set(table, set);
    }
    for (chain, rules) in chains() {
        changes.fill_chain(table, chain, rules);
    }
    changes
}

/// Changes that allow exactly what is `wanted`; none if that is the case already.
pub fn add(socket: &Socket, wanted: &Access) -> Result<Transaction, Error> {
    let mut all = Transaction::new();
    for family in FAMILIES {
        let elements = wanted.elements(family);
        let is_installed = is_installed(socket, family)?;
        let mut changes = Transaction::new();
        if !is_installed && !elements.is_empty() {
            changes.extend(installation(family));
        }
        // Looked up one by one: the sets have the elements of all networks.
        for (set, key) in wanted.keys() {
            let found = listing::element_at(socket, table(family), set, &key)?;
            let element = elements.iter().find(|it| it.set == set && it.key == key);
            if found.as_ref() == element {
                continue;
            }
            // An element of another network on the same bridge becomes one of this network.
            if let Some(found) = found {
                changes.delete_element(table(family), found);
            }
            if let Some(element) = element {
                changes.create_element(table(family), element.clone());
            }
        }
        all.extend(changes);
    }
    Ok(all)
}

/// Changes that open the ports; none if they are open.
pub fn open(socket: &Socket, wanted: &OpenPorts) -> Result<Transaction, Error> {
    ensure_elements(socket, |it| wanted.elements(it))
}

/// Changes that link the pods; none if they are linked.
pub fn link(socket: &Socket, wanted: &Links) -> Result<Transaction, Error> {
    ensure_elements(socket, |it| wanted.elements(it))
}

/// Changes that add the elements of pods that are `wanted` in each family; none if they exist.
fn ensure_elements(
    socket: &Socket,
    wanted: impl Fn(Family) -> Vec<Element>,
) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let elements = wanted(family);
        if !elements.is_empty() && !is_installed(socket, family)? {
            changes.extend(installation(family));
        }
        for element in elements {
            let found = listing::element_at(socket, table(family), element.set, &element.key)?;
            if found.as_ref() == Some(&element) {
                continue;
            }
            // The element belongs to a pod that had the address before.
            if let Some(found) = found {
                changes.delete_element(table(family), found);
            }
            changes.create_element(table(family), element);
        }
    }
    Ok(changes)
}

/// Changes that remove the elements of `sets` whose comment is `gone`, and the table of a family
/// that has no other elements.
fn remove(
    socket: &Socket,
    sets: &[Set],
    gone: &dyn Fn(&str) -> bool,
) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for family in FAMILIES {
        let table = table(family);
        if !listing::has_table(socket, family, table.name)? {
            continue;
        }
        let found = listing::elements(socket, table, sets, gone)?;
        let every = [&OF_NETWORKS[..], &OF_PODS[..]].concat();
        // A change of the mode may have left the sets empty before.
        if listing::elements(socket, table, &every, |_| true)?.len() == found.len() {
            changes.delete_table(table);
            continue;
        }
        for element in found {
            changes.delete_element(table, element);
        }
    }
    Ok(changes)
}

/// A change of the rules, in words; `None` without a change.
fn undone(changes: &Transaction) -> Option<String> {
    let first = changes.changes().first()?;
    Some(format!("not done: {}", first.describe()))
}

/// The effect of the elements, for people.
pub fn inventory(socket: &Socket) -> Result<Vec<Applied>, Error> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let table = table(family);
        for element in listing::elements(socket, table, &OF_NETWORKS, |_| true)? {
            all.push(Applied::element(Subject::Access, table, &element));
        }
        for element in listing::elements(socket, table, &[OPENED], |_| true)? {
            all.push(Applied::element(Subject::OpenPort, table, &element));
        }
        for element in listing::elements(socket, table, &[LINKS], |_| true)? {
            // Its comment names the client.
            let server = links::addresses(&element).last().copied();
            all.push(Applied {
                subnet: server.map(ipnetwork::IpNetwork::from),
                ..Applied::element(Subject::Link, table, &element)
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(modes: [GatewayMode; 2]) -> Access {
        Access {
            network: "mynet".into(),
            devices: vec!["cni0".into()],
            modes,
            isolates_pods: false,
        }
    }

    fn texts(wanted: &Access, family: Family) -> Vec<String> {
        let elements = wanted.elements(family).into_iter();
        elements
            .map(|it| format!("{} {}", it.set.name, it.key_text()))
            .collect()
    }

    #[test]
    fn the_rules_are_the_same_for_any_number_of_networks() {
        let expected = "\
add table ip6 podwire_access
add set ip6 podwire_access nat_devices { type ifname ; }
add set ip6 podwire_access routed_devices { type ifname ; }
add set ip6 podwire_access internal_devices { type ifname ; }
add set ip6 podwire_access isolated_devices { type ifname ; }
add set ip6 podwire_access within { type ifname . ifname ; }
add set ip6 podwire_access apart { type ifname . ifname ; }
add set ip6 podwire_access accepted_devices { type ifname ; }
add set ip6 podwire_access opened_ports { type ipv6_addr . inet_proto . inet_service ; }
add set ip6 podwire_access links { type ipv6_addr . ipv6_addr . inet_proto . inet_service ; }
add set ip6 podwire_access linked { type ipv6_addr . ipv6_addr . inet_proto . inet_service ; }
add chain ip6 podwire_access to_published
flush chain ip6 podwire_access to_published
add rule ip6 podwire_access to_published ct status dnat return
add rule ip6 podwire_access to_published drop
add chain ip6 podwire_access to_opened
flush chain ip6 podwire_access to_opened
add rule ip6 podwire_access to_opened icmpv6 type echo-request return
add rule ip6 podwire_access to_opened ip6 daddr . meta l4proto . th dport @opened_ports return
add rule ip6 podwire_access to_opened goto to_published
add chain ip6 podwire_access forward { type filter hook forward priority 0 ; policy accept ; }
flush chain ip6 podwire_access forward
add rule ip6 podwire_access forward ct state established,related return
add rule ip6 podwire_access forward iifname . oifname @within return
add rule ip6 podwire_access forward ip6 saddr . ip6 daddr . meta l4proto . th dport @links return
add rule ip6 podwire_access forward iifname . oifname @apart goto to_published
add rule ip6 podwire_access forward iifname @internal_devices drop
add rule ip6 podwire_access forward oifname @internal_devices drop
add rule ip6 podwire_access forward oifname @nat_devices goto to_published
add rule ip6 podwire_access forward oifname @routed_devices goto to_opened
add chain ip6 podwire_access input { type filter hook input priority 0 ; policy accept ; }
flush chain ip6 podwire_access input
add rule ip6 podwire_access input iifname @isolated_devices drop
add chain ip6 podwire_access output { type filter hook output priority 0 ; policy accept ; }
flush chain ip6 podwire_access output
add rule ip6 podwire_access output oifname @isolated_devices drop
add rule ip6 podwire_access output icmpv6 type nd-redirect oifname . oifname @apart drop
";
        assert_eq!(installation(Family::Ip6).to_string(), expected);
    }

    #[test]
    fn a_network_is_elements_by_mode() {
        let both = access([GatewayMode::Nat, GatewayMode::Isolated]);
        let v4 = ["nat_devices \"cni0\"", "within \"cni0\" . \"cni0\""];
        assert_eq!(texts(&both, Family::Ip), v4);
        let v6 = [
            "internal_devices \"cni0\"",
            "isolated_devices \"cni0\"",
            "within \"cni0\" . \"cni0\"",
        ];
        assert_eq!(texts(&both, Family::Ip6), v6);
        let open = access([GatewayMode::NatUnprotected; 2]);
        assert!(texts(&open, Family::Ip).is_empty());
        let apart = Access {
            isolates_pods: true,
            ..open
        };
        assert_eq!(texts(&apart, Family::Ip), ["apart \"cni0\" . \"cni0\""]);
    }

    #[test]
    fn each_element_is_at_one_of_the_keys() {
        for mode in [GatewayMode::Nat, GatewayMode::Routed, GatewayMode::Isolated] {
            let mut wanted = access([mode; 2]);
            wanted.devices.push("vxlan.5".into());
            let keys = wanted.keys();
            for element in wanted.elements(Family::Ip) {
                assert!(keys.contains(&(element.set, element.key)));
            }
        }
    }
}
