//! A node that switches from one suite to the other under running pods.

use sandbox::{BackEnd, Cni, NODE, Netns, OUTSIDE, Suite, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{Node, bridge_of, port, publishing};

/// Both plugins of a list, by one suite.
struct List<'a> {
    node: &'a Node,
    suite: Suite,
    id: String,
    subnets: &'a [&'a str],
}

impl List<'_> {
    fn conf(&self) -> [Value; 2] {
        let bridge = conf::with(
            &bridge_of(self.subnets),
            json!({"ipMasq": true, "ipMasqBackend": self.node.back_end.name()}),
        );
        let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
        [bridge, publishing(&self.node.conf(), &mappings)].map(|conf| conf::at(&conf, "1.0.0"))
    }

    fn cni(&self, kind: &str) -> Cni {
        self.node.cni(kind).suite(self.suite).id(&self.id)
    }

    fn add(&self, pod: &Netns) -> Value {
        let [bridge, ports] = self.conf();
        let result = self.cni("bridge").add(&bridge, pod, "eth0").result();
        self.cni("portmap")
            .add(&conf::with_prev(&ports, &result), pod, "eth0")
            .result()
    }

    fn check(&self, pod: &Netns, result: &Value) {
        let [bridge, ports] = self.conf();
        self.cni("bridge")
            .check(&conf::with_prev(&bridge, result), pod, "eth0")
            .silent();
        let mut check = self.cni("portmap");
        if self.suite.dir() == Suite::Peer.dir() {
            // v1.1 looks for the rules of each family in both tables, its own pods' too: it can
            // only check IPv4, and only where it finds no ip6tables.
            if self.subnets.len() > 1 {
                return;
            }
            let path = self.node.back_end.path(&self.node.sandbox);
            let (programs, _) = path.split_once(':').expect("directories");
            let alone = format!("{programs}/alone");
            let link = format!("mkdir -p {alone}; ln -sf ../iptables {alone}/iptables");
            self.node.host().sh(&link);
            check = check.env("PATH", alone);
        }
        check
            .check(&conf::with_prev(&ports, result), pod, "eth0")
            .silent();
    }

    fn del(&self, pod: &Netns, result: &Value) {
        let [bridge, ports] = self.conf();
        self.cni("portmap")
            .del(&conf::with_prev(&ports, result), pod, "eth0")
            .silent();
        self.cni("bridge")
            .del(&conf::with_prev(&bridge, result), pod, "eth0")
            .silent();
    }
}

const SUBNETS: &[&str] = &["10.1.0.0/24", "fd01::/64"];

#[test]
fn pods_of_one_suite_are_checked_and_deleted_by_the_other() {
    for back_end in BackEnd::IPTABLES {
        for (from, to) in [(Suite::Peer, Suite::Ours), (Suite::Ours, Suite::Peer)] {
            for subnets in [SUBNETS, &SUBNETS[..1]] {
                eprintln!("{from:?} to {to:?}, {subnets:?}");
                switch(&Node::new(back_end), from, to, subnets);
            }
        }
    }
}

fn switch(node: &Node, from: Suite, to: Suite, subnets: &[&str]) {
    let list = |suite: Suite, id: &str| List {
        node,
        suite,
        id: id.to_owned(),
        subnets,
    };
    let pod = node.sandbox.pod("a");
    // What stays for all pods, of either suite: ours also closes 127.0.0.0/8.
    for suite in [from, to] {
        let first = list(suite, "first").add(&pod);
        list(suite, "first").del(&pod, &first);
    }
    let before = node.host().rules();

    let result = list(from, "one").add(&pod);
    let _server = pod.serve(80);
    let _outside = node.outside.serve(80);
    list(to, "one").check(&pod, &result);
    // A pod of the other suite comes and goes beside it.
    let beside = node.sandbox.pod("beside");
    let mut other = list(to, "beside");
    other.subnets = &["10.1.0.0/24"];
    let ports = [port(9090, 80, "tcp")];
    let [bridge, conf] = other.conf();
    let beside_result = other.cni("bridge").add(&bridge, &beside, "eth0").result();
    let conf = conf::with_prev(&publishing(&conf, &ports), &beside_result);
    other.cni("portmap").add(&conf, &beside, "eth0").result();
    other.cni("portmap").del(&conf, &beside, "eth0").silent();
    other.cni("bridge").del(&bridge, &beside, "eth0").silent();

    assert_eq!(node.outside.ask("tcp", NODE[0], 8080), "a sees 192.0.2.9");
    assert_eq!(pod.ask("tcp", OUTSIDE[0], 80), "outside sees 192.0.2.1");
    list(to, "one").check(&pod, &result);
    list(to, "one").del(&pod, &result);
    if subnets.len() > 1 {
        return node.assert_rules(&before);
    }
    // The peer looks into ip6tables as well, whose nft variant then makes its table.
    let rules = node.host().rules();
    let left: Vec<&str> = rules.lines().filter(|line| line.contains("one")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn pods_of_the_go_plugins_are_deleted_by_ours_whatever_the_back_end() {
    for back_end in BackEnd::IPTABLES {
        for netns in [true, false] {
            let node = Node::new(back_end);
            let list = |suite: Suite| List {
                node: &node,
                suite,
                id: "one".to_owned(),
                subnets: SUBNETS,
            };
            let pod = node.sandbox.pod("a");
            let result = list(Suite::Peer).add(&pod);
            // The new suite's configuration forces nothing, and so chooses nftables.
            let [bridge, ports] = list(Suite::Ours).conf();
            let bridge = conf::with(&bridge, json!({"ipMasqBackend": null}));
            let ports = conf::with(&ports, json!({"backend": null}));
            beyond_peer("one back end at a time", || {
                let cni = |kind: &str| list(Suite::Ours).cni(kind);
                cni("bridge")
                    .check(&conf::with_prev(&bridge, &result), &pod, "eth0")
                    .silent();
                cni("portmap")
                    .check(&conf::with_prev(&ports, &result), &pod, "eth0")
                    .silent();
                let path = if netns { pod.path() } else { String::new() };
                if !netns {
                    node.sandbox.remove_pod(&pod);
                }
                let bare = conf::with(&ports, json!({"runtimeConfig": null}));
                cni("portmap")
                    .netns(&path)
                    .del(&bare, &pod, "eth0")
                    .silent();
                cni("bridge")
                    .netns(&path)
                    .del(&bridge, &pod, "eth0")
                    .silent();
                let rules = node.host().rules();
                for trace in ["\\\"one\\\"", "10.1.0.2", "fd01::2", "CNI-DN-"] {
                    assert!(!rules.contains(trace), "{back_end:?}: {trace} in {rules}");
                }
            });
        }
    }
}
