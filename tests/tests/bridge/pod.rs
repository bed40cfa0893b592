//! The pod's interface: `enabledad`, `disableContainerInterface`, sysctls, no IPAM, MAC addresses, dns.

use std::time::Duration;

use sandbox::{Sandbox, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{add, attached, bridge, del, dual, has_flag, host_veth, l2, mac, refused};

#[test]
fn an_ipv6_address_is_usable_the_moment_add_returns() {
    let (_sandbox, pod, _) = attached(&dual(json!({})));
    let flags = pod.sh("ip -6 addr show dev eth0 tentative");
    assert!(!flags.contains("fd01::2"), "{flags}");
}

#[test]
fn duplicate_address_detection_is_off_unless_enabled() {
    let (_sandbox, pod, _) = attached(&dual(json!({})));
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");
    let (_sandbox, pod, _) = attached(&dual(json!({"enabledad": true})));
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/enhanced_dad"), "1");
    assert!(
        !pod.sh("ip -6 addr show dev eth0 tentative")
            .contains("fd01::2")
    );
}

#[test]
fn without_duplicate_address_detection_add_takes_no_second() {
    let sandbox = Sandbox::new();
    // A busy machine may delay one of them; duplicate address detection, all.
    let took = ["a", "b", "c"].map(|name| {
        let pod = sandbox.pod(name);
        let cni = sandbox.cni("bridge").id(name);
        let outcome = cni.add(&dual(json!({})), &pod, "eth0");
        outcome.result();
        outcome.elapsed()
    });
    let limit = sandbox::in_time(Duration::from_secs(1));
    assert!(took.iter().any(|took| *took < limit), "{took:?}");
}

#[test]
fn the_pod_notifies_its_neighbours_of_changes() {
    let (_sandbox, pod, _) = attached(&bridge(json!({})));
    assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_notify"), "1");
}

#[test]
fn ipv6_is_switched_on_where_the_runtime_switched_it_off() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    add(&sandbox, &dual(json!({})), &pod);
    assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/disable_ipv6"), "0");
    beyond_peer(
        "plugins before v1.2 lose the address when the link goes down",
        || {
            assert_eq!(pod.sysctl("net/ipv6/conf/eth0/keep_addr_on_down"), "1");
        },
    );
}

#[test]
fn a_disabled_container_interface_stays_down() {
    beyond_peer("disableContainerInterface came with plugins v1.5", || {
        let (sandbox, pod, _) = attached(&l2(json!({"disableContainerInterface": true})));
        assert!(!has_flag(&pod.link("eth0").expect("eth0"), "UP"));
        assert_eq!(host_veth(&sandbox)["master"], "cni0");
        let error = refused(&bridge(json!({"disableContainerInterface": true})));
        let text = "cannot use IPAM when DisableContainerInterface flag is set";
        assert!(error.msg.contains(text), "{}", error.msg);
    });
}

#[test]
fn without_ipam_the_pod_gets_a_wire_and_nothing_else() {
    for ipam in [Value::Null, json!({}), json!({"type": ""})] {
        let (sandbox, pod, result) = attached(&l2(json!({"ipam": ipam})));
        assert!(pod.addresses("eth0").is_empty());
        assert_eq!(pod.link("eth0").expect("eth0")["operstate"], "UP");
        assert!(
            result.get("ips").is_none() && result.get("routes").is_none(),
            "{result}"
        );
        assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(3));
        del(&sandbox, &l2(json!({})), &pod);
        assert!(pod.link("eth0").is_none());
    }
}

#[test]
fn check_without_ipam_looks_at_the_wire() {
    beyond_peer("reference 8 #10: no plugin name provided", || {
        let (sandbox, pod, result) = attached(&l2(json!({})));
        let conf = conf::with_prev(&l2(json!({})), &result);
        let check = || sandbox.cni("bridge").check(&conf, &pod, "eth0");
        check().silent();
        let veth = result["interfaces"][1]["name"].as_str().expect("a name");
        sandbox.host().sh(&format!("ip link set {veth} nomaster"));
        check().error();
    });
}

#[test]
fn the_pod_s_mac_comes_from_capability_then_args_then_environment() {
    let mac_of = |change: Value, args: &str| {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let cni = sandbox.cni("bridge").args(args);
        let result = cni.add(&l2(change), &pod, "eth0").result();
        assert_eq!(result["interfaces"][2]["mac"], mac(&pod, "eth0"));
        mac(&pod, "eth0")
    };
    let (capability, args) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    let all = json!({"runtimeConfig": {"mac": capability}, "args": {"cni": {"mac": args}}});
    assert_eq!(mac_of(all, "MAC=02:00:00:00:00:0c"), capability);
    assert_eq!(
        mac_of(
            json!({"args": {"cni": {"mac": args}}}),
            "MAC=02:00:00:00:00:0c"
        ),
        args
    );
    assert_eq!(
        mac_of(json!({}), "MAC=02:00:00:00:00:0C"),
        "02:00:00:00:00:0c"
    );
}

#[test]
fn a_bad_mac_is_refused() {
    for bad in ["02:00:00:00:00", "nonsense", "02:00:00:00:00:zz"] {
        let error = refused(&l2(json!({"runtimeConfig": {"mac": bad}})));
        assert!(error.msg.contains(bad), "{}", error.msg);
    }
}

#[test]
fn the_bridge_s_mac_never_changes() {
    beyond_peer(
        "reference 8 #9: it follows the lowest port until it is pinned",
        || {
            let conf = bridge(json!({"isGateway": false}));
            let (sandbox, pod, result) = attached(&conf);
            let host = sandbox.host();
            let born = mac(&host, "cni0");
            assert_eq!(result["interfaces"][0]["mac"], born);
            host.sh("ip link add low address 00:00:00:00:00:01 type veth peer name low1; ip link set low master cni0");
            assert_eq!(mac(&host, "cni0"), born);
            host.sh("ip link del low");
            del(&sandbox, &conf, &pod);
            assert_eq!(mac(&host, "cni0"), born);
            // Locally administered, unicast.
            let first = u8::from_str_radix(&born[..2], 16).expect("hex");
            assert_eq!(first & 3, 2, "{born}");
        },
    );
}

#[test]
fn add_succeeds_on_a_bridge_that_a_failed_add_left_without_ports() {
    beyond_peer("reference 8 #9: could not set bridge's mac", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let ipam = sandbox.fake("fake-ipam");
        ipam.fail("ADD", 11, "later");
        let fails = l2(json!({"ipam": {"type": "fake-ipam"}}));
        sandbox.cni("bridge").add(&fails, &pod, "eth0").error();
        del(&sandbox, &fails, &pod);
        add(&sandbox, &bridge(json!({})), &pod);
    });
}

#[test]
fn the_mac_addresses_of_a_wire_are_not_left_for_udev_to_change() {
    beyond_peer(
        "pains.md 13: CHECK fails after udev has changed the host's end",
        || {
            let (sandbox, pod, _) = attached(&bridge(json!({})));
            let veth = host_veth(&sandbox)["ifname"]
                .as_str()
                .expect("a name")
                .to_owned();
            // 3: NET_ADDR_SET, what udev's MACAddressPolicy leaves alone (1 is random).
            let assigned = sandbox.read(format!("/sys/class/net/{veth}/addr_assign_type"));
            assert_eq!(assigned.as_deref(), Some("3\n"));
            let inside = "mount -t sysfs sysfs /sys; cat /sys/class/net/eth0/addr_assign_type";
            let assigned = pod.run(&["unshare", "-m", "sh", "-ec", inside]);
            assert_eq!(assigned.stdout, "3\n");
        },
    );
}

#[test]
fn dns_of_the_configuration_replaces_that_of_the_ipam() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.1.0.9/24"}], "dns": {"nameservers": ["10.0.0.1"]}});
    beyond_peer("plugins before v1.2 drop what the IPAM says", || {
        let (_s, _p, result) = attached(&l2(json!({"ipam": ipam})));
        assert_eq!(result["dns"], json!({"nameservers": ["10.0.0.1"]}));
    });
    let (_s, _p, result) = attached(&l2(
        json!({"ipam": ipam, "dns": {"search": ["example.org"]}}),
    ));
    assert_eq!(result["dns"], json!({"search": ["example.org"]}));
}
