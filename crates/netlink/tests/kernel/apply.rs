use std::{
    fs,
    time::{Duration, Instant},
};

use crate::add_pod;
use cni::Undo;
use netlink::{
    BridgeSpec, Configured, Dad, Interface, InterfaceAddress, Layer3, Mac, Netlink, PortSpec,
    RouteSpec, VethSpec,
};
use netns::NetNs;

use sandbox::here::{enter, json, ping, pod_link, run};

/// A bridge with the gateway addresses of 10.1.0.0/24 and fd00:1::/64.
pub fn bridge() -> netlink::Link {
    let spec = BridgeSpec {
        name: "cni0".into(),
        mtu: None,
        vlan_filtering: false,
        promisc: false,
    };
    let bridge = Netlink::open().unwrap().ensure_bridge(&spec).unwrap();
    run("ip address add 10.1.0.1/24 dev cni0");
    run("ip address add fd00:1::1/64 dev cni0 nodad");
    bridge
}

/// Attaches a pod to the bridge, as the bridge plugin does. Names and hardware addresses are derived
/// from `number`.
pub fn plug(bridge: &netlink::Link, pod: &NetNs, number: u8) -> netlink::VethPair {
    let netlink = Netlink::open().unwrap();
    let veth = VethSpec {
        host_name: format!("veth{number}"),
        host_mac: Mac([2, 0, 0, 0, 1, number]),
        container_name: "eth0".into(),
        container_mac: Mac([2, 0, 0, 0, 2, number]),
        mtu: None,
        master: Some(bridge.index),
    };
    let pair = netlink.add_veth(&veth, pod, &mut Undo::new()).unwrap();
    let port = PortSpec {
        bridge: bridge.index,
        hairpin: false,
        isolated: false,
        up: true,
        alias: None,
    };
    netlink.attach_port(&pair.host, &port).unwrap();
    pair
}

fn address(address: &str, gateway: Option<&str>) -> InterfaceAddress {
    InterfaceAddress {
        address: address.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
    }
}

fn route(dst: &str) -> RouteSpec {
    RouteSpec::to(dst.parse().unwrap())
}

/// The wanted state of the interface eth0 of a pod.
#[derive(Clone)]
pub struct Wanted {
    addresses: Vec<InterfaceAddress>,
    routes: Vec<RouteSpec>,
    prefix_routes: Option<Vec<RouteSpec>>,
    dad: Dad,
}

pub fn configure(pod: &NetNs, wanted: &Wanted) -> anyhow::Result<Configured> {
    let interface = Interface {
        alias: None,
        accept_ra: None,
        name: "eth0".into(),
        dad: wanted.dad,
        notify: true,
    };
    netlink::enter(pod, interface)?.configure(&Layer3 {
        addresses: wanted.addresses.clone(),
        routes: wanted.routes.clone(),
        prefix_routes: wanted.prefix_routes.clone(),
    })
}

pub fn dual_stack(host: u8) -> Wanted {
    Wanted {
        addresses: vec![
            address(&format!("10.1.0.{host}/24"), Some("10.1.0.1")),
            address(&format!("fd00:1::{host}/64"), Some("fd00:1::1")),
        ],
        routes: vec![route("0.0.0.0/0"), route("::/0")],
        prefix_routes: None,
        dad: Dad::Off,
    }
}

fn setting(pod: &str, key: &str) -> String {
    let command = format!("ip netns exec {pod} cat /proc/sys/net/{key}");
    run(&command).trim_end().to_owned()
}

/// Attaches a pod with a port and an address of these numbers, from the port to the announcement,
/// as a plugin does.
pub fn attach(bridge: &netlink::Link, pod: &NetNs, port: u8, address: u8) {
    let pair = plug(bridge, pod, port);
    let configured = configure(pod, &dual_stack(address)).unwrap();
    assert_eq!(configured.link.index, pair.container.index);
    assert_eq!(configured.link.mac, Some(pair.container.mac));
    Netlink::open()
        .unwrap()
        .wait_for_port(pair.host.index)
        .unwrap();
    configured.announce().unwrap();
}

fn one_pod(wanted: &Wanted) -> (NetNs, anyhow::Result<Configured>) {
    enter();
    let bridge = bridge();
    let pod = add_pod("pod");
    plug(&bridge, &pod, 2);
    let configured = configure(&pod, wanted);
    (pod, configured)
}

#[test]
fn pods_reach_each_other_and_their_gateway() {
    enter();
    let bridge = bridge();
    for number in [2, 3] {
        let name = format!("pod{number}");
        attach(&bridge, &add_pod(&name), number, number);
    }
    for ip in ["10.1.0.1", "10.1.0.3", "fd00:1::1", "fd00:1::3"] {
        assert!(ping("pod2", ip, 1), "{ip}");
    }
    let routes = run("ip -n pod2 route show default") + &run("ip -n pod2 -6 route show default");
    assert!(routes.contains("default via 10.1.0.1 dev eth0"), "{routes}");
    assert!(
        routes.contains("default via fd00:1::1 dev eth0"),
        "{routes}"
    );
}

#[test]
fn the_host_does_not_change() {
    enter();
    let key = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
    let before = fs::read_to_string(key).unwrap();
    let bridge = bridge();
    let pod = add_pod("pod");
    plug(&bridge, &pod, 2);
    // Not the link-local address, nor flags: they come with the carrier.
    let addresses = || {
        let bridge = json("ip -j address show dev cni0 scope global");
        let seen = bridge[0]["addr_info"].as_array().unwrap().clone();
        seen.into_iter()
            .map(|it| (it["local"].clone(), it["prefixlen"].clone()))
            .collect::<Vec<_>>()
    };
    let addresses_before = addresses();
    configure(&pod, &dual_stack(2)).unwrap();
    assert_eq!(addresses(), addresses_before);
    assert_eq!(fs::read_to_string(key).unwrap(), before);
    assert_eq!(run("ip route show default"), "");
}

#[test]
fn settings_are_made_in_the_pod() {
    enter();
    let bridge = bridge();
    let pod = add_pod("pod");
    plug(&bridge, &pod, 2);
    for interface in ["lo", "eth0"] {
        let write = format!("echo 1 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        fs::write("/run/write", write).unwrap();
        run("ip netns exec pod sh /run/write");
    }
    configure(&pod, &dual_stack(2)).unwrap();
    for (key, value) in [
        ("ipv4/conf/eth0/arp_notify", "1"),
        ("ipv6/conf/eth0/ndisc_notify", "1"),
        ("ipv6/conf/eth0/accept_dad", "0"),
        ("ipv6/conf/eth0/disable_ipv6", "0"),
        ("ipv6/conf/lo/disable_ipv6", "0"),
        ("ipv6/conf/eth0/keep_addr_on_down", "1"),
    ] {
        assert_eq!(setting("pod", key), value, "{key}");
    }
}

#[test]
fn without_detection_ipv6_costs_no_wait() {
    enter();
    let bridge = bridge();
    let pod = add_pod("pod");
    plug(&bridge, &pod, 2);
    let start = Instant::now();
    configure(&pod, &dual_stack(2)).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    let seen = json("ip -n pod -j -6 address show dev eth0 tentative");
    assert!(!seen.to_string().contains("fd00"), "{seen}");
}

#[test]
fn with_detection_the_call_waits_for_it() {
    let wanted = Wanted {
        dad: Dad::On,
        ..dual_stack(2)
    };
    let start = Instant::now();
    let (_pod, configured) = one_pod(&wanted);
    configured.unwrap();
    let took = start.elapsed();
    let limits = Duration::from_millis(300)..Duration::from_secs(5);
    assert!(limits.contains(&took), "{took:?}");
    assert_eq!(setting("pod", "ipv6/conf/eth0/enhanced_dad"), "1");
    let seen = run("ip -n pod -6 address show dev eth0 tentative");
    assert_eq!(seen, "", "{seen}");
}

#[test]
fn a_duplicate_address_is_reported_as_in_go() {
    enter();
    let bridge = bridge();
    let (one, two) = (add_pod("one"), add_pod("two"));
    plug(&bridge, &one, 2);
    configure(&one, &dual_stack(2)).unwrap();
    plug(&bridge, &two, 3);
    // The first probe may be sent before the bridge forwards for the port.
    run("ip netns exec two sysctl -qw net.ipv6.conf.eth0.dad_transmits=2");
    let same = Wanted {
        dad: Dad::On,
        ..dual_stack(2)
    };
    let error = configure(&two, &same).unwrap_err();
    assert_eq!(
        error.to_string(),
        "link eth0 has address fd00:1::2 in DADFAILED state"
    );
}

#[test]
fn the_wait_for_a_carrier_is_short() {
    enter();
    let pod = add_pod("pod");
    run("ip link add host0 type veth peer name eth0 netns pod");
    // Without routes: the gateway cannot be reached over a link that is down.
    let wanted = Wanted {
        dad: Dad::Kernel,
        routes: vec![],
        ..dual_stack(2)
    };
    let start = Instant::now();
    configure(&pod, &wanted).unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn every_option_of_a_route_is_applied() {
    let mut wanted = dual_stack(2);
    wanted.routes = vec![
        RouteSpec {
            mtu: Some(1280),
            advmss: Some(1200),
            priority: Some(5),
            ..route("10.8.0.0/16")
        },
        RouteSpec {
            table: Some(200),
            gw: Some("10.1.0.9".parse().unwrap()),
            ..route("0.0.0.0/0")
        },
    ];
    let (pod, configured) = one_pod(&wanted);
    configured.unwrap();
    let main = &json("ip -n pod -j route show 10.8.0.0/16")[0];
    assert_eq!(main["gateway"], "10.1.0.1");
    assert_eq!(main["metric"], 5);
    assert_eq!(main["metrics"][0]["mtu"], 1280);
    let other = &json("ip -n pod -j route show table 200")[0];
    assert_eq!(other["gateway"], "10.1.0.9");
    // CHECK reads the table of each route.
    let inside = Netlink::open_in(&pod).unwrap();
    inside.check_routes(&wanted.routes).unwrap();
    run("ip -n pod route flush table 200");
    let error = inside.check_routes(&wanted.routes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Expected Route 0.0.0.0/0 via 10.1.0.9 table 200 not found in routing table"
    );
}

#[test]
fn routes_to_the_networks_are_replaced() {
    let mut wanted = dual_stack(2);
    let through = |dst: &str, gw: &str| RouteSpec {
        gw: Some(gw.parse().unwrap()),
        ..route(dst)
    };
    wanted.prefix_routes = Some(vec![
        RouteSpec {
            scope: Some(253),
            ..route("10.1.0.1/32")
        },
        through("10.1.0.0/24", "10.1.0.1"),
        route("fd00:1::1/128"),
        through("fd00:1::/64", "fd00:1::1"),
    ]);
    let (_pod, configured) = one_pod(&wanted);
    configured.unwrap();
    for (family, network) in [("-4", "10.1.0.0/24"), ("-6", "fd00:1::/64")] {
        let seen = json(&format!("ip -n pod -j {family} route show {network}"));
        assert_eq!(seen.as_array().unwrap().len(), 1, "{seen}");
        assert!(seen[0]["gateway"].is_string(), "{seen}");
    }
    let default = json("ip -n pod -j -6 route show default");
    assert_eq!(default[0]["gateway"], "fd00:1::1");
}

#[test]
fn a_repeated_route_is_added_once() {
    let through = |dst: &str| RouteSpec {
        gw: Some("10.1.0.1".parse().unwrap()),
        ..route(dst)
    };
    for dst in ["0.0.0.0/0", "10.9.0.0/16"] {
        let mut wanted = dual_stack(2);
        wanted.routes = vec![route(dst), through(dst), route(dst)];
        let (_pod, configured) = one_pod(&wanted);
        configured.unwrap();
        let seen = json(&format!("ip -n pod -j route show {dst}"));
        assert_eq!(seen.as_array().unwrap().len(), 1, "{seen}");
    }
}

#[test]
fn a_route_that_the_kernel_refuses_fails_as_in_go() {
    let mut wanted = dual_stack(2);
    wanted.routes = vec![RouteSpec {
        gw: Some("192.0.2.1".parse().unwrap()),
        ..route("10.9.0.0/16")
    }];
    let (_pod, configured) = one_pod(&wanted);
    assert_eq!(
        configured.unwrap_err().to_string(),
        "failed to add route '{10.9.0.0 ffff0000} via 192.0.2.1 dev eth0 metric 0 \
         (Scope: universe, Table: 0)': network is unreachable"
    );
}

#[test]
fn a_repeated_address_fails_as_in_go() {
    let mut wanted = dual_stack(2);
    wanted.addresses.truncate(1);
    wanted.addresses.push(wanted.addresses[0]);
    let (_pod, configured) = one_pod(&wanted);
    assert_eq!(
        configured.unwrap_err().to_string(),
        r#"failed to add IP addr 10.1.0.2/24 to "eth0": file exists"#
    );
}

#[test]
fn without_addresses_the_link_is_brought_up() {
    let wanted = Wanted {
        addresses: vec![],
        routes: vec![],
        ..dual_stack(2)
    };
    let (_pod, configured) = one_pod(&wanted);
    configured.unwrap().announce().unwrap();
    assert_eq!(pod_link("pod", "eth0")["operstate"], "UP");
}

#[test]
fn a_missing_interface_is_named() {
    enter();
    let pod = add_pod("pod");
    let error = configure(&pod, &dual_stack(2)).unwrap_err();
    assert_eq!(error.to_string(), "find link eth0: Link not found");
}

#[test]
fn check_detects_changes() {
    let wanted = dual_stack(2);
    let (pod, configured) = one_pod(&wanted);
    configured.unwrap();
    let inside = Netlink::open_in(&pod).unwrap();
    let check = || {
        inside
            .check_addresses("eth0", &wanted.addresses)
            .and_then(|()| inside.check_routes(&wanted.routes))
            .map_err(|error| error.to_string())
    };
    assert_eq!(check(), Ok(()));
    run("ip -n pod -6 route del default");
    assert_eq!(
        check().unwrap_err(),
        "Expected Route ::/0 not found in routing table"
    );
    run("ip -n pod route del 10.1.0.0/24");
    assert_eq!(
        check().unwrap_err(),
        "Failed to find Gateway 10.1.0.1 for interface eth0"
    );
    run("ip -n pod address del 10.1.0.2/24 dev eth0");
    run("ip -n pod address add 10.1.0.2/25 dev eth0");
    assert_eq!(
        check().unwrap_err(),
        "Failed to match addr 10.1.0.2/24 on interface eth0"
    );
}
