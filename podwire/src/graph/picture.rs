//! Which boxes a picture has, in which band, and which lines: of a graph, a plan for the layout.
//!
//! Pods that are attached to the same objects share a frame where they are many. A rule and a
//! published port are a line of text in the box that they are about.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use super::layout::{Band, Group, Item, Joined, Member, Plan, Row};
use super::model::{Graph, Index, Kind, Link, Node, View};
use super::scene::{Label, Look, Scene, Stroke, visible};

/// So many pods that are attached to the same objects are shown one by one.
const FEW: usize = 10;
/// So many peers of a VXLAN device are shown; the others are a number.
const PEERS: usize = 40;
/// So many rules, ports or addresses are shown in a box.
const LINES: usize = 6;

/// The picture of a graph.
pub fn picture(graph: &Graph) -> Scene {
    let index = Index::of(graph);
    let plan = match graph.view {
        View::Host => Picture::of(&index).host(),
        View::User => Picture::of(&index).user(),
    };
    plan.place()
}

struct Picture<'a> {
    index: &'a Index<'a>,
    /// The bands, by the id of what is attached to there.
    bands: BTreeMap<Order<'a>, Band>,
    lines: Vec<Joined>,
    /// What has a box already.
    shown: HashSet<&'a str>,
}

/// The place of a band: what has other nodes behind it comes late, what is attached to nothing last.
type Order<'a> = (u8, Natural, &'a str);

/// A name, in the order in which people count: net2 before net10.
pub type Natural = Vec<(String, u64)>;

/// A pod: what it is attached to, and its row.
struct Attached<'a> {
    pod: &'a Node,
    anchors: Vec<&'a Node>,
    row: Row,
    lines: Vec<Joined>,
}

impl<'a> Picture<'a> {
    fn of(index: &'a Index<'a>) -> Self {
        Self {
            index,
            bands: BTreeMap::new(),
            lines: Vec::new(),
            shown: HashSet::new(),
        }
    }

    fn host(mut self) -> Plan {
        let host = self.index.host();
        let pods: Vec<_> = self.index.all(Kind::Namespace).collect();
        let pods = pods.into_iter().filter(|it| !it.has("host"));
        let attached = pods.map(|it| self.namespace(it)).collect();
        self.members(attached);
        let links: Vec<_> = host
            .into_iter()
            .flat_map(|it| self.index.interfaces(&it.id))
            .collect();
        self.masters(&links);
        self.behind(&links);
        let rest: Vec<_> = links
            .iter()
            .filter(|it| !self.shown.contains(it.id.as_str()))
            .collect();
        let rest = rest.into_iter().map(|it| self.item(it)).collect();
        Plan {
            host: host.map(|it| self.label(it)),
            bands: self.bands.into_values().collect(),
            links: rest,
            lines: self.lines,
            legend: "── veth pair, port of a bridge | - - on top of | ··· VXLAN".into(),
        }
    }

    /// A pod's namespace with its interfaces.
    fn namespace(&mut self, namespace: &'a Node) -> Attached<'a> {
        let (mut anchors, mut lines, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for interface in self.index.interfaces(&namespace.id) {
            let other = self
                .index
                .targets(&interface.id, Link::Veth)
                .find(|it| self.is_on_host(it));
            let parent = self
                .index
                .targets(&interface.id, Link::Parent)
                .find(|it| self.is_on_host(it));
            let master = other.and_then(|it| self.index.targets(&it.id, Link::Port).next());
            let mut box_of_other = None;
            match (other, master, parent) {
                (Some(other), Some(master), _) => {
                    anchors.push(master);
                    self.shown.insert(&other.id);
                    lines.push(line(&interface.id, &other.id, Stroke::Wire));
                    lines.push(line(&other.id, &master.id, Stroke::Wire));
                    box_of_other = Some(self.item(other));
                }
                (Some(other), None, _) => {
                    anchors.push(other);
                    lines.push(line(&interface.id, &other.id, Stroke::Wire));
                }
                (None, _, Some(parent)) => {
                    anchors.push(parent);
                    lines.push(line(&interface.id, &parent.id, Stroke::Parent));
                }
                (None, _, None) => {}
            }
            ends.push((self.item(interface), box_of_other));
        }
        let row = Row {
            pod: self.label(namespace),
            ports: Vec::new(),
            ends,
        };
        Attached {
            pod: namespace,
            anchors,
            row,
            lines,
        }
    }

    fn is_on_host(&self, interface: &Node) -> bool {
        let host = self.index.host().map(|it| it.id.as_str());
        host.is_some() && interface.within.as_deref() == host
    }

    /// Puts pods into bands, many of the same kind into one frame.
    fn members(&mut self, pods: Vec<Attached<'a>>) {
        let mut alike = BTreeMap::<Vec<&str>, Vec<Attached<'a>>>::new();
        for pod in pods {
            let anchors: BTreeSet<_> = pod.anchors.iter().map(|it| it.id.as_str()).collect();
            // A link to the node alone is like any other.
            let key = match &pod.anchors[..] {
                [one] if self.is_end(one) => vec!["\u{0}"],
                _ => anchors.into_iter().collect(),
            };
            alike.entry(key).or_default().push(pod);
        }
        for mut pods in alike.into_values() {
            pods.sort_by_cached_key(|it| natural(&it.pod.name));
            if pods.len() <= FEW {
                pods.into_iter().for_each(|it| self.alone(it));
            } else {
                self.together(pods);
            }
        }
        for band in self.bands.values_mut() {
            band.members.sort_by_cached_key(|it| match it {
                Member::Row(row) => (false, natural(&row.pod.title)),
                Member::Group(group) => (true, natural(&group.frame.title)),
            });
        }
    }

    /// Whether it is the node's end of a veth pair, and no port of anything.
    fn is_end(&self, interface: &Node) -> bool {
        self.index
            .edges_to(&interface.id, Link::Veth)
            .next()
            .is_some()
            && self
                .index
                .edges_from(&interface.id, Link::Port)
                .next()
                .is_none()
    }

    fn alone(&mut self, pod: Attached<'a>) {
        self.lines.extend(pod.lines);
        let first = pod.anchors.first().copied().unwrap_or(pod.pod);
        self.anchors(&pod.anchors);
        self.band(first).members.push(Member::Row(pod.row));
    }

    fn together(&mut self, pods: Vec<Attached<'a>>) {
        let anchors: Vec<_> = pods
            .first()
            .map(|it| it.anchors.clone())
            .unwrap_or_default();
        let frame = format!("pods:{}", pods[0].pod.id);
        let linked = anchors.iter().all(|it| self.is_end(it));
        let mut strokes = BTreeSet::new();
        for pod in &pods {
            let ends = pod.lines.iter().map(|it| (it.stroke, it.ends[1].clone()));
            strokes.extend(ends.filter(|(_, end)| anchors.iter().any(|it| it.id == *end)));
            // Their boxes are the pods' own.
            let wires = pod.lines.iter().filter(|it| it.stroke == Stroke::Wire);
            let ids = wires.filter_map(|it| self.index.node(&it.ends[1]));
            let hidden: Vec<_> = ids.filter(|it| self.is_on_host(it)).collect();
            self.shown.extend(
                hidden
                    .iter()
                    .map(|it| it.id.as_str())
                    .filter(|id| linked || !anchors.iter().any(|anchor| anchor.id == *id)),
            );
        }
        let count = pods.len();
        let names: BTreeSet<_> = anchors.iter().map(|it| visible(&it.name)).collect();
        let label = Label {
            node: Some(frame.clone()),
            title: if linked {
                format!("{count} pods with a link to the node each")
            } else {
                format!(
                    "{count} pods on {}",
                    names.into_iter().collect::<Vec<_>>().join(", ")
                )
            },
            ..Label::default()
        };
        let pods = pods.into_iter().map(|it| self.pod_item(it.pod)).collect();
        if !linked {
            self.anchors(&anchors);
            let lines = strokes
                .into_iter()
                .map(|(stroke, end)| line(&frame, &end, stroke));
            self.lines.extend(lines);
        }
        let group = Group { frame: label, pods };
        let first = anchors.first().copied();
        if let Some(first) = first.or_else(|| self.index.host()) {
            self.band(first).members.push(Member::Group(group));
        }
    }

    /// Gives what pods are attached to its box, if it has none.
    fn anchors(&mut self, anchors: &[&'a Node]) {
        for anchor in anchors {
            if self.shown.insert(&anchor.id) {
                let item = self.item(anchor);
                self.band(anchor).anchors.push(item);
            }
        }
    }

    fn band(&mut self, anchor: &'a Node) -> &mut Band {
        if matches!(anchor.kind, Kind::Namespace | Kind::Pod) {
            return self.bands.entry((2, Natural::new(), "")).or_default();
        }
        let behind = self.index.sources(&anchor.id, Link::Port);
        let has_peers = |it: &Node| self.index.edges_from(&it.id, Link::Peer).next().is_some();
        let rank = u8::from(behind.chain([anchor]).any(has_peers));
        let order = (rank, natural(&anchor.name), anchor.id.as_str());
        self.bands.entry(order).or_default()
    }

    /// Bridges and the like that no pod is attached to, and all other ports.
    fn masters(&mut self, links: &[&'a Node]) {
        for master in links {
            let ports: Vec<_> = self.index.sources(&master.id, Link::Port).collect();
            if ports.is_empty() && master.text("type") != "bridge" {
                continue;
            }
            self.anchors(&[master]);
            for port in ports {
                if !self.shown.insert(&port.id) {
                    continue;
                }
                self.lines.push(line(&master.id, &port.id, Stroke::Wire));
                let item = self.item(port);
                let band = self.band(master);
                match port.text("type") {
                    "veth" => band.ends.push(item),
                    _ => band.others.push(item),
                }
                self.peers(port, master);
            }
        }
    }

    /// What is on top of other interfaces, and VXLAN devices without a bridge.
    fn behind(&mut self, links: &[&'a Node]) {
        for link in links {
            let parent = self
                .index
                .targets(&link.id, Link::Parent)
                .find(|it| self.is_on_host(it));
            let has_peers = self.index.edges_from(&link.id, Link::Peer).next().is_some();
            if parent.is_some() || has_peers {
                if self.shown.insert(&link.id) {
                    let item = self.item(link);
                    self.band(link).others.push(item);
                    self.peers(link, link);
                }
                let tunnel = link.text("type") == "vxlan";
                let stroke = if tunnel {
                    Stroke::Tunnel
                } else {
                    Stroke::Parent
                };
                let joined = parent.map(|it| line(&link.id, &it.id, stroke));
                self.lines.extend(joined);
            }
        }
    }

    /// The other nodes behind a VXLAN device, in the band of `master`.
    fn peers(&mut self, device: &'a Node, master: &'a Node) {
        let peers: Vec<_> = self.index.targets(&device.id, Link::Peer).collect();
        let more = peers.len().saturating_sub(PEERS);
        for peer in peers.iter().take(PEERS) {
            self.lines.push(line(&device.id, &peer.id, Stroke::Tunnel));
            if self.shown.insert(&peer.id) {
                let item = self.item(peer);
                self.band(master).peers.push(item);
            }
        }
        if more > 0 {
            let label = Label {
                title: format!("{more} more peers"),
                ..Label::default()
            };
            let look = Look::Outside;
            self.band(master).peers.push(Item { look, label });
        }
    }

    fn user(mut self) -> Plan {
        let pods: Vec<_> = self.index.all(Kind::Pod).collect();
        let attached = pods.into_iter().map(|it| self.pod(it)).collect();
        self.members(attached);
        for network in self.index.all(Kind::Network) {
            self.anchors(&[network]);
        }
        let mut links = Vec::new();
        for outside in self.index.all(Kind::Outside) {
            let sources: Vec<_> = self.index.sources(&outside.id, Link::Reaches).collect();
            let lines = sources
                .iter()
                .map(|it| line(&it.id, &outside.id, Stroke::Wire));
            self.lines.extend(lines);
            links.push(self.item(outside));
        }
        Plan {
            host: None,
            bands: self.bands.into_values().collect(),
            links,
            lines: self.lines,
            legend: "from the left: published ports, pods, networks, the world outside".into(),
        }
    }

    /// A pod as its user sees it.
    fn pod(&mut self, pod: &'a Node) -> Attached<'a> {
        let (mut anchors, mut lines, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (number, edge) in self.index.edges_from(&pod.id, Link::Attached).enumerate() {
            let Some(network) = self.index.node(&edge.to) else {
                continue;
            };
            anchors.push(network);
            let id = format!("{}#{number}", pod.id);
            lines.push(line(&id, &network.id, Stroke::Wire));
            let addresses = edge.facts.get("addresses").and_then(|it| it.as_array());
            let addresses = addresses.into_iter().flatten().filter_map(|it| it.as_str());
            let label = Label {
                node: Some(id),
                title: visible(edge.text("interface")),
                aside: visible(&network.name),
                lines: some(addresses.map(visible).collect()),
            };
            let look = Look::Interface;
            ends.push((Item { look, label }, None));
        }
        let ports: Vec<_> = self.index.sources(&pod.id, Link::Publishes).collect();
        for port in &ports {
            lines.push(line(&port.id, &pod.id, Stroke::Port));
        }
        let row = Row {
            pod: Label {
                lines: Vec::new(),
                ..self.label(pod)
            },
            ports: ports.into_iter().map(|it| self.item(it)).collect(),
            ends,
        };
        Attached {
            pod,
            anchors,
            row,
            lines,
        }
    }

    /// A pod among many: its addresses and ports are in its box.
    fn pod_item(&self, pod: &'a Node) -> Item {
        let interfaces = self.index.interfaces(&pod.id);
        let addresses = interfaces.flat_map(|it| it.texts("addresses"));
        let attached = self.index.edges_from(&pod.id, Link::Attached);
        let attached = attached.filter_map(|it| it.facts.get("addresses")?.as_array());
        let attached = attached.flatten().filter_map(|it| it.as_str());
        let all: Vec<_> = addresses
            .chain(attached)
            .filter(|it| !it.starts_with("fe80:"))
            .collect();
        let address = all.iter().find(|it| !it.contains(':')).or(all.first());
        let mut lines: Vec<_> = address.map(|it| visible(it)).into_iter().collect();
        lines.extend(self.ports(pod).first().cloned());
        Item {
            look: Look::Pod,
            label: Label {
                node: Some(pod.id.clone()),
                title: visible(&pod.name),
                aside: String::new(),
                lines,
            },
        }
    }

    /// The published ports that lead to a pod or one of its interfaces.
    fn ports(&self, pod: &'a Node) -> Vec<String> {
        let interfaces = self.index.interfaces(&pod.id).map(|it| it.id.as_str());
        let ids: Vec<_> = interfaces.chain([pod.id.as_str()]).collect();
        let ports = ids
            .iter()
            .flat_map(|it| self.index.sources(it, Link::Publishes));
        ports.map(|it| visible(&it.name)).collect()
    }

    fn item(&self, node: &'a Node) -> Item {
        let look = match (node.kind, node.text("type")) {
            (Kind::Peer | Kind::Outside, _) => Look::Outside,
            (Kind::Port, _) => Look::Port,
            (Kind::Network, _) | (_, "bridge" | "vrf" | "bond") => Look::Bridge,
            (_, "vxlan") => Look::Tunnel,
            (Kind::Namespace | Kind::Pod, _) => Look::Pod,
            _ => Look::Interface,
        };
        Item {
            look,
            label: self.label(node),
        }
    }

    fn label(&self, node: &'a Node) -> Label {
        Label {
            node: Some(node.id.clone()),
            title: visible(&node.name),
            aside: visible(node.text("type")),
            lines: details(self.index, node),
        }
    }
}

/// What is known of an object, in short lines: addresses, settings, published ports, rules.
pub fn details(index: &Index<'_>, node: &Node) -> Vec<String> {
    let mut lines = Vec::new();
    match node.kind {
        Kind::Interface => {
            let addresses = node
                .texts("addresses")
                .filter(|it| !it.starts_with("fe80:"));
            lines.extend(some(addresses.map(visible).collect()));
            lines.extend(settings(index, node));
        }
        Kind::Network => {
            lines.extend(some(node.texts("subnets").map(visible).collect()));
            lines.extend(node.has("internal").then(|| "internal".to_owned()));
        }
        Kind::Peer => {
            let learned = node.has("learned").then(|| "learned".to_owned());
            lines.extend(learned);
        }
        _ => {}
    }
    for kind in [Link::Publishes, Link::Applies] {
        let named = index.sources(&node.id, kind).map(|it| visible(&it.name));
        let named: BTreeSet<_> = named.collect();
        // The ports of a pod have boxes of their own.
        if node.kind == Kind::Interface {
            lines.extend(some(named.into_iter().collect()));
        }
    }
    lines
}

/// The settings of an interface that decide where packets go.
fn settings(index: &Index<'_>, node: &Node) -> Vec<String> {
    let number = |key: &str| node.facts.get(key).and_then(|it| it.as_u64());
    let mut lines = Vec::new();
    if let (Some(vni), Some(port)) = (number("vni"), number("port")) {
        lines.push(format!("VNI {vni}, UDP port {port}"));
    }
    lines.extend(number("vlan").map(|it| format!("VLAN {it}")));
    let vlans = node.facts.get("vlans").and_then(|it| it.as_array());
    let vlans: Vec<_> = vlans.into_iter().flatten().map(vlan).collect();
    if !vlans.is_empty() {
        lines.push(format!("VLAN {}", vlans.join(", ")));
    }
    for port in index.edges_from(&node.id, Link::Port) {
        let is_set = |key: &&str| port.facts.get(*key).is_some_and(|it| *it == true);
        let flags: Vec<_> = ["isolated", "hairpin"].into_iter().filter(is_set).collect();
        if !flags.is_empty() {
            lines.push(flags.join(", "));
        }
    }
    if node.facts.get("up").is_some_and(|it| *it == false) {
        lines.push("down".to_owned());
    }
    lines
}

/// A VLAN of a port; untagged ones are marked.
fn vlan(vlan: &Value) -> String {
    let number = |key: &str| vlan.get(key).and_then(Value::as_u64);
    let first = number("vlan").unwrap_or_default();
    let range = match number("vlanEnd") {
        Some(last) => format!("{first}-{last}"),
        None => first.to_string(),
    };
    let flags = vlan.get("flags").and_then(Value::as_array);
    let is_untagged = flags.is_some_and(|it| it.iter().any(|it| it == "Egress Untagged"));
    if is_untagged {
        format!("{range} untagged")
    } else {
        range
    }
}

/// The first of them, and how many more there are.
fn some(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > LINES {
        let more = lines.len() - (LINES - 1);
        lines.truncate(LINES - 1);
        lines.push(format!("… {more} more"));
    }
    lines
}

fn line(from: &str, to: &str, stroke: Stroke) -> Joined {
    Joined {
        ends: [from.to_owned(), to.to_owned()],
        stroke,
    }
}

/// The parts of a name: texts, each with the number after it.
pub fn natural(name: &str) -> Natural {
    let mut parts = Natural::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest
            .find(|it: char| it.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, after) = rest.split_at(digits);
        let end = after
            .find(|it: char| !it.is_ascii_digit())
            .unwrap_or(after.len());
        let (number, after) = after.split_at(end);
        parts.push((text.to_owned(), number.parse().unwrap_or_default()));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests;
