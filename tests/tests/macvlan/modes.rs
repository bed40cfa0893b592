//! What each mode lets through, proved with traffic.

use sandbox::{MACHINE, Netns, beyond_peer, conf};
use serde_json::json;

use crate::{
    FIRST, MAC, SECOND, add, attached, del, dual, info, mac, macvlan, reaches, refused, siblings,
};

#[test]
fn pods_are_neighbours_of_machines_and_of_each_other_in_mode_bridge() {
    for mode in [json!(null), json!("bridge")] {
        let (sandbox, segment, [a, b]) = siblings(&dual(json!({"mode": mode})));
        assert!(reaches(&a, MACHINE) && reaches(&segment.machine, SECOND));
        assert!(reaches(&a, SECOND) && reaches(&b, FIRST));
        // The price of it, as the README says: the node itself is not among them.
        let host = sandbox.host();
        host.sh("ip addr add 10.1.0.98/24 dev eth1");
        assert_eq!(host.ping(MACHINE[0], 1), [true]);
        assert_eq!(host.ping(FIRST[0], 1), [false]);
    }
}

#[test]
fn siblings_do_not_reach_each_other_in_mode_private() {
    let (_sandbox, segment, [a, b]) = siblings(&dual(json!({"mode": "private"})));
    assert_eq!(info(&a)["mode"], "private");
    assert!(reaches(&a, MACHINE) && reaches(&b, MACHINE));
    assert!(!reaches(&a, SECOND));
    // Not even by way of a switch that would send their frames back.
    segment.set_hairpin(true);
    assert!(!reaches(&a, SECOND) && !reaches(&b, FIRST));
    assert!(reaches(&a, MACHINE));
}

#[test]
fn siblings_reach_each_other_in_mode_vepa_if_the_switch_sends_frames_back() {
    let (_sandbox, segment, [a, b]) = siblings(&dual(json!({"mode": "vepa"})));
    assert_eq!(info(&a)["mode"], "vepa");
    assert!(reaches(&a, MACHINE) && reaches(&b, MACHINE));
    assert!(!reaches(&a, SECOND));
    segment.set_hairpin(true);
    // Their ARP requests have failed; the kernel repeats them after a second.
    for (from, to) in [(&a, SECOND), (&b, FIRST)] {
        let answers = |from: &Netns| to.iter().all(|to| from.ping(to, 2).contains(&true));
        from.wait_until("the sibling answers", answers);
    }
}

#[test]
fn passthru_gives_the_wire_and_its_mac_to_one_pod() {
    let conf = dual(json!({"mode": "passthru"}));
    let it = attached(&conf);
    let parent = mac(&it.sandbox.host(), "eth1");
    assert_eq!(info(&it.pod)["mode"], "passthru");
    assert_eq!(mac(&it.pod, "eth0"), parent);
    assert_eq!(it.result["interfaces"][0]["mac"], parent.as_str());
    assert!(reaches(&it.pod, MACHINE));

    for mode in ["passthru", "bridge"] {
        let second = it.sandbox.pod(&format!("b{mode}"));
        let snapshot = it.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let conf = conf::with(&conf, json!({"mode": mode}));
        let cni = it.sandbox.cni("macvlan");
        let error = cni.add(&conf, &second, "eth0").error();
        assert!(
            error.msg.contains("failed to create macvlan"),
            "{}",
            error.msg
        );
        beyond_peer("it says: invalid argument, and leaves the address", || {
            assert!(error.msg.contains("passthru"), "{}", error.msg);
            snapshot.assert_unchanged();
        });
    }
    del(&it.sandbox, &conf, &it.pod);
    // The wire is free again.
    let next = it.sandbox.pod("next");
    add(&it.sandbox, &conf, &next);
    assert!(reaches(&next, MACHINE));
}

#[test]
fn passthru_needs_an_unused_parent() {
    let it = attached(&macvlan(json!({})));
    let second = it.sandbox.pod("b");
    let conf = macvlan(json!({"mode": "passthru"}));
    let error = it
        .sandbox
        .cni("macvlan")
        .add(&conf, &second, "eth0")
        .error();
    assert!(
        error.msg.contains("failed to create macvlan"),
        "{}",
        error.msg
    );
    assert_eq!(second.links(), ["lo"]);
    assert_eq!(it.pod.ping(MACHINE[0], 1), [true]);
}

#[test]
fn a_mac_is_refused_with_passthru() {
    beyond_peer("it promises the MAC and does not give it", || {
        let error = refused("", &macvlan(json!({"mode": "passthru", "mac": MAC})));
        assert_eq!(error.code, 7);
        assert!(error.msg.contains("passthru"), "{}", error.msg);
    });
}

#[test]
fn an_unknown_mode_is_refused() {
    for mode in ["", "Bridge", "source", "l2"] {
        let error = refused("", &macvlan(json!({"mode": format!("x{mode}")})));
        let expected = format!("unknown macvlan mode: \"x{mode}\"");
        assert_eq!(error.msg, expected);
    }
}
