//! Leases that are renewed, moved, taken over by another server, or expire.

use std::time::Duration;

use sandbox::{beyond_peer, conf};
use serde_json::json;

use crate::{WHY, Wire, address, bare, dnsmasq, eventually, gateway, lan, station, within};

#[test]
fn a_server_that_refuses_a_renewal_moves_the_pod_to_another_address() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.kea([1, 4, 60], "10.77.0.10-10.77.0.19", json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        wire.add(&pod);
        drop(server);
        let range = "10.77.9.10,10.77.9.19,255.255.128.0,2m";
        let server = dnsmasq(&wire.server, range, &["--dhcp-authoritative"]);
        let refused = || daemon.output().contains("the server refuses the address");
        assert!(within(20, refused), "{}", server.output());
        eventually(15, "the new address", || {
            let all = pod.addresses("eth0");
            all.len() == 1 && all[0].starts_with("10.77.9.") && all[0].ends_with("/17")
        });
        eventually(5, "the way out", || gateway(&pod) == "10.77.0.1");
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
    });
}

/// Grants 10.77.0.50; a client that renews it gets another address, mask and router.
const MOVING: &str = r#"
    use Socket;
    socket(my $s, AF_INET, SOCK_DGRAM, 17) or die; setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1);
    bind($s, sockaddr_in(67, INADDR_ANY)) or die; $| = 1; print "serves\n";
    while (recv($s, my $m, 1500, 0)) {
        my $kind = unpack('C', substr($m, 242, 1));
        next unless $kind == 1 || $kind == 3;
        my $renews = substr($m, 12, 4) ne "\0\0\0\0";
        my @terms = $renews ? (10, 77, 0, 60, 128, 2) : (10, 77, 0, 50, 0, 1);
        my $r = pack('C4', 2, 1, 6, 0) . substr($m, 4, 4) . pack('x8') . pack('C4', @terms[0..3])
            . pack('x8') . substr($m, 28, 6) . pack('x202') . pack('C4', 99, 130, 83, 99)
            . pack('C*', 53, 1, $kind == 1 ? 2 : 5, 54, 4, 10, 77, 0, 1, 1, 4, 255, 255, $terms[4], 0,
                51, 4, 0, 0, 0, 99, 58, 4, 0, 0, 0, $renews ? 90 : 1, 3, 4, 10, 77, 0, $terms[5], 255);
        send($s, $r, 0, sockaddr_in(68, INADDR_BROADCAST));
    }"#;

#[test]
fn a_renewal_that_moves_the_pod_leaves_what_others_have_put_there() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        wire.server.sh("ip route add default dev eth0");
        let _server = Wire::perl(&wire.server, MOVING);
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        assert_eq!(address(&result), "10.77.0.50/16");
        pod.sh("ip route add 10.123.0.0/16 via 10.77.0.7");
        eventually(10, "moved", || pod.addresses("eth0") == ["10.77.0.60/17"]);
        eventually(5, "its router", || gateway(&pod) == "10.77.0.2");
        assert_eq!(pod.routes_to("-4", "default").len(), 1);
        assert_eq!(pod.routes_to("-4", "10.123.0.0/16").len(), 1);
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
        // CHECK knows that the result of ADD is old.
        let checked = conf::with_prev(&lan(), &result);
        let error = wire
            .sandbox
            .cni("dhcp")
            .check(&checked, &pod, "eth0")
            .error();
        assert!(error.msg.contains("10.77.0.60/17 by now"), "{}", error.msg);
    });
}

#[test]
fn any_server_may_take_over_the_lease_of_one_that_is_gone() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let first = wire.kea([2, 4, 60], "10.77.0.10-10.77.0.19", json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        drop(first);
        let second = station(&wire.sandbox, "second", "10.77.0.2/16");
        let range = "10.77.0.10,10.77.0.19,255.255.0.0,2m";
        let second = dnsmasq(&second, range, &["--dhcp-authoritative"]);
        Wire::await_log(
            &second,
            &format!("DHCPACK(eth0) {}", bare(&address(&result))),
        );
        Wire::await_log(&daemon, "from 10.77.0.2 for 120 s");
        assert_eq!(pod.addresses("eth0"), [address(&result)]);
        eventually(5, "its router", || gateway(&pod) == "10.77.0.2");
        wire.del(&pod);
        Wire::await_log(&second, "DHCPRELEASE");
    });
}

#[test]
fn an_expired_lease_is_removed_from_the_pod_and_a_new_one_requested() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let pool = "10.77.0.10-10.77.0.19";
        let server = wire.kea([1, 2, 4], pool, json!({}));
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let result = wire.add(&pod);
        drop(server);
        eventually(10, "the address is gone", || {
            pod.addresses("eth0").is_empty()
        });
        assert!(daemon.output().contains("the lease has expired"));
        assert_eq!(pod.link("eth0").expect("the link")["operstate"], "UP");
        let failure =
            wire.sandbox
                .cni("dhcp")
                .check(&conf::with_prev(&lan(), &result), &pod, "eth0");
        assert!(failure.error().msg.contains("no lease is held"));
        let _server = wire.kea([1, 2, 4], pool, json!({}));
        eventually(20, "an address again", || {
            pod.addresses("eth0").len() == 1 && gateway(&pod) == "10.77.0.1"
        });
    });
}

#[test]
fn a_server_outage_shorter_than_the_lease_changes_nothing() {
    let wire = Wire::new();
    let pool = "10.77.0.10-10.77.0.19";
    let server = wire.kea([1, 30, 60], pool, json!({}));
    let daemon = wire.daemon(&[]);
    let pod = wire.sandbox.pod("a");
    let result = wire.add(&pod);
    drop(server);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(pod.addresses("eth0"), [address(&result)]);
    let before = daemon.output().matches("lease renewed").count();
    let _server = wire.kea([1, 30, 60], pool, json!({}));
    eventually(30, "renewed", || {
        daemon.output().matches("lease renewed").count() > before
    });
    assert_eq!(pod.addresses("eth0"), [address(&result)]);
}
