//! vlan: a VLAN of an interface for a pod, proved with traffic on a trunk to another machine; what each key does, what
//! DEL, CHECK, GC and STATUS make of accidents.
//!
//! It runs on a kernel with 802.1Q, in a virtual machine (`tests/vm/run`); plain `cargo test` leaves it out.

use sandbox::normal::Normaliser;
use sandbox::{
    Netns, Sandbox, Segment, Suite, beyond_peer, conf, conf_of, container_id, row, versions_of,
};
use serde_json::{Value, json};

/// The other machine's addresses in VLAN 5.
const MACHINE: [&str; 2] = ["10.1.0.77", "fd01::77"];
const POD: [&str; 2] = ["10.1.0.2", "fd01::2"];

fn vlan(change: Value) -> Value {
    conf::with(&conf_of("vlan"), change)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("vlan").add(conf, pod, "eth0").result()
}

fn del(sandbox: &Sandbox, conf: &Value, pod: &Netns) {
    sandbox.cni("vlan").del(conf, pod, "eth0").silent();
}

/// A node on a segment whose machine is in VLAN 5, with a pod.
fn trunk() -> (Sandbox, Segment, Netns) {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    join(&segment.machine, "eth1", 5, MACHINE);
    let pod = sandbox.pod("a");
    (sandbox, segment, pod)
}

/// Gives a machine an interface `v` in a VLAN.
fn join(machine: &Netns, parent: &str, id: u16, addresses: [&str; 2]) {
    let [v4, v6] = addresses;
    // Its untagged interface is in the same subnets.
    machine.sh(&format!(
        "ip addr flush dev eth1
         ip link add link {parent} name v type vlan id {id}
         echo 0 >/proc/sys/net/ipv6/conf/v/accept_dad
         ip addr add {v4}/24 dev v
         ip addr add {v6}/64 dev v nodad
         ip link set v up"
    ));
    machine.wait_until("its VLAN is up", |it| it.is_settled("v"));
}

/// A node with a wire, and a pod attached to its VLAN 5.
fn attached() -> (Sandbox, Netns, Value) {
    let sandbox = Sandbox::new();
    sandbox.wire();
    let pod = sandbox.pod("a");
    let result = add(&sandbox, &vlan(json!({})), &pod);
    (sandbox, pod, result)
}

fn info(pod: &Netns, link: &str) -> Value {
    let link = pod.link(link).unwrap_or_else(|| panic!("no {link}"));
    assert_eq!(link["linkinfo"]["info_kind"], "vlan");
    link["linkinfo"]["info_data"].clone()
}

#[track_caller]
fn reaches(from: &Netns, to: [&str; 2]) {
    for to in to {
        assert!(from.ping(to, 2).contains(&true), "{to}");
    }
}

#[track_caller]
fn assert_gone(sandbox: &Sandbox, pod: &Netns) {
    assert_eq!(pod.links(), ["lo"]);
    assert_eq!(sandbox.reserved(), [""; 0]);
}

#[test]
fn a_pod_is_in_its_vlan_and_del_takes_it_out() {
    let (sandbox, segment, pod) = trunk();
    let conf = vlan(json!({}));
    let result = add(&sandbox, &conf, &pod);
    assert_eq!(
        (&info(&pod, "eth0")["id"], &info(&pod, "eth0")["protocol"]),
        (&5.into(), &"802.1Q".into())
    );
    let mac = sandbox.host().link("eth1").unwrap()["address"].clone();
    assert_eq!(pod.link("eth0").unwrap()["address"], mac);
    let interface = &result["interfaces"][0];
    assert_eq!(
        (&interface["name"], &interface["mac"]),
        (&"eth0".into(), &mac)
    );
    assert_eq!(interface["sandbox"], pod.path());
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(1));
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/24");
    assert_eq!(result["ips"][1]["interface"], 0);
    reaches(&pod, MACHINE);
    reaches(&segment.machine, POD);
    // Frames without the tag are the node's.
    let untagged = "ip link set v down; ip addr add 10.1.0.78/24 dev eth1";
    segment.machine.sh(untagged);
    assert_eq!(pod.ping("10.1.0.78", 1), [false]);
    let checked = conf::with_prev(&conf, &result);
    sandbox.cni("vlan").check(&checked, &pod, "eth0").silent();
    for _ in 0..2 {
        del(&sandbox, &checked, &pod);
    }
    assert_gone(&sandbox, &pod);
}

#[test]
fn the_result_has_the_shape_of_its_version() {
    for version in versions_of("vlan").into_iter().chain(["1.1.0"]) {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let pod = sandbox.pod("a");
        let conf = conf::at(&vlan(json!({"dns": {"domain": "x"}})), version);
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(
            (&result["cniVersion"], &result["dns"]["domain"]),
            (&version.into(), &"x".into())
        );
        match version {
            "0.1.0" | "0.2.0" => {
                assert_eq!(result["ip4"]["ip"], "10.1.0.2/24");
                assert!(result.get("interfaces").is_none(), "{result}");
            }
            _ => {
                assert_eq!(result["interfaces"][0]["name"], "eth0");
                let mtu = (version == "1.1.0").then(|| 1500.into());
                assert_eq!(result["interfaces"][0].get("mtu"), mtu.as_ref());
                let family = version.starts_with('0').then(|| "4".into());
                assert_eq!(result["ips"][0].get("version"), family.as_ref());
            }
        }
        del(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["lo"]);
    }
}

#[test]
fn the_mtu_is_at_most_the_parents() {
    for (mtu, expected) in [(0, 1500), (1400, 1400), (1500, 1500)] {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let pod = sandbox.pod("a");
        add(&sandbox, &vlan(json!({"mtu": mtu})), &pod);
        assert_eq!(pod.link("eth0").unwrap()["mtu"], expected);
    }
    let sandbox = Sandbox::new();
    sandbox.wire();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    // The MTU is looked at before a namespace that is not there, as by the Go plugin.
    let pairs = [1501, -100].map(|mtu| [(mtu, pod.path()), (mtu, "/run/netns/absent".into())]);
    for (mtu, netns) in pairs.concat() {
        let cni = sandbox.cni("vlan").netns(&netns);
        let conf = vlan(json!({"mtu": mtu}));
        let error = cni.add(&conf, &pod, "eth0").error();
        assert_eq!(
            error.msg,
            format!("invalid MTU {mtu}, must be [0, master MTU(1500)]")
        );
    }
    snapshot.assert_unchanged();
}

#[test]
fn a_vlan_may_be_in_another_vlan() {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    for node in [&sandbox.host(), &segment.machine] {
        node.sh("ip link add link eth1 name eth1.10 type vlan id 10 && ip link set eth1.10 up");
    }
    join(&segment.machine, "eth1.10", 5, MACHINE);
    let pod = sandbox.pod("a");
    let conf = vlan(json!({"master": "eth1.10"}));
    sandbox
        .cni("vlan")
        .status(&conf::at(&conf, "1.1.0"))
        .silent();
    let result = add(&sandbox, &conf, &pod);
    reaches(&pod, MACHINE);
    let checked = conf::with_prev(&conf, &result);
    sandbox.cni("vlan").check(&checked, &pod, "eth0").silent();
    del(&sandbox, &conf, &pod);
    assert_eq!(pod.links(), ["lo"]);
}

#[test]
fn the_parent_may_be_in_the_container() {
    beyond_peer("plugins before v1.3 do not know linkInContainer", || {
        let (sandbox, segment, pod) = trunk();
        sandbox
            .host()
            .sh(&format!("ip link set eth1 netns {}", pod.name()));
        pod.sh("ip link set eth1 up");
        pod.wait_until("the wire is up", |pod| pod.is_settled("eth1"));
        segment.await_wire();
        let conf = vlan(json!({"linkInContainer": true}));
        // Which container it will be is not known to STATUS.
        sandbox
            .cni("vlan")
            .status(&conf::at(&conf, "1.1.0"))
            .silent();
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["eth0", "eth1", "lo"]);
        reaches(&pod, MACHINE);
        let checked = conf::with_prev(&conf, &result);
        sandbox.cni("vlan").check(&checked, &pod, "eth0").silent();
        let error = sandbox.cni("vlan").add(&conf, &pod, "eth0").error();
        assert!(
            error
                .msg
                .starts_with("failed to rename vlan to \"eth0\": file exists"),
            "{}",
            error.msg
        );
        assert_eq!(info(&pod, "eth0")["id"], 5);
        del(&sandbox, &conf, &pod);
        assert_eq!(pod.links(), ["eth1", "lo"]);
        let error = sandbox
            .cni("vlan")
            .add(&vlan(json!({})), &pod, "eth0")
            .error();
        assert_eq!(error.msg, "Link not found");
    });
}

#[test]
fn a_parent_may_be_a_port_of_a_bridge() {
    let (sandbox, _segment, pod) = trunk();
    sandbox
        .host()
        .sh("ip link add br1 type bridge && ip link set br1 up && ip link set eth1 master br1");
    add(&sandbox, &vlan(json!({})), &pod);
    reaches(&pod, MACHINE);
}

#[test]
fn a_master_may_be_a_pattern_of_names() {
    beyond_peer("a name is a name", || {
        let (sandbox, _segment, pod) = trunk();
        sandbox
            .host()
            .sh("ip link add link eth1 name eth1.9 type vlan id 9 && ip link set eth1.9 up");
        let conf = vlan(json!({"master": "bond*|eth*"}));
        add(&sandbox, &conf, &pod);
        reaches(&pod, MACHINE);
        del(&sandbox, &conf, &pod);
    });
}

#[test]
fn a_vlan_of_a_parent_has_one_owner_at_a_time() {
    let (sandbox, _segment, first) = trunk();
    let second = sandbox.pod("b");
    let conf = vlan(json!({}));
    add(&sandbox, &conf, &first);
    let snapshot = sandbox.snapshot();
    let error = sandbox.cni("vlan").add(&conf, &second, "eth0").error();
    assert!(
        error.msg.starts_with("failed to create vlan: "),
        "{}",
        error.msg
    );
    assert!(error.msg.contains("file exists"), "{}", error.msg);
    if !sandbox::testing_the_peer() {
        let why = "VLAN 5 of \"eth1\" is in use, by the node or another pod";
        assert!(error.details.contains(why), "{}", error.details);
        snapshot.assert_unchanged();
    }
    // Another VLAN is free, and the same one once the first pod has left it.
    add(&sandbox, &vlan(json!({"vlanId": 6})), &second);
    del(&sandbox, &vlan(json!({"vlanId": 6})), &second);
    reaches(&first, MACHINE);
    del(&sandbox, &conf, &first);
    add(&sandbox, &conf, &second);
    reaches(&second, MACHINE);
}

#[test]
fn an_interface_of_the_node_may_have_the_name_and_one_of_the_pod_not() {
    let (sandbox, _segment, pod) = trunk();
    sandbox.host().sh("ip link add eth0 type bridge");
    add(&sandbox, &vlan(json!({})), &pod);
    reaches(&pod, MACHINE);
    beyond_peer("it leaves the interface under another name", || {
        let snapshot = sandbox.snapshot();
        let other = vlan(json!({"vlanId": 6}));
        let error = sandbox.cni("vlan").add(&other, &pod, "eth0").error();
        assert!(
            error
                .msg
                .starts_with("failed to rename vlan to \"eth0\": file exists"),
            "{}",
            error.msg
        );
        snapshot.assert_unchanged();
        assert_eq!(info(&pod, "eth0")["id"], 5);
    });
}

#[test]
fn a_failure_after_the_link_was_made_leaves_nothing() {
    beyond_peer("its link stays", || {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
        let routes = json!({"ipam": {"routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]}});
        sandbox.cni("vlan").add(&vlan(routes), &pod, "eth0").error();
        snapshot.assert_unchanged();
        let ipam = sandbox.fake("fake-ipam");
        ipam.fail("ADD", 11, "later");
        let fake = json!({"ipam": {"type": "fake-ipam"}});
        let error = sandbox.cni("vlan").add(&vlan(fake), &pod, "eth0").error();
        assert_eq!((error.code, error.msg.as_str()), (11, "later"));
        assert_eq!(pod.links(), ["lo"]);
    });
}

#[test]
fn a_parent_that_is_down_or_gone_is_named() {
    beyond_peer("it fails later, or with another text", || {
        for (prepare, text) in [
            ("ip link set eth1 down", "master \"eth1\" is down"),
            ("ip link del eth1", "Link not found"),
            // It has a carrier, as it has no wire.
            (
                "ip link del eth1; ip link add eth1 type dummy",
                "master \"eth1\" is down",
            ),
        ] {
            let sandbox = Sandbox::new();
            sandbox.wire();
            let pod = sandbox.pod("a");
            sandbox.host().sh(prepare);
            let snapshot = sandbox.snapshot();
            let error = sandbox
                .cni("vlan")
                .add(&vlan(json!({})), &pod, "eth0")
                .error();
            assert!(error.msg.starts_with(text), "{}", error.msg);
            let status = sandbox
                .cni("vlan")
                .status(&conf::at(&vlan(json!({})), "1.1.0"))
                .error();
            assert_eq!(status.code, 50, "{}", status.msg);
            assert!(status.msg.contains(text), "{}", status.msg);
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn del_needs_neither_parent_nor_a_good_configuration() {
    beyond_peer("pains 14: Link not found", || {
        for prepare in [
            "ip link del eth1",
            "ip link set eth1 down",
            "ip link set eth1 down; ip link set eth1 name other",
        ] {
            let (sandbox, pod, _) = attached();
            sandbox.host().sh(prepare);
            for _ in 0..2 {
                del(&sandbox, &vlan(json!({})), &pod);
            }
            assert_gone(&sandbox, &pod);
        }
        for change in [
            json!({"master": ""}),
            json!({"master": "nope"}),
            json!({"vlanId": 9999}),
            json!({"vlanId": "x"}),
            json!({"mtu": 9999}),
        ] {
            let (sandbox, pod, _) = attached();
            del(&sandbox, &vlan(change), &pod);
            assert_gone(&sandbox, &pod);
        }
    });
}

#[test]
fn del_finds_the_link_whatever_the_pod_has_changed_of_it() {
    beyond_peer("it knows the name alone", || {
        // With the result of ADD, the VLAN identifies it; its MAC is that of all VLANs of the parent.
        let (sandbox, pod, result) = attached();
        let neighbour = conf::at(&vlan(json!({"vlanId": 6})), "1.0.0");
        let cni = sandbox.cni("vlan").peer();
        cni.add(&neighbour, &pod, "net1").result();
        pod.sh(&disguise("x"));
        pod.sh("ip link set x address 02:00:00:00:00:09");
        // A second DEL leaves the other VLAN alone, too.
        for _ in 0..2 {
            del(&sandbox, &conf::with_prev(&vlan(json!({})), &result), &pod);
            assert_eq!(pod.links(), ["lo", "net1"]);
        }
        // What an ADD that was killed has left.
        let (sandbox, pod, _) = attached();
        pod.sh("ip link set dev eth0 alias ''");
        del(&sandbox, &vlan(json!({})), &pod);
        assert_eq!(pod.links(), ["lo"]);
        let (sandbox, pod, _) = attached();
        let attachment = format!("{}/{}/eth0/0", conf::NETWORK, container_id(&pod));
        let sum = pod.sh(&format!("printf %s {attachment} | sha512sum"));
        pod.sh(&disguise(&format!("veth{}", &sum[..8])));
        del(&sandbox, &vlan(json!({})), &pod);
        assert_eq!(pod.links(), ["lo"]);
    });
}

/// Gives the pod's interface another name, and takes its alias.
fn disguise(name: &str) -> String {
    format!("ip link set eth0 down; ip link set eth0 name {name}; ip link set dev {name} alias ''")
}

#[test]
fn gc_takes_what_is_not_claimed() {
    beyond_peer("it has no GC", || {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let pods = ["a", "b"].map(|name| sandbox.pod(name));
        let confs = [5, 6].map(|id| conf::at(&vlan(json!({"vlanId": id})), "1.1.0"));
        for (pod, conf) in pods.iter().zip(&confs) {
            add(&sandbox, conf, pod);
        }
        // As if it had been killed while it asked for addresses.
        pods[0].sh("ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 name x");
        let id = container_id(&pods[1]);
        let conf = conf::with_valid(&confs[0], &[(&id, "eth0")]);
        sandbox.cni("vlan").gc(&conf).silent();
        assert_eq!(pods[0].links(), ["lo"]);
        assert_eq!(pods[1].links(), ["eth0", "lo"]);
        assert_eq!(sandbox.reserved(), ["10.1.0.3", "fd01::3"]);
    });
}

#[test]
fn an_alias_is_there_before_ipam_is_asked() {
    beyond_peer("it sets none", || {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let pod = sandbox.pod("a");
        let ipam = sandbox.fake("fake-ipam");
        let seen = sandbox.dir().join("alias");
        ipam.before(
            "ADD",
            &format!("ip -n {} -j link show eth0 >{}", pod.name(), seen.display()),
        );
        ipam.fail("ADD", 11, "later");
        let fake = vlan(json!({"ipam": {"type": "fake-ipam"}}));
        sandbox.cni("vlan").add(&fake, &pod, "eth0").error();
        let alias = format!("podwire:{}/{}/eth0", conf::NETWORK, container_id(&pod));
        let seen = sandbox.read(seen).unwrap_or_default();
        assert!(seen.contains(&alias), "{seen}");
    });
}

#[test]
fn check_notices_what_is_not_as_promised() {
    let (sandbox, pod, result) = attached();
    let checked = |change: Value| conf::with_prev(&vlan(change), &result);
    let check = |change: Value| sandbox.cni("vlan").check(&checked(change), &pod, "eth0");
    check(json!({})).silent();
    let error = sandbox
        .cni("vlan")
        .check(&vlan(json!({})), &pod, "eth0")
        .error();
    assert_eq!(error.msg, "vlan: Required prevResult missing");
    check(json!({"vlanId": 6})).error();
    check(json!({"mtu": 1400})).error();
    beyond_peer("it does not look at the parent", || {
        assert_eq!(
            check(json!({"vlanId": 6})).error().msg,
            "VLAN of eth0 is 5, not 6"
        );
        assert_eq!(
            check(json!({"mtu": 1400})).error().msg,
            "MTU of eth0 is 1500, not 1400"
        );
        sandbox.host().sh("ip link add eth2 type bridge");
        assert_eq!(
            check(json!({"master": "eth2"})).error().msg,
            "parent of eth0 is \"eth1\", not \"eth2\""
        );
    });
    pod.sh("ip addr del 10.1.0.2/24 dev eth0");
    assert_eq!(
        check(json!({})).error().msg,
        "Failed to match addr 10.1.0.2/24 on interface eth0"
    );
    pod.sh("ip link del eth0");
    let text = "vlan: Container Interface name in prevResult: eth0 not found";
    assert_eq!(check(json!({})).error().msg, text);
    pod.sh("ip link add eth0 type bridge");
    assert_eq!(
        check(json!({})).error().msg,
        "Error: Container interface eth0 not of type vlan"
    );
}

#[test]
fn an_address_that_a_machine_of_the_vlan_has_is_left_to_it() {
    beyond_peer("it detects no conflicts", || {
        let (sandbox, segment, pod) = trunk();
        segment.machine.sh("ip addr add 10.1.0.2/24 dev v");
        let conf = vlan(json!({"detectConflicts": true}));
        let result = add(&sandbox, &conf, &pod);
        assert_eq!(result["ips"][0]["address"], "10.1.0.3/24");
        reaches(&pod, MACHINE);
    });
}

#[test]
fn an_address_that_was_anothers_works_at_once() {
    beyond_peer("it announces nothing", || {
        let (sandbox, segment, pod) = trunk();
        segment
            .machine
            .sh("ip neigh replace 10.1.0.2 lladdr 02:00:00:00:00:09 dev v nud stale");
        add(&sandbox, &vlan(json!({})), &pod);
        assert_eq!(segment.machine.ping("10.1.0.2", 1), [true]);
    });
}

/// The same through the peer's plugin: the same result, and the same kernel but for the alias and the settings of
/// announcements and duplicate detection.
#[test]
fn both_suites_make_the_same_and_delete_what_the_other_has_made() {
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "fd09::/64", "gw": "fd01::1"}]);
    let conf = vlan(json!({"mtu": 1400, "ipam": {"routes": routes}}));
    let conf = conf::at(&conf, "1.0.0");
    let made = [Suite::Ours, Suite::Peer].map(|suite| {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let pod = sandbox.pod("a");
        let cni = sandbox.cni("vlan").suite(suite);
        let result = cni.add(&conf, &pod, "eth0").result();
        (sandbox, pod, result)
    });
    let normal = |result: &Value| {
        let mut result = Normaliser::plain().value(result);
        // Libraries before v1.2 print an empty one.
        result.as_object_mut().map(|it| it.remove("dns"));
        result
    };
    let [ours, theirs] = &made;
    assert_eq!(normal(&ours.2), normal(&theirs.2));
    ours.0.assert_same_state(&theirs.0, known);
    for ((sandbox, pod, result), suite) in [(ours, Suite::Peer), (theirs, Suite::Ours)] {
        let cni = || sandbox.cni("vlan").suite(suite);
        let conf = conf::with_prev(&conf, result);
        cni().check(&conf, pod, "eth0").silent();
        cni().del(&conf, pod, "eth0").silent();
        assert_gone(sandbox, pod);
    }
}

/// What is ours on purpose: the alias, announcements, no duplicate detection, files that only root reads.
fn known(line: String) -> Option<String> {
    let dropped = [
        "notify = ",
        "accept_dad",
        "keep_addr_on_down",
        "/var/lib/cni/networks",
        "/run/podwire",
    ];
    if dropped.iter().any(|it| line.contains(it)) {
        return None;
    }
    let mut words: Vec<&str> = line
        .split(' ')
        .filter(|it| *it != "nodad" && *it != "true")
        .collect();
    if let Some(at) = words.iter().position(|it| *it == "ifalias") {
        words.drain(at..at + 2);
    }
    Some(words.join(" "))
}

#[test]
fn the_example_gives_a_pod_a_vlan() {
    beyond_peer(
        "podwire runs it, and it is not among the Go plugins",
        || {
            let (sandbox, segment, pod) = trunk();
            segment.machine.sh("ip link del v");
            join(&segment.machine, "eth1", 50, ["10.210.48.1", "fd48::1"]);
            let dir = sandbox.dir().join("networks");
            let example = include_str!("../../netconf-examples/48-vlan-interface.conflist");
            sandbox.write(dir.join("48.conflist"), example);
            let bin = Suite::Ours.dir().display();
            let run = |verb: &str| {
                let (dir, netns) = (dir.display(), pod.path());
                let command = format!(
                    "CNI_PATH={bin} NETCONFPATH={dir} {bin}/podwire {verb} example-vlan-interface {netns}"
                );
                sandbox.host().sh(&command)
            };
            for verb in ["status", "add", "check"] {
                run(verb);
            }
            assert_eq!(pod.addresses("eth0"), ["10.210.48.100/24"]);
            assert_eq!(pod.ping("10.210.48.1", 1), [true]);
            run("del");
            assert_eq!(pod.links(), ["lo"]);
        },
    );
}

#[test]
fn the_table_knows_that_this_kernel_has_vlans() {
    assert!(row("vlan").runs_here());
}
