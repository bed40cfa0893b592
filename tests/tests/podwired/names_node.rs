//! A node whose bridges and records are made by hand, as plugins would.

use sandbox::{Netns, Running};
use serde_json::{Value, json};

use super::node::Node;

pub struct Names {
    pub node: Node,
}

/// A record as crates/names documents it.
pub fn record(network: &Value, container: &str, names: &[&str], addresses: &[&str]) -> Value {
    json!({
        "network": network, "container": container, "ifname": "eth0", "names": names,
        "addresses": addresses,
    })
}

impl Names {
    pub fn new() -> Self {
        let node = Node::new();
        let path = node.sandbox.dir().join("resolv.conf");
        node.sandbox.write(&path, "");
        let path = path.display();
        node.host().sh(&format!(
            "mount --bind {path} /etc/resolv.conf; mkdir -p -m 700 /run/podwire"
        ));
        Self { node }
    }

    pub fn start(&self) -> Running {
        self.node.start(&json!({"resolver": {}}))
    }

    /// What the node's programs read as /etc/resolv.conf.
    pub fn resolv_conf(&self, content: &str) {
        self.node.sandbox.write("/etc/resolv.conf", content);
    }

    pub fn bridge(&self, name: &str, addresses: &[&str]) {
        let host = self.node.host();
        host.sh(&format!(
            "ip link add {name} type bridge; ip link set {name} up"
        ));
        for address in addresses {
            host.sh(&format!("ip address add {address} dev {name} nodad"));
        }
    }

    pub fn attach(&self, pod: &str, bridge: &str, addresses: &[&str]) -> Netns {
        let pod = self.node.sandbox.pod(pod);
        let (host, name) = (self.node.host(), pod.name());
        host.sh(&format!(
            "ip link add v{name} type veth peer name eth0 netns {name}
             ip link set v{name} master {bridge} up; ip -n {name} link set eth0 up"
        ));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            pod.sh(&format!("ip address add {address} dev eth0 {nodad}"));
        }
        // The node is the gateway of the first address.
        if let Some((net, _)) = addresses.first().and_then(|it| it.rsplit_once('.')) {
            pod.sh(&format!("ip route add default via {net}.1"));
        }
        pod
    }

    /// Writes a record as a plugin does, without asking the agent to read it.
    pub fn write(&self, file: &str, record: &Value) {
        let dir = "/run/podwire/names";
        let (network, name) = file.split_once('/').expect("a network");
        let draft = format!("{dir}/{network}/.{name}");
        self.node.sandbox.write(&draft, record.to_string());
        self.node.host().sh(&format!("mv {draft} {dir}/{file}"));
    }

    pub fn remove(&self, file: &str) {
        self.node
            .host()
            .sh(&format!("rm /run/podwire/names/{file}"));
    }

    /// Has the agent read a record; its answer.
    pub fn read(&self, file: &str) -> Value {
        let request = json!({"names": {"read": file}}).to_string();
        self.node.ask(&request).expect("an answer")
    }

    fn run(&self, pod: &str, server: &str, args: &[&str]) -> String {
        let server = format!("@{server}");
        let fixed = ["dig", "-r", "+time=8", "+tries=1", "+nocookie", &server];
        let argv = [&fixed[..], args].concat();
        let host = self.node.host();
        let done = match pod {
            "host" => host.run(&argv),
            pod => host.run(&[&["ip", "netns", "exec", pod], &argv[..]].concat()),
        };
        done.stdout
    }

    /// What dig prints in a pod.
    pub fn dig(&self, pod: &str, server: &str, args: &[&str]) -> String {
        self.run(pod, server, args)
    }

    /// Only the data of the answers.
    pub fn short(&self, pod: &str, server: &str, args: &[&str]) -> String {
        self.run(pod, server, &[&["+short"], args].concat())
            .trim_end()
            .to_owned()
    }
}
