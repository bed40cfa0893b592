//! DEL, CHECK, STATUS and GC.

use std::time::Duration;

use sandbox::{MACHINE, Netns, Sandbox, beyond_peer, conf};
use serde_json::json;

use crate::{Attached, add, attached, del, dual, l2, macvlan, siblings};

#[test]
fn del_needs_no_parent() {
    beyond_peer("pains 14, fixed in v1.2: Link not found", || {
        for prepare in [
            "ip link del eth1",
            "ip link set eth1 down",
            "ip link set eth1 down; ip link set eth1 name other; ip link set other up",
        ] {
            let it = attached(&macvlan(json!({})));
            it.sandbox.host().sh(prepare);
            for _ in 0..2 {
                del(&it.sandbox, &macvlan(json!({})), &it.pod);
            }
            assert_eq!(it.pod.links(), ["lo"]);
            let reserved = it.sandbox.list(conf::STATE);
            assert!(!reserved.contains(&"10.1.0.2".to_owned()), "{prepare}");
        }
    });
}

#[test]
fn del_minds_no_configuration_that_add_would_refuse() {
    beyond_peer("before v1.2 it refuses what ADD refuses", || {
        for change in [
            json!({"mode": "nope"}),
            json!({"mtu": 9999}),
            json!({"master": "nope"}),
            json!({"mac": "nope"}),
            json!({"bcqueuelen": "nope"}),
        ] {
            let it = attached(&macvlan(json!({})));
            del(&it.sandbox, &macvlan(change), &it.pod);
            assert_eq!(it.pod.links(), ["lo"]);
        }
    });
}

#[test]
fn del_finds_what_a_killed_add_has_left_under_another_name() {
    beyond_peer("its temporary names are random", || {
        // Kernels before 6.15 know a moment in which the link has its temporary name.
        let it = attached(&macvlan(json!({})));
        let name = temporary_name(&it);
        it.pod.sh(&format!(
            "ip link set eth0 down; ip link set eth0 name {name}"
        ));
        del(&it.sandbox, &macvlan(json!({})), &it.pod);
        assert_eq!(it.pod.links(), ["lo"]);
    });
}

/// `veth` and the first eight digits of the SHA-512 of the attachment.
fn temporary_name(it: &Attached) -> String {
    let attachment = format!(
        "{}/{}/eth0/0",
        conf::NETWORK,
        sandbox::container_id(&it.pod)
    );
    let sum = it
        .pod
        .run(&["sh", "-c", "printf %s \"$0\" | sha512sum", &attachment]);
    format!("veth{}", &sum.stdout[..8])
}

#[test]
fn check_notices_what_is_not_as_promised() {
    let routes = json!({"ipam": {"routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.99"}]}});
    for (tamper, says) in [
        (
            "ip link del eth0",
            "ontainer Interface name in prevResult: eth0 not found",
        ),
        (
            "ip addr del 10.1.0.2/24 dev eth0",
            "Failed to match addr 10.1.0.2/24 on interface eth0",
        ),
        ("ip route del 10.9.0.0/16", "10.9.0.0"),
        (
            "ip link set eth0 type macvlan mode private",
            "ontainer macvlan mode private does not match expected value: bridge",
        ),
        (
            "ip link set eth0 down; ip link set eth0 address 02:00:00:00:07:0f; ip link set eth0 up",
            "02:00:00:00:07:0f",
        ),
        (
            "ip link del eth0; ip link add eth0 type bridge",
            "not of type macvlan",
        ),
    ] {
        let conf = macvlan(routes.clone());
        let it = attached(&conf);
        let checked = conf::with_prev(&conf, &it.result);
        let check = || it.sandbox.cni("macvlan").check(&checked, &it.pod, "eth0");
        check().silent();
        it.pod.sh(tamper);
        let error = check().error();
        assert!(error.msg.contains(says), "{tamper}: {}", error.msg);
    }
}

#[test]
fn check_notices_another_mtu_or_parent() {
    beyond_peer("it compares neither", || {
        for (conf, tamper, says) in [
            (
                macvlan(json!({"mtu": 1400})),
                "ip -n a link set eth0 mtu 1300",
                "MTU of eth0 is 1300, not 1400",
            ),
            (
                macvlan(json!({})),
                "ip -n a link set eth0 mtu 1300",
                "MTU of eth0 is 1300, not 1500",
            ),
            (
                macvlan(json!({})),
                "ip link set eth1 down; ip link set eth1 name eth7; ip link set eth7 up; ip link add eth1 type veth peer name x1",
                "parent of eth0 is \"eth7\", not \"eth1\"",
            ),
            (
                macvlan(json!({"master": "eth*"})),
                "ip link set eth1 down; ip link set eth1 name up7; ip link set up7 up",
                "parent of eth0 is \"up7\", not \"eth*\"",
            ),
        ] {
            let it = attached(&conf);
            let checked = conf::with_prev(&conf, &it.result);
            let check = || it.sandbox.cni("macvlan").check(&checked, &it.pod, "eth0");
            check().silent();
            it.sandbox.host().sh(tamper);
            let error = check().error();
            assert!(error.msg.contains(says), "{tamper}: {}", error.msg);
        }
    });
}

#[test]
fn check_knows_an_interface_by_its_other_names() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    sandbox
        .host()
        .sh("ip link property add dev eth1 altname enp7s0");
    let pod = sandbox.pod("a");
    let conf = macvlan(json!({"master": "enp7s0"}));
    let result = add(&sandbox, &conf, &pod);
    let checked = conf::with_prev(&conf, &result);
    sandbox
        .cni("macvlan")
        .check(&checked, &pod, "eth0")
        .silent();
    assert_eq!(pod.ping(MACHINE[0], 1), [true]);
}

#[test]
fn check_lets_a_parent_shrink() {
    let it = attached(&macvlan(json!({})));
    it.sandbox.host().sh("ip link set eth1 mtu 1400");
    assert_eq!(it.pod.link("eth0").expect("eth0")["mtu"], 1400);
    let checked = conf::with_prev(&macvlan(json!({})), &it.result);
    let cni = it.sandbox.cni("macvlan");
    cni.check(&checked, &it.pod, "eth0").silent();
}

#[test]
fn check_needs_a_previous_result() {
    let it = attached(&macvlan(json!({})));
    let cni = it.sandbox.cni("macvlan");
    let error = cni.check(&macvlan(json!({})), &it.pod, "eth0").error();
    assert!(
        error.msg.ends_with("equired prevResult missing"),
        "{}",
        error.msg
    );
}

#[test]
fn status_says_when_there_is_no_wire() {
    beyond_peer("it asks the IPAM plugin only", || {
        for (prepare, conf, says) in [
            ("", macvlan(json!({"master": "eth9"})), "Link not found"),
            (
                "",
                macvlan(json!({"master": null})),
                "no default route interface found",
            ),
            (
                "",
                macvlan(json!({"master": "wl*"})),
                "matches no interface",
            ),
            (
                "ip link set eth1 down",
                macvlan(json!({})),
                "\"eth1\" is down",
            ),
            (
                "ip -n switch link set p1 down",
                macvlan(json!({"detectConflicts": true})),
                "\"eth1\" has no carrier",
            ),
            (
                "ip link add br7 type bridge; ip link set eth1 master br7",
                macvlan(json!({})),
                "failed to create macvlan on \"eth1\": it is a port of a bridge",
            ),
            (
                "ip link add br7 type bridge",
                macvlan(json!({"master": "lo"})),
                "not an Ethernet",
            ),
        ] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            sandbox.cni("macvlan").status(&macvlan(json!({}))).silent();
            sandbox.host().sh(prepare);
            let error = sandbox.cni("macvlan").status(&conf).error();
            assert_eq!(error.code, 50, "{prepare}: {}", error.msg);
            assert!(error.msg.contains(says), "{prepare}: {}", error.msg);
        }
    });
}

#[test]
fn status_and_add_do_without_a_carrier() {
    beyond_peer("CNI 1.1.0 is newer than the peer", || {
        let sandbox = Sandbox::new();
        sandbox.segment().unplug(&sandbox);
        let pod = sandbox.pod("a");
        let conf = macvlan(json!({}));
        sandbox.cni("macvlan").status(&conf).silent();
        sandbox.cni("macvlan").add(&conf, &pod, "eth0").result();
    });
}

#[test]
fn status_and_gc_are_passed_on() {
    beyond_peer(
        "GC is passed on by no Go plugin, and CNI 1.1.0 is newer than the peer",
        || {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            let ipam = sandbox.fake("fake-ipam");
            let conf = l2(json!({"ipam": {"type": "fake-ipam"}}));
            sandbox.cni("macvlan").status(&conf).silent();
            sandbox
                .cni("macvlan")
                .gc(&conf::with_valid(&conf, &[]))
                .silent();
            assert_eq!(ipam.verbs(), ["STATUS", "GC"]);
            ipam.fail("STATUS", 50, "no pool");
            let error = sandbox.cni("macvlan").status(&conf).error();
            assert_eq!((error.code, error.msg.as_str()), (50, "no pool"));
        },
    );
}

#[test]
fn gc_releases_the_addresses_of_deleted_pods() {
    beyond_peer("reference 0.3: GC does nothing", || {
        let (sandbox, _segment, [a, b]) = siblings(&macvlan(json!({})));
        sandbox.remove_pod(&a);
        let valid = [(&*sandbox::container_id(&b), "eth0")];
        let conf = conf::with_valid(&macvlan(json!({})), &valid);
        sandbox.cni("macvlan").gc(&conf).silent();
        let reserved = sandbox.list(conf::STATE);
        assert!(!reserved.contains(&"10.1.0.2".to_owned()), "{reserved:?}");
        assert!(reserved.contains(&"10.1.0.3".to_owned()), "{reserved:?}");
        assert_eq!(b.ping(MACHINE[0], 1), [true]);
    });
}

#[test]
fn fifty_pods_come_and_go_at_once() {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let pods: Vec<Netns> = (0..50).map(|i| sandbox.pod(&format!("pod{i}"))).collect();
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = dual(json!({"bcqueuelen": 4000}));
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| add(&sandbox, &conf, pod));
        }
    });
    let last = pods[49].addresses("eth0");
    let (v4, _) = last[0].split_once('/').expect("a prefix");
    assert!(segment.machine.ping(v4, 3).contains(&true));
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| del(&sandbox, &conf, pod));
        }
    });
    // Fifty links go one after the other, by child processes that DEL does not wait for.
    let left = snapshot.compare(Duration::from_secs(30));
    assert_eq!(left, Ok(()), "fifty deletions");
}
