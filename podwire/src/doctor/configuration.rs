//! The configurations of networks: faults, files that are not used, plugins, subnets, ranges.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use cni::address::is_single;
use ipnetwork::IpNetwork;
use netlink::Link;
use networks::named::Listed;

use super::finding::{About, Check, Finding, Severity, first_of, quoted};
use super::{Examination, Node};
use crate::network::document::with_host_local;
use crate::network::span::Span;
use crate::network::taken::{self, Holder, Taken};
use crate::validate;

pub const FAULT: Check = Check {
    id: "PW030",
    severity: Severity::Error,
    title: "a configuration is wrong",
    why: "The runtime or a plugin refuses it, so no pod can be attached. With an unreadable first file, \
          some runtimes report that the whole node has no network.",
};
pub const UNUSED: Check = Check {
    id: "PW031",
    severity: Severity::Warning,
    title: "a file of configurations is not used",
    why: "Runtimes take the first file in alphabetical order. A change in another file with the same \
          network has no effect.",
};
pub const PLUGIN: Check = Check {
    id: "PW032",
    severity: Severity::Error,
    title: "a plugin of a network is missing",
    why: "Each ADD fails. Packages that own the directory of plugins remove foreign files when they are \
          upgraded.",
};
pub const OVERLAP: Check = Check {
    id: "PW033",
    severity: Severity::Error,
    title: "addresses of a network are in use elsewhere",
    why: "Packets for one of them reach the other: another network, or a host that this node has a \
          route to, as through a VPN.",
};
pub const NARROW: Check = Check {
    id: "PW034",
    severity: Severity::Warning,
    title: "a range of addresses is nearly used up",
    why: "At least four fifths are reserved. When the last one is, no pod can start.",
};
pub const EXHAUSTED: Check = Check {
    id: "PW035",
    severity: Severity::Error,
    title: "a range of addresses is used up",
    why: "Each ADD fails with code 11 until a pod ends.",
};
pub const SERVER: Check = Check {
    id: "PW036",
    severity: Severity::Error,
    title: "a name server of the node is in a network's subnet",
    why: "The node's requests for names go to the network, and not to the server.",
};

pub fn check(node: &Node<'_>, found: &mut Examination) {
    faults(node, found);
    for (file, why) in &node.survey.catalogue.ignored {
        // One with a fault has been reported.
        let name = file.display().to_string();
        if found
            .findings
            .iter()
            .any(|it| it.check == &FAULT && it.what.starts_with(&name))
        {
            continue;
        }
        let finding = Finding::new(&UNUSED, About::Node, format!("{name}: {why}"));
        let finding = finding.shown_by(format!("podwire validate {}", quoted(&name)), why);
        found.add(finding.command(format!("mv {0} {0}.unused", quoted(&name))));
    }
    let listed = node.survey.catalogue.networks.iter();
    for (name, listed) in listed.filter_map(|it| Some((&it.name, it.listed()?))) {
        plugins(node, name, listed, found);
        ranges(name, listed, found);
    }
    subnets(node, found);
}

fn faults(node: &Node<'_>, found: &mut Examination) {
    if !node.sources.conf_dir.is_dir() {
        return;
    }
    let reports = validate::all(std::slice::from_ref(&node.sources.conf_dir), None);
    // A directory without any file is no fault: there is no network yet.
    let of_files = |it: &validate::Report| it.file != node.sources.conf_dir;
    for report in reports.into_iter().filter(of_files) {
        let errors = report.findings.all().iter();
        let errors = errors.filter(|it| it.severity == validate::Severity::Error);
        let errors = errors.map(|it| match it.path.as_str() {
            "" => it.reason.clone(),
            path => format!("{path}: {}", it.reason),
        });
        let errors: Vec<_> = errors.collect();
        if errors.is_empty() {
            continue;
        }
        let file = report.file.display();
        let about = report.network.clone().map_or(About::Node, About::Network);
        let finding = Finding::new(&FAULT, about, format!("{file}: {}", first_of(&errors)));
        let finding = finding.shown_by(format!("podwire validate {file}"), &errors[0]);
        found.add(finding.advice(format!("correct {file}, or remove it")));
    }
}

fn plugins(node: &Node<'_>, name: &str, listed: &Listed, found: &mut Examination) {
    let mut wanted: Vec<_> = listed
        .list
        .plugins
        .iter()
        .map(|it| it.plugin.clone())
        .collect();
    let ipam = listed
        .list
        .plugins
        .iter()
        .filter_map(|it| it.document.get("ipam")?.get("type")?.as_str());
    wanted.extend(ipam.filter(|it| !it.is_empty()).map(str::to_owned));
    wanted.sort();
    wanted.dedup();
    wanted.retain(|plugin| {
        !plugin.contains('/')
            && !node.plugin_dirs.iter().any(|dir| {
                let file = std::fs::metadata(dir.join(plugin));
                file.is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
            })
    });
    if wanted.is_empty() {
        return;
    }
    let dirs: Vec<_> = node
        .plugin_dirs
        .iter()
        .map(|it| it.display().to_string())
        .collect();
    let dirs = dirs.join(" ");
    let what = format!("{} is not in {dirs}, or not executable", first_of(&wanted));
    let finding = Finding::new(&PLUGIN, About::Network(name.to_owned()), what);
    let finding = finding.shown_by(format!("ls -l {dirs}"), format!("no {}", first_of(&wanted)));
    found.add(finding.advice("install the plugins again, or name their directory (--plugin-dir)"));
}

fn ranges(name: &str, listed: &Listed, found: &mut Examination) {
    for document in with_host_local(listed) {
        let usages = match host_local::usage(&document, name) {
            Ok(usages) => usages,
            // A wrong configuration has been reported.
            Err(_) => continue,
        };
        for usage in usages {
            let check = match () {
                () if usage.free == 0 => &EXHAUSTED,
                () if usage.used * 5 >= usage.total * 4 && usage.total >= 10 => &NARROW,
                () => continue,
            };
            let finding = Finding::new(check, About::Network(name.to_owned()), usage.to_string());
            let finding = finding.shown_by(
                format!("podwire status --verbose {name}"),
                usage.to_string(),
            );
            found.add(finding.advice(
                "widen the range (podwire network update, or the configuration), or detach pods; \
                 podwire gc --keep-cached frees addresses of containers that are gone",
            ));
        }
    }
}

fn subnets(node: &Node<'_>, found: &mut Examination) {
    let all = match taken::taken(&node.survey.catalogue) {
        Ok(all) => all,
        Err(error) => return found.unread("routes", error),
    };
    let mut of_networks = Vec::new();
    for it in &all {
        if let Holder::Network { name, .. } = &it.holder {
            of_networks.push((name.as_str(), it.network));
        }
    }
    let bridges = bridges(node);
    for (at, (name, network)) in of_networks.iter().enumerate() {
        for (other, its) in &of_networks[at + 1..] {
            if other != name && overlap(*network, *its) && !shared(&bridges, name, other) {
                let what = format!("{network} of {name} overlaps {its} of {other}");
                let finding = Finding::new(&OVERLAP, About::Network((*name).to_owned()), what);
                let finding =
                    finding.shown_by("podwire network inspect", format!("{network}, {its}"));
                found.add(finding.advice("give one of the networks another subnet"));
            }
        }
        for other in &all {
            outside(node, name, *network, other, found);
        }
    }
}

fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    Span::of(one).overlaps(Span::of(other))
}

/// The bridge that each network names: networks of one bridge may share a subnet on purpose.
fn bridges(node: &Node<'_>) -> BTreeMap<String, String> {
    let networks = node.survey.catalogue.networks.iter();
    let bridge = |it: &networks::named::Network| {
        let plugin = it.listed()?.list.plugins.first()?;
        let bridge = plugin.document.get("bridge")?.as_str()?;
        Some((it.name.clone(), bridge.to_owned()))
    };
    networks.filter_map(bridge).collect()
}

fn shared(bridges: &BTreeMap<String, String>, one: &str, other: &str) -> bool {
    bridges.contains_key(one) && bridges.get(one) == bridges.get(other)
}

/// Whether a route or a name server is within the network's addresses. Routes of the networks
/// themselves are not meant, nor a larger network around this one.
fn outside(
    node: &Node<'_>,
    name: &str,
    network: IpNetwork,
    other: &Taken,
    found: &mut Examination,
) {
    match &other.holder {
        Holder::Network { .. } => {}
        Holder::Route { interface, .. } => {
            let link = node.survey.node().named(interface).map(|it| &it.link);
            let is_of_pod =
                |it| is_of_pods(node, it) || is_single(other.network) && it.is_kind("veth");
            let is_ours = link.is_some_and(is_of_pod);
            let is_ours = is_ours || interface == "lo";
            if is_ours || !overlap(network, other.network) || uses_parent(node, name, interface) {
                return;
            }
            let what = format!("{network} overlaps {other}");
            let finding = Finding::new(&OVERLAP, About::Network(name.to_owned()), what);
            let command = format!("ip route show {} dev {interface}", other.network);
            let finding = finding.shown_by(command, other.network.to_string());
            found.add(finding.advice(
                "give the network another subnet (podwire network create chooses a free one)",
            ));
        }
        Holder::NameServer(file) => {
            if overlap(network, other.network) {
                let what = format!("{network} has {other}");
                let finding = Finding::new(&SERVER, About::Network(name.to_owned()), what);
                let finding = finding.shown_by(
                    format!("cat {}", file.display()),
                    other.network.ip().to_string(),
                );
                found.add(finding.advice("give the network another subnet"));
            }
        }
    }
}

/// Whether a link is one that plugins made: a bridge of a network, a pod's end on the node, a shim.
fn is_of_pods(node: &Node<'_>, link: &Link) -> bool {
    let owned = node
        .survey
        .node()
        .at(link.index)
        .is_some_and(|it| it.owned.is_some());
    owned || node.is_of_a_network(&link.name)
}

/// Pods of macvlan, ipvlan and vlan are in the subnet of their parent.
fn uses_parent(node: &Node<'_>, name: &str, interface: &str) -> bool {
    let network = node.survey.catalogue.named(name).and_then(|it| it.listed());
    let plugins = network.map(|it| &it.list.plugins[..]).unwrap_or_default();
    let on_parent = ["macvlan", "ipvlan", "vlan", "host-device", "sriov"];
    plugins.iter().any(|it| {
        let master = it.document.get("master").and_then(|it| it.as_str());
        on_parent.contains(&it.plugin.as_str())
            && master.is_none_or(|it| it.is_empty() || it == interface)
    })
}
