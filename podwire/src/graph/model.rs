//! A graph: what is there, and what belongs together. The JSON of `podwire graph` is exactly this.

use serde::Serialize;
use serde_json::{Map, Value};

/// What a user wants to see of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum View {
    /// Namespaces, interfaces and rules, as the kernel has them
    Host,
    /// Pods, networks and published ports, as their user sees them
    User,
}

/// Objects and their connections.
#[derive(Clone, Debug, Serialize)]
pub struct Graph {
    /// Whose view it is.
    pub view: View,
    /// The objects.
    pub nodes: Vec<Node>,
    /// The connections.
    pub edges: Vec<Edge>,
}

/// An object.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// Unique in the graph.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Its name; a pod chooses the names in its namespace, so they may be anything.
    pub name: String,
    /// The id of the namespace that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// What else is known of it.
    #[serde(flatten)]
    pub facts: Map<String, Value>,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A network namespace.
    Namespace,
    /// A network device.
    Interface,
    /// Another node of a VXLAN network.
    Peer,
    /// A published port of the node.
    Port,
    /// A rule of the packet filter, or a set of them with one purpose.
    Rule,
    /// A network of a CNI configuration.
    Network,
    /// A pod or container.
    Pod,
    /// All that is not this node.
    Outside,
}

/// A connection.
#[derive(Clone, Debug, Serialize)]
pub struct Edge {
    /// The id of an object.
    pub from: String,
    /// The id of an object.
    pub to: String,
    /// What connects them.
    pub kind: Link,
    /// What else is known of it.
    #[serde(flatten)]
    pub facts: Map<String, Value>,
}

/// What connects two objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Both are the ends of a veth pair; the end on the node is the second one.
    Veth,
    /// The first is a port of the second: a bridge, bond, team or VRF.
    Port,
    /// The first is on top of the second: vlan, macvlan, ipvlan; a VXLAN device and its underlay.
    Parent,
    /// The first, a VXLAN device, sends to the second.
    Peer,
    /// The port leads to the interface or pod.
    Publishes,
    /// The rule is about the interface.
    Applies,
    /// The pod is attached to the network.
    Attached,
    /// The first can open connections to the second.
    Reaches,
}

impl Node {
    /// An object without facts.
    pub fn new(id: impl Into<String>, kind: Kind, name: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind,
            name: name.into(),
            within: None,
            facts: Map::new(),
        }
    }

    /// Inside the namespace with this id.
    pub fn within(self, namespace: impl Into<String>) -> Self {
        Self {
            within: Some(namespace.into()),
            ..self
        }
    }

    /// With a fact. Nothing is added for null, an empty text or an empty list.
    pub fn fact(mut self, key: &str, value: impl Into<Value>) -> Self {
        add(&mut self.facts, key, value.into());
        self
    }

    /// A fact that is a text; empty if there is none.
    pub fn text(&self, key: &str) -> &str {
        text(&self.facts, key)
    }

    /// A fact that is a list of texts.
    pub fn texts(&self, key: &str) -> impl Iterator<Item = &str> {
        let list = self.facts.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str)
    }

    /// Whether the fact is there, and not false.
    pub fn has(&self, key: &str) -> bool {
        self.facts.get(key).is_some_and(|it| *it != false)
    }
}

impl Edge {
    /// A connection without facts.
    pub fn new(from: impl Into<String>, kind: Link, to: impl Into<String>) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
            kind,
            facts: Map::new(),
        }
    }

    /// As [`Node::fact`].
    pub fn fact(mut self, key: &str, value: impl Into<Value>) -> Self {
        add(&mut self.facts, key, value.into());
        self
    }

    /// As [`Node::text`].
    pub fn text(&self, key: &str) -> &str {
        text(&self.facts, key)
    }
}

fn add(facts: &mut Map<String, Value>, key: &str, value: Value) {
    let is_empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    if !is_empty {
        facts.insert(key.to_owned(), value);
    }
}

fn text<'a>(facts: &'a Map<String, Value>, key: &str) -> &'a str {
    facts.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A graph with its objects and connections by id.
#[derive(Debug)]
pub struct Index<'a> {
    /// The graph.
    pub graph: &'a Graph,
    nodes: std::collections::HashMap<&'a str, &'a Node>,
    from: std::collections::HashMap<&'a str, Vec<&'a Edge>>,
    to: std::collections::HashMap<&'a str, Vec<&'a Edge>>,
}

impl<'a> Index<'a> {
    /// Of a graph.
    pub fn of(graph: &'a Graph) -> Self {
        let mut index = Self {
            graph,
            nodes: graph.nodes.iter().map(|it| (it.id.as_str(), it)).collect(),
            from: Default::default(),
            to: Default::default(),
        };
        for edge in &graph.edges {
            index.from.entry(&edge.from).or_default().push(edge);
            index.to.entry(&edge.to).or_default().push(edge);
        }
        index
    }

    /// The object with this id.
    pub fn node(&self, id: &str) -> Option<&'a Node> {
        self.nodes.get(id).copied()
    }

    /// The objects of a kind, in the order of the graph.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &'a Node> {
        self.graph.nodes.iter().filter(move |it| it.kind == kind)
    }

    /// The interfaces of a namespace, without the loopback interface.
    pub fn interfaces(&self, namespace: &str) -> impl Iterator<Item = &'a Node> {
        let is_in = move |it: &&Node| {
            it.within.as_deref() == Some(namespace) && it.text("type") != "loopback"
        };
        self.all(Kind::Interface).filter(is_in)
    }

    /// Where connections of a kind lead from an object.
    pub fn targets(&self, id: &str, kind: Link) -> impl Iterator<Item = &'a Node> {
        let edges = self.from.get(id).into_iter().flatten();
        let edges = edges.filter(move |it| it.kind == kind);
        edges.filter_map(|it| self.node(&it.to))
    }

    /// The connections of a kind that lead to an object.
    pub fn edges_to(&self, id: &str, kind: Link) -> impl Iterator<Item = &'a Edge> {
        let edges = self.to.get(id).into_iter().flatten().copied();
        edges.filter(move |it| it.kind == kind)
    }

    /// The connections of a kind that begin at an object.
    pub fn edges_from(&self, id: &str, kind: Link) -> impl Iterator<Item = &'a Edge> {
        let edges = self.from.get(id).into_iter().flatten().copied();
        edges.filter(move |it| it.kind == kind)
    }

    /// Where connections of a kind that lead to an object begin.
    pub fn sources(&self, id: &str, kind: Link) -> impl Iterator<Item = &'a Node> {
        self.edges_to(id, kind).filter_map(|it| self.node(&it.from))
    }

    /// The namespace of the node itself.
    pub fn host(&self) -> Option<&'a Node> {
        self.all(Kind::Namespace).find(|it| it.has("host"))
    }
}
