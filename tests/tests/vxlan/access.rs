//! Modes of networks that span hosts: pods of other hosts are pods of the network.

use std::thread;

use sandbox::{NO_ANSWER, Netns, beyond_peer, conf, container_id};
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

/// The answers of a server in `to` by TCP and UDP at each of its addresses; one is like the other.
fn served(from: &Netns, to: &Netns, port: u16) -> bool {
    let addresses = addresses(to);
    let queries = addresses
        .iter()
        .flat_map(|ip| ["tcp", "udp"].map(|it| (it, ip)));
    let answers = thread::scope(|scope| {
        let queries = queries.map(|(protocol, ip)| {
            let ip: &str = ip;
            scope.spawn(move || from.ask(protocol, ip, port))
        });
        let queries: Vec<_> = queries.collect();
        let answers = queries.into_iter().map(|it| it.join().expect("an answer"));
        answers.collect::<Vec<_>>()
    });
    let heard = answers.iter().filter(|it| **it != NO_ANSWER).count();
    assert!([0, answers.len()].contains(&heard), "{answers:?}");
    heard > 0
}

#[test]
fn a_link_leads_to_the_ports_of_one_pod_of_the_same_host() {
    for (mode, make) in MODES {
        eprintln!("{mode}");
        beyond_peer(WHY, || {
            let fleet = Fleet::new(2);
            let apart = |host| {
                let keys = json!({"isGateway": true, "isDefaultGateway": true, "icc": false});
                conf::with(&make(&fleet, host, 5, Underlay::V4), keys)
            };
            let a = fleet.add(1, "a", &apart(1));
            let link = json!({"containerID": container_id(&a), "addresses": addresses(&a),
                "ports": ["80/tcp", "80/udp"]});
            let linked = conf::with(&apart(1), json!({"links": [link]}));
            let b = fleet.add(1, "b", &linked);
            let (d, far) = (fleet.add(1, "d", &apart(1)), fleet.add(2, "c", &apart(2)));
            let _servers = [&a, &b].map(|it| [80, 81].map(|port| it.serve(port)));
            assert!(served(&b, &a, 80));
            for (from, to, port) in [(&b, &a, 81), (&a, &b, 80), (&d, &a, 80), (&far, &a, 80)] {
                assert!(!served(from, to, port), "{} {port}", from.name());
            }
            fleet.cni(1).del(&linked, &b, "eth0").silent();
            fleet.cni(1).del(&apart(1), &a, "eth0").silent();
            for family in ["ip", "ip6"] {
                let nft = format!("nft list set {family} podwire_access links 2>/dev/null || :");
                let links = fleet.host(1).sh(&nft);
                assert!(!links.contains("elements"), "{links}");
            }
        });
    }
}
