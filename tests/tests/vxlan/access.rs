//! Modes of networks that span hosts: pods of other hosts are pods of the network.

use sandbox::{Netns, beyond_peer, conf};
use serde_json::{Value, json};

use crate::fleet::{Fleet, Underlay, addresses};
use crate::traffic::{MODES, WHY};

/// Whether all of `to` answer a ping; none must be the other case.
fn answered(from: &Netns, to: &[String]) -> bool {
    let script = format!(
        "for ip in {}; do (ping -n -q -c 1 -w 4 -i 0.5 $ip >/dev/null 2>&1 && echo $ip) & done; wait",
        to.join(" ")
    );
    let answered = from.sh(&script).lines().count();
    assert!([0, to.len()].contains(&answered), "{answered} of {to:?}");
    answered > 0
}

/// A bridge of its own on a host, with one pod.
fn neighbour(fleet: &Fleet, host: usize) -> Netns {
    let conf = conf::bridge(&["10.99.0.0/24", "fd99::/64"]);
    let ipam = json!({"ipam": {"dataDir": "/run/ipam-neighbour"}, "isDefaultGateway": true});
    let conf = conf::with(&conf, ipam);
    let pod = fleet.pod(host, "n");
    let name = fleet.host(host).name().to_owned();
    let cni = fleet.sandbox.cni("bridge");
    cni.under(&["ip", "netns", "exec", &name])
        .add(&conf, &pod, "eth0")
        .result();
    pod
}

fn each(keys: &Value, test: impl Fn(&Fleet, &[Netns; 3])) {
    for (mode, make) in MODES {
        eprintln!("{mode}");
        beyond_peer(WHY, || {
            let fleet = Fleet::new(2);
            let add = |host, name| {
                let mut conf = make(&fleet, host, 5, Underlay::V4);
                conf["isGateway"] = true.into();
                if keys["internal"] != true {
                    conf["isDefaultGateway"] = true.into();
                } else if mode == "l3" {
                    let other = 3 - host;
                    conf["ipam"]["routes"] = json!([{"dst": format!("10.5.{other}.0/24")},
                        {"dst": format!("fd00:5:{other}::/64")}]);
                }
                let conf = conf::with(&conf, keys.clone());
                let (pod, result) = fleet.attached(host, name, &conf);
                let checked = conf::with_prev(&conf, &result);
                fleet.cni(host).check(&checked, &pod, "eth0").silent();
                pod
            };
            let pods = [add(1, "a"), add(1, "b"), add(2, "c")];
            test(&fleet, &pods);
        });
    }
}

#[test]
fn in_mode_nat_pods_of_all_hosts_are_within_and_neighbours_elsewhere() {
    let keys = json!({"gatewayModeIPv4": "nat", "gatewayModeIPv6": "nat"});
    each(&keys, |fleet, [a, b, c]: &[Netns; 3]| {
        for other in [b, c] {
            assert!(answered(a, &addresses(other)));
            assert!(answered(other, &addresses(a)));
        }
        let n = neighbour(fleet, 1);
        assert!(!answered(&n, &addresses(a)));
        // By way of this host.
        assert!(!answered(&n, &addresses(c)));
        assert!(answered(a, &addresses(&n)));
    });
}

#[test]
fn an_internal_network_spans_hosts_and_reaches_nothing_else() {
    each(
        &json!({"internal": true}),
        |fleet, [a, b, c]: &[Netns; 3]| {
            let n = neighbour(fleet, 1);
            assert!(answered(a, &addresses(b)) && answered(a, &addresses(c)));
            assert!(!answered(&n, &addresses(a)));
            assert!(!answered(a, &addresses(&n)));
        },
    );
}

#[test]
fn icc_false_keeps_pods_of_all_hosts_apart() {
    each(&json!({"icc": false}), |fleet, [a, b, c]: &[Netns; 3]| {
        for (from, to) in [(a, b), (b, a), (a, c), (c, a)] {
            assert!(
                !answered(from, &addresses(to)),
                "{} {}",
                from.name(),
                to.name()
            );
        }
        let n = neighbour(fleet, 1);
        assert!(answered(a, &addresses(&n)) && answered(&n, &addresses(a)));
    });
}
