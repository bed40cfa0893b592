//! `update`: changes of a network under running containers.

use sandbox::{NO_ANSWER, Netns, OUTSIDE, beyond_peer};
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
        for pod in [one, two] {
            good(&node.podwire(&["del", "n", &pod.path()]));
        }
        good(&node.network(&["rm", "n"]));
    });
}

#[test]
fn a_second_subnet_is_used_when_the_first_is_full() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["--subnet", "10.5.0.0/30", "n"]);
        let one = attached(&node, "one");
        assert_eq!(one.addresses("eth0"), ["10.5.0.2/30"]);
        good(&node.network(&["update", "--subnet", "10.6.0.0/24", "n"]));
        let two = attached(&node, "two");
        assert_eq!(two.addresses("eth0"), ["10.6.0.2/24"]);
        for (pod, other, gateway) in [
            (&one, "10.6.0.2", "10.5.0.1"),
            (&two, "10.5.0.2", "10.6.0.1"),
        ] {
            assert!(pod.ping(gateway, 1)[0], "{gateway}");
            assert!(pod.ping(other, 1)[0], "{other}");
            good(&node.podwire(&["check", "n", &pod.path()]));
        }
        assert!(good(&node.podwire(&["resync", "--text"])).contains("nothing was missing"));
        for pod in [one, two] {
            good(&node.podwire(&["del", "n", &pod.path()]));
        }
        good(&node.network(&["rm", "n"]));
    });
}

#[test]
fn the_way_out_is_closed_and_opened() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot().allow_bridge_network();
        let outside = node.sandbox.outside();
        node.create(&["--subnet", "10.5.0.0/24", "n"]);
        let before = attached(&node, "before");
        assert!(before.ping(OUTSIDE[0], 1)[0]);
        let done = good(&node.network(&["update", "--internal", "n"]));
        assert_eq!(done, "changed: internal: true\n");
        assert_eq!(node.template("{{.Internal}}", "n"), "true");
        assert!(!before.ping(OUTSIDE[0], 1)[0]);
        assert!(before.ping("10.5.0.1", 1)[0], "the gateway");
        let within = attached(&node, "within");
        assert_eq!(within.routes_to("-4", "default").len(), 0);
        for pod in [&before, &within] {
            good(&node.podwire(&["check", "n", &pod.path()]));
        }
        bad(
            &node.network(&[
                "update",
                "-o",
                "com.docker.network.bridge.gateway_mode_ipv4=routed",
                "n",
            ]),
            "an internal network has no gateway mode",
        );
        good(&node.network(&["update", "--internal=false", "n"]));
        for pod in [&before, &within] {
            assert!(pod.ping(OUTSIDE[0], 1)[0], "{}", pod.name());
            good(&node.podwire(&["check", "n", &pod.path()]));
        }
        assert!(has_masquerade(&node));
        for pod in [&before, &within] {
            good(&node.podwire(&["del", "n", &pod.path()]));
        }
        good(&node.network(&["rm", "n"]));
        for pod in [&before, &within, &outside] {
            node.sandbox.remove_pod(pod);
        }
        snapshot
            .allow("dir /var/lib/cni")
            .allow("cni_plugins_masquerade")
            .assert_unchanged();
    });
}

/// The way to containers by their own addresses.
#[test]
fn the_gateway_mode_changes() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let outside = node.sandbox.outside();
        node.create(&["--subnet", "10.5.0.0/24", "n"]);
        let pod = attached(&node, "one");
        let mode = |mode: &str| {
            let option = format!("com.docker.network.bridge.gateway_mode_ipv4={mode}");
            node.network(&["update", "-o", &option, "n"])
        };
        let _server = pod.serve(81);
        assert_eq!(outside.ask("tcp", "10.5.0.2", 81), NO_ANSWER);
        good(&mode("nat-unprotected"));
        assert_eq!(outside.ask("tcp", "10.5.0.2", 81), "one sees 192.0.2.9");
        assert!(has_masquerade(&node));
        good(&mode("routed"));
        assert!(outside.ping("10.5.0.2", 1)[0]);
        assert_eq!(outside.ask("tcp", "10.5.0.2", 81), NO_ANSWER);
        assert!(!has_masquerade(&node));
        good(&node.podwire(&["check", "n", &pod.path()]));
        good(&mode("nat"));
        assert!(!outside.ping("10.5.0.2", 1)[0]);
        assert!(has_masquerade(&node));
        good(&node.podwire(&["check", "n", &pod.path()]));
        bad(&mode("isolated"), "isolated belongs to create");
        bad(&mode("x"), "invalid value \"x\"");
        let option = "com.docker.network.bridge.gateway_mode_ipv6=nat";
        bad(
            &node.network(&["update", "-o", option, "n"]),
            "the network has no IPv6",
        );
        bad(
            &node.network(&["update", "-o", "parent=eth0", "n"]),
            "the option parent belongs to create",
        );
        good(&node.podwire(&["del", "n", &pod.path()]));
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
