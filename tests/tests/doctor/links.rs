//! Links of pods and their bridge.

use sandbox::{beyond_peer, conf};
use serde_json::{Value, json};

use crate::{Node, WHY, network};

/// A fault that a script on the node makes: `VETH` is the pod's interface there.
fn cured(id: &str, script: &str) {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh(&script.replace("VETH", &node.veth()));
        node.is_found_and_cured(id);
    });
}

#[test]
fn an_interface_that_is_down() {
    cured("PW011", "ip link set VETH down");
    beyond_peer(WHY, || {
        let node = Node::new();
        node.blue.sh("ip link set eth0 down");
        let finding = node.finding("PW011");
        assert_eq!(finding["network"], "net");
    });
}

#[test]
fn an_interface_outside_its_bridge() {
    cured("PW012", "ip link set VETH nomaster");
}

#[test]
fn ends_of_different_sizes() {
    cured("PW013", "ip link set VETH mtu 1400");
    cured("PW013", "ip -n blue link set eth0 mtu 1400");
}

#[test]
fn a_pod_without_its_interface() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let veth = node.veth();
        node.host().sh(&format!("ip link del {veth}"));
        node.is_found_and_fixed("PW010");
    });
}

#[test]
fn a_bridge_whose_address_follows_its_ports() {
    beyond_peer(WHY, || {
        let node = Node::empty();
        node.configure(
            "net",
            &network("net", &[json!({"type": "bridge", "bridge": "cni0"})]),
        );
        // Another program's bridge.
        node.host()
            .sh("ip link add cni0 type bridge; ip link set cni0 up
            ip link add port type veth peer name far; ip link set port master cni0 up");
        node.is_found_and_cured("PW015");
    });
}

#[test]
fn an_address_that_another_host_has() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.blue.sh("ip link add two type veth peer name other
            ip link set other address 02:00:00:00:00:09
            sysctl -qw net.ipv6.conf.two.accept_dad=1 net.ipv6.conf.other.accept_dad=0
            ip link set two up; ip link set other up
            ip addr add fd09::1/64 dev other nodad");
        // On the pod's own interface, so that it is an attachment's.
        let script = "ip netns exec blue sysctl -qw net.ipv6.conf.eth0.accept_dad=1
            ip -n blue addr add fd01::9/64 dev eth0 nodad
            ip addr add fd01::5/64 dev cni0 nodad";
        node.host().sh(script);
        node.assert_healthy();
        node.blue.sh("ip addr add fd01::5/64 dev eth0");
        node.blue.wait_until("duplicate address detection", |pod| {
            pod.sh("ip -6 addr show dev eth0 dadfailed")
                .contains("fd01::5")
        });
        node.finding("PW016");
        node.blue.sh("ip addr del fd01::5/64 dev eth0");
        node.assert_healthy();
    });
}

#[test]
fn an_address_that_the_pod_has_removed() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.blue.sh(
            "ip addr add 10.1.0.99/24 dev eth0; ip addr del 10.1.0.2/24 dev eth0
            ip addr add 10.1.0.99/24 dev eth0 2>/dev/null || :",
        );
        let finding = node.finding("PW018");
        assert_eq!(finding["what"], "10.1.0.2/24 is not on eth0");
        node.is_found_and_cured("PW018");
    });
}

#[test]
fn a_route_of_the_node_that_leads_elsewhere() {
    cured(
        "PW019",
        "ip route add 10.1.0.2/32 dev uplink; ip route del 10.1.0.2/32; ip route del 10.1.0.0/24",
    );
}

#[test]
fn a_tunnel_that_does_not_fit() {
    beyond_peer(WHY, || {
        let node = Node::empty();
        node.sandbox.segment();
        node.host().sh("ip addr add 203.0.113.1/24 dev eth1");
        let list = vxlan();
        node.configure("net", &network("net", &[list]));
        node.must(&["add", "net", &node.blue.path()]);
        node.assert_healthy();
        node.host().sh("ip link set eth1 mtu 1400");
        node.is_found_and_cured("PW014");
        // The address of the device is lost, and comes back.
        node.host().sh("ip addr del 203.0.113.1/24 dev eth1");
        node.finding("PW060");
        node.host().sh("ip addr add 203.0.113.1/24 dev eth1");
        node.assert_healthy();
        // A peer that the kernel has lost.
        node.must(&["peers", "remove", "net", "203.0.113.2"]);
        node.finding("PW061");
        node.must(&["peers", "add", "net", "203.0.113.2,10.5.1.0/24"]);
        node.assert_healthy();
    });
}

fn vxlan() -> Value {
    json!({"type": "vxlan", "vni": 5, "dev": "eth1", "isGateway": true,
        "peers": [{"vtep": "203.0.113.2", "subnet": "10.5.1.0/24"}], "ipam": conf::host_local_ipam(&["10.5.0.0/24"])})
}

#[test]
fn a_pod_is_examined_hop_by_hop() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let (code, document) = node.examine(&[&node.blue.path()]);
        assert_eq!(code, 0, "{document:#}");
        let hops = document["path"].as_array().expect("hops").clone();
        let states: Vec<_> = hops.iter().map(|it| it["state"].as_str()).collect();
        assert!(
            states.iter().all(|it| *it == Some("passes")),
            "{document:#}"
        );
        let whats: Vec<_> = hops
            .iter()
            .map(|it| it["what"].as_str().unwrap_or_default())
            .collect();
        for part in [
            "eth0 10.1.0.2/24",
            "default via 10.1.0.1",
            "port of cni0 10.1.0.1/24",
            "ip_forward = 1",
        ] {
            assert!(
                whats.iter().any(|it| it.contains(part)),
                "{part}: {whats:?}"
            );
        }
        // Each kind of fault stops the packet at its hop.
        for (fault, cure, hop) in [
            (
                "sysctl -qw net.ipv4.ip_forward=0",
                "sysctl -qw net.ipv4.ip_forward=1",
                "ip_forward = 0",
            ),
            (
                "ip route del default",
                "ip route add default via 192.0.2.2",
                "no route",
            ),
            (
                "ip link set cni0 down",
                "ip link set cni0 up",
                "port of cni0",
            ),
        ] {
            node.host().sh(fault);
            let (_, document) = node.examine(&[&node.blue.path()]);
            let hops = document["path"].as_array().expect("hops").clone();
            let dropped = hops.iter().find(|it| it["state"] == "dropped");
            let what = dropped.map(|it| it["what"].to_string()).unwrap_or_default();
            assert!(what.contains(hop), "{fault}: {document:#}");
            node.host().sh(cure);
        }
    });
}

#[test]
fn a_name_that_a_pod_has_chosen_is_no_command() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.blue
            .sh("ip link set eth0 down; ip link set eth0 name '`touch${IFS}x`'");
        node.is_found_and_cured("PW011");
        node.blue.sh("ip link set '`touch${IFS}x`' mtu 1400");
        node.is_found_and_cured("PW013");
    });
}
