//! From where a published port is reached, and which source address the server sees.

use sandbox::{BackEnd, NO_ANSWER, NODE, Netns, OUTSIDE, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{HTTP, each, port, publishing, tcp};

#[test]
fn a_port_is_reached_from_everywhere() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &[port(8080, 80, "tcp"), port(8080, 80, "udp")]);
        let neighbour = node.pod("b");
        let _server = pod.netns.serve(80);
        for protocol in ["tcp", "udp"] {
            for (to, from) in NODE.into_iter().zip(OUTSIDE) {
                let answer = node.outside.ask(protocol, to, 8080);
                assert_eq!(answer, format!("a sees {from}"), "{protocol} from outside");
                let answer = node.host().ask(protocol, to, 8080);
                assert_eq!(answer, format!("a sees {to}"), "{protocol} from the node");
                let answer = neighbour.netns.ask(protocol, to, 8080);
                assert!(
                    answer.starts_with("a sees "),
                    "{protocol} from a neighbour: {answer}"
                );
            }
            for (to, gateway) in NODE.into_iter().zip(["10.1.0.1", "fd01::1"]) {
                let answer = pod.netns.ask(protocol, to, 8080);
                assert_eq!(
                    answer,
                    format!("a sees {gateway}"),
                    "{protocol} from the pod"
                );
            }
            let answer = node.host().ask(protocol, "127.0.0.1", 8080);
            assert_eq!(answer, "a sees 10.1.0.1", "{protocol} from 127.0.0.1");
        }
        assert_eq!(node.outside.ask("tcp", NODE[0], 8081), NO_ANSWER);
        assert_eq!(node.outside.ask("tcp", NODE[0], 80), NO_ANSWER);
    });
}

#[test]
fn a_page_is_fetched_with_nc() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let _server = pod.netns.start(&["sh", "-c",
            "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nthe page\\n' | nc -l -N 80 >/dev/null; done"]);
        let fetch = |from: &Netns, to: &str| {
            from.run(&[
                "sh",
                "-c",
                &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {to} {HTTP}"),
            ])
            .stdout
        };
        for (from, to) in [
            (&node.outside, NODE[0]),
            (&node.host(), NODE[0]),
            (&node.host(), "127.0.0.1"),
        ] {
            node.host()
                .wait_until("the page", |_| fetch(from, to).contains("the page"));
        }
    });
}

#[test]
fn a_host_address_is_the_only_one() {
    each(&BackEnd::ALL, |node| {
        node.host()
            .sh("ip addr add 192.0.2.2/24 dev uplink; ip addr add 2001:db8::2/64 dev uplink nodad");
        let at = |address: &str, number: u16| {
            let mut mapping = port(number, 80, "tcp");
            mapping["hostIP"] = address.into();
            mapping
        };
        let mappings = [
            at("192.0.2.2", 8080),
            at("2001:db8::2", 8081),
            at("0.0.0.0", 8082),
            at("::", 8083),
        ];
        let pod = node.published("a", &mappings);
        let _server = pod.netns.serve(80);
        let ask = |to: &str, number: u16| node.outside.ask("tcp", to, number) != NO_ANSWER;
        for (to, number, answers) in [
            ("192.0.2.2", 8080, true),
            ("192.0.2.1", 8080, false),
            ("2001:db8::2", 8081, true),
            ("2001:db8::1", 8081, false),
            ("192.0.2.1", 8082, true),
            ("192.0.2.2", 8082, true),
            ("2001:db8::1", 8082, false),
            ("2001:db8::1", 8083, true),
            ("192.0.2.1", 8083, false),
        ] {
            assert_eq!(ask(to, number), answers, "{to} {number}");
        }
        // The same port at another address is another's to have.
        let other = node.published("b", &[at("192.0.2.1", 8080)]);
        let _other = other.netns.serve(80);
        assert_eq!(
            node.outside.ask("tcp", "192.0.2.1", 8080),
            "b sees 192.0.2.9"
        );
        assert_eq!(
            node.outside.ask("tcp", "192.0.2.2", 8080),
            "a sees 192.0.2.9"
        );
    });
}

#[test]
fn without_snat_a_pod_does_not_reach_itself_but_others_do() {
    each(&BackEnd::ALL, |node| {
        let pod = node.pod("a");
        let conf = conf::with(&node.conf(), json!({"snat": false}));
        node.publish_with(&conf, &pod, &tcp()).result();
        let _server = pod.netns.serve(80);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
        assert_eq!(pod.netns.ask("tcp", NODE[0], HTTP), NO_ANSWER);
        assert_eq!(node.host().ask("tcp", "127.0.0.1", HTTP), NO_ANSWER);
    });
}

#[test]
fn all_connections_are_masqueraded_with_the_key() {
    beyond_peer("no such key in v1.1", || {
        each(&BackEnd::ALL, |node| {
            let pod = node.pod("a");
            let conf = conf::with(&node.conf(), json!({"masqAll": true}));
            node.publish_with(&conf, &pod, &tcp()).result();
            let _server = pod.netns.serve(80);
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 10.1.0.1");
            assert_eq!(node.outside.ask("tcp", NODE[1], HTTP), "a sees fd01::1");
        });
    });
}

#[test]
fn conditions_are_those_of_the_pod_that_has_them() {
    beyond_peer(
        "no conditions of nftables, and no CHECK of two families",
        || {
            each(&BackEnd::ALL, |node| {
                node.host().sh("ip addr add 192.0.2.2/24 dev uplink");
                let condition = match node.back_end {
                    BackEnd::Nftables => json!(["ip", "daddr", "192.0.2.2"]),
                    _ => json!(["-d", "192.0.2.2"]),
                };
                let (a, b) = (node.pod("a"), node.pod("b"));
                let conf = conf::with(&node.conf(), json!({"conditionsV4": condition}));
                node.publish_with(&conf, &a, &tcp()).result();
                node.publish(&b, &[port(8081, 80, "tcp")]).result();
                let (_a, _b) = (a.netns.serve(80), b.netns.serve(80));
                assert_eq!(
                    node.outside.ask("tcp", "192.0.2.2", 8080),
                    "a sees 192.0.2.9"
                );
                assert_eq!(node.outside.ask("tcp", "192.0.2.1", 8080), NO_ANSWER);
                assert_eq!(
                    node.outside.ask("tcp", "192.0.2.1", 8081),
                    "b sees 192.0.2.9"
                );
                let checked = conf::with_prev(&publishing(&conf, &tcp()), &a.result);
                node.portmap().check(&checked, &a.netns, "eth0").silent();
                let before = node.host().rules();
                assert!(before.contains("192.0.2.2"));
                node.portmap().del(&checked, &a.netns, "eth0").silent();
                let rules = node.host().rules();
                assert!(
                    !rules.contains("192.0.2.2") && !rules.contains("10.1.0.2:80"),
                    "{rules}"
                );
                assert_eq!(
                    node.outside.ask("tcp", "192.0.2.1", 8081),
                    "b sees 192.0.2.9"
                );
            })
        },
    );
}

#[test]
fn many_ports_of_one_pod_are_all_reached() {
    each(&BackEnd::ALL, |node| {
        // More than one rule of multiport holds.
        let mappings: Vec<Value> = (0..40)
            .map(|n| port(8000 + n, 80, ["tcp", "udp"][usize::from(n % 2)]))
            .collect();
        let pod = node.published("a", &mappings);
        let _server = pod.netns.serve(80);
        for number in [8000, 8032, 8038] {
            assert_eq!(node.outside.ask("tcp", NODE[0], number), "a sees 192.0.2.9");
        }
        let six = || {
            for number in [8001, 8039] {
                assert_eq!(
                    node.outside.ask("udp", NODE[1], number),
                    "a sees 2001:db8::9"
                );
            }
        };
        match node.back_end {
            // ip6tables-legacy -C compares all but the last bytes of a rule.
            BackEnd::IptablesLegacy => beyond_peer("it believes -C", six),
            _ => six(),
        }
        node.unpublish(&pod, &mappings);
        assert_eq!(node.outside.ask("tcp", NODE[0], 8000), NO_ANSWER);
    });
}

#[test]
fn protocols_may_be_written_in_capitals() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &[port(HTTP, 80, "TCP")]);
        let _server = pod.netns.serve(80);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
        node.unpublish(&pod, &[port(HTTP, 80, "TCP")]);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), NO_ANSWER);
    });
}

#[test]
fn the_node_s_own_loopback_is_not_the_neighbours_business() {
    beyond_peer("plugins#729: route_localnet without a filter", || {
        each(&BackEnd::ALL, |node| {
            let pod = node.published("a", &tcp());
            let _service = node.host().serve(9000);
            let way = node.host().sysctl("net/ipv4/conf/cni0/route_localnet");
            assert_eq!(way, "1");
            // From outside it takes an address on the same wire, and a node that is open there.
            pod.netns
                .sh("echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
            ip route add 127.0.0.0/8 via 10.1.0.1");
            assert_eq!(pod.netns.ask("tcp", "10.1.0.1", 9000), "host sees 10.1.0.2");
            for protocol in ["tcp", "udp"] {
                assert_eq!(pod.netns.ask(protocol, "127.0.0.1", 9000), NO_ANSWER);
            }
            // It is the rule that keeps them out.
            node.host().sh("nft flush ruleset");
            assert_eq!(
                pod.netns.ask("tcp", "127.0.0.1", 9000),
                "host sees 10.1.0.2"
            );
        });
    });
}
