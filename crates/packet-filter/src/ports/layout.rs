//! The tables of published ports: sets, chains, and the elements of a pod's ports. Nothing here
//! talks to the kernel.
//!
//! | set or map | key | value |
//! |---|---|---|
//! | `hostip_ports` | address of the node, protocol, port | pod's address, port |
//! | `ports` | protocol, port | pod's address, port |
//! | `masqueraded` | source, pod's address | |
//! | `masqueraded_ports` | pod's address, protocol, port | |
//! | `displaced` | host port, pod's address and port | order |
//! | `published` | hash of an owner | digest of its elements |
//!
//! The comment of each element is its owner, so that DEL, CHECK and GC find it with nothing else
//! known.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Attachment, names};
use ipnetwork::IpNetwork;
use nftables::listing::{has_exactly, in_chain};
use nftables::{
    COMMENT_LENGTH, Chain, Element, Family, Field, Listed, Part, Point, Rule, Set, Side, Statement,
    Table, Transaction, Type,
};

use crate::ports::{HostPorts, Mapping, Snat};

/// Where a port of one address of the node leads.
pub const HOSTIP_PORTS: Set = Set::map(
    "hostip_ports",
    &[Type::Address, Type::Protocol, Type::Port],
    &[Type::Address, Type::Port],
);
/// Where a port of all addresses of the node leads.
pub const PORTS: Set = Set::map(
    "ports",
    &[Type::Protocol, Type::Port],
    &[Type::Address, Type::Port],
);
/// Sources that are masqueraded towards a pod.
pub const MASQUERADED: Set = Set::new("masqueraded", &[Type::Address, Type::Address]);
const MASQUERADED_PORTS: Set = Set::new(
    "masqueraded_ports",
    &[Type::Address, Type::Protocol, Type::Port],
);
/// Former holders of a port: see [`super::displaced`].
pub const DISPLACED: Set = Set::map(
    "displaced",
    &[
        Type::Address,
        Type::Protocol,
        Type::Port,
        Type::Address,
        Type::Port,
    ],
    &[Type::Number],
);
/// What each attachment published: see [`record`].
pub const PUBLISHED: Set = Set::map("published", &[Type::Number], &[Type::Number]);
/// All sets whose elements have an owner, except [`DISPLACED`].
pub const SETS: [Set; 5] = [
    HOSTIP_PORTS,
    PORTS,
    MASQUERADED,
    MASQUERADED_PORTS,
    PUBLISHED,
];

/// Nat in a table of both families needs Linux 5.2; in one of each, 4.18.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

/// The chain that redirects, here and in the Go plugins' layout.
pub const HOSTPORTS: &str = "hostports";

/// The chain for pods that reach a port of a pod on their own bridge: one rule for each length of
/// prefix.
const NEIGHBOURS: &str = "neighbours";

/// The chain for what the node itself sends.
const OUTPUT: &str = "output";

/// The chain that drops packets of 127.0.0.0/8 from outside.
pub const MARTIANS: &str = "martians";

/// The table of `family`.
pub fn table(family: Family) -> Table {
    Table::commented(family, "podwire_hostports", "published ports of pods")
}

/// The families in which something is published.
pub fn families(wanted: &HostPorts) -> impl Iterator<Item = Family> {
    FAMILIES
        .into_iter()
        .filter(|family| pod(wanted, *family).is_some())
        .filter(|family| mappings(wanted, *family).next().is_some())
}

/// The pod's subnet in `family`, with the pod's address.
fn subnet(wanted: &HostPorts, family: Family) -> Option<IpNetwork> {
    match family {
        Family::Ip6 => wanted.pod_v6.map(IpNetwork::from),
        _ => wanted.pod_v4.map(IpNetwork::from),
    }
}

/// The pod's address in `family`.
pub fn pod(wanted: &HostPorts, family: Family) -> Option<IpAddr> {
    subnet(wanted, family).map(|it| it.ip())
}

/// The mappings of `family`.
pub fn mappings(wanted: &HostPorts, family: Family) -> impl Iterator<Item = &Mapping> {
    let applies = move |it: &&Mapping| it.applies_to(family == Family::Ip);
    wanted.mappings.iter().filter(applies)
}

/// The conditions of `family`.
pub fn conditions(wanted: &HostPorts, family: Family) -> &[String] {
    match family {
        Family::Ip6 => &wanted.conditions_v6,
        _ => &wanted.conditions_v4,
    }
}

/// The comment of what belongs to an attachment: `network/container/interface`; hashed where that
/// is longer than a comment may be, or has a quote in it, which nft cannot print.
pub fn owner_comment(network: &str, container_id: &str, ifname: &str) -> String {
    let comment = format!("{}{container_id}/{ifname}", network_prefix(network));
    if comment.len() <= COMMENT_LENGTH && !comment.contains('"') {
        return comment;
    }
    let rest = names::prefixed(32, "", &format!("{container_id}/{ifname}"));
    format!("{}{rest}", hashed_prefix(network))
}

/// How the comments of all attachments to `network` begin.
fn network_prefix(network: &str) -> String {
    format!("{network}/")
}

/// How they begin where they are hashed; no network's name begins with `#`.
fn hashed_prefix(network: &str) -> String {
    names::prefixed(33, "#", network) + "/"
}

/// Whether a comment is that of an attachment to `network`.
pub fn is_of_network(comment: &str, network: &str) -> bool {
    let prefixes = [network_prefix(network), hashed_prefix(network)];
    prefixes.iter().any(|it| comment.starts_with(it))
}

/// The comment of what belongs to `owner`.
pub fn owner(owner: &Attachment) -> String {
    let (id, ifname) = (owner.container_id.as_str(), owner.ifname.as_str());
    owner_comment(&owner.network, id, ifname)
}

/// Whether a comment is that of an attachment of `container`. A hashed comment does not tell, and
/// counts as another's.
pub fn is_of_container(comment: &str, container: &str) -> bool {
    !comment.starts_with('#') && comment.split('/').nth(1) == Some(container)
}

/// The elements that are wanted in `family`, one for each key: the first mapping of a port counts.
pub fn elements(wanted: &HostPorts, family: Family) -> Vec<Element> {
    let Some(pod) = pod(wanted, family) else {
        return Vec::new();
    };
    let owner = owner(&wanted.owner);
    let (mut elements, mut taken) = (Vec::new(), HashSet::new());
    let mut add = |set: Set, key: Vec<Part>, value: Vec<Part>| {
        if taken.insert((set.name, key.clone())) {
            elements.push(set.element(key, value, &owner));
        }
    };
    let pod = Part::Address(pod);
    // Those with conditions have a chain instead.
    let conditional = !conditions(wanted, family).is_empty();
    for mapping in mappings(wanted, family).filter(|_| !conditional) {
        let protocol = Part::Protocol(mapping.protocol);
        let port = Part::Port(mapping.host_port);
        let to = vec![pod, Part::Port(mapping.container_port)];
        match mapping.specific_host_ip() {
            Some(ip) => add(HOSTIP_PORTS, vec![Part::Address(ip), protocol, port], to),
            None => add(PORTS, vec![protocol, port], to),
        }
    }
    match wanted.snat {
        Snat::Off => {}
        Snat::Hairpin => {
            add(MASQUERADED, vec![pod, pod], Vec::new());
            // IPv6 has nothing like `route_localnet`: what comes from ::1 does not get to a pod.
            if family == Family::Ip {
                let localhost = Part::Address(Ipv4Addr::LOCALHOST.into());
                add(MASQUERADED, vec![localhost, pod], Vec::new());
            }
        }
        Snat::All => {
            for mapping in mappings(wanted, family) {
                let protocol = Part::Protocol(mapping.protocol);
                let port = Part::Port(mapping.container_port);
                add(MASQUERADED_PORTS, vec![pod, protocol, port], Vec::new());
            }
        }
    }
    elements
}

/// All elements of a pod with their families, except its [`record`].
pub fn all_elements(wanted: &HostPorts) -> Vec<(Family, Element)> {
    let of = |family| {
        let elements = elements(wanted, family).into_iter();
        let elements = elements.chain(neighbour_element(wanted, family));
        elements.map(move |it| (family, it))
    };
    families(wanted).flat_map(of).collect()
}

/// The element of [`PUBLISHED`] that says which elements an attachment has, in both families: one
/// key for each owner, and a digest of the elements as its value. `None` if it has none.
///
/// With it, DEL can tell whether the configuration that it gets names everything that ADD wrote. If
/// so, it looks the elements up by their keys; if not, it lists the ports of the whole node.
pub fn record(wanted: &HostPorts) -> Option<(Family, Element)> {
    let all = all_elements(wanted);
    let (family, _) = *all.first()?;
    let text = |(family, it): &(Family, Element)| format!("{family} {} {}", it.set.name, it.text());
    let mut texts: Vec<_> = all.iter().map(text).collect();
    // A runtime may pass the mappings in another order.
    texts.sort_unstable();
    // Not 0: see `SEVERAL`.
    let digest = hash(&texts.join("\n")) | 1;
    let key = record_key(&wanted.owner);
    let element = PUBLISHED.element(key, [Part::Number(digest)], owner(&wanted.owner));
    Some((family, element))
}

/// The key of that element. Two owners may have the same: the comment tells whose it is, and the
/// other has no record.
pub fn record_key(attachment: &Attachment) -> [Part; 1] {
    [Part::Number(hash(&owner(attachment)))]
}

/// The value of the record of an attachment that published several times, and not the same: its
/// elements are found by listing only.
pub const SEVERAL: Part = Part::Number(0);

fn hash(text: &str) -> u32 {
    u32::from_str_radix(&names::prefixed(8, "", text), 16).unwrap_or_default()
}

/// The element that makes a pod's port reachable from pods on its bridge. They and the pod answer
/// each other directly, so the answer would come from the wrong address, unless they are
/// masqueraded. (Where bridged frames pass the node's rules, `bridge-nf-call-iptables`, that is
/// not necessary.)
pub fn neighbour_element(wanted: &HostPorts, family: Family) -> Option<Element> {
    let subnet = subnet(wanted, family).filter(|_| wanted.snat == Snat::Hairpin)?;
    let key = [subnet.network(), subnet.ip()].map(Part::Address);
    (subnet.network() != subnet.ip()).then(|| MASQUERADED.element(key, [], owner(&wanted.owner)))
}

/// The rule without which that element has no effect; `None` where it is there.
pub fn neighbour_rule(wanted: &HostPorts, family: Family, found: &[Listed]) -> Option<Rule> {
    let mask = subnet(wanted, family)?.mask();
    let key = vec![Field::SourceSubnet(mask), Field::Destination];
    let rule = Rule::new([Statement::In(key, MASQUERADED.name), MASQUERADE]);
    (!in_chain(found, NEIGHBOURS).any(|it| it.is(&rule))).then_some(rule)
}

/// Adds that rule.
pub fn add_neighbour_rule(changes: &mut Transaction, family: Family, rule: Rule) {
    changes.add_rule(table(family), NEIGHBOURS, rule);
}

const MASQUERADE: Statement = Statement::Masquerade {
    fully_random: false,
};

/// The chains of a table and their rules.
fn chains(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    let target = || vec![Field::Destination, Field::Protocol, Field::Port];
    let port = vec![Field::Protocol, Field::Port];
    // A mapping of one address comes before one of all addresses.
    let redirect = vec![
        Rule::new([Statement::RedirectBy(target(), HOSTIP_PORTS.name)]),
        Rule::new([Statement::RedirectBy(port, PORTS.name)]),
    ];
    let addresses = vec![Field::Source, Field::Destination];
    let source = vec![
        Rule::new([Statement::In(addresses, MASQUERADED.name), MASQUERADE]),
        Rule::new([
            Statement::Redirected,
            Statement::In(target(), MASQUERADED_PORTS.name),
            MASQUERADE,
        ]),
        Rule::new([Statement::Redirected, Statement::Jump(NEIGHBOURS.into())]),
    ];
    let nat = |name, point, priority| Chain::hooked(name, "nat", point, priority);
    let mut chains = vec![
        (Chain::new(HOSTPORTS), redirect),
        (nat("prerouting", Point::Prerouting, -100), vec![enter()]),
        (
            nat(OUTPUT, Point::Output, -100),
            vec![enter_from_node(family)],
        ),
        (nat("postrouting", Point::Postrouting, 100), source),
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

/// The same for what the node sends to itself. A connection to ::1 that is redirected hangs,
/// because the kernel drops a packet from ::1 that leaves the node. It is left to the node's own
/// programs.
fn enter_from_node(family: Family) -> Rule {
    let mut rule = enter();
    if family == Family::Ip6 {
        let localhost = IpAddr::V6(Ipv6Addr::LOCALHOST).into();
        let elsewhere = Statement::AddressNot(Side::Destination, localhost);
        rule.statements.insert(0, elsewhere);
    }
    rule
}

/// Comes before anything else. Connections from 127.0.0.1 reach a pod only with `route_localnet`,
/// which opens 127.0.0.0/8 of the node to its neighbours (CVE-2020-8558): this closes it. With that
/// setting and without `rp_filter`, the kernel accepts 127.0.0.0/8 as a source from outside, too
/// (`ip_route_input_slow` in net/ipv4/route.c).
fn martians() -> (Chain, Vec<Rule>) {
    let chain = Chain::hooked(MARTIANS, "filter", Point::Prerouting, -300);
    let rules = [Side::Destination, Side::Source].map(|side| {
        let loopback = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
        let network = IpNetwork::new(loopback, 8).unwrap_or(loopback.into());
        Rule::new([
            Statement::InterfaceNot("lo".into()),
            Statement::Address(side, network),
            Statement::Drop,
        ])
    });
    (chain, rules.into())
}

/// Changes that complete that chain; none if it is complete.
pub fn localhost_guard(found: &[Listed]) -> Transaction {
    let (chain, rules) = martians();
    let mut changes = Transaction::new();
    if !has_exactly(found, &chain.name, &rules) {
        changes.add_table(table(Family::Ip));
        changes.fill_chain(table(Family::Ip), chain, rules);
    }
    changes
}

/// Whether the published ports lead where they should. The rules that earlier versions left in
/// `martians` and `output` are enough: a running pod is as well as at its ADD.
pub fn is_complete(family: Family, found: &[Listed]) -> bool {
    chains(family).iter().all(|(chain, rules)| {
        let former = match chain.name.as_ref() {
            MARTIANS => has_exactly(found, MARTIANS, &rules[..1]),
            OUTPUT => has_exactly(found, OUTPUT, &[enter()]),
            _ => false,
        };
        former || has_exactly(found, &chain.name, rules)
    })
}

/// Changes that complete the table; none if it is complete.
pub fn base(family: Family, found: &[Listed]) -> Transaction {
    let table = table(family);
    let mut changes = Transaction::new();
    let mut wrong = chains(family);
    wrong.retain(|(chain, rules)| !has_exactly(found, &chain.name, rules));
    if wrong.is_empty() {
        return changes;
    }
    changes.add_table(table);
    for set in SETS.into_iter().chain([DISPLACED]) {
        changes.add_set(table, set);
    }
    changes.add_chain(table, Chain::new(NEIGHBOURS));
    for (chain, rules) in wrong {
        changes.fill_chain(table, chain, rules);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    fn wanted(snat: Snat) -> HostPorts {
        let mappings = ["tcp 8080 80", "udp 192.0.2.7 5353 53", "sctp :: 9 80"];
        HostPorts {
            snat,
            ..example::host_ports("c1", &mappings)
        }
    }

    fn text(wanted: &HostPorts, family: Family) -> String {
        let mut changes = Transaction::new();
        for element in elements(wanted, family) {
            changes.create_element(table(family), element);
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
add map ip6 podwire_hostports published { type mark : mark ; }
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
            .map(|(chain, rule)| Listed::of(table(Family::Ip), &chain, 1, rule))
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
            rule.text(Family::Ip),
            "ip saddr & 255.255.255.0 . ip daddr @masqueraded masquerade"
        );
        let there = [Listed::of(table(Family::Ip), NEIGHBOURS, 1, &rule)];
        assert_eq!(neighbour_rule(&wanted, Family::Ip, &there), None);
        let element = neighbour_element(&wanted, Family::Ip6).unwrap();
        assert_eq!(
            element.text(),
            "fd00:22:: . fd00:22::2 comment \"mynet/c1/eth0\""
        );
        assert_eq!(
            neighbour_element(&self::wanted(Snat::Off), Family::Ip),
            None
        );
    }

    #[test]
    fn a_record_is_that_of_the_elements_and_of_nothing_else() {
        let one = wanted(Snat::Hairpin);
        let (family, element) = record(&one).unwrap();
        assert_eq!((family, element.set), (Family::Ip, PUBLISHED));
        assert_eq!(element.key, record_key(&one.owner));
        assert_ne!(element.value, [SEVERAL]);
        let mut same = one.clone();
        same.mappings.reverse();
        assert_eq!(record(&same).unwrap().1, element);
        let others: [fn(&mut HostPorts); 5] = [
            |it| it.mappings.truncate(1),
            |it| it.mappings[0].container_port = 81,
            |it| it.pod_v6 = None,
            |it| it.snat = Snat::All,
            |it| it.conditions_v4 = vec!["iifname eth0".into()],
        ];
        for change in others {
            let mut other = one.clone();
            change(&mut other);
            assert_ne!(record(&other).unwrap().1, element, "{other:?}");
        }
        let mut v6 = one.clone();
        v6.pod_v4 = None;
        assert_eq!(record(&v6).unwrap().0, Family::Ip6);
        v6.pod_v6 = None;
        assert_eq!(record(&v6), None);
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
