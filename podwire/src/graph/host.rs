//! The view of the node: namespaces, interfaces and rules, as the kernel has them. A pure function of
//! what was read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink::PortVlan;
use packet_filter::{Applied, PublishedPort, Subject};
use serde_json::{Value, json};
use survey::{Attachment, Home, Interface, Namespace, OtherEnd, Place, Survey};

use super::model::{Edge, Graph, Kind, Link, Node, View};
use super::rules;

/// What was read of a node.
#[derive(Debug)]
pub struct Read<'a> {
    /// What the kernel, the cache and the stores have.
    pub survey: &'a Survey,
    /// What the rules are about.
    pub rules: Vec<Applied>,
    /// The name of the node.
    pub name: String,
}

impl<'a> Read<'a> {
    /// Adds to a survey of this node what a graph needs beside it. Where rules cannot be read, the graph
    /// is without them, and `report` gets the reason.
    ///
    /// # Errors
    /// The node has no name.
    pub fn with(survey: &'a Survey, report: impl FnOnce(anyhow::Error)) -> Result<Self> {
        let rules = rules::read(survey).unwrap_or_else(|error| {
            report(error);
            Vec::new()
        });
        Ok(Self {
            survey,
            rules,
            name: cni::host::name().context("find the name of the node")?,
        })
    }
}

/// The graph of a node.
pub fn graph(read: &Read<'_>) -> Graph {
    let mut labels = HashMap::new();
    for (at, attachment) in read.survey.attachments.iter().enumerate() {
        let (network, id) = (&attachment.network, &attachment.container_id);
        labels.insert(format!("name: {network:?} id: {id:?}"), at);
        labels.insert(attachment.label(), at);
    }
    let mut host = Host {
        read,
        labels,
        graph: Graph {
            view: View::Host,
            nodes: Vec::new(),
            edges: Vec::new(),
        },
    };
    for (at, namespace) in read.survey.namespaces.iter().enumerate() {
        host.namespace(at, namespace);
    }
    host.veths();
    for port in &read.survey.published {
        host.port(port);
    }
    for (number, rule) in read.rules.iter().enumerate() {
        host.rule(number, rule);
    }
    host.graph
}

/// The names and containers of a namespace's pod.
pub fn pod_of(survey: &Survey, at: usize) -> impl Iterator<Item = &Attachment> {
    let attachments = survey.attachments.iter();
    attachments.filter(move |it| it.home == Home::At(at))
}

/// How people call the pod of an attachment: by the name that its runtime passes, or `podwire run`
/// gave it, or the beginning of its id.
pub fn pod_name(survey: &Survey, attachment: &Attachment) -> String {
    let id = attachment.container_id.as_str();
    let record = survey.containers.iter().find(|it| it.id == id);
    let recorded = record
        .map(|it| it.name.as_str())
        .filter(|it| !it.is_empty());
    let short = id.get(..12).filter(|_| id.len() == 64).unwrap_or(id);
    let name = attachment.pod_name().or(recorded).unwrap_or(short);
    name.to_owned()
}

/// A published port in words: `8080/tcp → 80`.
pub fn port_name(address: Option<IpAddr>, port: &packet_filter::Mapping) -> String {
    let shown = port.published_port();
    let to = port.container_port;
    match address.filter(|it| !it.is_unspecified()) {
        Some(IpAddr::V4(ip)) => format!("{ip}:{shown} → {to}"),
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{shown} → {to}"),
        None => format!("{shown} → {to}"),
    }
}

struct Host<'a> {
    read: &'a Read<'a>,
    graph: Graph,
    /// The positions of attachments by the comments on what belongs to them: podwire's, and that of the
    /// Go plugins.
    labels: HashMap<String, usize>,
}

impl Host<'_> {
    fn id(&self, at: usize) -> String {
        match at {
            0 => "node".to_owned(),
            at => format!("net:[{}]", self.read.survey.namespaces[at].inode),
        }
    }

    fn interface_id(&self, place: Place) -> String {
        format!("{}/{}", self.id(place.namespace), place.index)
    }

    fn namespace(&mut self, at: usize, namespace: &Namespace) {
        let id = self.id(at);
        let survey = self.read.survey;
        let pods: BTreeSet<_> = pod_of(survey, at).map(|it| pod_name(survey, it)).collect();
        let containers: BTreeSet<_> = pod_of(survey, at)
            .map(|it| it.container_id.clone())
            .collect();
        let name = match (at, pods.len()) {
            (0, _) => self.read.name.clone(),
            (_, 0) => namespace.shown(),
            _ => pods.into_iter().collect::<Vec<_>>().join(", "),
        };
        let paths = namespace.paths.iter().map(|it| it.display().to_string());
        let node = Node::new(&id, Kind::Namespace, name)
            .fact("inode", namespace.inode)
            .fact("paths", paths.collect::<Vec<_>>())
            .fact("containers", containers.into_iter().collect::<Vec<_>>());
        let node = if at == 0 {
            node.fact("host", true)
        } else {
            node
        };
        self.graph.nodes.push(node);
        for interface in &namespace.interfaces {
            self.interface(at, interface);
        }
    }

    fn interface(&mut self, at: usize, interface: &Interface) {
        let link = &interface.link;
        let place = |index| Place {
            namespace: at,
            index,
        };
        let id = self.interface_id(place(link.index));
        let addresses = interface.addresses.iter().map(|it| it.address.to_string());
        let is_loopback =
            link.index == 1 && link.kind.is_none() && link.mac.is_none_or(|it| it.0 == [0; 6]);
        let kind = if is_loopback {
            Some("loopback")
        } else {
            link.kind.as_deref()
        };
        let elsewhere = match interface.other_end {
            Some(OtherEnd::Elsewhere(index)) => Some(index),
            _ => None,
        };
        let mut node = Node::new(&id, Kind::Interface, &link.name)
            .within(self.id(at))
            .fact("type", kind)
            .fact("index", link.index)
            .fact("mac", link.mac.map(|it| it.to_string()))
            .fact("mtu", link.mtu)
            .fact("state", link.operstate.to_string())
            .fact("up", link.up)
            .fact("addresses", addresses.collect::<Vec<_>>())
            .fact("alias", link.alias.clone())
            .fact("vlan", link.vlan_id)
            .fact("vlanFiltering", link.vlan_filtering)
            .fact("vrfTable", link.vrf_table)
            .fact("vlans", vlans(&interface.vlans))
            .fact("otherEndInUnknownNamespace", elsewhere)
            .fact("network", self.network(place(link.index)));
        if let Some(device) = &interface.vxlan {
            node = node
                .fact("vni", device.vxlan.vni)
                .fact("port", device.vxlan.port)
                .fact("local", device.vxlan.local.map(|it| it.to_string()))
                .fact("group", device.vxlan.group.map(|it| it.to_string()));
        }
        self.graph.nodes.push(node);
        if let Some(master) = link.master {
            let mut edge = Edge::new(&id, Link::Port, self.interface_id(place(master)));
            if let Some(port) = link.port {
                edge = edge
                    .fact("hairpin", port.hairpin)
                    .fact("isolated", port.isolated);
            }
            self.graph.edges.push(edge);
        }
        let underlay = interface
            .vxlan
            .as_ref()
            .and_then(|it| it.vxlan.link)
            .map(place);
        let parent = match interface.other_end {
            Some(OtherEnd::At(parent)) if !link.is_kind("veth") => Some(parent),
            _ => None,
        };
        if let Some(parent) = parent.or(underlay) {
            let edge = Edge::new(&id, Link::Parent, self.interface_id(parent));
            self.graph.edges.push(edge);
        }
        self.peers(&id, interface);
    }

    /// The network that an interface belongs to, inside a pod or on the node.
    fn network(&self, place: Place) -> Option<String> {
        let attachments = &self.read.survey.attachments;
        let found = attachments
            .iter()
            .find(|it| it.inside == Some(place) || it.outside == Some(place));
        found.map(|it| it.network.clone())
    }

    fn peers(&mut self, device: &str, interface: &Interface) {
        let mut peers = BTreeMap::<_, (Vec<String>, bool)>::new();
        for vtep in &interface.vteps {
            let (macs, written) = peers.entry(vtep.address).or_default();
            macs.push(vtep.mac.to_string());
            *written |= vtep.written;
        }
        for (address, (macs, written)) in peers {
            let id = format!("{device}>{address}");
            let node = Node::new(&id, Kind::Peer, address.to_string()).fact("learned", !written);
            self.graph.nodes.push(node);
            let edge = Edge::new(device, Link::Peer, id).fact("macs", macs);
            self.graph.edges.push(edge);
        }
    }

    /// Each veth pair once: its end on the node is the second.
    fn veths(&mut self) {
        let mut pairs = BTreeSet::new();
        for (namespace, found) in self.read.survey.namespaces.iter().enumerate() {
            for interface in found.interfaces.iter().filter(|it| it.link.is_kind("veth")) {
                let index = interface.link.index;
                let here = Place { namespace, index };
                if let Some(OtherEnd::At(there)) = interface.other_end {
                    pairs.insert((here.max(there), here.min(there)));
                }
            }
        }
        for (from, to) in pairs {
            let edge = Edge::new(self.interface_id(from), Link::Veth, self.interface_id(to));
            self.graph.edges.push(edge);
        }
    }

    /// The attachment that a comment names.
    fn labelled(&self, comment: &str) -> Option<&Attachment> {
        let at = self.labels.get(comment.trim_start_matches("dnat "));
        at.map(|at| &self.read.survey.attachments[*at])
    }

    fn port(&mut self, port: &PublishedPort) {
        let mapping = &port.mapping;
        let address = mapping.host_ip;
        let shown = address.map(|it| it.to_string()).unwrap_or_default();
        let id = format!("port:{shown}:{}", mapping.published_port());
        let node = Node::new(&id, Kind::Port, port_name(address, mapping))
            .fact("address", shown)
            .fact("port", mapping.host_port)
            .fact("protocol", mapping.protocol.to_string())
            .fact("podAddress", port.pod.to_string())
            .fact("podPort", mapping.container_port)
            .fact("owner", port.owner.as_str())
            .fact("backend", "nftables");
        self.graph.nodes.push(node);
        let attachment = self.labelled(&port.owner).or_else(|| {
            let attachments = &self.read.survey.attachments;
            attachments.iter().find(|it| has_address(it, port.pod))
        });
        if let Some(inside) = attachment.and_then(|it| it.inside) {
            let edge = Edge::new(id, Link::Publishes, self.interface_id(inside));
            self.graph.edges.push(edge);
        }
    }

    fn rule(&mut self, number: usize, rule: &Applied) {
        let id = format!("rule:{number}");
        let node = Node::new(&id, Kind::Rule, rule_name(rule))
            .fact("subject", rule.subject.words())
            .fact("table", rule.table.as_str())
            .fact("network", rule.network.clone())
            .fact("element", rule.element.as_str())
            .fact("subnet", rule.subnet.map(|it| it.to_string()))
            .fact("comment", rule.comment.as_str())
            .fact("backend", backend(rule));
        self.graph.nodes.push(node);
        for interface in self.subjects(rule) {
            let edge = Edge::new(&id, Link::Applies, interface);
            self.graph.edges.push(edge);
        }
    }

    /// The interfaces that a rule is about.
    fn subjects(&self, rule: &Applied) -> BTreeSet<String> {
        let node = self.read.survey.node();
        let on_node = |it: &Interface| {
            self.interface_id(Place {
                namespace: 0,
                index: it.link.index,
            })
        };
        let named = rule
            .devices
            .iter()
            .filter_map(|it| node.named(it))
            .map(on_node);
        let mut found: BTreeSet<_> = named.collect();
        if let Some(subnet) = rule.subnet {
            let is_address = subnet.network() == subnet.broadcast();
            let attachments = self.read.survey.attachments.iter();
            let pod = attachments.filter(|it| is_address && has_address(it, subnet.ip()));
            let pod = pod.filter_map(|it| it.inside);
            found.extend(pod.map(|it| self.interface_id(it)));
            let gateways = node.interfaces.iter().filter(|it| {
                let mut addresses = it.addresses.iter();
                addresses.any(|it| subnet.contains(it.address.ip()))
            });
            found.extend(gateways.map(on_node));
        }
        let owner = self.labelled(&rule.comment).and_then(|it| it.inside);
        found.extend(owner.map(|it| self.interface_id(it)));
        if found.is_empty() && rule.subject == Subject::Masquerade {
            let attachments = self.read.survey.attachments.iter();
            let of_network = attachments.filter(|it| Some(&it.network) == rule.network.as_ref());
            let outside = of_network.filter_map(|it| it.outside);
            found.extend(outside.map(|it| self.interface_id(it)));
        }
        found
    }
}

fn has_address(attachment: &Attachment, ip: IpAddr) -> bool {
    let result = attachment.result.iter();
    result
        .flat_map(|it| &it.ips)
        .any(|it| it.address.ip() == ip)
}

fn backend(rule: &Applied) -> &'static str {
    let programs = ["iptables ", "ip6tables "];
    if programs.iter().any(|it| rule.table.starts_with(it)) {
        "iptables"
    } else {
        "nftables"
    }
}

/// A rule in a few words.
pub fn rule_name(rule: &Applied) -> String {
    let family = rule.table.split(' ').next().unwrap_or_default();
    let words = rule.subject.words();
    match rule.subject {
        Subject::Access => {
            let set = rule.element.split(' ').next().unwrap_or_default();
            format!("{words} {family}: {}", set.trim_end_matches("_devices"))
        }
        Subject::OpenPort | Subject::PublishedPort | Subject::Link => format!(
            "{words} {}",
            rule.element.split_once(' ').map_or("", |it| it.1)
        ),
        _ => match rule.subnet {
            Some(subnet) => format!("{words} {subnet}"),
            None => words.to_owned(),
        },
    }
}

/// VLANs as `bridge -j -compressvlans vlan` has them: runs of the same flags are one entry.
fn vlans(vlans: &[PortVlan]) -> Value {
    let joins = |a: &PortVlan, b: &PortVlan| {
        a.vid.checked_add(1) == Some(b.vid) && a.untagged == b.untagged && !a.pvid && !b.pvid
    };
    let runs = vlans
        .chunk_by(joins)
        .filter_map(|run| Some((run.first()?, run.last()?)));
    let entry = |(first, last): (&PortVlan, &PortVlan)| {
        let flags = [(first.pvid, "PVID"), (first.untagged, "Egress Untagged")];
        let flags: Vec<_> = flags.iter().filter(|it| it.0).map(|it| it.1).collect();
        let mut entry = HashMap::from([("vlan", json!(first.vid))]);
        if last.vid != first.vid {
            entry.insert("vlanEnd", json!(last.vid));
        }
        if !flags.is_empty() {
            entry.insert("flags", json!(flags));
        }
        json!(entry)
    };
    runs.map(entry).collect::<Vec<_>>().into()
}
