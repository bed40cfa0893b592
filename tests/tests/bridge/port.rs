//! `hairpinMode`, `promiscMode`, `portIsolation`.

use sandbox::{Sandbox, beyond_peer};
use serde_json::json;

use crate::{add, attached, bridge, has_flag, host_veth, refused};

#[test]
fn hairpin_mode_is_written_on_and_off() {
    for on in [true, false] {
        let (sandbox, pod, _) = attached(&bridge(json!({"hairpinMode": on})));
        assert_eq!(
            host_veth(&sandbox)["linkinfo"]["info_slave_data"]["hairpin"],
            on
        );
        assert_eq!(pod.ping("10.1.0.1", 1), [true]);
    }
}

#[test]
fn promisc_mode_is_switched_on_and_never_off() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let promisc = || has_flag(&sandbox.host().link("cni0").expect("cni0"), "PROMISC");
    add(&sandbox, &bridge(json!({"promiscMode": true})), &a);
    assert!(promisc());
    add(&sandbox, &bridge(json!({})), &b);
    assert!(promisc());
}

#[test]
fn hairpin_and_promisc_exclude_each_other() {
    let error = refused(&bridge(json!({"hairpinMode": true, "promiscMode": true})));
    let text = "cannot set hairpin mode and promiscuous mode at the same time";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn isolated_ports_reach_the_gateway_but_not_each_other() {
    beyond_peer("portIsolation came with plugins v1.6", || {
        let sandbox = Sandbox::new();
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = bridge(json!({"portIsolation": true}));
        add(&sandbox, &conf, &a);
        add(&sandbox, &conf, &b);
        assert_eq!(
            host_veth(&sandbox)["linkinfo"]["info_slave_data"]["isolated"],
            true
        );
        assert_eq!(a.ping("10.1.0.1", 1), [true]);
        assert_eq!(a.ping("10.1.0.3", 1), [false]);
    });
}

#[test]
fn ports_are_not_isolated_without_the_key() {
    let (sandbox, _, _) = attached(&bridge(json!({})));
    assert_eq!(
        host_veth(&sandbox)["linkinfo"]["info_slave_data"]["isolated"],
        false
    );
}

/// Attaches a pod, and returns whether its port carried frames before it joined the bridge.
fn joins_last(sandbox: &Sandbox, keys: serde_json::Value, pod: &str) -> bool {
    let host = sandbox.host();
    let monitor = host.start(&["ip", "-o", "monitor", "link"]);
    let mark = |mtu| drop(host.sh(&format!("ip link set lo mtu {mtu}")));
    host.wait_until("ip monitor to listen", |_| {
        mark(60_000);
        mark(60_001);
        !monitor.output().is_empty()
    });
    add(sandbox, &bridge(keys), &sandbox.pod(pod));
    mark(65_536);
    host.wait_until("ip monitor to report the end", |_| {
        monitor.output().contains("mtu 65536")
    });
    let output = monitor.output();
    let of_port = |line: &&str| line.contains(": veth") && line.contains("UP");
    let states: Vec<_> = output.lines().filter(of_port).collect();
    assert!(!states.is_empty(), "no port came up: {output}");
    states.iter().any(|line| !line.contains("master cni0"))
}

#[test]
fn a_port_joins_the_bridge_last_unless_something_would_be_missed() {
    beyond_peer("the Go plugins' ports join first", || {
        let sandbox = Sandbox::new();
        assert!(joins_last(&sandbox, json!({}), "a"));
        assert!(joins_last(&sandbox, json!({"hairpinMode": true}), "b"));
        // Rules and isolation must hold from the first frame on.
        assert!(!joins_last(&sandbox, json!({"portIsolation": true}), "c"));
        assert!(!joins_last(&sandbox, json!({"macspoofchk": true}), "d"));
        assert!(!joins_last(&sandbox, json!({"internal": true}), "i"));
        // The probes of duplicate address detection must reach the other pods.
        assert!(!joins_last(&sandbox, json!({"enabledad": true}), "e"));
        // A querier relies on the first report.
        let querier = |on| {
            let command = [
                "ip",
                "link",
                "set",
                "cni0",
                "type",
                "bridge",
                "mcast_querier",
                on,
            ];
            sandbox.host().run(&command);
        };
        querier("1");
        assert!(!joins_last(&sandbox, json!({}), "f"));
        querier("0");
        assert!(joins_last(&sandbox, json!({}), "g"));
        // A router or a switch behind an uplink hears what the pod's kernel sends first.
        let host = sandbox.host();
        host.sh("ip link add up0 type veth peer up1; ip link set up0 master cni0 up");
        assert!(!joins_last(&sandbox, json!({}), "h"));
    });
}

#[test]
fn multicast_reaches_the_pods_of_a_new_bridge_which_does_not_snoop() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    for pod in [&a, &b] {
        add(&sandbox, &bridge(json!({})), pod);
        pod.sh("ip route add 239.0.0.0/8 dev eth0");
    }
    b.sh("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0; ip address add 239.1.2.3/32 dev eth0 autojoin");
    assert_eq!(a.ping("239.1.2.3", 1), [true]);
    let snoops = || {
        sandbox.host().link("cni0").expect("cni0")["linkinfo"]["info_data"]["mcast_snooping"]
            .clone()
    };
    beyond_peer("the kernel's default is on", || assert_eq!(snoops(), 0));
    sandbox
        .host()
        .sh("ip link set cni0 type bridge mcast_snooping 1");
    add(&sandbox, &bridge(json!({})), &sandbox.pod("c"));
    assert_eq!(snoops(), 1, "what an operator sets stays");
}
