//! `nft list ruleset >file; nft -f file`, as administrators and their scripts do: everything that
//! podwire writes can be saved and loaded, and works afterwards.

use std::ops::Deref;

use sandbox::{BackEnd, FilterNode, NODE, Netns, OUTSIDE, beyond_peer, conf};
use serde_json::{Value, json};

const WHY: &str = "its rules are in iptables";

struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

/// One plugin of a pod, with the arguments of its ADD.
struct Attached {
    kind: &'static str,
    conf: Value,
    pod: Netns,
    ifname: &'static str,
}

fn bridge() -> Value {
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    let keys = json!({
        "isDefaultGateway": true, "hairpinMode": true, "ipMasq": true, "macspoofchk": true,
        "portIsolation": true,
    });
    conf::with(&conf, keys)
}

/// A network of two hosts, whose packets come by the uplink.
fn overlay(vni: u8) -> Value {
    let conf = conf::vxlan(&[&format!("10.{vni}.0.0/24"), &format!("fd0{vni}::/64")]);
    let peer = json!({
        "vtep": OUTSIDE[0], "subnet": [format!("10.{vni}.1.0/24"), format!("fd0{vni}:1::/64")],
    });
    let peer = match peer["subnet"].as_array() {
        // One subnet for each entry.
        Some(subnets) => subnets
            .iter()
            .map(|it| json!({"vtep": OUTSIDE[0], "subnet": it}))
            .collect::<Vec<_>>(),
        None => Vec::new(),
    };
    let keys = json!({
        "name": format!("net{vni}"), "vni": vni, "dev": "uplink", "ipMasq": true,
        "macspoofchk": true, "peers": peer,
    });
    conf::with(&conf, keys)
}

impl Node {
    fn new() -> Self {
        Self(FilterNode::new(BackEnd::Nftables))
    }

    /// ADD, whose result goes into `all`, for CHECK and DEL.
    fn add(
        &self,
        kind: &'static str,
        conf: &Value,
        pod: &Netns,
        ifname: &'static str,
        all: &mut Vec<Attached>,
    ) -> Value {
        let result = self.cni(kind).add(conf, pod, ifname).result();
        all.push(Attached {
            kind,
            conf: conf::with_prev(conf, &result),
            pod: pod.clone(),
            ifname,
        });
        result
    }

    /// Pods with everything that is written to nf_tables.
    fn everything(&self) -> Vec<Attached> {
        let mut all = Vec::new();
        let a = self.sandbox.pod("a");
        let b = self.sandbox.pod("b");
        let result = self.add("bridge", &bridge(), &a, "eth0", &mut all);
        self.add("bridge", &bridge(), &b, "eth0", &mut all);
        // With a name that nft would not take for one.
        self.add("bridge", &bridge(), &b, "net-1;\"$x", &mut all);
        let alone = json!({
            "bridge": "br1", "ipMasq": true,
            "ipam": {"type": "static", "addresses": [{"address": "10.1.0.77/32"}]},
        });
        let alone = conf::with(&conf::bridge_l2(), alone);
        self.add("bridge", &alone, &a, "net\"2", &mut all);
        let mut ports = conf::with_prev(&conf::portmap(8080), &result);
        ports["runtimeConfig"] = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
            {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": NODE[0]},
            {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": NODE[1]},
        ]});
        self.add("portmap", &ports, &a, "eth0", &mut all);
        for vni in [5, 6] {
            let pod = self.sandbox.pod(&format!("v{vni}"));
            self.add("vxlan", &overlay(vni), &pod, "eth0", &mut all);
        }
        all
    }

    /// Saves the rules, flushes them and loads them again.
    fn reload(&self) {
        let host = self.host();
        // The kernel lists the elements of a set in any order, and nft puts them into one list.
        let list = || {
            let rules = host.sh("nft -s list ruleset").replace("elements = {", "");
            let mut words: Vec<_> = rules
                .lines()
                .map(|line| line.trim().trim_end_matches([',', '}', ' ']).to_owned())
                .collect();
            words.sort();
            words.retain(|line| !line.is_empty());
            words
        };
        let before = list();
        let file = self.sandbox.dir().join("rules").display().to_string();
        host.sh(&format!("nft list ruleset >{file}; nft flush ruleset"));
        assert_eq!(list(), [""; 0]);
        let loaded = host.run(&["nft", "-f", &file]);
        assert_eq!(loaded.code, 0, "{}", loaded.stderr);
        assert_eq!(list(), before);
    }
}

fn assert_works(node: &Node, all: &[Attached]) {
    let (a, b) = (&all[0].pod, &all[1].pod);
    let _server = node.outside.serve(80);
    let _published = a.serve(80);
    for (to, seen) in OUTSIDE.into_iter().zip(NODE) {
        assert_eq!(b.ask("tcp", to, 80), format!("outside sees {seen}"));
    }
    for (to, port) in [(NODE[0], 8080), (NODE[0], 9090), (NODE[1], 9090)] {
        let answer = node.outside.ask("tcp", to, port);
        assert!(answer.starts_with("a sees"), "{to} {port}: {answer}");
    }
    assert!(node.outside.ask("udp", NODE[0], 8080).starts_with("a sees"));
    // Another MAC is not heard.
    let own = b.link("eth0").expect("eth0")["address"]
        .as_str()
        .expect("a MAC")
        .to_owned();
    b.sh("ip link set eth0 address 02:00:00:00:00:66; ip neigh flush all");
    assert_eq!(b.ping("10.1.0.1", 1), [false]);
    b.sh(&format!(
        "ip link set eth0 address {own}; ip neigh flush all"
    ));
    assert_eq!(b.ping("10.1.0.1", 1), [true]);
    // Two networks of VXLAN are apart.
    let [five, six] = [5, 6].map(|vni| node.sandbox.pod(&format!("w{vni}")));
    for (vni, pod) in [(5, &five), (6, &six)] {
        node.cni("vxlan").add(&overlay(vni), pod, "eth0").result();
    }
    assert_eq!(five.ping("10.5.0.2", 1), [true]);
    assert_eq!(five.ping("10.6.0.2", 1), [false]);
    assert_eq!(six.ping("fd05::2", 1), [false]);
    for (vni, pod) in [(5, &five), (6, &six)] {
        node.cni("vxlan").del(&overlay(vni), pod, "eth0").silent();
        node.sandbox.remove_pod(pod);
    }
}

fn check_all(node: &Node, all: &[Attached]) {
    for it in all {
        node.cni(it.kind)
            .check(&it.conf, &it.pod, it.ifname)
            .silent();
    }
}

#[test]
fn everything_that_is_written_can_be_saved_and_loaded() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let all = node.everything();
        assert_works(&node, &all);
        node.reload();
        check_all(&node, &all);
        assert_works(&node, &all);
        // Nor does anything that is written afterwards make a difference.
        node.reload();
        for it in all.iter().rev() {
            node.cni(it.kind).del(&it.conf, &it.pod, it.ifname).silent();
        }
        // What keeps the networks of VXLAN apart stays as long as their devices do.
        let rules = node.host().sh("nft list ruleset");
        for named in ["10.1.0.", "fd01:", "10.5.0.", "macspoofchk", "8080", "9090"] {
            assert!(!rules.contains(named), "{named}: {rules}");
        }
        node.reload();
    });
}
