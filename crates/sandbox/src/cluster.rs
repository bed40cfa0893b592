//! Nodes of a cluster ([`underlay`]), a real etcd on their router, and podwired on each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Netns, Running, Sandbox, Suite, etcd, underlay};

/// The nodes, numbered from 1. The sandbox's own namespace is the router.
pub struct Cluster {
    /// What holds all of them.
    pub sandbox: Sandbox,
    /// The nodes' namespaces.
    pub nodes: Vec<Netns>,
}

/// What the keys of the network begin with.
pub const PREFIX: &str = "/coreos.com/network";
const ETCD: &str = "http://172.20.0.1:2379";

/// An etcd, and how it is reached.
pub struct Etcd {
    /// It ends when this is dropped.
    pub _running: Running,
    /// Its endpoint.
    pub url: String,
}

impl Cluster {
    /// So many nodes, without a store.
    pub fn new(count: usize) -> Self {
        let sandbox = Sandbox::new();
        // The members' address is one of the router's that is always there.
        let node = |n| {
            let node = underlay::host(&sandbox, &format!("node{n}"), n);
            node.sh("echo 1 >/proc/sys/net/ipv4/ip_forward");
            node
        };
        underlay::router(&sandbox);
        sandbox.host().sh("ip link set lo up
             ip address add 172.20.0.1/32 dev lo");
        let nodes = (1..=count).map(node).collect();
        Self { sandbox, nodes }
    }

    /// The namespace of a node.
    pub fn node(&self, number: usize) -> &Netns {
        &self.nodes[number - 1]
    }

    /// An etcd with one member, and flannel's configuration of a network.
    pub fn etcd(&self, config: &Value) -> Etcd {
        let running = self.start_etcd("etcd");
        self.put(&format!("{PREFIX}/config"), &config.to_string());
        let url = ETCD.to_owned();
        Etcd {
            _running: running,
            url,
        }
    }

    /// Starts etcd, with its data in a directory of the sandbox, and waits until it serves.
    pub fn start_etcd(&self, dir: &str) -> Running {
        let data = self.path(dir).display().to_string();
        let running = etcd::alone(&self.sandbox.host(), &data, ETCD);
        self.wait("etcd serves", || {
            self.try_etcdctl(&["endpoint", "health"]).is_some()
        });
        running
    }

    /// A path of this sandbox alone.
    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.dir().join(name)
    }

    /// Runs etcdctl beside etcd, and returns what it printed.
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let done = self.try_etcdctl(arguments);
        done.unwrap_or_else(|| panic!("etcdctl {arguments:?} has failed"))
    }

    fn try_etcdctl(&self, arguments: &[&str]) -> Option<String> {
        let mut argv = vec!["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", ETCD];
        argv.extend(arguments);
        let done = self.sandbox.host().run(&argv);
        (done.code == 0).then_some(done.stdout)
    }

    /// Writes a key.
    pub fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", key, value]);
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        self.etcdctl(&["del", key]);
    }

    /// A lease as flanneld writes it.
    pub fn put_lease(&self, subnet: &str, ip: &str, mac: &str) {
        self.put(&lease_key(subnet), &flannels(ip, mac));
    }

    /// The key of the lease of the node with this address, and what etcd says of it.
    pub fn lease_of(&self, ip: &str) -> Option<(String, Value)> {
        let listed = self.etcdctl(&["get", "--prefix", &format!("{PREFIX}/subnets/")]);
        let lines: Vec<&str> = listed.lines().collect();
        lines.chunks(2).find_map(|pair| {
            let value: Value = serde_json::from_str(pair.get(1)?).ok()?;
            (value["PublicIP"] == ip).then(|| (pair[0].to_owned(), value))
        })
    }

    /// The configuration of podwired on a node.
    pub fn conf(&self, node: usize, etcd: &str) -> Value {
        json!({
            "socket": self.path(&format!("n{node}/agent.sock")),
            "endpoint": format!("unix:{}", self.path(&format!("n{node}.http")).display()),
            "overlay": {
                "etcd": {"endpoints": [etcd]},
                "networks": [{
                    "name": "pods",
                    "bridge": "cni0",
                    "subnetFile": self.path(&format!("n{node}/subnet.env")),
                    "conflist": self.path(&format!("n{node}/net.d/10.conflist")),
                }],
            },
        })
    }

    /// Starts podwired on a node.
    pub fn start(&self, node: usize, conf: &Value) -> Running {
        let file = self.path(&format!("n{node}.json"));
        self.sandbox.write(&file, conf.to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        self.node(node)
            .start(&[&program, "--config", &file.display().to_string()])
    }

    /// Starts podwired on a node, and waits until the node is ready.
    pub fn ready(&self, node: usize, conf: &Value) -> Running {
        let running = self.start(node, conf);
        self.await_ready(node, &running);
        running
    }

    /// Waits until a node is ready.
    pub fn await_ready(&self, node: usize, running: &Running) {
        let ready = || self.page(node, "readyz").starts_with("ok");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ready() {
            assert!(
                Instant::now() < deadline,
                "node {node}: {}",
                running.output()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A page of the agent's endpoint.
    pub fn page(&self, node: usize, page: &str) -> String {
        let socket = self.path(&format!("n{node}.http")).display().to_string();
        let url = format!("http://localhost/{page}");
        self.sandbox
            .host()
            .run(&["curl", "-s", "--unix-socket", &socket, &url])
            .stdout
    }

    /// Waits until `condition` holds.
    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "never came true: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The subnet that a node has, as `10.5.3`.
    pub fn subnet(&self, node: usize) -> String {
        let text = self.sandbox.read(self.path(&format!("n{node}/subnet.env")));
        let text = text.expect("subnet.env");
        let line = text
            .lines()
            .find_map(|it| it.strip_prefix("FLANNEL_SUBNET="));
        line.and_then(|it| it.rsplit_once('.'))
            .expect("FLANNEL_SUBNET")
            .0
            .to_owned()
    }

    /// A pod that is attached by the plugins of the node's list.
    pub fn pod(&self, node: usize, name: &str) -> Netns {
        let list = self
            .sandbox
            .read(self.path(&format!("n{node}/net.d/10.conflist")));
        let list: Value = serde_json::from_str(&list.expect("the conflist")).expect("JSON");
        let mut conf = list["plugins"][0].clone();
        conf["cniVersion"] = list["cniVersion"].clone();
        conf["name"] = list["name"].clone();
        if conf["ipam"]["type"] == "host-local" {
            let dir = self.path(&format!("n{node}/ipam"));
            conf["ipam"]["dataDir"] = dir.display().to_string().into();
        }
        let pod = self.sandbox.pod(&format!("n{node}{name}"));
        pod.sh("ip link set lo up");
        let under = ["ip", "netns", "exec", self.node(node).name()];
        let plugin = conf["type"].as_str().expect("a type").to_owned();
        self.sandbox
            .cni(&plugin)
            .under(&under)
            .add(&conf, &pod, "eth0")
            .result();
        pod
    }
}

/// flannel's configuration of a network. Agents choose their subnets by chance: never those from 10.5.70.0
/// on, which tests give to nodes that are not there.
pub fn config() -> Value {
    json!({"Network": "10.5.0.0/16", "SubnetMax": "10.5.69.0", "Backend": {"Type": "vxlan"}})
}

/// The key of the lease of a subnet.
pub fn lease_key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{subnet}")
}

/// A lease as flanneld writes it.
pub fn flannels(ip: &str, mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

/// The address of a node in the underlay.
pub fn address(node: usize) -> String {
    format!("172.20.{node}.2")
}

/// The entries of a peer on a node, as other programs show them: neighbour, forwarding entry,
/// route.
pub fn entries(node: &Netns, subnet: &str) -> Vec<String> {
    let base = format!("{subnet}.0");
    let shown = |command: &str| node.run(&["sh", "-c", command]).stdout.trim().to_owned();
    let neighbour = shown(&format!("ip neighbour show {base} dev flannel.1"));
    let mac = neighbour.split(' ').nth(2).unwrap_or("none").to_owned();
    vec![
        neighbour,
        shown(&format!("bridge fdb show dev flannel.1 | grep {mac}")),
        shown(&format!("ip route show {base}/24 dev flannel.1")),
    ]
}

/// What [`entries`] returns for a peer that is programmed.
pub fn programmed(subnet: &str, ip: &str, mac: &str) -> Vec<String> {
    vec![
        format!("{subnet}.0 lladdr {mac} PERMANENT"),
        format!("{mac} dst {ip} self permanent"),
        format!("via {subnet}.0 onlink"),
    ]
}

/// Whether [`entries`] has what is `expected`, as far as other versions of ip write it the same.
pub fn has(found: &[String], expected: &[String]) -> bool {
    found.iter().zip(expected).all(|(found, expected)| {
        expected
            .split(' ')
            .all(|word| found.split_whitespace().any(|it| it == word))
    })
}

/// Whether nothing of a peer is left.
pub fn is_gone(node: &Netns, subnet: &str, mac: &str) -> bool {
    let base = format!("{subnet}.0");
    let command = format!(
        "ip neighbour show {base} dev flannel.1; bridge fdb show dev flannel.1 | grep {mac}; \
         ip route show {base}/24"
    );
    node.run(&["sh", "-c", &command]).stdout.trim().is_empty()
}
