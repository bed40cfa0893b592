//! Published ports that would take what is not the tenant's: services of the node, and
//! connections that only pass through it.

use sandbox::{BackEnd, FilterNode, NO_ANSWER, NODE, Netns, OUTSIDE, Outcome, beyond_peer, conf};
use serde_json::{Value, json};

fn bridge() -> Value {
    let keys = json!({"isDefaultGateway": true, "hairpinMode": true});
    conf::with(&conf::bridge(&["10.1.0.0/24", "fd01::/64"]), keys)
}

/// A pod that publishes `mappings`, with further keys of portmap.
fn publish(node: &FilterNode, pod: &Netns, keys: &Value, mappings: &Value) -> Outcome {
    let result = node.cni("bridge").add(&bridge(), pod, "eth0").result();
    let portmap = conf::with(
        &conf::plugin("portmap"),
        json!({"backend": node.back_end.name(), "runtimeConfig": {"portMappings": mappings}}),
    );
    let conf = conf::with_prev(&conf::with(&portmap, keys.clone()), &result);
    node.cni("portmap").add(&conf, pod, "eth0")
}

fn tcp(host: u16) -> Value {
    json!({"hostPort": host, "containerPort": 80, "protocol": "tcp"})
}

#[test]
fn reserved_ports_are_not_published() {
    beyond_peer("no such key", || {
        FilterNode::each(&BackEnd::ALL, |node| {
            let keys = json!({"reservedPorts": [22, "10248-10259", "53/udp"]});
            let _ssh = node.host().serve(22);
            let before = node.rules();
            for (at, port) in [22, 10248, 10250, 10259].into_iter().enumerate() {
                let pod = node.sandbox.pod(&format!("a{at}"));
                for host_ip in ["", NODE[0], "127.0.0.1"] {
                    let mut mapping = tcp(port);
                    mapping["hostIP"] = host_ip.into();
                    let error = publish(&node, &pod, &keys, &json!([tcp(8080), mapping])).error();
                    assert_eq!(error.code, 7, "{}", error.msg);
                    let expected =
                        format!("host port {port}/tcp is reserved for the node (reservedPorts)");
                    assert!(error.msg.contains(&expected), "{}", error.msg);
                    node.cni("bridge").del(&bridge(), &pod, "eth0").silent();
                }
            }
            node.assert_rules(&before);
            let pod = node.sandbox.pod("b");
            publish(&node, &pod, &keys, &json!([tcp(53), tcp(8080)])).result();
            let _server = pod.serve(80);
            assert_eq!(node.outside.ask("tcp", NODE[0], 53), "b sees 192.0.2.9");
            assert_eq!(node.outside.ask("tcp", NODE[0], 22), "host sees 192.0.2.9");
        });
    });
}

#[test]
fn a_pod_that_runs_keeps_a_port_that_is_reserved_later() {
    beyond_peer("no such key", || {
        FilterNode::each(&BackEnd::ALL, |node| {
            let pod = node.sandbox.pod("a");
            let added = publish(&node, &pod, &json!({}), &json!([tcp(8080)]));
            let reserved = json!({"backend": node.back_end.name(), "reservedPorts": ["8000-9000"],
                "runtimeConfig": {"portMappings": [tcp(8080)]}});
            let conf = conf::with_prev(
                &conf::with(&conf::plugin("portmap"), reserved),
                &added.result(),
            );
            node.cni("portmap").check(&conf, &pod, "eth0").silent();
            node.cni("portmap").del(&conf, &pod, "eth0").silent();
            assert!(!node.rules().contains("8080"));
        });
    });
}

#[test]
fn an_address_that_leads_to_no_pod_is_refused_with_the_reason() {
    beyond_peer("it publishes what only hangs", || {
        FilterNode::each(&BackEnd::ALL, |node| {
            let before = node.rules();
            let pod = node.sandbox.pod("a");
            for (host_ip, snat, reason) in [
                (
                    "::1",
                    true,
                    "hostIP ::1 leads to no pod: IPv6 has no route_localnet",
                ),
                (
                    "127.0.0.1",
                    false,
                    "hostIP 127.0.0.1 leads to no pod: snat is false",
                ),
            ] {
                let mut mapping = tcp(8080);
                mapping["hostIP"] = host_ip.into();
                let keys = json!({"snat": snat});
                let error = publish(&node, &pod, &keys, &json!([mapping])).error();
                assert_eq!(error.code, 7, "{}", error.msg);
                assert!(error.msg.ends_with(reason), "{}", error.msg);
                node.cni("bridge").del(&bridge(), &pod, "eth0").silent();
            }
            node.assert_rules(&before);
        });
    });
}

/// The kernel tracks connections from the first rule on that wants it.
fn track_connections(node: &FilterNode) {
    let first = node.sandbox.pod("first");
    publish(node, &first, &json!({}), &json!([tcp(7000)])).result();
}

/// Whether the kernel remembers a connection of UDP whose listing contains `part`.
fn remembers(node: &FilterNode, part: &str) -> bool {
    let listed = node
        .host()
        .sh("conntrack -L -p udp --orig-port-dst 53 2>/dev/null");
    listed.lines().any(|line| line.contains(part))
}

#[test]
fn a_host_address_of_another_machine_interrupts_no_connection() {
    FilterNode::each(&BackEnd::ALL, |node| {
        track_connections(&node);
        let client = node.sandbox.pod("client");
        node.cni("bridge").add(&bridge(), &client, "eth0").result();
        let _resolver = node.outside.serve(53);
        assert!(
            client
                .ask("udp", OUTSIDE[0], 53)
                .starts_with("outside sees")
        );
        assert!(
            node.host()
                .ask("udp", OUTSIDE[0], 53)
                .starts_with("outside sees")
        );
        let flows = [
            " src=10.1.0.3 dst=192.0.2.9 ",
            " src=192.0.2.1 dst=192.0.2.9 ",
        ];
        assert!(flows.iter().all(|flow| remembers(&node, flow)));
        let pod = node.sandbox.pod("a");
        let mapping =
            json!([{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": OUTSIDE[0]}]);
        publish(&node, &pod, &json!({}), &mapping).result();
        beyond_peer("it flushes by port and address alone", || {
            for flow in flows {
                assert!(remembers(&node, flow), "{:?}: {flow}", node.back_end);
            }
        });
        assert!(
            client
                .ask("udp", OUTSIDE[0], 53)
                .starts_with("outside sees")
        );
    });
}

#[test]
fn connections_to_an_address_of_the_node_are_forgotten_whatever_makes_it_one() {
    beyond_peer("it flushes by port alone", || {
        FilterNode::each(&BackEnd::ALL, |node| {
            track_connections(&node);
            // No interface has it: a route says that it is the node's.
            let anycast = "198.51.100.7";
            node.host()
                .sh(&format!("ip route add local {anycast}/32 dev lo"));
            node.outside
                .sh(&format!("ip route add {anycast}/32 via {}", NODE[0]));
            let talk = node.outside.converse("udp", anycast, 53);
            node.host().wait_until("the client talks to the node", |_| {
                remembers(&node, anycast)
            });
            let pod = node.sandbox.pod("a");
            let mapping = json!([{"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": anycast}]);
            let _server = pod.serve(53);
            publish(&node, &pod, &json!({}), &mapping).result();
            node.outside.wait_until("the pod's answer", |_| {
                talk.output().contains("a sees 192.0.2.9")
            });
            assert_eq!(node.outside.ask("udp", NODE[0], 53), NO_ANSWER);
        });
    });
}

#[test]
fn a_port_of_all_addresses_leaves_the_nodes_own_ipv6_localhost_alone() {
    beyond_peer("its rule takes connections to ::1, which then hang", || {
        let node = FilterNode::new(BackEnd::Nftables);
        let pod = node.sandbox.pod("a");
        let added = publish(&node, &pod, &json!({}), &json!([tcp(8080)])).result();
        let _own = node.sandbox.host().serve(8080);
        let answer = node.sandbox.host().ask("tcp", "::1", 8080);
        assert!(answer.contains("sees ::1"), "{answer}");
        let conf = conf::with_prev(&conf::plugin("portmap"), &added);
        node.cni("portmap").del(&conf, &pod, "eth0").silent();
        node.cni("bridge").del(&bridge(), &pod, "eth0").silent();
        assert!(!node.rules().contains("8080"));
    });
}
