//! Bad input: refused with the key at fault, and nothing is left.

use sandbox::{Suite, beyond_peer, conf};
use serde_json::{Value, json};

use crate::fleet::{Fleet, Underlay};
use crate::traffic::WHY;

/// ADD must fail with this, and leave nothing on the host.
#[track_caller]
fn refused(fleet: &Fleet, conf: &Value, code: u64, expected: &str) {
    let pod = fleet.pod(1, "x");
    let before = state(fleet);
    let error = fleet.cni(1).add(conf, &pod, "eth0").error();
    assert_eq!((error.code, error.msg.as_str()), (code, expected), "{conf}");
    assert_eq!(state(fleet), before, "{conf}");
    // A runtime calls DEL after that.
    fleet.cni(1).del(conf, &pod, "eth0").silent();
    fleet.sandbox.remove_pod(&pod);
}

/// What there is on host 1 that an ADD could leave: a host has more to it that settles by itself.
fn state(fleet: &Fleet) -> String {
    fleet.host(1).sh("ip -br link | cut -d' ' -f1 | sort
         ip -o -4 address | tr -s ' ' | cut -d' ' -f2,4
         ip route; ip -6 route | grep -v fe80 || :
         ip neighbour show nud permanent
         nft list ruleset
         find /run/ipam-h1 -name '*.*.*.*' 2>/dev/null | sort || :")
}

#[test]
fn impossible_values_are_refused_with_their_key() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let segment = fleet.segment(1, 5, Underlay::V4);
        let routed = fleet.routed(1, 5, Underlay::V4);
        let peer = |subnet: &str| json!({"vtep": "172.20.2.2", "subnet": subnet});
        for (conf, change, expected) in [
            (&segment, json!({"vni": null}), "vni: missing"),
            (
                &segment,
                json!({"vni": 16777216}),
                "vni: 16777216 is not between 0 and 16777215",
            ),
            (
                &segment,
                json!({"vni": -1}),
                "vni: -1 is not between 0 and 16777215",
            ),
            (
                &segment,
                json!({"port": 0}),
                "port: 0 is not between 1 and 65535",
            ),
            (
                &segment,
                json!({"port": 65536}),
                "port: 65536 is not between 1 and 65535",
            ),
            (
                &segment,
                json!({"ttl": 256}),
                "ttl: 256 is not between 0 and 255",
            ),
            (
                &segment,
                json!({"group": "10.0.0.1"}),
                "group: 10.0.0.1 is not multicast",
            ),
            (
                &segment,
                json!({"local": "172.20.9.9"}),
                "local: 172.20.9.9 is no address of this node",
            ),
            (
                &segment,
                json!({"dev": "eth7"}),
                "dev: there is no interface eth7",
            ),
            (
                &segment,
                json!({"peers": [{"vtep": "172.20.1.2"}]}),
                "peers[0].vtep: 172.20.1.2 is this node",
            ),
            (
                &segment,
                json!({"peers": [{"vtep": "172.20.2.2"}, {"vtep": "172.20.2.2"}]}),
                "peers[1].vtep: 172.20.2.2 is that of peers[0], too",
            ),
            (
                &segment,
                json!({"peers": [{"vtep": "2001:db8:2::2"}]}),
                "peers[0].vtep: 2001:db8:2::2 is not IPv4, as the underlay is",
            ),
            (
                &routed,
                json!({"peers": [peer("10.5.2.0/24"), {"vtep": "172.20.3.2", "subnet": "10.5.2.128/25"}]}),
                "peers[1].subnet: 10.5.2.128/25 overlaps 10.5.2.0/24 of peers[0]",
            ),
            (
                &routed,
                json!({"peers": [peer("10.5.0.0/16")]}),
                "peers[0].subnet: 10.5.0.0/16 overlaps 10.5.1.0/24, the subnet of this node",
            ),
            (
                &routed,
                json!({"peers": [{"vtep": "172.20.2.2"}]}),
                "peers[0].subnet: missing: in mode l3 a peer is where a subnet is",
            ),
            (
                &routed,
                json!({"ipam": null}),
                "ipam: missing: mode l3 routes to the pods' addresses",
            ),
            (
                &routed,
                json!({"mode": "l4"}),
                "mode: \"l4\" is neither l2 nor l3",
            ),
            (
                &routed,
                json!({"mtu": 9000}),
                "mtu: 9000 is more than 1450, which is what 1500 of eth0 less 50 for VXLAN leaves",
            ),
        ] {
            refused(&fleet, &conf::with(conf, change), 7, expected);
        }
        // What the tunnel, or the node, needs, behind the tunnel.
        let at = |vtep: &str, subnet: &str| json!({"vtep": vtep, "subnet": subnet});
        let over_ipv6 = fleet.routed(1, 5, Underlay::V6);
        for (conf, peers, expected) in [
            (
                &routed,
                json!([at("172.20.2.12", "172.20.2.8/29")]),
                "peers[0].subnet: 172.20.2.8/29 holds 172.20.2.12, which is the vtep of a peer",
            ),
            (
                &over_ipv6,
                json!([
                    at("2001:db8:3::2", "10.5.3.0/24"),
                    at("2001:db8:2::2", "2001:db8:3::/64")
                ]),
                "peers[1].subnet: 2001:db8:3::/64 holds 2001:db8:3::2, which is the vtep of a peer",
            ),
            (
                &routed,
                json!([at("172.20.2.2", "172.20.1.2/31")]),
                "peers[0].subnet: 172.20.1.2/31 holds 172.20.1.2, which is this node",
            ),
            (
                &routed,
                json!([at("172.20.2.2", "172.20.1.0/31")]),
                "peers[0].subnet: 172.20.1.0/31 holds 172.20.1.1, which is a router of this node",
            ),
            (
                &over_ipv6,
                json!([at("2001:db8:2::2", "2001:db8:1::/127")]),
                "peers[0].subnet: 2001:db8:1::/127 holds 2001:db8:1::1, which is a router of this node",
            ),
        ] {
            refused(
                &fleet,
                &conf::with(conf, json!({"peers": peers})),
                7,
                expected,
            );
        }
        for (conf, subnet, ip) in [
            (&routed, "172.20.2.0/24", "172.20.2.2"),
            (&routed, "172.20.1.0/30", "172.20.1.2"),
            (&over_ipv6, "2001:db8:2::/64", "2001:db8:2::2"),
        ] {
            let own = json!({"ranges": [[{"subnet": subnet}]], "type": "host-local", "dataDir": "/run/ipam-h1"});
            let expected =
                format!("ipam: {subnet} is the pods' and holds {ip}, which the tunnel needs");
            refused(
                &fleet,
                &conf::with(conf, json!({"ipam": own})),
                7,
                &expected,
            );
        }
        let error = "failed to load netconf: peers[0].vtep: invalid IP address: nonsense";
        let nonsense = conf::with(&segment, json!({"peers": [{"vtep": "nonsense"}]}));
        refused(&fleet, &nonsense, 7, error);
    });
}

#[test]
fn an_underlay_without_an_address_of_the_family_is_refused() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        fleet
            .host(1)
            .sh("ip -6 address flush dev eth0 scope global; ip -6 route replace default dev eth0");
        let conf = fleet.segment(1, 5, Underlay::V6);
        let expected = "underlay: eth0 has no IPv6 address";
        refused(&fleet, &conf, 7, expected);
        let status = fleet.cni(1).status(&conf::at(&conf, "1.1.0")).error();
        assert_eq!(status.msg, expected, "the subject once");
        fleet.host(1).sh("ip -6 route del default");
        let expected = "dev: missing, and there is no IPv6 default route to take it from";
        refused(&fleet, &conf, 7, expected);
    });
}

#[test]
fn a_vni_that_is_in_use_with_other_parameters_is_reported() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let conf = fleet.segment(1, 5, Underlay::V4);
        let host = fleet.host(1);
        let device = |name: &str, port: u32| {
            host.sh(&format!(
                "ip link add {name} type vxlan id 5 dstport {port} local 172.20.1.2 dev eth0"
            ));
        };
        device("flannel.5", 4789);
        refused(
            &fleet,
            &conf,
            7,
            "vni: 5 is in use with other parameters: by flannel.5, on port 4789",
        );
        host.sh("ip link del flannel.5");
        device("vxlan.5", 8472);
        let expected = "vni: 5 is in use with other parameters: vxlan.5 has port 8472, not 4789";
        refused(&fleet, &conf, 7, expected);
        host.sh("ip link del vxlan.5; ip link add vxlan.5 type veth peer name other");
        refused(&fleet, &conf, 7, "vni: vxlan.5 is there already, as a veth");
        host.sh("ip link del vxlan.5");
        fleet.add(1, "a", &conf);
        let other = conf::with(&conf, json!({"name": "another"}));
        refused(&fleet, &other, 7, "vni: 5 is in use by network \"net5\"");
        let moved = conf::with(&conf, json!({"port": 5000}));
        let expected = "vni: 5 is in use with other parameters: vxlan.5 has port 4789, not 5000";
        refused(&fleet, &moved, 7, expected);
    });
}

/// STATUS and ADD of a network, and what there is after them: the same, or nothing.
#[track_caller]
fn foreseen(fleet: &Fleet, conf: &Value, expected: &str) {
    let status = fleet.status(1, conf).error();
    assert_eq!((status.code, status.msg.as_str()), (50, expected));
    refused(fleet, conf, 7, expected);
}

/// Devices of one port share a socket, and agree in what it takes.
#[test]
fn status_reports_a_port_that_another_device_uses_differently() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let host = fleet.host(1);
        let plain = fleet.segment(1, 5, Underlay::V4);
        let gbp = conf::with(&fleet.segment(1, 6, Underlay::V4), json!({"gbp": true}));
        fleet.add(1, "a", &plain);
        let expected =
            "port: 4789 is in use with other parameters: by vxlan.5, which has no option, not gbp";
        foreseen(&fleet, &gbp, expected);
        // Over IPv6, it is another socket.
        let over_ipv6 = fleet.segment(1, 8, Underlay::V6);
        fleet.add(1, "b", &conf::with(&over_ipv6, json!({"gbp": true})));
        let unchecked = fleet.segment(1, 9, Underlay::V6);
        let unchecked = conf::with(&unchecked, json!({"gbp": true, "udpChecksum": false}));
        let expected = "port: 4789 is in use with other parameters: by vxlan.8, which has gbp, not gbp, udp6zerocsumrx";
        foreseen(&fleet, &unchecked, expected);
        // A device that is ours and down.
        host.sh("ip link set vxlan.5 down
                 ip link add other type vxlan id 99 dstport 4789 gbp local 172.20.1.2 dev eth0
                 ip link set other up");
        let expected =
            "port: 4789 is in use with other parameters: by other, which has gbp, not no option";
        foreseen(&fleet, &plain, expected);
        host.sh("ip link del other");
        fleet.status(1, &plain).silent();
        // What is no device at all.
        let free = conf::with(&fleet.segment(1, 10, Underlay::V4), json!({"port": 5000}));
        fleet.status(1, &free).silent();
        let server = host.start(&["nc", "-n", "-u", "-l", "172.20.1.2", "5000"]);
        host.wait_until("it listens", |host| {
            !host.sh("ss -Hlun 'sport = :5000'").is_empty()
        });
        foreseen(&fleet, &free, "port: 5000 is in use by another program");
        drop(server);
    });
}

/// flannel has a device on the same port, and goes on with it.
#[test]
fn a_port_is_shared_with_a_device_of_another_program() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        for (host, other) in [(1, 2), (2, 1)] {
            fleet.host(host).sh(&format!(
                "ip link add flannel.1 type vxlan id 1 dstport 4789 local 172.20.{host}.2 dev eth0 nolearning
                 ip address add 10.244.{host}.0/32 dev flannel.1
                 ip link set flannel.1 address 02:00:00:00:01:0{host} up
                 ip neigh add 10.244.{other}.0 lladdr 02:00:00:00:01:0{other} dev flannel.1 nud permanent
                 bridge fdb add 02:00:00:00:01:0{other} dst 172.20.{other}.2 dev flannel.1
                 ip route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"
            ));
        }
        // Host 2 is no peer of ours.
        let mut conf = fleet.routed(1, 5, Underlay::V4);
        conf["peers"] = json!([{"vtep": "172.20.9.2", "subnet": "10.5.9.0/24"}]);
        fleet.status(1, &conf).silent();
        fleet.add(1, "a", &conf);
        assert_eq!(fleet.host(1).ping("10.244.2.0", 2), [true, true]);
        assert_eq!(fleet.host(2).ping("10.244.1.0", 2), [true, true]);
    });
}

#[test]
fn networks_that_cannot_be_on_one_node_are_found_in_their_directory() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let net5 = fleet.segment(1, 5, Underlay::V4);
        let gbp = conf::with(&fleet.segment(1, 6, Underlay::V4), json!({"gbp": true}));
        let same = conf::with(&net5, json!({"name": "again"}));
        let dir = fleet.sandbox.dir().join("net.d-h1");
        for conf in [&gbp, &same, &net5] {
            let name = conf["name"].as_str().expect("a name");
            fleet
                .sandbox
                .write(dir.join(format!("{name}.conf")), conf.to_string());
        }
        let dir = dir.display().to_string();
        let podwire = Suite::Ours.dir().join("podwire").display().to_string();
        let done = fleet.host(1).run(&[&podwire, "validate", &dir]);
        assert_eq!(done.code, 1, "{done:?}");
        for expected in [
            "net6.conf: error: gbp: with, and network \"net5\" without, both on port 4789 (",
            "net5.conf: error: vni: 5 is that of network \"again\", too (",
        ] {
            assert!(done.stdout.contains(expected), "{expected}: {done:?}");
        }
    });
}

#[test]
fn a_failed_add_leaves_no_veth_and_no_address() {
    beyond_peer(WHY, || {
        for mode in [Fleet::segment, Fleet::routed] {
            let fleet = Fleet::new(1);
            let conf = mode(&fleet, 1, 5, Underlay::V4);
            let pod = fleet.add(1, "a", &conf);
            let before = state(&fleet);
            // The interface is there already.
            let other = fleet.cni(1).id("another").add(&conf, &pod, "eth0").error();
            assert!(other.msg.contains("already exists"), "{other:?}");
            assert_eq!(state(&fleet), before);
        }
    });
}
