//! macvlan: what each mode promises, proved with traffic on a segment of two machines;
//! what each key does, what CHECK notices, what a failure leaves behind (nothing).

use std::time::Duration;

use sandbox::{MACHINE, Netns, Sandbox, Segment, Stdout, beyond_peer, conf, newest};
use serde_json::{Value, json};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd01::/64";
const MAC: &str = "02:00:00:00:07:01";

fn macvlan(change: Value) -> Value {
    conf::with(&conf::macvlan(&[V4]), change)
}

fn dual(change: Value) -> Value {
    conf::with(&conf::macvlan(&[V4, V6]), change)
}

fn l2(change: Value) -> Value {
    conf::with(&conf::macvlan_l2(), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("macvlan").add(conf, pod, "eth0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("macvlan").del(conf, pod, "eth0").silent();
}

/// A node on a segment, and a pod with `conf`.
struct Attached {
    sandbox: Sandbox,
    _segment: Segment,
    pod: Netns,
    result: Value,
}

fn attached(conf: &Value) -> Attached {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, conf, &pod);
    Attached {
        sandbox,
        _segment,
        pod,
        result,
    }
}

/// Two pods of one node, with the addresses .2 and .3.
fn siblings(conf: &Value) -> (Sandbox, Segment, [Netns; 2]) {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let pods = [sandbox.pod("a"), sandbox.pod("b")];
    pods.iter().for_each(|pod| drop(add(&sandbox, conf, pod)));
    (sandbox, segment, pods)
}

/// ADD on a segment that must fail and leave nothing; returns the error.
#[track_caller]
fn refused(prepare: &str, conf: &Value) -> sandbox::Failure {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    if !prepare.is_empty() {
        let host = sandbox.host();
        host.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        host.sh(prepare);
        await_rest(&sandbox);
    }
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let error = sandbox.cni("macvlan").add(conf, &pod, "eth0").error();
    snapshot.assert_unchanged();
    error
}

/// Waits until a second passes without a change: the kernel is in no hurry to tell the
/// other ends that a link has changed.
fn await_rest(sandbox: &Sandbox) {
    let rests = || {
        let snapshot = sandbox.snapshot();
        std::thread::sleep(Duration::from_millis(1200));
        snapshot.compare(Duration::ZERO).is_ok()
    };
    assert!((0..5).any(|_| rests()), "the segment does not come to rest");
}

/// It works as soon as ADD returns; kernels before 6.9 call it UP a little later.
fn is_up(netns: &Netns) -> bool {
    netns.link("eth0").expect("eth0")["operstate"] == "UP"
}

fn info(netns: &Netns) -> Value {
    let link = netns.link("eth0").expect("eth0");
    assert_eq!(link["linkinfo"]["info_kind"], "macvlan");
    link["linkinfo"]["info_data"].clone()
}

fn mac(netns: &Netns, link: &str) -> String {
    let link = netns.link(link).unwrap_or_else(|| panic!("no link {link}"));
    link["address"].as_str().expect("an address").to_owned()
}

/// Whether a ping comes back, by IPv4 and IPv6 alike.
#[track_caller]
fn reaches(from: &Netns, to: [&str; 2]) -> bool {
    let answers = to.map(|to| from.ping(to, 2).contains(&true));
    assert_eq!(answers[0], answers[1], "IPv4 and IPv6 differ: {to:?}");
    answers[0]
}

const FIRST: [&str; 2] = ["10.1.0.2", "fd01::2"];
const SECOND: [&str; 2] = ["10.1.0.3", "fd01::3"];

// ---- wiring

#[test]
fn add_puts_the_pod_on_the_wire_and_says_how() {
    let it = attached(&macvlan(json!({})));
    it.pod.wait_until("the kernel says so", is_up);
    let eth0 = it.pod.link("eth0").expect("eth0");
    assert_eq!(info(&it.pod)["mode"], "bridge");
    assert_eq!(it.result["cniVersion"], newest());
    let interfaces = it.result["interfaces"].as_array().expect("interfaces");
    assert_eq!(interfaces.len(), 1);
    assert_eq!(interfaces[0]["name"], "eth0");
    assert_eq!(interfaces[0]["mac"], eth0["address"]);
    assert_eq!(interfaces[0]["sandbox"], it.pod.path());
    let ips = json!([{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 0}]);
    assert_eq!(it.result["ips"], ips);
    assert_eq!(it.pod.addresses("eth0"), ["10.1.0.2/24"]);
    assert_eq!(it.pod.links(), ["eth0", "lo"]);
    assert_eq!(it.sandbox.host().links(), ["eth1", "lo"]);
}

#[test]
fn the_result_has_the_mtu_where_the_version_has_a_place_for_it() {
    beyond_peer("reference 1.8: no plugin sets it", || {
        let it = attached(&macvlan(json!({"mtu": 1400})));
        assert_eq!(it.result["interfaces"][0]["mtu"], 1400);
    });
}

#[test]
fn routes_and_gateways_of_the_ipam_are_laid() {
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.99"}]);
    let it = attached(&dual(json!({"ipam": {"routes": routes}})));
    assert_eq!(it.pod.routes_to("-4", "default")[0]["gateway"], "10.1.0.1");
    assert_eq!(it.pod.routes_to("-6", "default")[0]["gateway"], "fd01::1");
    let other = it.pod.routes_to("-4", "10.9.0.0/16");
    assert_eq!(other[0]["gateway"], "10.1.0.99");
    assert_eq!(it.result["routes"], routes);
}

#[test]
fn del_takes_everything_back() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = dual(json!({}));
    add(&sandbox, &conf, &pod);
    del(&sandbox, &conf, &pod);
    snapshot.assert_unchanged();
    del(&sandbox, &conf, &pod);
    snapshot.assert_unchanged();
}

#[test]
fn without_an_ipam_the_pod_gets_a_link_and_nothing_else() {
    for ipam in [json!(null), json!({})] {
        let it = attached(&l2(json!({"ipam": ipam})));
        it.pod.wait_until("the kernel says so", is_up);
        assert!(it.pod.addresses("eth0").is_empty());
        assert!(it.result.get("ips").is_none(), "{}", it.result);
        let checked = conf::with_prev(&l2(json!({"ipam": ipam})), &it.result);
        it.sandbox
            .cni("macvlan")
            .check(&checked, &it.pod, "eth0")
            .silent();
        del(&it.sandbox, &checked, &it.pod);
        assert_eq!(it.pod.links(), ["lo"]);
    }
}

#[test]
fn a_link_without_addresses_cannot_be_told_in_old_versions_but_is_there() {
    for version in ["0.1.0", "0.2.0"] {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let pod = sandbox.pod("a");
        let conf = conf::at(&l2(json!({})), version);
        let error = sandbox.cni("macvlan").add(&conf, &pod, "eth0").error();
        assert_eq!(error.msg, "cannot convert: no valid IP addresses");
        // As the Go plugin's suite wants it: DEL is what removes it.
        pod.wait_until("the kernel says so", is_up);
        del(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["lo"]);
    }
}

#[test]
fn a_pod_may_be_on_a_wire_and_in_a_network() {
    let it = attached(&macvlan(json!({})));
    let bridge = conf::with(&conf::bridge(&["10.2.0.0/24"]), json!({"name": "other"}));
    it.sandbox
        .cni("bridge")
        .add(&bridge, &it.pod, "net1")
        .result();
    assert_eq!(it.pod.ping(MACHINE[0], 1), [true]);
    assert_eq!(it.pod.ping("10.2.0.1", 1), [true]);
    it.sandbox.cni("bridge").del(&bridge, &it.pod, "net1");
    assert_eq!(it.pod.links(), ["eth0", "lo"]);
}

#[test]
fn an_interface_that_the_host_has_too_may_have_the_parents_name() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let conf = macvlan(json!({}));
    sandbox.cni("macvlan").add(&conf, &pod, "eth1").result();
    assert_eq!(pod.ping(MACHINE[0], 1), [true]);
    sandbox.cni("macvlan").del(&conf, &pod, "eth1").silent();
    assert_eq!(sandbox.host().links(), ["eth1", "lo"]);
}

// ---- modes

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
    // They have asked for each other in vain, and ask again after a second.
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
fn passthru_wants_a_parent_that_nobody_uses() {
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
fn a_mac_cannot_be_asked_for_with_passthru() {
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
        let said = format!("unknown macvlan mode: \"x{mode}\"");
        assert_eq!(error.msg, said);
    }
}

// ---- master, linkInContainer

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

// ---- parents that are none

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
        assert!(error.msg.contains("is a macvlan itself"), "{}", error.msg);
        assert!(error.msg.contains("\"eth1\""), "{}", error.msg);
    });
}

#[test]
fn a_parent_without_room_for_other_macs_is_refused() {
    let error = refused("", &macvlan(json!({"master": "lo"})));
    beyond_peer("it says: invalid argument", || {
        assert!(error.msg.contains("no Ethernet interface"), "{}", error.msg);
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

// ---- mtu, mac, bcqueuelen

#[test]
fn the_mtu_is_the_parents_unless_a_smaller_one_is_asked_for() {
    for (asked, mtu) in [
        (json!(null), 1450),
        (json!(0), 1450),
        (json!(1400), 1400),
        (json!(1450), 1450),
    ] {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        sandbox.host().sh("ip link set eth1 mtu 1450");
        let pod = sandbox.pod("a");
        add(&sandbox, &macvlan(json!({"mtu": asked})), &pod);
        assert_eq!(pod.link("eth0").expect("eth0")["mtu"], mtu);
    }
}

#[test]
fn an_mtu_above_the_parents_is_refused() {
    for mtu in [json!(1501), json!(-1), json!(65536)] {
        let error = refused("", &macvlan(json!({"mtu": mtu})));
        let said = format!("invalid MTU {mtu}, must be [0, master MTU(1500)]");
        assert_eq!(error.msg, said);
        beyond_peer("reference 1.6: 999 for everything", || {
            assert_eq!(error.code, 7)
        });
    }
}

#[test]
fn the_mac_may_be_asked_for_in_each_channel() {
    for (change, args) in [
        (json!({"mac": MAC}), ""),
        (json!({}), "IgnoreUnknown=1;MAC=02:00:00:00:07:01"),
        (json!({"runtimeConfig": {"mac": MAC}}), ""),
        (json!({"RuntimeConfig": {"Mac": MAC}}), ""),
        (
            json!({"mac": "02:00:00:00:07:09"}),
            "IgnoreUnknown=1;MAC=02:00:00:00:07:01",
        ),
        (
            json!({"mac": "02:00:00:00:07:09", "runtimeConfig": {"mac": MAC}}),
            "IgnoreUnknown=1;MAC=02:00:00:00:07:08",
        ),
    ] {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let pod = sandbox.pod("a");
        let conf = l2(change.clone());
        let result = sandbox
            .cni("macvlan")
            .args(args)
            .add(&conf, &pod, "eth0")
            .result();
        assert_eq!(mac(&pod, "eth0"), MAC, "{change} {args}");
        assert_eq!(result["interfaces"][0]["mac"], MAC);
    }
    beyond_peer("bridge alone reads args.cni there", || {
        let it = attached(&l2(json!({"args": {"cni": {"mac": MAC}}})));
        assert_eq!(mac(&it.pod, "eth0"), MAC);
    });
}

#[test]
fn a_mac_that_is_none_is_refused() {
    let error = refused("", &macvlan(json!({"mac": "c2:11:22:33:44"})));
    let said =
        "invalid args c2:11:22:33:44 for MAC addr: address c2:11:22:33:44: invalid MAC address";
    assert_eq!(error.msg, said);
    for mac in ["01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        refused("", &macvlan(json!({"mac": mac})));
    }
}

#[test]
fn pods_have_macs_of_their_own_that_udev_leaves_alone() {
    let (_sandbox, _segment, [a, b]) = siblings(&macvlan(json!({})));
    assert_ne!(mac(&a, "eth0"), mac(&b, "eth0"));
    for pod in [&a, &b] {
        // Locally administered, and no group's.
        let first = u8::from_str_radix(&mac(pod, "eth0")[..2], 16).expect("hex");
        assert_eq!(first & 3, 2);
        beyond_peer("its MAC is the kernel's own, which udev changes", || {
            let kind = "mount -t sysfs s /mnt && cat /mnt/class/net/eth0/addr_assign_type";
            let kind = pod.run(&["unshare", "-m", "sh", "-c", kind]);
            assert_eq!(kind.stdout, "3\n");
        });
    }
}

#[test]
fn the_mac_of_a_sibling_is_refused() {
    let it = attached(&macvlan(json!({"mac": MAC})));
    let second = it.sandbox.pod("b");
    let snapshot = it.sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = macvlan(json!({"mac": MAC}));
    let error = it
        .sandbox
        .cni("macvlan")
        .add(&conf, &second, "eth0")
        .error();
    beyond_peer(
        "it says: address already in use, and leaves the link",
        || {
            assert!(error.msg.contains("has this MAC"), "{}", error.msg);
            snapshot.assert_unchanged();
        },
    );
}

#[test]
fn the_queue_of_broadcasts_may_be_longer() {
    beyond_peer("plugins before v1.2 do not know bcqueuelen", || {
        let it = attached(&l2(json!({"bcqueuelen": 4000})));
        assert_eq!(info(&it.pod)["bcqueuelen"], 4000);
    });
    let it = attached(&l2(json!({})));
    assert_eq!(info(&it.pod)["bcqueuelen"], 1000);
    beyond_peer("plugins before v1.2 do not know bcqueuelen", || {
        for wrong in [json!(-1), json!(4294967296_u64), json!("1000")] {
            assert_eq!(refused("", &l2(json!({"bcqueuelen": wrong}))).code, 7);
        }
    });
}

#[test]
fn router_advertisements_are_heeded_as_the_configuration_says() {
    beyond_peer("it leaves them to the kernel", || {
        for (word, value) in [("off", "0"), ("on", "1"), ("forwarding", "2")] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            let pod = sandbox.pod("a");
            pod.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
            let conf = l2(json!({"acceptRA": word}));
            let result = sandbox.cni("macvlan").add(&conf, &pod, "eth0").result();
            assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_ra"), value);
            let heeds = word != "off";
            let disabled = pod.sysctl("net/ipv6/conf/eth0/disable_ipv6");
            assert_eq!(disabled, if heeds { "0" } else { "1" });
            let conf = conf::with_prev(&conf, &result);
            let check = || sandbox.cni("macvlan").check(&conf, &pod, "eth0");
            check().silent();
            pod.sh("echo 7 >/proc/sys/net/ipv6/conf/eth0/accept_ra");
            let told = format!("accept_ra of eth0 is 7, not {value}");
            assert_eq!(check().error().msg, told);
        }
        let error = refused("", &l2(json!({"acceptRA": "always"})));
        let told = "acceptRA: \"always\" is none of off, on, forwarding";
        assert_eq!((error.code, error.msg.as_str()), (7, told));
    });
}

// ---- in the first moment

#[test]
fn an_address_that_was_anothers_works_at_once() {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let conf = |mac: &str| {
        let ipam =
            json!([{"address": "10.1.0.7/24"}, {"address": "fd01::7/64", "gateway": "fd01::99"}]);
        l2(json!({"ipam": {"type": "static", "addresses": ipam}, "mac": mac}))
    };
    let machine = &segment.machine;
    add(&sandbox, &conf("02:00:00:00:07:0a"), &a);
    assert!(reaches(machine, ["10.1.0.7", "fd01::7"]));
    // So that what it knows is not asked again by itself meanwhile.
    machine.sh(
        "ip neigh replace 10.1.0.7 lladdr 02:00:00:00:07:0a nud reachable dev eth1
         ip neigh replace fd01::7 lladdr 02:00:00:00:07:0a nud reachable dev eth1",
    );
    del(&sandbox, &conf("02:00:00:00:07:0a"), &a);
    add(&sandbox, &conf("02:00:00:00:07:0b"), &b);
    assert_eq!(machine.ping("10.1.0.7", 3), [true; 3]);
    beyond_peer("before v1.2 it announces no IPv6 addresses", || {
        assert_eq!(machine.ping("fd01::7", 3), [true; 3]);
    });
}

#[test]
fn ipv6_is_usable_when_add_returns_and_nobody_waited_for_it() {
    beyond_peer(
        "pains 15: 1.5 to 1.8 s of duplicate address detection",
        || {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            // A busy machine may delay one of them; duplicate address detection, all.
            let took = ["a", "b", "c"].map(|name| {
                let pod = sandbox.pod(name);
                let cni = sandbox.cni("macvlan").id(name);
                let outcome = cni.add(&dual(json!({})), &pod, "eth0");
                outcome.result();
                assert!(
                    !pod.sh("ip -6 addr show dev eth0 scope global")
                        .contains("tentative")
                );
                assert_eq!(pod.ping(MACHINE[1], 1), [true]);
                outcome.elapsed()
            });
            let limit = sandbox::in_time(Duration::from_secs(1));
            assert!(took.iter().any(|took| *took < limit), "{took:?}");
        },
    );
}

// ---- detectConflicts

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
fn without_the_key_nobody_is_asked() {
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
fn a_wire_that_is_cut_cannot_be_asked() {
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

// ---- failures leave nothing

#[test]
fn a_failure_after_the_link_was_made_leaves_nothing() {
    beyond_peer("reference 8 #7: the link stays", || {
        for ipam in [
            json!({"type": "nope"}),
            json!({"type": "host-local", "ranges": [[{"subnet": V4}]], "routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}),
            json!({"type": "host-local", "ranges": [[]]}),
        ] {
            refused("", &l2(json!({"ipam": ipam})));
        }
    });
}

#[test]
fn a_result_that_nobody_reads_leaves_nothing() {
    beyond_peer("reference 8 #7: the link stays", || {
        for stdout in [Stdout::NoReader, Stdout::Full] {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            let pod = sandbox.pod("a");
            let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
            let cni = sandbox.cni("macvlan").stdout(stdout);
            assert_eq!(cni.add(&dual(json!({})), &pod, "eth0").code(), 1);
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn an_interface_that_the_pod_has_is_left_alone() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    pod.sh("ip link add eth0 type bridge");
    let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
    let conf = macvlan(json!({}));
    let error = sandbox.cni("macvlan").add(&conf, &pod, "eth0").error();
    assert_eq!(
        error.msg,
        "failed to rename macvlan to \"eth0\": file exists"
    );
    snapshot.assert_unchanged();
}

#[test]
fn a_second_add_is_refused_and_the_first_stays() {
    let it = attached(&macvlan(json!({})));
    let conf = macvlan(json!({}));
    let cni = it.sandbox.cni("macvlan");
    let error = cni.add(&conf, &it.pod, "eth0").error();
    assert_eq!(
        error.msg,
        "failed to rename macvlan to \"eth0\": file exists"
    );
    assert_eq!(it.pod.addresses("eth0"), ["10.1.0.2/24"]);
    assert_eq!(it.pod.ping(MACHINE[0], 1), [true]);
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let cni = sandbox.cni("macvlan").netns("/run/netns/nope");
    let error = cni.add(&macvlan(json!({})), &pod, "eth0").error();
    beyond_peer("reference 1.13: %!q(<nil>)", || {
        let said = "failed to open netns \"/run/netns/nope\": failed to Statfs \"/run/netns/nope\": no such file or directory";
        assert_eq!(error.msg, said);
    });
}

// ---- DEL

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

// ---- CHECK

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

// ---- STATUS, GC

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
                "no Ethernet",
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
fn gc_gives_back_the_addresses_of_those_who_are_gone() {
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
    // Fifty links go one after the other, by children that nobody waits for.
    let left = snapshot.compare(Duration::from_secs(30));
    assert_eq!(left, Ok(()), "fifty deletions");
}
