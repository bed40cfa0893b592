//! How much fits.

use sandbox::{Netns, beyond_peer, conf};
use serde_json::json;

use crate::fleet::{BOTH, Fleet, Underlay, addresses};
use crate::traffic::{MODES, WHY, silent};

/// A ping that must not be fragmented, with so many bytes of IP in all.
fn ping(pod: &Netns, ip: &str, bytes: u32) -> sandbox::Finished {
    let header = if ip.contains(':') { 48 } else { 28 };
    let size = (bytes - header).to_string();
    pod.run(&[
        "ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, ip,
    ])
}

fn room(underlay: Underlay) -> u32 {
    match underlay {
        Underlay::V4 => 1450,
        Underlay::V6 => 1430,
    }
}

#[test]
fn a_full_packet_crosses_and_one_byte_more_is_reported() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            for underlay in BOTH {
                let fleet = Fleet::new(2);
                let a = fleet.add(1, "a", &make(&fleet, 1, 5, underlay));
                let b = fleet.add(2, "b", &make(&fleet, 2, 5, underlay));
                let room = room(underlay);
                for link in [a.link("eth0"), fleet.host(1).link("vxlan.5")] {
                    assert_eq!(link.expect("a link")["mtu"], room);
                }
                let none: [String; 0] = [];
                assert_eq!(silent(&a, &addresses(&b)), none);
                for ip in addresses(&b) {
                    let fits = ping(&a, &ip, room);
                    assert_eq!(fits.code, 0, "{mode} over {underlay:?}: {fits:?}");
                    let more = ping(&a, &ip, room + 1);
                    assert_ne!(more.code, 0, "{mode} over {underlay:?}");
                    let output = format!("{}{}", more.stdout, more.stderr).to_lowercase();
                    assert!(output.contains("message too long"), "{more:?}");
                }
            }
        }
    });
}

/// What is forwarded into the network: a pod whose interface has a larger MTU.
#[test]
fn a_router_answers_packet_too_big() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let a = fleet.add(1, "a", &fleet.routed(1, 5, Underlay::V4));
        let b = fleet.add(2, "b", &fleet.routed(2, 5, Underlay::V4));
        let veth = fleet
            .host(1)
            .sh("ip -br link show type veth | grep -v ^eth0 | cut -d@ -f1");
        let bridge = fleet
            .host(1)
            .sh("ip -br link show type bridge | cut -d' ' -f1");
        fleet.host(1).sh(&format!(
            "ip link set {} mtu 1500; ip link set {} mtu 1500",
            veth.trim(),
            bridge.trim()
        ));
        a.sh("ip link set eth0 mtu 1500");
        for ip in addresses(&b) {
            let more = ping(&a, &ip, 1451);
            let output = format!("{}{}", more.stdout, more.stderr).to_lowercase();
            let reported = ["frag needed", "packet too big"]
                .iter()
                .any(|it| output.contains(it));
            assert!(reported && output.contains("1450"), "{ip}: {output}");
        }
    });
}

#[test]
fn an_mtu_above_what_fits_is_refused_and_a_smaller_one_taken() {
    beyond_peer(WHY, || {
        for (underlay, overhead) in [(Underlay::V4, 50), (Underlay::V6, 70)] {
            let fleet = Fleet::new(1);
            let pod = fleet.pod(1, "a");
            let before = fleet.host(1).links();
            let conf = fleet.routed(1, 5, underlay);
            let large = conf::with(&conf, json!({"mtu": 1500}));
            let error = fleet.cni(1).add(&large, &pod, "eth0").error();
            let room = 1500 - overhead;
            let expected = format!(
                "mtu: 1500 is more than {room}, which is what 1500 of eth0 less {overhead} for VXLAN leaves"
            );
            assert_eq!((error.code, error.msg), (7, expected));
            assert_eq!(fleet.host(1).links(), before);
            let small = conf::with(&conf, json!({"mtu": 1300}));
            fleet.cni(1).add(&small, &pod, "eth0").result();
            assert_eq!(pod.link("eth0").expect("eth0")["mtu"], 1300);
            assert_eq!(fleet.host(1).link("vxlan.5").expect("device")["mtu"], 1300);
        }
    });
}

#[test]
fn the_mtu_follows_the_underlays() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let conf = fleet.segment(1, 5, Underlay::V4);
        fleet.add(1, "a", &conf);
        fleet.host(1).sh("ip link set eth0 mtu 1400");
        let b = fleet.add(1, "b", &conf);
        assert_eq!(b.link("eth0").expect("eth0")["mtu"], 1350);
        assert_eq!(fleet.host(1).link("vxlan.5").expect("device")["mtu"], 1350);
    });
}
