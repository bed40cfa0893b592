//! VXLAN devices and the entries of their peers, seen with ip(8) and bridge(8).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink::{Entry, FLOOD, Mac, Netlink, Overlay, Peers, Vxlan, VxlanPort, VxlanSpec};
use serde_json::Value;

use sandbox::here::{attempt, enter, json, link, run};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// An underlay `eth0` with an address of each family.
fn underlay() -> u32 {
    run("ip link add eth0 type veth peer name far");
    run("ip address add 192.0.2.1/24 dev eth0");
    run("ip address add 2001:db8::1/64 dev eth0 nodad");
    run("ip link set far up");
    run("ip link set eth0 up");
    Netlink::open().unwrap().get_link("eth0").unwrap().index
}

fn spec(link: u32) -> VxlanSpec {
    VxlanSpec {
        name: "vxlan.7".into(),
        vxlan: Vxlan {
            vni: 7,
            port: 4789,
            local: Some(ip("192.0.2.1")),
            link: Some(link),
            group: None,
            ttl: 0,
            learning: false,
            gbp: false,
            udp_checksum: true,
        },
        mac: MAC,
        mtu: 1450,
    }
}

/// A device that is up, with the overlay of a router.
fn routed() -> Overlay {
    let netlink = Netlink::open().unwrap();
    let device = netlink.add_vxlan(&spec(underlay())).unwrap().index;
    netlink.set_up(device).unwrap();
    Overlay {
        device,
        neighbours_on: device,
        learns_peers: false,
        segment: None,
    }
}

fn peer(number: u8, mac: Mac) -> [Entry; 3] {
    let gw = ip(&format!("10.5.{number}.0"));
    [
        Entry::Neighbour { ip: gw, mac },
        Entry::Forward {
            mac,
            vtep: ip(&format!("192.0.2.{number}")),
        },
        Entry::Route {
            dst: IpNetwork::new(gw, 24).unwrap(),
            gw,
        },
    ]
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, last])
}

/// The entries of a device in bridge(8), as `mac dst` pairs, sorted.
fn fdb(device: &str) -> Vec<String> {
    let all = json(&format!("bridge -j fdb show dev {device}"));
    let mut lines: Vec<String> = all
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it.get("dst").is_some())
        .map(|it| format!("{} {}", text(&it["mac"]), text(&it["dst"])))
        .collect();
    lines.sort();
    lines
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn lines(command: &str) -> Vec<String> {
    let all = run(command);
    let mut lines: Vec<String> = all.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

fn vxlan(netlink: &Netlink, name: &str) -> Option<Vxlan> {
    let (link, vxlan) = netlink.find_vxlan(name).unwrap().unwrap();
    assert_eq!(link.name, name);
    vxlan
}

#[test]
fn a_device_has_all_its_settings_in_both_families() {
    enter();
    let eth0 = underlay();
    let netlink = Netlink::open().unwrap();
    let v4 = spec(eth0);
    netlink.add_vxlan(&v4).unwrap();
    let seen = link("vxlan.7");
    let data = &seen["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"]), (&7.into(), &4789.into()));
    assert_eq!(
        (&data["local"], &data["link"]),
        (&"192.0.2.1".into(), &"eth0".into())
    );
    assert_eq!(
        (&data["learning"], &data["udp_csum"]),
        (&false.into(), &true.into())
    );
    assert_eq!(
        (&seen["address"], &seen["mtu"]),
        (&"02:00:00:00:00:01".into(), &1450.into())
    );
    assert_eq!(vxlan(&netlink, "vxlan.7"), Some(v4.vxlan));

    let mut v6 = spec(eth0);
    v6.name = "vxlan.8".into();
    v6.mtu = 1430;
    v6.vxlan = Vxlan {
        vni: 8,
        local: Some(ip("2001:db8::1")),
        group: Some(ip("ff05::1")),
        ttl: 9,
        learning: true,
        gbp: true,
        udp_checksum: false,
        ..v6.vxlan
    };
    netlink.add_vxlan(&v6).unwrap();
    let seen = link("vxlan.8");
    let data = &seen["linkinfo"]["info_data"];
    assert_eq!(
        (&data["local6"], &data["group6"]),
        (&"2001:db8::1".into(), &"ff05::1".into())
    );
    assert_eq!((&data["ttl"], &data["gbp"]), (&9.into(), &true.into()));
    assert_eq!(data["udp_zero_csum6_tx"], true);
    assert_eq!(vxlan(&netlink, "vxlan.8"), Some(v6.vxlan));

    let names: Vec<_> = netlink
        .list_vxlans()
        .unwrap()
        .into_iter()
        .map(|it| (it.name, it.receiving.to_string()))
        .collect();
    let reported = [("vxlan.7", "no option"), ("vxlan.8", "gbp, udp6zerocsumrx")];
    assert_eq!(
        names,
        reported.map(|(name, reported)| (name.into(), reported.into()))
    );
    assert_eq!(vxlan(&netlink, "eth0"), None);
    assert_eq!(netlink.find_vxlan("nope").unwrap(), None);
}

#[test]
fn a_vni_belongs_to_one_device() {
    enter();
    let eth0 = underlay();
    let netlink = Netlink::open().unwrap();
    netlink.add_vxlan(&spec(eth0)).unwrap();
    let other = VxlanSpec {
        name: "other".into(),
        ..spec(eth0)
    };
    assert!(netlink.add_vxlan(&other).unwrap_err().is_exists());
}

#[test]
fn learning_hop_limit_and_suppression_can_be_changed() {
    enter();
    let eth0 = underlay();
    run("ip link add br0 type bridge");
    let netlink = Netlink::open().unwrap();
    let device = netlink.add_vxlan(&spec(eth0)).unwrap();
    netlink.change_vxlan(device.index, true, 5).unwrap();
    let bridge = netlink.get_link("br0").unwrap().index;
    let port = VxlanPort {
        bridge,
        neigh_suppress: true,
    };
    netlink.attach_vxlan(&device, port).unwrap();
    let seen = link("vxlan.7");
    assert_eq!(seen["linkinfo"]["info_data"]["learning"], true);
    assert_eq!(seen["linkinfo"]["info_data"]["ttl"], 5);
    assert_eq!(seen["master"], "br0");
    assert_eq!(seen["linkinfo"]["info_slave_data"]["neigh_suppress"], true);
}

#[test]
fn peers_are_as_ip_and_bridge_write_them() {
    enter();
    let overlay = routed();
    let peers = Peers::open().unwrap();
    let wanted = [peer(2, mac(2)), peer(3, mac(3))].concat();
    let done = peers.reconcile(overlay, &wanted).unwrap();
    assert_eq!((done.added, done.kept, done.removed), (6, 0, 0));
    assert_eq!(done.failed, []);
    assert_eq!(
        fdb("vxlan.7"),
        ["02:00:00:00:01:02 192.0.2.2", "02:00:00:00:01:03 192.0.2.3"]
    );
    assert_eq!(
        lines("ip neighbour show dev vxlan.7"),
        [
            "10.5.2.0 lladdr 02:00:00:00:01:02 PERMANENT",
            "10.5.3.0 lladdr 02:00:00:00:01:03 PERMANENT",
        ]
    );
    assert_eq!(
        lines("ip route show dev vxlan.7"),
        [
            "10.5.2.0/24 via 10.5.2.0 onlink",
            "10.5.3.0/24 via 10.5.3.0 onlink"
        ]
    );
    // A second call changes nothing.
    let again = peers.reconcile(overlay, &wanted).unwrap();
    assert_eq!((again.added, again.kept, again.removed), (0, 6, 0));
}

/// The kernel accepts an IPv6 next hop as on the link unless a route other than the default route
/// leads it to another link.
#[test]
fn an_ipv6_peer_is_reached_though_another_route_covers_it() {
    enter();
    let overlay = routed();
    run("ip route add 2000::/3 via 2001:db8::2 dev eth0");
    let peers = Peers::open().unwrap();
    let of = |number: u8| {
        let gw = ip(&format!("2001:cafe:42:{number}::"));
        let dst = ipnetwork::IpNetwork::new(gw, 64).unwrap();
        let mac = mac(number);
        [Entry::Neighbour { ip: gw, mac }, Entry::Route { dst, gw }]
    };
    let both = [of(2), of(3)].concat();
    let done = peers.reconcile(overlay, &both).unwrap();
    assert_eq!((done.added, &done.failed), (4, &Vec::new()));
    let shown = || lines("ip -6 route show dev vxlan.7 proto boot");
    let route = |number: u8| {
        [
            format!("2001:cafe:42:{number}:: metric 1024 pref medium"),
            format!(
                "2001:cafe:42:{number}::/64 via 2001:cafe:42:{number}:: metric 1024 onlink pref medium"
            ),
        ]
    };
    assert_eq!(shown(), [route(2), route(3)].concat());
    // A second call changes nothing. The route to the next hop goes with the peer.
    let again = peers.reconcile(overlay, &both).unwrap();
    assert_eq!((again.added, again.kept, again.removed), (0, 4, 0));
    let done = peers.reconcile(overlay, &of(3)).unwrap();
    assert_eq!((done.added, done.kept, done.removed), (0, 2, 3));
    assert_eq!(shown(), route(3));
}

#[test]
fn a_refused_route_has_the_kernels_explanation() {
    enter();
    let overlay = routed();
    run("ip link set vxlan.7 down");
    let [_, _, route] = peer(2, mac(2));
    let done = Peers::open().unwrap().reconcile(overlay, &[route]).unwrap();
    let error = done.failed[0].1.to_string();
    assert_eq!(
        error,
        "add route 10.5.2.0/24 via 10.5.2.0: network is down (100): nexthop device is not up"
    );
}

#[test]
fn manual_entries_are_kept_if_wanted_and_removed_if_not() {
    enter();
    let overlay = routed();
    for number in [2, 9] {
        run(&format!(
            "ip neighbour add 10.5.{number}.0 lladdr 02:00:00:00:01:0{number} nud permanent dev vxlan.7"
        ));
        run(&format!(
            "bridge fdb add 02:00:00:00:01:0{number} dst 192.0.2.{number} self permanent dev vxlan.7"
        ));
        run(&format!(
            "ip route add 10.5.{number}.0/24 via 10.5.{number}.0 dev vxlan.7 onlink proto static"
        ));
    }
    let done = Peers::open()
        .unwrap()
        .reconcile(overlay, &peer(2, mac(2)))
        .unwrap();
    assert_eq!((done.added, done.kept, done.removed), (0, 3, 3));
    assert_eq!(done.failed, []);
    assert_eq!(fdb("vxlan.7"), ["02:00:00:00:01:02 192.0.2.2"]);
    assert_eq!(lines("ip route show dev vxlan.7").len(), 1);
}

#[test]
fn a_peer_that_comes_back_with_another_mac_and_address_leaves_nothing_behind() {
    enter();
    let overlay = routed();
    let peers = Peers::open().unwrap();
    peers.reconcile(overlay, &peer(2, mac(2))).unwrap();
    let mut moved = peer(2, mac(7));
    moved[1] = Entry::Forward {
        mac: mac(7),
        vtep: ip("192.0.2.77"),
    };
    let done = peers.reconcile(overlay, &moved).unwrap();
    assert_eq!((done.added, done.kept, done.removed), (2, 1, 1));
    assert_eq!(fdb("vxlan.7"), ["02:00:00:00:01:07 192.0.2.77"]);
    assert_eq!(
        lines("ip neighbour show dev vxlan.7"),
        ["10.5.2.0 lladdr 02:00:00:00:01:07 PERMANENT"]
    );
}

#[test]
fn entries_of_other_devices_are_not_changed() {
    enter();
    let overlay = routed();
    run("ip neighbour add 192.0.2.50 lladdr 02:00:00:00:00:50 nud permanent dev eth0");
    run("ip route add 10.99.0.0/16 via 192.0.2.50 dev eth0");
    run("ip link add vxlan.9 type vxlan id 9 dstport 4789 local 192.0.2.1 dev eth0");
    run("bridge fdb add 02:00:00:00:00:09 dst 192.0.2.9 dev vxlan.9");
    Peers::open().unwrap().reconcile(overlay, &[]).unwrap();
    assert_eq!(lines("ip neighbour show dev eth0 nud permanent").len(), 1);
    assert_eq!(lines("ip route show 10.99.0.0/16").len(), 1);
    assert_eq!(fdb("vxlan.9"), ["02:00:00:00:00:09 192.0.2.9"]);
}

#[test]
fn a_failure_is_reported_and_blocks_nothing() {
    enter();
    let overlay = routed();
    // A foreign route to the subnet of a peer stays.
    run("ip route add 10.5.3.0/24 via 192.0.2.50 dev eth0");
    let foreign = Entry::Forward {
        mac: mac(4),
        vtep: ip("2001:db8::4"),
    };
    let mut wanted = [peer(2, mac(2)), peer(3, mac(3))].concat();
    wanted.push(foreign);
    let done = Peers::open().unwrap().reconcile(overlay, &wanted).unwrap();
    assert_eq!((done.added, done.failed.len()), (5, 2));
    let mut reported: Vec<_> = done.failed.iter().map(|it| it.1.to_string()).collect();
    reported.sort();
    assert_eq!(
        reported,
        [
            "add fdb 02:00:00:00:01:04 dst 2001:db8::4: address family not supported by protocol (97)",
            "add route 10.5.3.0/24 via 10.5.3.0: file exists (17)",
        ]
    );
    assert_eq!(
        lines("ip route show 10.5.3.0/24"),
        ["10.5.3.0/24 via 192.0.2.50 dev eth0"]
    );
    assert_eq!(lines("ip route show dev vxlan.7").len(), 1);
}

#[test]
fn hundreds_of_failures_are_all_reported() {
    enter();
    let overlay = routed();
    let bad = (0..1000_u32).map(|n| Entry::Forward {
        mac: Mac([2, 1, 0, 0, (n >> 8) as u8, n as u8]),
        vtep: ip("2001:db8::4"),
    });
    let mut wanted: Vec<Entry> = bad.collect();
    wanted.extend(peer(2, mac(2)));
    let done = Peers::open().unwrap().reconcile(overlay, &wanted).unwrap();
    assert_eq!((done.added, done.failed.len()), (3, 1000));
    assert!(done.failed.iter().all(|it| it.1.errno() as i32 == 97));
}

#[test]
fn a_segment_floods_to_its_hosts_and_knows_its_pods() {
    enter();
    let eth0 = underlay();
    run("ip link add br0 type bridge");
    run("ip link set br0 up");
    let netlink = Netlink::open().unwrap();
    let device = netlink.add_vxlan(&spec(eth0)).unwrap();
    let bridge = netlink.get_link("br0").unwrap().index;
    let port = VxlanPort {
        bridge,
        neigh_suppress: true,
    };
    netlink.attach_vxlan(&device, port).unwrap();
    netlink.set_up(device.index).unwrap();
    let overlay = Overlay {
        device: device.index,
        neighbours_on: bridge,
        learns_peers: false,
        segment: None,
    };
    let flood = |vtep| Entry::Forward {
        mac: FLOOD,
        vtep: ip(vtep),
    };
    let pod = mac(7);
    let wanted = [
        flood("192.0.2.2"),
        flood("192.0.2.3"),
        Entry::Forward {
            mac: pod,
            vtep: ip("192.0.2.2"),
        },
        Entry::Behind { mac: pod },
        Entry::Neighbour {
            ip: ip("10.5.0.7"),
            mac: pod,
        },
        Entry::Neighbour {
            ip: ip("fd05::7"),
            mac: pod,
        },
    ];
    let peers = Peers::open().unwrap();
    let done = peers.reconcile(overlay, &wanted).unwrap();
    assert_eq!((done.added, done.failed), (6, vec![]));
    assert_eq!(
        fdb("vxlan.7"),
        [
            "00:00:00:00:00:00 192.0.2.2",
            "00:00:00:00:00:00 192.0.2.3",
            "02:00:00:00:01:07 192.0.2.2",
        ]
    );
    let shown = run("bridge fdb show dev vxlan.7");
    assert!(
        shown.contains("02:00:00:00:01:07 master br0 static"),
        "{shown}"
    );
    assert_eq!(lines("ip neighbour show dev br0 nud permanent").len(), 2);
    assert_eq!(peers.reconcile(overlay, &wanted).unwrap().kept, 6);
    let gone = peers.reconcile(overlay, &wanted[1..2]).unwrap();
    assert_eq!((gone.removed, gone.failed), (5, vec![]));
    assert_eq!(fdb("vxlan.7"), ["00:00:00:00:00:00 192.0.2.3"]);
}

#[test]
fn ipv6_peers_are_routed_too() {
    enter();
    let overlay = routed();
    let gw = ip("fd00:5:2::");
    let wanted = [
        Entry::Neighbour { ip: gw, mac: MAC },
        Entry::Route {
            dst: net("fd00:5:2::/64"),
            gw,
        },
    ];
    let peers = Peers::open().unwrap();
    assert_eq!(peers.reconcile(overlay, &wanted).unwrap().added, 2);
    let routes = lines("ip -6 route show fd00:5:2::/64");
    assert!(
        routes[0].contains("via fd00:5:2:: dev vxlan.7"),
        "{routes:?}"
    );
    assert_eq!(peers.reconcile(overlay, &wanted).unwrap().kept, 2);
    assert_eq!(peers.reconcile(overlay, &[]).unwrap().removed, 2);
    assert!(attempt("ip -6 route show fd00:5:2::/64").stdout.is_empty());
}
