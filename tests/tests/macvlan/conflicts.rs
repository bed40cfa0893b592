//! `detectConflicts`: addresses that a machine on the segment has already.

use std::time::Duration;

use sandbox::{MACHINE, Netns, Sandbox, beyond_peer, conf};
use serde_json::json;

use crate::{
    FIRST, MAC, SECOND, V4, V6, add, await_rest, del, dual, l2, mac, macvlan, reaches, refused,
};

#[test]
fn an_address_that_a_machine_has_is_left_to_it() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        for (taken, pools, got) in [
            ("10.1.0.2/24", &[V4][..], vec!["10.1.0.3/24"]),
            (
                "fd01::2/64",
                &[V4, V6][..],
                vec!["10.1.0.3/24", "fd01::3/64"],
            ),
        ] {
            let sandbox = Sandbox::new();
            let segment = sandbox.segment();
            segment
                .machine
                .sh(&format!("ip addr add {taken} dev eth1 nodad"));
            await_rest(&sandbox);
            let pod = sandbox.pod("a");
            let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
            let conf = conf::with(&conf::macvlan(pools), json!({"detectConflicts": true}));
            let outcome = sandbox.cni("macvlan").add(&conf, &pod, "eth0");
            let result = outcome.result();
            assert_eq!(pod.addresses("eth0"), got);
            assert!(outcome.stderr().contains("is used by"), "{outcome}");
            let machine = mac(&segment.machine, "eth1");
            assert!(outcome.stderr().contains(&machine), "{outcome}");
            let checked = conf::with_prev(&conf, &result);
            sandbox
                .cni("macvlan")
                .check(&checked, &pod, "eth0")
                .silent();
            assert!(reaches_any(&pod));
            del(&sandbox, &conf, &pod);
            snapshot.assert_unchanged();
        }
    });
}

fn reaches_any(pod: &Netns) -> bool {
    pod.ping(MACHINE[0], 2).contains(&true)
}

#[test]
fn several_taken_addresses_are_passed_over() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        segment
            .machine
            .sh("for i in 2 3 4 5; do ip addr add 10.1.0.$i/24 dev eth1; done");
        let pod = sandbox.pod("a");
        let conf = macvlan(json!({"detectConflicts": true}));
        let outcome = sandbox.cni("macvlan").add(&conf, &pod, "eth0");
        assert_eq!(outcome.result()["ips"][0]["address"], "10.1.0.6/24");
        let reserved = sandbox.list(conf::STATE);
        assert!(reserved.contains(&"10.1.0.6".to_owned()), "{reserved:?}");
        assert!(!reserved.contains(&"10.1.0.2".to_owned()), "{reserved:?}");
    });
}

#[test]
fn without_the_key_no_probe_is_sent() {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    segment.machine.sh("ip addr add 10.1.0.2/24 dev eth1");
    let pod = sandbox.pod("a");
    let heard = segment.machine.capture("eth1", "arp[14:4] = 0");
    add(&sandbox, &macvlan(json!({})), &pod);
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24"]);
    assert!(!heard.output().contains("who-has"), "{}", heard.output());
}

#[test]
fn what_is_on_the_wire_are_three_probes_for_each_address() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        let pod = sandbox.pod("a");
        let heard = segment.machine.capture(
            "eth1",
            "arp[14:4] = 0 or (icmp6 and ip6[40] = 135 and ip6 src ::)",
        );
        add(
            &sandbox,
            &dual(json!({"detectConflicts": true, "mac": MAC})),
            &pod,
        );
        let count = |what: &str| heard.output().matches(what).count();
        segment.machine.wait_until("all is heard", |_| {
            count("10.1.0.2") >= 3 && count("who has fd01::2") >= 3
        });
        assert_eq!(
            count("Request who-has 10.1.0.2 tell 0.0.0.0"),
            3,
            "{}",
            heard.output()
        );
        assert_eq!(
            count("neighbor solicitation, who has fd01::2"),
            3,
            "{}",
            heard.output()
        );
        assert!(
            !heard.output().contains("bad icmp6 cksum"),
            "{}",
            heard.output()
        );
        // The address itself is set without another detection.
        let addresses = pod.sh("ip -6 addr show dev eth0 scope global");
        assert!(!addresses.contains("tentative"), "{addresses}");
    });
}

#[test]
fn a_fixed_address_that_a_machine_has_is_refused() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        let ipam = json!({"type": "static", "addresses": [{"address": "10.1.0.99/24"}]});
        let error = refused("", &l2(json!({"detectConflicts": true, "ipam": ipam})));
        assert_eq!(error.code, 11);
        assert!(error.msg.contains("10.1.0.99 is used by"), "{}", error.msg);
    });
}

#[test]
fn a_pool_of_which_all_is_taken_is_refused() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        segment
            .machine
            .sh("for i in 2 3; do ip addr add 10.1.0.$i/24 dev eth1; done");
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
        let ranges = json!([[{"subnet": V4, "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.3"}]]);
        let conf = macvlan(json!({"detectConflicts": true, "ipam": {"ranges": ranges}}));
        let outcome = sandbox.cni("macvlan").add(&conf, &pod, "eth0");
        let error = outcome.error();
        assert_eq!(error.code, 11);
        assert!(error.msg.contains("10.1.0.3 is used by"), "{}", error.msg);
        assert!(outcome.elapsed() < Duration::from_secs(10));
        snapshot.assert_unchanged();
    });
}

#[test]
fn nodes_with_a_pool_each_do_not_give_one_address_twice() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let node = sandbox.pod("node2");
        sandbox
            .host()
            .sh("ip link add n2 type veth peer name p4 netns switch
             ip link set n2 netns node2 name eth1
             ip -n node2 link set eth1 up; ip -n switch link set p4 master br0 up");
        node.wait_until("its wire is up", |node| {
            node.link("eth1").expect("eth1")["operstate"] == "UP"
        });
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = |state: &str| {
            let ipam = json!({"dataDir": sandbox.dir().join(state)});
            dual(json!({"detectConflicts": true, "ipam": ipam}))
        };
        add(&sandbox, &conf("one"), &a);
        let netns = format!("--net={}", node.path());
        let there = sandbox.cni("macvlan").under(&["nsenter", &netns, "--"]);
        there.add(&conf("two"), &b, "eth0").result();
        assert_eq!(a.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
        assert_eq!(b.addresses("eth0"), ["10.1.0.3/24", "fd01::3/64"]);
        assert!(reaches(&a, SECOND) && reaches(&b, FIRST));
    });
}

#[test]
fn without_a_carrier_no_conflict_can_be_detected() {
    beyond_peer("detectConflicts is ours (pains 19)", || {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        segment.unplug(&sandbox);
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
        let conf = macvlan(json!({"detectConflicts": true}));
        let error = sandbox.cni("macvlan").add(&conf, &pod, "eth0").error();
        assert!(
            error.msg.contains("carrier") || error.msg.contains("network is down"),
            "{}",
            error.msg
        );
        snapshot.assert_unchanged();
    });
}
