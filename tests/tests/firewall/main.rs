//! firewall, chained after bridge: whose packets the node forwards, with every back end, and what
//! stays in the packet filters.

mod firewalld;
mod trace;

use std::ops::Deref;

use sandbox::{
    BackEnd, Cni, FilterNode, NO_ANSWER, NODE, Netns, Suite, beyond_peer, conf, container_id,
};
use serde_json::{Value, json};

/// firewall with these keys.
fn firewall(back_end: BackEnd, keys: Value) -> Value {
    let mut conf = conf::plugin("firewall");
    conf["backend"] = back_end.name().into();
    conf::with(&conf, keys)
}

/// A network with a bridge of its own, whose subnets have this number.
fn bridge(number: u8) -> Value {
    let subnets = [format!("10.{number}.0.0/24"), format!("fd0{number}::/64")];
    let keys = json!({
        "name": format!("net{number}"), "bridge": format!("br{number}"),
        "isDefaultGateway": true, "hairpinMode": true,
    });
    conf::with(&conf::bridge(&subnets.each_ref().map(String::as_str)), keys)
}

struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

struct Pod {
    netns: Netns,
    /// What firewall has returned.
    result: Value,
    conf: Value,
}

impl Pod {
    /// Its first address of a family.
    fn ip(&self, family: &str) -> String {
        let dot = if family == "4" { '.' } else { ':' };
        let ips = self.result["ips"].as_array().expect("addresses").iter();
        let mut ips = ips.filter_map(|it| it["address"].as_str());
        let address = ips.find(|it| it.contains(dot)).expect("an address");
        address.split('/').next().unwrap_or_default().to_owned()
    }

    fn reaches(&self, other: &Self) -> bool {
        let answers = ["4", "6"].map(|family| self.netns.ping(&other.ip(family), 1) == [true]);
        assert_eq!(answers[0], answers[1], "IPv4 and IPv6 differ");
        answers[0]
    }
}

impl Node {
    fn attach(&self, name: &str, number: u8, conf: &Value) -> Pod {
        self.attach_by(Suite::Ours, name, number, conf)
    }

    fn attach_by(&self, suite: Suite, name: &str, number: u8, conf: &Value) -> Pod {
        let netns = self.sandbox.pod(name);
        let version = conf["cniVersion"].as_str().expect("a version");
        let bridge = conf::at(&bridge(number), version);
        let first = self.cni("bridge").add(&bridge, &netns, "eth0").result();
        let conf = conf::with(conf, json!({"name": format!("net{number}")}));
        let conf = conf::with_prev(&conf, &first);
        let call = self.cni("firewall").suite(suite);
        let result = call.add(&conf, &netns, "eth0").result();
        assert_eq!(result["ips"], first["ips"]);
        assert_eq!(result["interfaces"], first["interfaces"]);
        Pod {
            netns,
            result,
            conf,
        }
    }

    fn firewall(&self) -> Cni {
        self.cni("firewall")
    }

    fn del(&self, pod: &Pod) {
        self.firewall().del(&pod.conf, &pod.netns, "eth0").silent();
    }

    fn filter(&self) -> [String; 2] {
        ["iptables-save", "ip6tables-save"].map(|program| {
            let path = self.back_end.path(&self.sandbox);
            self.host().sh(&format!(
                "PATH={path} {program} -t filter | grep '^-A' || :"
            ))
        })
    }
}

/// What firewall has noted about pods.
fn notes(node: &Node) -> String {
    node.host().sh("find /run -name '*:firewall'")
}

/// Runs `test` on a node for each variant of iptables.
fn each_iptables(test: impl Fn(Node)) {
    FilterNode::each(&BackEnd::IPTABLES, |node| test(Node(node)));
}

/// Runs `test` on a node for each back end.
fn each(test: impl Fn(Node)) {
    FilterNode::each(&BackEnd::ALL, |node| test(Node(node)));
}

const POLICIES: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

#[test]
fn the_chains_are_those_of_the_go_plugin() {
    beyond_peer(
        "plugins before v1.7.1 do not know the policy isolated",
        || {
            each_iptables(|node| {
                let keys = json!({"ingressPolicy": "isolated", "isolatePublishedPorts": true});
                node.attach("a", 1, &firewall(node.back_end, keys));
                for (rules, ip) in node.filter().iter().zip(["10.1.0.2/32", "fd01::2/128"]) {
                    let expected = format!(
                        r#"-A FORWARD -m comment --comment "{POLICIES}" -j CNI-ISOLATION-STAGE-1
-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-A CNI-FORWARD -d {ip} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s {ip} -j ACCEPT
-A CNI-ISOLATION-STAGE-1 -i br1 -o br1 -m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)" -j DROP
-A CNI-ISOLATION-STAGE-1 -i br1 ! -o br1 -m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)" -j CNI-ISOLATION-STAGE-2
-A CNI-ISOLATION-STAGE-1 -m comment --comment "{POLICIES}" -j RETURN
-A CNI-ISOLATION-STAGE-2 -o br1 -m comment --comment "{POLICIES}" -j DROP
-A CNI-ISOLATION-STAGE-2 -m comment --comment "{POLICIES}" -j RETURN
"#
                    );
                    assert_eq!(*rules, expected);
                }
            });
        },
    );
}

#[test]
fn the_rules_are_those_of_the_go_plugin_and_in_its_order() {
    for ingress in ["open", "same-bridge"] {
        let rules = [Suite::Ours, Suite::Peer].map(|suite| {
            let node = Node(FilterNode::new(BackEnd::IptablesNft));
            let keys = json!({"ingressPolicy": ingress, "isolatePublishedPorts": true, "cniVersion": "1.0.0"});
            let conf = firewall(node.back_end, keys);
            for (name, number) in [("a", 1), ("b", 1), ("c", 2)] {
                node.attach_by(suite, name, number, &conf);
            }
            node.filter()
        });
        // The comment of plugins before v1.7.
        let ours = rules[0]
            .each_ref()
            .map(|it| it.replace("same-bridge|isolated", "same-bridge"));
        let theirs = rules[1]
            .each_ref()
            .map(|it| it.replace("same-bridge|isolated", "same-bridge"));
        assert_eq!(ours, theirs, "{ingress}");
    }
}

#[test]
fn a_pods_rules_go_with_its_del_and_those_of_others_stay() {
    each_iptables(|node| {
        let conf = firewall(node.back_end, json!({}));
        let kept = node.attach("a", 1, &conf);
        let before = node.filter();
        let pod = node.attach("b", 1, &conf);
        assert!(node.filter()[0].contains("-s 10.1.0.3/32 -j ACCEPT"));
        node.del(&pod);
        node.del(&pod);
        assert_eq!(node.filter(), before);
        node.firewall()
            .check(&kept.conf, &kept.netns, "eth0")
            .silent();
        node.del(&kept);
        assert!(!node.filter().concat().contains("10.1.0.2"));
    });
}

#[test]
fn del_finds_the_rules_without_a_result() {
    beyond_peer("reference 8 #17: it needs prevResult", || {
        each_iptables(|node| {
            let conf = firewall(node.back_end, json!({"ingressPolicy": "same-bridge"}));
            let pod = node.attach("a", 1, &conf);
            let nothing = json!({"prevResult": null, "ingressPolicy": null, "backend": null});
            let conf = conf::with(&pod.conf, nothing);
            node.sandbox.remove_pod(&pod.netns);
            for _ in 0..2 {
                let call = node.firewall().netns("");
                call.del(&conf, &pod.netns, "eth0").silent();
                let rules = node.filter().concat();
                assert!(
                    !rules.contains("10.1.0.2") && !rules.contains("ISOLATION"),
                    "{rules}"
                );
            }
            assert_eq!(notes(&node), "");
        });
    });
}

#[test]
fn a_repeated_add_adds_nothing() {
    beyond_peer(
        "plugins before v1.7.1 do not know the policy isolated",
        || {
            each_iptables(|node| {
                let conf = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
                let pod = node.attach("a", 1, &conf);
                let before = node.filter();
                node.firewall().add(&pod.conf, &pod.netns, "eth0").result();
                assert_eq!(node.filter(), before);
            });
        },
    );
}

#[test]
fn a_forward_policy_of_drop_lets_pods_through() {
    beyond_peer(
        "its bridge is still checking the IPv6 address of the gateway",
        || {
            each_iptables(|node| {
                let path = node.back_end.path(&node.sandbox);
                node.host().sh(&format!(
                    "PATH={path}; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
                ));
                let bare = node.sandbox.pod("bare");
                node.cni("bridge").add(&bridge(1), &bare, "eth0").result();
                assert_eq!(bare.ping(sandbox::OUTSIDE[0], 1), [false]);
                let pod = node.attach("a", 1, &firewall(node.back_end, json!({})));
                for outside in sandbox::OUTSIDE {
                    assert_eq!(pod.netns.ping(outside, 1), [true], "{outside}");
                }
                // From outside only answers come in.
                assert_eq!(node.outside.ping(&pod.ip("4"), 1), [false]);
            });
        },
    );
}

#[test]
fn the_administrators_rules_come_first() {
    each_iptables(|node| {
        let conf = firewall(
            node.back_end,
            json!({"iptablesAdminChainName": "CNI-foobar"}),
        );
        let pod = node.attach("a", 1, &conf);
        let path = node.back_end.path(&node.sandbox);
        assert_eq!(pod.netns.ping(sandbox::OUTSIDE[0], 1), [true]);
        node.host().sh(&format!(
            "PATH={path} iptables -A CNI-foobar -s 10.1.0.2 -j DROP"
        ));
        assert_eq!(pod.netns.ping(sandbox::OUTSIDE[0], 1), [false]);
        node.del(&pod);
        assert!(node.filter()[0].contains("-A CNI-foobar -s 10.1.0.2/32 -j DROP"));
    });
}

// ---- ingress policies

fn unless_peers_nftables(node: &Node) -> bool {
    node.back_end != BackEnd::Nftables || !sandbox::testing_the_peer()
}

#[test]
fn pods_behind_bridges_with_a_policy_do_not_reach_each_other() {
    each(|node| {
        if !unless_peers_nftables(&node) {
            return;
        }
        let policy = |name| firewall(node.back_end, json!({"ingressPolicy": name}));
        let a = node.attach("a", 1, &policy("same-bridge"));
        let neighbour = node.attach("b", 1, &policy("same-bridge"));
        let other = node.attach("c", 2, &policy("same-bridge"));
        let open = node.attach("d", 3, &policy("open"));
        assert!(a.reaches(&neighbour) && neighbour.reaches(&a));
        assert!(!a.reaches(&other) && !other.reaches(&a));
        assert!(a.reaches(&open) && open.reaches(&a));
        assert_eq!(a.netns.ping(sandbox::OUTSIDE[0], 1), [true]);
        assert_eq!(node.host().ping(&a.ip("4"), 1), [true]);
        for pod in [&a, &neighbour, &other, &open] {
            node.firewall()
                .check(&pod.conf, &pod.netns, "eth0")
                .silent();
        }
    });
}

#[test]
fn isolated_pods_do_not_reach_each_other_where_the_node_forwards() {
    beyond_peer(
        "plugins before v1.7.1 do not know the policy isolated",
        || {
            each(|node| {
                let conf = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
                let (a, b) = (node.attach("a", 1, &conf), node.attach("b", 1, &conf));
                let other = node.attach("c", 2, &conf);
                assert!(!a.reaches(&other) && !other.reaches(&a));
                // By way of the gateway, as no frame of the bridge's own passes the rules here.
                a.netns
                    .sh(&format!("ip route replace {} via 10.1.0.1", b.ip("4")));
                b.netns
                    .sh(&format!("ip route replace {} via 10.1.0.1", a.ip("4")));
                assert_eq!(a.netns.ping(&b.ip("4"), 1), [false]);
            });
        },
    );
}

/// A pod behind another bridge, and a port of the node that leads to it.
fn published(node: &Node, keys: &Value) -> (Pod, String) {
    let conf = firewall(node.back_end, keys.clone());
    let from = node.attach("a", 1, &conf);
    let to = node.attach("b", 2, &conf);
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    let mut portmap = conf::plugin("portmap");
    portmap["backend"] = node.back_end.name().into();
    portmap["runtimeConfig"] = json!({"portMappings": [mapping]});
    let portmap = conf::with_prev(&portmap, &to.result);
    node.cni("portmap")
        .add(&portmap, &to.netns, "eth0")
        .result();
    let server = to.netns.serve(80);
    let answer = from.netns.ask("tcp", NODE[0], 8080);
    drop(server);
    (from, answer)
}

#[test]
fn a_published_port_is_published_for_pods_of_other_networks_too() {
    beyond_peer("networks 3.4: it drops them", || {
        each(|node| {
            for policy in ["same-bridge", "isolated"] {
                let node = Node(FilterNode::new(node.back_end));
                let (_, answer) = published(&node, &json!({"ingressPolicy": policy}));
                assert!(answer.starts_with("b sees "), "{policy}: {answer}");
            }
        });
    });
}

#[test]
fn a_key_isolates_published_ports_as_the_go_plugin_does() {
    each(|node| {
        if !unless_peers_nftables(&node) {
            return;
        }
        let keys = json!({"ingressPolicy": "same-bridge", "isolatePublishedPorts": true});
        let (_, answer) = published(&node, &keys);
        assert_eq!(answer, NO_ANSWER);
    });
}

#[test]
fn the_policy_goes_with_the_last_pod_of_the_bridge() {
    beyond_peer("reference 8 #17: it stays", || {
        each(|node| {
            let conf = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
            let first = node.attach("a", 1, &conf);
            let second = node.attach("b", 1, &conf);
            let other = node.attach("c", 2, &conf);
            node.del(&first);
            assert!(node.rules().contains("br1"));
            node.del(&second);
            assert!(!node.rules().contains("br1"), "{}", node.rules());
            assert!(node.rules().contains("br2"));
            node.firewall()
                .check(&other.conf, &other.netns, "eth0")
                .silent();
            node.del(&other);
            let rules = node.rules();
            assert!(
                !rules.contains("ISOLATION") && !rules.contains("podwire_firewall"),
                "{rules}"
            );
            assert_eq!(notes(&node), "");
        });
    });
}

#[test]
fn a_bridge_of_two_networks_keeps_its_policy_until_both_are_empty() {
    beyond_peer("reference 8 #17", || {
        each(|node| {
            let conf = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
            let pod = node.attach("a", 1, &conf);
            let other = conf::with(&pod.conf, json!({"name": "other"}));
            let call = || node.firewall().id("x");
            call().add(&other, &pod.netns, "eth0").result();
            node.del(&pod);
            assert!(node.rules().contains("br1"));
            call().del(&other, &pod.netns, "eth0").silent();
            assert!(!node.rules().contains("br1"));
        });
    });
}

#[test]
fn in_nftables_the_rules_do_not_grow_with_pods() {
    beyond_peer("no such back end", || {
        let node = Node(FilterNode::new(BackEnd::Nftables));
        let before = node.rules();
        let open = firewall(node.back_end, json!({}));
        let pod = node.attach("open", 1, &open);
        node.assert_rules(&before);
        assert_eq!(notes(&node), "");
        node.del(&pod);
        let conf = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
        node.attach("a", 1, &conf);
        let one = node.rules();
        for name in ["b", "c", "d"] {
            node.attach(name, 1, &conf);
        }
        node.assert_rules(&one);
    });
}

// ---- the choice of a back end

#[test]
fn iptables_is_chosen_and_nftables_where_it_is_not_installed() {
    beyond_peer("it needs both programs", || {
        let node = Node(FilterNode::new(BackEnd::IptablesNft));
        let conf = conf::with(
            &firewall(node.back_end, json!({"ingressPolicy": "isolated"})),
            json!({"backend": null}),
        );
        let pod = node.attach("a", 1, &conf);
        assert!(node.filter()[0].contains("CNI-FORWARD"));
        node.del(&pod);
        let gone = || {
            let programs = BackEnd::PROGRAMS;
            node.firewall()
                .env("PATH", "/usr/bin:/bin")
                .without(&programs)
        };
        let before = node.rules();
        gone().add(&pod.conf, &pod.netns, "eth0").result();
        assert!(
            node.rules().contains("podwire_firewall"),
            "{}",
            node.rules()
        );
        gone().check(&pod.conf, &pod.netns, "eth0").silent();
        gone().del(&pod.conf, &pod.netns, "eth0").silent();
        node.assert_rules(&before);
    });
}

// ---- keys, CHECK, GC, STATUS

#[test]
fn values_that_cannot_be_are_refused_before_anything_is_touched() {
    beyond_peer("it adds rules first", || {
        let node = Node(FilterNode::new(BackEnd::IptablesNft));
        let pod = node.attach("a", 1, &firewall(node.back_end, json!({})));
        node.del(&pod);
        let before = node.rules();
        for keys in [
            json!({"backend": 1}),
            json!({"iptablesAdminChainName": []}),
            json!({"iptablesAdminChainName": "x y"}),
            json!({"iptablesAdminChainName": "a-name-of-more-than-28-letters"}),
            json!({"firewalldZone": {}}),
            json!({"firewalldZone": "a\nb"}),
            json!({"ingressPolicy": 1}),
            json!({"ingressPolicy": "x"}),
            json!({"isolatePublishedPorts": "yes"}),
            json!({"prevResult": null}),
            json!({"ingressPolicy": "isolated", "prevResult": {"interfaces": null}}),
        ] {
            let conf = conf::with(&pod.conf, keys.clone());
            for verb in ["ADD", "CHECK"] {
                let error = node
                    .firewall()
                    .attachment(verb, &conf, &pod.netns, "eth0")
                    .error();
                assert_eq!(error.code, 7, "{verb} {keys}: {}", error.msg);
            }
            node.firewall().del(&conf, &pod.netns, "eth0").silent();
        }
        node.assert_rules(&before);
    });
}

#[test]
fn the_texts_are_those_of_the_go_plugin() {
    beyond_peer(
        "plugins before v1.7.1 do not know the policy isolated",
        || {
            let node = Node(FilterNode::new(BackEnd::IptablesNft));
            let pod = node.attach("a", 1, &firewall(node.back_end, json!({})));
            let msg = |verb: &str, keys: Value| {
                let conf = conf::with(&pod.conf, keys);
                let call = node.firewall().attachment(verb, &conf, &pod.netns, "eth0");
                call.error().msg
            };
            for verb in ["ADD", "CHECK"] {
                let text = "missing prevResult from earlier plugin";
                assert_eq!(msg(verb, json!({"prevResult": null})), text);
            }
            let keys = json!({"ingressPolicy": "x"});
            assert_eq!(msg("ADD", keys), "unknown ingress policy: \"x\"");
            let keys = json!({"ingressPolicy": "isolated", "prevResult": {"interfaces": null, "ips": null}});
            let text = "interface needs to be set for ingress policy \"isolated\", make sure to chain \"firewall\" plugin with \"bridge\"";
            assert_eq!(msg("ADD", keys), text);
            let path = node.back_end.path(&node.sandbox);
            node.host().sh(&format!(
                "PATH={path} iptables -D CNI-FORWARD -s 10.1.0.2 -j ACCEPT"
            ));
            assert_eq!(
                msg("CHECK", json!({})),
                "expected rule [-s 10.1.0.2/32 -j ACCEPT] not found"
            );
            node.host().sh(&format!("PATH={path} iptables -F FORWARD"));
            let text = "expected FORWARD rule [-m comment --comment CNI firewall plugin rules -j CNI-FORWARD] not found";
            assert_eq!(msg("CHECK", json!({})), text);
        },
    );
}

#[test]
fn check_finds_a_policy_that_is_gone() {
    beyond_peer("its CHECK does not look", || {
        each(|node| {
            let conf = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
            let pod = node.attach("a", 1, &conf);
            let path = node.back_end.path(&node.sandbox);
            node.host().sh(&match node.back_end {
                BackEnd::Nftables => "nft flush ruleset".to_owned(),
                _ => format!("PATH={path} iptables -F CNI-ISOLATION-STAGE-1"),
            });
            node.firewall().check(&pod.conf, &pod.netns, "eth0").error();
        });
    });
}

#[test]
fn gc_removes_the_rules_of_pods_that_are_forgotten() {
    beyond_peer("it has no GC", || {
        each(|node| {
            let keys = json!({"ingressPolicy": "isolated", "cniVersion": "1.1.0"});
            let conf = firewall(node.back_end, keys);
            let kept = node.attach("a", 1, &conf);
            let before = node.rules();
            let gone = node.attach("b", 1, &conf);
            let id = container_id(&kept.netns);
            let valid = |list: &[(&str, &str)]| {
                let conf = conf::with(&gone.conf, json!({"prevResult": null}));
                conf::with_valid(&conf, list)
            };
            node.firewall().gc(&valid(&[(&id, "eth0")])).silent();
            node.assert_rules(&before);
            node.firewall().gc(&valid(&[])).silent();
            let rules = node.rules();
            assert!(
                !rules.contains("br1") && !rules.contains("10.1.0.2/32"),
                "{rules}"
            );
        });
    });
}

#[test]
fn status_tells_whether_the_back_end_can_be_used() {
    beyond_peer("it has no STATUS", || {
        let node = Node(FilterNode::new(BackEnd::IptablesNft));
        let conf = |backend: &str| {
            let conf = conf::with(&conf::plugin("firewall"), json!({"backend": backend}));
            conf::at(&conf, "1.1.0")
        };
        for backend in ["iptables", "nftables", ""] {
            node.firewall().status(&conf(backend)).silent();
        }
        assert_eq!(node.firewall().status(&conf("firewalld")).error().code, 50);
        let gone = node
            .firewall()
            .env("PATH", "/bin")
            .without(&BackEnd::PROGRAMS);
        assert_eq!(gone.status(&conf("iptables")).error().code, 50);
    });
}

// ---- together with the Go plugin

#[test]
fn each_suite_checks_and_deletes_what_the_other_has_added() {
    for (first, second) in [(Suite::Ours, Suite::Peer), (Suite::Peer, Suite::Ours)] {
        let node = Node(FilterNode::new(BackEnd::IptablesNft));
        let keys = json!({"ingressPolicy": "same-bridge", "cniVersion": "1.0.0"});
        let conf = firewall(node.back_end, keys);
        let pod = node.attach_by(first, "a", 1, &conf);
        let call = || node.firewall().suite(second);
        call().check(&pod.conf, &pod.netns, "eth0").silent();
        call().del(&pod.conf, &pod.netns, "eth0").silent();
        assert!(!node.filter().concat().contains("10.1.0.2/32"));
    }
}
