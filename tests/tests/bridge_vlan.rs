//! bridge: the keys `vlan`, `vlanTrunk` and `preserveDefaultVlan`.
//!
//! Many kernels are built without bridge VLAN filtering, so this file runs on one that has it, in a virtual machine
//! (`tests/vm/run`); plain `cargo test` leaves it out.
//!
//! Debian's Go plugins (1.1.1) know no `vlanTrunk`, and always keep VLAN 1 on the port.

use sandbox::{Netns, Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

/// The bridge in the way of a network with one pool and `change` laid over it.
fn network(subnet: &str, change: Value) -> Value {
    let l2 = conf::with(&conf::bridge(&[subnet]), json!({"isGateway": null}));
    conf::with(&l2, change)
}

/// VLANs of a bridge port as `10`, `10 pvid`, `10 untagged` or `10 pvid untagged`, in ascending order.
fn vlans(node: &Netns, port: &str) -> Vec<String> {
    let shown = node.sh(&format!("bridge -j vlan show dev {port}"));
    let shown: Value = serde_json::from_str(&shown).expect("bridge vlan printed no JSON");
    let vlans = shown[0]["vlans"].as_array().cloned().unwrap_or_default();
    let text = |vlan: &Value| {
        let flags = vlan["flags"].as_array().cloned().unwrap_or_default();
        let has = |flag: &str| flags.iter().any(|f| f == flag);
        let pvid = if has("PVID") { " pvid" } else { "" };
        let untagged = if has("Egress Untagged") {
            " untagged"
        } else {
            ""
        };
        format!("{}{pvid}{untagged}", vlan["vlan"])
    };
    vlans.iter().map(text).collect()
}

/// The name that a result gives the host end of the pod's veth pair.
fn host_veth(result: &Value) -> &str {
    result["interfaces"][1]["name"]
        .as_str()
        .expect("no host veth in the result")
}

/// The pod's first address in a result, without the prefix length.
fn address(result: &Value) -> &str {
    let address = result["ips"][0]["address"]
        .as_str()
        .expect("no address in the result");
    address.split('/').next().unwrap_or(address)
}

/// The name of the other end of a veth pair whose ends are in one namespace.
fn peer_of(node: &Netns, link: &str) -> String {
    let shown = node.link(link).unwrap_or_else(|| panic!("no link {link}"));
    shown["link"]
        .as_str()
        .expect("a link without a peer")
        .to_owned()
}

fn filters(node: &Netns, bridge: &str) -> bool {
    let link = node
        .link(bridge)
        .unwrap_or_else(|| panic!("no bridge {bridge}"));
    link["linkinfo"]["info_data"]["vlan_filtering"] == 1
}

#[test]
fn a_bridge_made_for_a_vlan_filters() {
    let sandbox = Sandbox::new();
    let conf = network("10.1.0.0/24", json!({"vlan": 100}));
    sandbox
        .cni("bridge")
        .add(&conf, &sandbox.pod("a"), "eth0")
        .result();
    assert!(filters(&sandbox.host(), "cni0"));
}

#[test]
fn a_bridge_made_without_a_vlan_does_not_filter() {
    let sandbox = Sandbox::new();
    let conf = network("10.1.0.0/24", json!({}));
    sandbox
        .cni("bridge")
        .add(&conf, &sandbox.pod("a"), "eth0")
        .result();
    assert!(!filters(&sandbox.host(), "cni0"));
}

#[test]
fn a_port_belongs_to_its_vlan_alone() {
    beyond_peer("it keeps VLAN 1", || {
        let sandbox = Sandbox::new();
        let conf = network("10.1.0.0/24", json!({"vlan": 100}));
        let result = sandbox
            .cni("bridge")
            .add(&conf, &sandbox.pod("a"), "eth0")
            .result();
        assert_eq!(
            vlans(&sandbox.host(), host_veth(&result)),
            ["100 pvid untagged"]
        );
    });
}

#[test]
fn the_default_vlan_is_kept_on_request() {
    let sandbox = Sandbox::new();
    let conf = network(
        "10.1.0.0/24",
        json!({"vlan": 100, "preserveDefaultVlan": true}),
    );
    let result = sandbox
        .cni("bridge")
        .add(&conf, &sandbox.pod("a"), "eth0")
        .result();
    assert_eq!(
        vlans(&sandbox.host(), host_veth(&result)),
        ["1 untagged", "100 pvid untagged"]
    );
}

#[test]
fn a_trunk_is_the_union_of_its_ranges_and_ids() {
    beyond_peer("it knows no vlanTrunk", || {
        let sandbox = Sandbox::new();
        let trunk = json!([{"id": 20}, {"minID": 10, "maxID": 12}, {"minID": 12, "maxID": 13, "id": 4094}, {}]);
        let conf = network("10.1.0.0/24", json!({"vlanTrunk": trunk}));
        let result = sandbox
            .cni("bridge")
            .add(&conf, &sandbox.pod("a"), "eth0")
            .result();
        assert!(filters(&sandbox.host(), "cni0"));
        // Frames without a tag still have a VLAN: the default one.
        let expected = ["1 pvid untagged", "10", "11", "12", "13", "20", "4094"];
        assert_eq!(vlans(&sandbox.host(), host_veth(&result)), expected);
    });
}

#[test]
fn a_trunk_with_a_vlan_puts_untagged_frames_into_it() {
    beyond_peer("it knows no vlanTrunk", || {
        let sandbox = Sandbox::new();
        let conf = network(
            "10.1.0.0/24",
            json!({"vlan": 100, "vlanTrunk": [{"minID": 10, "maxID": 11}]}),
        );
        let result = sandbox
            .cni("bridge")
            .add(&conf, &sandbox.pod("a"), "eth0")
            .result();
        assert_eq!(
            vlans(&sandbox.host(), host_veth(&result)),
            ["10", "11", "100 pvid untagged"]
        );
    });
}

#[test]
fn a_trunk_keeps_the_default_vlan_on_request() {
    beyond_peer("it knows no vlanTrunk", || {
        let sandbox = Sandbox::new();
        let change = json!({"vlan": 100, "vlanTrunk": [{"id": 10}], "preserveDefaultVlan": true});
        let conf = network("10.1.0.0/24", change);
        let result = sandbox
            .cni("bridge")
            .add(&conf, &sandbox.pod("a"), "eth0")
            .result();
        let expected = ["1 untagged", "10", "100 pvid untagged"];
        assert_eq!(vlans(&sandbox.host(), host_veth(&result)), expected);
    });
}

#[test]
fn an_empty_trunk_makes_a_filtering_bridge_and_leaves_the_port_alone() {
    beyond_peer("it knows no vlanTrunk", || {
        let sandbox = Sandbox::new();
        let conf = network("10.1.0.0/24", json!({"vlanTrunk": []}));
        let result = sandbox
            .cni("bridge")
            .add(&conf, &sandbox.pod("a"), "eth0")
            .result();
        assert!(filters(&sandbox.host(), "cni0"));
        assert_eq!(
            vlans(&sandbox.host(), host_veth(&result)),
            ["1 pvid untagged"]
        );
    });
}

#[test]
fn pods_meet_in_their_vlan_and_in_no_other() {
    let sandbox = Sandbox::new();
    let (a, b, stranger) = (sandbox.pod("a"), sandbox.pod("b"), sandbox.pod("stranger"));
    // One pool for all, so that nothing but the VLAN keeps the stranger away.
    let (ours, theirs) = (json!({"vlan": 100}), json!({"vlan": 200}));
    let (ours, theirs) = (network("10.1.0.0/24", ours), network("10.1.0.0/24", theirs));
    let at_a = sandbox.cni("bridge").add(&ours, &a, "eth0").result();
    let at_b = sandbox.cni("bridge").add(&ours, &b, "eth0").result();
    sandbox
        .cni("bridge")
        .add(&theirs, &stranger, "eth0")
        .result();
    assert_eq!(a.ping(address(&at_b), 2), [true, true]);
    assert_eq!(b.ping(address(&at_a), 2), [true, true]);
    assert_eq!(stranger.ping(address(&at_a), 2), [false, false]);
}

#[test]
fn a_trunk_carries_tagged_frames_of_its_vlans_only() {
    beyond_peer("it knows no vlanTrunk", || {
        let sandbox = Sandbox::new();
        let (router, a, b) = (sandbox.pod("router"), sandbox.pod("a"), sandbox.pod("b"));
        let trunk = network(
            "10.9.0.0/24",
            json!({"vlanTrunk": [{"minID": 10, "maxID": 11}]}),
        );
        sandbox.cni("bridge").add(&trunk, &router, "eth0").result();
        for (pod, vlan, subnet) in [(&a, 10, "10.10.0.0/24"), (&b, 12, "10.12.0.0/24")] {
            let access = conf::with(
                &network(subnet, json!({"vlan": vlan})),
                json!({"name": format!("vlan{vlan}")}),
            );
            sandbox.cni("bridge").add(&access, pod, "eth0").result();
            router.sh(&format!(
                "ip link add link eth0 name eth0.{vlan} type vlan id {vlan}
                 ip addr add 10.{vlan}.0.100/24 dev eth0.{vlan}
                 ip link set eth0.{vlan} up"
            ));
        }
        assert_eq!(router.ping("10.10.0.2", 2), [true, true]);
        assert_eq!(a.ping("10.10.0.100", 2), [true, true]);
        assert_eq!(router.ping("10.12.0.2", 2), [false, false]);
    });
}

#[test]
fn the_gateway_of_a_vlan_is_a_port_of_its_own() {
    let sandbox = Sandbox::new();
    let (node, pod) = (sandbox.host(), sandbox.pod("a"));
    let conf = conf::with(
        &conf::bridge(&["10.1.0.0/24", "fd00:1::/64"]),
        json!({"vlan": 100}),
    );
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();

    let gateway = node.link("cni0.100").expect("no gateway interface");
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(4));
    let named = &result["interfaces"][3];
    assert_eq!(named["name"], "cni0.100");
    assert_eq!(named["mac"], gateway["address"]);
    assert!(named["sandbox"].is_null());
    assert_eq!(node.addresses("cni0.100"), ["10.1.0.1/24", "fd00:1::1/64"]);
    assert_eq!(node.addresses("cni0"), [""; 0]);

    let port = peer_of(&node, "cni0.100");
    assert_eq!(node.link(&port).expect("no port")["master"], "cni0");
    assert!(vlans(&node, &port).contains(&"100 pvid untagged".to_owned()));
    assert_eq!(pod.ping("10.1.0.1", 2), [true, true]);
    // The gateway's own address is tentative for a moment.
    pod.wait_until("fd00:1::1 answers", |pod| {
        pod.ping("fd00:1::1", 1) == [true]
    });
}

#[test]
fn pods_of_one_vlan_share_its_gateway() {
    let sandbox = Sandbox::new();
    let (node, a, b) = (sandbox.host(), sandbox.pod("a"), sandbox.pod("b"));
    let conf = conf::with(&conf::bridge(&["10.1.0.0/24"]), json!({"vlan": 100}));
    let first = sandbox.cni("bridge").add(&conf, &a, "eth0").result();
    let links = node.links().len();
    let second = sandbox.cni("bridge").add(&conf, &b, "eth0").result();
    assert_eq!(first["interfaces"][3], second["interfaces"][3]);
    assert_eq!(
        node.links().len(),
        links + 1,
        "more than the second pod's veth came: {:?}",
        node.links()
    );
    assert_eq!(b.ping("10.1.0.1", 2), [true, true]);
    assert_eq!(a.ping(address(&second), 2), [true, true]);
}

#[test]
fn each_vlan_has_a_gateway_of_its_own() {
    let sandbox = Sandbox::new();
    let (node, a, b) = (sandbox.host(), sandbox.pod("a"), sandbox.pod("b"));
    for (pod, vlan, subnet) in [(&a, 100, "10.1.0.0/24"), (&b, 200, "10.2.0.0/24")] {
        let change = json!({"vlan": vlan, "name": format!("vlan{vlan}")});
        let conf = conf::with(&conf::bridge(&[subnet]), change);
        sandbox.cni("bridge").add(&conf, pod, "eth0").result();
    }
    assert_eq!(node.addresses("cni0.100"), ["10.1.0.1/24"]);
    assert_eq!(node.addresses("cni0.200"), ["10.2.0.1/24"]);
    assert_eq!(a.ping("10.1.0.1", 1), [true]);
    assert_eq!(b.ping("10.2.0.1", 1), [true]);
}

#[test]
fn a_vlan_pod_passes_its_check() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(&conf::bridge(&["10.1.0.0/24"]), json!({"vlan": 100}));
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    sandbox
        .cni("bridge")
        .check(&conf::with_prev(&conf, &result), &pod, "eth0")
        .silent();
}

#[test]
fn a_vlan_pod_leaves_nothing_but_the_shared_links() {
    let sandbox = Sandbox::new();
    let (node, pod) = (sandbox.host(), sandbox.pod("a"));
    let conf = conf::with(&conf::bridge(&["10.1.0.0/24"]), json!({"vlan": 100}));
    let before = sandbox.snapshot().allow_bridge_network();
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    let port = peer_of(&node, "cni0.100");
    sandbox
        .cni("bridge")
        .del(&conf::with_prev(&conf, &result), &pod, "eth0")
        .silent();
    before
        .allow_link("cni0.100")
        .allow_link(&port)
        .assert_unchanged();
}

#[test]
fn the_example_gives_a_pod_a_gateway_in_its_vlan() {
    beyond_peer("podwire runs it", || {
        let sandbox = Sandbox::new();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        let dir = sandbox.dir().join("net.d");
        let example = include_str!("../../netconf-examples/40-vlan.conflist");
        sandbox.write(dir.join("40-vlan.conflist"), example);
        let bin = sandbox::Suite::Ours.dir().display();
        for verb in ["status", "add", "check", "del"] {
            let done = host.run(&[
                "sh",
                "-euc",
                &format!(
                    "CNI_PATH={bin} NETCONFPATH={} {bin}/podwire {verb} example-vlan {}",
                    dir.display(),
                    pod.path()
                ),
            ]);
            assert_eq!(done.code, 0, "{verb}: {done:?}");
            if verb == "add" {
                assert_eq!(pod.addresses("eth0"), ["10.210.40.2/24"]);
                assert_eq!(pod.ping("10.210.40.1", 1), [true]);
                assert!(host.links().contains(&"ex-vlan.100".to_owned()));
            }
        }
    });
}

/// `podwire graph` has the VLANs that bridge knows, of each port and of the bridge, and no others.
#[test]
fn the_graph_has_the_vlans_of_ports() {
    beyond_peer("it has no graph", || {
        let sandbox = Sandbox::new();
        let trunk = json!([{"minID": 20, "maxID": 23}, {"id": 30}]);
        for (pod, keys) in [
            ("a", json!({"vlan": 100})),
            ("b", json!({"vlanTrunk": trunk})),
        ] {
            let conf = network("10.1.0.0/24", keys);
            sandbox
                .cni("bridge")
                .add(&conf, &sandbox.pod(pod), "eth0")
                .result();
        }
        let host = sandbox.host();
        let podwire = sandbox::Suite::Ours.dir().join("podwire");
        let graph = host.sh(&format!("{} graph -o json", podwire.display()));
        let graph: Value = serde_json::from_str(&graph).expect("JSON");
        let all = |list: &Value, name: &str| -> Vec<(Value, Value)> {
            let list = list.as_array().cloned().unwrap_or_default();
            let has = list.into_iter().filter(|it| it["vlans"].is_array());
            let mut all: Vec<_> = has
                .map(|it| (it[name].clone(), it["vlans"].clone()))
                .collect();
            all.sort_by_key(|(name, _)| name.to_string());
            all
        };
        // bridge prints an empty list of flags for some ranges, and none for others.
        let known = host.sh("bridge -j -compressvlans vlan show");
        let known = known
            .replace("\"flags\":[],", "")
            .replace(",\"flags\":[]", "");
        let known = all(&serde_json::from_str(&known).expect("JSON"), "ifname");
        assert_eq!(known.len(), 3, "{known:?}");
        assert_eq!(all(&graph["nodes"], "name"), known);
    });
}
