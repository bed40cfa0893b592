//! The view of the user: pods on networks, published ports, the world outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::json::Json;
use networks::named::{Network, subnets_of};
use packet_filter::{Mapping, Protocol};
use serde::Deserialize;
use serde_json::Value;
use survey::{Attachment, Home, Survey};

use super::host::{Read, pod_name, port_name};
use super::model::{Edge, Graph, Kind, Link, Node, View};

/// The id of all that is not this node.
const OUTSIDE: &str = "outside";

/// The graph of a node's networks.
pub fn graph(read: &Read<'_>) -> Graph {
    let survey = read.survey;
    let mut graph = Graph {
        view: View::User,
        nodes: vec![Node::new(OUTSIDE, Kind::Outside, "outside")],
        edges: Vec::new(),
    };
    let mut named = BTreeSet::new();
    let attached: BTreeSet<_> = survey
        .attachments
        .iter()
        .map(|it| it.network.as_str())
        .collect();
    for network in &survey.catalogue.networks {
        if network.listed().is_some() || attached.contains(network.name.as_str()) {
            named.insert(network.name.as_str());
            listed(&mut graph, network);
        }
    }
    for name in attached.difference(&named) {
        graph
            .nodes
            .push(Node::new(network_id(name), Kind::Network, *name));
    }
    let mut pods = BTreeMap::<_, Vec<_>>::new();
    for attachment in &survey.attachments {
        pods.entry(attachment.container_id.as_str())
            .or_default()
            .push(attachment);
    }
    for (id, attachments) in pods {
        pod(&mut graph, survey, id, &attachments);
    }
    graph
}

fn network_id(name: &str) -> String {
    format!("network:{name}")
}

fn listed(graph: &mut Graph, network: &Network) {
    let id = network_id(&network.name);
    let mut node = Node::new(&id, Kind::Network, &network.name)
        .fact("type", network.driver())
        .fact("networkId", network.id.as_str());
    let mut way = None;
    if let Some(listed) = network.listed() {
        let subnets = subnets_of(&listed.list);
        let subnets: Vec<_> = subnets.iter().map(|it| it.subnet.to_string()).collect();
        let first = listed.list.plugins.first();
        let keys = first.and_then(|it| Json::deserialize(&Value::Object(it.document.clone())).ok());
        way = way_out(network.driver(), keys.as_ref(), listed.record.internal);
        node = node
            .fact("subnets", subnets)
            .fact("internal", listed.record.internal)
            .fact("file", listed.file.display().to_string());
    }
    graph.nodes.push(node.fact("wayOut", way));
    if let Some(way) = way {
        graph
            .edges
            .push(Edge::new(id, Link::Reaches, OUTSIDE).fact("how", way));
    }
}

/// How pods of a network reach the world outside; `None` if they do not.
fn way_out(driver: &str, keys: Option<&Json>, internal: bool) -> Option<&'static str> {
    let is_set = |key: &str| keys.is_some_and(|it| matches!(it.get(key), Some(Json::Bool(true))));
    if internal || is_set("internal") {
        return None;
    }
    match driver {
        "macvlan" | "ipvlan" | "vlan" | "host-device" | "host" => Some("directly"),
        _ if is_set("ipMasq") => Some("with the address of the node"),
        "bridge" if !is_set("isGateway") && !is_set("isDefaultGateway") => None,
        "bridge" | "ptp" | "vxlan" => Some("routed"),
        _ => None,
    }
}

fn pod(graph: &mut Graph, survey: &Survey, container: &str, attachments: &[&Attachment]) {
    let id = format!("pod:{container}");
    let name = attachments
        .first()
        .map(|it| pod_name(survey, it))
        .unwrap_or_default();
    let is_gone = attachments
        .iter()
        .any(|it| matches!(it.home, Home::Gone(_)));
    let node = Node::new(&id, Kind::Pod, name).fact("container", container);
    graph.nodes.push(if is_gone {
        node.fact("gone", true)
    } else {
        node
    });
    for attachment in attachments {
        let result = attachment.result.iter().flat_map(|it| &it.ips);
        let addresses = result.map(|it| it.address.to_string()).collect::<Vec<_>>();
        let edge = Edge::new(&id, Link::Attached, network_id(&attachment.network))
            .fact("interface", attachment.ifname.as_str())
            .fact("addresses", addresses);
        graph.edges.push(edge);
        ports(graph, survey, &id, attachment);
    }
}

/// The published ports of an attachment: those of the kernel, and what its runtime asked for.
fn ports(graph: &mut Graph, survey: &Survey, pod: &str, attachment: &Attachment) {
    let label = attachment.label();
    let mut mappings = BTreeSet::new();
    let kernel = survey.published.iter().filter(|it| it.owner == label);
    mappings.extend(kernel.map(|it| any_family(it.mapping)));
    let requested = attachment.cached.iter().flat_map(crate::run::ports::of);
    let requested = requested.filter_map(|it| {
        Some(Mapping {
            host_ip: it.host_ip.parse().ok(),
            host_port: it.host_port,
            container_port: it.container_port,
            protocol: Protocol::parse(&it.protocol)?,
        })
    });
    mappings.extend(requested.map(any_family));
    for mapping in mappings {
        let shown = mapping.host_ip.map(|it| it.to_string()).unwrap_or_default();
        let id = format!("port:{shown}:{}", mapping.published_port());
        if graph.nodes.iter().any(|it| it.id == id) {
            continue;
        }
        let node = Node::new(&id, Kind::Port, port_name(mapping.host_ip, &mapping))
            .fact("address", shown)
            .fact("port", mapping.host_port)
            .fact("protocol", mapping.protocol.to_string())
            .fact("podPort", mapping.container_port);
        graph.nodes.push(node);
        graph.edges.push(Edge::new(OUTSIDE, Link::Reaches, &id));
        let edge = Edge::new(id, Link::Publishes, pod);
        graph
            .edges
            .push(edge.fact("network", attachment.network.as_str()));
    }
}

/// All addresses of a family are all addresses.
fn any_family(mapping: Mapping) -> Mapping {
    Mapping {
        host_ip: mapping.host_ip.filter(|it: &IpAddr| !it.is_unspecified()),
        ..mapping
    }
}
