//! Masquerade in nf_tables: one rule for each subnet of a network, none for a pod.
//!
//! Table and chains are those of the Go plugins, so that both suites work side by side on a node.
//! The Go plugins write a rule for each pod. Ours is for the subnet, because after the deletion of
//! a rule the close of the socket waits some 10 ms for RCU, with the lock held that every other
//! commit and every new interface need. A rule that outlives its pods costs nothing.
//!
//! A comment begins with a hash of the network. That of a rule for one pod goes on with `-` and a
//! hash of the pod, by which the Go plugins find the rule when they delete it. The comment of a
//! subnet's rule never does.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use cni::address::{is_single, network_of};
use cni::conf::ValidAttachment;
use cni::{Attachment, names};
use ipnetwork::IpNetwork;
use nftables::listing::{self, has_in_order, in_chain};
use nftables::{
    Chain, Error, Family, Listed, Point, Rule, Side, Socket, Statement, Table, Transaction, fitting,
};

use crate::backend::Nftables;
use crate::inventory::{Applied, Subject};
use crate::masquerade::Masquerade;

const TABLE: Table = Table::commented(
    Family::Inet,
    "cni_plugins_masquerade",
    "Masquerading for plugins from github.com/containernetworking/plugins",
);
const CHECKS: &str = "masq_checks";
const POSTROUTING: &str = "postrouting";

impl Nftables {
    /// Whether subnets of `network` that are not among `kept` are masqueraded.
    pub fn has_stale_masquerade(&self, network: &str, kept: &[IpNetwork]) -> Result<bool> {
        let found = rules(&self.socket)?;
        Ok(!stale(&found, network, kept).is_empty())
    }

    /// Removes the rules for subnets of `network` that are not among `kept`.
    pub fn remove_stale_masquerade(&self, network: &str, kept: &[IpNetwork]) -> Result<()> {
        self.transact(|socket| Ok(removal(stale(&rules(socket)?, network, kept))))
    }
}

/// Changes that make the kernel masquerade as `wanted`, none if it does; and whether there are
/// rules for other subnets of its network.
pub fn add(socket: &Socket, wanted: &Masquerade) -> Result<(Transaction, bool), Error> {
    let found = rules(socket)?;
    let others = stale(&found, &wanted.owner.network, &wanted.subnets());
    Ok((additions(&found, &[wanted]), !others.is_empty()))
}

/// All rules of the table.
pub fn rules(socket: &Socket) -> Result<Vec<Listed>, Error> {
    listing::rules(socket, TABLE)
}

/// The rules of `found` that the Go plugins wrote for the pod of `wanted` alone.
pub fn of_go<'a>(found: &'a [Listed], wanted: &Masquerade) -> Vec<&'a Listed> {
    let pod = pod_prefix_of(&wanted.owner);
    // For an address without a subnet, theirs and ours are the same.
    let ours: Vec<_> = wanted
        .addresses
        .iter()
        .flat_map(|address| [false, true].map(|random| rule(wanted, *address, random)))
        .collect();
    let is_go = |it: &&Listed| it.comment.starts_with(&pod) && !ours.iter().any(|rule| it.is(rule));
    in_chain(found, CHECKS).filter(is_go).collect()
}

/// The rules of `found` for the subnets of `wanted`.
pub fn of_network<'a>(found: &'a [Listed], wanted: &Masquerade) -> Vec<&'a Listed> {
    let subnets: Vec<_> = wanted.addresses.iter().map(|it| leaving(*it)).collect();
    let all = of_subnets(found, &wanted.owner.network);
    all.filter(|it| subnets.iter().any(|rule| it.begins(rule)))
        .collect()
}

/// The rules of `found` for subnets of `network` that are not among `kept`.
fn stale<'a>(found: &'a [Listed], network: &str, kept: &[IpNetwork]) -> Vec<&'a Listed> {
    let kept: Vec<_> = kept.iter().map(|it| leaving(*it)).collect();
    let all = of_subnets(found, network);
    all.filter(|it| !kept.iter().any(|rule| it.begins(rule)))
        .collect()
}

fn of_subnets<'a>(found: &'a [Listed], network: &str) -> impl Iterator<Item = &'a Listed> {
    let comment = network_comment(network);
    in_chain(found, CHECKS).filter(move |it| it.comment == fitting(&comment))
}

/// How every rule for the subnet of `address` begins.
fn leaving(address: IpNetwork) -> Rule {
    let subnet = network_of(address);
    Rule::new([
        Statement::Address(Side::Source, subnet),
        Statement::AddressNot(Side::Destination, subnet),
    ])
}

/// Changes that remove these rules, each once.
pub fn removal<'a>(rules: impl IntoIterator<Item = &'a Listed>) -> Transaction {
    let mut handles = HashSet::new();
    let mut changes = Transaction::new();
    for rule in rules {
        if handles.insert(rule.handle) {
            changes.delete_rule(rule);
        }
    }
    changes
}

/// Changes that add what the Go plugins would have for these pods; none if it is there.
pub fn go_additions(found: &[Listed], all: &[&Masquerade]) -> Transaction {
    let mut rules = Transaction::new();
    for wanted in all {
        for address in &wanted.addresses {
            let rule = pod_rule(*address, wanted.random_fully);
            let rule = rule.comment(pod_comment(&wanted.owner));
            if !in_chain(found, CHECKS).any(|it| it.is(&rule)) {
                rules.add_rule(TABLE, CHECKS, rule);
            }
        }
    }
    if rules.is_empty() {
        return rules;
    }
    let mut all = base(leads_to_checks(found));
    all.extend(rules);
    all
}

/// Changes that remove the rules for `owner` alone.
pub fn remove(socket: &Socket, owner: &Attachment) -> Result<Transaction, Error> {
    let pod = pod_prefix_of(owner);
    remove_where(socket, |comment| comment.starts_with(&pod))
}

/// Changes that remove the rules for pods of `network` that are not `valid`, and the network's own
/// if none is.
pub fn collect(
    socket: &Socket,
    network: &str,
    valid: &[ValidAttachment],
) -> Result<Transaction, Error> {
    let alive = alive(network, valid);
    remove_where(socket, |comment| is_stale(comment, network, &alive))
}

/// How the comments for the living attachments to `network` begin.
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

/// What `found` lacks of `wanted`, in words; `None` if nothing is missing. The rules of the Go
/// plugins count as well.
pub fn missing(found: &[Listed], wanted: &Masquerade) -> Option<String> {
    let pod = pod_prefix_of(&wanted.owner);
    for address in &wanted.addresses {
        let ours = [false, true].map(|random| rule(wanted, *address, random));
        let go = [false, true].map(|random| pod_rule(*address, random));
        let is_go = |it: &Listed| {
            wanted.is_known_to_go()
                && it.comment.starts_with(&pod)
                && go.iter().any(|rule| it.does(rule))
        };
        let mut rules = in_chain(found, CHECKS);
        if !rules.any(|it| ours.iter().any(|rule| it.is(rule)) || is_go(it)) {
            return Some(format!(
                "no rule in chain {TABLE} {CHECKS} masquerades {address} of network {}",
                wanted.owner.network
            ));
        }
    }
    (!leads_to_checks(found))
        .then(|| format!("chain {TABLE} {POSTROUTING} does not lead to {CHECKS}"))
}

/// Changes for all of these together. Where two of them want different rules for a subnet, the
/// first one counts.
pub fn additions(found: &[Listed], all: &[&Masquerade]) -> Transaction {
    let mut rules = Transaction::new();
    let mut seen = Vec::<Rule>::new();
    for wanted in all {
        for address in &wanted.addresses {
            let rule = rule(wanted, *address, wanted.random_fully);
            let leaving = leaving(*address);
            if seen.iter().any(|it| {
                it.comment == rule.comment && it.statements.starts_with(&leaving.statements)
            }) {
                continue;
            }
            let comment = rule.comment.clone().unwrap_or_default();
            let there: Vec<_> = in_chain(found, CHECKS)
                .filter(|it| it.comment == fitting(&comment) && it.begins(&leaving))
                .collect();
            if !there.iter().any(|it| it.is(&rule)) {
                // The network's configuration was changed.
                there.into_iter().for_each(|it| rules.delete_rule(it));
                rules.add_rule(TABLE, CHECKS, rule.clone());
            }
            seen.push(rule);
        }
    }
    if leads_to_checks(found) {
        // Table and chains exist. To name them again makes the close of the socket wait some 10 ms
        // for RCU, because the kernel takes it for an update of the chain.
        return rules;
    }
    let mut all = base(false);
    all.extend(rules);
    all
}

/// The table and its chains. Where [`POSTROUTING`] does not lead to the checks, it is filled anew,
/// as the Go plugins do each time.
fn base(leads_to_checks: bool) -> Transaction {
    let mut base = Transaction::new();
    base.add_table(TABLE);
    let comment =
        "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
    base.add_chain(TABLE, Chain::new(CHECKS).comment(comment));
    if !leads_to_checks {
        let chain = Chain::hooked(POSTROUTING, "nat", Point::Postrouting, 100);
        base.fill_chain(TABLE, chain, entry());
    }
    base
}

/// Multicast keeps its source; everything else is checked.
fn entry() -> [Rule; 3] {
    let multicast = [
        (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    ];
    let [v4, v6] = multicast.map(|(ip, prefix)| {
        let group = IpNetwork::new(ip, prefix).unwrap_or(ip.into());
        let to_group = Statement::Address(Side::Destination, group);
        Rule::new([to_group, Statement::Return])
    });
    [v4, v6, Rule::new([Statement::Goto(CHECKS.into())])]
}

fn leads_to_checks(found: &[Listed]) -> bool {
    has_in_order(found, POSTROUTING, &entry())
}

fn rule(wanted: &Masquerade, address: IpNetwork, fully_random: bool) -> Rule {
    let mut rule = leaving(address);
    let of_family = |it: &&IpNetwork| it.is_ipv4() == address.is_ipv4();
    for except in wanted.except.iter().filter(of_family) {
        let elsewhere = Statement::AddressNot(Side::Destination, *except);
        rule.statements.push(elsewhere);
    }
    if let Some(device) = &wanted.not_through {
        let elsewhere = Statement::OutInterfaceNot(device.clone());
        rule.statements.push(elsewhere);
    }
    rule.statements.push(Statement::Masquerade { fully_random });
    rule.comment(if is_single(address) {
        // Such an address is the pod's alone: DEL removes the rule, as the Go plugins' DEL would.
        pod_comment(&wanted.owner)
    } else {
        network_comment(&wanted.owner.network)
    })
}

/// The rule of the Go plugins for a pod.
fn pod_rule(address: IpNetwork, fully_random: bool) -> Rule {
    Rule::new([
        Statement::Address(Side::Source, address.ip().into()),
        Statement::AddressNot(Side::Destination, network_of(address)),
        Statement::Masquerade { fully_random },
    ])
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
    // nft prints a quote as it is and cannot read it again. The hash names the owner.
    let ifname = ifname.as_str().replace('"', "'");
    format!("{prefix}, net: {network}, if: {ifname}, id: {id}")
}

fn remove_where(socket: &Socket, is_stale: impl Fn(&str) -> bool) -> Result<Transaction, Error> {
    let found = listing::chain_rules(socket, TABLE, CHECKS)?;
    Ok(removal(found.iter().filter(|it| is_stale(&it.comment))))
}

/// The effect of the rules, for people.
pub fn inventory(socket: &Socket, subnets: &[IpNetwork]) -> Result<Vec<Applied>, Error> {
    let mut subnets: Vec<_> = subnets.iter().map(|it| network_of(*it)).collect();
    subnets.sort();
    subnets.dedup();
    let known: Vec<_> = subnets.iter().map(|it| (*it, leaving(*it))).collect();
    let found = rules(socket)?;
    let applied = in_chain(&found, CHECKS).map(|rule| {
        let known = known.iter().find(|(_, leaving)| rule.begins(leaving));
        Applied {
            subnet: known.map(|(subnet, _)| *subnet),
            ..Applied::new(Subject::Masquerade, TABLE, &rule.comment)
        }
    });
    Ok(applied.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

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
            .map(|((chain, rule), handle)| Listed::of(TABLE, chain, handle, rule))
            .collect()
    }

    #[test]
    fn the_first_pod_brings_table_chains_and_the_subnets_rule() {
        let wanted = example::masquerade(&["10.22.0.2/24", "fd00:22::2/64", "10.22.0.3/24"]);
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
    fn what_leaves_by_the_overlays_device_keeps_its_source() {
        let mut wanted = example::masquerade(&["10.22.0.2/24"]);
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
        let mut wanted = example::masquerade(&["10.22.0.2/24", "fd00:22::2/64"]);
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
        let pods = ["10.22.0.2/24", "10.22.0.3/24"].map(|it| example::masquerade(&[it]));
        let changes = additions(&found(&[]), &[&pods[0], &pods[1]]).to_string();
        assert_eq!(changes.matches("add rule").count(), 1, "{changes}");
    }

    #[test]
    fn an_address_that_is_no_subnet_has_a_rule_of_its_pod() {
        let wanted = example::masquerade(&["10.24.0.7/32"]);
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
}
