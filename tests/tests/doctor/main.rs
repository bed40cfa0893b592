//! `podwire doctor`: each fault is made, is the only finding, and is gone after the remedy that the
//! finding names. What `ps` and `inspect` show of the same nodes.

mod addresses;
mod agent;
mod limits;
mod links;
mod listing;
mod node;
mod stores;

use sandbox::{Finished, Netns, Sandbox, Suite, beyond_peer, conf};
use serde_json::{Value, json};

/// Nothing here can be proved against a peer.
const WHY: &str = "the Go plugins have no such command";

/// A node with a network `net` and a pod `blue`.
struct Node {
    sandbox: Sandbox,
    blue: Netns,
    /// What precedes the usual directories in PATH.
    programs: String,
}

fn network(name: &str, plugins: &[Value]) -> Value {
    json!({"cniVersion": "1.1.0", "name": name, "plugins": plugins})
}

fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true,
        "ipam": conf::host_local_ipam(&["10.1.0.0/24"])})
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

impl Node {
    /// With bridge and portmap, and one pod that publishes port 8080.
    fn new() -> Self {
        let node = Self::empty();
        node.configure("net", &network("net", &[bridge(), portmap()]));
        let ports = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        node.must_with(&["add", "net", &node.blue.path()], &ports);
        node
    }

    /// Without a network.
    fn empty() -> Self {
        let sandbox = Sandbox::new();
        let blue = sandbox.pod("blue");
        let programs = String::new();
        sandbox
            .host()
            .sh("ip link add uplink type veth peer name there
            ip link set uplink up; ip link set there up
            ip addr add 192.0.2.1/24 dev uplink; ip route add default via 192.0.2.2");
        Self {
            sandbox,
            blue,
            programs,
        }
    }

    fn dir(&self) -> String {
        self.sandbox.dir().join("net.d").display().to_string()
    }

    fn configure(&self, file: &str, list: &Value) {
        let file = format!("{}/{file}.conflist", self.dir());
        self.sandbox.write(file, list.to_string());
    }

    fn host(&self) -> Netns {
        self.sandbox.host()
    }

    /// What the programs of the node read as /etc/resolv.conf. The servers of the machine do not answer
    /// here.
    fn resolv_conf(&self, text: &str) {
        let file = self.sandbox.dir().join("resolv.conf");
        self.sandbox.write(&file, text);
        self.host().sh(&format!(
            "mountpoint -q /etc/resolv.conf || mount --bind {} /etc/resolv.conf",
            file.display()
        ));
    }

    /// What runs a command as the administrator of the node does.
    fn environment(&self, offered: &Value) -> Vec<String> {
        let bin = Suite::Ours.dir().display().to_string();
        let programs = &self.programs;
        vec![
            "env".into(),
            format!("PATH={bin}:{programs}:/usr/sbin:/usr/bin:/sbin:/bin"),
            format!("CNI_PATH={bin}"),
            format!("NETCONFPATH={}", self.dir()),
            format!("CAP_ARGS={offered}"),
        ]
    }

    fn execute(&self, argv: &[&str], offered: &Value) -> Finished {
        let environment = self.environment(offered);
        let mut all: Vec<_> = environment.iter().map(String::as_str).collect();
        all.extend(argv);
        self.host().run(&all)
    }

    #[track_caller]
    fn must_with(&self, args: &[&str], offered: &Value) -> String {
        let argv: Vec<_> = ["podwire"].iter().chain(args).copied().collect();
        let done = self.execute(&argv, offered);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout
    }

    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        self.must_with(args, &Value::Null)
    }

    /// What doctor finds.
    #[track_caller]
    fn examine(&self, args: &[&str]) -> (i32, Value) {
        let argv: Vec<_> = ["podwire", "doctor", "--json"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        let done = self.execute(&argv, &Value::Null);
        let document = serde_json::from_str(&done.stdout);
        (
            done.code,
            document.unwrap_or_else(|e| panic!("{e}: {done:?}")),
        )
    }

    #[track_caller]
    fn assert_healthy(&self) {
        let (code, document) = self.examine(&[]);
        assert_eq!(code, 0, "{document:#}");
        assert_eq!(document["findings"], json!([]));
        assert_eq!(document["unread"], json!([]));
    }

    /// The only finding, which has this id.
    #[track_caller]
    fn finding(&self, id: &str) -> Value {
        let (code, document) = self.examine(&[]);
        let findings = document["findings"].as_array().expect("an array");
        let ids: Vec<_> = findings.iter().map(|it| it["id"].as_str()).collect();
        assert_eq!(ids, [Some(id)], "{document:#}");
        assert_eq!(code, 1);
        for key in ["what", "why", "remedy"] {
            assert_ne!(findings[0][key], "", "{key}");
        }
        assert_ne!(findings[0]["evidence"]["command"], "");
        findings[0].clone()
    }

    /// The fault is the only finding; its remedy, a command, removes it.
    #[track_caller]
    fn is_found_and_cured(&self, id: &str) -> Value {
        let finding = self.finding(id);
        assert_eq!(finding["command"], true, "{finding:#}");
        let remedy = finding["remedy"].as_str().expect("a command");
        let done = self.execute(&["sh", "-ec", remedy], &Value::Null);
        assert_eq!(done.code, 0, "{remedy}: {done:?}");
        self.assert_healthy();
        finding
    }

    /// The same, where `--fix` does it.
    #[track_caller]
    fn is_found_and_fixed(&self, id: &str) {
        let finding = self.finding(id);
        assert_eq!(finding["ours"], true, "{finding:#}");
        let (code, document) = self.examine(&["--fix"]);
        assert_eq!(code, 0, "{document:#}");
        assert_eq!(document["findings"][0]["id"], id);
        assert_eq!(document["findings"][0]["fixed"], true);
        self.assert_healthy();
    }

    /// The name of the pod's interface on the node.
    fn veth(&self) -> String {
        let mut links = self.host().links();
        links.retain(|it| it.starts_with("veth"));
        links.remove(0)
    }
}

#[test]
fn a_healthy_node_has_no_finding() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.assert_healthy();
        let text = node.must(&["doctor", "--text"]);
        assert_eq!(text, "0 errors, 0 warnings\n");
        Node::empty().assert_healthy();
    });
}
