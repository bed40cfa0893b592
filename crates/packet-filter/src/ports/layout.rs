//! The tables of published ports: sets, chains, and the elements that a pod's
//! ports are. Nothing here asks the kernel.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Attachment, names};
use ipnetwork::IpNetwork;

use crate::ports::{HostPorts, Mapping, Snat};
use nftables::listing::Listed;
use nftables::{
    COMMENT_LENGTH, Chain, Change, Element, Family, Hook, Part, Point, Rule, Set, Table,
    Transaction, Type,
};
use nftables::{Side, Statement};

/// Where a port of one of the node's addresses leads.
pub const HOSTIP_PORTS: Set = Set {
    name: "hostip_ports",
    key: &[Type::Address, Type::Protocol, Type::Port],
    value: &[Type::Address, Type::Port],
};
/// Where a port of all of the node's addresses leads.
pub const PORTS: Set = Set {
    name: "ports",
    key: &[Type::Protocol, Type::Port],
    value: &[Type::Address, Type::Port],
};
/// Who is masqueraded towards a pod: its key ends with the pod's address.
pub const MASQUERADED: Set = Set {
    name: "masqueraded",
    key: &[Type::Address, Type::Address],
    value: &[],
};
const MASQUERADED_PORTS: Set = Set {
    name: "masqueraded_ports",
    key: &[Type::Address, Type::Protocol, Type::Port],
    value: &[],
};
/// Who held a port before its holder: see [`super::displaced`].
pub const DISPLACED: Set = Set {
    name: "displaced",
    key: &[
        Type::Address,
        Type::Protocol,
        Type::Port,
        Type::Address,
        Type::Port,
    ],
    value: &[Type::Number],
};
/// What has an element for each mapping.
pub const OF_MAPPINGS: [Set; 3] = [HOSTIP_PORTS, PORTS, MASQUERADED_PORTS];
/// All that packets are compared with.
pub const SETS: [Set; 4] = [HOSTIP_PORTS, PORTS, MASQUERADED, MASQUERADED_PORTS];

/// nat in a table for both families needs Linux 5.2; in one of each, 4.18.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The chain that redirects, here and in the Go plugins' layout.
pub const HOSTPORTS: &str = "hostports";

/// The chain for pods that reach a port of a pod on their own bridge: one rule
/// for each length of prefix that there is.
const NEIGHBOURS: &str = "neighbours";

/// The chain for what the node itself sends.
const OUTPUT: &str = "output";

/// The chain that drops what cannot be.
pub const MARTIANS: &str = "martians";

/// The table of `family`.
pub fn table(family: Family) -> Table {
    Table {
        family,
        name: "podwire_hostports",
        comment: "published ports of pods",
    }
}

/// The families in which something is published.
pub fn families(wanted: &HostPorts) -> Vec<Family> {
    FAMILIES
        .into_iter()
        .filter(|family| pod(wanted, *family).is_some())
        .filter(|family| mappings(wanted, *family).next().is_some())
        .collect()
}

/// The pod's address in `family`.
pub fn pod(wanted: &HostPorts, family: Family) -> Option<IpAddr> {
    match family {
        Family::Ip6 => wanted.pod_v6.map(|it| IpAddr::from(it.ip())),
        _ => wanted.pod_v4.map(|it| IpAddr::from(it.ip())),
    }
}

/// What applies in `family`.
pub fn mappings(wanted: &HostPorts, family: Family) -> impl Iterator<Item = &Mapping> {
    let applies = move |it: &&Mapping| it.applies_to(family == Family::Ip);
    wanted.mappings.iter().filter(applies)
}

/// Conditions in `family`.
pub fn conditions(wanted: &HostPorts, family: Family) -> &[String] {
    match family {
        Family::Ip6 => &wanted.conditions_v6,
        _ => &wanted.conditions_v4,
    }
}

/// The comment on what belongs to an attachment: `network/container/interface`,
/// hashed where that is longer than a comment may be, or has a quote in it, which
/// nft cannot print.
pub fn owner_comment(network: &str, container_id: &str, ifname: &str) -> String {
    let comment = format!("{}{container_id}/{ifname}", network_prefix(network));
    if comment.len() <= COMMENT_LENGTH && !comment.contains('"') {
        return comment;
    }
    let rest = names::prefixed(32, "", &format!("{container_id}/{ifname}"));
    format!("{}{rest}", hashed_prefix(network))
}

/// How the comments of all attachments to `network` begin.
pub fn network_prefix(network: &str) -> String {
    format!("{network}/")
}

/// How they begin where they are hashed; no network's name begins with `#`.
pub fn hashed_prefix(network: &str) -> String {
    names::prefixed(33, "#", network) + "/"
}

/// The same for an attachment.
pub fn owner(owner: &Attachment) -> String {
    owner_comment(
        &owner.network,
        owner.container_id.as_str(),
        owner.ifname.as_str(),
    )
}

/// Whether a comment is that of an attachment of `container`. Not known where the comment
/// is hashed; then it is taken for another's.
pub fn is_of_container(comment: &str, container: &str) -> bool {
    !comment.starts_with('#') && comment.split('/').nth(1) == Some(container)
}

/// The pod's subnet in `family`.
fn subnet(wanted: &HostPorts, family: Family) -> Option<IpNetwork> {
    match family {
        Family::Ip6 => wanted.pod_v6.map(IpNetwork::from),
        _ => wanted.pod_v4.map(IpNetwork::from),
    }
}

/// What is wanted in `family`, one element a key: the first mapping of a port
/// is the one that counts.
pub fn elements(wanted: &HostPorts, family: Family) -> Vec<Element> {
    let Some(pod) = pod(wanted, family) else {
        return Vec::new();
    };
    let owner = owner(&wanted.owner);
    let (mut elements, mut taken) = (Vec::new(), HashSet::new());
    let mut add = |set: Set, key: Vec<Part>, value: Vec<Part>| {
        if taken.insert((set.name, key.clone())) {
            let owner = owner.clone();
            elements.push(Element {
                set,
                key,
                value,
                owner,
            });
        }
    };
    // Those with conditions have a chain instead.
    let conditional = !conditions(wanted, family).is_empty();
    for mapping in mappings(wanted, family).filter(|_| !conditional) {
        let (protocol, port) = (
            Part::Protocol(mapping.protocol),
            Part::Port(mapping.host_port),
        );
        let to = vec![Part::Address(pod), Part::Port(mapping.container_port)];
        match mapping.specific_host_ip() {
            Some(ip) => add(HOSTIP_PORTS, vec![Part::Address(ip), protocol, port], to),
            None => add(PORTS, vec![protocol, port], to),
        }
    }
    match wanted.snat {
        Snat::Off => {}
        Snat::Hairpin => {
            for source in std::iter::once(pod).chain(localhost(family)) {
                let key = vec![Part::Address(source), Part::Address(pod)];
                add(MASQUERADED, key, Vec::new());
            }
        }
        Snat::All => {
            for mapping in mappings(wanted, family) {
                let key = vec![
                    Part::Address(pod),
                    Part::Protocol(mapping.protocol),
                    Part::Port(mapping.container_port),
                ];
                add(MASQUERADED_PORTS, key, Vec::new());
            }
        }
    }
    elements
}

/// What there can be in [`MASQUERADED`] for a pod, whatever `snat` says by now.
pub fn masqueraded(published: &HostPorts, family: Family) -> Vec<Element> {
    let hairpin = HostPorts {
        snat: Snat::Hairpin,
        ..published.clone()
    };
    let mut all = elements(&hairpin, family);
    all.retain(|it| it.set == MASQUERADED);
    all.extend(neighbour_element(&hairpin, family));
    all
}

/// What makes a pod's port reachable from pods on its bridge: they and the pod
/// answer each other directly, so that the answer does not come from where it
/// was asked, unless they are made to see the node. (Where bridged frames pass
/// the node's rules, `bridge-nf-call-iptables`, there is no need.)
pub fn neighbour_element(wanted: &HostPorts, family: Family) -> Option<Element> {
    let subnet = subnet(wanted, family).filter(|_| wanted.snat == Snat::Hairpin)?;
    let key = vec![Part::Address(subnet.network()), Part::Address(subnet.ip())];
    (subnet.network() != subnet.ip()).then(|| Element {
        set: MASQUERADED,
        key,
        value: Vec::new(),
        owner: owner(&wanted.owner),
    })
}

/// The change without which that element has no effect; none where the rule is.
pub fn neighbour_rule(wanted: &HostPorts, family: Family, found: &[Listed]) -> Option<Change> {
    let mask = subnet(wanted, family)?.mask();
    let rule = Rule::new([
        Statement::SubnetAndDestinationIn(mask, MASQUERADED.name),
        Statement::Masquerade {
            fully_random: false,
        },
    ]);
    let there = |it: &Listed| it.chain == NEIGHBOURS && it.is(family, &rule);
    let add = Change::AddRule(table(family), NEIGHBOURS.into(), rule.clone());
    (!found.iter().any(there)).then_some(add)
}

/// Where the node's own connections to itself come from. IPv6 has nothing like
/// `route_localnet`: what comes from ::1 does not get to a pod.
fn localhost(family: Family) -> Option<IpAddr> {
    (family == Family::Ip).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// A chain that packets enter at `point`.
fn hooked(name: &'static str, kind: &'static str, point: Point, priority: i32) -> Chain {
    Chain {
        name: name.into(),
        hook: Some(Hook {
            kind,
            point,
            priority,
        }),
        comment: "",
    }
}

/// The chains of a table and what is in them.
fn chains(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    let hostports = Chain {
        name: HOSTPORTS.into(),
        hook: None,
        comment: "",
    };
    // An address of the mapping comes before all addresses.
    let redirect = vec![
        Rule::new([Statement::RedirectByTarget(HOSTIP_PORTS.name)]),
        Rule::new([Statement::RedirectByPort(PORTS.name)]),
    ];
    let masquerade = Statement::Masquerade {
        fully_random: false,
    };
    let source = vec![
        Rule::new([Statement::AddressesIn(MASQUERADED.name), masquerade.clone()]),
        Rule::new([
            Statement::Redirected,
            Statement::TargetIn(MASQUERADED_PORTS.name),
            masquerade,
        ]),
        Rule::new([Statement::Redirected, Statement::Jump(NEIGHBOURS.into())]),
    ];
    let mut chains = vec![
        (hostports, redirect),
        (
            hooked("prerouting", "nat", Point::Prerouting, -100),
            vec![enter()],
        ),
        (
            hooked(OUTPUT, "nat", Point::Output, -100),
            vec![enter_from_node(family)],
        ),
        (
            hooked("postrouting", "nat", Point::Postrouting, 100),
            source,
        ),
    ];
    if family == Family::Ip {
        chains.push(martians());
    }
    chains
}

/// Packets to the node go to [`HOSTPORTS`].
fn enter() -> Rule {
    Rule::new([
        Statement::LocalDestination,
        Statement::Jump(HOSTPORTS.into()),
    ])
}

/// The same for what the node sends to itself. IPv6 has nothing like `route_localnet`: a
/// connection to ::1 that is redirected hangs, because the kernel drops a packet from ::1
/// that leaves the node. It is left to the node's own programs.
fn enter_from_node(family: Family) -> Rule {
    let mut rule = enter();
    if family == Family::Ip6 {
        let localhost = IpNetwork::from(IpAddr::V6(Ipv6Addr::LOCALHOST));
        let elsewhere = Statement::AddressNot(Side::Destination, localhost);
        rule.statements.insert(0, elsewhere);
    }
    rule
}

/// Before anything else looks at a packet. Connections from 127.0.0.1 reach a pod only with
/// `route_localnet`, which opens 127/8 of the node to its neighbours (CVE-2020-8558): this
/// closes it. With that setting and without `rp_filter`, the kernel takes 127/8 for a source
/// from outside, too (`ip_route_input_slow` in net/ipv4/route.c).
fn martians() -> (Chain, Vec<Rule>) {
    let chain = hooked(MARTIANS, "filter", Point::Prerouting, -300);
    let rules = [Side::Destination, Side::Source].map(|side| {
        let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
        let network = IpNetwork::new(loopback, 8).unwrap_or_else(|_| IpNetwork::from(loopback));
        Rule::new([
            Statement::InterfaceNot("lo".into()),
            Statement::Address(side, network),
            Statement::Drop,
        ])
    });
    (chain, rules.into())
}

/// Changes without which that chain is not there, or not whole.
pub fn closed_localhost(found: &[Listed]) -> Transaction {
    let (chain, rules) = martians();
    let mut changes = Transaction::new();
    if !has(found, Family::Ip, &chain, &rules) {
        changes.push(Change::AddTable(table(Family::Ip)));
        changes.extend(filled(table(Family::Ip), chain, rules));
    }
    changes
}

/// Whether the published ports lead where they should. What versions before this one have
/// left of `martians` and `output` is enough: a running pod is as well as it was at its ADD.
pub fn is_complete(family: Family, found: &[Listed]) -> bool {
    chains(family).iter().all(|(chain, rules)| {
        let former = match chain.name.as_ref() {
            MARTIANS => has(found, family, chain, &rules[..1]),
            OUTPUT => has(found, family, chain, &[enter()]),
            _ => false,
        };
        former || has(found, family, chain, rules)
    })
}

/// Changes that make the table what it should be; none if it is.
pub fn base(family: Family, found: &[Listed]) -> Transaction {
    let table = table(family);
    let mut changes = Transaction::new();
    let wrong: Vec<_> = chains(family)
        .into_iter()
        .filter(|(chain, rules)| !has(found, family, chain, rules))
        .collect();
    if wrong.is_empty() {
        return changes;
    }
    changes.push(Change::AddTable(table));
    for set in SETS.into_iter().chain([DISPLACED]) {
        changes.push(Change::AddSet(table, set));
    }
    let (name, hook, comment) = (NEIGHBOURS.into(), None, "");
    changes.push(Change::AddChain(
        table,
        Chain {
            name,
            hook,
            comment,
        },
    ));
    for (chain, rules) in wrong {
        changes.extend(filled(table, chain, rules));
    }
    changes
}

/// A chain with these rules and no others.
fn filled(table: Table, chain: Chain, rules: Vec<Rule>) -> Transaction {
    let mut changes = Transaction::new();
    let name = chain.name.clone();
    changes.push(Change::AddChain(table, chain));
    changes.push(Change::FlushChain(table, name.clone()));
    for rule in rules {
        changes.push(Change::AddRule(table, name.clone(), rule));
    }
    changes
}

fn has(found: &[Listed], family: Family, chain: &Chain, rules: &[Rule]) -> bool {
    let mut found = found.iter().filter(|it| it.chain == chain.name);
    let all = rules
        .iter()
        .all(|rule| found.next().is_some_and(|it| it.is(family, rule)));
    all && found.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{Mark, Protocol};
    use cni::env::{ContainerId, IfName};

    fn wanted(snat: Snat) -> HostPorts {
        let mapping = |host_ip: Option<&str>, protocol, host_port, container_port| Mapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port,
            protocol,
        };
        HostPorts {
            owner: Attachment {
                network: "mynet".into(),
                container_id: ContainerId::parse("c1").unwrap(),
                ifname: IfName::parse("eth0").unwrap(),
            },
            pod_v4: Some("10.22.0.2/24".parse().unwrap()),
            pod_v6: Some("fd00:22::2/64".parse().unwrap()),
            mappings: vec![
                mapping(None, Protocol::Tcp, 8080, 80),
                mapping(Some("192.0.2.7"), Protocol::Udp, 5353, 53),
                mapping(Some("::"), Protocol::Sctp, 9, 80),
            ],
            snat,
            mark: Mark::Bit(13),
            conditions_v4: Vec::new(),
            conditions_v6: Vec::new(),
        }
    }

    fn text(wanted: &HostPorts, family: Family) -> String {
        let mut changes = Transaction::new();
        for element in elements(wanted, family) {
            changes.push(Change::CreateElement(table(family), element));
        }
        changes.to_string()
    }

    #[test]
    fn the_tables_are_made_once() {
        let expected = "\
add table ip6 podwire_hostports { comment \"published ports of pods\" ; }
add map ip6 podwire_hostports hostip_ports { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service ; }
add map ip6 podwire_hostports ports { type inet_proto . inet_service : ipv6_addr . inet_service ; }
add set ip6 podwire_hostports masqueraded { type ipv6_addr . ipv6_addr ; }
add set ip6 podwire_hostports masqueraded_ports { type ipv6_addr . inet_proto . inet_service ; }
add map ip6 podwire_hostports displaced { type ipv6_addr . inet_proto . inet_service . ipv6_addr . inet_service : mark ; }
add chain ip6 podwire_hostports neighbours
add chain ip6 podwire_hostports hostports
flush chain ip6 podwire_hostports hostports
add rule ip6 podwire_hostports hostports dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostip_ports
add rule ip6 podwire_hostports hostports dnat ip6 to meta l4proto . th dport map @ports
add chain ip6 podwire_hostports prerouting { type nat hook prerouting priority -100 ; policy accept ; }
flush chain ip6 podwire_hostports prerouting
add rule ip6 podwire_hostports prerouting fib daddr type local jump hostports
add chain ip6 podwire_hostports output { type nat hook output priority -100 ; policy accept ; }
flush chain ip6 podwire_hostports output
add rule ip6 podwire_hostports output ip6 daddr != ::1 fib daddr type local jump hostports
add chain ip6 podwire_hostports postrouting { type nat hook postrouting priority 100 ; policy accept ; }
flush chain ip6 podwire_hostports postrouting
add rule ip6 podwire_hostports postrouting ip6 saddr . ip6 daddr @masqueraded masquerade
add rule ip6 podwire_hostports postrouting ct status dnat ip6 daddr . meta l4proto . th dport @masqueraded_ports masquerade
add rule ip6 podwire_hostports postrouting ct status dnat jump neighbours
";
        assert_eq!(base(Family::Ip6, &[]).to_string(), expected);
        let there: Vec<_> = chains(Family::Ip)
            .iter()
            .flat_map(|(chain, rules)| rules.iter().map(|it| (chain.name.clone(), it)))
            .map(|(chain, rule)| Listed::of(Family::Ip, &chain, 1, rule))
            .collect();
        assert!(base(Family::Ip, &there).is_empty());
        // What is missing is filled in, and nothing else.
        let repair = base(Family::Ip, &there[..there.len() - 1]).to_string();
        let expected = "\
add chain ip podwire_hostports martians { type filter hook prerouting priority -300 ; policy accept ; }
flush chain ip podwire_hostports martians
add rule ip podwire_hostports martians iifname != \"lo\" ip daddr 127.0.0.0/8 drop
add rule ip podwire_hostports martians iifname != \"lo\" ip saddr 127.0.0.0/8 drop
";
        assert!(repair.ends_with(expected), "{repair}");
        assert_eq!(repair.matches("add rule").count(), 2);
        // An older version had one rule less there: that is no fault of a pod.
        assert!(is_complete(Family::Ip, &there[..there.len() - 1]));
        assert!(!is_complete(Family::Ip, &there[..there.len() - 2]));
    }

    #[test]
    fn a_pods_ports_are_elements_with_their_owner() {
        let expected = "\
create element ip podwire_hostports ports { tcp . 8080 comment \"mynet/c1/eth0\" : 10.22.0.2 . 80 }
create element ip podwire_hostports hostip_ports { 192.0.2.7 . udp . 5353 comment \"mynet/c1/eth0\" : 10.22.0.2 . 53 }
create element ip podwire_hostports masqueraded { 10.22.0.2 . 10.22.0.2 comment \"mynet/c1/eth0\" }
create element ip podwire_hostports masqueraded { 127.0.0.1 . 10.22.0.2 comment \"mynet/c1/eth0\" }
";
        assert_eq!(text(&wanted(Snat::Hairpin), Family::Ip), expected);
        let expected = "\
create element ip6 podwire_hostports ports { tcp . 8080 comment \"mynet/c1/eth0\" : fd00:22::2 . 80 }
create element ip6 podwire_hostports ports { sctp . 9 comment \"mynet/c1/eth0\" : fd00:22::2 . 80 }
create element ip6 podwire_hostports masqueraded_ports { fd00:22::2 . tcp . 80 comment \"mynet/c1/eth0\" }
create element ip6 podwire_hostports masqueraded_ports { fd00:22::2 . sctp . 80 comment \"mynet/c1/eth0\" }
";
        assert_eq!(text(&wanted(Snat::All), Family::Ip6), expected);
        assert_eq!(text(&wanted(Snat::Off), Family::Ip6).lines().count(), 2);
    }

    #[test]
    fn neighbours_of_a_subnet_share_a_rule() {
        let wanted = wanted(Snat::Hairpin);
        let rule = neighbour_rule(&wanted, Family::Ip, &[]).unwrap();
        assert_eq!(
            rule.to_string(),
            "add rule ip podwire_hostports neighbours ip saddr & 255.255.255.0 . ip daddr @masqueraded masquerade"
        );
        let Change::AddRule(_, _, there) = rule else {
            unreachable!()
        };
        let there = [Listed::of(Family::Ip, NEIGHBOURS, 1, &there)];
        assert_eq!(neighbour_rule(&wanted, Family::Ip, &there), None);
        let element = neighbour_element(&wanted, Family::Ip6).unwrap();
        assert_eq!(
            Change::CreateElement(table(Family::Ip6), element).to_string(),
            "create element ip6 podwire_hostports masqueraded { fd00:22:: . fd00:22::2 comment \"mynet/c1/eth0\" }"
        );
        assert_eq!(
            neighbour_element(&self::wanted(Snat::Off), Family::Ip),
            None
        );
    }

    #[test]
    fn what_has_conditions_is_in_no_map() {
        let mut wanted = wanted(Snat::Hairpin);
        wanted.conditions_v4 = vec!["iifname eth0".into()];
        assert!(!text(&wanted, Family::Ip).contains("ports {"));
        assert!(text(&wanted, Family::Ip).contains("masqueraded {"));
        assert!(text(&wanted, Family::Ip6).contains("ports {"));
    }

    #[test]
    fn long_owners_are_hashed_and_keep_their_network_apart() {
        let network = "n".repeat(100);
        let comment = owner_comment(&network, &"c".repeat(64), "eth0");
        assert!(comment.len() <= COMMENT_LENGTH && comment.starts_with(&hashed_prefix(&network)));
        assert_ne!(comment, owner_comment(&network, &"c".repeat(64), "eth1"));
        assert_eq!(owner_comment("n", "c", "eth0"), "n/c/eth0");
        assert!(!owner_comment("n", "c", "et\"h0").contains('"'));
    }
}
