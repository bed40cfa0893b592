//! Masquerade (`ipMasq` of bridge) seen from outside, with every back end: whose address
//! a server outside sees, what stays in the packet filters, and which verb removes it.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::time::{Duration, Instant};

use sandbox::{
    BackEnd, Cni, FilterNode, NO_ANSWER, NODE, Netns, OUTSIDE, Sandbox, Stdout, beyond_peer, conf,
    container_id,
};
use serde_json::{Value, json};

const SUBNETS: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];

/// A dual-stack network whose pods are masqueraded.
fn network(back_end: BackEnd) -> Value {
    let conf = conf::with(
        &conf::bridge(&SUBNETS),
        json!({"isDefaultGateway": true, "ipMasq": true}),
    );
    conf::with(&conf, json!({"ipMasqBackend": back_end.name()}))
}

/// A node whose pods are masqueraded.
struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

impl Node {
    fn new(back_end: BackEnd) -> Self {
        Self(FilterNode::new(back_end))
    }

    fn conf(&self) -> Value {
        network(self.back_end)
    }

    fn cni(&self) -> Cni {
        self.0.cni("bridge")
    }

    /// A pod that has been added, and the result of ADD.
    fn pod(&self, name: &str) -> (Netns, Value) {
        let pod = self.sandbox.pod(name);
        let result = self.cni().add(&self.conf(), &pod, "eth0").result();
        (pod, result)
    }

    fn del(&self, pod: &Netns) {
        self.cni().del(&self.conf(), pod, "eth0").silent();
    }

    /// Asserts that the server outside sees the node.
    #[track_caller]
    fn assert_masqueraded(&self, pod: &Netns) {
        for (to, seen) in OUTSIDE.into_iter().zip(NODE) {
            let answer = pod.ask("tcp", to, 80);
            assert_eq!(
                answer,
                format!("outside sees {seen}"),
                "{:?}",
                self.back_end
            );
        }
    }
}

fn each(back_ends: &[BackEnd], test: impl Fn(&Node)) {
    FilterNode::each(back_ends, |node| test(&Node(node)));
}

/// The rules that are particular to a network or a pod: neither the tables and chains that
/// all share, nor the policies of those that exist as soon as a program lists them.
fn particular(rules: &str) -> Vec<&str> {
    let about =
        |line: &&str| line.contains("10.1.0.") || line.contains("fd01:") || line.contains("CNI-");
    rules.lines().filter(about).collect()
}

/// Rules of `inet cni_plugins_masquerade masq_checks` as nft lists them, without handles.
fn checks(host: &Netns) -> Vec<Value> {
    let chain =
        "nft -j list chain inet cni_plugins_masquerade masq_checks 2>/dev/null || echo '{}'";
    let listed: Value = serde_json::from_str(&host.sh(chain)).expect("JSON of nft");
    let entries = listed["nftables"].as_array().cloned().unwrap_or_default();
    let rules = entries.into_iter().filter_map(|mut entry| {
        let mut rule = entry.get_mut("rule")?.take();
        rule.as_object_mut()?.remove("handle");
        Some(rule)
    });
    rules.collect()
}

// ---- what is seen outside

#[test]
fn a_server_outside_sees_the_node() {
    each(&BackEnd::ALL, |node| {
        let _server = node.outside.serve(80);
        let (pod, _) = node.pod("a");
        node.assert_masqueraded(&pod);
        for (to, seen) in OUTSIDE.into_iter().zip(NODE) {
            assert_eq!(pod.ask("udp", to, 80), format!("outside sees {seen}"));
        }
        assert_eq!(pod.ping(OUTSIDE[0], 1), [true]);
        assert_eq!(pod.ping(OUTSIDE[1], 1), [true]);
        // Without the rules it sees the pod: it knows the way, so this is no dead end.
        node.del(&pod);
        node.sandbox.host().sh("nft flush ruleset");
        let plain = conf::with(&node.conf(), json!({"ipMasq": false}));
        node.cni().add(&plain, &pod, "eth0").result();
        assert_eq!(pod.ask("tcp", OUTSIDE[0], 80), "outside sees 10.1.0.3");
    });
}

#[test]
fn what_stays_inside_the_subnet_keeps_its_source() {
    each(&BackEnd::ALL, |node| {
        let host = node.sandbox.host();
        // Bridged packets pass the hooks of IP, as Kubernetes wants it.
        host.sh(
            "cd /proc/sys/net/bridge; for it in bridge-nf-call-ip*tables; do echo 1 >$it; done",
        );
        let (a, _) = node.pod("a");
        let (b, _) = node.pod("b");
        let _server = b.serve(80);
        assert_eq!(a.ask("tcp", "10.1.0.3", 80), "b sees 10.1.0.2");
        assert_eq!(a.ask("tcp", "fd01::3", 80), "b sees fd01::2");
        // An address of the subnet that lies behind the node's other interface.
        node.outside
            .sh("ip addr add 10.1.0.77/32 dev lo; ip addr add fd01::77/128 dev lo");
        host.sh("ip route add 10.1.0.77 via 192.0.2.9; ip route add fd01::77 via 2001:db8::9");
        a.sh("ip route add 10.1.0.77 via 10.1.0.1; ip route add fd01::77 via fd01::1");
        let _outside = node.outside.serve(80);
        assert_eq!(a.ask("tcp", "10.1.0.77", 80), "outside sees 10.1.0.2");
        assert_eq!(a.ask("tcp", "fd01::77", 80), "outside sees fd01::2");
        node.assert_masqueraded(&a);
    });
}

/// A datagram with the pod's source, from the node: it meets the rules where a forwarded one
/// does, and needs no multicast router.
const DATAGRAM: &str = r#"
    use strict; use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6 AF_INET6 IPPROTO_IPV6);
    my ($from, $to, $index) = @ARGV;
    my $six = $to =~ /:/;
    socket(my $it, $six ? AF_INET6 : AF_INET, SOCK_DGRAM, 0) or die "socket: $!";
    setsockopt($it, SOL_SOCKET, 25, 'uplink') or die "bind to device: $!";
    # IPV6_TRANSPARENT, IP_TRANSPARENT: the address need not be the node's.
    setsockopt($it, $six ? 41 : 0, $six ? 75 : 19, 1) or die "transparent: $!";
    my $at = sub { $six ? pack_sockaddr_in6($_[1], inet_pton(AF_INET6, $_[0]), $index)
        : pack_sockaddr_in($_[1], inet_aton($_[0])) };
    bind($it, $at->($from, 0)) or die "bind: $!";
    send($it, 'hello', 0, $at->($to, 5353)) or die "send: $!";"#;

#[test]
fn multicast_keeps_its_source() {
    each(&BackEnd::ALL, |node| {
        let host = node.sandbox.host();
        let (_pod, _) = node.pod("a");
        let index = host.link("uplink").expect("uplink")["ifindex"].to_string();
        let seen = node.outside.capture("eth0", "udp port 5353");
        for (from, to, index) in [
            ("10.1.0.2", "239.1.2.3", "0"),
            ("10.1.0.2", OUTSIDE[0], "0"),
            ("fd01::2", "ff05::123", &*index),
            ("fd01::2", OUTSIDE[1], "0"),
        ] {
            let sent = host.run(&["perl", "-e", DATAGRAM, from, to, index]);
            assert_eq!(sent.code, 0, "to {to}: {}", sent.stderr);
        }
        node.outside.wait_until("four datagrams", |_| {
            seen.output().matches(".5353: ").count() == 4
        });
        let shown = seen.output();
        for (multicast, unicast) in [("239.1.2.3", NODE[0]), ("ff05::123", NODE[1])] {
            let line = shown.lines().find(|line| line.contains(multicast));
            let line = line.expect(multicast);
            assert!(
                line.contains(" 10.1.0.2.") || line.contains(" fd01::2."),
                "{line}"
            );
            let masqueraded = shown
                .lines()
                .any(|line| line.contains(&format!(" {unicast}.")));
            assert!(masqueraded, "no {unicast}: {shown}");
        }
    });
}

#[test]
fn source_ports_are_random_with_the_key() {
    beyond_peer("no such key", || {
        each(&BackEnd::ALL, |node| {
            let _server = node.outside.serve(80);
            let conf = conf::with(&node.conf(), json!({"ipMasqRandomFully": true}));
            let pod = node.sandbox.pod("a");
            let result = node.cni().add(&conf, &pod, "eth0").result();
            node.assert_masqueraded(&pod);
            let word = match node.back_end {
                BackEnd::Nftables => "masquerade fully-random",
                _ => "random-fully",
            };
            let rules = node.rules();
            assert_eq!(rules.matches(word).count(), 2, "{rules}");
            let checked = conf::with_prev(&conf, &result);
            node.cni().check(&checked, &pod, "eth0").silent();
            node.cni().del(&conf, &pod, "eth0").silent();
        });
    });
}

#[test]
fn exceptions_and_families_that_are_not_named_keep_their_source() {
    beyond_peer("no such keys", || {
        each(&BackEnd::ALL, |node| {
            let _server = node.outside.serve(80);
            let sources = ["10.1.0.2", "fd01::2"];
            for (keys, masqueraded) in [
                (json!({"ipMasqExcept": ["192.0.2.0/24"]}), [false, true]),
                (
                    json!({"ipMasqExcept": ["2001:db8::9/128", "10.0.0.0/8"]}),
                    [true, false],
                ),
                (json!({"ipMasqFamilies": ["ipv4"]}), [true, false]),
                (
                    json!({"ipMasqFamilies": ["ipv6"], "ipMasqExcept": null}),
                    [false, true],
                ),
            ] {
                // The addresses of the last one are used again.
                node.sandbox.host().sh("rm -rf /var/lib/cni/networks");
                let conf = conf::with(&node.conf(), keys);
                let pod = node.sandbox.pod("a");
                let result = node.cni().add(&conf, &pod, "eth0").result();
                for at in [0, 1] {
                    let seen = if masqueraded[at] {
                        NODE[at]
                    } else {
                        sources[at]
                    };
                    let answer = pod.ask("tcp", OUTSIDE[at], 80);
                    assert_eq!(answer, format!("outside sees {seen}"), "{conf}");
                }
                let checked = conf::with_prev(&conf, &result);
                node.cni().check(&checked, &pod, "eth0").silent();
                node.cni().del(&checked, &pod, "eth0").silent();
                let rules = node.rules();
                assert_eq!(particular(&rules), [""; 0], "{conf}");
                node.sandbox.remove_pod(&pod);
            }
            for (keys, named) in [
                (json!({"ipMasqExcept": ["10.0.0.0/33"]}), "ipMasqExcept"),
                (json!({"ipMasqExcept": ["0.0.0.0/0"]}), "ipMasqExcept"),
                (json!({"ipMasqFamilies": ["ipv5"]}), "ipMasqFamilies"),
            ] {
                let pod = node.sandbox.pod("b");
                let conf = conf::with(&node.conf(), keys);
                let error = node.cni().add(&conf, &pod, "eth0").error();
                assert_eq!(error.code, 7);
                assert!(error.msg.contains(named), "{}", error.msg);
                node.sandbox.remove_pod(&pod);
            }
        });
    });
}

#[test]
fn a_connection_outlives_other_pods() {
    each(&BackEnd::ALL, |node| {
        let _server = node.outside.serve(80);
        let (pod, _) = node.pod("a");
        let talk = pod.converse("tcp", OUTSIDE[0], 80);
        pod.wait_until("an answer", |_| talk.output().contains("sees 192.0.2.1"));
        for name in ["b", "c"] {
            let (other, _) = node.pod(name);
            node.del(&other);
        }
        let so_far = talk.output().len();
        pod.wait_until("more answers", |_| talk.output().len() > so_far + 100);
        assert!(!talk.output().contains("closed"));
        node.assert_masqueraded(&pod);
    });
}

// ---- which back end

#[test]
fn nftables_is_used_unless_the_configuration_says_otherwise() {
    beyond_peer("iptables unless it cannot be used", || {
        for (key, in_nftables) in [
            (Value::Null, true),
            ("nftables".into(), true),
            ("iptables".into(), false),
        ] {
            let node = Node::new(BackEnd::IptablesNft);
            let conf = conf::with(&node.conf(), json!({"ipMasqBackend": key}));
            let pod = node.sandbox.pod("a");
            node.cni().add(&conf, &pod, "eth0").result();
            let rules = node.rules();
            assert_eq!(
                rules.contains("cni_plugins_masquerade"),
                in_nftables,
                "{key}: {rules}"
            );
            assert_eq!(
                rules.contains("MASQUERADE") || rules.contains("CNI-"),
                !in_nftables,
                "{key}: {rules}"
            );
        }
    });
}

#[test]
fn an_unknown_back_end_is_refused_before_anything_is_made() {
    beyond_peer("the key is ignored there", || {
        let sandbox = Sandbox::new();
        let snapshot = sandbox.snapshot();
        let pod = sandbox.pod("a");
        let conf = conf::with(
            &network(BackEnd::Nftables),
            json!({"ipMasqBackend": "ebtables"}),
        );
        let error = sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
        assert_eq!(error.code, 7);
        assert_eq!(error.msg, r#"unknown ipmasq backend "ebtables""#);
        assert_eq!(pod.links(), ["lo"]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn nftables_needs_no_program() {
    beyond_peer("it executes nft or iptables", || {
        let node = Node::new(BackEnd::Nftables);
        let _server = node.outside.serve(80);
        let pod = node.sandbox.pod("a");
        let bare = || node.sandbox.cni("bridge").without(&BackEnd::PROGRAMS);
        for key in [Value::Null, "nftables".into()] {
            let conf = conf::with(
                &node.conf(),
                json!({"ipMasqBackend": key, "macspoofchk": true}),
            );
            bare().status(&conf).silent();
            let result = bare().add(&conf, &pod, "eth0").result();
            node.assert_masqueraded(&pod);
            let checked = conf::with_prev(&conf, &result);
            bare().check(&checked, &pod, "eth0").silent();
            bare().del(&conf, &pod, "eth0").silent();
            bare().gc(&conf::with_valid(&conf, &[])).silent();
            assert_eq!(particular(&node.rules()), [""; 0]);
        }
    });
}

#[test]
fn iptables_without_its_programs_is_an_error_and_undone() {
    let sandbox = Sandbox::new();
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let snapshot = snapshot.allow(" /run/mount "); // of mount(8)
    let pod = sandbox.pod("a");
    let conf = network(BackEnd::IptablesNft);
    let bare = || sandbox.cni("bridge").without(&BackEnd::PROGRAMS);
    let error = bare().add(&conf, &pod, "eth0").error();
    assert!(error.msg.contains("iptables"), "{}", error.msg);
    beyond_peer("the veth stays", || {
        assert_eq!(pod.links(), ["lo"]);
        snapshot.assert_unchanged();
    });
    beyond_peer("no STATUS there", || {
        assert_eq!(bare().status(&conf).error().code, 50);
    });
    beyond_peer("DEL wants the programs", || {
        bare().del(&conf, &pod, "eth0").silent();
    });
}

// ---- what there is in nf_tables

#[test]
fn nftables_has_one_rule_for_a_subnet_and_none_for_a_pod() {
    beyond_peer("a rule for each pod", || {
        let node = Node::new(BackEnd::Nftables);
        let (_a, _) = node.pod("a");
        let rules = checks(&node.sandbox.host());
        assert_eq!(rules.len(), 2, "{rules:?}");
        let text = node.rules();
        for rule in [
            "ip saddr 10.1.0.0/24 ip daddr != 10.1.0.0/24 masquerade",
            "ip6 saddr fd01::/64 ip6 daddr != fd01::/64 masquerade",
        ] {
            assert!(text.contains(rule), "{text}");
        }
        for name in ["b", "c", "d"] {
            node.pod(name);
        }
        node.assert_rules(&text);
    });
}

#[test]
fn no_program_but_the_ipam_plugin_is_executed_with_nftables() {
    beyond_peer("a dozen of them", || {
        let node = Node::new(BackEnd::Nftables);
        let pod = node.sandbox.pod("a");
        let conf = conf::with(&node.conf(), json!({"macspoofchk": true}));
        let trace = node.sandbox.dir().join("trace").display().to_string();
        let strace = ["strace", "-f", "-e", "trace=execve", "-o", &trace];
        let executed = || {
            let text = std::fs::read_to_string(&trace).expect("the trace");
            let calls = text.lines().filter(|line| line.contains("execve("));
            let names = calls.filter_map(|line| {
                line.split('"')
                    .nth(1)?
                    .rsplit('/')
                    .next()
                    .map(str::to_owned)
            });
            // host-local is called, not executed, where it is the same build.
            names.filter(|it| it != "host-local").collect::<Vec<_>>()
        };
        let cni = || node.cni().under(&strace);
        let result = cni().add(&conf, &pod, "eth0").result();
        assert_eq!(executed(), ["bridge"]);
        cni()
            .check(&conf::with_prev(&conf, &result), &pod, "eth0")
            .silent();
        assert_eq!(executed(), ["bridge"]);
        cni().del(&conf, &pod, "eth0").silent();
        assert_eq!(executed(), ["bridge"]);
    });
}

// ---- DEL

#[test]
fn del_leaves_nothing_of_the_pod() {
    each(&BackEnd::ALL, |node| {
        // The first pod of a node leaves what all share.
        let (first, _) = node.pod("first");
        node.del(&first);
        let before = node.rules();
        assert!(!before.contains("id-first"), "{before}");
        let (pod, _) = node.pod("a");
        node.del(&pod);
        node.assert_rules(&before);
        node.del(&pod);
        node.assert_rules(&before);
    });
}

#[test]
fn del_without_a_netns_leaves_no_rules_of_iptables() {
    beyond_peer("plugins#810: three rules a pod", || {
        each(&BackEnd::IPTABLES, |node| {
            let (first, _) = node.pod("first");
            node.del(&first);
            let before = node.rules();
            for netns in ["", "/run/netns/gone"] {
                let (pod, _) = node.pod("a");
                assert_ne!(node.rules(), before);
                node.sandbox.remove_pod(&pod);
                node.cni()
                    .netns(netns)
                    .del(&node.conf(), &pod, "eth0")
                    .silent();
                node.assert_rules(&before);
            }
        });
    });
}

#[test]
fn del_finds_the_rules_that_add_made_in_another_back_end() {
    beyond_peer("v1.1 knows one back end", || {
        for (added, deleted) in [
            (BackEnd::IptablesNft, BackEnd::Nftables),
            (BackEnd::IptablesLegacy, BackEnd::Nftables),
            (BackEnd::Nftables, BackEnd::IptablesNft),
        ] {
            for netns in [true, false] {
                let node = Node::new(added);
                let (pod, result) = node.pod("a");
                // The administrator changes the configuration, not the programs.
                let conf = network(deleted);
                node.cni()
                    .check(&conf::with_prev(&conf, &result), &pod, "eth0")
                    .silent();
                let del = if netns {
                    node.cni()
                } else {
                    node.cni().netns("")
                };
                del.del(&conf, &pod, "eth0").silent();
                let rules = node.rules();
                assert!(!rules.contains("CNI-"), "{added:?}: {rules}");
            }
        }
    });
}

#[test]
fn two_interfaces_of_a_container_on_one_network_go_one_by_one() {
    beyond_peer(
        "the first DEL flushes the chain that both use, and fails",
        || {
            each(&BackEnd::ALL, |node| {
                let _server = node.outside.serve(80);
                let (pod, _) = node.pod("a");
                // One default route is enough.
                let second = conf::with(
                    &node.conf(),
                    json!({"isDefaultGateway": false, "isGateway": true}),
                );
                node.cni().add(&second, &pod, "net1").result();
                let from_second = || {
                    pod.sh("ip route replace 192.0.2.9 via 10.1.0.1 dev net1 src 10.1.0.3");
                    pod.ask("tcp", OUTSIDE[0], 80)
                };
                assert_eq!(from_second(), "outside sees 192.0.2.1");
                node.cni().del(&node.conf(), &pod, "eth0").silent();
                assert_eq!(
                    from_second(),
                    "outside sees 192.0.2.1",
                    "{:?}",
                    node.back_end
                );
                node.cni().del(&second, &pod, "net1").silent();
                let rules = node.rules();
                assert!(!rules.contains("CNI-"), "{:?}: {rules}", node.back_end);
            });
        },
    );
}

#[test]
fn the_other_interface_keeps_its_masquerade_though_del_knows_no_addresses() {
    beyond_peer("without a netns nothing is removed", || {
        each(&BackEnd::ALL, |node| {
            let _server = node.outside.serve(80);
            let (pod, _) = node.pod("a");
            let second = conf::with(
                &node.conf(),
                json!({"isDefaultGateway": false, "isGateway": true}),
            );
            node.cni().add(&second, &pod, "net1").result();
            pod.sh("ip route replace 192.0.2.9 via 10.1.0.1 dev net1 src 10.1.0.3");
            // Neither netns nor prevResult.
            node.cni()
                .netns("")
                .del(&node.conf(), &pod, "eth0")
                .silent();
            let seen = pod.ask("tcp", OUTSIDE[0], 80);
            assert_eq!(seen, "outside sees 192.0.2.1", "{:?}", node.back_end);
            // DEL could not know which attachment the first jump belongs to, so GC removes it.
            node.cni().del(&second, &pod, "net1").silent();
            let gc = conf::with_valid(&node.conf(), &[]);
            node.cni().gc(&gc).silent();
            let rules = node.rules();
            assert!(!rules.contains("CNI-"), "{:?}: {rules}", node.back_end);
        });
    });
}

#[test]
fn del_succeeds_when_the_rules_are_gone_already() {
    let gone = "for it in iptables-legacy ip6tables-legacy; do $it -t nat -F; $it -t nat -X; done
        nft flush ruleset";
    beyond_peer("a chain that is gone is an error", || {
        each(&BackEnd::ALL, |node| {
            let (pod, _) = node.pod("a");
            node.sandbox.host().sh(gone);
            node.del(&pod);
        });
    });
}

#[test]
fn a_failure_after_the_masquerade_takes_it_away() {
    beyond_peer("the result is not waited for", || {
        each(&BackEnd::ALL, |node| {
            let (first, _) = node.pod("first");
            node.del(&first);
            let before = node.rules();
            let pod = node.sandbox.pod("a");
            for stdout in [Stdout::NoReader, Stdout::Full] {
                let failed = node.cni().stdout(stdout).add(&node.conf(), &pod, "eth0");
                assert_ne!(failed.code(), 0);
                node.assert_rules(&before);
                assert_eq!(pod.links(), ["lo"]);
            }
        });
    });
}

// ---- ADD again, CHECK, GC

#[test]
fn add_again_does_not_duplicate() {
    each(&BackEnd::ALL, |node| {
        // The pod crashed and came back with the same address before the runtime called DEL.
        let address = json!({"ranges": null, "type": "static", "addresses": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd01::5/64", "gateway": "fd01::1"}]});
        let conf = conf::with(&node.conf(), json!({"ipam": address}));
        let pod = node.sandbox.pod("a");
        node.cni().add(&conf, &pod, "eth0").result();
        let rules = node.rules();
        for _ in 0..3 {
            pod.sh("ip link del eth0");
            node.cni().add(&conf, &pod, "eth0").result();
            node.assert_rules(&rules);
        }
    });
}

#[test]
fn check_says_what_is_missing() {
    each(&BackEnd::ALL, |node| {
        let (pod, result) = node.pod("a");
        let checked = conf::with_prev(&node.conf(), &result);
        let check = || node.cni().check(&checked, &pod, "eth0");
        check().silent();
        beyond_peer("CHECK there does not look at rules", || {
            let flush = match node.back_end {
                BackEnd::Nftables => "nft flush ruleset",
                BackEnd::IptablesNft => "iptables-nft -t nat -F",
                BackEnd::IptablesLegacy => "iptables-legacy -t nat -F",
            };
            node.sandbox.host().sh(flush);
            let error = check().error();
            let named = match node.back_end {
                BackEnd::Nftables => "masquerades 10.1.0.2/24 of network testnet",
                _ => "CNI-",
            };
            assert!(
                error.msg.contains(named),
                "{:?}: {}",
                node.back_end,
                error.msg
            );
            // What the cure for it is: the same ADD, as after a reload of the firewall.
            node.cni().del(&node.conf(), &pod, "eth0").silent();
            let result = node.cni().add(&node.conf(), &pod, "eth0").result();
            let checked = conf::with_prev(&node.conf(), &result);
            node.cni().check(&checked, &pod, "eth0").silent();
        });
    });
}

#[test]
fn check_reports_a_missing_jump_to_the_rules() {
    beyond_peer("CHECK there does not look at rules", || {
        let node = Node::new(BackEnd::Nftables);
        let (pod, result) = node.pod("a");
        let checked = conf::with_prev(&node.conf(), &result);
        node.sandbox
            .host()
            .sh("nft flush chain inet cni_plugins_masquerade postrouting");
        let error = node.cni().check(&checked, &pod, "eth0").error();
        assert!(error.msg.contains("postrouting"), "{}", error.msg);
        // The next pod repairs it for all.
        node.pod("b");
        node.cni().check(&checked, &pod, "eth0").silent();
    });
}

#[test]
fn gc_removes_rules_without_an_owner() {
    beyond_peer("no GC there", || {
        each(&BackEnd::ALL, |node| {
            let _server = node.outside.serve(80);
            let (alive, _) = node.pod("alive");
            let before = node.rules();
            let (dead, _) = node.pod("dead");
            node.sandbox.remove_pod(&dead);
            let other = conf::with(
                &node.conf(),
                json!({
                "name": "other", "bridge": "cni1", "ipam": conf::host_local_ipam(&["10.2.0.0/24", "fd02::/64"])}),
            );
            let neighbour = node.sandbox.pod("neighbour");
            node.cni().add(&other, &neighbour, "eth0").result();

            let id = container_id(&alive);
            let valid = conf::with_valid(&node.conf(), &[(&id, "eth0")]);
            node.cni().gc(&valid).silent();
            node.assert_masqueraded(&alive);
            node.assert_masqueraded(&neighbour);
            node.cni().del(&other, &neighbour, "eth0").silent();
            node.cni().gc(&conf::with_valid(&other, &[])).silent();
            let rules = node.rules();
            node.assert_rules(&before);
            assert!(!rules.contains("id-dead"), "{rules}");
            node.assert_masqueraded(&alive);

            node.cni().gc(&conf::with_valid(&node.conf(), &[])).silent();
            assert_eq!(particular(&node.rules()), [""; 0], "{:?}", node.back_end);
        });
    });
}

#[test]
fn two_networks_on_one_subnet_do_not_take_each_others_rule() {
    beyond_peer("no GC there", || {
        let node = Node::new(BackEnd::Nftables);
        let _server = node.outside.serve(80);
        let (pod, _) = node.pod("a");
        let other = conf::with(&node.conf(), json!({"name": "testnet2"}));
        let second = node.sandbox.pod("b");
        // Another network, another state of host-local: ask for another address.
        node.cni()
            .args("IP=10.1.0.9")
            .add(&other, &second, "eth0")
            .result();
        node.cni().gc(&conf::with_valid(&other, &[])).silent();
        node.assert_masqueraded(&pod);
        let names: BTreeSet<String> = checks(&node.sandbox.host())
            .iter()
            .map(|rule| rule["comment"].to_string())
            .collect();
        assert_eq!(names.len(), 1, "{names:?}");
    });
}

// ---- many

/// Numbers that look random and are the same each time (a linear congruential generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }
}

/// Two hundred pods in all, up to thirty at a time, half of which lose their namespace
/// before DEL. What all of them share was made by the first one.
fn churn(back_end: BackEnd) {
    let node = Node::new(back_end);
    let _server = node.outside.serve(80);
    let (first, _) = node.pod("first");
    node.del(&first);
    let before = node.rules();
    let begun = Instant::now();
    let mut dice = Dice(7);
    let mut alive: Vec<Netns> = Vec::new();
    let mut made = 0;
    while made < 200 || !alive.is_empty() {
        let grow = made < 200 && (alive.is_empty() || alive.len() < 30 && dice.below(2) == 0);
        if grow {
            alive.push(node.pod(&format!("p{made}")).0);
            made += 1;
            continue;
        }
        let pod = alive.swap_remove(dice.below(alive.len()));
        if dice.below(2) == 0 {
            node.sandbox.remove_pod(&pod);
            node.cni()
                .netns("")
                .del(&node.conf(), &pod, "eth0")
                .silent();
        } else {
            node.del(&pod);
            node.sandbox.remove_pod(&pod);
        }
        if made == 100 && !alive.is_empty() {
            assert_ne!(alive[0].ask("tcp", OUTSIDE[0], 80), NO_ANSWER);
        }
    }
    node.assert_rules(&before);
    let took = begun.elapsed();
    eprintln!("{back_end:?}: 200 pods in {took:?}");
    let limit = sandbox::in_time(Duration::from_secs(120));
    assert!(took < limit, "{back_end:?}: {took:?}");
}

#[test]
fn two_hundred_pods_leave_the_rules_of_nftables_as_they_were() {
    beyond_peer("what loses its namespace stays", || {
        churn(BackEnd::Nftables);
    });
}

#[test]
fn two_hundred_pods_leave_the_rules_of_iptables_nft_as_they_were() {
    beyond_peer("what loses its namespace stays", || {
        churn(BackEnd::IptablesNft)
    });
}

#[test]
fn two_hundred_pods_leave_the_rules_of_iptables_legacy_as_they_were() {
    beyond_peer("what loses its namespace stays", || {
        churn(BackEnd::IptablesLegacy)
    });
}
