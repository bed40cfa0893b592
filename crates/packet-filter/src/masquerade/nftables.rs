//! Masquerading: one rule per subnet of a network, none per pod.
//!
//! The table and its chains are those of the Go plugins, so that both suites
//! work side by side on a node. They write a rule per pod; ours is for the
//! subnet, because deleting a rule makes whoever closes the socket wait some
//! 10 ms for RCU while it holds the lock that every other commit, and every new
//! interface, waits for. A rule that outlives its pods costs nothing.
//!
//! A comment begins with a hash of the network; that of a rule for one pod goes
//! on with `-` and a hash of the pod, which is what the Go plugins look for when
//! they delete. Ours never has that.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use ipnetwork::IpNetwork;

use crate::masquerade::{Masquerade, is_single};
use nftables::Error;
use nftables::Socket;
use nftables::listing::{self, Listed};
use nftables::{Chain, Change, Family, Hook, Point, Rule, Table, Transaction, fitting};
use nftables::{Side, Statement};

const TABLE: Table = Table {
    family: Family::Inet,
    name: "cni_plugins_masquerade",
    comment: "Masquerading for plugins from github.com/containernetworking/plugins",
};
const CHECKS: &str = "masq_checks";
const POSTROUTING: &str = "postrouting";

/// Changes that make the kernel masquerade as `wanted`, none if it does; and whether there are
/// rules for other subnets of its network.
pub fn add(socket: &Socket, wanted: &Masquerade) -> Result<(Transaction, bool), Error> {
    let found = rules(socket)?;
    let others = of_others(&found, &wanted.owner.network, &wanted.subnets());
    Ok((additions(&found, &[wanted]), !others.is_empty()))
}

/// All rules of the table.
pub fn rules(socket: &Socket) -> Result<Vec<Listed>, Error> {
    listing::rules(socket, TABLE, None)
}

/// What the Go plugins laid down for `wanted`'s pod alone, of what is `found`.
pub fn of_go<'a>(found: &'a [Listed], wanted: &Masquerade) -> Vec<&'a Listed> {
    let pod = pod_prefix_of(&wanted.owner);
    // For an address that is no subnet, theirs and ours are the same.
    let ours: Vec<_> = wanted
        .addresses
        .iter()
        .flat_map(|address| [false, true].map(|random| rule(wanted, *address, random)))
        .collect();
    let is_go = |it: &&Listed| {
        it.chain == CHECKS
            && it.comment.starts_with(&pod)
            && !ours.iter().any(|rule| it.is(Family::Inet, rule))
    };
    found.iter().filter(is_go).collect()
}

/// The rules for `wanted`'s subnets, of what is `found`.
pub fn of_network<'a>(found: &'a [Listed], wanted: &Masquerade) -> Vec<&'a Listed> {
    let subnets: Vec<_> = wanted.addresses.iter().copied().map(leaves).collect();
    let is_ours = |it: &&Listed| subnets.iter().any(|rule| it.begins(Family::Inet, rule));
    let all = of_subnets(found, &wanted.owner.network);
    all.filter(is_ours).collect()
}

/// The rules for subnets of `network` that are not among `kept`, of what is `found`.
pub fn of_others<'a>(found: &'a [Listed], network: &str, kept: &[IpNetwork]) -> Vec<&'a Listed> {
    let kept: Vec<_> = kept.iter().copied().map(leaves).collect();
    let is_kept = |it: &Listed| kept.iter().any(|rule| it.begins(Family::Inet, rule));
    let all = of_subnets(found, network);
    all.filter(|it| !is_kept(it)).collect()
}

fn of_subnets<'a>(found: &'a [Listed], network: &str) -> impl Iterator<Item = &'a Listed> {
    let comment = network_comment(network);
    found
        .iter()
        .filter(move |it| it.chain == CHECKS && it.comment == fitting(&comment))
}

/// How every rule for the subnet of `address` begins.
fn leaves(address: IpNetwork) -> Rule {
    let subnet = network(address.network(), address.prefix());
    Rule::new(subnet_leaves(&pod_or_network_rule(subnet, subnet, false)))
}

/// The changes that take these rules away, each of them once.
pub fn removal(rules: &[&Listed]) -> Transaction {
    let mut handles = HashSet::new();
    let mut changes = Transaction::new();
    for rule in rules {
        if handles.insert(rule.handle) {
            changes.push(rule.deletion(TABLE));
        }
    }
    changes
}

/// Changes that lay down what the Go plugins would for these pods; none if it is there.
pub fn go_additions(found: &[Listed], all: &[&Masquerade]) -> Transaction {
    let mut rules = Transaction::new();
    for wanted in all {
        for address in &wanted.addresses {
            let rule = pod_rule(*address, wanted.random_fully);
            let rule = rule.comment(pod_comment(&wanted.owner));
            let there = |it: &Listed| it.chain == CHECKS && it.is(Family::Inet, &rule);
            if !found.iter().any(there) {
                rules.push(Change::AddRule(TABLE, CHECKS.into(), rule));
            }
        }
    }
    let mut all = Transaction::new();
    if !rules.is_empty() {
        all = base(leads_to_checks(found));
        all.extend(rules);
    }
    all
}

/// Changes that take away what is there for `owner` alone.
pub fn remove(socket: &Socket, owner: &Attachment) -> Result<Transaction, Error> {
    let pod = pod_prefix_of(owner);
    remove_where(socket, |comment| comment.starts_with(&pod))
}

/// Changes that take away what is there for pods of `network` that are not
/// `valid`, and for `network` itself if none is.
pub fn collect(
    socket: &Socket,
    network: &str,
    valid: &[ValidAttachment],
) -> Result<Transaction, Error> {
    let alive = alive(network, valid);
    remove_where(socket, |comment| is_stale(comment, network, &alive))
}

/// How the comments begin that are for attachments to `network` that live.
fn alive(network: &str, valid: &[ValidAttachment]) -> HashSet<String> {
    let prefix = |it: &ValidAttachment| pod_prefix(network, &it.container_id, &it.ifname);
    valid.iter().map(prefix).collect()
}

fn is_stale(comment: &str, network: &str, alive: &HashSet<String>) -> bool {
    if comment == fitting(&network_comment(network)) {
        return alive.is_empty();
    }
    let pod = comment.split(',').next().unwrap_or_default();
    pod.starts_with(&format!("{}-", network_hash(network))) && !alive.contains(pod)
}

/// What is missing for `wanted`, in words; `None` if nothing is. The rules of
/// the Go plugins are as good as ours.
pub fn missing(socket: &Socket, wanted: &Masquerade) -> Result<Option<String>, Error> {
    Ok(missing_in(&rules(socket)?, wanted))
}

/// The same, of what is `found`.
pub fn missing_in(found: &[Listed], wanted: &Masquerade) -> Option<String> {
    let pod = pod_prefix_of(&wanted.owner);
    for address in &wanted.addresses {
        let ours = [false, true].map(|random| rule(wanted, *address, random));
        let go = match wanted.not_through {
            // The Go plugins know no exceptions.
            None if wanted.except.is_empty() => {
                vec![pod_rule(*address, false), pod_rule(*address, true)]
            }
            _ => Vec::new(),
        };
        let there = |it: &Listed| {
            it.chain == CHECKS
                && (ours.iter().any(|rule| it.is(Family::Inet, rule))
                    || it.comment.starts_with(&pod)
                        && go.iter().any(|rule| it.does(Family::Inet, rule)))
        };
        if !found.iter().any(there) {
            return Some(format!(
                "no rule in chain {TABLE} {CHECKS} masquerades {address} of network {}",
                wanted.owner.network
            ));
        }
    }
    (!leads_to_checks(found))
        .then(|| format!("chain {TABLE} {POSTROUTING} does not lead to {CHECKS}"))
}
/// Changes for all of them together; of two that want a subnet's rule to be
/// different ones, the first has its way.
pub fn additions(found: &[Listed], all: &[&Masquerade]) -> Transaction {
    let mut rules = Transaction::new();
    let mut seen: Vec<Rule> = Vec::new();
    let pairs = all.iter().flat_map(|wanted| {
        wanted
            .addresses
            .iter()
            .map(move |address| (wanted, address))
    });
    for (wanted, address) in pairs {
        let rule = rule(wanted, *address, wanted.random_fully);
        let subnet = Rule::new(subnet_leaves(&rule));
        let same =
            |it: &&Rule| it.comment == rule.comment && subnet_leaves(it) == subnet.statements;
        if seen.iter().any(|it| same(&it)) {
            continue;
        }
        seen.push(rule.clone());
        let comment = rule.comment.clone().unwrap_or_default();
        let there: Vec<_> = found
            .iter()
            .filter(|it| it.chain == CHECKS && it.comment == fitting(&comment))
            .filter(|it| it.begins(Family::Inet, &subnet))
            .collect();
        if there.iter().any(|it| it.is(Family::Inet, &rule)) {
            continue;
        }
        // The network's configuration was changed.
        for other in there {
            rules.push(other.deletion(TABLE));
        }
        rules.push(Change::AddRule(TABLE, CHECKS.into(), rule));
    }
    if leads_to_checks(found) {
        // Table and chains are there. To name them again makes the program that closes the socket
        // wait some 10 ms for RCU: the kernel takes it for an update of the chain.
        return rules;
    }
    let mut all = base(false);
    all.extend(rules);
    all
}

/// The conditions that every rule for a subnet begins with.
fn subnet_leaves(rule: &Rule) -> Vec<Statement> {
    rule.statements.iter().take(2).cloned().collect()
}

/// The table and its chains. The Go plugins flush and refill the chain that
/// leads to the checks each time; we do where it does not lead there.
fn base(entered: bool) -> Transaction {
    let mut base = Transaction::new();
    base.push(Change::AddTable(TABLE));
    base.push(Change::AddChain(
        TABLE,
        Chain {
            name: CHECKS.into(),
            hook: None,
            comment: "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet",
        },
    ));
    if entered {
        return base;
    }
    base.push(Change::AddChain(
        TABLE,
        Chain {
            name: POSTROUTING.into(),
            hook: Some(Hook {
                kind: "nat",
                point: Point::Postrouting,
                priority: 100,
            }),
            comment: "",
        },
    ));
    base.push(Change::FlushChain(TABLE, POSTROUTING.into()));
    for rule in entry() {
        base.push(Change::AddRule(TABLE, POSTROUTING.into(), rule));
    }
    base
}

/// Multicast keeps its source; all else is checked.
fn entry() -> [Rule; 3] {
    let multicast = [
        (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    ];
    let [v4, v6] = multicast.map(|(ip, prefix)| {
        let group = network(ip, prefix);
        Rule::new([
            Statement::Address(Side::Destination, group),
            Statement::Return,
        ])
    });
    [v4, v6, Rule::new([Statement::Goto(CHECKS.into())])]
}

/// Whether the three rules are there, in their order; others between them are
/// an administrator's.
fn leads_to_checks(found: &[Listed]) -> bool {
    let mut found = found.iter().filter(|it| it.chain == POSTROUTING);
    entry()
        .iter()
        .all(|rule| found.any(|it| it.does(Family::Inet, rule)))
}

fn rule(wanted: &Masquerade, address: IpNetwork, fully_random: bool) -> Rule {
    let subnet = network(address.network(), address.prefix());
    let mut rule = pod_or_network_rule(subnet, address, fully_random);
    let of_family = |it: &&IpNetwork| it.is_ipv4() == address.is_ipv4();
    for except in wanted.except.iter().filter(of_family) {
        let last = rule.statements.len() - 1;
        let elsewhere = Statement::AddressNot(Side::Destination, *except);
        rule.statements.insert(last, elsewhere);
    }
    if let Some(device) = &wanted.not_through {
        let last = rule.statements.len() - 1;
        let elsewhere = Statement::OutInterfaceNot(device.clone());
        rule.statements.insert(last, elsewhere);
    }
    if is_single(&address) {
        // What is no subnet is the pod's own: DEL takes it away, as the Go
        // plugins' DEL would.
        return rule.comment(pod_comment(&wanted.owner));
    }
    rule.comment(network_comment(&wanted.owner.network))
}

/// What the Go plugins write for a pod.
fn pod_rule(address: IpNetwork, fully_random: bool) -> Rule {
    let pod = IpNetwork::from(address.ip());
    pod_or_network_rule(pod, address, fully_random)
}

fn pod_or_network_rule(from: IpNetwork, subnet: IpNetwork, fully_random: bool) -> Rule {
    let subnet = network(subnet.network(), subnet.prefix());
    Rule::new([
        Statement::Address(Side::Source, from),
        Statement::AddressNot(Side::Destination, subnet),
        Statement::Masquerade { fully_random },
    ])
}

/// `prefix` is one of a network that was checked already.
fn network(ip: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(ip, prefix).unwrap_or_else(|_| IpNetwork::from(ip))
}

fn network_hash(network: &str) -> String {
    names::prefixed(16, "", network)
}

fn network_comment(network: &str) -> String {
    format!("{}, net: {network}", network_hash(network))
}

fn pod_prefix(network: &str, container_id: &str, ifname: &str) -> String {
    let pod = names::prefixed(16, "", &format!("{ifname}:{container_id}"));
    format!("{}-{pod}", network_hash(network))
}

fn pod_prefix_of(owner: &Attachment) -> String {
    let (id, ifname) = (owner.container_id.as_str(), owner.ifname.as_str());
    pod_prefix(&owner.network, id, ifname)
}

fn pod_comment(owner: &Attachment) -> String {
    let (network, id, ifname) = (&owner.network, &owner.container_id, &owner.ifname);
    let prefix = pod_prefix_of(owner);
    // nft prints a quote as it is, and cannot read it again. Who owns it says the hash.
    let ifname = ifname.as_str().replace('"', "'");
    format!("{prefix}, net: {network}, if: {ifname}, id: {id}")
}

fn remove_where(socket: &Socket, doomed: impl Fn(&str) -> bool) -> Result<Transaction, Error> {
    let mut changes = Transaction::new();
    for rule in listing::rules(socket, TABLE, Some(CHECKS))? {
        if doomed(&rule.comment) {
            changes.push(rule.deletion(TABLE));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::env::{ContainerId, IfName};

    fn wanted(addresses: &[&str], random_fully: bool) -> Masquerade {
        Masquerade {
            owner: Attachment {
                network: "mynet".into(),
                container_id: ContainerId::parse("aaaabbbbccccdddd").unwrap(),
                ifname: IfName::parse("eth0").unwrap(),
            },
            addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
            random_fully,
            except: Vec::new(),
            not_through: None,
        }
    }

    const BASE: &str = "\
add table inet cni_plugins_masquerade { comment \"Masquerading for plugins from github.com/containernetworking/plugins\" ; }
add chain inet cni_plugins_masquerade masq_checks { comment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\" ; }
";
    const ENTRY: &str = "\
add chain inet cni_plugins_masquerade postrouting { type nat hook postrouting priority 100 ; policy accept ; }
flush chain inet cni_plugins_masquerade postrouting
add rule inet cni_plugins_masquerade postrouting ip daddr 224.0.0.0/4 return
add rule inet cni_plugins_masquerade postrouting ip6 daddr ff00::/8 return
add rule inet cni_plugins_masquerade postrouting goto masq_checks
";

    /// Our rules as they are listed after an ADD.
    fn found(rules: &[Rule]) -> Vec<Listed> {
        let entry = entry();
        let entry = entry.iter().map(|it| (POSTROUTING, it));
        let all = entry.chain(rules.iter().map(|it| (CHECKS, it)));
        all.zip(10..)
            .map(|((chain, rule), handle)| Listed::of(Family::Inet, chain, handle, rule))
            .collect()
    }

    #[test]
    fn the_first_pod_brings_table_chains_and_the_subnets_rule() {
        let wanted = wanted(&["10.22.0.2/24", "fd00:22::2/64", "10.22.0.3/24"], false);
        let rules = "\
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.22.0.0/24 ip daddr != 10.22.0.0/24 masquerade comment \"d23676b4f2d9fe04, net: mynet\"
add rule inet cni_plugins_masquerade masq_checks ip6 saddr fd00:22::/64 ip6 daddr != fd00:22::/64 masquerade comment \"d23676b4f2d9fe04, net: mynet\"
";
        assert_eq!(
            additions(&[], &[&wanted]).to_string(),
            [BASE, ENTRY, rules].concat()
        );
    }

    #[test]
    fn the_next_pod_changes_nothing() {
        let wanted = wanted(&["10.22.0.9/24"], false);
        let rule = rule(&wanted, "10.22.0.2/24".parse().unwrap(), false);
        assert!(additions(&found(&[rule]), &[&wanted]).is_empty());
    }

    #[test]
    fn a_changed_configuration_replaces_the_rule() {
        let wanted = wanted(&["10.22.0.2/24"], true);
        let rule = rule(&wanted, wanted.addresses[0], false);
        let expected = "\
delete rule inet cni_plugins_masquerade masq_checks handle 13
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.22.0.0/24 ip daddr != 10.22.0.0/24 masquerade fully-random comment \"d23676b4f2d9fe04, net: mynet\"
";
        let changes = additions(&found(&[rule]), &[&wanted]).to_string();
        assert_eq!(changes, expected);
    }

    #[test]
    fn what_leaves_by_the_overlays_device_keeps_its_source() {
        let mut wanted = wanted(&["10.22.0.2/24"], false);
        wanted.not_through = Some("vxlan0".into());
        let expected = "\
add rule inet cni_plugins_masquerade masq_checks ip saddr 10.22.0.0/24 ip daddr != 10.22.0.0/24 oifname != \"vxlan0\" masquerade comment \"d23676b4f2d9fe04, net: mynet\"
";
        let changes = additions(&found(&[]), &[&wanted]).to_string();
        assert_eq!(changes, expected);
        // It takes the place of a rule without the device, and the other way round.
        let plain = Masquerade {
            not_through: None,
            ..wanted.clone()
        };
        for (had, wants) in [(&plain, &wanted), (&wanted, &plain)] {
            let had = found(&[rule(had, had.addresses[0], false)]);
            let changes = additions(&had, &[wants]).to_string();
            assert!(
                changes.contains("delete rule inet cni_plugins_masquerade masq_checks handle 13\n"),
                "{changes}"
            );
        }
    }

    #[test]
    fn exceptions_are_those_of_the_addresss_family() {
        let mut wanted = wanted(&["10.22.0.2/24", "fd00:22::2/64"], false);
        wanted.except = ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"]
            .map(|it| it.parse().unwrap())
            .to_vec();
        let changes = additions(&found(&[]), &[&wanted]).to_string();
        for rule in [
            "ip saddr 10.22.0.0/24 ip daddr != 10.22.0.0/24 ip daddr != 10.0.0.0/8 ip daddr != 192.0.2.7 masquerade",
            "ip6 saddr fd00:22::/64 ip6 daddr != fd00:22::/64 ip6 daddr != fd00::/8 masquerade",
        ] {
            assert!(changes.contains(rule), "{changes}");
        }
    }

    #[test]
    fn many_pods_of_a_network_share_its_rule() {
        let pods = ["10.22.0.2/24", "10.22.0.3/24"].map(|it| wanted(&[it], false));
        let changes = additions(&found(&[]), &[&pods[0], &pods[1]]).to_string();
        assert_eq!(changes.matches("add rule").count(), 1, "{changes}");
    }

    #[test]
    fn an_address_that_is_no_subnet_has_a_rule_of_its_pod() {
        let wanted = wanted(&["10.24.0.7/32"], false);
        let changes = additions(&found(&[]), &[&wanted]).to_string();
        let expected = "add rule inet cni_plugins_masquerade masq_checks ip saddr 10.24.0.7 ip daddr != 10.24.0.7 masquerade comment \"d23676b4f2d9fe04-a64ba18ca6ffe108, net: mynet, if: eth0, id: aaaabbbbccccdddd\"\n";
        assert_eq!(changes, expected);
    }

    #[test]
    fn deletion_by_the_go_plugins_prefix_never_hits_the_networks_rule() {
        let pod = pod_prefix("mynet", "aaaabbbbccccdddd", "eth0");
        assert_eq!(pod, "d23676b4f2d9fe04-a64ba18ca6ffe108");
        assert!(!network_comment("mynet").starts_with("d23676b4f2d9fe04-"));
    }

    #[test]
    fn stale_is_what_belongs_to_the_network_and_to_nobody_valid() {
        let valid = [ValidAttachment {
            container_id: "aaaabbbbccccdddd".into(),
            ifname: "eth0".into(),
        }];
        let (valid, none) = (alive("mynet", &valid), HashSet::new());
        let own = pod_comment(&wanted(&[], false).owner);
        let other = "d23676b4f2d9fe04-0000000000000000, net: mynet, if: eth0, id: x";
        assert!(!is_stale(&own, "mynet", &valid) && is_stale(&own, "mynet", &none));
        assert!(is_stale(other, "mynet", &valid) && !is_stale(other, "mynet2", &none));
        let network = network_comment("mynet");
        assert!(!is_stale(&network, "mynet", &valid) && is_stale(&network, "mynet", &none));
        assert!(!is_stale("an administrator's", "mynet", &none));
    }
}
