//! The role `ipam` with custom resources as its store: agents of several nodes meet in an API server alone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sandbox::{Cni, Netns, Outcome, Running, Suite, conf};
use serde_json::{Value, json};

use crate::api::Api;

pub const IPAM: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/kubernetes/ipam.yaml"
);

/// An API server with the resource, the rights and the nodes; agents that have addresses.
pub struct Addresses {
    pub api: Api,
    pod: Netns,
}

pub fn name(node: usize) -> String {
    format!("node{node}")
}

impl Addresses {
    pub fn new(nodes: usize) -> Self {
        let api = Api::new(nodes);
        api.kubectl(&["apply", "-f", IPAM]);
        let resource = "crd/ipamrecords.podwire.dev";
        api.kubectl(&["wait", "--for=condition=established", resource]);
        for node in 1..=nodes {
            api.add_node(&name(node), None);
        }
        api.write_token(&api.token());
        let pod = api.cluster.sandbox.pod("pod");
        Self { api, pod }
    }

    fn dir(&self, node: usize) -> String {
        self.api.cluster.path(&name(node)).display().to_string()
    }

    /// Starts the agent of a node, and waits until an ADD may succeed.
    fn ready(&self, node: usize) -> Running {
        let dir = self.dir(node);
        let document = json!({
            "socket": format!("{dir}/agent.sock"),
            "ipam": {
                "kubernetes": {"kubeconfig": self.api.kubeconfig(), "nodeName": name(node)},
                "dataDir": format!("{dir}/ipam"), "leaseSeconds": 5, "graceSeconds": 1,
            },
        });
        self.api
            .cluster
            .sandbox
            .host()
            .sh(&format!("mkdir -p {dir}"));
        let running = self.api.cluster.start(node, &document);
        let conf = self.conf(node, json!({}));
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.cni("x").status(&conf).code() != 0 {
            let output = running.output();
            assert!(Instant::now() < deadline, "node{node}: {output}");
            std::thread::sleep(Duration::from_millis(50));
        }
        running
    }

    /// The configuration of a network, for the agent of a node.
    fn conf(&self, node: usize, keys: Value) -> Value {
        let dir = self.dir(node);
        let own = json!({"type": "bridge", "ipam": {
            "type": "cluster", "subnet": "10.7.0.0/25", "coolDownSeconds": 0,
            "agent": format!("{dir}/agent.sock"), "dataDir": format!("{dir}/ipam"),
        }});
        let conf = conf::with(&conf::plugin("cluster"), own);
        conf::with(&conf, json!({"ipam": keys}))
    }

    fn cni(&self, id: &str) -> Cni {
        self.api.cluster.sandbox.cni("cluster").id(id)
    }

    fn try_add(&self, conf: &Value, id: &str) -> Outcome {
        self.cni(id).add(conf, &self.pod, "eth0")
    }

    /// The address of an ADD. As a runtime, it tries again what may pass.
    fn add(&self, conf: &Value, id: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let done = self.try_add(conf, id);
            if done.code() == 0 || done.error().code != 11 || Instant::now() > deadline {
                let address = done.result()["ips"][0]["address"].clone();
                return address.as_str().expect("an address").to_owned();
            }
        }
    }

    fn del(&self, conf: &Value, id: &str) {
        self.cni(id).del(conf, &self.pod, "eth0").silent();
    }

    /// What `podwire ipam` says on a node.
    fn podwire(&self, node: usize, arguments: &[&str]) -> String {
        let program = Suite::Ours.dir().join("podwire").display().to_string();
        let socket = format!("{}/agent.sock", self.dir(node));
        let argv = [
            &[program.as_str(), "ipam", "--agent", &socket][..],
            arguments,
        ];
        self.api.cluster.sandbox.host().run(&argv.concat()).stdout
    }

    fn state(&self, node: usize) -> Value {
        let text = self.podwire(node, &["show", "--json"]);
        serde_json::from_str(&text).expect("JSON")
    }

    fn records(&self) -> Vec<Value> {
        let text = self
            .api
            .kubectl(&["get", "ipamrecords.podwire.dev", "-o", "json"]);
        let list: Value = serde_json::from_str(&text).expect("JSON");
        list["items"].as_array().expect("items").clone()
    }

    fn signal(&self, agent: &Running, signal: &str) {
        let host = self.api.cluster.sandbox.host();
        host.sh(&format!("kill -{signal} {}", agent.id()));
    }
}

/// The revision of an object.
fn revision(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|it| it.parse().ok()).expect("a revision")
}

#[test]
fn nodes_share_a_pool_to_its_last_address() {
    let it = Addresses::new(5);
    let mut agents: Vec<_> = (1..=5).map(|node| it.ready(node)).collect();
    let conf = |node: usize| it.conf(node, json!({}));
    // All begin at once.
    let mut all: Vec<String> = std::thread::scope(|scope| {
        let (it, conf) = (&it, &conf);
        let add =
            |turn: usize| scope.spawn(move || it.add(&conf(turn % 5 + 1), &format!("a{turn}")));
        let all: Vec<_> = (0..15).map(add).collect();
        all.into_iter()
            .map(|it| it.join().expect("an ADD"))
            .collect()
    });
    // 10.7.0.2 to 10.7.0.126, unequally: what the first node has too much of, others borrow.
    for turn in 0..110 {
        let node = if turn < 60 { 1 } else { turn % 5 + 1 };
        all.push(it.add(&conf(node), &format!("b{turn}")));
    }
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 125);
    let full = it.try_add(&conf(3), "more").error();
    let why = "no IP addresses available";
    assert!(full.code == 11 && full.msg.contains(why), "{}", full.msg);
    // What one node releases, another one gets.
    it.del(&conf(1), "b0");
    assert_eq!(it.add(&conf(5), "more"), all[15]);

    // People can read it.
    let table = it.api.kubectl(&["get", "ipamrecords.podwire.dev"]);
    let head = table.lines().next().unwrap_or_default();
    let columns: Vec<_> = head.split_whitespace().collect();
    let expected = ["NAME", "KIND", "POOL", "ITEM", "NODE", "EPOCH", "USED"];
    assert_eq!(columns, expected);
    let block = |it: &&str| it.contains("blocks") && it.contains("testnet") && it.contains("node1");
    assert!(table.lines().any(|it| block(&it)), "{table}");
    let shown = it.podwire(2, &["show", "--text"]);
    assert!(
        shown.contains("pool testnet") && shown.contains("5 nodes live"),
        "{shown}"
    );
    it.api.cluster.wait("no want is left over", || {
        it.records().iter().all(|it| it["spec"]["kind"] != "wants")
    });

    // Killed and started again, a node has what it had, and has written its blocks after its own key.
    let used = it.state(2)["use"].clone();
    drop(agents.remove(1));
    let _second = it.ready(2);
    assert_eq!(it.state(2)["use"], used);
    let records = it.records();
    let is_own = |it: &&Value| it["spec"]["kind"] == "nodes" && it["spec"]["item"] == "node2";
    let own = records.iter().find(is_own).expect("the node's key");
    let has_part = |it: &&Value| {
        let value = &it["spec"]["value"];
        let lent = value["lent"].as_array().into_iter().flatten();
        it["spec"]["kind"] == "blocks"
            && (value["node"] == "node2" || lent.into_iter().any(|it| it["node"] == "node2"))
    };
    let blocks: Vec<_> = records.iter().filter(has_part).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        assert!(revision(block) > revision(own), "{block}");
    }
    it.del(&conf(5), "more");
    assert_eq!(it.add(&conf(2), "again"), all[15]);
}

#[test]
fn a_lost_node_keeps_its_blocks_as_long_as_the_cluster_has_the_node() {
    let it = Addresses::new(2);
    let one = it.ready(1);
    let _two = it.ready(2);
    let keys = json!({"subnet": "10.7.0.0/28", "blockSize": 28});
    let (first, second) = (it.conf(1, keys.clone()), it.conf(2, keys));
    let lost = it.add(&first, "a");
    it.signal(&one, "STOP");
    // Lease and grace are over several times.
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        assert_eq!(it.try_add(&second, "b").error().code, 11);
    }
    it.api.kubectl(&["delete", "node", "node1"]);
    it.api.cluster.wait("the block is taken over", || {
        it.try_add(&second, "b").code() == 0
    });
    let all: BTreeSet<_> = (0..12).map(|n| it.add(&second, &format!("c{n}"))).collect();
    assert_eq!(all.len(), 12);
    let leases = it
        .api
        .kubectl(&["get", "leases", "-n", "podwire", "-o", "name"]);
    assert_eq!(leases.lines().count(), 1, "{leases}");
    it.signal(&one, "CONT");
    // It finds out before it hands out anything.
    let refused = it.try_add(&first, "d").error();
    assert_eq!(refused.code, 11, "{}", refused.msg);
    it.api.cluster.wait("the clash is named", || {
        let clashes = it.state(1)["clashes"].clone();
        clashes[0]["address"] == lost.trim_end_matches("/28") && clashes[0]["blockOf"] == "node2"
    });
    it.del(&first, "a");
    assert_eq!(it.state(1)["clashes"], json!([]));
}
