//! How long a subnet of a network is masqueraded: from the first pod that needs it to the last,
//! whatever the configuration says meanwhile and whatever of our own notes is lost.

use std::ops::Deref;

use sandbox::{
    BackEnd, FilterNode, NODE, Netns, OUTSIDE, Snapshot, Suite, beyond_peer, conf, container_id,
};
use serde_json::{Value, json};

const WHY: &str = "its rules are each pod's own, in iptables, and it has no GC";

/// A node whose pods are masqueraded in nf_tables.
struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

/// A network on one IPv4 and one IPv6 subnet: `10.1.<number>.0/24` and `fd01:<number>::/64`.
fn network(number: u8) -> Value {
    let subnets = [format!("10.1.{number}.0/24"), format!("fd01:{number}::/64")];
    let conf = conf::bridge(&[&subnets[0], &subnets[1]]);
    let keys = json!({"isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables"});
    conf::with(&conf, keys)
}

/// The same network after its subnets were changed.
fn moved(number: u8) -> Value {
    conf::with(&network(number), json!({"forceAddress": true}))
}

fn plain(conf: &Value) -> Value {
    conf::with(conf, json!({"ipMasq": false}))
}

impl Node {
    fn new() -> Self {
        Self(FilterNode::new(BackEnd::Nftables))
    }

    fn add(&self, conf: &Value, name: &str) -> Netns {
        let pod = self.sandbox.pod(name);
        self.cni("bridge").add(conf, &pod, "eth0").result();
        pod
    }

    fn del(&self, conf: &Value, pod: &Netns) {
        self.cni("bridge").del(conf, pod, "eth0").silent();
    }

    fn gc(&self, conf: &Value, valid: &[&Netns]) {
        let ids: Vec<_> = valid.iter().map(|pod| container_id(pod)).collect();
        let valid: Vec<_> = ids.iter().map(|id| (id.as_str(), "eth0")).collect();
        self.cni("bridge")
            .gc(&conf::with_valid(conf, &valid))
            .silent();
    }

    /// The subnets that are masqueraded for whole networks, IPv4 first.
    fn subnets(&self) -> Vec<String> {
        let rules = self
            .host()
            .sh("nft list table inet cni_plugins_masquerade 2>/dev/null || :");
        let sources = rules.lines().filter_map(|line| {
            let (_, rest) = line.split_once(" saddr ")?;
            rest.split(' ').next().map(str::to_owned)
        });
        let mut sources: Vec<_> = sources.collect();
        sources.sort();
        sources
    }

    #[track_caller]
    fn assert_subnets(&self, numbers: &[u8]) {
        let v4 = numbers.iter().map(|it| format!("10.1.{it}.0/24"));
        let v6 = numbers.iter().map(|it| match it {
            // As the kernel writes it.
            0 => "fd01::/64".to_owned(),
            it => format!("fd01:{it}::/64"),
        });
        let mut expected: Vec<_> = v4.chain(v6).collect();
        expected.sort();
        assert_eq!(self.subnets(), expected);
    }

    /// Asserts what a server outside sees of the pod: the node, or the pod itself.
    #[track_caller]
    fn assert_seen(&self, pod: &Netns, as_node: bool) {
        let _server = self.outside.serve(80);
        for (to, node) in OUTSIDE.into_iter().zip(NODE) {
            let answer = pod.ask("tcp", to, 80);
            let seen = format!("outside sees {node}");
            assert_eq!(answer == seen, as_node, "{} of {}", answer, pod.name());
            assert!(answer.starts_with("outside sees "), "{answer}");
        }
    }

    /// What all networks leave; nothing of them is in `/run`.
    fn snapshot(&self) -> Snapshot {
        let snapshot = self.sandbox.snapshot().allow_bridge_network();
        snapshot
            .allow("nft ")
            .allow(" /run/mount ")
            .allow_link("uplink")
    }

    /// As after a boot of `/run` alone, or under pods of a release that wrote nothing there.
    fn lose_notes(&self) {
        self.sandbox.host().sh("rm -rf /run/podwire");
    }
}

#[test]
fn the_rule_goes_with_the_last_pod_and_leaves_nothing() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.snapshot();
        let conf = network(0);
        let pods = ["a", "b", "c"].map(|name| node.add(&conf, name));
        node.assert_subnets(&[0]);
        for pod in &pods[1..] {
            node.del(&conf, pod);
            node.assert_subnets(&[0]);
            node.assert_seen(&pods[0], true);
        }
        node.sandbox.remove_pod(&pods[0]);
        node.cni("bridge")
            .netns("")
            .del(&conf, &pods[0], "eth0")
            .silent();
        node.assert_subnets(&[]);
        node.del(&conf, &pods[0]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn two_subnets_of_a_network_are_masqueraded_until_the_last_pod_of_each_goes() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let old = node.add(&network(0), "old");
        let new = node.add(&moved(5), "new");
        node.assert_subnets(&[0, 5]);
        // The gateway of the old pods is gone with forceAddress; an administrator helps them.
        node.host()
            .sh("ip addr add 10.1.0.1/24 dev cni0; ip addr add fd01:0::1/64 dev cni0 nodad || :");
        node.assert_seen(&old, true);
        node.assert_seen(&new, true);
        node.gc(&moved(5), &[&old, &new]);
        node.assert_subnets(&[0, 5]);
        node.del(&moved(5), &old);
        node.assert_subnets(&[5]);
        node.assert_seen(&new, true);
        node.del(&moved(5), &new);
        node.assert_subnets(&[]);
    });
}

#[test]
fn a_network_on_the_subnet_of_a_removed_one_is_not_masqueraded() {
    let node = Node::new();
    let pod = node.add(&network(0), "a");
    node.del(&network(0), &pod);
    let other = conf::with(&plain(&network(0)), json!({"name": "other"}));
    let pod = node.add(&other, "b");
    node.assert_seen(&pod, false);
}

#[test]
fn forty_networks_that_come_and_go_leave_no_rule_without_gc() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node
            .snapshot()
            .allow("/var/lib/cni/networks")
            .allow_link("br0");
        for number in 0..40 {
            let name =
                json!({"name": format!("net{number}"), "bridge": "br0", "forceAddress": true});
            let conf = conf::with(&network(number), name);
            let pod = node.add(&conf, &format!("p{number}"));
            node.assert_subnets(&[number]);
            node.del(&conf, &pod);
        }
        node.assert_subnets(&[]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn pods_without_masquerade_do_not_keep_the_rule_of_those_that_had_it() {
    beyond_peer(WHY, || {
        for by_gc in [false, true] {
            let node = Node::new();
            let with = node.add(&network(0), "with");
            let without = node.add(&plain(&network(0)), "without");
            if by_gc {
                node.sandbox.remove_pod(&with);
                node.gc(&plain(&network(0)), &[&without]);
            } else {
                node.del(&plain(&network(0)), &with)
            }
            node.assert_subnets(&[]);
            node.assert_seen(&without, false);
            node.del(&plain(&network(0)), &without);
        }
    });
}

#[test]
fn del_removes_chains_of_iptables_though_the_configuration_masquerades_no_more() {
    beyond_peer("it looks at what the configuration says now", || {
        FilterNode::each(&BackEnd::IPTABLES, |node| {
            let node = Node(node);
            let conf = conf::with(&network(0), json!({"ipMasqBackend": "iptables"}));
            let first = node.add(&conf, "first");
            let second = node.add(&conf, "second");
            node.del(&plain(&conf), &first);
            let rules = node.rules();
            assert!(
                !rules.contains("id-first") && rules.contains("id-second"),
                "{rules}"
            );
            node.assert_seen(&second, true);
            node.lose_notes();
            node.gc(&plain(&conf), &[]);
            let rules = node.rules();
            assert!(!rules.contains("CNI-"), "{rules}");
        });
    });
}

#[test]
fn a_subnet_that_the_network_has_no_more_is_dropped_by_add_and_by_gc() {
    beyond_peer(WHY, || {
        for by_gc in [false, true] {
            let node = Node::new();
            let old = node.add(&network(0), "old");
            // Its DEL was never called, or killed.
            node.sandbox.remove_pod(&old);
            node.host().wait_until("its veth is gone", |host| {
                !host.sh("ip link show type veth").contains("master cni0")
            });
            if by_gc {
                let new = node.add(&moved(5), "new");
                node.gc(&moved(5), &[&new]);
            } else {
                node.lose_notes();
                node.add(&moved(5), "new");
            }
            node.assert_subnets(&[5]);
        }
    });
}

#[test]
fn what_is_not_known_is_in_use() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let conf = network(0);
        let [a, b, c] = ["a", "b", "c"].map(|name| node.add(&conf, name));
        node.lose_notes();
        // Neither DEL of an unknown pod, nor that of a known one, nor GC.
        node.del(&conf, &a);
        node.assert_seen(&b, true);
        let d = node.add(&conf, "d");
        node.del(&conf, &d);
        node.assert_seen(&b, true);
        node.gc(&conf, &[&b, &c]);
        node.assert_seen(&b, true);
        // Nor a pod of the subnet that the network has by now.
        let e = node.add(&moved(5), "e");
        node.assert_subnets(&[0, 5]);
        node.del(&moved(5), &b);
        node.assert_subnets(&[0, 5]);
        node.del(&moved(5), &c);
        node.del(&moved(5), &e);
        node.assert_subnets(&[]);
    });
}

#[test]
fn a_pod_of_the_go_plugins_may_use_the_rule() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let conf = network(0);
        let ours = node.add(&conf, "ours");
        let theirs = node.sandbox.pod("theirs");
        let go = plain(&conf::at(&conf, "1.0.0"));
        let result = node
            .cni("bridge")
            .suite(Suite::Peer)
            .add(&go, &theirs, "eth0")
            .result();
        node.del(&conf, &ours);
        node.assert_seen(&theirs, true);
        node.del(&conf::with_prev(&conf, &result), &theirs);
        node.assert_subnets(&[]);
    });
}

#[test]
fn nodes_that_share_a_run_directory_do_not_count_each_others_pods() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let conf = network(0);
        let here = node.add(&conf, "here");
        let second_node = node.sandbox.pod("node2");
        let pod = node.sandbox.pod("there");
        let enter = format!("--net={}", second_node.path());
        let there = || node.cni("bridge").under(&["nsenter", &enter]);
        there().add(&conf, &pod, "eth0").result();
        let rules = || second_node.sh("nft list table inet cni_plugins_masquerade");
        assert!(rules().contains("10.1.0.0/24"));
        node.del(&conf, &here);
        node.assert_subnets(&[]);
        assert!(rules().contains("10.1.0.0/24"));
        there().del(&conf, &pod, "eth0").silent();
        assert!(!rules().contains("10.1.0.0/24"));
    });
}

#[test]
fn a_run_directory_that_cannot_be_written_costs_no_pod_its_life() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let conf = network(0);
        let read_only = r#"mount --rbind /run /run; mount -o remount,bind,ro /run; exec "$@""#;
        let cni = || {
            node.cni("bridge")
                .under(&["unshare", "--mount", "sh", "-ec", read_only, "sh"])
        };
        let [a, b] = ["a", "b"].map(|name| node.sandbox.pod(name));
        for pod in [&a, &b] {
            cni().add(&conf, pod, "eth0").result();
        }
        cni().del(&conf, &a, "eth0").silent();
        node.assert_seen(&b, true);
        cni().del(&conf, &b, "eth0").silent();
        node.gc(&conf, &[]);
        node.assert_subnets(&[]);
    });
}

#[test]
fn something_else_in_the_place_of_a_note_holds_nothing_up() {
    beyond_peer(WHY, || {
        for planted in [
            "ln -s /etc /run/podwire",
            "mkfifo /run/podwire",
            "mkdir /run/podwire; echo text >/run/podwire/shared",
            "mkdir -p /run/elsewhere; ln -s /run/elsewhere /run/podwire",
        ] {
            let node = Node::new();
            let conf = network(0);
            node.host().sh(planted);
            let [a, b] = ["a", "b"].map(|name| node.add(&conf, name));
            node.del(&conf, &a);
            node.assert_seen(&b, true);
            node.del(&conf, &b);
            node.gc(&conf, &[]);
            node.assert_subnets(&[]);
            assert_eq!(
                node.host().sh("ls -A /run/elsewhere 2>/dev/null || :"),
                "",
                "{planted}"
            );
        }
    });
}

#[test]
fn a_pod_that_comes_while_the_last_one_goes_is_masqueraded() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let conf = network(0);
        let mut last = node.add(&conf, "p0");
        for round in 1..40 {
            let next = node.sandbox.pod(&format!("p{round}"));
            std::thread::scope(|scope| {
                let add = scope.spawn(|| {
                    node.cni("bridge").add(&conf, &next, "eth0").result();
                    // As ADD returns.
                    node.subnets()
                });
                node.del(&conf, &last);
                let seen = add.join().expect("the ADD");
                assert_eq!(seen.len(), 2, "round {round}: {seen:?}");
            });
            node.assert_subnets(&[0]);
            last = next;
        }
        node.del(&conf, &last);
        node.assert_subnets(&[]);
    });
}
