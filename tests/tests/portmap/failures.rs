//! Refused configurations and failed calls leave nothing behind.

use sandbox::{BackEnd, Stdout, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{Pod, each, port, publishing, tcp};

#[test]
fn a_failure_after_publishing_takes_it_back() {
    beyond_peer("nothing is rolled back", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let pod = node.pod("a");
            let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
            for stdout in [Stdout::NoReader, Stdout::Full] {
                let failed = node.portmap().stdout(stdout).add(&conf, &pod.netns, "eth0");
                assert_ne!(failed.code(), 0, "{failed}");
                node.assert_rules(&before);
            }
        });
    });
}

/// What is refused: a change of the configuration, the code, and a part of the message.
fn refused() -> Vec<(Value, u64, &'static str)> {
    let mapped = |mapping: Value| json!({"runtimeConfig": {"portMappings": [port(8080, 80, "tcp"), mapping]}});
    let hosted = |text: &str| {
        let mut mapping = port(8081, 80, "tcp");
        mapping["hostIP"] = text.into();
        mapped(mapping)
    };
    let numbers = |host: i64, container: i64| {
        mapped(json!({"hostPort": host, "containerPort": container, "protocol": "tcp"}))
    };
    vec![
        (numbers(0, 80), 7, "Invalid host port number: 0"),
        (numbers(-1, 80), 7, "Invalid host port number: -1"),
        (numbers(65536, 80), 7, "Invalid host port number: 65536"),
        (numbers(8081, 0), 7, "Invalid container port number: 0"),
        (
            numbers(8081, 70000),
            7,
            "Invalid container port number: 70000",
        ),
        (mapped(port(8081, 80, "icmp")), 7, "icmp"),
        (mapped(port(8081, 80, "")), 7, "protocol"),
        (mapped(port(8081, 80, "tcp -j ACCEPT")), 7, "protocol"),
        (hosted("192.0.2"), 7, "hostIP"),
        (hosted("192.0.2.1 -j ACCEPT"), 7, "hostIP"),
        (mapped(port(8080, 81, "tcp")), 7, "duplicate"),
        (
            json!({"backend": "ebtables"}),
            7,
            "unrecognized backend \"ebtables\"",
        ),
        (
            json!({"backend": "iptables", "markMasqBit": 32}),
            7,
            "must be between 0 and 31",
        ),
        (
            json!({"backend": "iptables", "markMasqBit": 5, "externalSetMarkChain": "X"}),
            7,
            "Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            json!({"backend": "nftables", "externalSetMarkChain": "X"}),
            7,
            "iptables-specific options [externalSetMarkChain]",
        ),
        (
            json!({"backend": "nftables", "conditionsV4": ["-s", "10.0.0.0/8"]}),
            7,
            "iptables-specific options [conditionsV4]",
        ),
        (
            json!({"backend": "iptables", "conditionsV6": ["ip6", "saddr", "::1"]}),
            7,
            "nftables-specific options [conditionsV6]",
        ),
        (
            json!({"backend": "iptables", "externalSetMarkChain": "X -j DROP"}),
            7,
            "externalSetMarkChain",
        ),
        (
            json!({"backend": "iptables", "externalSetMarkChain": "X\nCOMMIT"}),
            7,
            "externalSetMarkChain",
        ),
        (
            json!({"runtimeConfig": {"portMappings": "8080:80"}}),
            7,
            "portMappings",
        ),
    ]
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    beyond_peer("some is left to the programs, and none has a code", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let pod = node.pod("a");
            for (change, code, msg) in refused() {
                let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
                let conf = conf::with(&conf, change.clone());
                let error = node.portmap().add(&conf, &pod.netns, "eth0").error();
                assert_eq!(error.code, code, "{change}: {}", error.msg);
                assert!(error.msg.contains(msg), "{change}: {}", error.msg);
            }
            node.assert_rules(&before);
            let lone = publishing(&node.conf(), &tcp());
            let error = node.portmap().add(&lone, &pod.netns, "eth0").error();
            assert_eq!(
                (error.code, error.msg.as_str()),
                (7, "must be called as chained plugin")
            );
            let conf = conf::with_prev(&lone, &pod.result);
            for variable in ["CNI_IFNAME", "CNI_CONTAINERID", "CNI_NETNS"] {
                let error = node
                    .portmap()
                    .unset(variable)
                    .add(&conf, &pod.netns, "eth0")
                    .error();
                assert_eq!(error.code, 4, "{}", error.msg);
            }
            let error = node
                .portmap()
                .env("CNI_IFNAME", "a/b")
                .add(&conf, &pod.netns, "eth0")
                .error();
            assert_eq!(error.code, 4, "{}", error.msg);
            node.assert_rules(&before);
        });
    });
}

#[test]
fn conditions_that_the_kernel_does_not_understand_leave_nothing_half_done() {
    each(&BackEnd::ALL, |node| {
        let before = node.rules_after_a_first_pod();
        let pod = node.pod("a");
        let wrong = match node.back_end {
            BackEnd::Nftables => vec![
                json!(["frobnicate", "1"]),
                json!(["ip", "daddr", "nowhere!"]),
                json!(["accept", ";", "flush", "ruleset"]),
            ],
            _ => vec![
                json!(["-m", "frobnicate"]),
                json!(["-s", "not/an/address"]),
                json!(["!", "--nonsense"]),
            ],
        };
        for words in wrong {
            // IPv4 is fine; IPv6 is not.
            let conf = conf::with(&node.conf(), json!({"conditionsV6": words}));
            let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
            let failed = node.publish_with(&conf, &pod, &mappings);
            beyond_peer("what was made stays, or the key is not known", || {
                failed.error();
                node.assert_rules(&before);
            });
        }
    });
}

#[test]
fn a_pod_without_addresses_publishes_nothing() {
    each(&BackEnd::ALL, |node| {
        let before = node.rules_after_a_first_pod();
        let netns = node.sandbox.pod("a");
        let result = node
            .cni("bridge")
            .add(&conf::bridge_l2(), &netns, "eth0")
            .result();
        let pod = Pod { netns, result };
        assert_eq!(node.publish(&pod, &tcp()).result(), pod.result);
        node.assert_rules(&before);
    });
}
