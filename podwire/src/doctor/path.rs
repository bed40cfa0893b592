//! The way of a packet from a pod to the outside, hop by hop.

use std::net::IpAddr;

use netlink::{MAIN_TABLE, Route, sysctl};
use serde::Serialize;
use survey::{Attachment, Home, Interface, Namespace};

use super::finding::{About, Check, Finding, Severity, ip_in, quoted};
use super::{Examination, Node, links};
use crate::pods::Attached;

pub const ROUTE: Check = Check {
    id: "PW019",
    severity: Severity::Error,
    title: "the node's route to a pod leads elsewhere",
    why: "Answers to the pod, and connections to its published ports, leave through another interface.",
};

/// A step on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// Where: `pod`, `node`.
    pub place: String,
    /// What is there.
    pub what: String,
    /// Whether a packet passes it.
    pub state: State,
    /// The command that shows it.
    pub command: String,
}

/// Whether a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It passes.
    Passes,
    /// It is dropped there.
    Dropped,
    /// Nothing is there on this way, or it could not be read.
    Unknown,
}

fn state(passes: bool) -> State {
    if passes {
        State::Passes
    } else {
        State::Dropped
    }
}

/// Reports addresses of pods that the node would send elsewhere. Where no interface of the node is
/// the pods' gateway, it need not reach them.
pub fn check(node: &Node<'_>, found: &mut Examination) {
    for attachment in &node.survey.attachments {
        let (Some(attached), Some(outside)) = (node.attached(attachment), attachment.outside)
        else {
            continue;
        };
        let Some(outside) = node.survey.interface(outside) else {
            continue;
        };
        for ip in attached.result.ips.iter().map(|it| it.address.ip()) {
            let Some(wanted) = way_to_pod(node, attached, outside, ip) else {
                continue;
            };
            let route = best(node.survey.node(), ip);
            let name = route
                .and_then(|it| it.oif)
                .and_then(|it| node.survey.node().at(it));
            let name = name.map(|it| it.link.name.as_str());
            if name == Some(wanted.as_str()) {
                continue;
            }
            let leads = name.map_or("there is no route".to_owned(), |it| {
                format!("the route leads to {it}")
            });
            let about = About::Pod {
                network: attachment.network.clone(),
                container_id: attachment.container_id.clone(),
            };
            let finding = Finding::new(
                &ROUTE,
                about,
                format!("{ip} is behind {wanted}, and {leads}"),
            );
            let shows = name.map_or("Network is unreachable".to_owned(), |it| {
                format!("dev {it}")
            });
            let finding = finding.shown_by(format!("ip route get {ip}"), shows);
            found.add(finding.command(remedy(attached, ip, &wanted)));
        }
    }
}

fn remedy(attached: &Attached, ip: IpAddr, device: &str) -> String {
    let given = attached.result.ips.iter().find(|it| it.address.ip() == ip);
    let subnet = given.filter(|_| links::bridge_of(attached).is_some());
    let network = subnet.map_or(ip.into(), |it| it.address.network().0);
    format!("ip route replace {network} dev {device}")
}

/// The interface of the node that a packet to the pod should leave by.
fn way_to_pod(
    node: &Node<'_>,
    attached: &Attached,
    outside: &Interface,
    ip: IpAddr,
) -> Option<String> {
    let Some(bridge) = links::bridge_of(attached) else {
        let is_port = outside.link.master.is_some();
        return (!is_port).then(|| outside.link.name.clone());
    };
    // The interface with the gateway's address: the bridge, or that of a VLAN.
    let gateways = attached.result.ips.iter().filter_map(|it| it.gateway);
    let gateways: Vec<_> = gateways.filter(|it| it.is_ipv4() == ip.is_ipv4()).collect();
    let has = |it: &&Interface| {
        it.addresses
            .iter()
            .any(|it| gateways.contains(&it.address.ip()))
    };
    let holder = node.survey.node().interfaces.iter().find(has)?;
    let is_ours = holder.link.name == bridge || holder.link.name.starts_with(&format!("{bridge}."));
    is_ours.then(|| holder.link.name.clone())
}

/// The route of the main table to `ip`: the longest prefix, then the lowest metric.
fn best(namespace: &Namespace, ip: IpAddr) -> Option<&Route> {
    let fitting = namespace
        .routes
        .iter()
        .filter(|it| it.table == MAIN_TABLE && it.dst.contains(ip));
    fitting.min_by_key(|it| {
        (
            std::cmp::Reverse(it.dst.prefix()),
            it.priority.unwrap_or_default(),
        )
    })
}

/// The hops of each attachment of a container.
pub fn hops(node: &Node<'_>, container: &str, found: &Examination) -> Vec<Hop> {
    let mut all = Vec::new();
    for attachment in node.survey.of_container(container) {
        Walk {
            node,
            attachment,
            found,
            hops: &mut all,
        }
        .walk();
    }
    all
}

struct Walk<'a> {
    node: &'a Node<'a>,
    attachment: &'a Attachment,
    found: &'a Examination,
    hops: &'a mut Vec<Hop>,
}

impl Walk<'_> {
    fn add(&mut self, place: &str, what: String, state: State, command: String) {
        let place = place.to_owned();
        self.hops.push(Hop {
            place,
            what,
            state,
            command,
        });
    }

    fn walk(&mut self) {
        let (survey, attachment) = (self.node.survey, self.attachment);
        let Home::At(home) = attachment.home else {
            let what = format!("network namespace of {}", attachment.label());
            return self.add("pod", what, State::Dropped, "lsns -t net".into());
        };
        let ip = ip_in(&survey.namespaces[home]);
        let Some(inside) = attachment.inside.and_then(|it| survey.interface(it)) else {
            let command = format!("{ip} link show dev {}", quoted(&attachment.ifname));
            return self.add(
                "pod",
                format!("{} is missing", attachment.ifname),
                State::Dropped,
                command,
            );
        };
        let addresses = inside.addresses.iter().filter(|it| !it.local_scope);
        let addresses: Vec<_> = addresses.map(|it| it.address.to_string()).collect();
        let name = &inside.link.name;
        let (up, mtu) = (links::carries(&inside.link), inside.link.mtu);
        let what = format!("{name} {} mtu {mtu}{}", addresses.join(" "), down(up));
        let command = format!("{ip} address show dev {}", quoted(name));
        self.add("pod", what, state(up && !addresses.is_empty()), command);
        self.default_routes(&survey.namespaces[home], &ip);
        let Some(outside) = attachment.outside.and_then(|it| survey.interface(it)) else {
            let what = format!(
                "{} has no end on the node: its parent sends for it",
                attachment.ifname
            );
            return self.add(
                "node",
                what,
                State::Unknown,
                format!("{ip} -d link show dev {}", quoted(name)),
            );
        };
        self.node_end(outside);
        self.node_itself();
    }

    fn default_routes(&mut self, namespace: &Namespace, ip: &str) {
        let defaults = namespace
            .routes
            .iter()
            .filter(|it| it.dst.prefix() == 0 && it.table == MAIN_TABLE);
        let texts: Vec<_> = defaults
            .map(|it| {
                let via = it.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
                let dev = it
                    .oif
                    .and_then(|it| namespace.at(it))
                    .map(|it| it.link.name.clone());
                format!("default{via} dev {}", dev.unwrap_or_default())
            })
            .collect();
        let (what, state) = if texts.is_empty() {
            ("no default route".to_owned(), State::Dropped)
        } else {
            (texts.join(", "), State::Passes)
        };
        self.add("pod", what, state, format!("{ip} route"));
    }

    fn node_end(&mut self, outside: &Interface) {
        let link = &outside.link;
        let up = links::carries(link);
        let what = format!("{} mtu {}{}", link.name, link.mtu, down(up));
        self.add(
            "node",
            what,
            state(up),
            format!("ip link show dev {}", quoted(&link.name)),
        );
        let survey = self.node.survey.node();
        if let Some(bridge) = self
            .node
            .attached(self.attachment)
            .and_then(links::bridge_of)
        {
            let found = survey.named(&bridge);
            let is_port = found.is_some_and(|it| link.master == Some(it.link.index));
            let up = found.is_some_and(|it| it.link.up);
            let addresses = found.map(|it| &it.addresses[..]).unwrap_or_default();
            let addresses = addresses.iter().filter(|it| !it.local_scope);
            let addresses: Vec<_> = addresses.map(|it| it.address.to_string()).collect();
            let port = if is_port { "port of" } else { "no port of" };
            let what = format!("{port} {bridge} {}{}", addresses.join(" "), down(up));
            self.add(
                "node",
                what,
                state(is_port && up),
                format!("bridge link show master {bridge}"),
            );
        }
    }

    fn node_itself(&mut self) {
        let ips = self.attachment.result.iter().flat_map(|it| &it.ips);
        let ips: Vec<_> = ips.map(|it| it.address.ip()).collect();
        for (is_ipv6, key, name) in [
            (false, "net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            (
                true,
                "net/ipv6/conf/all/forwarding",
                "net.ipv6.conf.all.forwarding",
            ),
        ] {
            if ips.iter().any(|it| it.is_ipv6() == is_ipv6) {
                let value = sysctl::read(key).unwrap_or_default();
                let what = format!("{name} = {value}");
                self.add("node", what, state(value != "0"), format!("sysctl {name}"));
            }
        }
        self.rules();
        let survey = self.node.survey.node();
        for ip in ips {
            let any: IpAddr = if ip.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let way = survey
                .routes
                .iter()
                .filter(|it| it.dst.prefix() == 0 && it.dst.is_ipv4() == ip.is_ipv4());
            let way = way.min_by_key(|it| it.priority.unwrap_or_default());
            let dev = way.and_then(|it| it.oif).and_then(|it| survey.at(it));
            let family = if ip.is_ipv4() { "-4" } else { "-6" };
            let (what, state) = match dev {
                Some(it) => (
                    format!(
                        "{ip} leaves by {}{}",
                        it.link.name,
                        down(links::carries(&it.link))
                    ),
                    state(links::carries(&it.link)),
                ),
                None => (format!("no route to {any}/0 for {ip}"), State::Dropped),
            };
            self.add(
                "node",
                what,
                state,
                format!("ip {family} route show default"),
            );
        }
    }

    /// The packet filter: whether findings about it concern this attachment.
    fn rules(&mut self) {
        let ids = ["PW002", "PW007", "PW020"];
        let concerned = |it: &&Finding| {
            ids.contains(&it.check.id)
                && (it.about == About::Node
                    || it.about == About::Network(self.attachment.network.clone()))
        };
        let findings: Vec<_> = self
            .found
            .findings
            .iter()
            .filter(concerned)
            .cloned()
            .collect();
        if findings.is_empty() {
            let what = "rules: none is missing, no policy drops".to_owned();
            return self.add("node", what, State::Passes, "nft list ruleset".into());
        }
        for finding in findings {
            let what = format!("{}: {}", finding.check.id, finding.what);
            self.add("node", what, State::Dropped, finding.evidence.command);
        }
    }
}

fn down(up: bool) -> &'static str {
    if up { "" } else { " (down)" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dst: &str, oif: u32, priority: Option<u32>, table: u32) -> Route {
        Route {
            dst: dst.parse().unwrap(),
            gw: None,
            oif: Some(oif),
            table,
            priority,
            protocol: 2,
            expires: false,
            mtu: None,
            next_hop: None,
        }
    }

    #[test]
    fn the_longest_prefix_wins_then_the_lowest_metric() {
        let namespace = Namespace {
            routes: vec![
                route("0.0.0.0/0", 1, None, MAIN_TABLE),
                route("10.1.0.0/16", 2, Some(20), MAIN_TABLE),
                route("10.1.0.0/16", 3, Some(10), MAIN_TABLE),
                route("10.1.2.0/24", 4, None, 100),
            ],
            ..Namespace::default()
        };
        let oif = |ip: &str| best(&namespace, ip.parse().unwrap()).and_then(|it| it.oif);
        assert_eq!(oif("10.1.2.3"), Some(3));
        assert_eq!(oif("192.0.2.1"), Some(1));
        assert_eq!(oif("fd00::1"), None);
    }
}
