//! vrf: the VRF of a pod, its table and its members, what an interface keeps in it, what DEL finds.
//!
//! Many kernels are built without VRFs, so this file runs on one that has them, in a virtual machine
//! (`tests/vm/run`); plain `cargo test` leaves it out.

use std::time::Duration;

use sandbox::{Cni, Failure, Netns, Sandbox, Snapshot, Stdout, Suite, beyond_peer, conf};
use serde_json::{Value, json};

/// A pod with the interfaces eth0 and net1, whose other ends are `far0` and `far1` of the node.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        sandbox
            .host()
            .sh("ip link add far0 type veth peer name eth0 netns a
             ip link add far1 type veth peer name net1 netns a
             for far in far0 far1; do
                 echo 0 >/proc/sys/net/ipv6/conf/$far/accept_dad
                 ip link set $far up
             done
             ip addr add 10.1.0.1/24 dev far0
             ip addr add fd01::1/64 dev far0
             ip addr add 10.2.0.1/24 dev far1");
        pod.sh("ip link set lo up
             ip link set eth0 up
             ip link set net1 up
             ip addr add 10.1.0.2/24 dev eth0
             ip addr add fd01::2/64 dev eth0 nodad
             ip addr add 10.2.0.2/24 dev net1");
        pod.wait_until("the wires are up", |pod| {
            ["eth0", "net1"].iter().all(|it| pod.is_settled(it))
        });
        Self { sandbox, pod }
    }

    fn vrf(&self) -> Cni {
        self.sandbox.cni("vrf")
    }

    fn add(&self, conf: &Value, ifname: &str) -> Value {
        self.vrf().add(conf, &self.pod, ifname).result()
    }

    fn add_fails(&self, conf: &Value) -> Failure {
        self.vrf().add(conf, &self.pod, "eth0").error()
    }

    /// What the node and its pod are like. The kernel keeps a rule of its own, `from all lookup
    /// [l3mdev-table]`, for all VRFs to come.
    fn snapshot(&self) -> Snapshot {
        self.sandbox.snapshot().allow("rule priority 1000 ")
    }

    fn del(&self, conf: &Value, ifname: &str) {
        self.vrf().del(conf, &self.pod, ifname).silent();
    }

    /// The master of an interface.
    fn master(&self, ifname: &str) -> Value {
        self.pod.link(ifname).expect(ifname)["master"].clone()
    }

    fn table(&self, vrf: &str) -> u64 {
        let link = self.pod.link(vrf).unwrap_or_else(|| panic!("no {vrf}"));
        assert_eq!(link["linkinfo"]["info_kind"], "vrf");
        let table = link["linkinfo"]["info_data"]["table"].as_u64();
        table.expect("a table")
    }

    /// The routes of a table that are not the kernel's own, as ip(8) shows them.
    fn routes(&self, family: &str, table: &str) -> Vec<String> {
        let shown = format!("ip {family} route show table {table} 2>/dev/null");
        let shown = self.pod.sh(&format!("{shown} || :"));
        let own = [
            "proto kernel",
            "local ",
            "broadcast ",
            "multicast ",
            "anycast ",
        ];
        let lines = shown.lines().map(|line| line.trim().to_owned());
        let mut lines: Vec<String> = lines
            .filter(|line| !own.iter().any(|it| line.contains(it)))
            .collect();
        lines.sort();
        lines
    }
}

/// vrf after a plugin that gave eth0 an address.
fn vrf(keys: Value) -> Value {
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "far0", "mac": "02:00:00:00:00:09"},
            {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a"},
        ],
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let conf = conf::with(&conf::at(&conf::plugin("vrf"), "1.0.0"), keys);
    conf::with_prev(&conf, &previous)
}

fn blue() -> Value {
    vrf(json!({"vrfname": "blue"}))
}

// ---- the VRF and its members

#[test]
fn interfaces_share_a_vrf_and_the_last_one_removes_it() {
    let node = Node::new();
    let conf = blue();
    assert_eq!(node.add(&conf, "eth0")["ips"], conf["prevResult"]["ips"]);
    node.add(&conf, "net1");
    assert_eq!(node.pod.link("blue").expect("blue")["operstate"], "UP");
    for ifname in ["eth0", "net1"] {
        assert_eq!(node.master(ifname), "blue");
        node.vrf().check(&conf, &node.pod, ifname).silent();
    }
    node.del(&conf, "eth0");
    assert_eq!(node.master("eth0"), Value::Null);
    assert_eq!(node.master("net1"), "blue");
    for _ in 0..2 {
        node.del(&conf, "net1");
        assert_eq!(node.pod.links(), ["eth0", "lo", "net1"]);
    }
}

#[test]
fn the_result_is_that_of_the_plugin_before() {
    let node = Node::new();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        if !sandbox::supports(version) {
            continue;
        }
        let previous = json!({"prevResult": {"cniVersion": version}});
        let conf = conf::with(&conf::at(&blue(), version), previous);
        let result = node.add(&conf, "eth0");
        assert_eq!(result["interfaces"], conf["prevResult"]["interfaces"]);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["routes"][0]["dst"], "0.0.0.0/0");
        node.del(&conf, "eth0");
    }
}

#[test]
fn an_interface_keeps_its_addresses_and_routes() {
    let node = Node::new();
    let peer_lacks =
        "before v1.3 it keeps no routes, later those of the main table with a next hop";
    node.pod.sh(
        // A next hop that only another route reaches, as ptp has it; a source; a metric; an MTU; a
        // table of its own; two next hops.
        "ip route add 192.0.2.1 dev eth0 scope link
         ip route add default via 192.0.2.1 dev eth0
         ip route add 10.8.0.0/16 via 10.1.0.1 dev eth0 src 10.1.0.2 metric 7 mtu 1300
         ip route add 10.9.0.0/16 via 10.1.0.1 dev eth0 table 1000
         ip route add 10.7.0.0/16 nexthop via 10.1.0.1 dev eth0 nexthop via 10.1.0.3 dev eth0
         ip -6 route add default via fd01::1 dev eth0 src fd01::2
         ip -6 route add fd08::/64 via fe80::1 dev eth0 metric 7",
    );
    let of = |table: &str| {
        let mut routes = node.routes("-4", table);
        routes.extend(node.routes("-6", table));
        routes
    };
    let (main, other) = (of("main"), of("1000"));
    assert_eq!((main.len(), other.len()), (8, 1), "{main:?}");
    node.add(&vrf(json!({"vrfname": "blue", "table": 10})), "eth0");
    assert_eq!(node.table("blue"), 10);
    assert_eq!(node.pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
    beyond_peer(peer_lacks, || {
        assert_eq!(of("10"), main);
        assert_eq!(of("main"), [""; 0]);
        assert_eq!(of("1000"), other);
    });
    let link_local = node.pod.sh("ip -6 addr show dev eth0 scope link");
    assert!(link_local.contains("fe80::"));
    for (family, to) in [("-4", "10.1.0.1"), ("-6", "fd01::1")] {
        let ping = format!("ping {family} -n -c 1 -W 1 -I blue {to}");
        node.pod.sh(&ping);
    }
    assert_eq!(node.sandbox.host().ping("fd01::2", 1), [true]);
}

#[test]
fn a_vrf_that_is_shared_keeps_the_routes_of_all_members() {
    beyond_peer("it replaces the default route of the other member", || {
        let node = Node::new();
        node.pod.sh("ip route add default via 10.1.0.1 dev eth0");
        let conf = vrf(json!({"vrfname": "blue", "table": 10}));
        node.add(&conf, "eth0");
        node.pod.sh("ip route add default via 10.2.0.1 dev net1");
        node.add(&conf, "net1");
        let routes = node.routes("-4", "10");
        let expected = [
            "default via 10.1.0.1 dev eth0",
            "default via 10.2.0.1 dev net1",
        ];
        assert_eq!(routes, expected);
    });
}

#[test]
fn a_plugin_before_it_finds_what_it_promised() {
    beyond_peer("its CHECK looks in the main table alone", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let change = json!({"isDefaultGateway": true,
            "ipam": {"routes": [{"dst": "10.9.0.0/16"}, {"dst": "fd09::/64"}]}});
        let bridge = conf::with(&conf::bridge(&["10.1.0.0/24", "fd01::/64"]), change);
        let result = sandbox.cni("bridge").add(&bridge, &pod, "eth0").result();
        let vrf = conf::with(&conf::plugin("vrf"), json!({"vrfname": "blue"}));
        let vrf = conf::with_prev(&vrf, &result);
        assert_eq!(sandbox.cni("vrf").add(&vrf, &pod, "eth0").result(), result);
        let checked = conf::with_prev(&bridge, &result);
        sandbox.cni("bridge").check(&checked, &pod, "eth0").silent();
        sandbox.cni("vrf").check(&vrf, &pod, "eth0").silent();
        for to in ["10.1.0.1", "fd01::1"] {
            pod.sh(&format!("ping -n -c 1 -W 1 -I blue {to}"));
        }
        sandbox.cni("vrf").del(&vrf, &pod, "eth0").silent();
        sandbox.cni("bridge").del(&checked, &pod, "eth0").silent();
        assert_eq!(pod.links(), ["lo"]);
    });
}

// ---- tables

#[test]
fn a_free_table_is_the_lowest_that_nothing_uses() {
    let node = Node::new();
    node.pod.sh("ip link add red type vrf table 1");
    beyond_peer("it looks at VRFs alone", || {
        node.pod.sh("ip route add 192.0.2.0/24 dev lo table 2");
        node.pod.sh("ip -6 route add fd09::/64 dev lo table 3");
        node.pod.sh("ip rule add from 192.0.2.1 lookup 4");
        node.add(&blue(), "eth0");
        assert_eq!(node.table("blue"), 5);
    });
}

#[test]
fn the_tables_of_every_namespace_are_never_chosen() {
    beyond_peer("it would take 253 to 255", || {
        let node = Node::new();
        let all = "for i in $(seq 252); do echo link add v$i type vrf table $i; done | ip -batch -";
        node.pod.sh(all);
        node.add(&blue(), "eth0");
        assert_eq!(node.table("blue"), 256);
    });
}

#[test]
fn two_adds_at_once_get_two_tables() {
    beyond_peer("both choose the same", || {
        let node = Node::new();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for (ifname, name) in [("eth0", "blue"), ("net1", "red")] {
                    let node = &node;
                    scope.spawn(move || node.add(&vrf(json!({"vrfname": name})), ifname));
                }
            });
            let mut tables = [node.table("blue"), node.table("red")];
            tables.sort();
            assert_eq!(tables, [1, 2]);
            node.pod.sh("ip link del blue; ip link del red");
        }
    });
}

#[test]
fn an_add_waits_for_another_that_chooses() {
    beyond_peer("it knows no lock", || {
        let node = Node::new();
        let path = node.pod.path();
        let perl = |script: &'static str| ["perl", "-e", script, &path].map(str::to_owned);
        let hold = perl("open F, '<', shift; flock F, 2; sleep 60");
        let lock = node.pod.start(&hold.each_ref().map(String::as_str));
        let is_free = perl("open F, '<', shift; exit !flock F, 6");
        let is_free = is_free.each_ref().map(String::as_str);
        node.pod
            .wait_until("the lock is held", |pod| pod.run(&is_free).code != 0);
        // A process of the pod can hold it for good: DEL goes on after 20 s.
        std::thread::scope(|scope| {
            let add = scope.spawn(|| node.vrf().add(&blue(), &node.pod, "eth0").error());
            let limit = Duration::from_secs(60);
            let del = node.vrf().limit(limit).del(&blue(), &node.pod, "eth0");
            del.silent();
            let error = add.join().expect("the ADD");
            assert_eq!(error.code, 11);
            assert!(
                error.msg.starts_with("cmdAdd failed: lock "),
                "{}",
                error.msg
            );
        });
        drop(lock);
        assert_eq!(node.pod.links(), ["eth0", "lo", "net1"]);
    });
}

#[test]
fn a_vrf_that_exists_is_used_if_its_table_is_the_one_wanted() {
    let node = Node::new();
    node.pod.sh("ip link add blue type vrf table 77");
    let error = node.add_fails(&vrf(json!({"vrfname": "blue", "table": 78})));
    assert_eq!(
        error.msg,
        "cmdAdd failed: VRF blue already exist with different routing table 77"
    );
    node.add(&vrf(json!({"vrfname": "blue", "table": 77})), "eth0");
    assert_eq!(
        (node.table("blue"), node.master("eth0")),
        (77, json!("blue"))
    );
    beyond_peer("it leaves a VRF down, where nothing is routed", || {
        assert_eq!(node.pod.link("blue").expect("blue")["operstate"], "UP");
    });
    node.add(&blue(), "net1");
    assert_eq!(node.master("net1"), "blue");
}

// ---- what is refused

#[test]
fn bad_values_are_refused_and_leave_nothing() {
    let node = Node::new();
    let snapshot = node.snapshot();
    let no_name = "configuration is expected to have a valid vrf name";
    for (conf, says) in [
        (vrf(json!({})), no_name),
        (vrf(json!({"vrfname": ""})), no_name),
        (
            conf::with(&blue(), json!({"prevResult": null})),
            "missing prevResult from earlier plugin",
        ),
        (
            vrf(json!({"vrfname": "net1"})),
            "cmdAdd failed: Netlink net1 is not a VRF",
        ),
    ] {
        assert_eq!(node.add_fails(&conf).msg, says);
    }
    beyond_peer("it leaves these to the kernel", || {
        for keys in [
            json!({"vrfname": "a/b"}),
            json!({"vrfname": "a-name-too-long-for-a-link"}),
            json!({"vrfname": "vrf%d"}),
        ] {
            let error = node.add_fails(&vrf(keys));
            assert_eq!(error.code, 7);
            assert!(error.msg.starts_with("vrfname "), "{}", error.msg);
        }
    });
    for keys in [
        json!({"vrfname": 7}),
        json!({"vrfname": "blue", "table": -1}),
        json!({"vrfname": "blue", "table": "main"}),
    ] {
        node.add_fails(&vrf(keys));
    }
    snapshot.assert_unchanged();
}

#[test]
fn an_interface_with_a_master_or_none_at_all_is_refused_and_nothing_is_left() {
    let node = Node::new();
    let bridge = "ip link add br0 type bridge; ip link set eth0 master br0";
    for (prepare, says) in [
        (bridge, "interface eth0 has already a master set: br0"),
        ("ip link del eth0", "could not get link by name eth0"),
    ] {
        node.pod.sh(prepare);
        assert_eq!(
            node.add_fails(&blue()).msg,
            format!("cmdAdd failed: {says}")
        );
        beyond_peer("it leaves the VRF", || {
            assert!(node.pod.link("blue").is_none());
        });
    }
}

#[test]
fn an_add_whose_result_is_lost_leaves_nothing() {
    beyond_peer("it prints and forgets", || {
        let node = Node::new();
        node.pod.sh("ip route add default via 10.1.0.1 dev eth0; ip -6 route add default via fd01::1 dev eth0");
        let snapshot = node.snapshot();
        let cni = node.vrf().stdout(Stdout::Full);
        assert_ne!(cni.add(&blue(), &node.pod, "eth0").code(), 0);
        // The kernel makes the link-local address again.
        node.pod
            .wait_until("eth0 is settled", |pod| pod.is_settled("eth0"));
        snapshot.assert_unchanged();
    });
}

// ---- DEL, CHECK, STATUS, GC

#[test]
fn del_finds_the_vrf_in_every_state() {
    let node = Node::new();
    for (tamper, left) in [
        ("ip link set eth0 nomaster", &["eth0", "lo", "net1"][..]),
        ("ip link del blue", &["eth0", "lo", "net1"]),
        (
            "ip link del blue; ip link add blue type bridge",
            &["blue", "eth0", "lo", "net1"],
        ),
        ("ip link del eth0", &["lo", "net1"]),
    ] {
        node.pod.sh("ip link del blue 2>/dev/null || :");
        node.add(&blue(), "eth0");
        node.pod.sh(tamper);
        beyond_peer("reference 5.6: it fails without the interface", || {
            for _ in 0..2 {
                node.del(&conf::with(&blue(), json!({"prevResult": null})), "eth0");
                assert_eq!(node.pod.links(), left, "{tamper}");
            }
        });
    }
}

#[test]
fn del_leaves_an_interface_of_another_master_alone() {
    let node = Node::new();
    node.add(&blue(), "eth0");
    node.add(&vrf(json!({"vrfname": "red"})), "net1");
    beyond_peer("it takes any interface out of any master", || {
        node.del(&blue(), "net1");
        assert_eq!(node.master("net1"), "red");
    });
}

#[test]
fn del_succeeds_without_a_namespace() {
    for plain_file in [false, true] {
        let node = Node::new();
        node.add(&blue(), "eth0");
        let path = node.pod.path();
        node.sandbox.remove_pod(&node.pod);
        let del = |netns: &str| {
            let cni = node.vrf().netns(netns);
            cni.del(&blue(), &node.pod, "eth0").silent();
        };
        if plain_file {
            node.sandbox.write(&path, "");
            beyond_peer("reference 8 #20: unknown FS magic", || del(&path));
        } else {
            del("");
            del(&path);
            assert_eq!(node.sandbox.read(&path), None);
        }
    }
}

#[test]
fn del_minds_no_configuration_that_add_would_refuse() {
    beyond_peer("reference 8 #6: it reads all keys", || {
        let node = Node::new();
        for keys in [
            json!({}),
            json!({"vrfname": ["x"]}),
            json!({"vrfname": "a/b"}),
            json!({"vrfname": "blue", "table": "x"}),
        ] {
            node.del(&vrf(keys), "eth0");
        }
    });
}

#[test]
fn check_notices_what_is_not_as_promised() {
    let node = Node::new();
    for (keys, tamper, says) in [
        (
            json!({}),
            "ip link set eth0 nomaster",
            "failed to find eth0 associated to vrf blue",
        ),
        (json!({}), "ip link del blue", "Link not found"),
        (
            json!({}),
            "ip link del blue; ip link add blue type bridge; ip link set eth0 master blue",
            "Netlink blue is not a VRF",
        ),
    ] {
        check_notices(&node, &conf::with(&blue(), keys), tamper, says);
    }
    beyond_peer("it compares neither", || {
        let down = "ip link set blue down";
        check_notices(&node, &blue(), down, "VRF blue is down");
        check_notices(
            &node,
            &vrf(json!({"vrfname": "blue", "table": 10})),
            "ip link del blue; ip link add blue up type vrf table 11; ip link set eth0 master blue",
            "VRF blue already exist with different routing table 11",
        );
    });
    let conf = conf::with(&blue(), json!({"prevResult": null}));
    let error = node.vrf().check(&conf, &node.pod, "eth0").error();
    assert_eq!(error.msg, "missing prevResult from earlier plugin");
}

#[track_caller]
fn check_notices(node: &Node, conf: &Value, tamper: &str, says: &str) {
    node.pod.sh("ip link del blue 2>/dev/null || :");
    node.add(conf, "eth0");
    node.vrf().check(conf, &node.pod, "eth0").silent();
    node.pod.sh(tamper);
    let error = node.vrf().check(conf, &node.pod, "eth0").error();
    assert!(error.msg.contains(says), "{tamper}: {}", error.msg);
}

#[test]
fn status_and_gc_need_no_pod() {
    beyond_peer("it has no STATUS and no GC", || {
        let node = Node::new();
        let conf = conf::at(&conf::with(&blue(), json!({"prevResult": null})), "1.1.0");
        node.add(&blue(), "eth0");
        node.vrf().status(&conf).silent();
        node.vrf().gc(&conf::with_valid(&conf, &[])).silent();
        assert_eq!(node.master("eth0"), "blue");
        let nameless = conf::with(&conf, json!({"vrfname": null}));
        assert_eq!(node.vrf().status(&nameless).error().code, 7);
    });
}

// ---- beside the peer

#[test]
fn a_vrf_of_one_suite_is_checked_and_deleted_by_the_other() {
    for (from, to) in [(Suite::Peer, Suite::Ours), (Suite::Ours, Suite::Peer)] {
        let node = Node::new();
        node.vrf()
            .suite(from)
            .add(&blue(), &node.pod, "eth0")
            .result();
        node.vrf()
            .suite(to)
            .add(&blue(), &node.pod, "net1")
            .result();
        assert_eq!(node.table("blue"), 1);
        for ifname in ["eth0", "net1"] {
            node.vrf()
                .suite(to)
                .check(&blue(), &node.pod, ifname)
                .silent();
            node.vrf()
                .suite(to)
                .del(&blue(), &node.pod, ifname)
                .silent();
        }
        assert_eq!(node.pod.links(), ["eth0", "lo", "net1"]);
    }
}

#[test]
fn both_suites_leave_the_same_state() {
    let nodes = [Suite::Ours, Suite::Peer].map(|suite| (Node::new(), suite));
    let results = nodes.each_ref().map(|(node, suite)| {
        let cni = node.vrf().suite(*suite);
        cni.add(&blue(), &node.pod, "eth0").result()
    });
    assert_eq!(results[0]["ips"], results[1]["ips"]);
    assert_eq!(results[0]["interfaces"], results[1]["interfaces"]);
    let [(ours, _), (theirs, _)] = &nodes;
    ours.sandbox.assert_same_state(&theirs.sandbox, |line| {
        // Whether an address was checked for duplicates is known only to ours.
        Some(line.replace(" nodad true", ""))
    });
}

// ---- the example

#[test]
fn the_example_gives_a_pod_a_vrf_with_its_default_route() {
    beyond_peer("it has no command podwire", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let example = include_str!("../../netconf-examples/77-vrf.conflist");
        let dir = sandbox.dir().join("net.d");
        sandbox.write(dir.join("77.conflist"), example);
        let (bin, dir, netns) = (Suite::Ours.dir().display(), dir.display(), pod.path());
        let run = |verb: &str| {
            let podwire = format!("CNI_PATH={bin} NETCONFPATH={dir} {bin}/podwire");
            let host = sandbox.host();
            host.sh(&format!("{podwire} {verb} example-vrf {netns}"))
        };
        for verb in ["status", "add", "check"] {
            run(verb);
        }
        let routes = pod.sh("ip route show vrf blue default");
        assert!(
            routes.starts_with("default via 10.210.77.1 dev eth0"),
            "{routes}"
        );
        pod.sh("ping -n -c 1 -W 1 -I blue 10.210.77.1");
        run("del");
        assert_eq!(pod.links(), ["lo"]);
    });
}
