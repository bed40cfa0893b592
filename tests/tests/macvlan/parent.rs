//! Which interface is the parent (`master`, `linkInContainer`), and which are refused.

use sandbox::{MACHINE, Netns, Sandbox, beyond_peer, conf};
use serde_json::json;

use crate::{FIRST, add, del, info, macvlan, refused};

#[test]
fn without_a_master_the_interface_with_the_default_route_is_taken() {
    for route in [
        "ip addr add 10.1.0.98/24 dev eth2; ip route add default via 10.1.0.99",
        "ip addr add fd01::98/64 dev eth2 nodad; ip -6 route add default via fd01::99",
    ] {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        sandbox.plug(&segment.switch, "eth2", "p3");
        sandbox.host().sh(route);
        segment.unplug(&sandbox);
        let pod = sandbox.pod("a");
        add(&sandbox, &macvlan(json!({"master": null})), &pod);
        assert_eq!(pod.ping(MACHINE[0], 1), [true], "{route}");
    }
}

#[test]
fn without_a_master_and_a_default_route_there_is_no_parent() {
    let error = refused("", &macvlan(json!({"master": null})));
    assert_eq!(error.msg, "no default route interface found");
}

#[test]
fn a_master_that_is_not_there_is_named() {
    let error = refused("", &macvlan(json!({"master": "eth9"})));
    assert_eq!(error.msg, "Link not found");
    beyond_peer("it does not say which", || {
        assert!(error.details.contains("\"eth9\""), "{}", error.details);
        assert!(error.details.contains("eth1"), "{}", error.details);
    });
    refused(
        "",
        &macvlan(json!({"master": "a-name-too-long-for-a-link"})),
    );
}

#[test]
fn a_master_may_be_a_pattern_of_names() {
    beyond_peer("patterns are ours", || {
        // (patterns, what the node has besides eth1, the interface that is meant)
        for (master, prepare, meant) in [
            ("eth*", "", "eth1"),
            ("bond0|eth?", "", "eth1"),
            ("en*|*", "", "eth1"),
            // Ports, macvlans, `lo` and what is down are no candidates.
            (
                "e*",
                "ip link add e0 type veth peer name x0; ip link add br7 type bridge; ip link set e0 master br7 up
                 ip link add link eth1 name e1 type macvlan; ip link add e2 type veth peer name x2",
                "eth1",
            ),
            // The default route decides among several.
            (
                "et*",
                "ip link add eth0 type veth peer name x0; ip link set x0 up; ip link set eth0 up
                 ip addr add 10.1.0.98/24 dev eth1; ip route add default via 10.1.0.99",
                "eth1",
            ),
        ] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            sandbox.host().sh(prepare);
            let pod = sandbox.pod("a");
            let conf = macvlan(json!({"master": master}));
            let result = add(&sandbox, &conf, &pod);
            assert_eq!(pod.ping(MACHINE[0], 1), [true], "{master}: not on {meant}");
            let checked = conf::with_prev(&conf, &result);
            sandbox.cni("macvlan").check(&checked, &pod, "eth0").silent();
            sandbox.cni("macvlan").status(&conf).silent();
        }
    });
}

#[test]
fn a_pattern_that_fits_none_or_several_is_refused() {
    beyond_peer("patterns are ours", || {
        let error = refused("", &macvlan(json!({"master": "bond*|wl*"})));
        assert!(error.msg.contains("matches no interface"), "{}", error.msg);
        assert!(error.msg.contains("eth1"), "{}", error.msg);
        let two = "ip link add eth0 type veth peer name x0; ip link set x0 up; ip link set eth0 up";
        let error = refused(two, &macvlan(json!({"master": "eth*"})));
        let names = "eth0, eth1"
            .split(", ")
            .all(|name| error.msg.contains(name));
        assert!(names, "{}", error.msg);
    });
}

#[test]
fn the_parent_may_be_in_the_container() {
    beyond_peer("plugins before v1.3 do not know linkInContainer", || {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        let pod = sandbox.pod("a");
        sandbox
            .host()
            .sh(&format!("ip link set eth1 netns {}", pod.name()));
        pod.sh("ip link set eth1 up");
        pod.wait_until("the wire is up", |pod| pod.is_settled("eth1"));
        segment.await_wire();
        let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
        let conf = macvlan(json!({"linkInContainer": true}));
        // Which container it will be is not known to STATUS.
        sandbox.cni("macvlan").status(&conf).silent();
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["eth0", "eth1", "lo"]);
        assert_eq!(pod.ping(MACHINE[0], 1), [true]);
        assert_eq!(segment.machine.ping(FIRST[0], 1), [true]);
        let checked = conf::with_prev(&conf, &result);
        sandbox
            .cni("macvlan")
            .check(&checked, &pod, "eth0")
            .silent();
        del(&sandbox, &conf, &pod);
        snapshot.assert_unchanged();

        let error = sandbox
            .cni("macvlan")
            .add(&macvlan(json!({})), &pod, "eth0")
            .error();
        assert_eq!(error.msg, "Link not found");
    });
}

#[test]
fn a_parent_of_the_container_may_have_the_default_route() {
    beyond_peer("plugins before v1.3 do not know linkInContainer", || {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let pod = sandbox.pod("a");
        sandbox
            .host()
            .sh(&format!("ip link set eth1 netns {}", pod.name()));
        pod.sh("ip link set eth1 up; ip addr add 10.1.0.98/24 dev eth1; ip route add default via 10.1.0.99");
        let conf = macvlan(json!({"linkInContainer": true, "master": null}));
        add(&sandbox, &conf, &pod);
        assert_eq!(info(&pod)["mode"], "bridge");
    });
}

#[test]
fn a_parent_that_is_down_is_refused() {
    beyond_peer("it makes a pod that nothing reaches", || {
        let error = refused("ip link set eth1 down", &macvlan(json!({})));
        assert!(
            error.msg.contains("master \"eth1\" is down"),
            "{}",
            error.msg
        );
    });
}

#[test]
fn a_parent_that_is_a_macvlan_is_refused() {
    beyond_peer("the kernel takes its parent instead", || {
        let prepare = "ip link add link eth1 name mv0 type macvlan mode bridge; ip link set mv0 up";
        let error = refused(prepare, &macvlan(json!({"master": "mv0"})));
        assert!(
            error.msg.contains("is itself of type macvlan"),
            "{}",
            error.msg
        );
        assert!(error.msg.contains("\"eth1\""), "{}", error.msg);
    });
}

#[test]
fn a_parent_without_room_for_other_macs_is_refused() {
    let error = refused("", &macvlan(json!({"master": "lo"})));
    beyond_peer("it says: invalid argument", || {
        assert!(
            error.msg.contains("not an Ethernet interface"),
            "{}",
            error.msg
        );
    });
}

#[test]
fn a_parent_that_is_a_port_is_refused() {
    let prepare = "ip link add br7 type bridge; ip link set eth1 master br7; ip link set br7 up";
    let error = refused(prepare, &macvlan(json!({})));
    beyond_peer("it says: device or resource busy", || {
        assert_eq!(error.code, 999, "to try again does not help");
        assert!(error.msg.contains("a port of a bridge"), "{}", error.msg);
    });
    // The bridge itself will do.
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    sandbox.host().sh(prepare);
    let pod = sandbox.pod("a");
    add(&sandbox, &macvlan(json!({"master": "br7"})), &pod);
    let reached = |pod: &Netns| pod.ping(MACHINE[0], 1) == [true];
    pod.wait_until("the bridge forwards", reached);
}
