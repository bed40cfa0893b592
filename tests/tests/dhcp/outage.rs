//! Without a server, without a daemon, with a daemon that is killed.

use std::time::Duration;

use sandbox::beyond_peer;

use crate::{SOCKET, STATE, WHY, Wire, address, eventually, lan, release_of};

#[test]
fn a_restarted_daemon_keeps_its_leases() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let pods: Vec<_> = (0..5).map(|n| wire.sandbox.pod(&format!("p{n}"))).collect();
        let add = |pod| wire.add(pod);
        let results: Vec<_> = pods.iter().map(add).collect();
        // Kills it: the socket file stays, and is taken over.
        drop(daemon);
        assert_eq!(wire.sandbox.list("/run/cni"), ["dhcp.sock"]);
        let before = server.output().matches("DHCPACK").count();
        let daemon = wire.daemon(&[]);
        eventually(10, "requested again", || {
            server.output().matches("DHCPACK").count() >= before + 5
        });
        assert!(daemon.output().contains("restored 5 leases"));
        for (pod, result) in pods.iter().zip(&results) {
            assert_eq!(pod.addresses("eth0"), [address(result)]);
            wire.check(pod, result);
            wire.del(pod);
            Wire::await_log(&server, &release_of(&address(result)));
        }
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn without_a_server_add_fails_in_time_and_leaves_nothing() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let _daemon = wire.daemon(&["-resendtimeout", "3s"]);
        let pod = wire.sandbox.pod("a");
        let snapshot = wire.sandbox.snapshot().allow_link("lan");
        let outcome = wire.sandbox.cni("bridge").add(&lan(), &pod, "eth0");
        assert!(
            outcome.elapsed() < Duration::from_secs(6),
            "{:?}",
            outcome.elapsed()
        );
        let error = outcome.error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (11, "error calling DHCP.Allocate: no more tries")
        );
        snapshot.assert_unchanged();
    });
}

#[test]
fn without_a_daemon_add_says_so_del_succeeds_and_status_is_50() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let pod = wire.sandbox.pod("a");
        let snapshot = wire.sandbox.snapshot().allow_link("lan");
        let text = format!(
            "error dialing DHCP daemon: dial unix {SOCKET}: connect: no such file or directory"
        );
        let error = wire.refused(&pod);
        assert_eq!((error.code, &error.msg), (11, &text));
        wire.del(&pod);
        wire.sandbox.cni("dhcp").del(&lan(), &pod, "eth0").silent();
        wire.sandbox
            .cni("dhcp")
            .netns("")
            .del(&lan(), &pod, "eth0")
            .silent();
        let error = wire.sandbox.cni("bridge").status(&lan()).error();
        assert_eq!((error.code, &error.msg), (50, &text));
        let error = wire.sandbox.cni("dhcp").check(&lan(), &pod, "eth0").error();
        assert_eq!(error.msg, text);
        wire.gc(&lan(), &[]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn an_add_fails_when_the_daemon_dies_before_it_has_an_address() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("a");
        let snapshot = wire.sandbox.snapshot().allow_link("lan").allow("dhcp");
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                Wire::await_log(&daemon, "acquiring lease");
                wire.host().sh(&format!("kill -9 {}", daemon.id()));
            });
            wire.refused(&pod)
        });
        assert_eq!(error.code, 11);
        assert!(error.msg.contains("unexpected EOF"), "{}", error.msg);
        snapshot.assert_unchanged();
    });
}

#[test]
fn del_without_a_daemon_releases_the_lease_itself() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        let (one, two) = (wire.sandbox.pod("a"), wire.sandbox.pod("b"));
        let add = |pod| address(&wire.add(pod));
        let (first, second) = (add(&one), add(&two));
        drop(daemon);
        wire.del(&one);
        Wire::await_log(&server, &release_of(&first));
        assert_eq!(wire.sandbox.list(STATE).len(), 1);
        wire.gc(&lan(), &[]);
        Wire::await_log(&server, &release_of(&second));
        assert!(wire.sandbox.list("/var/lib/cni/dhcp").is_empty());
    });
}
