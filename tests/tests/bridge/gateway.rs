//! `isGateway`, `isDefaultGateway`, `forceAddress`, routes, and the node's own IPv6.

use sandbox::{Netns, Sandbox, beyond_peer, conf, conf_of};
use serde_json::{Value, json};

use crate::{V4, V6, add, attached, bridge, del, dual, mac};

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
fn a_route_that_is_listed_twice_is_added_once() {
    beyond_peer("since v1.0 the second one is refused", || {
        let routes = json!({"ipam": {"routes": [
            {"dst": "10.9.0.0/16"},
            {"dst": "10.9.0.0/16", "gw": "10.1.0.1"},
            {"dst": "fd09::/64"},
            {"dst": "fd09::1/64"},
            {"dst": "10.9.0.0/16", "gw": "10.1.0.7", "priority": 9},
        ]}});
        let (_sandbox, pod, result) = attached(&dual(routes.clone()));
        assert_eq!(pod.routes_to("-4", "10.9.0.0/16").len(), 2);
        assert_eq!(pod.routes_to("-6", "fd09::/64").len(), 1);
        assert_eq!(result["routes"], routes["ipam"]["routes"]);
    });
}

/// As in the configuration that CRI-O shipped; it calls CHECK right after ADD (cri-o#6289).
#[test]
fn check_knows_an_ipv6_route_whose_destination_has_host_bits() {
    beyond_peer("CHECK compares the host bits", || {
        let conf = dual(json!({"ipam": {"routes": [{"dst": "fd09::1/64"}]}}));
        let (sandbox, pod, result) = attached(&conf);
        let check = || {
            let checked = conf::with_prev(&conf, &result);
            sandbox.cni("bridge").check(&checked, &pod, "eth0")
        };
        check().silent();
        pod.sh("ip -6 route del fd09::/64");
        check().error();
    });
}

#[test]
fn an_address_that_another_machine_has_is_left_to_it() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        // One at a time: of two addresses in use, the error names the one that answers first.
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
            let expected = format!("{taken} is used by {}", mac(&machine, "eth1"));
            assert!(outcome.stderr().contains(&expected), "{outcome}");
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
                all.first()?["addr_info"][0]["valid_life_time"].as_u64()
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
