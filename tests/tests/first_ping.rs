//! A pod whose address was another pod's a moment ago answers the first ping. The
//! neighbours' tables still hold the dead pod's MAC address: only an announcement
//! that reaches them helps, and the kernel's own comes before the port forwards
//! (reference 2.12; pains.md 4: ten seconds of black hole).

use sandbox::{Netns, Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

fn bridge() -> Value {
    conf::bridge(&["10.1.0.0/24", "fd01::/64"])
}

/// The same network, with the addresses that the test wants.
fn with_ips(ips: &[&str]) -> Value {
    conf::with(&bridge(), json!({"runtimeConfig": {"ips": ips}}))
}

struct Reuse {
    sandbox: Sandbox,
    sibling: Netns,
    successor: Netns,
}

/// A pod that node and sibling have talked to goes; another takes its addresses.
fn reuse() -> Reuse {
    let sandbox = Sandbox::new();
    let (sibling, first, successor) = (
        sandbox.pod("sibling"),
        sandbox.pod("first"),
        sandbox.pod("successor"),
    );
    let taken = with_ips(&["10.1.0.50", "fd01::50"]);
    sandbox
        .cni("bridge")
        .add(&bridge(), &sibling, "eth0")
        .result();
    sandbox.cni("bridge").add(&taken, &first, "eth0").result();
    // The bridge's own IPv6 address is checked for duplicates for a second.
    sandbox
        .host()
        .wait_until("the gateway's address is not tentative", |host| {
            !host
                .sh("ip -6 addr show dev cni0 tentative")
                .contains("fd01::1")
        });
    for from in [&sandbox.host(), &sibling] {
        for address in ["10.1.0.50", "fd01::50"] {
            assert_eq!(
                from.ping(address, 2),
                [true, true],
                "{} to {address}",
                from.name()
            );
        }
    }
    sandbox.cni("bridge").del(&taken, &first, "eth0").silent();
    sandbox
        .cni("bridge")
        .add(&taken, &successor, "eth0")
        .result();
    Reuse {
        sandbox,
        sibling,
        successor,
    }
}

#[test]
fn the_node_s_first_ping_over_ipv4_is_answered() {
    beyond_peer("plugins#756, #858", || {
        let reuse = reuse();
        assert_eq!(reuse.sandbox.host().ping("10.1.0.50", 3), [true; 3]);
    });
}

#[test]
fn a_sibling_s_first_ping_over_ipv4_is_answered() {
    beyond_peer("plugins#756, #858", || {
        assert_eq!(reuse().sibling.ping("10.1.0.50", 3), [true; 3]);
    });
}

#[test]
fn the_node_s_first_ping_over_ipv6_is_answered() {
    beyond_peer("plugins#756, #858", || {
        let reuse = reuse();
        assert_eq!(reuse.sandbox.host().ping("fd01::50", 3), [true; 3]);
    });
}

#[test]
fn a_sibling_s_first_ping_over_ipv6_is_answered() {
    beyond_peer("plugins#756, #858", || {
        assert_eq!(reuse().sibling.ping("fd01::50", 3), [true; 3]);
    });
}

#[test]
fn the_successor_s_own_first_ping_is_answered() {
    let reuse = reuse();
    assert_eq!(reuse.successor.ping("10.1.0.1", 2), [true, true]);
    assert_eq!(reuse.successor.ping("10.1.0.2", 2), [true, true]);
}

#[test]
fn new_addresses_are_reachable_at_once() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    sandbox.cni("bridge").add(&bridge(), &a, "eth0").result();
    assert_eq!(sandbox.host().ping("10.1.0.2", 1), [true]);
    sandbox.cni("bridge").add(&bridge(), &b, "eth0").result();
    assert_eq!(a.ping("10.1.0.3", 1), [true]);
    assert_eq!(a.ping("fd01::3", 1), [true]);
}

#[test]
fn the_first_pod_of_a_network_reaches_its_ipv6_gateway_at_once() {
    beyond_peer("the bridge's address is tentative for a second", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        sandbox.cni("bridge").add(&bridge(), &pod, "eth0").result();
        assert_eq!(pod.ping("fd01::1", 1), [true]);
        assert_eq!(sandbox.host().ping("fd01::2", 1), [true]);
    });
}
