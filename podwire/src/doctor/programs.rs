//! Other programs that change the interfaces and rules of pods.

use std::fs;
use std::path::Path;

use super::finding::{About, Check, Finding, Severity, first_of};
use super::{Examination, Node};

pub const NETWORK_MANAGER: Check = Check {
    id: "PW040",
    severity: Severity::Warning,
    title: "NetworkManager manages interfaces of pods",
    why: "It sets them down, or removes their addresses, when its own configuration says so, and when it \
          is restarted.",
};
pub const NETWORKD: Check = Check {
    id: "PW041",
    severity: Severity::Warning,
    title: "systemd-networkd manages interfaces of pods",
    why: "A .network file matches them, such as one for all interfaces. networkd removes addresses and \
          routes that it does not know.",
};
pub const FIREWALLD: Check = Check {
    id: "PW042",
    severity: Severity::Warning,
    title: "firewalld runs, and a network has no plugin firewall",
    why: "firewalld rejects what is forwarded from and to interfaces that are in no zone that accepts. The \
          plugin firewall puts the pods' addresses into the zone trusted.",
};

pub fn check(node: &Node<'_>, found: &mut Examination) {
    let ours: Vec<_> = node
        .survey
        .node()
        .interfaces
        .iter()
        .filter(|it| it.owned.is_some() || node.is_of_a_network(&it.link.name))
        .map(|it| (it.link.index, it.link.name.clone()))
        .collect();
    let managed = |dir: &str, is_managed: &dyn Fn(&str) -> bool| -> Vec<String> {
        let read = |index: &u32| fs::read_to_string(Path::new(dir).join(index.to_string()));
        let managed = ours
            .iter()
            .filter(|(index, _)| read(index).is_ok_and(|it| is_managed(&it)));
        managed.map(|(_, name)| name.clone()).collect()
    };
    let names = managed("/run/NetworkManager/devices", &|it| {
        it.lines().any(|it| it == "managed=true")
    });
    if !names.is_empty() {
        let finding = Finding::new(
            &NETWORK_MANAGER,
            About::Node,
            format!("it manages {}", first_of(&names)),
        );
        let finding = finding.shown_by("nmcli -f DEVICE,STATE device", first_of(&names));
        let list: Vec<_> = names
            .iter()
            .map(|it| format!("interface-name:{it}"))
            .collect();
        found.add(finding.command(format!(
            "printf '[keyfile]\\nunmanaged-devices=interface-name:veth*;{}\\n' > \
             /etc/NetworkManager/conf.d/podwire.conf && nmcli general reload",
            list.join(";")
        )));
    }
    let states = |it: &str| {
        let state = it.lines().find_map(|it| it.strip_prefix("ADMIN_STATE="));
        state.is_some_and(|it| !matches!(it, "unmanaged" | "linger" | "initialized"))
    };
    let names = managed("/run/systemd/netif/links", &states);
    if !names.is_empty() {
        let finding = Finding::new(
            &NETWORKD,
            About::Node,
            format!("it manages {}", first_of(&names)),
        );
        let finding = finding.shown_by("networkctl list", first_of(&names));
        found.add(finding.command(format!(
            "printf '[Match]\\nName=veth* {}\\n\\n[Link]\\nUnmanaged=yes\\n' > \
             /etc/systemd/network/00-podwire.network && networkctl reload",
            names.join(" ")
        )));
    }
    firewalld(node, found);
}

/// firewalld's program is only looked for in /run: to ask it costs a connection to D-Bus.
fn firewalld(node: &Node<'_>, found: &mut Examination) {
    if !Path::new("/run/firewalld").exists() {
        return;
    }
    for network in &node.survey.catalogue.networks {
        let Some(listed) = network.listed() else {
            continue;
        };
        let plugins: Vec<_> = listed
            .list
            .plugins
            .iter()
            .map(|it| it.plugin.as_str())
            .collect();
        let routes = ["bridge", "ptp", "vxlan"].contains(plugins.first().unwrap_or(&""));
        let used = node
            .survey
            .attachments
            .iter()
            .any(|it| it.network == network.name);
        if !routes || !used || plugins.contains(&"firewall") {
            continue;
        }
        let what = format!("{} has no plugin firewall", network.name);
        let finding = Finding::new(&FIREWALLD, About::Network(network.name.clone()), what);
        let finding = finding.shown_by(
            "firewall-cmd --state; firewall-cmd --get-active-zones",
            "running",
        );
        found.add(finding.advice(format!(
            "add {{\"type\": \"firewall\"}} to the plugins in {}, or put the interface into the zone \
             trusted: firewall-cmd --permanent --zone=trusted --add-interface=BRIDGE",
            listed.file.display()
        )));
    }
}
