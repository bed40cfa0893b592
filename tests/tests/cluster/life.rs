//! The verbs, the keys, and what happens without an agent.

use sandbox::{beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::node::{Cluster, addresses, distinct};

const WHY: &str = "it has no such IPAM plugin";

#[test]
fn an_address_is_handed_out_checked_and_released() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let keys = json!({"ranges": [[{"subnet": "fd07::/64"}]], "routes": [{"dst": "0.0.0.0/0"}]});
        let conf = cluster.conf("one", keys);
        let result = cluster.try_add(&conf, "a").result();
        let ips = addresses(&result);
        assert!(
            ips[0].starts_with("10.7.0.") && ips[0].ends_with("/24"),
            "{ips:?}"
        );
        assert!(
            ips[1].starts_with("fd07::") && ips[1].ends_with("/64"),
            "{ips:?}"
        );
        assert_eq!(result["ips"][0]["gateway"], "10.7.0.1");
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        let twice = cluster.try_add(&conf, "a").error();
        assert!(
            twice.msg.contains("duplicate allocation is not allowed"),
            "{}",
            twice.msg
        );
        let checked = conf::with_prev(&conf, &result);
        cluster
            .cni("a")
            .check(&checked, &cluster.pod, "eth0")
            .silent();
        let mut other = result.clone();
        other["ips"][0]["address"] = "10.7.0.99/24".into();
        let other = conf::with_prev(&conf, &other);
        cluster.cni("a").check(&other, &cluster.pod, "eth0").error();
        cluster.del(&conf, "a");
        cluster.del(&conf, "a");
        cluster
            .cni("a")
            .check(&checked, &cluster.pod, "eth0")
            .error();
        assert_eq!(cluster.status("one")["use"], json!({}));
        // The one that has been free longest is next.
        assert_ne!(cluster.add(&conf, "a"), ips);
        cluster.del(&conf, "a");
    });
}

#[test]
fn without_an_agent_add_says_so_and_del_is_done_later() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let conf = cluster.conf("one", json!({}));
        let error = cluster.try_add(&conf, "a").error();
        assert_eq!(error.code, 11);
        assert!(
            error.msg.contains("connect to the agent at"),
            "{}",
            error.msg
        );
        cluster.del(&conf, "a");
        let agent = cluster.ready("one", json!({}));
        cluster.add(&conf, "a");
        let kept = cluster.add(&conf, "b");
        // As after a crash.
        drop(agent);
        // One line for each, however often a runtime repeats it.
        for id in ["a", "a", "never", "a"] {
            cluster.del(&conf, id);
        }
        let left = cluster.sandbox.dir().join("one/ipam/released");
        let lines = || cluster.sandbox.read(&left).unwrap_or_default();
        assert_eq!(lines().split_whitespace().count(), 1, "{}", lines());
        assert_eq!(cluster.cni("x").status(&conf).error().code, 50);
        let again = cluster.try_add(&conf, "c").error();
        assert_eq!(again.code, 11);
        let _agent = cluster.ready("one", json!({}));
        assert_eq!(cluster.status("one")["use"], json!({"testnet": 1}));
        assert!(!left.exists());
        let all: Vec<_> = (0..20)
            .flat_map(|n| cluster.add(&conf, &format!("d{n}")))
            .collect();
        assert_eq!(distinct(&all), 20);
        assert!(!all.contains(&kept[0]));
    });
}

#[test]
fn bad_values_are_refused_with_their_keys() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        for (keys, part) in [
            (json!({"subnet": "10.7.0.0/33"}), "subnet"),
            (json!({"subnet": null}), "no IP ranges specified"),
            (
                json!({"rangeStart": "10.8.0.1"}),
                "RangeStart 10.8.0.1 not in network",
            ),
            (json!({"exclude": ["x"]}), "ipam.exclude[0]"),
            (json!({"exclude": "x"}), "exclude"),
            (
                json!({"exclude": ["10.7.0.0/24"]}),
                "no address that is neither",
            ),
            (
                json!({"reserved": ["10.7.0.9-10.7.0.3"]}),
                "ipam.reserved[0]",
            ),
            (json!({"pool": "a/b"}), "ipam.pool"),
            (
                json!({"blockSize": 12}),
                "ipam.blockSize: 12 is not between 22 and 32",
            ),
            (json!({"blockSizeIPv6": 64}), "ipam.blockSizeIPv6"),
            (json!({"coolDownSeconds": -1}), "coolDownSeconds"),
            (json!({"sticky": "yes"}), "sticky"),
            (json!({"agent": "here"}), "ipam.agent"),
            (json!({"dataDir": "here"}), "ipam.dataDir"),
            (
                json!({"routes": [{"dst": "10.0.0.1/8"}]}),
                "ipam.routes[0].dst",
            ),
        ] {
            let error = cluster
                .try_add(&cluster.conf("one", keys.clone()), "a")
                .error();
            assert!(error.msg.contains(part), "{keys}: {}", error.msg);
            assert!([6, 7].contains(&error.code), "{keys}: {}", error.code);
            // DEL does not look at them.
            cluster.del(&cluster.conf("one", keys), "a");
        }
    });
}

#[test]
fn requests_are_met_and_reserved_addresses_are_for_them_alone() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let keys = json!({"subnet": "10.7.0.0/28", "exclude": ["10.7.0.2-10.7.0.5"], "reserved": ["10.7.0.14"]});
        let conf = cluster.conf("one", keys);
        let request = |id: &str, ip: &str| cluster.cni(id).args(&format!("IP={ip}"));
        let requested = request("a", "10.7.0.9")
            .add(&conf, &cluster.pod, "eth0")
            .result();
        assert_eq!(addresses(&requested), ["10.7.0.9/28"]);
        let taken = request("b", "10.7.0.9")
            .add(&conf, &cluster.pod, "eth0")
            .error();
        assert!(
            taken.msg.contains("10.7.0.9 is not available"),
            "{}",
            taken.msg
        );
        for (ip, part) in [
            ("10.7.0.3", "exclude"),
            ("10.7.0.1", "gateway"),
            ("10.9.0.1", "failed to allocate all"),
        ] {
            let refused = request("b", ip).add(&conf, &cluster.pod, "eth0").error();
            assert!(refused.msg.contains(part), "{}", refused.msg);
        }
        let mut by_capability = conf.clone();
        by_capability["runtimeConfig"] = json!({"ips": ["10.7.0.14/28"]});
        assert_eq!(cluster.add(&by_capability, "c"), ["10.7.0.14/28"]);
        // 6, 7, 8, 10, 11, 12, 13
        let all: Vec<_> = (0..7)
            .flat_map(|n| cluster.add(&conf, &format!("d{n}")))
            .collect();
        assert_eq!(distinct(&all), 7);
        let full = cluster.try_add(&conf, "e").error();
        assert_eq!(full.code, 11);
        assert!(
            full.msg
                .contains("no IP addresses available in range set: 10.7.0.6-10.7.0.13"),
            "{}",
            full.msg
        );
        // Ranges may change under pods.
        let wider = cluster.conf(
            "one",
            json!({"subnet": "10.7.0.0/28", "exclude": ["10.7.0.2-10.7.0.4"]}),
        );
        assert_eq!(cluster.add(&wider, "e"), ["10.7.0.5/28"]);
        let size = cluster.conf("one", json!({"subnet": "10.7.0.0/28", "blockSize": 26}));
        let refused = cluster.try_add(&size, "f").error();
        assert!(
            refused.code == 7 && refused.msg.contains("in the store"),
            "{}",
            refused.msg
        );
    });
}

#[test]
fn what_users_of_whereabouts_report_does_not_happen() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        // Of two interfaces of a pod, the DEL of one leaves the other's address.
        let conf = cluster.conf("one", json!({}));
        let add = |ifname: &str| cluster.cni("a").add(&conf, &cluster.pod, ifname).result();
        let (first, second) = (add("net1"), add("net2"));
        cluster.cni("a").del(&conf, &cluster.pod, "net1").silent();
        let check = |ifname: &str, result: &Value| {
            let conf = conf::with_prev(&conf, result);
            let checked = cluster.cni("a").check(&conf, &cluster.pod, ifname);
            checked.code() == 0
        };
        assert!(check("net2", &second) && !check("net1", &first));
        // Both ends of a range are handed out.
        let ends = json!({"pool": "ends", "rangeStart": "10.7.0.250", "rangeEnd": "10.7.0.252"});
        let ends = cluster.conf("one", ends);
        let mut all: Vec<_> = (0..3)
            .flat_map(|n| cluster.add(&ends, &format!("e{n}")))
            .collect();
        all.sort();
        assert_eq!(all, ["10.7.0.250/24", "10.7.0.251/24", "10.7.0.252/24"]);
        // Thousands of excluded addresses.
        let exclude: Vec<_> = (0..3_000).map(|n| format!("fd07::1:{:x}", 2 * n)).collect();
        let range =
            json!({"subnet": "fd07::/64", "rangeStart": "fd07::1:0", "rangeEnd": "fd07::1:1770"});
        let holes =
            json!({"pool": "holes", "subnet": null, "ranges": [[range]], "exclude": exclude});
        let ip = cluster.add(&cluster.conf("one", holes), "h");
        let last = ip[0].trim_end_matches("/64").rsplit(':').next();
        let last = last.and_then(|it| u32::from_str_radix(it, 16).ok());
        assert!(last.is_some_and(|it| it % 2 == 1), "{ip:?}");
        // The end of a subnet with more than 2^64 addresses.
        let range =
            json!({"subnet": "fd08::/32", "rangeStart": "fd08:0:ffff:ffff:ffff:ffff:ffff:fff0"});
        let far = json!({"pool": "far", "subnet": null, "ranges": [[range]]});
        let ip = cluster.add(&cluster.conf("one", far), "f");
        assert!(
            ip[0].starts_with("fd08:0:ffff:ffff:ffff:ffff:ffff:fff"),
            "{ip:?}"
        );
    });
}

#[test]
fn a_journal_that_was_deleted_under_pods_is_noticed() {
    beyond_peer(WHY, || {
        let cluster = Cluster::with_etcd();
        // Before the end of its lease it is taken for a second agent.
        let quick = json!({"leaseSeconds": 5});
        let agent = cluster.ready("one", quick.clone());
        let conf = cluster.conf("one", json!({}));
        let lost = cluster.add(&conf, "a");
        drop(agent);
        std::fs::remove_dir_all(cluster.sandbox.dir().join("one/ipam"))
            .expect("remove the journal");
        let _agent = cluster.ready("one", quick);
        let state = cluster.status("one");
        assert_eq!(state["doubtful"][0]["pool"], "testnet", "{state}");
        let all: Vec<_> = (0..40)
            .flat_map(|n| cluster.add(&conf, &format!("b{n}")))
            .collect();
        assert!(!all.contains(&lost[0]));
    });
}

#[test]
fn a_released_address_rests() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let keys = json!({"subnet": "10.7.0.0/30", "coolDownSeconds": 3600});
        let conf = cluster.conf("one", keys.clone());
        cluster.add(&conf, "a");
        cluster.del(&conf, "a");
        let error = cluster.try_add(&conf, "b").error();
        assert!(
            error.code == 11 && error.msg.contains("rests for"),
            "{}",
            error.msg
        );
        let eager = cluster.conf("one", json!({"subnet": "10.7.0.0/30"}));
        assert_eq!(cluster.add(&eager, "b"), ["10.7.0.2/30"]);
    });
}

#[test]
fn an_address_follows_a_name() {
    beyond_peer(WHY, || {
        let cluster = Cluster::with_etcd();
        let _agents = ["one", "two"].map(|it| cluster.ready(it, json!({})));
        let named = |node: &str, id: &str, name: &str| -> Vec<String> {
            let conf = cluster.conf(node, json!({"sticky": true}));
            let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=x;K8S_POD_NAME={name}");
            cluster.persist(|| {
                let call = cluster.cni(id).args(&args);
                call.add(&conf, &cluster.pod, "eth0")
            })
        };
        let first = named("one", "a", "db-0");
        let conf = cluster.conf("one", json!({}));
        cluster.del(&conf, "a");
        let others: Vec<_> = (0..40)
            .flat_map(|n| cluster.add(&conf, &format!("o{n}")))
            .collect();
        assert!(!others.contains(&first[0]), "kept for db-0");
        assert_eq!(named("one", "b", "db-0"), first);
        cluster.del(&conf, "b");
        // On another node, which borrows it.
        assert_eq!(named("two", "c", "db-0"), first);
        cluster.del(&cluster.conf("two", json!({})), "c");
        assert_eq!(named("one", "d", "db-0"), first);
    });
}

#[test]
fn gc_looks_at_the_list_and_at_the_namespace() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let conf = cluster.conf("one", json!({"ranges": [[{"subnet": "fd07::/64"}]]}));
        let gone = cluster.sandbox.pod("gone");
        let add = |id: &str, pod| cluster.cni(id).add(&conf, pod, "eth0").result();
        add("listed", &gone);
        add("stale", &gone);
        add("lives", &cluster.pod);
        cluster.sandbox.remove_pod(&gone);
        let listed = conf::with_valid(&conf, &[("listed", "eth0")]);
        cluster.cni("x").gc(&listed).silent();
        // Two addresses each.
        assert_eq!(cluster.status("one")["use"], json!({"testnet": 4}));
        let none = conf::with_valid(&conf, &[]);
        cluster.cni("x").gc(&none).silent();
        assert_eq!(cluster.status("one")["use"], json!({"testnet": 2}));
        let held = |id: &str| {
            let conf = conf::with_prev(&conf, &json!({"cniVersion": "1.1.0", "ips": []}));
            cluster.cni(id).check(&conf, &cluster.pod, "eth0").code() == 0
        };
        assert!(held("lives") && !held("listed"));
    });
}

#[test]
fn a_bridge_gets_its_addresses_from_it() {
    beyond_peer(WHY, || {
        let cluster = Cluster::new();
        let _agent = cluster.ready("one", json!({}));
        let mut conf: Value = cluster.conf("one", json!({}));
        conf["bridge"] = "cni0".into();
        let snapshot = cluster.sandbox.snapshot().allow_bridge_network();
        let pods = ["p", "q"].map(|it| cluster.sandbox.pod(it));
        for pod in &pods {
            cluster
                .sandbox
                .cni("bridge")
                .add(&conf, pod, "eth0")
                .result();
        }
        let to = pods[1].addresses("eth0");
        let to = to[0].split('/').next().unwrap();
        assert!(
            pods[0].ping(to, 1).iter().all(|it| *it),
            "{}",
            container_id(&pods[0])
        );
        for pod in &pods {
            cluster
                .sandbox
                .cni("bridge")
                .del(&conf, pod, "eth0")
                .silent();
        }
        assert_eq!(cluster.status("one")["use"], json!({}));
        for pod in pods {
            cluster.sandbox.remove_pod(&pod);
        }
        drop(snapshot);
    });
}
