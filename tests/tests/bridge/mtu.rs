//! `mtu`, also `auto`.

use sandbox::{Sandbox, beyond_peer, conf};
use serde_json::json;

use crate::{add, attached, bridge, host_veth, refused};

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

#[test]
fn an_mtu_too_small_for_ipv6_is_named() {
    beyond_peer("it names a file that is missing", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::with(&conf::bridge(&["fd00:1::/64"]), json!({"mtu": 1000}));
        let error = sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
        let words = "eth0 has no IPv6: its MTU is below 1280";
        assert!(error.msg.contains(words), "{}", error.msg);
    });
}
