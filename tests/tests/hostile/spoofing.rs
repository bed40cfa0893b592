//! Whose frames and packets are whose: names that read the same joined together, and addresses that
//! a pod gives itself.

use sandbox::{BackEnd, FilterNode, NODE, Netns, OUTSIDE, Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

// ---- the MAC spoof check

fn checked() -> Value {
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    conf::with(&conf, json!({"macspoofchk": true}))
}

/// A port of a pod whose frames are looked at.
struct Port {
    pod: Netns,
    id: &'static str,
    ifname: &'static str,
}

impl Port {
    fn add(sandbox: &Sandbox, name: &str, id: &'static str, ifname: &'static str) -> Self {
        let pod = sandbox.pod(name);
        let result = sandbox
            .cni("bridge")
            .id(id)
            .add(&checked(), &pod, ifname)
            .result();
        let port = Self { pod, id, ifname };
        let checked = conf::with_prev(&checked(), &result);
        let cni = sandbox.cni("bridge").id(id);
        beyond_peer_quietly(|| {
            cni.check(&checked, &port.pod, ifname).silent();
        });
        port
    }

    fn del(&self, sandbox: &Sandbox) {
        let cni = sandbox.cni("bridge").id(self.id);
        cni.del(&checked(), &self.pod, self.ifname).silent();
    }

    /// Whether it is heard under a MAC that is not its own.
    #[track_caller]
    fn assert_checked(&self) {
        let name = self.ifname;
        let link = self.pod.link(name).expect("the interface");
        let own = link["address"].as_str().expect("a MAC").to_owned();
        assert_eq!(self.pod.ping("10.1.0.1", 1), [true], "under its own MAC");
        self.pod.sh(&format!(
            "ip link set {name} address 02:00:00:00:00:66; ip neigh flush all"
        ));
        assert_eq!(self.pod.ping("10.1.0.1", 1), [false], "under another MAC");
        self.pod.sh(&format!(
            "ip link set {name} address {own}; ip neigh flush all"
        ));
    }
}

/// Not in the peer's way: its CHECK is not what these tests are about.
fn beyond_peer_quietly(body: impl FnOnce()) {
    if !sandbox::testing_the_peer() {
        body();
    }
}

fn bridge_rules(sandbox: &Sandbox) -> String {
    sandbox.host().sh("nft -s list ruleset bridge")
}

#[test]
fn owners_whose_joined_names_are_equal_are_checked_each_for_itself() {
    beyond_peer("they share chains and comment", || {
        for [one, other] in [
            [("x", "a-eth0"), ("x-a", "eth0")],
            [("x-a", "eth0"), ("x", "a-eth0")],
            // The second chain of the one, and the first of the other.
            [("x-a", "eth0"), ("x-a-eth0", "mac")],
            [("x", "eth0"), ("x", "eth0-mac")],
        ] {
            let sandbox = Sandbox::new();
            let first = Port::add(&sandbox, "first", "first", "eth0");
            first.del(&sandbox);
            let before = bridge_rules(&sandbox);
            let one = Port::add(&sandbox, "one", one.0, one.1);
            let other = Port::add(&sandbox, "other", other.0, other.1);
            one.assert_checked();
            other.assert_checked();
            other.del(&sandbox);
            one.assert_checked();
            // GC knows them as well.
            let valid = conf::with_valid(&checked(), &[(one.id, one.ifname)]);
            sandbox.cni("bridge").gc(&valid).silent();
            one.assert_checked();
            let again = Port::add(&sandbox, "again", other.id, other.ifname);
            sandbox.remove_pod(&one.pod);
            let valid = conf::with_valid(&checked(), &[(again.id, again.ifname)]);
            sandbox.cni("bridge").gc(&valid).silent();
            again.assert_checked();
            again.del(&sandbox);
            assert_eq!(bridge_rules(&sandbox), before);
        }
    });
}

#[test]
fn containers_whose_ids_begin_alike_for_long_are_checked_each_for_itself() {
    let sandbox = Sandbox::new();
    let ids =
        ["y", "z"].map(|end| &*Box::leak(format!("{}{end}", "x".repeat(140)).into_boxed_str()));
    let one = Port::add(&sandbox, "one", ids[0], "eth0");
    let other = Port::add(&sandbox, "other", ids[1], "eth0");
    one.assert_checked();
    other.assert_checked();
    other.del(&sandbox);
    one.assert_checked();
    one.del(&sandbox);
    assert!(
        !bridge_rules(&sandbox).contains("macspoofchk"),
        "{}",
        bridge_rules(&sandbox)
    );
}

#[test]
fn a_del_on_another_network_leaves_the_check_of_this_one() {
    let sandbox = Sandbox::new();
    let port = Port::add(&sandbox, "a", "x", "eth0");
    let other = conf::with(&checked(), json!({"name": "other", "bridge": "cni1"}));
    // As after an ADD that failed because the pod has such an interface.
    let failed = sandbox.cni("bridge").id("x").add(&other, &port.pod, "eth0");
    assert_ne!(failed.code(), 0);
    sandbox
        .cni("bridge")
        .id("x")
        .netns("")
        .del(&other, &port.pod, "eth0")
        .silent();
    port.assert_checked();
    port.del(&sandbox);
    assert!(!bridge_rules(&sandbox).contains("macspoofchk"));
}

// ---- masquerade of iptables

fn masqueraded(network: &str, number: u8) -> Value {
    let subnets = [format!("10.1.{number}.0/24"), format!("fd01:{number}::/64")];
    let conf = conf::bridge(&[&subnets[0], &subnets[1]]);
    let keys = json!({
        "name": network, "bridge": format!("br{number}"), "isDefaultGateway": true,
        "ipMasq": true, "ipMasqBackend": "iptables",
    });
    conf::with(&conf, keys)
}

#[track_caller]
fn assert_masqueraded(node: &FilterNode, pod: &Netns) {
    let _server = node.outside.serve(80);
    for (to, seen) in OUTSIDE.into_iter().zip(NODE) {
        let answer = pod.ask("tcp", to, 80);
        assert_eq!(
            answer,
            format!("outside sees {seen}"),
            "{:?}",
            node.back_end
        );
    }
}

#[test]
fn networks_and_containers_whose_joined_names_are_equal_keep_their_masquerade() {
    beyond_peer("they share a chain, and the first DEL deletes it", || {
        FilterNode::each(&BackEnd::IPTABLES, |node| {
            for by_gc in [false, true] {
                let (one, other) = (masqueraded("net", 1), masqueraded("net1", 2));
                let pods = [("a", &one, "1x"), ("b", &other, "x")].map(|(name, conf, id)| {
                    let pod = node.sandbox.pod(name);
                    let result = node.cni("bridge").id(id).add(conf, &pod, "eth0").result();
                    (pod, conf, id, result)
                });
                for (pod, conf, id, result) in &pods {
                    assert_masqueraded(&node, pod);
                    let checked = conf::with_prev(conf, result);
                    node.cni("bridge")
                        .id(id)
                        .check(&checked, pod, "eth0")
                        .silent();
                }
                let [(a, ..), (b, ..)] = &pods;
                node.host().sh("rm -rf /run/podwire");
                if by_gc {
                    node.cni("bridge").gc(&conf::with_valid(&one, &[])).silent();
                } else {
                    node.cni("bridge").id("1x").del(&one, a, "eth0").silent();
                }
                assert_masqueraded(&node, b);
                node.cni("bridge").id("1x").del(&one, a, "eth0").silent();
                node.cni("bridge").id("x").del(&other, b, "eth0").silent();
                let rules = node.rules();
                assert!(!rules.contains("CNI-"), "{:?}: {rules}", node.back_end);
                node.sandbox.remove_pod(a);
                node.sandbox.remove_pod(b);
            }
        });
    });
}

#[test]
fn a_pod_that_changes_its_addresses_leaves_no_masquerade() {
    beyond_peer(
        "the addresses that the pod shows are taken for its own",
        || {
            FilterNode::each(&BackEnd::IPTABLES, |node| {
                for knows in ["the result", "a note", "nothing"] {
                    let conf = masqueraded("net", 1);
                    let pod = node.sandbox.pod("a");
                    let result = node.cni("bridge").add(&conf, &pod, "eth0").result();
                    pod.sh("ip addr flush dev eth0; ip addr add 10.1.1.99/24 dev eth0
                    ip addr add fd01:1::99/64 dev eth0 nodad");
                    if knows == "nothing" {
                        node.host().sh("rm -rf /run/podwire");
                    }
                    let conf = match knows {
                        "the result" => conf::with_prev(&conf, &result),
                        _ => conf,
                    };
                    node.cni("bridge").del(&conf, &pod, "eth0").silent();
                    let rules = node.rules();
                    assert!(
                        !rules.contains("CNI-"),
                        "{knows}, {:?}: {rules}",
                        node.back_end
                    );
                    node.sandbox.remove_pod(&pod);
                }
            });
        },
    );
}

#[test]
fn a_pod_cannot_have_another_interface_lose_its_masquerade() {
    beyond_peer(
        "the addresses that the pod shows are taken for its own",
        || {
            FilterNode::each(&BackEnd::IPTABLES, |node| {
                for knows in ["the result", "a note"] {
                    let conf = masqueraded("net", 1);
                    let pod = node.sandbox.pod("a");
                    let result = node.cni("bridge").add(&conf, &pod, "eth0").result();
                    let plain = conf::with(&conf, json!({"isDefaultGateway": false}));
                    node.cni("bridge").add(&plain, &pod, "net1").result();
                    // eth0 pretends to have the addresses of net1.
                    pod.sh("ip addr flush dev eth0; ip addr add 10.1.1.3/32 dev eth0
                    ip addr add fd01:1::3/128 dev eth0 nodad");
                    let conf = match knows {
                        "the result" => conf::with_prev(&conf, &result),
                        _ => conf,
                    };
                    node.cni("bridge").del(&conf, &pod, "eth0").silent();
                    pod.sh("ip route add default via 10.1.1.1; ip route add default via fd01:1::1");
                    assert_masqueraded(&node, &pod);
                    node.cni("bridge").del(&plain, &pod, "net1").silent();
                    let rules = node.rules();
                    assert!(
                        !rules.contains("CNI-"),
                        "{knows}, {:?}: {rules}",
                        node.back_end
                    );
                    node.sandbox.remove_pod(&pod);
                }
            });
        },
    );
}
