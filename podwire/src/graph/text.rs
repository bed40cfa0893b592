//! A graph as text for a terminal: what is attached to what, indented.

use std::collections::HashSet;
use std::fmt::Write;

use super::model::{Graph, Index, Kind, Link, Node, View};
use super::picture::{details, natural};
use super::scene::visible;

/// The text.
pub fn text(graph: &Graph) -> String {
    let index = Index::of(graph);
    let mut tree = Tree {
        index: &index,
        text: String::new(),
        shown: HashSet::new(),
    };
    match graph.view {
        View::Host => tree.host(),
        View::User => tree.user(),
    }
    tree.text
}

struct Tree<'a, 'b> {
    index: &'b Index<'a>,
    text: String,
    shown: HashSet<&'a str>,
}

impl<'a> Tree<'a, '_> {
    fn line(&mut self, depth: usize, text: &str) {
        let _ = writeln!(self.text, "{:1$}{text}", "", depth * 2);
    }

    fn host(&mut self) {
        let Some(host) = self.index.host() else {
            return;
        };
        self.line(0, &visible(&host.name));
        let mut links: Vec<_> = self.index.interfaces(&host.id).collect();
        links.sort_by_cached_key(|it| natural(&it.name));
        // First what has something attached, then the rest.
        let is_top = |it: &&Node| self.index.edges_from(&it.id, Link::Port).next().is_none();
        let (top, rest): (Vec<_>, Vec<_>) = links.into_iter().partition(is_top);
        for link in top.into_iter().chain(rest) {
            if !self.shown.contains(link.id.as_str()) {
                self.interface(1, link);
            }
        }
        for namespace in self.index.all(Kind::Namespace).filter(|it| !it.has("host")) {
            let all = self.index.interfaces(&namespace.id);
            let rest: Vec<_> = all
                .filter(|it| !self.shown.contains(it.id.as_str()))
                .collect();
            if !rest.is_empty() || self.index.interfaces(&namespace.id).next().is_none() {
                self.line(0, &visible(&namespace.name));
            }
            for interface in rest {
                self.interface(1, interface);
            }
        }
    }

    /// An interface with what is attached to it.
    fn interface(&mut self, depth: usize, interface: &'a Node) {
        self.shown.insert(&interface.id);
        let own = self.described(interface);
        let ends: Vec<_> = self.index.sources(&interface.id, Link::Veth).collect();
        let ends = ends.iter().map(|it| {
            self.shown.insert(&it.id);
            format!(" ── {}", self.described(it))
        });
        let ends: String = ends.collect();
        self.line(depth, &format!("{own}{ends}"));
        for peer in self.index.targets(&interface.id, Link::Peer) {
            let peer = format!("··· {}", visible(&peer.name));
            self.line(depth + 1, &peer);
        }
        for kind in [Link::Port, Link::Parent] {
            let below = self.index.sources(&interface.id, kind);
            // What is also the port of a bridge is there.
            let is_here = |it: &&Node| {
                kind == Link::Port || self.index.edges_from(&it.id, Link::Port).next().is_none()
            };
            let mut below: Vec<_> = below.filter(is_here).collect();
            below.sort_by_cached_key(|it| self.order(it));
            for below in below {
                if !self.shown.contains(below.id.as_str()) {
                    self.interface(depth + 1, below);
                }
            }
        }
    }

    /// Ports of pods are in the order of the pods' names.
    fn order(&self, interface: &'a Node) -> (bool, super::picture::Natural) {
        let end = self.index.sources(&interface.id, Link::Veth).next();
        let name = end.and_then(|it| self.index.node(it.within.as_deref()?));
        (name.is_some(), natural(&name.unwrap_or(interface).name))
    }

    /// In one line: the pod, the name, the kind, what is known.
    fn described(&self, interface: &'a Node) -> String {
        let namespace = interface
            .within
            .as_deref()
            .and_then(|it| self.index.node(it));
        let pod = namespace.filter(|it| !it.has("host"));
        let pod = pod.map(|it| format!("[{}] ", visible(&it.name)));
        let mut words = vec![visible(&interface.name), visible(interface.text("type"))];
        words.extend(details(self.index, interface));
        words.retain(|it| !it.is_empty());
        pod.unwrap_or_default() + &words.join("  ")
    }

    fn user(&mut self) {
        let mut networks: Vec<_> = self.index.all(Kind::Network).collect();
        networks.sort_by_cached_key(|it| natural(&it.name));
        for network in networks {
            let mut words = vec![visible(&network.name), visible(network.text("type"))];
            words.extend(details(self.index, network));
            self.line(0, &words.join("  "));
            let edges = self.index.edges_to(&network.id, Link::Attached);
            let pods = edges.filter_map(|it| Some((self.index.node(&it.from)?, it)));
            let mut pods: Vec<_> = pods.collect();
            pods.sort_by_cached_key(|(pod, _)| natural(&pod.name));
            for (pod, edge) in pods {
                let list = edge.facts.get("addresses").and_then(|it| it.as_array());
                let addresses = list.into_iter().flatten().filter_map(|it| it.as_str());
                let ports = self.index.edges_to(&pod.id, Link::Publishes);
                let ports = ports.filter(|it| it.text("network") == network.name);
                let ports = ports.filter_map(|it| self.index.node(&it.from));
                let mut words = vec![visible(&pod.name), visible(edge.text("interface"))];
                words.extend(addresses.map(visible));
                words.extend(ports.map(|it| visible(&it.name)));
                self.line(1, &words.join("  "));
            }
        }
    }
}
