//! What CHECK accepts and what it reports.

use sandbox::{Netns, Sandbox, conf};
use serde_json::{Value, json};

use crate::{add, attached, bridge, del, dual, name};

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
