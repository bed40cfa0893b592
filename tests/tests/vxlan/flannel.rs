//! A flannel node as a peer: device and entries made by hand as flanneld makes them.

use sandbox::{Netns, beyond_peer};
use serde_json::json;

use crate::fleet::{Fleet, Underlay, addresses};
use crate::traffic::{WHY, silent};

/// Host 2 as flanneld with the backend vxlan leaves it: `flannel.1`, VNI 1, port 8472, the
/// subnet's first address on the device, a bridge `cni0` with the second, and for our node
/// neighbour, forwarding entry and route, in that order.
fn flannel_node(fleet: &Fleet, our_mac: &str) -> (String, Netns) {
    let host = fleet.host(2);
    host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward
         ip link add flannel.1 address be:9f:00:00:00:02 mtu 1450 type vxlan id 1 dstport 8472 \
             local 172.20.2.2 dev eth0 nolearning
         ip address add 10.244.2.0/32 dev flannel.1
         ip link set flannel.1 up
         ip link add cni0 type bridge
         ip address add 10.244.2.1/24 dev cni0
         ip link set cni0 up");
    host.sh(&format!(
        "ip neighbour replace 10.244.1.0 lladdr {our_mac} nud permanent dev flannel.1
         bridge fdb append {our_mac} dst 172.20.1.2 self permanent dev flannel.1
         ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink"
    ));
    let pod = fleet.pod(2, "f");
    host.sh(&format!(
        "ip link add vethf type veth peer name eth0 netns {pod}
         ip link set vethf master cni0 up",
        pod = pod.name()
    ));
    pod.sh("ip address add 10.244.2.5/24 dev eth0
         ip link set eth0 mtu 1450 up
         ip route add default via 10.244.2.1");
    ("be:9f:00:00:00:02".to_owned(), pod)
}

#[test]
fn a_flannel_node_and_ours_reach_each_others_pods() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let mut conf = fleet.routed(1, 1, Underlay::V4);
        conf["port"] = 8472.into();
        conf["ipam"] = fleet.ipam(1, &["10.244.1.0/24".to_owned()]);
        conf["peers"] = json!([
            {"vtep": "172.20.2.2", "mac": "BE:9F:00:00:00:02", "subnet": "10.244.2.0/24"}
        ]);
        let ours = fleet.add(1, "a", &conf);
        let device = fleet.host(1).link("vxlan.1").expect("our device");
        let our_mac = device["address"].as_str().expect("a MAC").to_owned();
        let (_, theirs) = flannel_node(&fleet, &our_mac);
        let none: [String; 0] = [];
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            assert_eq!(silent(from, &addresses(to)), none);
            let full = from.run(&[
                "ping",
                "-n",
                "-c",
                "1",
                "-W",
                "2",
                "-M",
                "do",
                "-s",
                "1422",
                &addresses(to)[0],
            ]);
            assert_eq!(full.code, 0, "{full:?}");
        }
        // Our entries are the three that flanneld makes, to the letter.
        let host = fleet.host(1);
        let shown = host.sh(
            "ip neighbour show dev vxlan.1; bridge fdb show dev vxlan.1; ip route show dev vxlan.1",
        );
        let lines: Vec<&str> = shown.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "10.244.2.0 lladdr be:9f:00:00:00:02 PERMANENT",
                "be:9f:00:00:00:02 dst 172.20.2.2 self permanent",
                "10.244.2.0/24 via 10.244.2.0 onlink",
            ]
        );
        assert_eq!(host.addresses("vxlan.1"), ["10.244.1.0/32"]);
    });
}
