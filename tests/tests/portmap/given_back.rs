//! A port that was taken over goes back to its former holder.

use std::collections::BTreeSet;

use sandbox::{BackEnd, NO_ANSWER, NODE, Stdout, beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::{Node, bridge, check, each, port, publishing};

/// TCP and UDP of all addresses, and TCP of one address.
fn of_all_and_of_one() -> [Value; 3] {
    let mut one = port(9045, 80, "tcp");
    one["hostIP"] = NODE[0].into();
    [port(9044, 80, "tcp"), port(9044, 80, "udp"), one]
}

/// The pod that answers at each of [`of_all_and_of_one`]; panics unless it is one pod.
#[track_caller]
fn holder(node: &Node) -> String {
    let targets = [
        ("tcp", NODE[0], 9044),
        ("tcp", NODE[1], 9044),
        ("udp", NODE[0], 9044),
        ("udp", NODE[1], 9044),
        ("tcp", NODE[0], 9045),
    ];
    let answers = targets.map(|(protocol, to, number)| node.outside.ask(protocol, to, number));
    let name = |answer: &String| answer.split(' ').next().unwrap_or_default().to_owned();
    let names: BTreeSet<_> = answers.iter().map(name).collect();
    assert_eq!(names.len(), 1, "{:?}: {answers:?}", node.back_end);
    names.into_iter().next().unwrap_or_default()
}

#[test]
fn a_port_that_was_taken_over_is_given_back() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let ports = of_all_and_of_one();
            let pods = ["a", "b", "c", "d"].map(|name| node.published(name, &ports));
            let [a, b, c, d] = &pods;
            let _servers = pods.each_ref().map(|pod| pod.netns.serve(80));
            assert_eq!(holder(node), "d");
            node.unpublish(d, &ports);
            assert_eq!(holder(node), "c", "the one before");
            check(node, c, &ports).silent();
            // One that waits goes before its turn comes.
            node.unpublish(b, &ports);
            assert_eq!(holder(node), "c");
            // By owner alone, as of a runtime that has forgotten the rest.
            node.portmap()
                .netns("")
                .del(&conf::plugin("portmap"), &c.netns, "eth0")
                .silent();
            assert_eq!(holder(node), "a", "not one that has gone");
            check(node, a, &ports).silent();
            node.unpublish(a, &ports);
            node.assert_rules(&before);
        });
    });
}

#[test]
fn a_failed_add_and_gc_give_ports_back() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let ports = of_all_and_of_one();
            let a = node.published("a", &ports);
            let b = node.pod("b");
            let _servers = [&a, &b].map(|pod| pod.netns.serve(80));
            let published = node.rules();
            let conf = conf::with_prev(&publishing(&node.conf(), &ports), &b.result);
            let failed = node
                .portmap()
                .stdout(Stdout::NoReader)
                .add(&conf, &b.netns, "eth0");
            assert_ne!(failed.code(), 0, "{failed}");
            assert_eq!(holder(node), "a");
            node.assert_rules(&published);

            node.publish(&b, &ports).result();
            assert_eq!(holder(node), "b");
            let id = container_id(&a.netns);
            let gc = conf::with_valid(&node.conf(), &[(&id, "eth0")]);
            node.portmap().gc(&gc).silent();
            assert_eq!(holder(node), "a");
            node.assert_rules(&published);

            // One that waits is collected, too, and does not come back.
            node.publish(&b, &ports).result();
            let id = container_id(&b.netns);
            let gc = conf::with_valid(&node.conf(), &[(&id, "eth0")]);
            node.portmap().gc(&gc).silent();
            assert_eq!(holder(node), "b");
            node.unpublish(&b, &ports);
            assert!(!node.rules().contains("9044"), "{}", node.rules());
        });
    });
}

#[test]
fn an_add_again_takes_its_own_port_back_and_gives_it_back_once() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let ports = of_all_and_of_one();
            let (a, b) = (node.published("a", &ports), node.published("b", &ports));
            let _servers = [&a, &b].map(|pod| pod.netns.serve(80));
            node.publish(&a, &ports).result();
            assert_eq!(holder(node), "a");
            node.unpublish(&a, &ports);
            assert_eq!(holder(node), "b");
            node.unpublish(&b, &ports);
            assert!(!node.rules().contains("9044"), "{}", node.rules());
        });
    });
}

#[test]
fn clients_of_udp_follow_a_port_there_and_back() {
    beyond_peer(
        "plugins#1190: DEL leaves them with the pod that is gone",
        || {
            each(&BackEnd::ALL, |node| {
                let dns = [port(5353, 53, "udp")];
                let a = node.published("a", &dns);
                let _a = a.netns.serve(53);
                let talk = node.outside.converse("udp", NODE[0], 5353);
                let hears = |name: &str| {
                    let so_far = talk.output().len();
                    let what = format!("an answer of {name}");
                    node.outside.wait_until(&what, |_| {
                        talk.output()[so_far..].contains(&format!("{name} sees"))
                    });
                };
                hears("a");
                let b = node.published("b", &dns);
                let _b = b.netns.serve(53);
                hears("b");
                node.unpublish(&b, &dns);
                hears("a");
            });
        },
    );
}

#[test]
fn two_networks_of_a_container_may_publish_the_same_port() {
    beyond_peer("v1.1 cannot CHECK two families", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let ports = of_all_and_of_one();
            for last in ["net1", "eth0"] {
                let pod = node.published(&format!("before-{last}"), &ports);
                let subnets = ["10.2.0.0/24", "fd02::/64"];
                let second = conf::with(
                    &bridge(),
                    json!({"name": "second", "bridge": "cni1", "isDefaultGateway": false,
                        "isGateway": true, "ipam": conf::host_local_ipam(&subnets)}),
                );
                let result = node.cni("bridge").add(&second, &pod.netns, "net1").result();
                let conf = conf::with(&node.conf(), json!({"name": "second"}));
                let conf = conf::with_prev(&publishing(&conf, &ports), &result);
                let added = node.portmap().add(&conf, &pod.netns, "net1");
                added.result();
                assert_eq!(added.stderr(), "", "it took nothing from another container");
                check(node, &pod, &ports).silent();
                node.portmap().check(&conf, &pod.netns, "net1").silent();
                let _server = pod.netns.serve(80);
                let sees = |from: &str| {
                    let answer = node.host().ask("tcp", "127.0.0.1", 9044);
                    assert_eq!(answer, format!("before-{last} sees {from}"));
                };
                sees("10.2.0.1");
                if last == "eth0" {
                    // podman network disconnect of the newer one.
                    node.portmap().del(&conf, &pod.netns, "net1").silent();
                    sees("10.1.0.1");
                    check(node, &pod, &ports).silent();
                    node.unpublish(&pod, &ports);
                } else {
                    node.unpublish(&pod, &ports);
                    sees("10.2.0.1");
                    node.portmap().check(&conf, &pod.netns, "net1").silent();
                    node.portmap().del(&conf, &pod.netns, "net1").silent();
                }
                assert_eq!(node.host().ask("tcp", "127.0.0.1", 9044), NO_ANSWER);
                node.cni("bridge").del(&second, &pod.netns, "net1").silent();
                node.cni("bridge")
                    .del(&bridge(), &pod.netns, "eth0")
                    .silent();
            }
            node.assert_rules(&before);
        });
    });
}

#[test]
fn a_saved_ruleset_that_is_loaded_again_gives_ports_back() {
    beyond_peer("plugins#1267: the first one wins", || {
        let node = Node::new(BackEnd::Nftables);
        let ports = of_all_and_of_one();
        let (a, b) = (node.published("a", &ports), node.published("b", &ports));
        let _servers = [&a, &b].map(|pod| pod.netns.serve(80));
        let ruleset = node.host().sh("nft list ruleset");
        assert!(ruleset.contains(" : 0x00000001"), "{ruleset}");
        let file = node.sandbox.dir().join("ruleset").display().to_string();
        node.host().sh(&format!(
            "nft list ruleset >{file}; nft flush ruleset; nft -f {file}"
        ));
        assert_eq!(holder(&node), "b");
        node.unpublish(&b, &ports);
        assert_eq!(holder(&node), "a");
        check(&node, &a, &ports).silent();
    });
}

/// What `bridge-nf-call-iptables` may be on this kernel.
fn states(node: &Node) -> Vec<&'static str> {
    let has = node
        .host()
        .sh("modprobe -q br_netfilter || :; ls /proc/sys/net 2>/dev/null");
    if has.lines().any(|name| name == "bridge") {
        vec!["1", "0"]
    } else {
        // Without the module it is as with 0, for ever.
        vec![""]
    }
}

fn filter_bridges(node: &Node, state: &str) {
    if !state.is_empty() {
        node.host().sh(&format!(
            "echo {state} >/proc/sys/net/bridge/bridge-nf-call-iptables
             echo {state} >/proc/sys/net/bridge/bridge-nf-call-ip6tables"
        ));
    }
}

#[test]
fn neighbours_reach_a_port_whatever_bridged_frames_pass_at_add_and_later() {
    each(&BackEnd::ALL, |node| {
        for at_add in states(node) {
            filter_bridges(node, at_add);
            let name = format!("a{at_add}");
            let pod = node.published(&name, &[port(8080, 80, "tcp"), port(8080, 80, "udp")]);
            let neighbour = node.pod(&format!("b{at_add}"));
            let _server = pod.netns.serve(80);
            for later in states(node) {
                filter_bridges(node, later);
                for (protocol, to) in [("tcp", NODE[0]), ("tcp", NODE[1]), ("udp", NODE[0])] {
                    let answer = neighbour.netns.ask(protocol, to, 8080);
                    let context = format!("{protocol} {to}: {at_add:?} at ADD, {later:?} now");
                    assert!(
                        answer.starts_with(&format!("{name} sees ")),
                        "{context}: {answer}"
                    );
                }
            }
            node.unpublish(&pod, &[port(8080, 80, "tcp"), port(8080, 80, "udp")]);
        }
    });
}
