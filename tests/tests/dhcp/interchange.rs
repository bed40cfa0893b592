//! Our plugin with the Go daemon, and the Go plugin with ours.

use sandbox::{Suite, conf};
use serde_json::json;

use crate::{SOCKET, Wire, address, lan};

/// A plugin and a daemon of two suites: the address, the check, and what the server hears of the end.
fn interchange(plugin: Suite, daemon: Suite) {
    let wire = Wire::new();
    let server = wire.dnsmasq(&[]);
    let _daemon = wire.daemon_of(daemon, &[]);
    let pod = wire.wired_by_hand("a");
    let mut conf = conf::at(&lan(), "1.0.0");
    conf["type"] = "ipvlan".into();
    let cni = || wire.sandbox.cni("dhcp").suite(plugin);
    let result = cni().add(&conf, &pod, "eth0").result();
    assert!(address(&result).starts_with("10.77."), "{result}");
    assert_eq!(result["ips"][0]["gateway"], "10.77.0.1");
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.77.0.1"}])
    );
    let checked = conf::with_prev(&conf, &result);
    cni().check(&checked, &pod, "eth0").silent();
    cni().del(&conf, &pod, "eth0").silent();
    cni().del(&conf, &pod, "eth0").silent();
    Wire::await_log(&server, "DHCPRELEASE");
}

#[test]
fn the_go_plugin_works_with_our_daemon() {
    interchange(Suite::Peer, Suite::Ours);
}

#[test]
fn our_plugin_works_with_the_go_daemon() {
    interchange(Suite::Ours, Suite::Peer);
}

#[test]
fn both_daemons_give_a_pod_the_same_address() {
    let wire = Wire::new();
    let _server = wire.dnsmasq(&[]);
    let pod = wire.wired_by_hand("a");
    let conf = conf::at(&lan(), "1.0.0");
    let add = |daemon: Suite| {
        let running = wire.daemon_of(daemon, &[]);
        let result = wire.sandbox.cni("dhcp").add(&conf, &pod, "eth0").result();
        drop(running);
        wire.host().sh(&format!("rm -f {SOCKET}"));
        address(&result)
    };
    let go = add(Suite::Peer);
    // Another hardware address: only the client identifier identifies it.
    pod.sh("ip link set eth0 address 02:00:00:00:77:77");
    assert_eq!(add(Suite::Ours), go);
}
