//! The life of an attachment and of what all pods share; hosts that come back different.

use std::thread;

use sandbox::{Netns, beyond_peer, conf};
use serde_json::{Value, json};

use crate::fleet::{BOTH, Fleet, Underlay, addresses, subnets};
use crate::traffic::{MODES, WHY, silent};

const NONE: [String; 0] = [];

#[test]
fn add_check_del_leave_what_the_network_shares() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            for underlay in BOTH {
                let fleet = Fleet::new(1);
                let conf = make(&fleet, 1, 5, underlay);
                let (pod, result) = fleet.attached(1, "a", &conf);
                let names: Vec<&str> = result["interfaces"]
                    .as_array()
                    .expect("interfaces")
                    .iter()
                    .filter_map(|it| it["name"].as_str())
                    .collect();
                assert!(
                    names[0].starts_with("vxbr") && names[1].starts_with("veth"),
                    "{names:?}"
                );
                assert_eq!(&names[2..], ["eth0", "vxlan.5"]);
                assert_eq!(result["ips"][0]["interface"], 2);
                let checked = conf::with_prev(&conf, &result);
                fleet.cni(1).check(&checked, &pod, "eth0").silent();
                fleet.status(1, &conf).silent();
                fleet.cni(1).del(&conf, &pod, "eth0").silent();
                fleet.cni(1).del(&conf, &pod, "eth0").silent();
                assert_eq!(pod.links(), ["lo"], "{mode}");
                let left = fleet.host(1).links();
                assert_eq!(left.len(), 4, "{mode}: {left:?}");
                assert!(left.contains(&"vxlan.5".to_owned()), "{left:?}");
            }
        }
    });
}

#[test]
fn remove_when_empty_leaves_nothing_and_not_before_the_last_pod() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(1);
            let before = fleet.host(1).links();
            let change = json!({"removeWhenEmpty": true, "isDefaultGateway": true});
            let conf = conf::with(&make(&fleet, 1, 5, Underlay::V4), change);
            let (a, b) = (fleet.add(1, "a", &conf), fleet.add(1, "b", &conf));
            fleet.cni(1).del(&conf, &a, "eth0").silent();
            assert!(fleet.host(1).link("vxlan.5").is_some(), "{mode}");
            assert_eq!(b.ping("127.0.0.1", 1), [true]);
            fleet.cni(1).del(&conf, &b, "eth0").silent();
            assert_eq!(fleet.host(1).links(), before, "{mode}");
            let rules = fleet.host(1).sh("nft list table inet podwire_networks");
            assert!(!rules.contains("vxlan.5"), "{rules}");
            let routes = fleet.host(1).sh("ip route; ip -6 route");
            assert!(!routes.contains("vxlan.5"), "{routes}");
            // And again.
            let again = fleet.add(1, "c", &conf);
            fleet.cni(1).netns("").del(&conf, &again, "eth0").silent();
            assert_eq!(fleet.host(1).links(), before, "{mode}");
        }
    });
}

#[test]
fn pods_that_come_and_go_at_once_find_the_device() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let change = json!({"removeWhenEmpty": true});
        let conf = conf::with(&fleet.segment(1, 5, Underlay::V4), change);
        let pods: Vec<Netns> = (0..8).map(|n| fleet.pod(1, &format!("p{n}"))).collect();
        thread::scope(|scope| {
            for pod in &pods {
                let (fleet, conf) = (&fleet, &conf);
                scope.spawn(move || {
                    for _ in 0..4 {
                        fleet.cni(1).add(conf, pod, "eth0").result();
                        let link = pod.link("eth0").expect("eth0");
                        assert_eq!(link["operstate"], "UP", "{link}");
                        fleet.cni(1).del(conf, pod, "eth0").silent();
                    }
                });
            }
        });
        assert_eq!(fleet.host(1).links(), ["eth0", "lo"]);
    });
}

#[test]
fn gc_takes_the_pods_that_are_gone() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let change = json!({"removeWhenEmpty": true});
        let conf = conf::with(&fleet.routed(1, 5, Underlay::V4), change);
        let (a, _b) = (fleet.add(1, "a", &conf), fleet.add(1, "b", &conf));
        let id = sandbox::container_id(&a);
        fleet
            .cni(1)
            .gc(&conf::with_valid(&conf, &[(&id, "eth0")]))
            .silent();
        let veths = |fleet: &Fleet| {
            let links = fleet.host(1).links();
            links.iter().filter(|it| it.starts_with("veth")).count()
        };
        assert_eq!(veths(&fleet), 1);
        fleet.cni(1).gc(&conf::with_valid(&conf, &[])).silent();
        assert_eq!(fleet.host(1).links(), ["eth0", "lo"]);
    });
}

#[test]
fn check_notices_what_is_not_as_it_was() {
    beyond_peer(WHY, || {
        for (spoil, expected) in [
            ("ip link set vxlan.5 down", "device vxlan.5 is down"),
            (
                "ip link set vxlan.5 mtu 1400",
                "device vxlan.5 has MTU 1400, not 1450",
            ),
            (
                "ip link set vxlan.5 address 02:00:00:00:00:99",
                "device vxlan.5 has MAC",
            ),
            ("ip link del vxlan.5", "device vxlan.5 not found"),
            (
                "ip route del 10.5.2.0/24",
                "peers: vxlan.5 has no route 10.5.2.0/24 via 10.5.2.0",
            ),
            (
                "ip neigh del 10.5.2.0 dev vxlan.5",
                "peers: vxlan.5 has no neighbour 10.5.2.0",
            ),
            (
                "bridge fdb del $(bridge fdb show dev vxlan.5 | cut -d' ' -f1) dst 172.20.2.2 dev vxlan.5",
                "peers: vxlan.5 has no fdb",
            ),
            (
                "nft flush set inet podwire_networks pairs",
                "to inet podwire_networks pairs",
            ),
        ] {
            let fleet = Fleet::new(2);
            let conf = fleet.routed(1, 5, Underlay::V4);
            let (pod, result) = fleet.attached(1, "a", &conf);
            let conf = conf::with_prev(&conf, &result);
            fleet.cni(1).check(&conf, &pod, "eth0").silent();
            fleet.host(1).sh(spoil);
            let error = fleet.cni(1).check(&conf, &pod, "eth0").error();
            assert!(error.msg.contains(expected), "{spoil}: {}", error.msg);
        }
    });
}

/// A runtime takes every error of STATUS for the end of the node: where an ADD succeeds, it
/// is good, whatever the pods reach.
#[test]
fn status_fails_only_where_an_add_fails() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let conf = fleet.routed(1, 5, Underlay::V4);
        let named = conf::with(&conf, json!({"dev": "eth0"}));
        let agree = |conf: &Value, name: &str| {
            let pod = fleet.pod(1, name);
            let status = fleet.status(1, conf);
            let added = fleet.cni(1).add(conf, &pod, "eth0");
            assert_eq!(status.code(), added.code(), "{name}: {status:?}, {added:?}");
            status.code()
        };
        assert_eq!(agree(&conf, "first"), 0);
        // `podwire peers` reports a peer that the kernel lacks.
        fleet.host(1).sh("ip route del 10.5.2.0/24");
        assert_eq!(agree(&conf, "route"), 0);
        let listed = fleet.podwire(1, &conf, &["peers", "list", "net5"]);
        let expected = "the kernel has no route 10.5.2.0/24 via 10.5.2.0";
        assert!(listed.stderr.contains(expected), "{listed:?}");
        let listed = fleet.podwire(1, &conf, &["peers", "list", "net5", "--json"]);
        let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
        assert_eq!(listed["missing"], json!(["route 10.5.2.0/24 via 10.5.2.0"]));
        // Nor does an underlay that is down, while the device lives or its interface is named.
        fleet.host(1).sh("ip link set eth0 down");
        assert_eq!(agree(&conf, "down"), 0);
        let shown = fleet.podwire(1, &conf, &["status", "net5", "--verbose"]);
        assert!(shown.stderr.contains("underlay: eth0 is down"), "{shown:?}");
        fleet.host(1).sh("ip link del vxlan.5");
        assert_eq!(agree(&named, "named"), 0);
        fleet.host(1).sh("ip link del vxlan.5");
        assert_ne!(agree(&conf, "lost"), 0);
        let absent = conf::with(&conf, json!({"dev": "eth7"}));
        assert_ne!(agree(&absent, "absent"), 0);
        assert_eq!(fleet.status(1, &absent).error().code, 50);
    });
}

/// The device is looked at by every ADD, the peers' entries only when the list has changed.
#[test]
fn a_changed_list_is_carried_out_by_the_next_add_and_no_other() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(3);
        let mut conf = fleet.routed(1, 5, Underlay::V4);
        fleet.add(1, "a", &conf);
        let routes = |fleet: &Fleet| {
            fleet
                .host(1)
                .sh("ip route show dev vxlan.5")
                .lines()
                .count()
        };
        assert_eq!(routes(&fleet), 2);
        fleet.host(1).sh("ip route del 10.5.3.0/24");
        fleet.add(1, "b", &conf);
        assert_eq!(routes(&fleet), 1, "what was changed by hand stays");
        let peers = conf["peers"].as_array_mut().expect("peers");
        peers.push(json!({"vtep": "172.20.9.2", "subnet": "10.5.9.0/24"}));
        fleet.add(1, "c", &conf);
        assert_eq!(routes(&fleet), 3);
        conf["peers"] = json!([]);
        fleet.add(1, "d", &conf);
        assert_eq!(routes(&fleet), 0);
        let left = fleet
            .host(1)
            .sh("bridge fdb show dev vxlan.5; ip neigh show dev vxlan.5 nud permanent");
        assert_eq!(left, "");
    });
}

#[test]
fn a_host_that_returns_with_another_mac_is_reached_again() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(2);
            let a = fleet.add(1, "a", &make(&fleet, 1, 5, Underlay::V4));
            let conf = make(&fleet, 2, 5, Underlay::V4);
            let b = fleet.add(2, "b", &conf);
            assert_eq!(silent(&a, &addresses(&b)), NONE, "{mode}");
            // It leaves without a word.
            fleet.cni(2).del(&conf, &b, "eth0").silent();
            fleet
                .host(2)
                .sh("for l in $(ls /sys/class/net); do :; done; ip link del vxlan.5");
            let conf = conf::with(&conf, json!({"mac": "02:00:00:00:02:02"}));
            let b = fleet.add(2, "c", &conf);
            let mut changed = make(&fleet, 1, 5, Underlay::V4);
            if mode == "l3" {
                changed["peers"] = json!([
                    {"vtep": "172.20.2.2", "mac": "02:00:00:00:02:02", "subnet": subnets(5, 2)}
                ]);
            }
            let _next = fleet.add(1, "d", &changed);
            assert_eq!(silent(&a, &addresses(&b)), NONE, "{mode}");
            let shown = fleet
                .host(1)
                .sh("bridge fdb show dev vxlan.5 | grep -c dst");
            if mode == "l3" {
                assert_eq!(shown.trim(), "1", "{shown}");
            }
        }
    });
}

#[test]
fn a_host_that_returns_with_another_address_is_reached_again() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(2);
            let conf = make(&fleet, 2, 5, Underlay::V4);
            let a = fleet.add(1, "a", &make(&fleet, 1, 5, Underlay::V4));
            let b = fleet.add(2, "b", &conf);
            assert_eq!(silent(&a, &addresses(&b)), NONE, "{mode}");
            fleet.host(2).sh(
                "ip address add 172.20.2.77/24 dev eth0; ip address del 172.20.2.2/24 dev eth0
                 ip address add 172.20.2.77/24 dev eth0 2>/dev/null || :
                 ip route replace default via 172.20.2.1",
            );
            // The next pod there finds that the device sends from nowhere.
            let c = fleet.add(2, "c", &conf);
            let shown = fleet.host(2).sh("ip -d link show dev vxlan.5");
            assert!(shown.contains("local 172.20.2.77"), "{shown}");
            let mut changed = make(&fleet, 1, 5, Underlay::V4);
            changed["peers"][0]["vtep"] = "172.20.2.77".into();
            let _next = fleet.add(1, "d", &changed);
            let both: Vec<String> = [&b, &c].into_iter().flat_map(addresses).collect();
            assert_eq!(silent(&a, &both), NONE, "{mode}");
        }
    });
}

#[test]
fn an_address_that_another_hosts_pod_had_answers_at_once() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let fixed = |host: usize| {
            let mut conf = fleet.segment(host, 5, Underlay::V4);
            conf["ipam"] = json!({"type": "static", "addresses": [
                {"address": "10.5.0.77/16"}, {"address": "fd00:5::77/64"}]});
            conf
        };
        let watcher = fleet.add(1, "w", &fleet.segment(1, 5, Underlay::V4));
        let first = fleet.add(1, "a", &fixed(1));
        let ips = addresses(&first);
        assert_eq!(silent(&watcher, &ips), NONE);
        fleet.cni(1).del(&fixed(1), &first, "eth0").silent();
        let _second = fleet.add(2, "b", &fixed(2));
        assert_eq!(silent(&watcher, &ips), NONE);
    });
}

#[test]
fn a_network_works_beside_a_thousand_others() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let devices = (1000..2000).map(|vni| {
            format!(
                "link add vxlan.{vni} type vxlan id {vni} dstport 4789 local 172.20.1.2 dev eth0\n"
            )
        });
        fleet
            .sandbox
            .write("/run/batch", devices.collect::<String>());
        fleet.host(1).sh("ip -batch /run/batch");
        let a = fleet.add(1, "a", &fleet.routed(1, 5, Underlay::V4));
        let b = fleet.add(2, "b", &fleet.routed(2, 5, Underlay::V4));
        assert_eq!(silent(&a, &addresses(&b)), NONE);
    });
}

#[test]
fn what_a_host_has_is_the_same_over_an_address_of_lo() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        for n in [1, 2] {
            fleet
                .host(n)
                .sh(&format!("ip address add 172.30.0.{n}/32 dev lo"));
            fleet
                .sandbox
                .host()
                .sh(&format!("ip route add 172.30.0.{n}/32 via 172.20.{n}.2"));
        }
        let conf = |host: usize| {
            let mut conf = fleet.routed(host, 5, Underlay::V4);
            let other = 3 - host;
            conf["local"] = format!("172.30.0.{host}").into();
            conf["peers"] = json!([
                {"vtep": format!("172.30.0.{other}"), "subnet": subnets(5, other)}
            ]);
            conf
        };
        let (a, b) = (fleet.add(1, "a", &conf(1)), fleet.add(2, "b", &conf(2)));
        assert_eq!(silent(&a, &addresses(&b)), NONE);
        assert_eq!(a.link("eth0").expect("eth0")["mtu"], 1450);
        // And a second pod finds the device as it is.
        let c = fleet.add(1, "c", &conf(1));
        assert_eq!(silent(&c, &addresses(&b)), NONE);
    });
}

#[test]
fn a_pod_may_have_interfaces_of_both_kinds() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let pod = |host: usize| {
            let pod = fleet.pod(host, "a");
            let one = fleet.routed(host, 5, Underlay::V4);
            let two = fleet.segment(host, 6, Underlay::V6);
            fleet.cni(host).add(&one, &pod, "eth0").result();
            fleet.cni(host).add(&two, &pod, "net1").result();
            pod
        };
        let (a, b) = (pod(1), pod(2));
        let all = |pod: &Netns| -> Vec<String> {
            let of = |link: &str| pod.addresses(link);
            let both = [of("eth0"), of("net1")].concat();
            both.iter()
                .map(|it| it.split('/').next().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(silent(&a, &all(&b)), NONE);
        let conf: Value = fleet.segment(1, 6, Underlay::V6);
        fleet.cni(1).del(&conf, &a, "net1").silent();
        assert_eq!(a.links(), ["eth0", "lo"]);
    });
}
