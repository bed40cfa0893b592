//! `rm` and `prune`: what is in the way, what is removed, and what an interruption leaves.

use sandbox::beyond_peer;

use crate::WHY;
use crate::node::{Node, bad, good};

#[test]
fn containers_that_are_gone_are_not_in_the_way() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot().allow_bridge_network();
        node.create(&["n"]);
        let pod = node.sandbox.pod("blue");
        good(&node.podwire(&["add", "n", &pod.path()]));
        node.sandbox.remove_pod(&pod);
        good(&node.network(&["rm", "n"]));
        assert_eq!(node.sandbox.list("/var/lib/cni/results"), [""; 0]);
        snapshot
            .allow("dir /var/lib/cni")
            .allow("cni_plugins_masquerade")
            .assert_unchanged();
    });
}

#[test]
fn a_container_of_a_runtime_with_another_cache_is_in_the_way() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["n"]);
        let pod = node.sandbox.pod("blue");
        good(&node.podwire(&["add", "--cache-dir", "/var/lib/other", "n", &pod.path()]));
        bad(
            &node.network(&["rm", "n"]),
            "network n has active endpoints (name:\"cnitool-",
        );
        assert_eq!(good(&node.network(&["prune", "-f"])), "");
        good(&node.podwire(&["del", "--cache-dir", "/var/lib/other", "n", &pod.path()]));
        good(&node.network(&["rm", "n"]));
    });
}

#[test]
fn predefined_and_missing_networks() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["n"]);
        let done = node.network(&["rm", "host", "nosuch", "n"]);
        bad(&done, "host is a pre-defined network and cannot be removed");
        bad(&done, "network nosuch not found");
        assert_eq!(done.stdout, "n\n", "the others are removed");
        good(&node.network(&["rm", "-f", "nosuch"]));
        bad(&node.network(&["rm", "-f", "none"]), "pre-defined");
        assert_eq!(node.network(&["rm"]).code, 2);
    });
}

#[test]
fn prune_asks_and_filters() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["--label", "keep", "kept"]);
        node.create(&["gone"]);
        for answer in ["n", ""] {
            let done = node.sh(&format!("echo {answer} | podwire network prune"));
            bad(&done, "network prune has been cancelled");
            assert!(done.stdout.contains("[y/N]"), "{done:?}");
        }
        assert_eq!(
            good(&node.network(&["prune", "-f", "--filter", "until=1h"])),
            ""
        );
        let pruned = good(&node.network(&["prune", "--force", "--filter", "label!=keep"]));
        assert_eq!(pruned, "Deleted Networks:\ngone\n\n");
        let done = node.sh("echo y | podwire network prune --filter until=2099-01-01");
        assert!(
            good(&done).ends_with("Deleted Networks:\nkept\n\n"),
            "{done:?}"
        );
        assert_eq!(node.files(), [""; 0]);
    });
}

#[test]
fn a_network_of_several_nodes_leaves_no_rules() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip link add up0 type veth peer name up1
             ip addr add 192.0.2.1/24 dev up0; ip link set up0 up; ip link set up1 up");
        let snapshot = node.sandbox.snapshot().allow_forwarding();
        let pod = node.sandbox.pod("blue");
        for mode in ["l2", "l3"] {
            let option = format!("mode={mode}");
            let args = [
                "-d", "vxlan", "--vni", "7", "--parent", "up0", "-o", &option,
            ];
            node.create(&[&args[..], &["--subnet", "10.5.0.0/24", "n"]].concat());
            good(&node.podwire(&["add", "n", &pod.path()]));
            assert!(node.host().sh("nft list tables").contains("podwire_vxlan"));
            good(&node.podwire(&["del", "n", &pod.path()]));
            good(&node.network(&["rm", "n"]));
            let left = node.host().sh("nft list ruleset");
            assert!(!left.contains("net: n"), "{mode}: {left}");
        }
        node.sandbox.remove_pod(&pod);
        snapshot
            .allow("dir /var/lib/cni")
            .allow("cni_plugins_masquerade")
            .allow("podwire_networks")
            .assert_unchanged();
    });
}

/// Of a container that is never detached: its runtime has lost what it knew.
#[test]
fn opened_ports_of_lost_containers_are_closed() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let option = "com.docker.network.bridge.gateway_mode_ipv4=routed";
        node.create(&["--subnet", "10.5.0.0/24", "-o", option, "n"]);
        let pod = node.sandbox.pod("blue");
        let ports =
            r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
        good(&node.sh(&format!(
            "CAP_ARGS='{ports}' podwire add n {} >/dev/null",
            pod.path()
        )));
        let opened = || {
            node.host()
                .sh("nft list ruleset")
                .contains("10.5.0.2 . tcp . 80")
        };
        assert!(opened());
        node.sandbox.remove_pod(&pod);
        node.host()
            .sh("rm -r /var/lib/cni/results; until ! ip link | grep -q veth; do sleep 0.02; done");
        good(&node.network(&["rm", "n"]));
        assert!(!opened());
        assert!(!node.host().sh("nft list tables").contains("podwire_access"));
    });
}

/// A removal hides the configuration first and deletes it last; a creation writes another name.
#[test]
fn what_a_kill_leaves_is_completed() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let id = node.create(&["--subnet", "10.5.0.0/24", "n"]);
        let pod = node.sandbox.pod("blue");
        good(&node.podwire(&["add", "n", &pod.path()]));
        good(&node.podwire(&["del", "n", &pod.path()]));
        node.sh("mv net.d/zz-podwire-n.conflist net.d/.podwire-n.removing; echo '{' >net.d/.podwire-x1y2z3.tmp");
        bad(&node.network(&["inspect", "n"]), "network n not found");
        node.create(&["--subnet", "10.5.0.0/24", "n"]);
        assert_eq!(node.host().link(&format!("br-{}", &id[..12])), None);
        assert_eq!(node.files(), ["zz-podwire-n.conflist"]);
        good(&node.network(&["prune", "-f"]));
    });
}

/// kill -9 after every millisecond of `create` and `rm`.
#[test]
fn nothing_is_left_after_a_kill_and_a_prune() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot().allow_bridge_network();
        let script = "for i in $(seq 0 25); do
                timeout -s KILL 0.$(printf %03d $i) podwire network create n$i >/dev/null 2>&1
                podwire network create m$i >/dev/null || exit 1
                podwire add m$i /run/netns/blue >/dev/null || exit 2
                podwire del m$i /run/netns/blue || exit 3
                timeout -s KILL 0.$(printf %03d $i) podwire network rm m$i >/dev/null 2>&1
            done; podwire network prune -f >/dev/null";
        let pod = node.sandbox.pod("blue");
        good(&node.sh(script));
        node.sandbox.remove_pod(&pod);
        assert_eq!(node.files(), [""; 0]);
        let bridges = node.host().ip_json(["link", "show", "type", "bridge"]);
        assert_eq!(bridges.len(), 0, "{bridges:?}");
        snapshot
            .allow("dir /var/lib/cni")
            .allow("cni_plugins_masquerade")
            .assert_unchanged();
    });
}
