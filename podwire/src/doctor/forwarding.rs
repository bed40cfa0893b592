//! Whether the node forwards packets of pods, and lets them pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use netlink::{Family, sysctl};
use wiring::Gateway;

use super::finding::{About, Check, Finding, Severity, first_of};
use super::{Examination, Node, native};
use crate::pods::Plan;

pub const FORWARDING: Check = Check {
    id: "PW001",
    severity: Severity::Error,
    title: "the node does not forward, although it is the gateway of pods",
    why: "Packets between pods and everything beyond their bridge are dropped. Another program, or a \
          file in /etc/sysctl.d, has switched off what ADD switched on.",
};
pub const POLICY: Check = Check {
    id: "PW002",
    severity: Severity::Error,
    title: "iptables drops what is forwarded, and no rule accepts packets of a network",
    why: "The policy of the chain FORWARD is DROP: Docker sets it, and some hardening guides. No rule \
          accepts packets from or to the interface of the pods, so they reach only each other.",
};
pub const VARIANTS: Check = Check {
    id: "PW003",
    severity: Severity::Warning,
    title: "iptables-legacy and iptables-nft both have rules",
    why: "Both see each packet, and neither lists the rules of the other. A packet that one accepts \
          may be dropped by the other.",
};
pub const BRIDGED: Check = Check {
    id: "PW004",
    severity: Severity::Warning,
    title: "a policy between pods of one bridge needs br_netfilter",
    why: "ingressPolicy \"isolated\" separates pods of one bridge only where iptables sees bridged \
          frames: net.bridge.bridge-nf-call-iptables has to be 1.",
};
pub const REVERSE_PATH: Check = Check {
    id: "PW005",
    severity: Severity::Warning,
    title: "strict reverse path filter on the way of pods",
    why: "The kernel drops packets whose source it would reach through another interface. On a VXLAN \
          device, and on a node with several ways out, that also concerns legitimate packets.",
};
pub const ADVERTISEMENTS: Check = Check {
    id: "PW006",
    severity: Severity::Error,
    title: "forwarding has switched off router advertisements",
    why: "A node that forwards IPv6 ignores router advertisements unless accept_ra is 2. Its default \
          route came from one, and will expire.",
};

/// The settings that make a node forward.
const KEYS: [(Family, &str, &str); 2] = [
    (Family::V4, "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
    (
        Family::V6,
        "net/ipv6/conf/all/forwarding",
        "net.ipv6.conf.all.forwarding",
    ),
];

pub fn check(node: &Node<'_>, found: &mut Examination) {
    let routed = routed(node);
    for (family, key, name) in KEYS {
        let networks = &routed[usize::from(family == Family::V6)];
        let off = sysctl::read(key).is_ok_and(|it| it == "0");
        if let Some((network, _)) = networks.iter().next().filter(|_| off) {
            let all: Vec<_> = networks.keys().cloned().collect();
            let what = format!("{name} is 0, and pods of {} need it", first_of(&all));
            let about = match networks.len() {
                1 => About::Network(network.clone()),
                _ => About::Node,
            };
            let finding = Finding::new(&FORWARDING, about, what);
            let finding = finding.shown_by(format!("sysctl {name}"), format!("{name} = 0"));
            found.add(finding.command(format!("sysctl -w {name}=1")));
        }
    }
    policies(&routed, found);
    native::check(&routed, found);
    bridged_frames(node, found);
    reverse_path(node, found);
    advertisements(node, found);
}

/// The interfaces of networks for which the node forwards, IPv4 and IPv6.
pub type Routed = [BTreeMap<String, BTreeSet<String>>; 2];

fn routed(node: &Node<'_>) -> Routed {
    let mut routed = Routed::default();
    for attached in &node.pods.attached {
        for plugin in &attached.plugins {
            let (interface, families) = match &plugin.plan {
                Plan::Bridge(plan) => {
                    let interface = plan.vlan_gateway.as_ref().unwrap_or(&plan.bridge);
                    (
                        Some(interface.to_string()),
                        families(plan.gateway, plan.reachability.closed()),
                    )
                }
                Plan::Vxlan(plan) => {
                    let families = families(plan.gateway, plan.reachability.closed());
                    (Some(plan.network.bridge.to_string()), families)
                }
                Plan::Ptp(_) => (None, [true, true]),
                Plan::Portmap(_) | Plan::Firewall(_) => continue,
            };
            let network = &attached.owner.network;
            for ip in attached.result.ips.iter().map(|it| it.address.ip()) {
                let at = usize::from(ip.is_ipv6());
                if families[at] {
                    let interfaces = routed[at].entry(network.clone()).or_default();
                    interfaces.extend(interface.clone());
                }
            }
        }
    }
    routed
}

fn families(gateway: Gateway, closed: [bool; 2]) -> [bool; 2] {
    match gateway {
        Gateway::None => [false; 2],
        Gateway::Gateway { families, .. } => [0, 1].map(|at| families[at] && !closed[at]),
    }
}

/// A variant of iptables, and what it has.
struct Variant {
    program: &'static str,
    lines: Vec<String>,
}

/// The policy of FORWARD, by the crate `iptables`, which executes the programs. The legacy program
/// creates a table that it lists, so it is executed only where there is one.
fn policies(routed: &Routed, found: &mut Examination) {
    for (at, legacy, names, nft, family) in [
        (
            0,
            "iptables-legacy",
            "ip_tables_names",
            "iptables-nft",
            packet_filter::Family::Ip,
        ),
        (
            1,
            "ip6tables-legacy",
            "ip6_tables_names",
            "ip6tables-nft",
            packet_filter::Family::Ip6,
        ),
    ] {
        let tables = fs::read_to_string(format!("/proc/net/{names}")).unwrap_or_default();
        let has_legacy = tables.lines().any(|it| it == "filter");
        let nftables = packet_filter::Nftables::find().ok().flatten();
        let has_nft = nftables
            .and_then(|it| it.has_table(family, "filter").ok())
            .unwrap_or(false);
        let mut variants = Vec::new();
        for (is_there, program) in [(has_legacy, legacy), (has_nft, nft)] {
            if !is_there {
                continue;
            }
            match list(program) {
                Ok(lines) => variants.push(Variant { program, lines }),
                Err(why) => found.unread(program, why),
            }
        }
        for variant in &variants {
            accepted(variant, &routed[at], found);
        }
        let with_rules: Vec<_> = variants.iter().filter(|it| rules(&it.lines) > 0).collect();
        if let [one, other] = with_rules[..] {
            let what = format!(
                "{} has {} rules, {} has {}",
                one.program,
                rules(&one.lines),
                other.program,
                rules(&other.lines)
            );
            let shows = first_of(&first_rules(&one.lines));
            let finding = Finding::new(&VARIANTS, About::Node, what);
            let finding = finding.shown_by(format!("{} -S", one.program), shows);
            found.add(finding.advice(format!(
                "choose one variant for all programs (update-alternatives --config iptables), and \
                 flush the other: {} -F once nothing needs it",
                one.program
            )));
        }
    }
}

/// The rules of the table filter: `PROGRAM -t filter -S`.
fn list(program: &'static str) -> Result<Vec<String>, String> {
    let iptables = iptables::IPTables {
        cmd: program,
        has_check: true,
        // It would wait without a limit for the lock.
        has_wait: false,
        is_numeric: false,
    };
    let lines = iptables
        .list_table("filter")
        .map_err(|error| error.to_string())?;
    if lines.iter().any(|it| it.starts_with("-P ")) {
        Ok(lines)
    } else {
        Err("it lists no chain".into())
    }
}

fn rules(lines: &[String]) -> usize {
    lines.iter().filter(|it| it.starts_with("-A ")).count()
}

fn first_rules(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .filter(|it| it.starts_with("-A "))
        .cloned()
        .collect()
}

fn accepted(
    variant: &Variant,
    networks: &BTreeMap<String, BTreeSet<String>>,
    found: &mut Examination,
) {
    if !variant.lines.iter().any(|it| it == "-P FORWARD DROP") {
        return;
    }
    for (network, interfaces) in networks {
        for interface in interfaces {
            if accepts(&variant.lines, interface) {
                continue;
            }
            let program = variant.program;
            let what = format!("{program} drops what is forwarded from and to {interface}");
            let finding = Finding::new(&POLICY, About::Network(network.clone()), what);
            let finding = finding.shown_by(format!("{program} -S FORWARD"), "-P FORWARD DROP");
            // Docker keeps this chain for rules of the administrator.
            let chain = if variant.lines.iter().any(|it| it == "-N DOCKER-USER") {
                "DOCKER-USER"
            } else {
                "FORWARD"
            };
            found.add(finding.command(format!(
                "{program} -I {chain} -i {interface} -j ACCEPT && {program} -I {chain} -o {interface} -j ACCEPT"
            )));
        }
    }
}

/// Whether a rule in FORWARD, or in a chain that it jumps to, may accept packets from `interface`:
/// one that names no other interface. Rules for addresses count: it is not certain that they fit.
fn accepts(lines: &[String], interface: &str) -> bool {
    let (mut chains, mut seen) = (vec!["FORWARD"], BTreeSet::new());
    while let Some(chain) = chains.pop() {
        if !seen.insert(chain) {
            continue;
        }
        for line in lines {
            let words: Vec<_> = line.split_whitespace().collect();
            let [add, of, rest @ ..] = &words[..] else {
                continue;
            };
            if *add != "-A" || *of != chain || !concerns(rest, interface) {
                continue;
            }
            match value(rest, "-j").or_else(|| value(rest, "-g")) {
                Some("ACCEPT") => return true,
                Some(target) => chains.push(target),
                None => {}
            }
        }
    }
    false
}

/// Whether new connections from `interface` may match a rule.
fn concerns(words: &[&str], interface: &str) -> bool {
    let input = words.iter().position(|it| *it == "-i");
    let named = input.and_then(|at| words.get(at + 1)).copied();
    let negated = input.is_some_and(|at| at > 0 && words[at - 1] == "!");
    let matches = named.is_none_or(|name| match name.strip_suffix('+') {
        Some(prefix) => interface.starts_with(prefix),
        None => name == interface,
    });
    // `-o` of another network alone is that network's.
    let towards = named.is_none() && value(words, "-o").is_some();
    let states = value(words, "--ctstate").or_else(|| value(words, "--state"));
    matches != negated && !towards && states.is_none_or(|it| it.contains("NEW"))
}

fn value<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|it| *it == option)?;
    words.get(at + 1).copied()
}

fn bridged_frames(node: &Node<'_>, found: &mut Examination) {
    let isolated = |it: &&crate::pods::Attached| {
        it.plugins.iter().any(|plugin| {
            let Plan::Firewall(plan) = &plugin.plan else {
                return false;
            };
            let wanted = plan.wanted(&it.result);
            wanted.is_ok_and(|it| it.ingress.is_some_and(|it| it.isolated))
        })
    };
    let networks = node
        .pods
        .attached
        .iter()
        .filter(isolated)
        .map(|it| it.owner.network.clone());
    let networks: BTreeSet<_> = networks.collect();
    const KEY: &str = "net/bridge/bridge-nf-call-iptables";
    const NAME: &str = "net.bridge.bridge-nf-call-iptables";
    if sysctl::read(KEY).is_ok_and(|it| it == "1") {
        return;
    }
    let state = sysctl::read(KEY).unwrap_or_else(|_| "missing".to_owned());
    for network in networks {
        let what = format!("ingressPolicy of {network} is \"isolated\", and {NAME} is {state}");
        let finding = Finding::new(&BRIDGED, About::Network(network), what);
        let finding = finding.shown_by(format!("sysctl {NAME}"), format!("{NAME}: {state}"));
        let module = match state.as_str() {
            "missing" => "modprobe br_netfilter && ",
            _ => "",
        };
        found.add(finding.command(format!("{module}sysctl -w {NAME}=1")));
    }
}

fn reverse_path(node: &Node<'_>, found: &mut Examination) {
    let ways = node
        .survey
        .node()
        .routes
        .iter()
        .filter(|it| it.dst.prefix() == 0 && it.dst.is_ipv4());
    let ways: BTreeSet<_> = ways.filter_map(|it| it.oif).collect();
    if node.pods.attached.is_empty() {
        return;
    }
    let read = |name: &str| -> u8 {
        let value = sysctl::read(&sysctl::interface_key("ipv4", name, "rp_filter"));
        value.ok().and_then(|it| it.parse().ok()).unwrap_or(0)
    };
    let all = read("all");
    for interface in &node.survey.node().interfaces {
        let link = &interface.link;
        let is_uplink = ways.len() > 1 && ways.contains(&link.index);
        let is_ours = link.is_kind("vxlan") && node.is_of_a_network(&link.name);
        if !is_uplink && !is_ours || all.max(read(&link.name)) != 1 {
            continue;
        }
        let name = &link.name;
        let key = format!("net.ipv4.conf.{name}.rp_filter");
        let what = format!("the reverse path filter of {name} is strict");
        let finding = Finding::new(&REVERSE_PATH, About::Node, what);
        let shows = format!(
            "the higher value counts: all is {all}, {name} is {}",
            read(name)
        );
        let finding = finding.shown_by(format!("sysctl net.ipv4.conf.all.rp_filter {key}"), shows);
        found.add(finding.command(format!("sysctl -w {key}=2")));
    }
}

fn advertisements(node: &Node<'_>, found: &mut Examination) {
    let forwards = sysctl::read("net/ipv6/conf/all/forwarding").is_ok_and(|it| it == "1");
    if !forwards {
        return;
    }
    let survey = node.survey.node();
    for interface in &survey.interfaces {
        let link = &interface.link;
        // RTPROT_RA (linux/rtnetlink.h)
        let has_route = survey.routes.iter().any(|it| {
            it.oif == Some(link.index)
                && it.dst.prefix() == 0
                && it.dst.is_ipv6()
                && it.protocol == 9
        });
        if !has_route || link.accept_ra != Some(1) {
            continue;
        }
        let name = &link.name;
        let what = format!(
            "the IPv6 default route of {name} is from an advertisement, and no more are accepted"
        );
        let finding = Finding::new(&ADVERTISEMENTS, About::Node, what);
        let key = format!("net.ipv6.conf.{name}.accept_ra");
        let finding = finding.shown_by(format!("sysctl {key}"), format!("{key} = 1"));
        found.add(finding.command(format!("sysctl -w {key}=2")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts_in(rules: &[&str]) -> bool {
        let lines: Vec<_> = rules.iter().map(|it| (*it).to_owned()).collect();
        accepts(&lines, "cni0")
    }

    #[test]
    fn rules_of_other_interfaces_accept_nothing_for_a_bridge() {
        for docker in [
            "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A FORWARD -i docker0 -o docker0 -j ACCEPT",
            "-A FORWARD -o docker0 -j ACCEPT",
            "-A FORWARD ! -i cni0 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A INPUT -i cni0 -j ACCEPT",
        ] {
            assert!(!accepts_in(&[docker]), "{docker}");
        }
    }

    #[test]
    fn a_rule_may_be_in_another_chain() {
        for rule in [
            "-A FORWARD -i cni0 -j ACCEPT",
            "-A FORWARD -i cni+ -j ACCEPT",
            "-A FORWARD -j ACCEPT",
            "-A FORWARD -s 10.1.0.2/32 -j ACCEPT",
        ] {
            assert!(accepts_in(&[rule]), "{rule}");
        }
        assert!(accepts_in(&[
            "-A FORWARD -j A",
            "-A A -j B",
            "-A B -j A",
            "-A B -j ACCEPT"
        ]));
        assert!(!accepts_in(&["-A FORWARD -i eth0 -j A", "-A A -j ACCEPT"]));
    }
}
