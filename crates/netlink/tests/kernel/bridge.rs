use std::{
    fs, thread,
    time::{Duration, Instant},
};

use cni::Undo;
use netlink::{BridgeSpec, Netlink, Port, PortSpec};

use crate::{add_pod, veth};
use serde_json::Value;

use sandbox::here::{enter, has_flag, json, link, run};

fn spec() -> BridgeSpec {
    BridgeSpec {
        name: "cni0".into(),
        mtu: None,
        vlan_filtering: false,
        promisc: false,
    }
}

fn assign_type() -> String {
    fs::read_to_string("/sys/class/net/cni0/addr_assign_type").unwrap()
}

#[test]
fn a_new_bridge_is_up_and_its_address_is_pinned() {
    enter();
    let netlink = Netlink::open().unwrap();
    let spec = BridgeSpec {
        mtu: Some(1400),
        promisc: true,
        ..spec()
    };
    let bridge = netlink.ensure_bridge(&spec).unwrap();
    let seen = link("cni0");
    assert_eq!(seen["linkinfo"]["info_kind"], "bridge");
    assert!(has_flag(&seen, "UP") && has_flag(&seen, "PROMISC"));
    assert_eq!(seen["mtu"], 1400);
    assert_eq!(bridge.mac.unwrap().to_string(), seen["address"]);
    assert_eq!(bridge.mac.unwrap().0[0] & 3, 2);
    assert!(bridge.up && bridge.promisc);
    assert_eq!(assign_type(), "3\n");
    let accept_ra = fs::read_to_string("/proc/sys/net/ipv6/conf/cni0/accept_ra").unwrap();
    assert_eq!(accept_ra, "0\n");
}

#[test]
fn a_new_bridge_can_resolve_its_pods_at_once() {
    enter();
    Netlink::open().unwrap().ensure_bridge(&spec()).unwrap();
    run("ip link add a0 type veth peer name b0");
    run("ip link set b0 up");
    run("ip link set a0 up master cni0");
    // Detection would take a second; the kernel's worker takes milliseconds.
    let usable = || {
        let addresses = json("ip -j -6 addr show dev cni0");
        let link_local = &addresses[0]["addr_info"][0];
        link_local["scope"] == "link" && link_local["tentative"].is_null()
    };
    let deadline = Instant::now() + Duration::from_millis(500);
    while !usable() {
        assert!(Instant::now() < deadline, "the address is tentative");
    }
}

#[test]
fn its_address_stays_while_ports_come_and_go() {
    enter();
    Netlink::open().unwrap().ensure_bridge(&spec()).unwrap();
    let before = link("cni0")["address"].clone();
    run("ip link add a0 address 02:00:00:00:00:01 type veth peer name b0");
    run("ip link set a0 master cni0");
    assert_eq!(link("cni0")["address"], before);
    run("ip link delete a0");
    assert_eq!(link("cni0")["address"], before);
}

#[test]
fn ensuring_it_again_changes_nothing() {
    enter();
    let netlink = Netlink::open().unwrap();
    let first = netlink.ensure_bridge(&spec()).unwrap();
    let wanted = BridgeSpec {
        mtu: Some(1280),
        ..spec()
    };
    assert_eq!(netlink.ensure_bridge(&wanted).unwrap(), first);
    assert_eq!(link("cni0")["mtu"], 1500);
    // Promiscuous mode is also switched on later, and never off.
    let promisc = BridgeSpec {
        promisc: true,
        ..spec()
    };
    assert!(netlink.ensure_bridge(&promisc).unwrap().promisc);
    assert!(netlink.ensure_bridge(&spec()).unwrap().promisc);
}

#[test]
fn a_foreign_bridge_is_pinned_with_its_address() {
    enter();
    run("ip link add cni0 type bridge");
    run("ip link add a0 address 0a:00:00:00:00:09 type veth peer name b0");
    run("ip link set a0 master cni0");
    assert_ne!(assign_type(), "3\n");
    let bridge = Netlink::open().unwrap().ensure_bridge(&spec()).unwrap();
    assert_eq!(bridge.mac.unwrap().to_string(), "0a:00:00:00:00:09");
    assert_eq!(assign_type(), "3\n");
    assert!(has_flag(&link("cni0"), "UP"));
    run("ip link add a1 address 02:00:00:00:00:01 type veth peer name b1");
    run("ip link set a1 master cni0");
    assert_eq!(link("cni0")["address"], "0a:00:00:00:00:09");
}

#[test]
fn a_bridge_that_lost_its_address_gets_one() {
    enter();
    run("ip link add cni0 type bridge");
    run("ip link add a0 type veth peer name b0");
    run("ip link set a0 master cni0");
    run("ip link delete a0");
    assert_eq!(link("cni0")["address"], "00:00:00:00:00:00");
    let bridge = Netlink::open().unwrap().ensure_bridge(&spec()).unwrap();
    assert!(!bridge.mac.unwrap().is_zero());
    assert_eq!(link("cni0")["address"], bridge.mac.unwrap().to_string());
    assert_eq!(assign_type(), "3\n");
}

#[test]
fn a_bridge_that_cannot_be_created_is_explained() {
    enter();
    let netlink = Netlink::open().unwrap();
    run("ip link add cni0 type veth peer name b0");
    let error = netlink.ensure_bridge(&spec()).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#""cni0" already exists but is not a bridge"#
    );
    for (name, mtu, reason) in [
        ("br0", Some(70000), "invalid argument"),
        ("br0", Some(10), "invalid argument"),
        ("sixteen-letters-", None, "numerical result out of range"),
    ] {
        let name = name.into();
        let text = format!("could not add {name:?}: {reason}");
        let spec = BridgeSpec {
            name,
            mtu,
            ..spec()
        };
        assert_eq!(netlink.ensure_bridge(&spec).unwrap_err().to_string(), text);
    }
}

#[test]
fn many_can_ensure_it_at_once() {
    enter();
    let macs: Vec<_> = thread::scope(|scope| {
        let ensure = || {
            let bridge = Netlink::open().unwrap().ensure_bridge(&spec()).unwrap();
            (bridge.index, bridge.mac)
        };
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(ensure)).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(macs.iter().all(|it| *it == macs[0]), "{macs:?}");
    assert_eq!(link("cni0")["address"], macs[0].1.unwrap().to_string());
}

fn port_spec(bridge: u32) -> PortSpec {
    PortSpec {
        bridge,
        hairpin: true,
        isolated: true,
        up: true,
        alias: Some("podwire net/c1/eth0".into()),
    }
}

fn attach(born_as_port: bool) {
    enter();
    let pod = add_pod("pod");
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec()).unwrap();
    let veth = netlink::VethSpec {
        master: born_as_port.then_some(bridge.index),
        ..veth::spec()
    };
    let pair = netlink.add_veth(&veth, &pod, &mut Undo::new()).unwrap();
    netlink
        .attach_port(&pair.host, &port_spec(bridge.index))
        .unwrap();

    let seen = link("veth1a2b3c4d");
    assert_eq!(seen["master"], "cni0");
    assert_eq!(seen["ifalias"], "podwire net/c1/eth0");
    assert!(has_flag(&seen, "UP"));
    let port = &json("bridge -j -d link show dev veth1a2b3c4d")[0];
    assert_eq!(
        (&port["hairpin"], &port["isolated"]),
        (&true.into(), &true.into())
    );
    let ours = netlink.get_link("veth1a2b3c4d").unwrap();
    let expected = Port {
        hairpin: true,
        isolated: true,
    };
    assert_eq!(ours.port, Some(expected));

    // Switched off again by the same request, and left up.
    let plain = PortSpec {
        hairpin: false,
        isolated: false,
        up: false,
        alias: None,
        ..port_spec(bridge.index)
    };
    netlink.attach_port(&ours, &plain).unwrap();
    let port = &json("bridge -j -d link show dev veth1a2b3c4d")[0];
    assert_eq!(
        (&port["hairpin"], &port["isolated"]),
        (&false.into(), &false.into())
    );
    assert!(has_flag(&link("veth1a2b3c4d"), "UP"));
    assert_eq!(link("veth1a2b3c4d")["ifalias"], "podwire net/c1/eth0");
}

#[test]
fn a_port_is_attached_with_all_its_settings() {
    attach(false);
}

#[test]
fn a_link_created_as_a_port_gets_all_its_settings() {
    attach(true);
}

/// The mode in which the kernel makes link-local addresses, as `ip` shows it.
fn address_mode(name: &str) -> Value {
    json(&format!("ip -j -d link show dev {name}"))[0]["inet6_addr_gen_mode"].clone()
}

#[test]
fn a_port_has_no_link_local_address_and_its_pod_has_one() {
    enter();
    let pod = add_pod("pod");
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec()).unwrap();
    let pair = netlink
        .add_veth(&veth::spec(), &pod, &mut Undo::new())
        .unwrap();
    netlink
        .attach_port(&pair.host, &port_spec(bridge.index))
        .unwrap();
    assert_eq!(address_mode("veth1a2b3c4d"), "none");
    assert_eq!(address_mode("cni0"), "eui64");
    run("ip -n pod link set eth0 up");
    netlink.wait_for_port(pair.host.index).unwrap();

    let addresses = |command: &str| json(command)[0]["addr_info"].as_array().map_or(0, Vec::len);
    let deadline = Instant::now() + Duration::from_secs(5);
    while addresses("ip -n pod -j -6 addr show dev eth0 scope link") == 0 {
        assert!(Instant::now() < deadline, "the pod has no address");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(addresses("ip -j -6 addr show dev veth1a2b3c4d"), 0);
}

#[test]
fn a_port_that_forwards_needs_no_route() {
    enter();
    let pod = add_pod("pod");
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec()).unwrap();
    let pair = netlink
        .add_veth(&veth::spec(), &pod, &mut Undo::new())
        .unwrap();
    netlink
        .attach_port(&pair.host, &port_spec(bridge.index))
        .unwrap();
    run("ip -n pod link set eth0 up");
    let port = netlink.wait_for_port(pair.host.index).unwrap();
    let routes = |device: &str| json(&format!("ip -j -6 route show table local dev {device}"));
    assert_eq!(routes("veth1a2b3c4d")[0]["dst"], "ff00::/8");
    netlink.delete_multicast_route(&port).unwrap();
    assert_eq!(routes("veth1a2b3c4d"), serde_json::json!([]));
    assert_ne!(routes("cni0"), serde_json::json!([]));
    // To delete a route that is gone is no error.
    netlink.delete_multicast_route(&port).unwrap();
}

#[test]
fn a_port_is_attached_where_ipv6_cannot_be() {
    enter();
    let pod = add_pod("pod");
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec()).unwrap();
    let veth = netlink::VethSpec {
        mtu: Some(1000),
        ..veth::spec()
    };
    let pair = netlink.add_veth(&veth, &pod, &mut Undo::new()).unwrap();
    netlink
        .attach_port(&pair.host, &port_spec(bridge.index))
        .unwrap();
    let seen = link("veth1a2b3c4d");
    assert!(has_flag(&seen, "UP"));
    assert_eq!(seen["ifalias"], "podwire net/c1/eth0");
}

#[test]
fn the_call_waits_until_a_port_forwards() {
    enter();
    let pod = add_pod("pod");
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec()).unwrap();
    let pair = netlink
        .add_veth(&veth::spec(), &pod, &mut Undo::new())
        .unwrap();
    netlink
        .attach_port(&pair.host, &port_spec(bridge.index))
        .unwrap();
    // "down", or "lower-layer-down" if another link has the index of the pod's end.
    let error = netlink.wait_for_port(pair.host.index).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("bridge port in error state: "), "{text}");
    assert!(text.ends_with("down"), "{text}");
    run("ip -n pod link set eth0 up");
    netlink.wait_for_port(pair.host.index).unwrap();
    let port = &json("bridge -j -d link show dev veth1a2b3c4d")[0];
    assert_eq!(port["state"], "forwarding");
}

#[test]
fn only_the_call_that_creates_a_bridge_gets_it_before_it_is_up() {
    enter();
    let netlink = Netlink::open().unwrap();
    let mut created = None;
    let bridge = netlink.ensure_bridge_from(None, &spec(), |link| created = Some(link.clone()));
    let (bridge, created) = (bridge.unwrap(), created.unwrap());
    assert!(!created.up && bridge.up);
    assert_eq!((created.index, created.mac), (bridge.index, bridge.mac));
    let never = |_: &netlink::Link| panic!("it exists");
    netlink.ensure_bridge_from(None, &spec(), never).unwrap();
    let found = Some(bridge.clone());
    let again = netlink.ensure_bridge_from(found, &spec(), never).unwrap();
    assert_eq!(again, bridge);
}

#[test]
fn ports_are_listed_by_their_numbers() {
    enter();
    let netlink = Netlink::open().unwrap();
    let bridge = netlink.ensure_bridge(&spec()).unwrap();
    let listed = || {
        let all = netlink.port_indexes(&bridge).unwrap();
        let ports = all.iter().enumerate().filter(|(_, index)| **index != 0);
        ports
            .map(|(number, index)| (number, *index))
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(), []);
    for name in ["a", "b", "c"] {
        run(&format!("ip link add {name}0 type veth peer name {name}1"));
        run(&format!("ip link set {name}0 master cni0"));
    }
    run("ip link set b0 nomaster");
    let index = |name: &str| link(name)["ifindex"].as_u64().unwrap() as u32;
    assert_eq!(listed(), [(1, index("a0")), (3, index("c0"))]);
    let other = netlink.get_link("a0").unwrap();
    assert!(netlink.port_indexes(&other).is_err());
}
