//! `hostShim` of macvlan: the node and its macvlan pods reach each other, for as long as there are
//! any, and no longer.

use sandbox::{MACHINE, Netns, Sandbox, Segment, Suite, beyond_peer, conf};
use serde_json::{Value, json};

const WHY: &str = "hostShim is ours";
const SHIM: [&str; 2] = ["10.1.0.250", "fd01::250"];
const PODS: [[&str; 2]; 2] = [["10.1.0.2", "fd01::2"], ["10.1.0.3", "fd01::3"]];

fn with_shim(change: Value) -> Value {
    let base = conf::macvlan(&["10.1.0.0/24", "fd01::/64"]);
    let shim =
        json!({"hostShim": {"name": "shim0", "address": ["10.1.0.250/32", "fd01::250/128"]}});
    conf::with(&conf::with(&base, shim), change)
}

fn shim() -> Value {
    with_shim(json!({}))
}

struct Node {
    sandbox: Sandbox,
    segment: Segment,
    pods: [Netns; 2],
}

fn node() -> Node {
    let sandbox = Sandbox::new();
    let segment = sandbox.segment();
    let pods = [sandbox.pod("a"), sandbox.pod("b")];
    Node {
        sandbox,
        segment,
        pods,
    }
}

impl Node {
    fn add(&self, conf: &Value, pod: usize) -> Value {
        let cni = self.sandbox.cni("macvlan");
        cni.add(conf, &self.pods[pod], "eth0").result()
    }

    fn del(&self, conf: &Value, pod: usize) {
        let cni = self.sandbox.cni("macvlan");
        cni.del(conf, &self.pods[pod], "eth0").silent();
    }

    fn gc(&self, conf: &Value, valid: &[usize]) {
        let ids: Vec<_> = valid
            .iter()
            .map(|pod| sandbox::container_id(&self.pods[*pod]))
            .collect();
        let valid: Vec<_> = ids.iter().map(|id| (&**id, "eth0")).collect();
        let cni = self.sandbox.cni("macvlan");
        cni.gc(&conf::with_valid(conf, &valid)).silent();
    }

    /// The single addresses that the node reaches by its shim.
    fn routed(&self) -> Vec<String> {
        let host = self.sandbox.host();
        let mut all = Vec::new();
        for family in ["-4", "-6"] {
            let routes = host.routes(family);
            let of_shim = routes.iter().filter(|it| it["dev"] == "shim0");
            let single = of_shim.filter_map(|it| it["dst"].as_str());
            all.extend(single.filter(|dst| !dst.contains('/')).map(str::to_owned));
        }
        all.sort();
        all
    }

    fn has_shim(&self) -> bool {
        self.sandbox.host().link("shim0").is_some()
    }
}

#[track_caller]
fn reaches(from: &Netns, to: &[&str]) {
    for to in to {
        assert!(from.ping(to, 3).contains(&true), "{to} does not answer");
    }
}

#[test]
fn node_and_pods_reach_each_other_while_there_are_pods() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        for (number, addresses) in PODS.iter().enumerate() {
            node.add(&shim(), number);
            let pod = &node.pods[number];
            reaches(&node.sandbox.host(), addresses);
            reaches(pod, &SHIM);
            reaches(&node.segment.machine, addresses);
            reaches(pod, &MACHINE);
        }
        let host = node.sandbox.host();
        let link = host.link("shim0").expect("shim0");
        assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
        assert_eq!(link["ifalias"], "podwire:testnet");
        assert_eq!(host.sysctl("net/ipv6/conf/shim0/accept_ra"), "0");
        assert_eq!(
            node.routed(),
            ["10.1.0.2", "10.1.0.3", "fd01::2", "fd01::3"]
        );

        node.del(&shim(), 0);
        assert_eq!(node.routed(), ["10.1.0.3", "fd01::3"]);
        reaches(&host, &PODS[1]);
        for _ in 0..2 {
            node.del(&shim(), 1);
            assert!(!node.has_shim());
        }
        snapshot.assert_unchanged();
    });
}

#[test]
fn del_needs_neither_namespace_nor_result_nor_the_key() {
    beyond_peer(WHY, || {
        for later in [json!({}), json!({"hostShim": null}), json!({"hostShim": 7})] {
            let mut without = shim();
            for (key, value) in later.as_object().expect("an object") {
                without[key] = value.clone();
            }
            let node = node();
            let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
            for pod in 0..2 {
                node.add(&shim(), pod);
            }
            for (pod, left) in [(0, &["10.1.0.3", "fd01::3"][..]), (1, &[])] {
                node.pods[pod].sh("ip link del eth0");
                let cni = node.sandbox.cni("macvlan").unset("CNI_NETNS");
                let outcome = cni.del(&without, &node.pods[pod], "eth0");
                assert_eq!(outcome.code(), 0, "{}", outcome.stdout());
                assert_eq!(node.routed(), left);
            }
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn del_does_without_its_notes() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let results = [node.add(&shim(), 0), node.add(&shim(), 1)];
        node.sandbox.host().sh("rm -r /run/podwire/shared");
        node.del(&conf::with_prev(&shim(), &results[0]), 0);
        assert_eq!(node.routed(), ["10.1.0.3", "fd01::3"]);
        // Without a result, GC is left.
        node.del(&shim(), 1);
        assert_eq!(node.routed(), ["10.1.0.3", "fd01::3"]);
        node.gc(&shim(), &[]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn the_last_del_takes_the_shim_where_no_note_can_be() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node
            .sandbox
            .snapshot()
            .allow_host_local(conf::NETWORK)
            .allow("/run/podwire");
        let results = [node.add(&shim(), 0), node.add(&shim(), 1)];
        let host = node.sandbox.host();
        host.sh("rm -r /run/podwire/shared; echo text >/run/podwire/shared");
        node.del(&conf::with_prev(&shim(), &results[0]), 0);
        assert_eq!(node.routed(), ["10.1.0.3", "fd01::3"]);
        node.del(&conf::with_prev(&shim(), &results[1]), 1);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_note_that_cannot_be_read_costs_no_pod_its_route() {
    beyond_peer(WHY, || {
        for spoil in [
            "for note in $notes; do : >$note; done",
            "for note in $notes; do echo text >$note; done",
            "for note in $notes; do rm $note; ln -s /etc/passwd $note; done",
        ] {
            let node = node();
            let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
            let results = [node.add(&shim(), 0), node.add(&shim(), 1)];
            let notes = "notes=$(echo /run/podwire/shared/*/testnet/shim-shim0/*)";
            node.sandbox.host().sh(&format!("{notes}\n{spoil}"));
            node.gc(&shim(), &[0, 1]);
            assert_eq!(node.routed().len(), 4, "{spoil}");
            node.del(&conf::with_prev(&shim(), &results[0]), 0);
            assert_eq!(node.routed(), ["10.1.0.3", "fd01::3"], "{spoil}");
            node.del(&conf::with_prev(&shim(), &results[1]), 1);
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn a_second_del_leaves_the_route_of_the_next_pod() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let fixed = |ip: &str| {
            let ranges = json!([[{"subnet": "10.1.0.0/24", "rangeStart": ip, "rangeEnd": ip}]]);
            conf::with(&shim(), json!({"ipam": {"ranges": ranges}}))
        };
        let result = node.add(&fixed("10.1.0.7"), 0);
        let del = conf::with_prev(&fixed("10.1.0.7"), &result);
        node.del(&del, 0);
        node.add(&fixed("10.1.0.7"), 1);
        node.del(&del, 0);
        assert_eq!(node.routed(), ["10.1.0.7"]);
        reaches(&node.sandbox.host(), &["10.1.0.7"]);
        node.del(&fixed("10.1.0.7"), 1);
        snapshot.assert_unchanged();
    });
}

#[test]
fn gc_takes_what_a_del_that_does_not_know_the_shim_has_left() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        node.add(&shim(), 0);
        node.add(&shim(), 1);
        // As the Go plugin's DEL has it.
        node.pods[0].sh("ip link del eth0");
        node.gc(&shim(), &[0, 1]);
        assert_eq!(node.routed().len(), 4);
        node.gc(&shim(), &[1]);
        assert_eq!(node.routed(), ["10.1.0.3", "fd01::3"]);
        let mut without = shim();
        without["hostShim"] = Value::Null;
        node.gc(&without, &[]);
        snapshot.assert_unchanged();
    });
}

#[test]
fn an_interface_of_that_name_is_left_alone() {
    beyond_peer(WHY, || {
        for made in [
            "ip link add shim0 type bridge",
            "ip link add shim0 link eth1 type macvlan mode bridge",
            "ip link add shim0 link eth1 type macvlan mode bridge; ip link set shim0 alias podwire:othernet",
            "ip link add x9 type bridge; ip link set x9 up
             ip link add shim0 link x9 type macvlan mode bridge; ip link set shim0 alias podwire:testnet",
        ] {
            let node = node();
            node.sandbox.host().sh(made);
            let snapshot = node.sandbox.snapshot();
            let cni = || node.sandbox.cni("macvlan");
            for error in [
                cni().add(&shim(), &node.pods[0], "eth0").error(),
                cni().status(&shim()).error(),
            ] {
                assert_eq!(error.code, 7, "{made}: {}", error.msg);
                assert!(error.msg.starts_with("hostShim.name: "), "{}", error.msg);
            }
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn what_contradicts_it_is_refused() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot();
        for (change, says) in [
            (json!({"mode": "private"}), "hostShim: mode private"),
            (
                json!({"linkInContainer": true}),
                "hostShim: the parent is in the pod",
            ),
            (
                json!({"hostShim": {"name": ""}}),
                "hostShim.name: interface name is empty",
            ),
            (
                json!({"hostShim": {"name": "eth1"}}),
                "hostShim.name: \"eth1\" is the master",
            ),
            (
                json!({"hostShim": {"address": []}}),
                "hostShim.address: missing",
            ),
            (
                json!({"hostShim": {"address": "10.1.0.250"}}),
                "hostShim.address: invalid CIDR address",
            ),
            (
                json!({"hostShim": {"address": "10.1.0.0/24"}}),
                "hostShim.address: 10.1.0.0/24 cannot be",
            ),
            (
                json!({"hostShim": {"address": "ff02::1/128"}}),
                "hostShim.address: ff02::1/128 cannot be",
            ),
        ] {
            let conf = with_shim(change);
            let cni = || node.sandbox.cni("macvlan");
            for error in [
                cni().add(&conf, &node.pods[0], "eth0").error(),
                cni().status(&conf).error(),
            ] {
                assert_eq!(error.code, 7, "{}", error.msg);
                assert!(error.msg.contains(says), "{}", error.msg);
            }
        }
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_failed_add_leaves_what_others_have() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]],
            "routes": [{"dst": "10.8.0.0/16", "gw": "192.0.2.1"}]});
        let mut failing = shim();
        failing["ipam"] = ipam;
        let fails = || {
            let cni = node.sandbox.cni("macvlan");
            cni.add(&failing, &node.pods[0], "eth0").error();
        };
        fails();
        snapshot.assert_unchanged();
        node.add(&shim(), 1);
        let routed = node.routed();
        fails();
        assert_eq!(node.routed(), routed);
        // The first attachment stays when a second ADD of it fails.
        let cni = node.sandbox.cni("macvlan");
        cni.add(&shim(), &node.pods[1], "eth0").error();
        assert_eq!(node.routed(), routed);
        node.del(&shim(), 1);
        snapshot.assert_unchanged();
    });
}

#[test]
fn the_address_of_the_shim_is_no_pods() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let same = json!({"hostShim": {"address": "10.1.0.2/32"}});
        let cni = node.sandbox.cni("macvlan");
        let error = cni
            .add(&with_shim(same.clone()), &node.pods[0], "eth0")
            .error();
        assert_eq!(error.code, 7);
        assert_eq!(error.msg, "the node has the pod's address 10.1.0.2 itself");
        snapshot.assert_unchanged();
    });
}

#[test]
fn detect_conflicts_passes_over_the_address_of_the_shim() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let shim = json!({"address": ["10.1.0.2/32", "fd01::250/128"]});
        let asks = with_shim(json!({"hostShim": shim, "detectConflicts": true}));
        node.add(&asks, 0);
        assert_eq!(node.routed()[0], "10.1.0.3");
        reaches(&node.sandbox.host(), &["10.1.0.3"]);
        node.del(&asks, 0);
        snapshot.assert_unchanged();
    });
}

#[test]
fn check_notices_what_is_not_as_configured() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        let mut conf = shim();
        conf["ipam"]["ranges"] = json!([
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"}],
            [{"subnet": "fd01::/64", "rangeStart": "fd01::9", "rangeEnd": "fd01::9"}],
        ]);
        for (tamper, says) in [
            (
                "ip addr del 10.1.0.250/32 dev shim0",
                "has no address 10.1.0.250/32",
            ),
            (
                "ip addr del fd01::250/128 dev shim0",
                "has no address fd01::250/128",
            ),
            (
                "ip link set shim0 type macvlan mode private",
                "of mode private",
            ),
            ("ip route del 10.1.0.9", "no route to 10.1.0.9"),
            ("ip -6 route del fd01::9", "no route to fd01::9"),
            ("ip link set shim0 down", "is down"),
            ("ip link del shim0", "is missing"),
        ] {
            let result = node.add(&conf, 0);
            let checked = conf::with_prev(&conf, &result);
            let check = || {
                let cni = node.sandbox.cni("macvlan");
                cni.check(&checked, &node.pods[0], "eth0")
            };
            check().silent();
            node.sandbox.host().sh(tamper);
            let error = check().error();
            assert!(error.msg.contains(says), "{tamper}: {}", error.msg);
            node.del(&conf, 0);
            assert!(!node.has_shim());
        }
        snapshot.assert_unchanged();
    });
}

#[test]
fn what_another_program_took_away_comes_back_with_the_next_pod() {
    beyond_peer(WHY, || {
        for tamper in ["ip link del shim0", "ip link set shim0 down"] {
            let node = node();
            let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
            node.add(&shim(), 0);
            node.sandbox.host().sh(tamper);
            node.add(&shim(), 1);
            for pod in &PODS {
                reaches(&node.sandbox.host(), pod);
            }
            node.del(&shim(), 1);
            node.del(&shim(), 0);
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn another_address_takes_the_place_of_the_first() {
    beyond_peer(WHY, || {
        let node = node();
        let snapshot = node.sandbox.snapshot().allow_host_local(conf::NETWORK);
        node.add(&shim(), 0);
        let other = with_shim(json!({"hostShim": {"address": "10.1.0.251/24"}}));
        node.add(&other, 1);
        let host = node.sandbox.host();
        let addresses = host.addresses("shim0");
        assert_eq!(addresses, ["10.1.0.251/24"]);
        // It takes no part of the segment away from its parent.
        assert!(host.routes_to("-4", "10.1.0.0/24").is_empty());
        reaches(&node.pods[0], &["10.1.0.251"]);
        node.del(&shim(), 1);
        node.del(&other, 0);
        snapshot.assert_unchanged();
    });
}

#[test]
fn an_address_that_the_node_needs_is_not_turned_to_a_pod() {
    beyond_peer(WHY, || {
        let node = node();
        node.sandbox
            .host()
            .sh("ip addr add 10.1.0.50/24 dev eth1; ip route add default via 10.1.0.1");
        let snapshot = node.sandbox.snapshot();
        let mut conf = shim();
        conf["ipam"] = json!({"type": "static"});
        for (ip, says) in [
            ("10.1.0.1/24", "which the node needs"),
            ("10.1.0.50/24", "which the node needs"),
            ("192.0.2.77/24", "in no subnet of its parent"),
        ] {
            let cni = node.sandbox.cni("macvlan").args(&format!("IP={ip}"));
            let error = cni.add(&conf, &node.pods[0], "eth0").error();
            assert_eq!(error.code, 7, "{ip}: {}", error.msg);
            assert!(error.msg.contains(says), "{ip}: {}", error.msg);
        }
        let cni = node.sandbox.cni("macvlan").args("IP=10.1.0.77/24");
        cni.add(&conf, &node.pods[0], "eth0").result();
        assert_eq!(node.routed(), ["10.1.0.77"]);
        node.del(&conf, 0);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_leased_address_is_routed_as_any_other() {
    beyond_peer(WHY, || {
        let node = node();
        let _daemon = node.sandbox.dhcp_daemon(Suite::Ours, &[]);
        let server = node.segment.machine.dnsmasq(
            "10.1.0.60,10.1.0.69,255.255.255.0,2m",
            &["--interface=eth1"],
        );
        let serves = |_: &Netns| server.output().contains("IP range");
        node.segment.machine.wait_until("dnsmasq serves", serves);
        let mut conf = shim();
        conf["ipam"] = json!({"type": "dhcp"});
        let result = node.add(&conf, 0);
        let address = result["ips"][0]["address"].as_str().expect("an address");
        let (ip, _) = address.split_once('/').expect("a prefix");
        assert_eq!(node.routed(), [ip]);
        reaches(&node.sandbox.host(), &[ip]);
        node.del(&conf, 0);
        assert!(!node.has_shim());
        assert!(!node.sandbox.list("/run").contains(&"podwire".to_owned()));
    });
}

#[test]
fn many_pods_share_one_shim() {
    beyond_peer(WHY, || {
        let node = node();
        let sandbox = &node.sandbox;
        let pods: Vec<_> = (0..12).map(|i| sandbox.pod(&format!("pod{i}"))).collect();
        let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
        let conf = shim();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| sandbox.cni("macvlan").add(&conf, pod, "eth0").result());
            }
        });
        assert_eq!(node.routed().len(), 24);
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| {
                    sandbox.cni("macvlan").del(&conf, pod, "eth0").silent();
                });
            }
        });
        assert!(!node.has_shim());
        let left = snapshot.compare(std::time::Duration::from_secs(20));
        assert_eq!(left, Ok(()), "twelve deletions");
    });
}
