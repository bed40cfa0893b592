//! Whether the kernel has what the configured networks need.

use std::collections::BTreeSet;

use netlink::Netlink;
use netns::NetNs;

use super::finding::{About, Check, Finding, Severity};
use super::{Examination, Node};

pub const KINDS: Check = Check {
    id: "PW037",
    severity: Severity::Error,
    title: "the kernel cannot make the interfaces of a network",
    why: "It was built without them, or the module is missing: small images leave out the package with \
          the other modules. Each ADD fails with \"operation not supported\".",
};

/// The kinds of links that a plugin makes.
fn kinds(plugin: &str) -> &'static [&'static str] {
    match plugin {
        "bridge" => &["bridge", "veth"],
        "ptp" => &["veth"],
        "vxlan" => &["vxlan", "bridge", "veth"],
        "macvlan" => &["macvlan"],
        "ipvlan" => &["ipvlan"],
        "vlan" => &["vlan"],
        "dummy" => &["dummy"],
        "vrf" => &["vrf"],
        "bandwidth" => &["ifb"],
        _ => &[],
    }
}

/// A kind that the node has a link of is there; others are tried in a namespace that is thrown away.
pub fn check(node: &Node<'_>, found: &mut Examination) {
    let all = node.survey.namespaces.iter().flat_map(|it| &it.interfaces);
    let present: BTreeSet<_> = all.filter_map(|it| it.link.kind.as_deref()).collect();
    let mut wanted = Vec::new();
    for network in &node.survey.catalogue.networks {
        let plugins = network.listed().into_iter().flat_map(|it| &it.list.plugins);
        let kinds = plugins.flat_map(|it| kinds(&it.plugin));
        let kinds = kinds.filter(|it| !present.contains(*it));
        wanted.extend(kinds.map(|it| (*it, network.name.as_str())));
    }
    if wanted.is_empty() {
        return;
    }
    let socket = NetNs::unnamed().and_then(|it| Netlink::open_in(&it));
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return found.unread("kinds of links", error),
    };
    for (kind, network) in wanted {
        match socket.knows_kind(kind) {
            Ok(true) => {}
            Ok(false) => {
                let about = About::Network(network.to_owned());
                let what = format!("{network} needs links of the kind {kind}");
                let finding = Finding::new(&KINDS, about, what);
                let finding = finding.shown_by(
                    format!("unshare --net ip link add type {kind}"),
                    "Unknown device type",
                );
                found.add(finding.advice(format!(
                    "modprobe {kind}; if there is no such module, install the package with the \
                     kernel's other modules, or another kernel"
                )));
            }
            Err(error) => found.unread(&format!("links of the kind {kind}"), error),
        }
    }
}
