//! Addresses work as soon as ADD returns.

use std::time::Duration;

use sandbox::{MACHINE, Sandbox, beyond_peer};
use serde_json::json;

use crate::{add, del, dual, l2, reaches};

#[test]
fn an_address_that_was_anothers_works_at_once() {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    let conf = |mac: &str| {
        let ipam =
            json!([{"address": "10.1.0.7/24"}, {"address": "fd01::7/64", "gateway": "fd01::99"}]);
        l2(json!({"ipam": {"type": "static", "addresses": ipam}, "mac": mac}))
    };
    let machine = &segment.machine;
    add(&sandbox, &conf("02:00:00:00:07:0a"), &a);
    assert!(reaches(machine, ["10.1.0.7", "fd01::7"]));
    // Otherwise the kernel may verify the entry by itself meanwhile.
    machine.sh(
        "ip neigh replace 10.1.0.7 lladdr 02:00:00:00:07:0a nud reachable dev eth1
         ip neigh replace fd01::7 lladdr 02:00:00:00:07:0a nud reachable dev eth1",
    );
    del(&sandbox, &conf("02:00:00:00:07:0a"), &a);
    add(&sandbox, &conf("02:00:00:00:07:0b"), &b);
    assert_eq!(machine.ping("10.1.0.7", 3), [true; 3]);
    beyond_peer("before v1.2 it announces no IPv6 addresses", || {
        assert_eq!(machine.ping("fd01::7", 3), [true; 3]);
    });
}

#[test]
fn ipv6_is_usable_when_add_returns_without_a_wait() {
    beyond_peer(
        "pains 15: 1.5 to 1.8 s of duplicate address detection",
        || {
            let sandbox = Sandbox::new();
            let _segment = sandbox.segment();
            // A busy machine may delay one of them; duplicate address detection, all.
            let took = ["a", "b", "c"].map(|name| {
                let pod = sandbox.pod(name);
                let cni = sandbox.cni("macvlan").id(name);
                let outcome = cni.add(&dual(json!({})), &pod, "eth0");
                outcome.result();
                assert!(
                    !pod.sh("ip -6 addr show dev eth0 scope global")
                        .contains("tentative")
                );
                assert_eq!(pod.ping(MACHINE[1], 1), [true]);
                outcome.elapsed()
            });
            let limit = sandbox::in_time(Duration::from_secs(1));
            assert!(took.iter().any(|took| *took < limit), "{took:?}");
        },
    );
}
