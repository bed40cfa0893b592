//! ADD again, CHECK, DEL, GC and STATUS.

use sandbox::{BackEnd, NO_ANSWER, NODE, Sandbox, beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::{HTTP, Node, bridge, each, port, portmap, publishing, tcp};

#[test]
fn a_pod_that_the_node_has_no_route_to_is_published_all_the_same() {
    for back_end in BackEnd::ALL {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::with(&conf::portmap(HTTP), json!({"backend": back_end.name()}));
        let cni = || sandbox.cni_with(back_end, "portmap");
        let added = cni().add(&conf, &pod, "eth0");
        added.result();
        assert!(sandbox.host().rules().contains("10.1.0.2"), "{back_end:?}");
        beyond_peer("it says nothing", || {
            let way = "find the way to 10.1.0.2: network is unreachable";
            assert!(added.stderr().contains(way), "{added}");
        });
        cni().del(&conf, &pod, "eth0").silent();
        assert!(!sandbox.host().rules().contains("10.1.0.2"), "{back_end:?}");
    }
}

#[test]
fn add_again_does_not_duplicate() {
    each(&BackEnd::ALL, |node| {
        let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
        let pod = node.published("a", &mappings);
        let rules = node.host().rules();
        let again = node.publish(&pod, &mappings);
        again.result();
        assert_eq!(again.stderr(), "", "nothing was taken from another pod");
        node.assert_rules(&rules);
    });
}

#[test]
fn the_result_so_far_is_passed_on() {
    each(&BackEnd::ALL, |node| {
        let pod = node.pod("a");
        assert_eq!(node.publish(&pod, &tcp()).result(), pod.result);
        assert_eq!(node.publish(&pod, &[]).result(), pod.result);
    });
}

#[test]
fn without_mappings_nothing_is_touched() {
    each(&BackEnd::ALL, |node| {
        let pod = node.pod("a");
        let before = node.host().rules();
        node.publish(&pod, &[]).result();
        node.assert_rules(&before);
        assert_eq!(node.host().sysctl("net/ipv4/conf/cni0/route_localnet"), "0");
        let conf = conf::with_prev(&node.conf(), &pod.result);
        node.portmap().check(&conf, &pod.netns, "eth0").silent();
        node.portmap().del(&conf, &pod.netns, "eth0").silent();
        node.assert_rules(&before);
    });
}

#[test]
fn check_says_what_is_missing() {
    beyond_peer("v1.1 cannot CHECK two families", || {
        each(&BackEnd::ALL, |node| {
            let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
            let pod = node.published("a", &mappings);
            let checked = conf::with_prev(&publishing(&node.conf(), &mappings), &pod.result);
            let check = || node.portmap().check(&checked, &pod.netns, "eth0");
            check().silent();
            let flush = match node.back_end {
                BackEnd::Nftables => "nft flush ruleset",
                BackEnd::IptablesNft => "iptables-nft -t nat -F",
                BackEnd::IptablesLegacy => "iptables-legacy -t nat -F",
            };
            node.host().sh(flush);
            let error = check().error();
            let named = match node.back_end {
                BackEnd::Nftables => "8080",
                _ => "CNI-",
            };
            assert!(
                error.msg.contains(named),
                "{:?}: {}",
                node.back_end,
                error.msg
            );
            // The same ADD mends it, as after a reload of the firewall.
            node.publish(&pod, &mappings).result();
            check().silent();
        })
    });
}

#[test]
fn check_sees_what_only_one_family_lost() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let flush = match node.back_end {
            BackEnd::Nftables => "nft delete table ip6 podwire_hostports",
            BackEnd::IptablesNft => "ip6tables-nft -t nat -F CNI-HOSTPORT-DNAT",
            BackEnd::IptablesLegacy => "ip6tables-legacy -t nat -F CNI-HOSTPORT-DNAT",
        };
        let host = node.host();
        let checked = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
        let flushed = host.run(&["sh", "-c", flush]);
        // The peer has no such table; its rules are another case's.
        if flushed.code == 0 {
            node.portmap().check(&checked, &pod.netns, "eth0").error();
        } else {
            assert!(sandbox::testing_the_peer(), "{}", flushed.stderr);
        }
    });
}

#[test]
fn del_by_owner_alone() {
    beyond_peer("DEL without portMappings cleans nothing", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let mappings = [
                port(8080, 80, "tcp"),
                port(5353, 53, "udp"),
                port(7000, 70, "sctp"),
            ];
            let pod = node.published("a", &mappings);
            let alive = node.published("b", &[port(8081, 80, "tcp")]);
            let _server = alive.netns.serve(80);
            node.sandbox.remove_pod(&pod.netns);
            for _ in 0..2 {
                // No mappings, no prevResult, no namespace.
                node.portmap()
                    .netns("")
                    .del(&conf::plugin("portmap"), &pod.netns, "eth0")
                    .silent();
            }
            assert_eq!(node.outside.ask("tcp", NODE[0], 8081), "b sees 192.0.2.9");
            node.unpublish(&alive, &[port(8081, 80, "tcp")]);
            node.assert_rules(&before);
        });
    });
}

#[test]
fn del_removes_what_add_published_whatever_mappings_it_gets() {
    each(&BackEnd::ALL, |node| {
        let before = node.rules_after_a_first_pod();
        let both = [port(8080, 80, "tcp"), port(9090, 90, "tcp")];
        let mut of_one = port(8080, 80, "tcp");
        of_one["hostIP"] = NODE[0].into();
        let others = [
            vec![both[0].clone()],
            vec![port(7070, 80, "tcp")],
            vec![of_one],
            [&both[..], &[port(7070, 70, "udp")]].concat(),
            vec![port(8080, 81, "tcp"), both[1].clone()],
        ];
        for mappings in &others {
            let pod = node.published("a", &both);
            node.unpublish(&pod, mappings);
            node.assert_rules(&before);
            node.cni("bridge").del(&bridge(), &pod.netns, "eth0");
            node.sandbox.remove_pod(&pod.netns);
        }
    });
}

#[test]
fn del_finds_the_rules_that_add_made_in_another_back_end() {
    beyond_peer("v1.1 knows one back end", || {
        for (added, deleted) in [
            (BackEnd::IptablesNft, BackEnd::Nftables),
            (BackEnd::IptablesLegacy, BackEnd::Nftables),
            (BackEnd::Nftables, BackEnd::IptablesNft),
            (BackEnd::Nftables, BackEnd::IptablesLegacy),
        ] {
            let node = Node::new(added);
            let before = node.rules_after_a_first_pod();
            let pod = node.published("a", &tcp());
            let conf = conf::with_prev(&publishing(&portmap(deleted), &tcp()), &pod.result);
            node.portmap().check(&conf, &pod.netns, "eth0").silent();
            node.portmap().del(&conf, &pod.netns, "eth0").silent();
            let rules = node.host().rules();
            for trace in ["id-a", "10.1.0.3", "fd01::3", "CNI-DN-"] {
                assert!(
                    !rules.contains(trace),
                    "{added:?}, {deleted:?}: {trace} in {rules}"
                );
            }
            if deleted == BackEnd::Nftables {
                node.assert_rules(&before);
            }
        }
    });
}

#[test]
fn two_networks_of_a_container_do_not_take_each_others_ports() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let _server = pod.netns.serve(80);
        let second = conf::with(
            &bridge(),
            json!({"name": "second", "bridge": "cni1",
            "isDefaultGateway": false, "ipam": conf::host_local_ipam(&["10.2.0.0/24"])}),
        );
        let result = node.cni("bridge").add(&second, &pod.netns, "net1").result();
        let conf = conf::with(&node.conf(), json!({"name": "second"}));
        let mappings = [port(8081, 80, "tcp")];
        let conf = conf::with_prev(&publishing(&conf, &mappings), &result);
        node.portmap().add(&conf, &pod.netns, "net1").result();
        assert_eq!(node.host().ask("tcp", "127.0.0.1", 8081), "a sees 10.2.0.1");
        node.portmap().del(&conf, &pod.netns, "net1").silent();
        assert_eq!(node.host().ask("tcp", "127.0.0.1", 8081), NO_ANSWER);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
    });
}

#[test]
fn gc_removes_rules_without_an_owner() {
    beyond_peer("no GC there", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let alive = node.published("alive", &tcp());
            let _server = alive.netns.serve(80);
            let dead = node.published("dead", &[port(8081, 80, "tcp"), port(5353, 53, "udp")]);
            node.sandbox.remove_pod(&dead.netns);
            let id = container_id(&alive.netns);
            node.portmap()
                .gc(&conf::with_valid(&node.conf(), &[(&id, "eth0")]))
                .silent();
            let rules = node.host().rules();
            assert!(
                !rules.contains("id-dead") && !rules.contains("8081"),
                "{:?}: {rules}",
                node.back_end
            );
            assert_eq!(
                node.outside.ask("tcp", NODE[0], HTTP),
                "alive sees 192.0.2.9"
            );
            // Another network's list says nothing about this one.
            let other = conf::with(&node.conf(), json!({"name": "other"}));
            node.portmap().gc(&conf::with_valid(&other, &[])).silent();
            assert_eq!(
                node.outside.ask("tcp", NODE[1], HTTP),
                "alive sees 2001:db8::9"
            );
            node.portmap()
                .gc(&conf::with_valid(&node.conf(), &[]))
                .silent();
            node.assert_rules(&before);
        });
    });
}

#[test]
fn nftables_needs_no_program() {
    beyond_peer("it executes iptables", || {
        let node = Node::new(BackEnd::Nftables);
        let bare = || node.sandbox.cni("portmap").without(&BackEnd::PROGRAMS);
        let pod = node.pod("a");
        let _server = pod.netns.serve(80);
        let before = node.rules_after_a_first_pod();
        for key in [Value::Null, "nftables".into()] {
            let conf = conf::with(&node.conf(), json!({"backend": key}));
            bare().status(&conf).silent();
            let conf = conf::with_prev(&publishing(&conf, &tcp()), &pod.result);
            bare().add(&conf, &pod.netns, "eth0").result();
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
            bare().check(&conf, &pod.netns, "eth0").silent();
            bare().del(&conf, &pod.netns, "eth0").silent();
            node.assert_rules(&before);
        }
        let iptables = portmap(BackEnd::IptablesNft);
        assert_eq!(bare().status(&iptables).error().code, 50);
        let conf = conf::with_prev(&publishing(&iptables, &tcp()), &pod.result);
        let error = bare().add(&conf, &pod.netns, "eth0").error();
        assert!(error.msg.contains("iptables"), "{}", error.msg);
        node.assert_rules(&before);
    });
}

#[test]
fn rules_that_the_programs_cannot_see_are_not_forgotten() {
    beyond_peer("it says that all is well", || {
        let node = Node::new(BackEnd::IptablesNft);
        let pod = node.pod("a");
        node.rules_after_a_first_pod();
        // The legacy programs make a table of their own by looking for it.
        let rules = || node.host().sh("iptables-nft-save -t nat | grep ^-A");
        let before = rules();
        let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
        let portmap = || node.sandbox.cni_with(BackEnd::IptablesNft, "portmap");
        portmap().add(&conf, &pod.netns, "eth0").result();
        let published = rules();

        // Not installed any more, and the other variant since the ADD.
        let bare = || portmap().without(&BackEnd::PROGRAMS);
        let error = bare().del(&conf, &pod.netns, "eth0").error();
        assert!(
            error.msg.contains("find iptables: not installed"),
            "{error:?}"
        );
        let legacy = node.sandbox.cni_with(BackEnd::IptablesLegacy, "portmap");
        let error = legacy.del(&conf, &pod.netns, "eth0").error();
        assert!(error.msg.contains("iptables does not see it"), "{error:?}");
        assert_eq!(rules(), published);

        portmap().del(&conf, &pod.netns, "eth0").silent();
        assert_eq!(rules(), before);
        // Nothing is left, so no iptables program is needed.
        bare().del(&conf, &pod.netns, "eth0").silent();
    });
}

#[test]
fn no_program_is_executed_with_nftables() {
    beyond_peer("dozens of them", || {
        let node = Node::new(BackEnd::Nftables);
        let pod = node.pod("a");
        let trace = node.sandbox.dir().join("trace").display().to_string();
        let strace = ["strace", "-f", "-e", "trace=execve", "-o", &trace];
        let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
        for verb in ["ADD", "CHECK", "DEL"] {
            let done = node
                .portmap()
                .under(&strace)
                .attachment(verb, &conf, &pod.netns, "eth0");
            assert_eq!(done.code(), 0, "{done}");
            let text = std::fs::read_to_string(&trace).expect("the trace");
            assert_eq!(text.matches("execve(").count(), 1, "{verb}: {text}");
        }
    });
}
