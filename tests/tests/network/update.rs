//! `update`: changes of a network under running containers.

use sandbox::{Netns, beyond_peer};
use serde_json::json;

use crate::WHY;
use crate::node::{Node, bad, good};

fn attached(node: &Node, name: &str) -> Netns {
    let pod = node.sandbox.pod(name);
    good(&node.podwire(&["add", "n", &pod.path()]));
    pod
}

fn has_masquerade(node: &Node) -> bool {
    node.host()
        .sh("nft list ruleset")
        .contains(" masquerade comment ")
}

#[test]
fn labels_and_subnets_are_added() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&[
            "--subnet",
            "10.5.0.0/24",
            "--label",
            "a=1",
            "--label",
            "b=2",
            "n",
        ]);
        let one = attached(&node, "one");
        let args = [
            "update",
            "--label",
            "a=3",
            "--label-rm",
            "b",
            "--subnet",
            "fd00:6::/64",
            "n",
        ];
        let dry = good(&node.network(&[&args[..], &["--dry-run"]].concat()));
        let lines = ["label a=3", "label b removed", "subnet fd00:6::/64"];
        assert_eq!(
            dry,
            lines.map(|it| format!("would be changed: {it}\n")).concat()
        );
        assert_eq!(node.inspect("n")["Labels"], json!({"a": "1", "b": "2"}));
        good(&node.network(&args));
        let document = node.inspect("n");
        assert_eq!(document["Labels"], json!({"a": "3"}));
        assert_eq!(document["IPAM"]["Config"].as_array().map(Vec::len), Some(2));
        let two = attached(&node, "two");
        assert!(two.addresses("eth0").contains(&"fd00:6::2/64".to_owned()));
        assert!(
            two.ping("fd00:6::1", 1)[0],
            "the bridge is the gateway of both"
        );
        let faults = node.network(&["update", "--subnet", "fd00:6:0:0:1::/80", "n"]);
        bad(&faults, "fd00:6:0:0:1::/80 overlaps with");
        let second = node.network(&["update", "--subnet", "10.6.0.0/24", "n"]);
        bad(&second, "doesn't support multiple subnets of IPv4");
        for pod in [one, two] {
            good(&node.podwire(&["del", "n", &pod.path()]));
        }
        good(&node.network(&["rm", "n"]));
    });
}

#[test]
fn the_mtu_changes_everywhere() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let id = node.create(&["n"]);
        let pod = attached(&node, "one");
        for mtu in [1400, 1600] {
            good(&node.network(&["update", "--mtu", &mtu.to_string(), "n"]));
            let host = node.host();
            let bridge = format!("br-{}", &id[..12]);
            let mut links = host.ip_json(["link", "show", "master", &bridge]);
            links.extend(host.link(&bridge));
            links.extend(pod.link("eth0"));
            assert_eq!(links.len(), 3);
            assert!(links.iter().all(|it| it["mtu"] == mtu), "{links:?}");
            good(&node.podwire(&["check", "n", &pod.path()]));
        }
        let late = attached(&node, "late");
        assert_eq!(late.link("eth0").expect("eth0")["mtu"], 1600);
        bad(
            &node.network(&["update", "--mtu", "67", "n"]),
            "invalid MTU 67",
        );
        bad(
            &node.network(&["update", "--mtu", "1400", "nosuch"]),
            "network nosuch not found",
        );
        bad(
            &node.network(&["update", "--mtu", "1400", "host"]),
            "pre-defined",
        );
    });
}

#[test]
fn masquerade_comes_and_goes() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot().allow_bridge_network();
        node.create(&["n"]);
        let pod = attached(&node, "one");
        assert!(has_masquerade(&node));
        good(&node.network(&["update", "--ip-masq=false", "n"]));
        assert!(!has_masquerade(&node));
        good(&node.podwire(&["check", "n", &pod.path()]));
        assert!(good(&node.podwire(&["resync", "--text"])).contains("nothing was missing"));
        good(&node.network(&["update", "--ip-masq", "n"]));
        assert!(has_masquerade(&node));
        good(&node.podwire(&["check", "n", &pod.path()]));
        good(&node.podwire(&["del", "n", &pod.path()]));
        good(&node.network(&["rm", "n"]));
        node.sandbox.remove_pod(&pod);
        snapshot
            .allow("dir /var/lib/cni")
            .allow("cni_plugins_masquerade")
            .assert_unchanged();
    });
}

#[test]
fn containers_are_separated_and_joined() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["--subnet", "10.5.0.0/24", "n"]);
        let (one, two) = (attached(&node, "one"), attached(&node, "two"));
        assert!(one.ping("10.5.0.3", 1)[0]);
        good(&node.network(&["update", "--icc=false", "n"]));
        assert!(!one.ping("10.5.0.3", 1)[0]);
        assert!(one.ping("10.5.0.1", 1)[0], "the gateway");
        good(&node.podwire(&["check", "n", &one.path()]));
        good(&node.network(&["update", "--icc", "n"]));
        assert!(one.ping("10.5.0.3", 1)[0]);
        for pod in [one, two] {
            good(&node.podwire(&["check", "n", &pod.path()]));
            good(&node.podwire(&["del", "n", &pod.path()]));
        }
        good(&node.network(&["rm", "n"]));
    });
}
