//! A node changes from the peer's plugins to ours, or back, under running pods:
//! what one suite has made, the other checks, deletes and continues.
//!
//! Ports are in `portmap.rs`, leases in `dhcp.rs`, the rules of a whole node in `takeover.rs`.

use sandbox::{Netns, Sandbox, Snapshot, Suite, beyond_peer, conf};
use serde_json::{Value, json};

/// Both directions.
const SWITCHES: [(Suite, Suite); 2] = [(Suite::Peer, Suite::Ours), (Suite::Ours, Suite::Peer)];

fn conf_at(version: &str) -> Value {
    let ipam = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    conf::at(&conf::with(&conf, json!({"ipam": ipam})), version)
}

/// A leak check. The peer's DEL does not know our index of owners: what it leaves
/// there is found stale, and dropped, by our next GC.
fn allowed(sandbox: &Sandbox, deletes: Suite) -> Snapshot {
    let snapshot = sandbox.snapshot().allow_bridge_network();
    match deletes {
        Suite::Ours => snapshot,
        Suite::Peer => snapshot.allow(" /var/lib/cni/networks/.podwire"),
    }
}

fn add(sandbox: &Sandbox, suite: Suite, conf: &Value, pod: &Netns) -> Value {
    sandbox
        .cni("bridge")
        .suite(suite)
        .add(conf, pod, "eth0")
        .result()
}

#[test]
fn a_pod_of_one_suite_is_checked_by_the_other() {
    for (from, to) in SWITCHES {
        for version in ["0.4.0", "1.0.0"] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let conf = conf_at(version);
            let result = add(&sandbox, from, &conf, &pod);
            settle(&sandbox);
            // Ours takes the peer's reservations into its index when it meets them.
            let snapshot = sandbox.snapshot().allow(" /var/lib/cni/networks/.podwire");
            let checked = conf::with_prev(&conf, &result);
            sandbox
                .cni("bridge")
                .suite(to)
                .check(&checked, &pod, "eth0")
                .silent();
            snapshot.assert_unchanged();
        }
    }
}

/// The bridge's IPv6 address is tentative for a second; then nothing moves any more.
fn settle(sandbox: &Sandbox) {
    let settled = |host: &Netns| !host.sh("ip -6 addr show tentative").contains("inet6");
    sandbox
        .host()
        .wait_until("no address is tentative", settled);
}

#[test]
fn a_pod_of_one_suite_is_deleted_by_the_other() {
    for (from, to) in SWITCHES {
        for version in ["0.2.0", "0.3.1", "1.0.0"] {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let snapshot = allowed(&sandbox, to);
            let conf = conf_at(version);
            let result = add(&sandbox, from, &conf, &pod);
            let conf = conf::with_prev(&conf, &result);
            sandbox
                .cni("bridge")
                .suite(to)
                .del(&conf, &pod, "eth0")
                .silent();
            snapshot.assert_unchanged();
        }
    }
}

#[test]
fn a_pod_of_one_suite_is_deleted_by_the_other_without_its_netns() {
    for (from, to) in SWITCHES {
        let sandbox = Sandbox::new();
        let snapshot = allowed(&sandbox, to);
        let pod = sandbox.pod("a");
        let conf = conf_at("1.0.0");
        add(&sandbox, from, &conf, &pod);
        sandbox.remove_pod(&pod);
        sandbox
            .cni("bridge")
            .suite(to)
            .netns("")
            .del(&conf, &pod, "eth0")
            .silent();
        snapshot.assert_unchanged();
    }
}

#[test]
fn a_macvlan_of_one_suite_is_checked_and_deleted_by_the_other() {
    for (from, to) in SWITCHES {
        for mode in ["bridge", "passthru"] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            let pod = sandbox.pod("a");
            // Ours takes the peer's reservations into its index when it checks them.
            let index = " /var/lib/cni/networks/.podwire";
            let snapshot = allowed(&sandbox, to).allow(index);
            let conf = conf::at(&conf::macvlan(&["10.1.0.0/24", "fd01::/64"]), "1.0.0");
            let conf = conf::with(&conf, json!({"mode": mode}));
            let call = |suite: Suite| sandbox.cni("macvlan").suite(suite);
            let result = call(from).add(&conf, &pod, "eth0").result();
            let conf = conf::with_prev(&conf, &result);
            call(to).check(&conf, &pod, "eth0").silent();
            assert_eq!(pod.ping(sandbox::MACHINE[0], 1), [true]);
            call(to).del(&conf, &pod, "eth0").silent();
            snapshot.assert_unchanged();
        }
    }
}

#[test]
fn a_point_to_point_link_of_one_suite_is_checked_and_deleted_by_the_other() {
    for (from, to) in SWITCHES {
        for with_netns in [true, false] {
            let sandbox = Sandbox::new();
            let index = " /var/lib/cni/networks/.podwire";
            let snapshot = allowed(&sandbox, to).allow(index);
            let pod = sandbox.pod("a");
            let conf = conf::at(&conf::ptp(&["10.1.0.0/24", "fd01::/64"]), "1.0.0");
            let call = |suite: Suite| sandbox.cni("ptp").suite(suite);
            let result = call(from).add(&conf, &pod, "eth0").result();
            let checked = conf::with_prev(&conf, &result);
            call(to).check(&checked, &pod, "eth0").silent();
            if with_netns {
                call(to).del(&conf, &pod, "eth0").silent();
                assert!(pod.link("eth0").is_none());
            }
            sandbox.remove_pod(&pod);
            call(to).netns("").del(&conf, &pod, "eth0").silent();
            snapshot.assert_unchanged();
        }
    }
}

#[test]
fn pods_of_both_suites_share_a_wire() {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let conf = conf::at(&conf::macvlan(&["10.1.0.0/24"]), "1.0.0");
    let pods = [Suite::Ours, Suite::Peer].map(|suite| {
        let pod = sandbox.pod(&format!("of{suite:?}"));
        let cni = sandbox.cni("macvlan").suite(suite);
        cni.add(&conf, &pod, "eth0").result();
        pod
    });
    assert_eq!(pods[0].ping("10.1.0.3", 2), [true, true]);
    assert_eq!(segment.machine.ping("10.1.0.3", 1), [true]);
    // Theirs goes, ours stays.
    let cni = sandbox.cni("macvlan");
    cni.del(&conf, &pods[1], "eth0").silent();
    assert_eq!(segment.machine.ping("10.1.0.2", 1), [true]);
}

#[test]
fn pods_of_both_suites_share_a_bridge() {
    for (from, to) in SWITCHES {
        let sandbox = Sandbox::new();
        let (old, new) = (sandbox.pod("old"), sandbox.pod("new"));
        let conf = conf_at("1.0.0");
        add(&sandbox, from, &conf, &old);
        let mac = sandbox.host().link("cni0").expect("cni0")["address"].clone();
        let result = add(&sandbox, to, &conf, &new);
        assert_eq!(result["ips"][0]["address"], "10.1.0.3/24");
        assert_eq!(old.ping("10.1.0.3", 2), [true, true]);
        assert_eq!(new.ping("fd01::2", 2), [true, true]);
        assert_eq!(sandbox.host().link("cni0").expect("cni0")["address"], mac);
        assert_eq!(old.ping("10.1.0.1", 1), [true]);
    }
}

#[test]
fn the_files_of_one_suite_are_those_of_the_other() {
    let files = |suite: Suite| {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf_at("1.0.0");
        add(&sandbox, suite, &conf, &pod);
        let names = sandbox.list(conf::STATE);
        let content = names
            .iter()
            .map(|name| sandbox.read(format!("{}/{name}", conf::STATE)));
        let content: Vec<Option<String>> = content.collect();
        (names, content)
    };
    assert_eq!(files(Suite::Ours), files(Suite::Peer));
}

#[test]
fn the_round_of_addresses_goes_on_where_the_other_suite_was() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::at(&conf::host_local(&["10.1.0.0/24", "fd00::/64"]), "1.0.0");
    for number in 2..30 {
        let suite = [Suite::Ours, Suite::Peer][number % 2];
        let id = format!("c{number}");
        let result = sandbox
            .cni("host-local")
            .suite(suite)
            .id(&id)
            .add(&conf, &pod, "eth0")
            .result();
        assert_eq!(result["ips"][0]["address"], format!("10.1.0.{number}/24"));
        assert_eq!(result["ips"][1]["address"], format!("fd00::{number:x}/64"));
    }
    for number in 2..30 {
        let suite = [Suite::Peer, Suite::Ours][number % 2];
        let id = format!("c{number}");
        sandbox
            .cni("host-local")
            .suite(suite)
            .id(&id)
            .del(&conf, &pod, "eth0")
            .silent();
    }
    assert_eq!(
        sandbox.list(conf::STATE),
        ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    );
}

#[test]
fn both_suites_at_once_give_no_address_twice() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::at(&conf::host_local(&["10.1.0.0/24"]), "1.0.0");
    let mut addresses: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..40)
            .map(|number: usize| {
                let (sandbox, pod, conf) = (&sandbox, &pod, &conf);
                scope.spawn(move || {
                    let suite = [Suite::Ours, Suite::Peer][number % 2];
                    let cni = sandbox
                        .cni("host-local")
                        .suite(suite)
                        .id(&format!("c{number}"));
                    cni.add(conf, pod, "eth0").result()["ips"][0]["address"].to_string()
                })
            })
            .collect();
        calls
            .into_iter()
            .map(|call| call.join().expect("an address"))
            .collect()
    });
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 40);
}

#[test]
fn the_other_suite_reaches_what_ours_has_reserved_and_the_other_way_round() {
    for (from, to) in SWITCHES {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::at(&conf::host_local(&["10.1.0.0/24"]), "1.0.0");
        let call = |suite: Suite| sandbox.cni("host-local").suite(suite).args("IP=10.1.0.50");
        call(from).id("first").add(&conf, &pod, "eth0").result();
        let error = call(to).id("second").add(&conf, &pod, "eth0").error();
        assert!(
            error
                .msg
                .contains("requested IP address 10.1.0.50 is not available"),
            "{}",
            error.msg
        );
        call(to).id("first").check(&conf, &pod, "eth0").silent();
        call(to).id("first").del(&conf, &pod, "eth0").silent();
        call(from).id("second").add(&conf, &pod, "eth0").result();
    }
}

#[test]
fn our_del_of_the_peer_s_reservation_leaves_nothing_in_our_index() {
    beyond_peer("it has no index", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::at(&conf::host_local(&["10.1.0.0/24"]), "1.0.0");
        let cni = |id: &str| sandbox.cni("host-local").id(id);
        for id in ["one", "two"] {
            cni(id).peer().add(&conf, &pod, "eth0").result();
        }
        let index = || {
            let names = sandbox.list("/var/lib/cni/networks/.podwire/testnet");
            assert_eq!(names, ["index"]);
            sandbox
                .read("/var/lib/cni/networks/.podwire/testnet/index")
                .expect("the index")
        };
        // It takes them into its index when it looks.
        cni("one").check(&conf, &pod, "eth0").silent();
        assert!(index().contains(" 10.1.0.2 "), "{}", index());
        cni("one").del(&conf, &pod, "eth0").silent();
        let left = index();
        assert!(!left.contains(" 10.1.0.2 "), "{left}");
        assert!(left.contains(" 10.1.0.3 "), "{left}");
        cni("two").del(&conf, &pod, "eth0").silent();
        assert!(!index().contains(" 10.1.0."), "{}", index());
    });
}

#[test]
fn what_the_peer_s_del_leaves_in_our_index_is_dropped_by_gc() {
    beyond_peer("no GC there", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
        let conf = conf::at(&conf::host_local(&["10.1.0.0/24"]), "1.0.0");
        sandbox.cni("host-local").add(&conf, &pod, "eth0").result();
        sandbox
            .cni("host-local")
            .peer()
            .del(&conf, &pod, "eth0")
            .silent();
        let gc = conf::with_valid(&conf::at(&conf, "1.1.0"), &[]);
        sandbox.cni("host-local").gc(&gc).silent();
        snapshot.assert_unchanged();
        // And it does no harm: the same container gets an address like a new one.
        let result = sandbox.cni("host-local").add(&conf, &pod, "eth0").result();
        assert_eq!(result["ips"][0]["address"], "10.1.0.3/24");
    });
}
