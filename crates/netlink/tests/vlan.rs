//! VLANs on bridge ports, for a kernel that supports them.
//!
//! A plain `cargo test` does not run it (Cargo.toml). `tests/vm/run` has such a kernel: build the test
//! with `cargo test -p netlink --test vlan --no-run` and pass the executable.

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use netlink::{BridgeSpec, Netlink, PortVlan};

use sandbox::here::{enter, json, link, run};

fn spec(vlan_filtering: bool) -> BridgeSpec {
    BridgeSpec {
        name: "cni0".into(),
        mtu: None,
        vlan_filtering,
        promisc: false,
    }
}

fn filters() -> bool {
    link("cni0")["linkinfo"]["info_data"]["vlan_filtering"] == 1
}

/// The VLANs of a port in `bridge vlan show`: id, and flags in one word.
fn seen(port: &str) -> Vec<(u64, String)> {
    let command = format!("bridge -j -compressvlans vlan show dev {port}");
    let ports = json(&command);
    let mut all = Vec::new();
    for vlan in ports[0]["vlans"].as_array().into_iter().flatten() {
        let first = vlan["vlan"].as_u64().unwrap();
        let last = vlan["vlanEnd"].as_u64().unwrap_or(first);
        let flags: Vec<&str> = vlan["flags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|flag| flag.as_str())
            .collect();
        all.extend((first..=last).map(|vid| (vid, flags.join(" "))));
    }
    all
}

fn port(netlink: &Netlink) -> u32 {
    run("ip link add a0 type veth peer name b0");
    run("ip link set a0 master cni0");
    netlink.get_link("a0").unwrap().index
}

#[test]
fn a_bridge_is_created_or_converted_to_filter() {
    enter();
    let netlink = Netlink::open().unwrap();
    let plain = netlink.ensure_bridge(&spec(false)).unwrap();
    assert_eq!(plain.vlan_filtering, Some(false));
    assert!(!filters());
    let converted = netlink.ensure_bridge(&spec(true)).unwrap();
    assert_eq!(converted.vlan_filtering, Some(true));
    assert!(filters());
    // A bridge that filters stays so.
    netlink.ensure_bridge(&spec(false)).unwrap();
    assert!(filters());
    netlink.delete_link("cni0").unwrap();
    netlink.ensure_bridge(&spec(true)).unwrap();
    assert!(filters());
}

#[test]
fn vlans_of_a_port_come_and_go() {
    enter();
    let netlink = Netlink::open().unwrap();
    netlink.ensure_bridge(&spec(true)).unwrap();
    let port = port(&netlink);
    // The kernel adds every new port to VLAN 1.
    assert_eq!(
        netlink.list_port_vlans(port).unwrap(),
        [PortVlan::native(1)]
    );
    netlink.delete_port_vlans(port, &[1]).unwrap();
    assert_eq!(netlink.list_port_vlans(port).unwrap(), []);
    assert_eq!(seen("a0"), []);

    let wanted: Vec<PortVlan> = [PortVlan::native(100)]
        .into_iter()
        .chain([200, 300, 301, 302, 400].map(PortVlan::tagged))
        .collect();
    netlink.add_port_vlans(port, &wanted).unwrap();
    assert_eq!(netlink.list_port_vlans(port).unwrap(), wanted);
    let expected: Vec<(u64, String)> = wanted
        .iter()
        .map(|vlan| {
            let flags = if vlan.pvid {
                "PVID Egress Untagged"
            } else {
                ""
            };
            (vlan.vid.into(), flags.to_owned())
        })
        .collect();
    assert_eq!(seen("a0"), expected);

    netlink.delete_port_vlans(port, &[200, 301]).unwrap();
    let left: Vec<u64> = seen("a0").into_iter().map(|(vid, _)| vid).collect();
    assert_eq!(left, [100, 300, 302, 400]);
}

#[test]
fn a_trunk_may_have_all_vlans() {
    enter();
    let netlink = Netlink::open().unwrap();
    netlink.ensure_bridge(&spec(true)).unwrap();
    let port = port(&netlink);
    let all: Vec<PortVlan> = (2..=4094).map(PortVlan::tagged).collect();
    netlink.add_port_vlans(port, &all).unwrap();
    assert_eq!(seen("a0").len(), 4094);
    assert_eq!(netlink.list_port_vlans(port).unwrap().len(), 4094);
    let vids: Vec<u16> = (1..=4094).collect();
    netlink.delete_port_vlans(port, &vids).unwrap();
    assert_eq!(seen("a0"), []);
}

#[test]
fn only_the_ports_own_vlans_are_listed() {
    enter();
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec(true)).unwrap();
    let port = port(&netlink);
    run("ip link add a1 type veth peer name b1");
    run("ip link set a1 master cni0");
    run("bridge vlan add dev a1 vid 7");
    run("bridge vlan add dev cni0 vid 8 self");
    assert_eq!(
        netlink.list_port_vlans(port).unwrap(),
        [PortVlan::native(1)]
    );
    let own = netlink.list_port_vlans(bridge.index).unwrap();
    assert_eq!(own, [PortVlan::native(1), PortVlan::tagged(8)]);
}
