//! Configurations, subnets and ranges.

use sandbox::{beyond_peer, conf};
use serde_json::{Value, json};

use crate::{Node, WHY, bridge, network};

fn other(subnet: &str) -> Value {
    let bridge =
        json!({"type": "bridge", "bridge": "cni1", "ipam": conf::host_local_ipam(&[subnet])});
    network("other", &[bridge])
}

#[test]
fn a_configuration_that_is_wrong() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.sandbox
            .write(format!("{}/00-empty.conflist", node.dir()), "");
        node.finding("PW030");
        node.host()
            .sh(&format!("rm {}/00-empty.conflist", node.dir()));
        let mut list = other("10.2.0.0/24");
        list["plugins"][0]["mtu"] = "many".into();
        node.configure("other", &list);
        let finding = node.finding("PW030");
        assert!(finding["what"].to_string().contains("mtu"), "{finding:#}");
    });
}

#[test]
fn a_second_file_of_a_network() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.configure("net2", &network("net", &[bridge()]));
        node.is_found_and_cured("PW031");
    });
}

#[test]
fn a_plugin_that_is_missing() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let mut list = other("10.2.0.0/24");
        list["plugins"][0] = json!({"type": "no-such-plugin"});
        node.configure("other", &list);
        let finding = node.finding("PW032");
        assert_eq!(finding["network"], "other");
        node.host().sh(&format!("rm {}/other.conflist", node.dir()));
        node.assert_healthy();
    });
}

#[test]
fn addresses_that_are_in_use_elsewhere() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.configure("other", &other("10.1.0.0/16"));
        node.finding("PW033");
        node.configure("other", &other("10.2.0.0/24"));
        node.assert_healthy();
        // A VPN.
        node.host().sh("ip route add 10.2.0.0/16 via 192.0.2.9");
        let finding = node.finding("PW033");
        assert_eq!(finding["network"], "other");
        node.host().sh("ip route del 10.2.0.0/16");
        node.assert_healthy();
    });
}

#[test]
fn a_name_server_within_a_network() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.resolv_conf("nameserver 10.1.0.53\n");
        node.finding("PW036");
        node.resolv_conf("");
        node.assert_healthy();
    });
}

#[test]
fn a_range_that_is_used_up() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let plugin = json!({"type": "bridge", "bridge": "cni1", "ipam": {"type": "host-local",
            "ranges": [[{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.10", "rangeEnd": "10.2.0.19"}]]}});
        node.configure("other", &network("other", &[plugin]));
        let pod = node.sandbox.pod("red");
        pod.sh("ip link set lo up");
        // Reserved by containers that another runtime has: their addresses are there.
        for last in 10..20 {
            node.sandbox.write(
                format!("/var/lib/cni/networks/other/10.2.0.{last}"),
                format!("c{last}\r\neth0"),
            );
            pod.sh(&format!("ip addr add 10.2.0.{last}/32 dev lo"));
        }
        node.finding("PW035");
        node.host().sh("rm /var/lib/cni/networks/other/10.2.0.10");
        node.finding("PW034");
        node.host()
            .sh("rm /var/lib/cni/networks/other/10.2.0.1[1-9]");
        node.assert_healthy();
    });
}
