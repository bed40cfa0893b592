//! Pods behind isolated ports of a bridge (`portIsolation`) that is their gateway: they send to each
//! other by way of it.

use sandbox::{BackEnd, FilterNode, NODE, Netns, OUTSIDE, beyond_peer, conf, container_id};
use serde_json::{Value, json};

const WHY: &str = "it isolates ports of the bridge, and forwards what is sent to the gateway";
const TABLE: &str = "nft list table inet podwire_isolation";

fn isolated() -> Value {
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    let keys = json!({"isDefaultGateway": true, "portIsolation": true});
    conf::with(&conf, keys)
}

fn open() -> Value {
    conf::with(&isolated(), json!({"portIsolation": false}))
}

struct Node(FilterNode);

impl Node {
    fn new() -> Self {
        Self(FilterNode::new(BackEnd::Nftables))
    }

    fn host(&self) -> Netns {
        self.0.host()
    }

    fn add(&self, conf: &Value, name: &str) -> (Netns, Value) {
        let pod = self.0.sandbox.pod(name);
        let result = self.0.cni("bridge").add(conf, &pod, "eth0").result();
        // What a hostile pod does: everything goes to the gateway.
        pod.sh("ip route replace 10.1.0.0/24 via 10.1.0.1 dev eth0 onlink
                ip route replace fd01::/64 via fd01::1 dev eth0 onlink
                echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects
                echo 0 >/proc/sys/net/ipv4/conf/eth0/accept_redirects
                echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_redirects");
        (pod, result)
    }

    fn del(&self, conf: &Value, pod: &Netns) {
        self.0.cni("bridge").del(conf, pod, "eth0").silent();
    }

    /// Whether bridged packets pass the rules of IP.
    fn filter_bridged(&self, on: bool) {
        let value = i32::from(on);
        self.host().sh(&format!(
            "cd /proc/sys/net/bridge; for it in bridge-nf-call-ip*tables; do echo {value} >$it; done"
        ));
    }
}

#[track_caller]
fn assert_reached(from: &Netns, to: [&str; 2], reached: bool) {
    for to in to {
        assert_eq!(from.ping(to, 1), [reached], "{} to {to}", from.name());
    }
}

#[test]
fn isolated_pods_do_not_reach_each_other_through_their_gateway() {
    beyond_peer(WHY, || {
        for filter_bridged in [false, true] {
            let node = Node::new();
            let (a, _) = node.add(&isolated(), "a");
            let (b, _) = node.add(&isolated(), "b");
            node.filter_bridged(filter_bridged);
            assert_reached(&a, ["10.1.0.3", "fd01::3"], false);
            assert_reached(&b, ["10.1.0.2", "fd01::2"], false);
            // The gateway and the outside are reached.
            assert_reached(&a, ["10.1.0.1", "fd01::1"], true);
            assert_reached(&a, OUTSIDE, true);
            // Another network of the node is, and a pod whose port is not isolated.
            let other = json!({"name": "other", "bridge": "cni1",
                "ipam": conf::host_local_ipam(&["10.2.0.0/24", "fd02::/64"])});
            let other = conf::with(&isolated(), other);
            let pod = node.0.sandbox.pod("other");
            node.0.cni("bridge").add(&other, &pod, "eth0").result();
            assert_reached(&a, ["10.2.0.2", "fd02::2"], true);
            let (c, _) = node.add(&open(), "c");
            for pod in [&a, &c] {
                pod.sh(
                    "ip route replace 10.1.0.0/24 dev eth0; ip route replace fd01::/64 dev eth0",
                );
            }
            assert_reached(&a, ["10.1.0.4", "fd01::4"], true);
            assert_reached(&c, ["10.1.0.2", "fd01::2"], true);
            assert_reached(&a, ["10.1.0.3", "fd01::3"], false);
        }
    });
}

#[test]
fn a_published_port_is_for_isolated_pods_as_well() {
    let node = Node::new();
    // Otherwise the kernel bridges what it has redirected, from one isolated port to another.
    node.filter_bridged(false);
    let (a, _) = node.add(&isolated(), "a");
    let (b, result) = node.add(&isolated(), "b");
    let mut ports = conf::with_prev(&conf::portmap(8080), &result);
    ports["runtimeConfig"] = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    node.0.cni("portmap").add(&ports, &b, "eth0").result();
    let _server = b.serve(80);
    assert!(a.ask("tcp", NODE[0], 8080).starts_with("b sees"));
    assert!(
        node.0
            .outside
            .ask("tcp", NODE[0], 8080)
            .starts_with("b sees")
    );
}

#[test]
fn the_isolation_is_checked_put_back_and_removed_with_the_network() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let host = node.host();
        let snapshot = node.0.sandbox.snapshot().allow_bridge_network();
        let snapshot = snapshot.allow_link("uplink").allow("nft ");
        let rules = || {
            host.sh(&format!("{TABLE} 2>/dev/null || :"))
                .matches(" drop")
                .count()
        };
        let (a, result) = node.add(&isolated(), "a");
        let (b, _) = node.add(&isolated(), "b");
        assert_eq!(rules(), 2, "one for each subnet");
        let checked = conf::with_prev(&isolated(), &result);
        let check = || node.0.cni("bridge").check(&checked, &a, "eth0");
        // The routes of these pods are not those of the result.
        a.sh(
            "ip route replace 10.1.0.0/24 dev eth0 proto kernel src 10.1.0.2
              ip route replace fd01::/64 dev eth0 proto kernel",
        );
        check().silent();
        host.sh("nft flush chain inet podwire_isolation forward");
        let error = check().error();
        assert!(error.msg.contains("podwire_isolation"), "{}", error.msg);
        // The gateway has another MAC: the next pod's ADD has it right for all.
        let (c, _) = node.add(&isolated(), "c");
        check().silent();
        assert_eq!(rules(), 2);
        for (pod, left) in [(&c, 2), (&b, 2), (&a, 0)] {
            node.del(&isolated(), pod);
            assert_eq!(rules(), left);
        }
        snapshot.assert_unchanged();
        // GC, and the configuration that was changed meanwhile.
        let (a, _) = node.add(&isolated(), "d");
        let (b, _) = node.add(&open(), "e");
        node.0.sandbox.remove_pod(&a);
        let id = container_id(&b);
        let valid = conf::with_valid(&open(), &[(&id, "eth0")]);
        node.0.cni("bridge").gc(&valid).silent();
        assert_eq!(rules(), 0);
        node.del(&open(), &b);
    });
}
