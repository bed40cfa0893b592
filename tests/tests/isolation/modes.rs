//! Each mode, both families, TCP, UDP and ping, with `bridge-nf-call-iptables` on and off.

use sandbox::{NODE, Netns, OUTSIDE, beyond_peer};
use serde_json::{Value, json};

use crate::lab::{
    A, B, C, Expected, GATEWAY, Lab, OPEN, PRIVATE, PUBLISHED, SERVICE, WHY, assert_all,
};

/// What of a family gets through.
#[derive(Clone, Copy)]
pub struct Passes {
    /// From elsewhere, by the pod's own address: the published port, another one, a ping.
    pub inward: [bool; 3],
    /// From elsewhere, by the node's address: the published port.
    pub published: bool,
    /// From a pod to elsewhere.
    pub outward: bool,
    /// Between a pod and the node.
    pub node: bool,
}

pub const NAT: Passes = Passes {
    inward: [false; 3],
    published: true,
    outward: true,
    node: true,
};
const UNPROTECTED: Passes = Passes {
    inward: [true; 3],
    ..NAT
};
pub const ROUTED: Passes = Passes {
    inward: [true, false, true],
    published: false,
    ..NAT
};
pub const INTERNAL: Passes = Passes {
    inward: [false; 3],
    published: false,
    outward: false,
    node: true,
};
const ISOLATED: Passes = Passes {
    node: false,
    ..INTERNAL
};

fn yes(passes: [bool; 2], name: &str) -> [Option<&str>; 2] {
    passes.map(|it| it.then_some(name))
}

/// `within`: whether pods of the network reach each other.
pub fn assert_passes(lab: &Lab, [a, b, c]: &[Netns; 3], passes: [Passes; 2], within: bool) {
    let of = |pick: fn(&Passes) -> bool| passes.map(|it| pick(&it));
    let elsewhere = || {
        let mut expected = Expected::default();
        expected.port(A, OPEN, yes(of(|it| it.inward[0]), "a"));
        expected.port(A, PRIVATE, yes(of(|it| it.inward[1]), "a"));
        expected.ping(A, of(|it| it.inward[2]));
        expected.port(NODE, PUBLISHED, yes(of(|it| it.published), "a"));
        expected
    };
    let mut neighbour = Expected::default();
    neighbour.port(A, OPEN, yes([within; 2], "a"));
    neighbour.port(A, PRIVATE, yes([within; 2], "a"));
    neighbour.ping(A, [within; 2]);
    neighbour.port(NODE, PUBLISHED, yes(of(|it| it.published), "a"));
    neighbour.port(OUTSIDE, SERVICE, yes(of(|it| it.outward), "outside"));
    neighbour.port(C, PRIVATE, yes(of(|it| it.outward), "c"));
    neighbour.port(GATEWAY, SERVICE, yes(of(|it| it.node), "host"));
    let mut own = Expected::default();
    own.port(NODE, PUBLISHED, yes(of(|it| it.published), "a"));
    own.ping(OUTSIDE, of(|it| it.outward));
    own.ping(B, [within; 2]);
    let mut node = Expected::default();
    node.port(A, OPEN, yes(of(|it| it.node), "a"));
    node.port(A, PRIVATE, yes(of(|it| it.node), "a"));
    node.ping(B, of(|it| it.node));
    let host = lab.host();
    assert_all(&[
        (&lab.outside, elsewhere()),
        (c, elsewhere()),
        (b, neighbour),
        (a, own),
        (&host, node),
    ]);
}

/// Once without and once with bridged packets in the rules of IP.
fn each(keys: Value, mapped: bool, test: impl Fn(&Lab, &[Netns; 3])) {
    beyond_peer(WHY, || {
        for filter_bridged in [false, true] {
            eprintln!("bridge-nf-call-iptables {filter_bridged}");
            let mut lab = Lab::new(keys.clone());
            let pods = lab.pods(mapped);
            lab.filter_bridged(filter_bridged);
            test(&lab, &pods);
        }
    });
}

#[test]
fn nat_lets_in_what_is_published_and_everything_out() {
    let keys =
        json!({"isDefaultGateway": true, "gatewayModeIPv4": "nat", "gatewayModeIPv6": "nat"});
    each(keys, true, |lab, pods| {
        assert_passes(lab, pods, [NAT; 2], true);
        let seen = format!("outside sees {}", NODE[0]);
        assert_eq!(lab.outside_answers(&pods[0]), seen, "masqueraded");
    });
}

#[test]
fn nat_unprotected_lets_in_everything() {
    let mode = "nat-unprotected";
    let keys = json!({"isDefaultGateway": true, "gatewayModeIPv4": mode, "gatewayModeIPv6": mode});
    each(keys, true, |lab, pods| {
        assert_passes(lab, pods, [UNPROTECTED; 2], true);
    });
}

pub fn mappings() -> Value {
    json!({"portMappings": [
        {"hostPort": PUBLISHED, "containerPort": OPEN, "protocol": "tcp"},
        {"hostPort": PUBLISHED, "containerPort": OPEN, "protocol": "UDP"},
    ]})
}

#[test]
fn routed_opens_the_ports_of_the_pod_itself_without_translation() {
    let mode = "routed";
    let keys = json!({"isDefaultGateway": true, "gatewayModeIPv4": mode, "gatewayModeIPv6": mode,
        "runtimeConfig": mappings()});
    each(keys, false, |lab, pods| {
        assert_passes(lab, pods, [ROUTED; 2], true);
        let seen = format!("outside sees {}", A[0]);
        assert_eq!(lab.outside_answers(&pods[0]), seen, "not masqueraded");
    });
}

#[test]
fn each_family_has_its_own_mode() {
    let keys = json!({"isDefaultGateway": true, "gatewayModeIPv4": "nat",
        "gatewayModeIPv6": "routed", "runtimeConfig": mappings()});
    each(keys, true, |lab, pods| {
        // Here portmap publishes the port for both.
        let routed = Passes {
            published: true,
            ..ROUTED
        };
        assert_passes(lab, pods, [NAT, routed], true);
    });
}

/// Pods that give themselves a way out, as hostile ones would.
fn reroute(pods: &[Netns; 3]) {
    for pod in &pods[..2] {
        assert!(pod.routes_to("-4", "default").is_empty());
        assert!(pod.routes_to("-6", "default").is_empty());
        pod.sh("ip route add default via 10.1.0.1; ip route add default via fd01::1");
    }
}

#[test]
fn an_internal_network_has_no_way_out_and_none_in() {
    let keys = json!({"isGateway": true, "internal": true});
    each(keys, true, |lab, pods| {
        assert_passes(lab, pods, [INTERNAL; 2], true);
        reroute(pods);
        // Its own node's published port leads back into the network.
        let published = Passes {
            published: true,
            ..INTERNAL
        };
        let within = lab.host().sysctl("net/bridge/bridge-nf-call-iptables") == "0";
        if within {
            let mut own = Expected::default();
            own.port(NODE, PUBLISHED, yes([published.published; 2], "a"));
            own.port(OUTSIDE, SERVICE, [None; 2]);
            own.port(C, PRIVATE, [None; 2]);
            own.ping(C, [false; 2]);
            assert_all(&[(&pods[1], own)]);
        }
        assert_passes_from_elsewhere(lab, pods);
    });
}

fn assert_passes_from_elsewhere(lab: &Lab, [_, _, c]: &[Netns; 3]) {
    let elsewhere = || {
        let mut expected = Expected::default();
        expected.port(A, OPEN, [None; 2]);
        expected.port(NODE, PUBLISHED, [None; 2]);
        expected
    };
    assert_all(&[(&lab.outside, elsewhere()), (c, elsewhere())]);
}

#[test]
fn an_isolated_network_does_not_even_reach_its_node() {
    let keys = json!({"isGateway": true, "internal": true, "gatewayModeIPv4": "isolated",
        "gatewayModeIPv6": "isolated"});
    each(keys, true, |lab, pods| {
        assert!(
            lab.host()
                .addresses("cni0")
                .iter()
                .all(|it| it.starts_with("fe80:"))
        );
        assert_passes(lab, pods, [ISOLATED; 2], true);
        // The node answers for all of its addresses on each interface.
        let b = &pods[1];
        b.sh(&format!(
            "ip route add {}/32 dev eth0; ip route add {}/128 dev eth0",
            NODE[0], NODE[1]
        ));
        let local = lab.host().sh("ip -6 -br addr show dev cni0 scope link");
        let local = local.split_whitespace().find_map(|it| it.split_once("/64"));
        let (local, _) = local.expect("the link-local address of the bridge");
        let local = format!("{local}%eth0");
        let mut expected = Expected::default();
        expected.port(NODE, SERVICE, [None; 2]);
        expected.ping(NODE, [false; 2]);
        expected.ping([NODE[0], &local], [false; 2]);
        assert_all(&[(b, expected)]);
    });
}

#[test]
fn icc_false_keeps_the_pods_of_a_network_apart() {
    let keys = json!({"isDefaultGateway": true, "icc": false, "gatewayModeIPv4": "nat",
        "gatewayModeIPv6": "nat"});
    for bridged in [false, true] {
        beyond_peer(WHY, || {
            let mut lab = Lab::new(keys.clone());
            let pods = lab.pods(true);
            lab.filter_bridged(bridged);
            let [a, b, _] = &pods;
            // What a hostile pod does: everything goes to the gateway.
            for pod in [a, b] {
                pod.sh("ip route replace 10.1.0.0/24 via 10.1.0.1 dev eth0 onlink
                    ip route replace fd01::/64 via fd01::1 dev eth0 onlink");
            }
            let mut expected = Expected::default();
            expected.port(A, OPEN, [None; 2]);
            expected.port(A, PRIVATE, [None; 2]);
            expected.ping(A, [false; 2]);
            expected.port(OUTSIDE, SERVICE, yes([true; 2], "outside"));
            expected.port(GATEWAY, SERVICE, yes([true; 2], "host"));
            if !bridged {
                // Otherwise the kernel bridges what it has redirected, between isolated ports.
                expected.port(NODE, PUBLISHED, yes([true; 2], "a"));
            }
            let mut outside = Expected::default();
            outside.port(NODE, PUBLISHED, yes([true; 2], "a"));
            outside.port(A, OPEN, [None; 2]);
            assert_all(&[(b, expected), (&lab.outside, outside)]);
        });
    }
}

#[test]
fn icc_alone_leaves_the_network_open_to_others() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(json!({"isDefaultGateway": true, "icc": false}));
        let [_a, b, c] = lab.pods(true);
        let mut inside = Expected::default();
        inside.port(A, OPEN, [None; 2]);
        let mut elsewhere = Expected::default();
        elsewhere.port(A, PRIVATE, yes([true; 2], "a"));
        assert_all(&[(&b, inside), (&c, elsewhere)]);
    });
}
