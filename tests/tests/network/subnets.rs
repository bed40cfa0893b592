//! Which subnet a network gets.

use std::collections::BTreeSet;

use sandbox::beyond_peer;
use serde_json::json;

use crate::WHY;
use crate::node::{Node, bad, good};

const SUBNETS: &str = "{{range .IPAM.Config}}{{.Subnet}} {{end}}";

/// Nothing but the configuration keeps them from a container of macvlan.
#[test]
fn what_is_on_the_segment_keeps_its_address() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip link add up0 type veth peer name up1
             ip addr add 192.0.2.2/24 dev up0; ip link set up0 up; ip link set up1 up
             ip route add default via 192.0.2.3");
        node.create(&[
            "-d",
            "macvlan",
            "--parent",
            "up0",
            "--subnet",
            "192.0.2.0/24",
            "n",
        ]);
        let config = &node.inspect("n")["IPAM"]["Config"][0];
        assert_eq!(config["Gateway"], "192.0.2.1");
        let reserved = json!({"node": "192.0.2.2", "router": "192.0.2.3"});
        assert_eq!(config["AuxiliaryAddresses"], reserved);
        let pod = node.sandbox.pod("blue");
        good(&node.podwire(&["add", "n", &pod.path()]));
        assert_eq!(pod.addresses("eth0"), ["192.0.2.4/24"]);
        good(&node.podwire(&["del", "n", &pod.path()]));
    });
}

#[test]
fn the_nodes_routes_are_avoided() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip link add lan type bridge; ip link set lan up; ip address add 10.208.0.1/25 dev lan
            ip route add 10.208.2.0/23 via 10.208.0.9; ip route add 10.208.4.7/32 via 10.208.0.9 table 77");
        node.create(&["one"]);
        node.create(&["two"]);
        assert_eq!(node.template(SUBNETS, "one").trim(), "10.208.1.0/24");
        assert_eq!(node.template(SUBNETS, "two").trim(), "10.208.5.0/24");
        bad(
            &node.network(&["create", "--subnet", "10.208.0.0/24", "n"]),
            "10.208.0.0/24 overlaps with 10.208.0.0/25, which is on this node's interface lan",
        );
        // A longer path is no fault of the network, but it is reported.
        let done = node.network(&["create", "--subnet", "10.208.2.0/24", "n"]);
        assert!(
            done.code == 0 && done.stderr.contains("warning: 10.208.2.0/24 overlaps with"),
            "{done:?}"
        );
        // A segment of the node is what macvlan is for; the own bridge is no obstacle.
        good(&node.network(&[
            "create",
            "-d",
            "macvlan",
            "--parent",
            "lan",
            "--subnet",
            "10.208.0.0/25",
            "--gateway",
            "10.208.0.9",
            "m",
        ]));
        let list = node.json("net.d/zz-podwire-m.conflist");
        assert_eq!(list["plugins"][0]["master"], "lan");
        assert_eq!(list["plugins"].as_array().map(Vec::len), Some(1));
        node.host().sh("ip route add 10.208.0.0/12 via 10.208.0.9");
        bad(
            &node.network(&["create", "last"]),
            "fully subnetted: 10.208.0.0/12 overlaps with",
        );
    });
}

#[test]
fn a_bridge_of_the_node_can_be_the_networks() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh(
            "ip link add own type bridge; ip link set own up; ip address add 10.9.0.1/24 dev own",
        );
        let own = "com.docker.network.bridge.name=own";
        node.create(&["--subnet", "10.9.0.0/24", "-o", own, "n"]);
        bad(
            &node.network(&["create", "-o", own, "m"]),
            "bridge own is already in use by network n",
        );
        good(&node.network(&["rm", "n"]));
        assert!(node.host().link("own").is_some(), "it was there before");
    });
}

#[test]
fn sizes_and_families_are_asked_for() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["--subnet", "0.0.0.0/26", "small"]);
        node.create(&["--subnet", "0.0.0.0/26", "small2"]);
        assert_eq!(node.template(SUBNETS, "small").trim(), "10.208.0.0/26");
        assert_eq!(node.template(SUBNETS, "small2").trim(), "10.208.0.64/26");
        node.create(&["--ipv6", "dual"]);
        let dual = node.template(SUBNETS, "dual");
        let (v4, v6) = dual.split_once(' ').expect("two subnets");
        assert!(
            v4 == "10.208.1.0/24" && v6.starts_with("fd") && v6.trim().ends_with("/64"),
            "{dual}"
        );
        node.create(&["--ipv4=false", "--ipv6", "six"]);
        assert_eq!(
            node.template(
                "{{.EnableIPv4}} {{.EnableIPv6}} {{len .IPAM.Config}}",
                "six"
            ),
            "false true 1"
        );
        node.create(&["--subnet", "10.5.0.0/24,fd00:5::/64,fd00:6::/64", "three"]);
        assert_eq!(
            node.template(SUBNETS, "three"),
            "10.5.0.0/24 fd00:5::/64 fd00:6::/64"
        );
        bad(
            &node.network(&["create", "--subnet", "10.8.0.0/24,10.9.0.0/24", "n"]),
            "bridge driver doesn't support multiple subnets of IPv4",
        );
        let pod = node.sandbox.pod("six");
        good(&node.podwire(&["add", "six", &pod.path()]));
        assert!(pod.addresses("eth0").iter().any(|it| it.starts_with("fd")));
        good(&node.podwire(&["del", "six", &pod.path()]));
    });
}

#[test]
fn reserved_addresses_are_handed_out_to_no_one() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&[
            "--subnet",
            "10.5.0.0/29",
            "--aux-address",
            "a=10.5.0.2",
            "--aux-address",
            "b=10.5.0.4",
            "n",
        ]);
        assert_eq!(
            node.inspect("n")["IPAM"]["Config"][0]["AuxiliaryAddresses"],
            json!({"a": "10.5.0.2", "b": "10.5.0.4"})
        );
        let mut got = Vec::new();
        for name in ["p1", "p2", "p3"] {
            let pod = node.sandbox.pod(name);
            good(&node.podwire(&["add", "n", &pod.path()]));
            got.extend(
                pod.addresses("eth0")
                    .into_iter()
                    .filter(|it| it.starts_with("10.")),
            );
        }
        assert_eq!(got, ["10.5.0.3/29", "10.5.0.5/29", "10.5.0.6/29"]);
        let used = &node.inspect("n")["Status"]["IPAM"]["Subnets"]["10.5.0.0/29"];
        assert_eq!(*used, json!({"IPsInUse": 8, "DynamicIPsAvailable": 0}));
        let pod = node.sandbox.pod("p4");
        bad(
            &node.podwire(&["add", "n", &pod.path()]),
            "no IP addresses available",
        );
    });
}

#[test]
fn creates_at_the_same_time_get_different_subnets() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let script =
            "for i in $(seq 12); do podwire network create net$i >id$i 2>&1 & done; wait; cat id*
            for i in 1 2; do podwire network create --subnet 10.5.0.0/24 same$i 2>&1 & done; wait";
        let done = node.sh(script);
        let (ids, other): (Vec<_>, Vec<_>) = done.stdout.lines().partition(|it| it.len() == 64);
        assert_eq!((ids.len(), other.len()), (13, 1), "{done:?}");
        assert!(other[0].contains("Pool overlaps"), "{done:?}");
        let names: Vec<_> = (1..=12).map(|it| format!("net{it}")).collect();
        let args = [
            &["inspect", "-f", SUBNETS][..],
            &names.iter().map(String::as_str).collect::<Vec<_>>(),
        ]
        .concat();
        let subnets = good(&node.network(&args));
        assert_eq!(
            subnets.lines().collect::<BTreeSet<_>>().len(),
            12,
            "{subnets}"
        );
        let done =
            node.sh("for i in 1 2 3; do podwire network create --ignore n 2>&1 & done; wait");
        assert_eq!(
            done.stdout.lines().collect::<BTreeSet<_>>().len(),
            1,
            "{done:?}"
        );
        good(&node.network(&["prune", "-f"]));
        assert_eq!(node.files(), [""; 0]);
    });
}

/// Of a segment that spans nodes, no node is the gateway: a default route would lead nowhere.
#[test]
fn a_segment_of_several_nodes_has_no_gateway() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for (mode, has_gateway) in [("l2", false), ("l3", true)] {
            let option = format!("mode={mode}");
            let vni = if has_gateway { "5" } else { "6" };
            node.create(&["-d", "vxlan", "--vni", vni, "-o", &option, mode]);
            let list = node.json(&format!("net.d/zz-podwire-{mode}.conflist"));
            let plugin = &list["plugins"][0];
            assert_eq!(plugin["mode"], mode);
            assert_eq!(plugin["ipMasq"], has_gateway);
            assert_eq!(plugin.get("gatewayModeIPv4").is_some(), has_gateway);
            assert_eq!(plugin["ipam"].get("routes").is_some(), has_gateway);
        }
        good(&node.podwire(&["validate", "net.d"]));
    });
}
