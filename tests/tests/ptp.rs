//! ptp: the addresses and routes of both ends, what each key does, what CHECK notices, what
//! remains after DEL, GC and a failure (nothing). Its life beside the Go plugin is in
//! `differential.rs` and `switching.rs`.

use sandbox::{
    BackEnd, FilterNode, NODE, Netns, OUTSIDE, Sandbox, Snapshot, beyond_peer, conf, container_id,
};
use serde_json::{Value, json};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd01::/64";

fn ptp(change: Value) -> Value {
    conf::with(&conf::ptp(&[V4]), change)
}

fn dual(change: Value) -> Value {
    let routes = json!({"ipam": {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}});
    conf::with(&conf::with(&conf::ptp(&[V4, V6]), routes), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("ptp").add(conf, pod, "eth0").result()
}

fn attached(conf: &Value) -> (Sandbox, Netns, Value) {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, conf, &pod);
    (sandbox, pod, result)
}

/// What a network leaves for its next pod.
fn snapshot(sandbox: &Sandbox) -> Snapshot {
    let snapshot = sandbox.snapshot().allow_forwarding();
    snapshot.allow_host_local(conf::NETWORK)
}

fn host_veth(result: &Value) -> String {
    let name = result["interfaces"][0]["name"].as_str();
    name.expect("a name").to_owned()
}

/// Routes of the main table as `ip route` shows them, without the spaces at their ends. Those to
/// link-local and multicast addresses belong to any link.
fn routes(ns: &Netns, family: &str) -> Vec<String> {
    let text = ns.sh(&format!("ip {family} route show"));
    let lines = text.lines().map(|line| line.trim().to_owned());
    let mut lines: Vec<_> = lines.filter(|line| !line.starts_with("fe80:")).collect();
    lines.sort();
    lines
}

#[test]
fn both_ends_have_the_addresses_and_routes_of_the_go_plugin() {
    let (sandbox, pod, result) = attached(&dual(json!({})));
    let veth = host_veth(&result);
    assert_eq!(
        routes(&pod, "-4"),
        [
            "10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.2",
            "10.1.0.1 dev eth0 scope link src 10.1.0.2",
            "default via 10.1.0.1 dev eth0",
        ]
    );
    assert_eq!(
        routes(&pod, "-6"),
        [
            "default via fd01::1 dev eth0 metric 1024 pref medium",
            "fd01::/64 via fd01::1 dev eth0 src fd01::2 metric 1024 pref medium",
            "fd01::1 dev eth0 src fd01::2 metric 1024 pref medium",
        ]
    );
    let host = sandbox.host();
    assert_eq!(
        routes(&host, "-4"),
        [format!("10.1.0.2 dev {veth} scope host")]
    );
    let to_pod = format!("fd01::2 dev {veth} metric 1024 pref medium");
    assert!(routes(&host, "-6").contains(&to_pod));
    assert_eq!(host.addresses(&veth), ["10.1.0.1/32", "fd01::1/128"]);
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
}

#[test]
fn the_result_has_the_host_end_and_the_pods_end() {
    let (sandbox, pod, result) = attached(&dual(json!({})));
    let veth = sandbox.host().link(&host_veth(&result)).expect("a veth");
    let eth0 = pod.link("eth0").expect("eth0");
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    assert_eq!(interfaces.len(), 2);
    for (interface, link) in interfaces.iter().zip([&veth, &eth0]) {
        assert_eq!(interface["name"], link["ifname"]);
        assert_eq!(interface["mac"], link["address"]);
        assert_eq!(link["operstate"], "UP", "{link}");
    }
    assert!(interfaces[0].get("sandbox").is_none());
    assert_eq!(interfaces[1]["sandbox"], pod.path());
    let ips = json!([
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
        {"address": "fd01::2/64", "gateway": "fd01::1", "interface": 1}]);
    assert_eq!(result["ips"], ips);
    let name = host_veth(&result);
    let digits = name.strip_prefix("veth").expect("veth");
    assert!(digits.len() == 8 && digits.chars().all(|it| it.is_ascii_hexdigit()));
}

#[test]
fn node_and_pods_reach_each_other_at_once() {
    beyond_peer("it waits for duplicate address detection", || {
        let sandbox = Sandbox::new();
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let (first, second) = (dual(json!({})), dual(json!({})));
        add(&sandbox, &first, &a);
        let outcome = sandbox.cni("ptp").add(&second, &b, "eth0");
        // Detection takes a second at least.
        assert!(outcome.elapsed().as_millis() < 900, "{outcome}");
        outcome.result();
        assert_eq!(b.ping("fd01::1", 2), [true, true]);
        assert_eq!(b.ping("fd01::2", 2), [true, true]);
        assert_eq!(a.ping("10.1.0.1", 2), [true, true]);
        assert_eq!(a.ping("10.1.0.3", 2), [true, true]);
        assert_eq!(sandbox.host().ping("10.1.0.2", 2), [true, true]);
        assert_eq!(sandbox.host().ping("fd01::3", 2), [true, true]);
    });
}

#[test]
fn both_ends_have_the_mtu() {
    let (sandbox, pod, result) = attached(&ptp(json!({"mtu": 1400})));
    assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1400);
    let veth = sandbox.host().link(&host_veth(&result)).expect("a veth");
    assert_eq!(veth["mtu"], 1400);
}

#[test]
fn mtu_auto_is_that_of_the_default_route() {
    beyond_peer("its mtu is a number", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = ptp(json!({"mtu": "auto"}));
        let error = sandbox.cni("ptp").add(&conf, &pod, "eth0").error();
        assert!(error.msg.contains("no default route"), "{}", error.msg);
        sandbox.wire();
        sandbox.host().sh(
            "ip link set eth1 mtu 1380; ip addr add 192.0.2.1/24 dev eth1
            ip route add default via 192.0.2.9",
        );
        add(&sandbox, &conf, &pod);
        assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1380);
    });
}

#[test]
fn dns_of_the_configuration_replaces_that_of_ipam() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.write(
        "/run/resolv.conf",
        "nameserver 10.0.0.9\nsearch ipam.example\n",
    );
    let ipam = json!({"ipam": {"resolvConf": "/run/resolv.conf"}});
    let conf = ptp(ipam);
    let of_ipam = json!({"nameservers": ["10.0.0.9"], "search": ["ipam.example"]});
    assert_eq!(add(&sandbox, &conf, &pod)["dns"], of_ipam);
    sandbox.cni("ptp").del(&conf, &pod, "eth0").silent();
    let own = json!({"dns": {"domain": "own.example"}});
    let conf = conf::with(&conf, own.clone());
    assert_eq!(add(&sandbox, &conf, &pod)["dns"], own["dns"]);
    sandbox.cni("ptp").del(&conf, &pod, "eth0").silent();
    let conf = conf::with(&conf, json!({"dns": {"domain": null, "search": []}}));
    let dns = add(&sandbox, &conf, &pod)["dns"].clone();
    assert!(dns.is_null() || dns == json!({}), "{dns}");
}

#[test]
fn a_requested_mac_is_the_pods() {
    beyond_peer("it has no such key", || {
        let mac = json!({"runtimeConfig": {"mac": "02:00:00:00:00:0a"}});
        let (_sandbox, pod, result) = attached(&ptp(mac));
        assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:0a");
        let eth0 = pod.link("eth0").expect("eth0");
        assert_eq!(eth0["address"], "02:00:00:00:00:0a");
    });
}

#[test]
fn wrong_values_are_refused_before_anything_is_made() {
    beyond_peer("it notices most of them later, with another code", || {
        for (change, expected) in [
            (json!({"ipam": null}), "no plugin name provided"),
            (json!({"ipam": {"type": ""}}), "no plugin name provided"),
            (json!({"mtu": 67}), "invalid MTU 67"),
            (json!({"mtu": 65536}), "invalid MTU 65536"),
            (json!({"mtu": -1}), "invalid MTU -1"),
            (json!({"mtu": "big"}), "mtu"),
            (json!({"ipMasq": "yes"}), "ipMasq"),
            (
                json!({"ipMasqBackend": "foo"}),
                "unknown ipmasq backend \"foo\"",
            ),
            (json!({"ipMasqFamilies": ["ipv5"]}), "ipMasqFamilies"),
            (json!({"ipMasqExcept": ["x"]}), "ipMasqExcept"),
            (json!({"ipMasqRandomFully": 1}), "ipMasqRandomFully"),
            (json!({"runtimeConfig": {"mac": "x"}}), "invalid MAC"),
            (
                json!({"args": {"cni": {"mac": "01:00:00:00:00:00"}}}),
                "MAC",
            ),
        ] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let snapshot = sandbox.snapshot();
            let error = sandbox.cni("ptp").add(&ptp(change), &pod, "eth0").error();
            assert_eq!(error.code, 7, "{error:?}");
            assert!(error.msg.contains(expected), "{error:?}");
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn an_address_without_a_gateway_is_refused_and_leaves_nothing() {
    beyond_peer("it adds an empty address to the host end", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        let conf = conf::with(
            &conf::static_ipam(&json!([{"address": "10.5.0.9/24"}])),
            json!({"type": "ptp"}),
        );
        let error = sandbox.cni("ptp").add(&conf, &pod, "eth0").error();
        assert_eq!(error.code, 7);
        let expected = "IPAM plugin returned no gateway for 10.5.0.9/24";
        assert!(error.msg.contains(expected), "{}", error.msg);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_gateway_outside_of_the_subnet_and_two_addresses_of_one_subnet_work() {
    beyond_peer("the routes of the second address exist", || {
        let addresses = json!([
            {"address": "10.5.0.9/24", "gateway": "169.254.1.1"},
            {"address": "10.5.0.10/24", "gateway": "169.254.1.1"},
            {"address": "10.6.0.1/32", "gateway": "169.254.1.1"}]);
        let ipam = json!({"type": "ptp", "ipam": {"routes": [{"dst": "0.0.0.0/0"}]}});
        let conf = conf::with(&conf::static_ipam(&addresses), ipam);
        let (sandbox, pod, _) = attached(&conf);
        assert_eq!(pod.ping("169.254.1.1", 1), [true]);
        for ip in ["10.5.0.9", "10.5.0.10", "10.6.0.1"] {
            assert_eq!(sandbox.host().ping(ip, 1), [true], "{ip}");
        }
    });
}

/// The configuration that CRI-O shipped for bridge has such a route (cri-o#6289).
#[test]
fn the_destination_of_an_ipv6_route_may_have_host_bits() {
    beyond_peer("ADD fails: the route exists", || {
        let routes = json!({"ipam": {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::1/64"}]}});
        let conf = conf::with(&conf::ptp(&[V4, V6]), routes);
        let (sandbox, pod, result) = attached(&conf);
        assert_eq!(result["routes"][1], json!({"dst": "fd01::1/64"}));
        let checked = conf::with_prev(&conf, &result);
        sandbox.cni("ptp").check(&checked, &pod, "eth0").silent();
        pod.sh("ip -6 route del fd01::/64");
        let error = sandbox.cni("ptp").check(&checked, &pod, "eth0").error();
        assert!(error.msg.contains("fd01::"), "{}", error.msg);
    });
}

#[test]
fn the_name_of_the_interface_is_taken() {
    beyond_peer("plugins before v1.2 have another text", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        pod.sh("ip link add eth0 type veth peer name other");
        let snapshot = snapshot(&sandbox);
        let conf = ptp(json!({}));
        let error = sandbox.cni("ptp").add(&conf, &pod, "eth0").error();
        let begin = "container veth name (\"eth0\") peer provided (\"veth";
        assert!(error.msg.contains(begin), "{}", error.msg);
        assert!(error.msg.ends_with("\") already exists"), "{}", error.msg);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_failure_after_the_link_leaves_nothing() {
    beyond_peer("its veth stays", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = snapshot(&sandbox);
        let routes = json!({"ipam": {"routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}});
        let conf = ptp(routes);
        let error = sandbox.cni("ptp").add(&conf, &pod, "eth0").error();
        assert!(error.msg.contains("failed to add route"), "{}", error.msg);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_second_pod_with_the_address_of_the_first_is_reached() {
    beyond_peer("the first route stays", || {
        let sandbox = Sandbox::new();
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let fixed = json!([{"address": "10.5.0.9/24", "gateway": "10.5.0.1"}]);
        let conf = conf::with(&conf::static_ipam(&fixed), json!({"type": "ptp"}));
        add(&sandbox, &conf, &a);
        let veth = host_veth(&add(&sandbox, &conf, &b));
        let to = sandbox.host().routes_to("-4", "10.5.0.9");
        let to: Vec<_> = to.iter().map(|it| &it["dev"]).collect();
        assert_eq!(to, [&json!(veth)]);
        assert_eq!(sandbox.host().ping("10.5.0.9", 1), [true]);
    });
}

#[test]
fn a_requested_address_that_the_node_needs_is_refused() {
    beyond_peer("it takes the node's traffic", || {
        for (ip, gateway, expected) in [
            (
                "192.0.2.1/24",
                "192.0.2.254",
                "192.0.2.1 to the pod, which the node needs",
            ),
            (
                "192.0.2.9/24",
                "192.0.2.254",
                "192.0.2.9 to the pod, which the node needs",
            ),
            (
                "192.0.2.77/24",
                "192.0.2.254",
                "a part of the node's 192.0.2.0/24",
            ),
            (
                "127.0.0.53/8",
                "127.0.0.9",
                "a part of the node's 127.0.0.0/8",
            ),
            (
                "203.0.113.7/24",
                "203.0.113.1",
                "its gateway 203.0.113.1, which the node needs",
            ),
        ] {
            let sandbox = Sandbox::new();
            sandbox.wire();
            let host = sandbox.host();
            host.sh("ip addr add 192.0.2.1/24 dev eth1
                ip addr add 203.0.113.1/32 dev eth1
                ip route add default via 192.0.2.9");
            let pod = sandbox.pod("a");
            let snapshot = sandbox.snapshot();
            let conf = conf::with(&conf::static_ipam(&json!([])), json!({"type": "ptp"}));
            let args = format!("IP={ip};GATEWAY={gateway}");
            let call = sandbox.cni("ptp").args(&args);
            let error = call.add(&conf, &pod, "eth0").error();
            assert_eq!(error.code, 7, "{error:?}");
            assert!(error.msg.contains(expected), "{error:?}");
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn requested_addresses_of_other_subnets_are_given_to_any_number_of_pods() {
    let sandbox = Sandbox::new();
    for (name, ip) in [("a", "10.5.0.2"), ("b", "10.5.0.3")] {
        let pod = sandbox.pod(name);
        let conf = conf::with(&conf::static_ipam(&json!([])), json!({"type": "ptp"}));
        let args = format!("IP={ip}/24;GATEWAY=10.5.0.1");
        let call = sandbox.cni("ptp").args(&args);
        call.add(&conf, &pod, "eth0").result();
        assert_eq!(sandbox.host().ping(ip, 1), [true]);
    }
}

#[test]
fn check_passes_on_what_add_has_made_and_changes_nothing() {
    let conf = dual(json!({"ipMasq": true}));
    let (sandbox, pod, result) = attached(&conf);
    let conf = conf::with_prev(&conf, &result);
    let snapshot = sandbox.snapshot();
    sandbox.cni("ptp").check(&conf, &pod, "eth0").silent();
    snapshot.assert_unchanged();
}

/// Breaks something, given the pod's namespace, the node's, and the host end.
type Tamper = fn(&Netns, &Netns, &str);

/// What CHECK answers after `tamper`.
fn check_after(tamper: Tamper) -> String {
    let conf = dual(json!({}));
    let (sandbox, pod, result) = attached(&conf);
    tamper(&pod, &sandbox.host(), &host_veth(&result));
    let conf = conf::with_prev(&conf, &result);
    sandbox.cni("ptp").check(&conf, &pod, "eth0").error().msg
}

#[test]
fn check_notices_what_the_pod_lacks() {
    let tampers: [(Tamper, &str); 5] = [
        (
            |pod, _, _| drop(pod.sh("ip link del eth0")),
            "ptp: Container Interface name in prevResult: eth0 not found",
        ),
        (
            |pod, _, _| {
                drop(pod.sh("ip link del eth0
                    ip link add br0 type bridge; ip link set br0 name eth0"))
            },
            "Error: Container interface eth0 not of type veth/p2p",
        ),
        (
            |pod, _, _| drop(pod.sh("ip link set eth0 address 02:99:99:99:99:99")),
            "doesn't match container Mac: 02:99:99:99:99:99",
        ),
        (
            |pod, _, _| drop(pod.sh("ip addr del 10.1.0.2/24 dev eth0")),
            "Failed to match addr 10.1.0.2/24 on interface eth0",
        ),
        (
            |pod, _, _| drop(pod.sh("ip -6 route del default")),
            "not found in routing table",
        ),
    ];
    for (tamper, expected) in tampers {
        let msg = check_after(tamper);
        assert!(msg.contains(expected), "{msg}");
    }
}

#[test]
fn check_notices_what_the_node_lacks() {
    beyond_peer("it does not look at the host end", || {
        let tampers: [(Tamper, &str); 4] = [
            (
                |_, host, veth| drop(host.sh(&format!("ip addr del 10.1.0.1/32 dev {veth}"))),
                "has no address 10.1.0.1/32",
            ),
            (
                |_, host, veth| drop(host.sh(&format!("ip route del 10.1.0.2 dev {veth}"))),
                "the node has no route to 10.1.0.2/32",
            ),
            (
                |_, host, veth| drop(host.sh(&format!("ip -6 route del fd01::2 dev {veth}"))),
                "the node has no route to fd01::2/128",
            ),
            (
                // Before Linux 6.2 an interface that is up cannot be renamed.
                |_, host, veth| {
                    host.sh(&format!("ip link set {veth} down"));
                    host.sh(&format!("ip link set {veth} name other"));
                },
                "host end of eth0 not found",
            ),
        ];
        for (tamper, expected) in tampers {
            let msg = check_after(tamper);
            assert!(msg.contains(expected), "{msg}");
        }
    });
}

#[test]
fn check_needs_a_previous_result_of_this_namespace() {
    let conf = ptp(json!({}));
    let (sandbox, pod, result) = attached(&conf);
    let error = sandbox.cni("ptp").check(&conf, &pod, "eth0").error();
    assert_eq!(error.msg, "ptp: Required prevResult missing");
    let other = conf::with(
        &result,
        json!({"interfaces": [{"name": "eth0", "sandbox": "/x"}]}),
    );
    let conf = conf::with_prev(&conf, &other);
    let error = sandbox.cni("ptp").check(&conf, &pod, "eth0").error();
    let expected = "Sandbox in prevResult  doesn't match configured netns";
    assert!(error.msg.contains(expected), "{}", error.msg);
}

#[test]
fn del_leaves_nothing_with_a_namespace_and_without() {
    beyond_peer("plugins#810: masquerade stays without a netns", || {
        for back_end in [BackEnd::Nftables, BackEnd::IptablesNft] {
            let node = FilterNode::new(back_end);
            let keys = json!({"ipMasq": true, "ipMasqBackend": back_end.name()});
            let conf = dual(keys);
            let pods = ["a", "b"].map(|name| {
                let pod = node.sandbox.pod(name);
                node.cni("ptp").add(&conf, &pod, "eth0").result();
                pod
            });
            node.cni("ptp").del(&conf, &pods[0], "eth0").silent();
            node.cni("ptp").del(&conf, &pods[0], "eth0").silent();
            node.sandbox.remove_pod(&pods[1]);
            for _ in 0..2 {
                let call = node.cni("ptp").netns("");
                call.del(&conf, &pods[1], "eth0").silent();
            }
            let rules = node.rules();
            let left = rules
                .lines()
                .filter(|it| it.contains("10.1.0.") || it.contains("id-"));
            assert_eq!(left.collect::<Vec<_>>(), [""; 0], "{back_end:?}");
            let links = node.host().links();
            assert!(!links.iter().any(|it| it.starts_with("veth")), "{links:?}");
            assert!(
                routes(&node.host(), "-4")
                    .iter()
                    .all(|it| !it.starts_with("10.1."))
            );
        }
    });
}

#[test]
fn packets_to_the_outside_have_the_nodes_address() {
    let back_ends = [BackEnd::Nftables, BackEnd::IptablesNft];
    FilterNode::each(&back_ends, |node| {
        let keys = json!({"ipMasq": true, "ipMasqBackend": node.back_end.name()});
        let pod = node.sandbox.pod("a");
        let conf = dual(keys);
        if node.back_end == BackEnd::Nftables && sandbox::testing_the_peer() {
            // Debian's is older than the key.
            return;
        }
        node.cni("ptp").add(&conf, &pod, "eth0").result();
        let _server = node.outside.serve(80);
        for (to, seen) in OUTSIDE.into_iter().zip(NODE) {
            assert_eq!(pod.ask("tcp", to, 80), format!("outside sees {seen}"));
        }
        // Pods see each other's own addresses.
        let other = node.sandbox.pod("b");
        node.cni("ptp").add(&conf, &other, "eth0").result();
        let _server = pod.serve(81);
        assert_eq!(other.ask("tcp", "10.1.0.2", 81), "a sees 10.1.0.3");
    });
}

#[test]
fn a_network_has_one_masquerade_rule_for_each_subnet() {
    beyond_peer("it has a rule for each pod", || {
        let node = FilterNode::new(BackEnd::Nftables);
        let conf = dual(json!({"ipMasq": true}));
        for name in ["a", "b", "c"] {
            let pod = node.sandbox.pod(name);
            node.cni("ptp").add(&conf, &pod, "eth0").result();
        }
        let rules = node.rules();
        let masquerade = rules
            .lines()
            .filter(|line| line.contains("masquerade comment"));
        assert_eq!(masquerade.count(), 2, "{rules}");
    });
}

#[test]
fn gc_deletes_what_no_valid_attachment_has() {
    beyond_peer("it has no GC", || {
        let sandbox = Sandbox::new();
        let snapshot = snapshot(&sandbox).allow("nft ").allow(" /run/");
        let conf = dual(json!({"ipMasq": true}));
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        add(&sandbox, &conf, &a);
        add(&sandbox, &conf, &b);
        let id = container_id(&b);
        let valid = conf::with_valid(&conf, &[(&id, "eth0")]);
        sandbox.cni("ptp").gc(&valid).silent();
        assert!(a.link("eth0").is_none());
        assert_eq!(b.ping("10.1.0.1", 1), [true]);
        sandbox
            .cni("ptp")
            .gc(&conf::with_valid(&conf, &[]))
            .silent();
        snapshot.assert_unchanged();
    });
}

#[test]
fn del_finds_what_a_killed_add_left() {
    beyond_peer("its host end has a random name", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = snapshot(&sandbox);
        let ipam = sandbox.fake("slow-ipam");
        ipam.before("ADD", "kill -9 $PPID; sleep 0.1");
        let conf = ptp(json!({"ipam": {"type": "slow-ipam"}}));
        let killed = sandbox.cni("ptp").add(&conf, &pod, "eth0");
        assert!(killed.stdout().is_empty() && killed.code() != 0, "{killed}");
        assert!(pod.link("eth0").is_some());
        sandbox
            .cni("ptp")
            .netns("")
            .del(&conf, &pod, "eth0")
            .silent();
        snapshot.assert_unchanged();
    });
}

#[test]
fn status_promises_what_add_then_does() {
    beyond_peer("it only asks the IPAM plugin", || {
        let sandbox = Sandbox::new();
        sandbox
            .cni("ptp")
            .status(&dual(json!({"ipMasq": true})))
            .silent();
        let error = sandbox
            .cni("ptp")
            .status(&ptp(json!({"mtu": "auto"})))
            .error();
        assert_eq!(error.code, 50);
        let error = sandbox
            .cni("ptp")
            .status(&ptp(json!({"ipam": null})))
            .error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (7, "no plugin name provided")
        );
        let missing = ptp(json!({"ipam": {"type": "nope"}}));
        assert_eq!(sandbox.cni("ptp").status(&missing).error().code, 50);
        sandbox
            .host()
            .sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
        let error = sandbox.cni("ptp").status(&dual(json!({}))).error();
        assert_eq!(error.msg, "net.ipv6.conf.default.disable_ipv6 is 1");
    });
}
