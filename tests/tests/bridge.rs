//! bridge: what each key does to the kernel, what CHECK notices, what a failure
//! leaves behind (nothing). Masquerade, spoof check and VLANs have files of their own.

use std::time::Duration;

use sandbox::{Cni, Netns, Sandbox, Stdout, beyond_peer, conf, conf_of, newest};
use serde_json::{Value, json};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd01::/64";

fn bridge(change: Value) -> Value {
    conf::with(&conf::bridge(&[V4]), change)
}

fn dual(change: Value) -> Value {
    conf::with(&conf::bridge(&[V4, V6]), change)
}

fn l2(change: Value) -> Value {
    conf::with(&conf::bridge_l2(), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("bridge").add(conf, pod, "eth0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("bridge").del(conf, pod, "eth0").silent();
}

/// A fresh sandbox with one pod attached: (sandbox, pod, result).
fn attached(conf: &Value) -> (Sandbox, Netns, Value) {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, conf, &pod);
    (sandbox, pod, result)
}

/// ADD in a fresh sandbox that must fail; returns the error.
fn refused(conf: &Value) -> sandbox::Failure {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.cni("bridge").add(conf, &pod, "eth0").error()
}

fn host_veth(sandbox: &Sandbox) -> Value {
    let links = sandbox.host().links();
    let name = links
        .iter()
        .find(|name| name.starts_with("veth"))
        .expect("no host veth");
    sandbox.host().link(name).expect("the host veth")
}

fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"]
        .as_array()
        .is_some_and(|flags| flags.contains(&json!(flag)))
}

fn mac(ns: &Netns, link: &str) -> String {
    let link = ns.link(link).unwrap_or_else(|| panic!("no link {link}"));
    link["address"].as_str().expect("an address").to_owned()
}

// ---- wiring

#[test]
fn add_wires_the_pod_to_the_bridge_and_says_how() {
    let (sandbox, pod, result) = attached(&bridge(json!({})));
    let host = sandbox.host();
    let (cni0, veth) = (host.link("cni0").expect("cni0"), host_veth(&sandbox));
    let eth0 = pod.link("eth0").expect("eth0");
    assert_eq!(cni0["linkinfo"]["info_kind"], "bridge");
    assert_eq!(veth["master"], "cni0");
    for link in [&veth, &eth0] {
        assert_eq!(link["operstate"], "UP", "{link}");
    }
    // The kernel works out a bridge's operational state a little later.
    assert!(has_flag(&cni0, "UP"), "{cni0}");
    assert_eq!(result["cniVersion"], newest());
    let interfaces = result["interfaces"].as_array().expect("interfaces");
    assert_eq!(interfaces.len(), 3);
    for (interface, link) in interfaces.iter().zip([&cni0, &veth, &eth0]) {
        assert_eq!(interface["name"], link["ifname"]);
        assert_eq!(interface["mac"], link["address"]);
    }
    assert_eq!(interfaces[2]["sandbox"], pod.path());
    assert!(interfaces[0].get("sandbox").is_none() && interfaces[1].get("sandbox").is_none());
    let ips = json!([{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 2}]);
    assert_eq!(result["ips"], ips);
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24"]);
}

#[test]
fn the_host_veth_is_named_veth_and_eight_hex_digits() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    let name = host_veth(&sandbox)["ifname"]
        .as_str()
        .expect("a name")
        .to_owned();
    let digits = name.strip_prefix("veth").expect("veth");
    assert!(
        digits.len() == 8
            && digits
                .chars()
                .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)),
        "{name}"
    );
}

#[test]
fn node_and_pods_reach_each_other_at_once() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let conf = dual(json!({}));
    add(&sandbox, &conf, &a);
    add(&sandbox, &conf, &b);
    assert_eq!(a.ping("10.1.0.1", 2), [true, true]);
    assert_eq!(a.ping("10.1.0.3", 2), [true, true]);
    assert_eq!(b.ping("fd01::2", 2), [true, true]);
    gateway_settled(&sandbox);
    assert_eq!(sandbox.host().ping("10.1.0.2", 2), [true, true]);
    assert_eq!(sandbox.host().ping("fd01::3", 2), [true, true]);
}

/// The kernel makes sure for a second that nobody else has the bridge's IPv6 address.
fn gateway_settled(sandbox: &Sandbox) {
    let settled = |host: &Netns| {
        !host
            .sh("ip -6 addr show dev cni0 tentative")
            .contains("fd01::1")
    };
    sandbox
        .host()
        .wait_until("the gateway's address is not tentative", settled);
}

#[test]
fn the_bridge_is_called_cni0_unless_named() {
    let (sandbox, _, result) = attached(&bridge(json!({"bridge": null})));
    assert_eq!(result["interfaces"][0]["name"], "cni0");
    assert!(sandbox.host().link("cni0").is_some());
    let (sandbox, _, _) = attached(&bridge(json!({"bridge": "br-blue"})));
    assert!(sandbox.host().link("br-blue").is_some() && sandbox.host().link("cni0").is_none());
}

#[test]
fn an_existing_bridge_is_joined_and_keeps_its_settings() {
    let sandbox = Sandbox::new();
    let host = sandbox.host();
    host.sh("ip link add cni0 address 02:11:22:33:44:55 mtu 1450 type bridge ageing_time 12300");
    let pod = sandbox.pod("a");
    let result = add(&sandbox, &bridge(json!({})), &pod);
    assert_eq!(result["interfaces"][0]["mac"], "02:11:22:33:44:55");
    let cni0 = host.link("cni0").expect("cni0");
    assert_eq!(cni0["linkinfo"]["info_data"]["ageing_time"], 12300);
    assert!(has_flag(&cni0, "UP"));
    assert_eq!(host.ping("10.1.0.2", 1), [true]);
}

#[test]
fn a_link_that_is_no_bridge_is_not_taken_for_one() {
    let sandbox = Sandbox::new();
    sandbox
        .host()
        .sh("ip link add cni0 type veth peer name other");
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    let error = sandbox
        .cni("bridge")
        .add(&bridge(json!({})), &pod, "eth0")
        .error();
    assert!(
        error
            .msg
            .contains("\"cni0\" already exists but is not a bridge"),
        "{}",
        error.msg
    );
    snapshot.assert_unchanged();
}

#[test]
fn the_bridge_outlives_its_pods() {
    let (sandbox, pod, _) = attached(&bridge(json!({})));
    del(&sandbox, &bridge(json!({})), &pod);
    assert_eq!(sandbox.host().links(), ["cni0", "lo"]);
    assert_eq!(sandbox.host().addresses("cni0"), ["10.1.0.1/24"]);
}

#[test]
fn two_interfaces_of_one_pod_are_two_attachments() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let (one, two) = (
        bridge(json!({})),
        bridge(
            json!({"name": "other", "bridge": "br1", "ipam": {"ranges": [[{"subnet": "10.2.0.0/24"}]]}}),
        ),
    );
    sandbox.cni("bridge").add(&one, &pod, "eth0").result();
    sandbox.cni("bridge").add(&two, &pod, "net1").result();
    sandbox.cni("bridge").del(&one, &pod, "eth0").silent();
    assert_eq!(pod.links(), ["lo", "net1"]);
    assert_eq!(pod.addresses("net1"), ["10.2.0.2/24"]);
    assert_eq!(pod.ping("10.2.0.1", 1), [true]);
}

#[test]
fn a_host_veth_that_nobody_could_label_goes_and_one_in_use_stays() {
    let (sandbox, conf) = (Sandbox::new(), conf::bridge(&["10.1.0.0/24"]));
    let (host, pod) = (sandbox.host(), sandbox.pod("a"));
    sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    let name = host_veth(&sandbox)["ifname"].clone();
    let name = name.as_str().expect("a name");
    let gone_for_the_runtime = || {
        let del = sandbox.cni("bridge").netns("");
        del.del(&conf, &pod, "eth0").silent();
    };
    gone_for_the_runtime();
    // As an ADD leaves it that is killed before it says whose the link is.
    host.sh(&format!(
        "ip link add {name} master cni0 type veth peer name eth0 netns a"
    ));
    gone_for_the_runtime();
    assert_eq!(host.link(name), None);
    host.sh(&format!(
        "ip link add {name} up type veth peer name eth0 netns a"
    ));
    gone_for_the_runtime();
    assert!(host.link(name).is_some());
}

#[test]
fn router_advertisements_are_refused_on_bridge_and_host_veth() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    let veth = host_veth(&sandbox)["ifname"]
        .as_str()
        .expect("a name")
        .to_owned();
    for link in ["cni0", &veth] {
        assert_eq!(
            sandbox
                .host()
                .sysctl(&format!("net/ipv6/conf/{link}/accept_ra")),
            "0",
            "{link}"
        );
    }
}

// ---- isGateway, isDefaultGateway, forceAddress

#[test]
fn without_is_gateway_the_node_stays_out_of_it() {
    let (sandbox, pod, result) = attached(&bridge(json!({"isGateway": false})));
    assert!(sandbox.host().addresses("cni0").is_empty());
    assert_eq!(sandbox.host().sysctl("net/ipv4/ip_forward"), "0");
    assert_eq!(pod.routes_to("-4", "default"), [] as [Value; 0]);
    assert!(result.get("routes").is_none(), "{result}");
    // host-local names a gateway all the same.
    assert_eq!(result["ips"][0]["gateway"], "10.1.0.1");
}

#[test]
fn is_gateway_addresses_the_bridge_and_forwards_the_families_in_use() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    assert_eq!(sandbox.host().addresses("cni0"), ["10.1.0.1/24"]);
    assert_eq!(sandbox.host().sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(sandbox.host().sysctl("net/ipv6/conf/all/forwarding"), "0");
    let (sandbox, _, _) = attached(&dual(json!({})));
    assert_eq!(
        sandbox.host().addresses("cni0"),
        ["10.1.0.1/24", "fd01::1/64"]
    );
    assert_eq!(sandbox.host().sysctl("net/ipv6/conf/all/forwarding"), "1");
}

#[test]
fn a_missing_gateway_is_the_first_address_of_the_network() {
    let ipam = json!({"ipam": null});
    let conf = conf::with(
        &bridge(ipam),
        json!({"ipam": {"type": "static", "addresses": [
            {"address": "10.4.7.9/22"}, {"address": "fd04::77/64"},
        ]}}),
    );
    let (sandbox, _, result) = attached(&conf);
    assert_eq!(result["ips"][0]["gateway"], "10.4.4.1");
    assert_eq!(result["ips"][1]["gateway"], "fd04::1");
    assert_eq!(
        sandbox.host().addresses("cni0"),
        ["10.4.4.1/22", "fd04::1/64"]
    );
}

#[test]
fn is_default_gateway_routes_everything_through_the_bridge() {
    let (sandbox, pod, result) =
        attached(&dual(json!({"isGateway": false, "isDefaultGateway": true})));
    assert_eq!(
        sandbox.host().addresses("cni0"),
        ["10.1.0.1/24", "fd01::1/64"]
    );
    assert_eq!(pod.routes_to("-4", "default")[0]["gateway"], "10.1.0.1");
    assert_eq!(pod.routes_to("-6", "default")[0]["gateway"], "fd01::1");
    let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd01::1"}]);
    assert_eq!(result["routes"], routes);
}

#[test]
fn a_default_route_of_the_ipam_with_a_gateway_comes_first() {
    let routes = json!({"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.77"}]}, "isDefaultGateway": true});
    let (_sandbox, pod, result) = attached(&bridge(routes));
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.77"}])
    );
    let found = pod.routes_to("-4", "default");
    assert_eq!(
        (found.len(), &found[0]["gateway"]),
        (1, &json!("10.1.0.77"))
    );
}

#[test]
fn a_default_route_of_the_ipam_without_a_gateway_is_the_same_route() {
    beyond_peer("reference 8 #8: file exists", || {
        for (subnet, family, all) in [(V4, "-4", "0.0.0.0/0"), (V6, "-6", "::/0")] {
            let change = json!({"ipam": {"routes": [{"dst": all}]}, "isDefaultGateway": true});
            let (_sandbox, pod, _) = attached(&conf::with(&conf::bridge(&[subnet]), change));
            assert_eq!(pod.routes_to(family, "default").len(), 1);
        }
    });
}

#[test]
fn routes_without_a_gateway_go_through_the_gateway_of_their_family() {
    let routes = json!({"ipam": {"routes": [
        {"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.5"}, {"dst": "fd09::/64"},
    ]}});
    let (_sandbox, pod, result) = attached(&dual(routes.clone()));
    assert_eq!(pod.routes_to("-4", "default")[0]["gateway"], "10.1.0.1");
    assert_eq!(pod.routes_to("-6", "default")[0]["gateway"], "fd01::1");
    assert_eq!(pod.routes_to("-4", "10.9.0.0/16")[0]["gateway"], "10.1.0.5");
    assert_eq!(pod.routes_to("-6", "fd09::/64")[0]["gateway"], "fd01::1");
    assert_eq!(result["routes"], routes["ipam"]["routes"]);
}

#[test]
fn routes_carry_their_extras_into_the_kernel() {
    beyond_peer("reference 8 #15: mtu and advmss are not applied", || {
        let route =
            json!({"dst": "10.9.0.0/16", "mtu": 1400, "advmss": 1300, "priority": 50, "table": 77});
        let (_sandbox, pod, result) =
            attached(&bridge(json!({"ipam": {"routes": [route.clone()]}})));
        let found = pod.ip_json(["-4", "route", "show", "table", "77"]);
        assert_eq!(found[0]["dst"], "10.9.0.0/16");
        assert_eq!(found[0]["metric"], 50);
        assert_eq!(found[0]["metrics"][0]["mtu"], 1400);
        assert_eq!(found[0]["metrics"][0]["advmss"], 1300);
        assert_eq!(result["routes"][0], route);
    });
}

#[test]
fn check_looks_for_a_route_in_its_own_table() {
    beyond_peer(
        "reference 8 #15: CHECK looks only at the main table",
        || {
            let conf = bridge(json!({"ipam": {"routes": [{"dst": "10.9.0.0/16", "table": 77}]}}));
            let (sandbox, pod, result) = attached(&conf);
            let check = || {
                sandbox
                    .cni("bridge")
                    .check(&conf::with_prev(&conf, &result), &pod, "eth0")
            };
            check().silent();
            pod.sh("ip route flush table 77");
            check().error();
        },
    );
}

#[test]
fn an_address_that_another_machine_has_is_left_to_it() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        // One at a time: of two that are taken, whichever answers first is told.
        for (taken, length) in [("10.1.0.2", 24), ("fd01::2", 64)] {
            let sandbox = Sandbox::new();
            let machine = sandbox.pod("m");
            // The bridge is the machines' switch as well.
            sandbox.host().sh(&format!(
                "ip link add cni0 up type bridge; \
                 ip link add m0 up master cni0 type veth peer name eth1 netns {}",
                machine.name()
            ));
            machine.sh(&format!(
                "ip link set eth1 up; ip addr add {taken}/{length} dev eth1 nodad"
            ));
            let pod = sandbox.pod("a");
            let conf = dual(json!({"detectConflicts": true}));
            let outcome = sandbox.cni("bridge").add(&conf, &pod, "eth0");
            outcome.result();
            assert_eq!(pod.addresses("eth0"), ["10.1.0.3/24", "fd01::3/64"]);
            let told = format!("{taken} is used by {}", mac(&machine, "eth1"));
            assert!(outcome.stderr().contains(&told), "{outcome}");
            assert!(pod.ping(taken, 2).contains(&true));
            del(&sandbox, &conf, &pod);
            assert_eq!(
                sandbox.host().links(),
                ["cni0", "lo", "m0"],
                "a link is left"
            );
        }
    });
}

#[test]
fn another_address_on_the_bridge_is_a_conflict() {
    let sandbox = Sandbox::new();
    sandbox
        .host()
        .sh("ip link add cni0 type bridge; ip addr add 10.99.0.1/24 dev cni0");
    let pod = sandbox.pod("a");
    let error = sandbox
        .cni("bridge")
        .add(&bridge(json!({})), &pod, "eth0")
        .error();
    let text =
        "failed to set bridge addr: \"cni0\" already has an IP address different from 10.1.0.1/24";
    assert!(error.msg.contains(text), "{}", error.msg);
    assert_eq!(sandbox.host().addresses("cni0"), ["10.99.0.1/24"]);
}

#[test]
fn force_address_replaces_what_conflicts() {
    let sandbox = Sandbox::new();
    sandbox.host().sh("ip link add cni0 type bridge
         ip addr add 10.99.0.1/24 dev cni0; ip addr add fd01::99/64 dev cni0 nodad
         ip addr add fd99::1/64 dev cni0 nodad");
    let pod = sandbox.pod("a");
    add(&sandbox, &dual(json!({"forceAddress": true})), &pod);
    // For IPv6 only addresses of the same network conflict.
    assert_eq!(
        sandbox.host().addresses("cni0"),
        ["10.1.0.1/24", "fd01::1/64", "fd99::1/64"]
    );
}

#[test]
fn the_right_address_on_the_bridge_is_left_alone() {
    let sandbox = Sandbox::new();
    sandbox
        .host()
        .sh("ip link add cni0 type bridge; ip addr add 10.1.0.1/24 dev cni0");
    let pod = sandbox.pod("a");
    add(&sandbox, &bridge(json!({})), &pod);
    assert_eq!(sandbox.host().addresses("cni0"), ["10.1.0.1/24"]);
}

#[test]
fn forwarding_ipv6_keeps_the_node_s_own_default_route() {
    beyond_peer("pains.md 24: the node loses its router", || {
        let sandbox = Sandbox::new();
        let (host, router) = (sandbox.host(), sandbox.pod("router"));
        host.sh("ip link add up0 type veth peer name r0 netns router; ip link set up0 up");
        router.sh("sysctl -qw net.ipv6.conf.r0.accept_dad=0; ip link set r0 up");
        advertise(&host, &router);
        let pod = sandbox.pod("a");
        add(&sandbox, &dual(json!({})), &pod);
        assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "1");
        assert_eq!(host.sysctl("net/ipv6/conf/up0/accept_ra"), "2");
        // The kernel drops the route when it meets the next advertisement.
        host.sh("ip -6 route flush proto ra");
        advertise(&host, &router);
    });
}

/// Without a default route there is still a prefix, which the router renews.
#[test]
fn forwarding_ipv6_keeps_the_addresses_of_a_router_that_is_no_default_router() {
    beyond_peer("the addresses expire", || {
        for plugin in ["bridge", "vxlan"] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let (host, router) = (sandbox.host(), sandbox.pod("router"));
            host.sh("ip link add up0 type veth peer name r0 netns router; ip link set up0 up");
            router.sh("sysctl -qw net.ipv6.conf.r0.accept_dad=0; ip link set r0 up");
            let lifetime = |host: &Netns| {
                let all = host.ip_json(["-6", "address", "show", "dev", "up0", "scope", "global"]);
                all[0]["addr_info"][0]["valid_life_time"].as_u64()
            };
            // The kernel does not shorten what is left to less than two hours.
            send_prefix(&host, &router, 8_000, |host| lifetime(host).is_some());
            let pod = sandbox.pod("a");
            sandbox
                .cni(plugin)
                .add(&conf_of(plugin), &pod, "eth0")
                .result();
            assert_eq!(host.sysctl("net/ipv6/conf/all/forwarding"), "1");
            assert_eq!(host.sysctl("net/ipv6/conf/up0/accept_ra"), "2", "{plugin}");
            send_prefix(&host, &router, 90_000, |host| {
                lifetime(host).is_some_and(|left| left > 80_000)
            });
        }
    });
}

/// Advertises a prefix for so many seconds, with a router lifetime of 0, until the node is as
/// it is to be.
fn send_prefix(host: &Netns, router: &Netns, seconds: u32, is_there: impl Fn(&Netns) -> bool) {
    // As below, and a prefix information option: on the link, and for addresses.
    const ADVERTISE: &str = r#"
        use Socket qw(:all);
        socket(my $s, AF_INET6, SOCK_RAW, 58) or die "socket: $!";
        setsockopt($s, 41, 18, pack("i", 255)) or die "hops: $!";
        my $to = pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"), $ARGV[0]);
        my $prefix = pack("CCCCNNN", 3, 4, 64, 0xc0, $ARGV[1], $ARGV[1], 0)
            . inet_pton(AF_INET6, "2001:db8:77::");
        send($s, pack("CCnCCnNN", 134, 0, 0, 64, 0, 0, 0, 0) . $prefix, 0, $to) or die "send: $!";
    "#;
    let index = router.link("r0").expect("r0")["ifindex"].to_string();
    let seconds = seconds.to_string();
    host.wait_until("an address by router advertisement", |host| {
        router.run(&["perl", "-e", ADVERTISE, &index, &seconds]);
        is_there(host)
    });
}

/// Sends router advertisements out of `r0` until the node has a default route.
fn advertise(host: &Netns, router: &Netns) {
    // Type 134, code 0, checksum by the kernel, hop limit 64, router lifetime 1800 s.
    const ADVERTISE: &str = r#"
        use Socket qw(:all);
        socket(my $s, AF_INET6, SOCK_RAW, 58) or die "socket: $!";
        setsockopt($s, 41, 18, pack("i", 255)) or die "hops: $!";
        my $to = pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"), $ARGV[0]);
        send($s, pack("CCnCCnNN", 134, 0, 0, 64, 0, 1800, 0, 0), 0, $to) or die "send: $!";
    "#;
    let index = router.link("r0").expect("r0")["ifindex"].to_string();
    let send = || router.run(&["perl", "-e", ADVERTISE, &index]);
    let routed = |host: &Netns| {
        let sent = send();
        // The router's own link-local address may still be on its way.
        assert!(
            sent.code == 0 || sent.stderr.contains("send:"),
            "{}",
            sent.stderr
        );
        host.routes_to("-6", "default")
            .iter()
            .any(|route| route["protocol"] == "ra")
    };
    host.wait_until("a default route by router advertisement", routed);
}

// ---- mtu

#[test]
fn mtu_goes_to_both_ends_and_to_a_new_bridge() {
    let (sandbox, pod, _) = attached(&bridge(json!({"mtu": 1400})));
    assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1400);
    assert_eq!(host_veth(&sandbox)["mtu"], 1400);
    assert_eq!(sandbox.host().link("cni0").expect("cni0")["mtu"], 1400);
}

#[test]
fn without_mtu_the_kernel_s_default_holds() {
    for change in [json!({}), json!({"mtu": 0})] {
        let (sandbox, pod, _) = attached(&bridge(change));
        assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1500);
        assert_eq!(sandbox.host().link("cni0").expect("cni0")["mtu"], 1500);
    }
}

#[test]
fn mtu_auto_is_that_of_the_interface_with_the_default_route() {
    beyond_peer("pains.md 22: 1500 unless configured by hand", || {
        for family in ["-4", "-6"] {
            let sandbox = Sandbox::new();
            sandbox.host().sh(&format!(
                "ip link add up0 mtu 1380 type veth peer name up1 mtu 1380; ip link set up0 up; ip link set up1 up
                 ip addr add 192.0.2.2/24 dev up0; ip addr add fd77::2/64 dev up0 nodad
                 ip {family} route add default via $([ {family} = -4 ] && echo 192.0.2.1 || echo fd77::1)"
            ));
            let pod = sandbox.pod("a");
            add(&sandbox, &bridge(json!({"mtu": "auto"})), &pod);
            assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1380, "{family}");
            assert_eq!(host_veth(&sandbox)["mtu"], 1380);
            assert_eq!(sandbox.host().link("cni0").expect("cni0")["mtu"], 1380);
        }
    });
}

/// Whatever way a packet takes, it fits.
#[test]
fn mtu_auto_is_the_smallest_of_all_ways_out() {
    beyond_peer("pains.md 22: 1500 unless configured by hand", || {
        for (routes, mtu) in [
            (
                "ip route add default nexthop via 192.0.2.1 dev wa nexthop via 198.51.100.1 dev wb",
                8000,
            ),
            (
                "ip -6 route add default nexthop via fd77::1 dev wa nexthop via fd78::1 dev wb",
                8000,
            ),
            (
                "ip route add default via 192.0.2.1; ip -6 route add default via fd78::1",
                8000,
            ),
            (
                "ip route add default via 192.0.2.1; ip route append default via 198.51.100.1",
                8000,
            ),
            (
                "ip route add default via 192.0.2.1; ip route add default via 198.51.100.1 metric 9",
                9000,
            ),
            ("ip route add default via 192.0.2.1 mtu 7000", 7000),
            (
                "ip nexthop add id 1 via 192.0.2.1 dev wa; ip nexthop add id 2 via 198.51.100.1 dev wb
                 ip nexthop add id 3 group 1/2; ip route add default nhid 3",
                8000,
            ),
            (
                "echo 0 >/proc/sys/net/ipv4/nexthop_compat_mode
                 ip nexthop add id 1 via 192.0.2.1 dev wa; ip nexthop add id 2 via 198.51.100.1 dev wb
                 ip nexthop add id 3 group 1/2; ip route add default nhid 3",
                8000,
            ),
        ] {
            let sandbox = Sandbox::new();
            let host = sandbox.host();
            host.sh(&format!(
                "ip link add wa mtu 9000 type veth peer name wa1 mtu 9000
                 ip link add wb mtu 8000 type veth peer name wb1 mtu 8000
                 for l in wa wa1 wb wb1; do ip link set $l up; done
                 ip addr add 192.0.2.2/24 dev wa; ip addr add fd77::2/64 dev wa nodad
                 ip addr add 198.51.100.2/24 dev wb; ip addr add fd78::2/64 dev wb nodad
                 {routes}"
            ));
            let pod = sandbox.pod("a");
            add(&sandbox, &bridge(json!({"mtu": "auto"})), &pod);
            assert_eq!(pod.link("eth0").expect("eth0")["mtu"], mtu, "{routes}");
            assert_eq!(host.link("cni0").expect("cni0")["mtu"], mtu, "{routes}");
        }
    });
}

#[test]
fn mtu_auto_without_a_default_route_is_refused_in_plain_words() {
    beyond_peer("pains.md 22", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        let conf = bridge(json!({"mtu": "auto"}));
        let error = sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
        let words = ["mtu", "auto", "no default route"];
        assert!(
            words.iter().all(|word| error.msg.contains(word)),
            "{}",
            error.msg
        );
        snapshot.assert_unchanged();
    });
}

#[test]
fn an_impossible_mtu_is_refused() {
    for mtu in [10, 70000] {
        refused(&bridge(json!({"mtu": mtu})));
    }
}

// ---- hairpinMode, promiscMode, portIsolation

#[test]
fn hairpin_mode_is_written_on_and_off() {
    for on in [true, false] {
        let (sandbox, pod, _) = attached(&bridge(json!({"hairpinMode": on})));
        assert_eq!(
            host_veth(&sandbox)["linkinfo"]["info_slave_data"]["hairpin"],
            on
        );
        assert_eq!(pod.ping("10.1.0.1", 1), [true]);
    }
}

#[test]
fn promisc_mode_is_switched_on_and_never_off() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let promisc = || has_flag(&sandbox.host().link("cni0").expect("cni0"), "PROMISC");
    add(&sandbox, &bridge(json!({"promiscMode": true})), &a);
    assert!(promisc());
    add(&sandbox, &bridge(json!({})), &b);
    assert!(promisc());
}

#[test]
fn hairpin_and_promisc_exclude_each_other() {
    let error = refused(&bridge(json!({"hairpinMode": true, "promiscMode": true})));
    let text = "cannot set hairpin mode and promiscuous mode at the same time";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn isolated_ports_reach_the_gateway_but_not_each_other() {
    beyond_peer("portIsolation came with plugins v1.6", || {
        let sandbox = Sandbox::new();
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = bridge(json!({"portIsolation": true}));
        add(&sandbox, &conf, &a);
        add(&sandbox, &conf, &b);
        assert_eq!(
            host_veth(&sandbox)["linkinfo"]["info_slave_data"]["isolated"],
            true
        );
        assert_eq!(a.ping("10.1.0.1", 1), [true]);
        assert_eq!(a.ping("10.1.0.3", 1), [false]);
    });
}

#[test]
fn ports_are_not_isolated_unless_asked() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    assert_eq!(
        host_veth(&sandbox)["linkinfo"]["info_slave_data"]["isolated"],
        false
    );
}

// ---- enabledad, disableContainerInterface, sysctls

#[test]
fn an_ipv6_address_is_usable_the_moment_add_returns() {
    let (_sandbox, pod, _) = attached(&dual(json!({})));
    let flags = pod.sh("ip -6 addr show dev eth0 tentative");
    assert!(!flags.contains("fd01::2"), "{flags}");
}

#[test]
fn duplicate_address_detection_is_off_unless_enabled() {
    let (_sandbox, pod, _) = attached(&dual(json!({})));
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");
    let (_sandbox, pod, _) = attached(&dual(json!({"enabledad": true})));
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/enhanced_dad"), "1");
    assert!(
        !pod.sh("ip -6 addr show dev eth0 tentative")
            .contains("fd01::2")
    );
}

#[test]
fn without_duplicate_address_detection_add_takes_no_second() {
    let sandbox = Sandbox::new();
    // A busy machine may delay one of them; duplicate address detection, all.
    let took = ["a", "b", "c"].map(|name| {
        let pod = sandbox.pod(name);
        let cni = sandbox.cni("bridge").id(name);
        let outcome = cni.add(&dual(json!({})), &pod, "eth0");
        outcome.result();
        outcome.elapsed()
    });
    let limit = sandbox::in_time(Duration::from_secs(1));
    assert!(took.iter().any(|took| *took < limit), "{took:?}");
}

#[test]
fn the_pod_notifies_its_neighbours_of_changes() {
    let (_sandbox, pod, _) = attached(&bridge(json!({})));
    assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_notify"), "1");
}

#[test]
fn ipv6_is_switched_on_where_the_runtime_switched_it_off() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    add(&sandbox, &dual(json!({})), &pod);
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/disable_ipv6"), "0");
    beyond_peer(
        "plugins before v1.2 lose the address when the link goes down",
        || {
            assert_eq!(pod.sysctl("net/ipv6/conf/eth0/keep_addr_on_down"), "1");
        },
    );
}

#[test]
fn a_disabled_container_interface_stays_down() {
    beyond_peer("disableContainerInterface came with plugins v1.5", || {
        let (sandbox, pod, _) = attached(&l2(json!({"disableContainerInterface": true})));
        assert!(!has_flag(&pod.link("eth0").expect("eth0"), "UP"));
        assert_eq!(host_veth(&sandbox)["master"], "cni0");
        let error = refused(&bridge(json!({"disableContainerInterface": true})));
        let text = "cannot use IPAM when DisableContainerInterface flag is set";
        assert!(error.msg.contains(text), "{}", error.msg);
    });
}

// ---- L2

#[test]
fn without_ipam_the_pod_gets_a_wire_and_nothing_else() {
    for ipam in [Value::Null, json!({}), json!({"type": ""})] {
        let (sandbox, pod, result) = attached(&l2(json!({"ipam": ipam})));
        assert!(pod.addresses("eth0").is_empty());
        assert_eq!(pod.link("eth0").expect("eth0")["operstate"], "UP");
        assert!(
            result.get("ips").is_none() && result.get("routes").is_none(),
            "{result}"
        );
        assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(3));
        del(&sandbox, &l2(json!({})), &pod);
        assert!(pod.link("eth0").is_none());
    }
}

#[test]
fn check_without_ipam_looks_at_the_wire() {
    beyond_peer("reference 8 #10: no plugin name provided", || {
        let (sandbox, pod, result) = attached(&l2(json!({})));
        let conf = conf::with_prev(&l2(json!({})), &result);
        let check = || sandbox.cni("bridge").check(&conf, &pod, "eth0");
        check().silent();
        let veth = result["interfaces"][1]["name"].as_str().expect("a name");
        sandbox.host().sh(&format!("ip link set {veth} nomaster"));
        check().error();
    });
}

// ---- MAC addresses

#[test]
fn the_pod_s_mac_comes_from_capability_then_args_then_environment() {
    let mac_of = |change: Value, args: &str| {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let cni = sandbox.cni("bridge").args(args);
        let result = cni.add(&l2(change), &pod, "eth0").result();
        assert_eq!(result["interfaces"][2]["mac"], mac(&pod, "eth0"));
        mac(&pod, "eth0")
    };
    let (capability, args) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    let all = json!({"runtimeConfig": {"mac": capability}, "args": {"cni": {"mac": args}}});
    assert_eq!(mac_of(all, "MAC=02:00:00:00:00:0c"), capability);
    assert_eq!(
        mac_of(
            json!({"args": {"cni": {"mac": args}}}),
            "MAC=02:00:00:00:00:0c"
        ),
        args
    );
    assert_eq!(
        mac_of(json!({}), "MAC=02:00:00:00:00:0C"),
        "02:00:00:00:00:0c"
    );
}

#[test]
fn a_bad_mac_is_refused() {
    for bad in ["02:00:00:00:00", "nonsense", "02:00:00:00:00:zz"] {
        let error = refused(&l2(json!({"runtimeConfig": {"mac": bad}})));
        assert!(error.msg.contains(bad), "{}", error.msg);
    }
}

#[test]
fn the_bridge_s_mac_never_changes() {
    beyond_peer(
        "reference 8 #9: it follows the lowest port until it is pinned",
        || {
            let conf = bridge(json!({"isGateway": false}));
            let (sandbox, pod, result) = attached(&conf);
            let host = sandbox.host();
            let born = mac(&host, "cni0");
            assert_eq!(result["interfaces"][0]["mac"], born);
            host.sh("ip link add low address 00:00:00:00:00:01 type veth peer name low1; ip link set low master cni0");
            assert_eq!(mac(&host, "cni0"), born);
            host.sh("ip link del low");
            del(&sandbox, &conf, &pod);
            assert_eq!(mac(&host, "cni0"), born);
            // Locally administered, unicast.
            let first = u8::from_str_radix(&born[..2], 16).expect("hex");
            assert_eq!(first & 3, 2, "{born}");
        },
    );
}

#[test]
fn add_succeeds_on_a_bridge_that_a_failed_add_left_without_ports() {
    beyond_peer("reference 8 #9: could not set bridge's mac", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let ipam = sandbox.fake("fake-ipam");
        ipam.fail("ADD", 11, "later");
        let fails = l2(json!({"ipam": {"type": "fake-ipam"}}));
        sandbox.cni("bridge").add(&fails, &pod, "eth0").error();
        del(&sandbox, &fails, &pod);
        add(&sandbox, &bridge(json!({})), &pod);
    });
}

#[test]
fn the_mac_addresses_of_a_wire_are_not_left_for_udev_to_change() {
    beyond_peer(
        "pains.md 13: CHECK fails after udev has changed the host's end",
        || {
            let (sandbox, pod, _) = attached(&bridge(json!({})));
            let veth = host_veth(&sandbox)["ifname"]
                .as_str()
                .expect("a name")
                .to_owned();
            // 3: NET_ADDR_SET, what udev's MACAddressPolicy leaves alone (1 is random).
            let assigned = sandbox.read(format!("/sys/class/net/{veth}/addr_assign_type"));
            assert_eq!(assigned.as_deref(), Some("3\n"));
            let inside = "mount -t sysfs sysfs /sys; cat /sys/class/net/eth0/addr_assign_type";
            let assigned = pod.run(&["unshare", "-m", "sh", "-ec", inside]);
            assert_eq!(assigned.stdout, "3\n");
        },
    );
}

// ---- dns

#[test]
fn dns_of_the_configuration_replaces_that_of_the_ipam() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.1.0.9/24"}], "dns": {"nameservers": ["10.0.0.1"]}});
    beyond_peer("plugins before v1.2 drop what the IPAM says", || {
        let (_s, _p, result) = attached(&l2(json!({"ipam": ipam})));
        assert_eq!(result["dns"], json!({"nameservers": ["10.0.0.1"]}));
    });
    let (_s, _p, result) = attached(&l2(
        json!({"ipam": ipam, "dns": {"search": ["example.org"]}}),
    ));
    assert_eq!(result["dns"], json!({"search": ["example.org"]}));
}

// ---- announcements

#[test]
fn the_new_address_is_announced_where_the_siblings_hear_it() {
    beyond_peer(
        "reference 2.12: the announcement is lost before the port forwards",
        || {
            let sandbox = Sandbox::new();
            let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
            let conf = dual(json!({}));
            add(&sandbox, &conf, &a);
            let heard = a.capture("eth0", "arp or icmp6");
            add(&sandbox, &conf, &b);
            let mac = mac(&b, "eth0");
            a.wait_until("both announcements were heard", |_| {
                let text = heard.output();
                let from = |line: &&str| line.contains(&format!(" {mac} > "));
                let lines: Vec<&str> = text.lines().filter(from).collect();
                lines
                    .iter()
                    .any(|line| line.contains("ARP") && line.contains("10.1.0.3"))
                    && lines.iter().any(|line| {
                        line.contains("neighbor advertisement") && line.contains("fd01::3")
                    })
            });
        },
    );
}

// ---- CHECK

/// Breaks something behind the plugin's back: in which namespace, and how.
type Tamper = fn(&Sandbox, &Netns, &Value);

#[test]
fn check_passes_on_what_add_has_made_and_keeps_passing() {
    for conf in [
        bridge(json!({})),
        dual(json!({"isDefaultGateway": true})),
        bridge(json!({"promiscMode": true})),
    ] {
        let (sandbox, pod, result) = attached(&conf);
        let other = sandbox.pod("b");
        let check = || {
            sandbox
                .cni("bridge")
                .check(&conf::with_prev(&conf, &result), &pod, "eth0")
        };
        check().silent();
        add(&sandbox, &conf, &other);
        check().silent();
        del(&sandbox, &conf, &other);
        check().silent();
    }
}

#[test]
fn check_changes_nothing() {
    let (sandbox, pod, result) = attached(&dual(json!({})));
    let snapshot = sandbox.snapshot();
    sandbox
        .cni("bridge")
        .check(&conf::with_prev(&dual(json!({})), &result), &pod, "eth0")
        .silent();
    snapshot.assert_unchanged();
}

#[test]
fn check_notices_whatever_is_missing() {
    let tampers: [(&str, Tamper, &str); 8] = [
        (
            "address",
            |_, pod, _| drop(pod.sh("ip addr del 10.1.0.2/24 dev eth0")),
            "Failed to match addr 10.1.0.2/24 on interface eth0",
        ),
        (
            "link",
            |_, pod, _| drop(pod.sh("ip link del eth0")),
            "nterface name eth0 not found",
        ),
        (
            "route",
            |_, pod, _| drop(pod.sh("ip route del default")),
            "not found in routing table",
        ),
        (
            "bridge",
            |s, _, _| drop(s.host().sh("ip link del cni0")),
            "cni0",
        ),
        (
            "master",
            |s, _, result| {
                drop(
                    s.host()
                        .sh(&format!("ip link set {} nomaster", name(result, 1))),
                )
            },
            "veth",
        ),
        (
            "mac",
            |_, pod, _| {
                drop(pod.sh("ip link set eth0 down; ip link set eth0 address 02:99:99:99:99:99; ip link set eth0 up; ip route add default via 10.1.0.1"))
            },
            "doesn't match container Mac",
        ),
        (
            "promisc",
            |s, _, _| drop(s.host().sh("ip link set cni0 promisc off")),
            "romisc",
        ),
        (
            "reservation",
            |s, _, _| drop(s.host().sh("rm /var/lib/cni/networks/testnet/10.1.0.2")),
            "host-local: Failed to find address added by container id-a",
        ),
    ];
    for (what, tamper, text) in tampers {
        let conf = bridge(json!({"isDefaultGateway": true, "promiscMode": true}));
        let (sandbox, pod, result) = attached(&conf);
        let check = || {
            sandbox
                .cni("bridge")
                .check(&conf::with_prev(&conf, &result), &pod, "eth0")
        };
        check().silent();
        tamper(&sandbox, &pod, &result);
        let error = check().error();
        assert!(error.msg.contains(text), "{what}: {}", error.msg);
    }
}

fn name(result: &Value, index: usize) -> String {
    result["interfaces"][index]["name"]
        .as_str()
        .expect("a name")
        .to_owned()
}

#[test]
fn check_needs_a_previous_result_of_the_same_pod() {
    let (sandbox, pod, result) = attached(&bridge(json!({})));
    let check = |conf: &Value| sandbox.cni("bridge").check(conf, &pod, "eth0").error().msg;
    let missing = check(&bridge(json!({})));
    assert!(missing.contains("Required prevResult missing"), "{missing}");
    let mut other = result.clone();
    other["interfaces"][2]["sandbox"] = "/run/netns/other".into();
    let foreign = check(&conf::with_prev(&bridge(json!({})), &other));
    assert!(
        foreign.contains("doesn't match configured netns"),
        "{foreign}"
    );
}

// ---- failures leave nothing

/// Runs an ADD that must fail and asserts that only a bridge may be left.
fn fails_and_leaves_nothing(sandbox: &Sandbox, conf: &Value, pod: &Netns, stdout: Stdout) {
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let outcome = sandbox.cni("bridge").stdout(stdout).add(conf, pod, "eth0");
    assert_eq!(outcome.code(), 1, "{outcome}");
    snapshot.assert_unchanged();
}

#[test]
fn a_failing_ipam_leaves_no_wire_and_is_asked_to_release() {
    beyond_peer("reference 8 #7: the veth stays, no DEL is sent", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let ipam = sandbox.fake("fake-ipam");
        ipam.fail("ADD", 11, "later");
        fails_and_leaves_nothing(
            &sandbox,
            &l2(json!({"ipam": {"type": "fake-ipam"}})),
            &pod,
            Stdout::Captured,
        );
        assert_eq!(ipam.verbs(), ["ADD", "DEL"]);
    });
}

#[test]
fn a_missing_ipam_leaves_no_wire() {
    beyond_peer("reference 1.13: the interface stays", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        fails_and_leaves_nothing(
            &sandbox,
            &l2(json!({"ipam": {"type": "nope"}})),
            &pod,
            Stdout::Captured,
        );
    });
}

#[test]
fn a_failure_after_the_addresses_leaves_nothing() {
    beyond_peer("reference 8 #7: the veth stays", || {
        // An unreachable gateway; a destination with host bits; a conflict on the bridge.
        for change in [
            json!({"ipam": {"routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}}),
            json!({"ipam": {"routes": [{"dst": "10.8.0.1/16"}]}}),
        ] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            fails_and_leaves_nothing(&sandbox, &bridge(change), &pod, Stdout::Captured);
        }
        let sandbox = Sandbox::new();
        sandbox
            .host()
            .sh("ip link add cni0 type bridge; ip addr add 10.99.0.1/24 dev cni0");
        let pod = sandbox.pod("a");
        fails_and_leaves_nothing(&sandbox, &bridge(json!({})), &pod, Stdout::Captured);
    });
}

#[test]
fn a_result_that_nobody_reads_is_taken_back() {
    beyond_peer(
        "style.md 1.2: success is noted before the result is out",
        || {
            for stdout in [Stdout::NoReader, Stdout::Full] {
                for conf in [bridge(json!({})), l2(json!({}))] {
                    let sandbox = Sandbox::new();
                    let pod = sandbox.pod("a");
                    fails_and_leaves_nothing(&sandbox, &conf, &pod, stdout);
                }
            }
        },
    );
}

#[test]
fn the_old_form_of_a_result_without_addresses_is_an_error_that_leaves_nothing() {
    beyond_peer("reference 1.8: fails after creating the link", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        fails_and_leaves_nothing(
            &sandbox,
            &conf::at(&l2(json!({})), "0.2.0"),
            &pod,
            Stdout::Captured,
        );
    });
}

/// ADD by a plugin that is killed while its delegate works.
fn killed(sandbox: &Sandbox, pod: &Netns) -> Value {
    let conf = l2(json!({"ipam": {"type": "deadly"}}));
    sandbox
        .fake("deadly")
        .before("ADD", "kill -9 $PPID; sleep 0.1");
    let outcome = sandbox.cni("bridge").add(&conf, pod, "eth0");
    assert_eq!(outcome.code(), 128 + 9, "{outcome}");
    conf
}

#[test]
fn what_a_killed_add_left_is_removed_by_del() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot().allow_link("cni0");
    let conf = killed(&sandbox, &pod);
    del(&sandbox, &conf, &pod);
    snapshot.assert_unchanged();
}

#[test]
fn what_a_killed_add_left_is_removed_by_del_without_a_netns() {
    beyond_peer("design.md 4: the host's end is found by its name", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot().allow_link("cni0");
        let conf = killed(&sandbox, &pod);
        sandbox
            .cni("bridge")
            .netns("")
            .del(&conf, &pod, "eth0")
            .silent();
        snapshot.assert_unchanged();
    });
}

#[test]
fn gc_removes_the_wires_that_are_not_in_the_list() {
    beyond_peer("no GC there", || {
        let sandbox = Sandbox::new();
        let (dead, alive) = (sandbox.pod("dead"), sandbox.pod("alive"));
        let conf = bridge(json!({"cniVersion": "1.1.0"}));
        add(&sandbox, &conf, &dead);
        add(&sandbox, &conf, &alive);
        // Somebody else's wire, and another network's, are not ours to take.
        sandbox.host().sh("ip link add veth00000001 type veth peer name other; ip link set veth00000001 master cni0");
        let other = conf::with(
            &conf,
            json!({"name": "other", "ipam": {"ranges": [[{"subnet": "10.1.1.0/24"}]]}, "isGateway": false}),
        );
        let foreign = sandbox.pod("foreign");
        add(&sandbox, &other, &foreign);
        let valid = conf::with_valid(&conf, &[("id-alive", "eth0")]);
        sandbox.cni("bridge").gc(&valid).silent();
        assert!(dead.link("eth0").is_none());
        assert_eq!(alive.ping("10.1.0.1", 1), [true]);
        assert!(foreign.link("eth0").is_some());
        assert!(sandbox.host().link("veth00000001").is_some());
        assert_eq!(sandbox.read(format!("{}/10.1.0.2", conf::STATE)), None);
        assert!(sandbox.read(format!("{}/10.1.0.3", conf::STATE)).is_some());
    });
}

#[test]
fn status_says_when_the_bridge_s_name_is_taken() {
    beyond_peer("no STATUS there", || {
        let sandbox = Sandbox::new();
        let conf = bridge(json!({"cniVersion": "1.1.0"}));
        sandbox.cni("bridge").status(&conf).silent();
        sandbox
            .host()
            .sh("ip link add cni0 type veth peer name other");
        assert_eq!(sandbox.cni("bridge").status(&conf).error().code, 50);
    });
}

/// Makes a bridge with all ports that it can have.
fn fill(host: &Netns, bridge: &str) {
    host.sh(&format!(
        "ip link add {bridge} type bridge
         for i in $(seq 1 512); do
            echo link add name a$i master {bridge} type veth peer name b$i
            [ $i = 512 ] || echo link set b$i master {bridge}
         done | ip -batch -"
    ));
}

#[test]
fn a_bridge_without_room_for_a_port_is_told() {
    beyond_peer("exchange full", || {
        for plugin in ["bridge", "vxlan"] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let pod = sandbox.pod("a");
            let conf = conf::with(&conf_of(plugin), json!({"bridge": "cni0"}));
            fill(&sandbox.host(), "cni0");
            let full = "bridge \"cni0\" is full: a Linux bridge takes 1023 ports";
            let error = sandbox.cni(plugin).status(&conf).error();
            assert_eq!((error.code, error.msg.as_str()), (50, full));
            let error = sandbox.cni(plugin).add(&conf, &pod, "eth0").error();
            assert_eq!((error.code, error.msg.as_str()), (11, full));
            sandbox.host().sh("ip link del a1");
            sandbox.cni(plugin).status(&conf).silent();
            sandbox.cni(plugin).add(&conf, &pod, "eth0").result();
        }
    });
}

#[test]
fn ipv6_that_is_disabled_on_the_node_is_named() {
    beyond_peer("permission denied", || {
        for (plugin, device) in [("bridge", "cni0"), ("vxlan", "vxlan.5")] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let pod = sandbox.pod("a");
            sandbox
                .host()
                .sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
            let status = sandbox.cni(plugin).status(&conf_of(plugin)).error();
            assert_eq!(status.code, 50);
            assert!(status.msg.ends_with(".disable_ipv6 is 1"), "{status:?}");
            let error = sandbox
                .cni(plugin)
                .add(&conf_of(plugin), &pod, "eth0")
                .error();
            let why = format!(
                "to \"{device}\", where net.ipv6.conf.{device}.disable_ipv6 is 1: permission denied (13)"
            );
            assert!(error.msg.contains(&why), "{}", error.msg);
        }
    });
}

#[test]
fn a_pod_without_ipv6_gets_it_with_its_address() {
    for plugin in ["bridge", "macvlan"] {
        let sandbox = Sandbox::new();
        sandbox.make_ready(plugin);
        let pod = sandbox.pod("a");
        pod.sh("for of in all default; do
                echo 1 >/proc/sys/net/ipv6/conf/$of/disable_ipv6
            done");
        let result = sandbox.cni(plugin).add(&conf_of(plugin), &pod, "eth0");
        result.result();
        assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
    }
}

/// A call where /proc/sys is read-only, as in rootless runtimes.
fn without_sysctls(call: Cni) -> Cni {
    let read_only = r#"mount --bind /proc/sys /proc/sys
        mount -o remount,bind,ro /proc/sys
        exec "$@""#;
    call.under(&["unshare", "--mount", "sh", "-ec", read_only, "sh"])
}

#[test]
fn a_read_only_proc_sys_costs_no_add_what_it_can_do_without() {
    beyond_peer("keep_addr_on_down", || {
        for plugin in ["bridge", "vxlan", "macvlan"] {
            let sandbox = Sandbox::new();
            sandbox.make_ready(plugin);
            let (pod, conf) = (sandbox.pod("a"), conf_of(plugin));
            sandbox.host().sh("echo 1 >/proc/sys/net/ipv4/ip_forward
                 echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
            let call = || without_sysctls(sandbox.cni(plugin));
            call().status(&conf).silent();
            let result = call().add(&conf, &pod, "eth0").result();
            assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
            let checked = conf::with_prev(&conf, &result);
            call().check(&checked, &pod, "eth0").silent();
            call().del(&checked, &pod, "eth0").silent();
        }
    });
}

#[test]
fn what_a_read_only_proc_sys_does_forbid_is_told_by_status_and_add() {
    beyond_peer("no STATUS there", || {
        for plugin in ["bridge", "vxlan"] {
            for family in ["4", "6"] {
                let sandbox = Sandbox::new();
                sandbox.make_ready(plugin);
                let (pod, conf) = (sandbox.pod("a"), conf_of(plugin));
                if family == "6" {
                    let host = sandbox.host();
                    host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward");
                }
                let call = || without_sysctls(sandbox.cni(plugin));
                let status = call().status(&conf).error();
                assert_eq!(status.code, 50, "{}", status.msg);
                let error = call().add(&conf, &pod, "eth0").error();
                for msg in [status.msg, error.msg] {
                    let forbidden = msg.starts_with("failed to enable forwarding")
                        && msg.contains("read-only file system (30)");
                    assert!(forbidden, "{plugin} {family}: {msg}");
                }
            }
        }
    });
}

#[test]
fn a_namespace_of_another_kind_is_told_at_once() {
    beyond_peer("reference 8: invalid argument", || {
        let sandbox = Sandbox::new();
        let snapshot = sandbox.snapshot();
        let pod = sandbox.pod("a");
        for plugin in ["bridge", "macvlan", "loopback"] {
            let call = || sandbox.cni(plugin).netns("/proc/self/ns/uts");
            let error = call().add(&conf_of(plugin), &pod, "eth0").error();
            assert!(
                error.msg.contains("it is no network namespace"),
                "{error:?}"
            );
            call().del(&conf_of(plugin), &pod, "eth0").silent();
        }
        snapshot.allow("netns a").assert_unchanged();
    });
}

#[test]
fn an_impossible_configuration_touches_nothing() {
    beyond_peer("values are checked by the kernel, half way through", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot();
        for change in [
            json!({"mtu": -1}),
            json!({"mtu": 70000}),
            json!({"mtu": "automatic"}),
            json!({"bridge": ""}),
            json!({"bridge": "a-name-of-sixteen"}),
            json!({"bridge": "a/b"}),
            json!({"bridge": ".."}),
            json!({"hairpinMode": true, "promiscMode": true}),
            json!({"runtimeConfig": {"mac": "nonsense"}}),
            json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}),
        ] {
            let error = sandbox
                .cni("bridge")
                .add(&bridge(change.clone()), &pod, "eth0")
                .error();
            assert_eq!(error.code, 7, "{change}: {}", error.msg);
        }
        let cni = sandbox.cni("bridge").args("MAC=nonsense");
        assert_eq!(cni.add(&bridge(json!({})), &pod, "eth0").error().code, 4);
        snapshot.assert_unchanged();
    });
}

#[test]
fn del_forgives_what_add_refuses() {
    beyond_peer("reference 8 #6: validation errors fail DEL", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        add(&sandbox, &bridge(json!({})), &pod);
        let odd = bridge(
            json!({"mtu": "automatic", "hairpinMode": true, "promiscMode": true, "isGateway": "yes"}),
        );
        del(&sandbox, &odd, &pod);
        assert!(pod.link("eth0").is_none());
        assert_eq!(sandbox.read(format!("{}/10.1.0.2", conf::STATE)), None);
    });
}
