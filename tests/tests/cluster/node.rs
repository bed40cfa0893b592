//! Agents of one cluster, each with its socket and journal, all in one namespace: they meet in the
//! store alone.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sandbox::{Cni, Netns, Outcome, Running, Sandbox, Suite, conf, etcd};
use serde_json::{Value, json};

const ETCD: &str = "http://127.0.0.1:2379";

pub struct Cluster {
    pub sandbox: Sandbox,
    pub pod: Netns,
    store: Value,
    _etcd: Option<Running>,
}

impl Cluster {
    /// With a file as the store.
    pub fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = json!({"file": sandbox.dir().join("store.json")});
        Self::of(sandbox, store, None)
    }

    /// With an etcd.
    pub fn with_etcd() -> Self {
        let sandbox = Sandbox::new();
        sandbox.host().sh("ip link set lo up");
        let etcd = etcd::alone(&sandbox.host(), "/run/etcd", ETCD);
        let cluster = Self::of(sandbox, json!({"etcd": {"endpoints": [ETCD]}}), Some(etcd));
        cluster.wait("etcd serves", || {
            let health = [
                "env",
                "ETCDCTL_API=3",
                "etcdctl",
                "--endpoints",
                ETCD,
                "endpoint",
                "health",
            ];
            cluster.sandbox.host().run(&health).code == 0
        });
        cluster
    }

    fn of(sandbox: Sandbox, store: Value, etcd: Option<Running>) -> Self {
        let pod = sandbox.pod("a");
        Self {
            sandbox,
            pod,
            store,
            _etcd: etcd,
        }
    }

    fn dir(&self, node: &str) -> String {
        self.sandbox.dir().join(node).display().to_string()
    }

    /// Starts the agent of a node.
    pub fn start(&self, node: &str, keys: Value) -> Running {
        let dir = self.dir(node);
        let ipam = json!({"node": node, "dataDir": format!("{dir}/ipam")});
        let ipam = conf::with(&conf::with(&ipam, self.store.clone()), keys);
        let document = json!({"socket": format!("{dir}/agent.sock"), "ipam": ipam});
        self.sandbox.host().sh(&format!("mkdir -p {dir}"));
        self.sandbox
            .write(format!("{dir}/podwired.json"), document.to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let file = format!("{dir}/podwired.json");
        self.sandbox.host().start(&[&program, "--config", &file])
    }

    /// Starts the agent of a node, and waits until an ADD may succeed.
    pub fn ready(&self, node: &str, keys: Value) -> Running {
        let running = self.start(node, keys);
        let deadline = Instant::now() + Duration::from_secs(20);
        let conf = self.conf(node, json!({}));
        while self.cni("x").status(&conf).code() != 0 {
            assert!(Instant::now() < deadline, "{node}: {}", running.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    /// The configuration of a network, for the agent of a node.
    pub fn conf(&self, node: &str, keys: Value) -> Value {
        let dir = self.dir(node);
        let own = json!({"type": "bridge", "ipam": {
            "type": "cluster", "subnet": "10.7.0.0/24", "coolDownSeconds": 0,
            "agent": format!("{dir}/agent.sock"), "dataDir": format!("{dir}/ipam"),
        }});
        let conf = conf::with(&conf::plugin("cluster"), own);
        conf::with(&conf, json!({"ipam": keys}))
    }

    pub fn cni(&self, id: &str) -> Cni {
        self.sandbox.cni("cluster").id(id)
    }

    pub fn try_add(&self, conf: &Value, id: &str) -> Outcome {
        self.cni(id).add(conf, &self.pod, "eth0")
    }

    /// The addresses of an ADD. As a runtime, it tries again what may pass: a store under load.
    pub fn add(&self, conf: &Value, id: &str) -> Vec<String> {
        self.persist(|| self.try_add(conf, id))
    }

    /// The addresses of an ADD that is repeated as long as it fails with code 11.
    pub fn persist(&self, add: impl Fn() -> Outcome) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let done = add();
            if done.code() == 0 || done.error().code != 11 || Instant::now() > deadline {
                return addresses(&done.result());
            }
        }
    }

    pub fn del(&self, conf: &Value, id: &str) {
        self.cni(id).del(conf, &self.pod, "eth0").silent();
    }

    /// What the agent of a node says of its role.
    pub fn status(&self, node: &str) -> Value {
        let socket = format!("{}/agent.sock", self.dir(node));
        let ask = move || {
            let mut stream = UnixStream::connect(socket).ok()?;
            stream.write_all(b"{\"status\":{}}\n").ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).ok()?;
            serde_json::from_str::<Value>(&line).ok()
        };
        let answer = self.sandbox.inside(ask).unwrap_or_default();
        answer["roles"]["ipam"].clone()
    }

    /// Waits until `condition` holds.
    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "never came true: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().expect("ips");
    let text = |it: &Value| it["address"].as_str().expect("address").to_owned();
    ips.iter().map(text).collect()
}

/// Each once.
pub fn distinct(all: &[String]) -> usize {
    all.iter().collect::<BTreeSet<_>>().len()
}
