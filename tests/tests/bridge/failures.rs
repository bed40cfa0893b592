//! Failed and killed calls leave nothing behind; GC.

use sandbox::{Netns, Sandbox, Stdout, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{add, bridge, del, l2};

/// Runs an ADD that must fail and asserts that only a bridge may be left.
fn fails_and_leaves_nothing(sandbox: &Sandbox, conf: &Value, pod: &Netns, stdout: Stdout) {
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let outcome = sandbox.cni("bridge").stdout(stdout).add(conf, pod, "eth0");
    assert_eq!(outcome.code(), 1, "{outcome}");
    snapshot.assert_unchanged();
}

#[test]
fn a_failing_ipam_leaves_no_wire_and_gets_a_del() {
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
fn a_result_without_a_reader_is_rolled_back() {
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
        // A foreign veth on the bridge and one of another network must stay.
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
