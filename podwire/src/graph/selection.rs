//! The part of a graph that is about one network or pod.

use std::collections::HashSet;

use anyhow::{Result, bail};

use super::model::{Graph, Index, Kind, Link, Node, View};

/// The part of `graph` that is about the network or pod called `word`: a name, a container's id or
/// the beginning of one, or the path of a namespace.
///
/// # Errors
/// Nothing is called so, or several.
pub fn select(graph: Graph, word: &str) -> Result<Graph> {
    let index = Index::of(&graph);
    let mut part = Part {
        index: &index,
        kept: HashSet::new(),
    };
    let of_network = part.of_network(word);
    if of_network.is_empty() {
        let pod = pod(&index, word)?;
        part.pod(pod);
    }
    for node in of_network {
        part.member(node);
    }
    part.about();
    let kept: HashSet<String> = part.kept.into_iter().map(str::to_owned).collect();
    let is_kept = |id: &String| kept.contains(id);
    Ok(Graph {
        view: graph.view,
        nodes: graph
            .nodes
            .into_iter()
            .filter(|it| is_kept(&it.id))
            .collect(),
        edges: graph
            .edges
            .into_iter()
            .filter(|it| is_kept(&it.from) && is_kept(&it.to))
            .collect(),
    })
}

fn pod<'a>(index: &Index<'a>, word: &str) -> Result<&'a Node> {
    let pods = || {
        let all = index.graph.nodes.iter();
        all.filter(|it| matches!(it.kind, Kind::Pod | Kind::Namespace))
    };
    let exact = |it: &&Node| {
        it.name == word
            || it.text("container") == word
            || it
                .texts("containers")
                .chain(it.texts("paths"))
                .any(|it| it == word)
    };
    let begins = |it: &&Node| {
        it.text("container").starts_with(word)
            || it.texts("containers").any(|it| it.starts_with(word))
    };
    let mut found: Vec<_> = pods().filter(exact).collect();
    if found.is_empty() && !word.is_empty() {
        found = pods().filter(begins).collect();
    }
    match found[..] {
        [one] => Ok(one),
        [] => bail!("there is no network and no pod called {word:?}"),
        _ => bail!("{} pods are called {word:?}", found.len()),
    }
}

struct Part<'a, 'b> {
    index: &'b Index<'a>,
    kept: HashSet<&'a str>,
}

impl<'a> Part<'a, '_> {
    /// What shows that a network is there: itself and its pods, or the interfaces in it.
    fn of_network(&self, word: &str) -> Vec<&'a Node> {
        let all = self.index.graph.nodes.iter();
        let is_of = |it: &&Node| match it.kind {
            Kind::Network => it.name == word,
            Kind::Interface => it.text("network") == word,
            _ => false,
        };
        all.filter(is_of).collect()
    }

    fn member(&mut self, node: &'a Node) {
        match self.index.graph.view {
            View::Host => self.interface(node),
            View::User => {
                self.kept.insert(&node.id);
                let pods: Vec<_> = self.index.sources(&node.id, Link::Attached).collect();
                self.kept.extend(pods.iter().map(|it| it.id.as_str()));
            }
        }
    }

    fn pod(&mut self, pod: &'a Node) {
        self.kept.insert(&pod.id);
        let networks = self.index.targets(&pod.id, Link::Attached);
        self.kept.extend(networks.map(|it| it.id.as_str()));
        let all = self.index.all(Kind::Interface);
        let own: Vec<_> = all
            .filter(|it| it.within.as_ref() == Some(&pod.id))
            .collect();
        own.into_iter().for_each(|it| self.interface(it));
    }

    /// An interface, and the way from it to the outside.
    fn interface(&mut self, interface: &'a Node) {
        if !self.kept.insert(&interface.id) {
            return;
        }
        self.kept.extend(interface.within.as_deref());
        let id = interface.id.as_str();
        let ends = self
            .index
            .targets(id, Link::Veth)
            .chain(self.index.sources(id, Link::Veth));
        let up = [Link::Port, Link::Parent]
            .into_iter()
            .flat_map(|it| self.index.targets(id, it));
        // Of a bridge, what is no pod's: VXLAN devices and uplinks.
        let ports = self.index.sources(id, Link::Port);
        let ports = ports.filter(|it| self.index.edges_to(&it.id, Link::Veth).next().is_none());
        let next: Vec<_> = ends.chain(up).chain(ports).collect();
        self.kept
            .extend(self.index.targets(id, Link::Peer).map(|it| it.id.as_str()));
        next.into_iter().for_each(|it| self.interface(it));
    }

    /// Ports and rules about what is kept, and the world outside.
    fn about(&mut self) {
        let edges = self.index.graph.edges.iter();
        let about = edges.filter(|it| matches!(it.kind, Link::Publishes | Link::Applies));
        let about: Vec<_> = about
            .filter(|it| self.kept.contains(it.to.as_str()))
            .collect();
        self.kept.extend(about.iter().map(|it| it.from.as_str()));
        self.kept
            .extend(self.index.all(Kind::Outside).map(|it| it.id.as_str()));
    }
}
