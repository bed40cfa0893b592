//! portmap, chained after bridge: published ports, tried from outside, from the node and
//! from pods, with every back end, and beside other programs that write rules.

mod churn;
mod conflicts;
mod failures;
mod given_back;
mod other_rules;
mod reachability;
mod switching;
mod verbs;

use std::ops::Deref;

use sandbox::{BackEnd, Cni, FilterNode, Netns, Outcome, conf};
use serde_json::{Value, json};

/// What portmap adds to a network.
fn portmap(back_end: BackEnd) -> Value {
    let mut conf = conf::plugin("portmap");
    conf["backend"] = back_end.name().into();
    conf
}

fn bridge() -> Value {
    bridge_of(&["10.1.0.0/24", "fd01::/64"])
}

fn bridge_of(subnets: &[&str]) -> Value {
    // Where bridged packets pass the hooks of IP, a pod reaches itself by hairpin only.
    let keys = json!({"isDefaultGateway": true, "hairpinMode": true});
    conf::with(&conf::bridge(subnets), keys)
}

/// `portMappings` as runtimes send them.
fn port(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

fn publishing(conf: &Value, mappings: &[Value]) -> Value {
    conf::with(conf, json!({"runtimeConfig": {"portMappings": mappings}}))
}

/// A node whose pods publish ports.
struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

/// A pod that has been added to the bridge.
struct Pod {
    netns: Netns,
    /// The result of bridge.
    result: Value,
}

impl Node {
    fn new(back_end: BackEnd) -> Self {
        Self(FilterNode::new(back_end))
    }

    fn portmap(&self) -> Cni {
        self.cni("portmap")
    }

    fn conf(&self) -> Value {
        portmap(self.back_end)
    }

    /// A pod without ports.
    fn pod(&self, name: &str) -> Pod {
        let netns = self.sandbox.pod(name);
        let result = self.cni("bridge").add(&bridge(), &netns, "eth0").result();
        Pod { netns, result }
    }

    fn publish_with(&self, conf: &Value, pod: &Pod, mappings: &[Value]) -> Outcome {
        let conf = conf::with_prev(&publishing(conf, mappings), &pod.result);
        self.portmap().add(&conf, &pod.netns, "eth0")
    }

    fn publish(&self, pod: &Pod, mappings: &[Value]) -> Outcome {
        self.publish_with(&self.conf(), pod, mappings)
    }

    /// A pod with ports.
    fn published(&self, name: &str, mappings: &[Value]) -> Pod {
        let pod = self.pod(name);
        self.publish(&pod, mappings).result();
        pod
    }

    /// DEL as a runtime with a cache sends it.
    fn unpublish(&self, pod: &Pod, mappings: &[Value]) {
        let conf = conf::with_prev(&publishing(&self.conf(), mappings), &pod.result);
        self.portmap().del(&conf, &pod.netns, "eth0").silent();
    }

    /// The rules, once what all pods share has been made.
    fn rules_after_a_first_pod(&self) -> String {
        let mappings = [port(1, 1, "tcp"), port(1, 1, "udp")];
        let first = self.published("first", &mappings);
        self.unpublish(&first, &mappings);
        let rules = self.host().rules();
        assert!(!rules.contains("id-first"), "{rules}");
        rules
    }
}

fn each(back_ends: &[BackEnd], test: impl Fn(&Node)) {
    FilterNode::each(back_ends, |node| test(&Node(node)));
}

const HTTP: u16 = 8080;

fn tcp() -> [Value; 1] {
    [port(HTTP, 80, "tcp")]
}

/// CHECK as a runtime sends it after ADD.
fn check(node: &Node, pod: &Pod, mappings: &[Value]) -> Outcome {
    let conf = conf::with_prev(&publishing(&node.conf(), mappings), &pod.result);
    node.portmap().check(&conf, &pod.netns, "eth0")
}
