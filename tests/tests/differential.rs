//! The same configuration through our plugins and through the peer's: the same
//! result and the same kernel, random names and MAC addresses aside. What differs on
//! purpose is in one table, with its reason.

use sandbox::normal::Normaliser;
use sandbox::{Cni, Netns, Outcome, Sandbox, Suite, conf};
use serde_json::{Value, json};

/// A difference that is meant.
struct Known {
    /// Part of the lines about it.
    line: &'static str,
    /// Words of such a line that only one side has; empty if the whole line may differ.
    words: &'static [&'static str],
    /// Why.
    #[allow(dead_code)] // for the reader
    why: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        line: "dir /run/cni",
        words: &[],
        why: "the peer's directory has a mode without x: only root can enter either of the two",
    },
    Known {
        line: " /run/podwire",
        words: &[],
        why: "our notes where the files of tuning are, for GC",
    },
    Known {
        line: "dir /run/elsewhere",
        words: &[],
        why: "as for /run/cni",
    },
    Known {
        line: "keep_addr_on_down",
        words: &[],
        why: "plugins before v1.2 do not set it: an address is lost when the link goes down",
    },
    Known {
        line: "file /var/lib/cni/networks/testnet/",
        words: &[],
        why: "plugins before v1.5 let all users read reservations; names and content are compared separately",
    },
    Known {
        line: "dir /var/lib/cni/networks",
        words: &[],
        why: "ours lets only root see which container has which address",
    },
    Known {
        line: " /var/lib/cni/networks/.podwire",
        words: &[],
        why: "our index of owners, so that DEL need not read every reservation",
    },
    Known {
        line: " /run/podwire",
        words: &[],
        why: "our notes: which attachments use the rules of a network, which MAC neighbours may remember",
    },
    Known {
        line: "link ifname VETH",
        words: &["ifalias"],
        why: "our host veths name their owner, so that GC finds those of dead containers",
    },
    Known {
        line: "addr on VETH local LINKLOCAL",
        words: &[],
        why: "our ports have no link-local address: nothing uses it, and it costs the node two routes",
    },
    Known {
        line: "route dst LINKLOCAL/64 dev VETH",
        words: &[],
        why: "as for the address",
    },
    Known {
        line: "dst ff00::/8 dev VETH",
        words: &[],
        why: "as for the address",
    },
    Known {
        line: "info_kind macvlan",
        words: &["ifalias"],
        why: "ours names its owner, so that DEL and GC know it under another name",
    },
    Known {
        line: "/ndisc_notify = ",
        words: &[],
        why: "ours has the kernel announce IPv6 addresses, too, when the port forwards",
    },
    Known {
        line: "ipv4/conf/net1/arp_notify = ",
        words: &[],
        why: "ours announces the addresses of a device, too: its neighbours may remember another MAC",
    },
    Known {
        line: "ipv6/conf/net1/accept_dad = ",
        words: &[],
        why: "duplicate address detection would delay each pod with IPv6 by 1.5 s",
    },
    Known {
        line: "conf/cni0-blue/accept_dad = ",
        words: &[],
        why: "as for cni0",
    },
    Known {
        line: "conf/cni0/accept_dad = ",
        words: &[],
        why: "the link-local address of a new bridge cannot be in use elsewhere",
    },
    Known {
        line: "addr on ",
        words: &["nodad"],
        why: "we switch duplicate address detection off for the address, the peer for the interface",
    },
    Known {
        line: "fdb mac MAC ifname cni0",
        words: &[],
        why: "the address of a bridge that is pinned from birth is an entry of its own",
    },
    Known {
        line: "info_kind bridge",
        words: &["operstate"],
        why: "UNKNOWN until it first loses its carrier: the peer's bridge does as it takes a port's address",
    },
    Known {
        line: "info_kind bridge",
        words: &["address"],
        why: "the peer's bridge has a port's address until it is a gateway, and none without ports",
    },
];

/// A line without what is known to differ.
fn known(line: String) -> Option<String> {
    let about: Vec<&Known> = KNOWN
        .iter()
        .filter(|known| line.contains(known.line))
        .collect();
    if about.iter().any(|known| known.words.is_empty()) {
        return None;
    }
    let words = about.iter().flat_map(|known| known.words);
    Some(words.fold(line.clone(), |line, word| without(&line, word)))
}

/// The line without a key and its value.
fn without(line: &str, key: &str) -> String {
    let mut words = line.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == key {
            _ = words.next()
        } else {
            kept.push(word)
        }
    }
    kept.join(" ")
}

/// One node per suite, with the same pods.
struct Pair {
    nodes: [(Sandbox, Suite); 2],
}

type Call = fn(Cni, &Value, &Netns) -> Outcome;

const ADD: Call = |cni, conf, pod| cni.add(conf, pod, "eth0");
const DEL: Call = |cni, conf, pod| cni.del(conf, pod, "eth0");

impl Pair {
    fn new() -> Self {
        let node = |suite| (Sandbox::new(), suite);
        Self {
            nodes: [node(Suite::Ours), node(Suite::Peer)],
        }
    }

    /// Does the same to both nodes.
    fn both<T>(&self, act: impl Fn(&Sandbox, Suite) -> T) -> [T; 2] {
        self.nodes
            .each_ref()
            .map(|(sandbox, suite)| act(sandbox, *suite))
    }

    fn prepare(&self, script: &str) {
        self.both(|sandbox, _| sandbox.host().sh(script));
    }

    fn same_state(&self) {
        let [(ours, _), (theirs, _)] = &self.nodes;
        ours.assert_same_state(theirs, known);
        let [our_files, their_files] = self.both(|sandbox, _| reservations(sandbox));
        assert_eq!(our_files, their_files);
    }
}

fn reservations(sandbox: &Sandbox) -> Vec<(String, Option<String>)> {
    let names = sandbox.list(conf::STATE).into_iter();
    let content = |name: String| {
        let content = sandbox.read(format!("{}/{name}", conf::STATE));
        (name, content)
    };
    names.map(content).collect()
}

/// A result with what is random or empty made the same.
fn normal(result: &Value) -> Value {
    // Unnumbered: the peer's bridge has a port's MAC address until it is pinned.
    let mut result = Normaliser::plain().value(result);
    // Libraries before v1.2 print an empty dns at 1.0.0.
    if result["dns"] == json!({})
        && let Some(result) = result.as_object_mut()
    {
        result.remove("dns");
    }
    result
}

/// ADD of two pods, CHECK, DEL of both: results and state the same after each step.
fn same_life(plugin: &str, conf: &Value, args: &str) {
    let pair = Pair::new();
    let pods = pair.both(|sandbox, _| [sandbox.pod("a"), sandbox.pod("b")]);
    life_in(&pair, &pods, plugin, conf, args);
}

fn life_in(pair: &Pair, pods: &[[Netns; 2]; 2], plugin: &str, conf: &Value, args: &str) {
    for which in 0..2 {
        let answers = each(pair, pods, which, |sandbox, suite, pod| {
            let cni = sandbox.cni(plugin).suite(suite).args(args);
            ADD(cni, conf, pod).result()
        });
        assert_eq!(normal(&answers[0]), normal(&answers[1]), "{conf}");
        pair.same_state();
        if which == 0 {
            checks(pair, pods, plugin, conf, &answers);
        }
    }
    for which in 0..2 {
        each(pair, pods, which, |sandbox, suite, pod| {
            let cni = sandbox.cni(plugin).suite(suite).args(args);
            DEL(cni, conf, pod).silent();
        });
        pair.same_state();
    }
}

/// CHECK of the first pod, before a second one changes the peer's bridge (reference 8 #9).
fn checks(pair: &Pair, pods: &[[Netns; 2]; 2], plugin: &str, conf: &Value, results: &[Value; 2]) {
    if conf["cniVersion"].as_str() < Some("0.4.0") {
        return;
    }
    for (which, (sandbox, suite)) in pair.nodes.iter().enumerate() {
        let conf = conf::with_prev(conf, &results[which]);
        let cni = sandbox.cni(plugin).suite(*suite);
        cni.check(&conf, &pods[which][0], "eth0").silent();
    }
}

/// Does something to the `which`th pod of both nodes.
fn each<T>(
    pair: &Pair,
    pods: &[[Netns; 2]; 2],
    which: usize,
    act: impl Fn(&Sandbox, Suite, &Netns) -> T,
) -> [T; 2] {
    let [(ours, _), (theirs, _)] = &pair.nodes;
    [
        act(ours, Suite::Ours, &pods[0][which]),
        act(theirs, Suite::Peer, &pods[1][which]),
    ]
}

fn bridge(change: Value) -> Value {
    conf::at(
        &conf::with(&conf::bridge(&["10.1.0.0/24", "fd01::/64"]), change),
        "1.0.0",
    )
}

#[test]
fn the_newest_version_of_both_lives_alike() {
    same_life("bridge", &bridge(json!({})), "");
}

#[test]
fn every_common_version_lives_alike() {
    for version in ["0.1.0", "0.3.0", "0.3.1", "0.4.0"] {
        same_life("bridge", &bridge(json!({"cniVersion": version})), "");
    }
}

#[test]
fn gateways_and_routes_are_alike() {
    for change in [
        json!({"isDefaultGateway": true}),
        json!({"isGateway": false}),
        json!({"isGateway": false, "ipam": {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}),
        json!({"isDefaultGateway": true, "ipam": {"routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.9"}, {"dst": "fd09::/64", "gw": "fd01::9"}]}}),
    ] {
        same_life("bridge", &bridge(change), "");
    }
}

#[test]
fn ports_and_wires_are_alike() {
    for change in [
        json!({"mtu": 1400}),
        json!({"hairpinMode": true}),
        json!({"promiscMode": true}),
        json!({"enabledad": true}),
        json!({"bridge": "cni0-blue", "forceAddress": true}),
        json!({"dns": {"nameservers": ["10.0.0.1"], "search": ["x.example"]}}),
    ] {
        same_life("bridge", &bridge(change), "");
    }
}

#[test]
fn wires_without_addresses_are_alike_but_for_check() {
    // The peer's CHECK always fails there (reference 8 #10), and 0.3.1 has none.
    same_life("bridge", &conf::at(&conf::bridge_l2(), "0.3.1"), "");
}

#[test]
fn existing_bridges_are_treated_alike() {
    for script in [
        "ip link add cni0 address 02:11:22:33:44:55 mtu 1450 type bridge",
        "ip link add cni0 address 02:11:22:33:44:55 type bridge; ip addr add 10.99.0.1/24 dev cni0; ip addr add fd01::77/64 dev cni0 nodad",
        "ip link add cni0 address 02:11:22:33:44:55 type bridge; ip addr add 10.1.0.1/24 dev cni0; ip link set cni0 up",
    ] {
        let pair = Pair::new();
        pair.prepare(script);
        let pods = pair.both(|sandbox, _| [sandbox.pod("a"), sandbox.pod("b")]);
        life_in(
            &pair,
            &pods,
            "bridge",
            &bridge(json!({"forceAddress": true})),
            "",
        );
    }
}

#[test]
fn arguments_are_alike() {
    let mac = json!({"args": {"cni": {"mac": "02:00:00:00:00:0b"}}});
    for (change, args) in [
        (mac, "IgnoreUnknown=1;K8S_POD_NAME=x"),
        (json!({}), "IgnoreUnknown=1;MAC=02:00:00:00:00:0c"),
    ] {
        same_life("bridge", &bridge(change), args);
    }
}

#[test]
fn macvlan_lives_alike() {
    let ipam = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd09::/64", "gw": "fd01::9"}]});
    let layer_3 = conf::with(
        &conf::macvlan(&["10.1.0.0/24", "fd01::/64"]),
        json!({"ipam": ipam, "cniVersion": "1.0.0"}),
    );
    let layer_2 = conf::at(&conf::macvlan_l2(), "1.0.0");
    for (conf, args) in [
        (layer_3.clone(), ""),
        (conf::at(&layer_3, "0.2.0"), ""),
        (conf::at(&layer_3, "0.4.0"), ""),
        (conf::with(&layer_3, json!({"mode": "private"})), ""),
        (
            conf::with(&layer_3, json!({"mode": "vepa", "mtu": 1400})),
            "",
        ),
        (layer_2.clone(), ""),
        (conf::at(&layer_2, "0.3.1"), "IgnoreUnknown=1;FOO=1"),
    ] {
        let pair = Pair::new();
        let pods = pair.both(|sandbox, _| {
            sandbox.wire();
            let pods = [sandbox.pod("a"), sandbox.pod("b")];
            // The peer's detects duplicates, and settles for seconds.
            for pod in &pods {
                pod.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
            }
            pods
        });
        life_in(&pair, &pods, "macvlan", &conf, args);
    }
}

#[test]
fn host_device_lives_alike() {
    let ipam = json!({"ipam": {"type": "static", "addresses": [{"address": "10.1.0.9/24"}]}});
    let layer_2 = conf::at(
        &conf::with(&conf::plugin("host-device"), json!({"device": "dev0"})),
        "1.0.0",
    );
    let layer_3 = conf::with(&layer_2, ipam);
    let by_address = json!({"device": null, "hwaddr": "02:00:00:00:00:01"});
    for conf in [
        layer_3.clone(),
        conf::at(&layer_3, "0.2.0"),
        conf::at(&layer_3, "0.4.0"),
        conf::with(&layer_3, by_address),
        conf::with(
            &layer_3,
            json!({"ipam": {"routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.1"}]}}),
        ),
        layer_2.clone(),
        conf::at(&layer_2, "0.3.1"),
    ] {
        let pair = Pair::new();
        pair.prepare(
            "ip link add dev0 address 02:00:00:00:00:01 type veth peer name far0 address 02:00:00:00:00:02
             ip link set far0 up addrgenmode none",
        );
        let pods = pair.both(|sandbox, _| [sandbox.pod("a"), sandbox.pod("b")]);
        let answers = each(&pair, &pods, 0, |sandbox, suite, pod| {
            let cni = || sandbox.cni("host-device").suite(suite);
            let added = cni().add(&conf, pod, "net1").result();
            let has_check = conf["cniVersion"].as_str() >= Some("0.4.0");
            if has_check {
                let checked = conf::with_prev(&conf, &added);
                cni().check(&checked, pod, "net1").silent();
            }
            normal(&added)
        });
        assert_eq!(answers[0], answers[1], "{conf}");
        pair.same_state();
        each(&pair, &pods, 0, |sandbox, suite, pod| {
            let cni = sandbox.cni("host-device").suite(suite);
            cni.del(&conf, pod, "net1").silent();
            let host = sandbox.host();
            // Early versions of the peer's leave the alias.
            host.sh("ip link set dev0 alias ''");
            // The other end has no carrier, which the kernel finds out sooner or later.
            host.sh("ip link set far0 down");
            host.wait_until("far0 is down", |host| {
                host.link("far0")
                    .is_some_and(|it| it["operstate"] == "DOWN")
            });
        });
        pair.same_state();
    }
}

#[test]
fn tuning_lives_alike() {
    for keys in [
        json!({"sysctl": {"net.ipv4.conf.all.rp_filter": "2", "net.ipv4.conf.eth0.rp_filter": "2"}}),
        json!({"mac": "02:00:00:00:00:07"}),
        json!({"promisc": true, "mtu": 1400, "allmulti": true}),
        json!({"mtu": 1400, "args": {"cni": {"mtu": 1300}}}),
        json!({"runtimeConfig": {"mac": "02:00:00:00:00:07"}, "dataDir": "/run/elsewhere"}),
        json!({}),
    ] {
        let pair = Pair::new();
        let wired = |sandbox: &Sandbox, name| {
            let pod = sandbox.pod(name);
            pod.sh("ip link add eth0 address 02:00:00:00:00:01 type veth peer name x");
            pod
        };
        let pods = pair.both(|sandbox, _| [wired(sandbox, "a"), wired(sandbox, "b")]);
        let previous = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "sandbox": "x"}],
            "ips": [{"version": "4", "address": "10.1.0.2/24", "interface": 0}],
        });
        let conf = conf::with_prev(&conf::plugin("tuning"), &previous);
        let conf = conf::at(&conf::with(&conf, keys), "0.4.0");
        life_in(&pair, &pods, "tuning", &conf, "");
    }
}

#[test]
fn sbr_routes_alike() {
    let gateways = |v4: Value, v6: Value| {
        json!([{"address": "10.1.0.2/24", "gateway": v4, "interface": 0},
               {"address": "10.1.0.3/24", "gateway": v4},
               {"address": "fd01::2/64", "gateway": v6, "interface": 0}])
    };
    for (more, ips) in [
        ("", gateways("10.1.0.1".into(), "fd01::1".into())),
        ("", gateways(Value::Null, Value::Null)),
        (
            "ip route add default via 10.1.0.9; ip -6 route add default via fd01::9 dev eth0",
            gateways("10.1.0.9".into(), "fd01::9".into()),
        ),
        (
            "ip route add 10.8.0.0/16 via 10.1.0.8 mtu 1300; ip route add 10.7.0.0/16 dev eth0; ip rule add lookup 100",
            gateways("10.1.0.1".into(), "fd01::1".into()),
        ),
    ] {
        let pair = Pair::new();
        let wired = |sandbox: &Sandbox, name| {
            let pod = sandbox.pod(name);
            pod.sh(&format!(
                "ip link add eth0 type veth peer name x; ip link set x up; ip link set eth0 up
                 ip address add 10.1.0.2/24 dev eth0; ip address add 10.1.0.3/24 dev eth0
                 ip address add fd01::2/64 dev eth0 nodad
                 {more}"
            ));
            pod
        };
        let pods = pair.both(|sandbox, _| [wired(sandbox, "a"), wired(sandbox, "b")]);
        let answers = each(&pair, &pods, 0, |sandbox, suite, pod| {
            let previous = json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": pod.path()}],
                "ips": ips,
            });
            let conf = conf::at(&conf::with_prev(&conf::plugin("sbr"), &previous), "1.0.0");
            let result = ADD(sandbox.cni("sbr").suite(suite), &conf, pod).result();
            let routed = routed(pod);
            // DEL of the other suite, whose rules these are not.
            let other = match suite {
                Suite::Ours => Suite::Peer,
                Suite::Peer => Suite::Ours,
            };
            sandbox
                .cni("sbr")
                .suite(other)
                .check(&conf, pod, "eth0")
                .silent();
            DEL(sandbox.cni("sbr").suite(other), &conf, pod).silent();
            let rules = pod.sh("ip rule; ip -6 rule");
            assert!(!rules.contains("from 10.1.0"), "{rules}");
            assert!(!rules.contains("from fd01::"), "{rules}");
            (normal(&result), routed)
        });
        assert_eq!(answers[0], answers[1], "{more}, {ips}");
    }
}

/// Rules and routes of a pod, without what is meant to differ in sbr: the origin of routes that it
/// adds; link-local destinations, which we keep in the main table, and which the kernel adds when it
/// pleases; routes of one family in tables for packets of the other, where the peer copies them, too.
fn routed(pod: &Netns) -> Vec<String> {
    let rules = pod.sh("ip rule; ip -6 rule");
    let is_for = |from: &str, table: &str| {
        let end = format!("lookup {table}");
        let mut rules = rules.lines().map(str::trim_end);
        rules.any(|it| it.contains(from) && it.ends_with(&end))
    };
    let is_compared = |route: &&str| {
        let mut words = route.split(' ').skip_while(|it| *it != "table");
        let table = words.nth(1).unwrap_or("main");
        let other = if route.contains(" pref ") {
            "from 10."
        } else {
            "from fd"
        };
        let by_itself = [
            "fe80::",
            "local fe80::",
            "anycast fe80::",
            "multicast ff00::",
        ];
        !by_itself.iter().any(|it| route.starts_with(it)) && !is_for(other, table)
    };
    let routes = pod.sh("ip route show table all; ip -6 route show table all");
    let routes = routes.lines().filter(is_compared);
    let mut all: Vec<_> = routes.map(|it| it.replace(" proto 115", "")).collect();
    all.extend(rules.lines().map(str::to_owned));
    let words = |it: &String| it.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut all: Vec<_> = all.iter().map(words).collect();
    all.sort();
    all
}

#[test]
fn bandwidth_lives_alike() {
    for keys in [
        json!({"ingressRate": 1_000_000, "ingressBurst": 2_000_000, "egressRate": 3_000_000, "egressBurst": 4_000_000}),
        json!({"ingressRate": 8000, "ingressBurst": 80}),
        json!({"egressRate": 10_000_000_000_u64, "egressBurst": 2_147_483_646}),
        json!({}),
    ] {
        let pair = Pair::new();
        let chained = |sandbox: &Sandbox, name: &str| {
            let pod = sandbox.pod(name);
            let host = sandbox.host();
            host.sh(&format!(
                "ip link add host-{name} address 02:00:00:00:00:0{name} type veth peer name eth0 \
                 address 02:00:00:00:01:0{name} netns {name}; ip link set host-{name} up"
            ));
            pod
        };
        let pods = pair.both(|sandbox, _| [chained(sandbox, "a"), chained(sandbox, "b")]);
        let answers = each(&pair, &pods, 0, |sandbox, suite, pod| {
            let previous = json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "host-a"}, {"name": "eth0", "sandbox": pod.path()}],
                "ips": [{"address": "10.1.0.2/24", "interface": 1}],
            });
            let own = json!({"fqCodel": false, "cniVersion": "1.0.0"});
            let conf = conf::with_prev(&conf::plugin("bandwidth"), &previous);
            let conf = conf::with(&conf::with(&conf, own), keys.clone());
            let cni = || sandbox.cni("bandwidth").suite(suite);
            let result = ADD(cni(), &conf, pod).result();
            let links = sandbox.host().links();
            let limited = links
                .iter()
                .filter(|it| it.starts_with("bwp") || *it == "host-a");
            let qdiscs = limited.map(|it| sandbox.host().sh(&format!("tc qdisc show dev {it}")));
            let qdiscs: Vec<_> = qdiscs.collect();
            // CHECK of either suite, and DEL of the other, without a namespace.
            let checked = conf::with_prev(&conf, &result);
            if keys != json!({}) {
                for suite in [Suite::Ours, Suite::Peer] {
                    let cni = sandbox.cni("bandwidth").suite(suite);
                    cni.check(&checked, pod, "eth0").silent();
                }
            }
            let other = match suite {
                Suite::Ours => Suite::Peer,
                Suite::Peer => Suite::Ours,
            };
            let del = sandbox.cni("bandwidth").suite(other).netns("");
            DEL(del, &conf, pod).silent();
            let left = sandbox.host().links();
            assert!(!left.iter().any(|it| it.starts_with("bwp")), "{left:?}");
            (normal(&result), qdiscs)
        });
        assert_eq!(answers[0], answers[1], "{keys}");
    }
}

#[test]
fn ptp_lives_alike() {
    let ipam = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.1"},
        {"dst": "::/0"}]});
    let dual = conf::with(
        &conf::ptp(&["10.1.0.0/24", "fd01::/64"]),
        json!({"ipam": ipam, "cniVersion": "1.0.0"}),
    );
    let single = conf::at(&conf::ptp(&["10.1.0.0/24"]), "1.0.0");
    for conf in [
        dual.clone(),
        conf::at(&dual, "0.2.0"),
        conf::at(&dual, "0.3.1"),
        conf::with(
            &dual,
            json!({"mtu": 1400, "dns": {"search": ["x.example"]}}),
        ),
        single.clone(),
        conf::with(
            &single,
            json!({"ipMasq": true, "ipMasqBackend": "iptables"}),
        ),
    ] {
        let pair = Pair::new();
        let pods = pair.both(|sandbox, _| {
            let pods = [sandbox.pod("a"), sandbox.pod("b")];
            // The peer detects duplicates, and waits for seconds.
            for ns in pods.iter().chain([&sandbox.host()]) {
                ns.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
            }
            pods
        });
        life_in(&pair, &pods, "ptp", &conf, "");
    }
}

#[test]
fn loopback_lives_alike() {
    let pair = Pair::new();
    let pods = pair.both(|sandbox, _| [sandbox.pod("a"), sandbox.pod("b")]);
    let conf = conf::at(&conf::loopback(), "1.0.0");
    life_in(&pair, &pods, "loopback", &conf, "");
}

#[test]
fn host_local_lives_alike() {
    for ipam in [
        json!({"subnet": "10.1.0.0/24"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.12", "gateway": "10.1.0.200"}),
        json!({"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/30"}], [{"subnet": "fd00:0:0:0:1::/80"}]]}),
        json!({"ranges": [[{"subnet": "fd00::/64", "rangeStart": "fd00::ffff", "gateway": "fd00::1"}]],
               "routes": [{"dst": "::/0"}, {"dst": "fd07::/64", "gw": "fd00::2"}]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "10.9.0.0/16"}]}),
    ] {
        let conf = conf::with(
            &conf::plugin("bridge"),
            json!({"ipam": ipam, "cniVersion": "1.0.0"}),
        );
        let conf = conf::with(&conf, json!({"ipam": {"type": "host-local"}}));
        same_life("host-local", &conf, "");
    }
}

#[test]
fn a_long_run_of_host_local_leaves_the_same_files() {
    let pair = Pair::new();
    let pods = pair.both(|sandbox, _| sandbox.pod("a"));
    let conf = conf::at(&conf::host_local(&["10.1.0.0/28", "fd00::/124"]), "1.0.0");
    // A fixed walk through ADD and DEL of seven containers, further than once around.
    for step in 0..60_usize {
        let id = format!("c{}", (step * 5) % 7);
        let outcomes: Vec<String> = pair
            .nodes
            .iter()
            .zip(&pods)
            .map(|((sandbox, suite), pod)| {
                let cni = || sandbox.cni("host-local").suite(*suite).id(&id);
                let outcome = match step % 3 {
                    2 => cni().del(&conf, pod, "eth0"),
                    _ => cni().add(&conf, pod, "eth0"),
                };
                answer(&outcome)
            })
            .collect();
        assert_eq!(outcomes[0], outcomes[1], "step {step}");
        let [ours, theirs] = pair.both(|sandbox, _| reservations(sandbox));
        assert_eq!(ours, theirs, "step {step}");
    }
}

/// Result or message: what may be compared of an answer.
fn answer(outcome: &Outcome) -> String {
    match outcome.code() {
        0 if outcome.stdout().is_empty() => String::new(),
        0 => normal(&outcome.result()).to_string(),
        _ => outcome.error().msg,
    }
}

#[test]
fn static_lives_alike() {
    let addresses =
        json!([{"address": "10.5.0.9/24", "gateway": "10.5.0.1"}, {"address": "fd05::9/64"}]);
    let fixed = conf::at(&conf::static_ipam(&addresses), "1.0.0");
    for (change, args) in [
        (json!({}), ""),
        (
            json!({"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.5.0.1"}], "dns": {"domain": "x"}}}),
            "",
        ),
        (json!({}), "IP=10.7.0.5/24;GATEWAY=10.7.0.1"),
        (json!({"args": {"cni": {"ips": ["10.9.0.5/24"]}}}), ""),
        (json!({"runtimeConfig": {"ips": ["10.9.0.6/24"]}}), ""),
        (json!({"cniVersion": "0.2.0"}), ""),
    ] {
        same_life("static", &conf::with(&fixed, change), args);
    }
}

#[test]
fn the_words_of_failures_are_alike() {
    let with_ipam = |ipam: Value| conf::with(&conf::plugin("bridge"), json!({"ipam": ipam}));
    let cases: Vec<(&str, Value, &str)> = vec![
        (
            "bridge",
            json!({"hairpinMode": true, "promiscMode": true, "name": "x"}),
            "",
        ),
        (
            "bridge",
            conf::with(&conf::bridge_l2(), json!({"ipam": {"type": "nope"}})),
            "",
        ),
        (
            "bridge",
            conf::with(&conf::bridge_l2(), json!({"ipam": {"type": "../nope"}})),
            "",
        ),
        ("macvlan", conf::macvlan_l2(), "FOO=1"),
        ("macvlan", conf::macvlan_l2(), "IgnoreUnknown=1;MAC=x"),
        (
            "macvlan",
            conf::with(&conf::macvlan_l2(), json!({"mode": "x"})),
            "",
        ),
        (
            "macvlan",
            conf::with(&conf::macvlan_l2(), json!({"mtu": 1501})),
            "",
        ),
        (
            "macvlan",
            conf::with(&conf::macvlan_l2(), json!({"master": "eth9"})),
            "",
        ),
        (
            "macvlan",
            conf::with(&conf::macvlan_l2(), json!({"master": null})),
            "",
        ),
        (
            "macvlan",
            conf::with(&conf::macvlan_l2(), json!({"ipam": {"type": "nope"}})),
            "",
        ),
        (
            "ptp",
            conf::with(
                &conf::ptp(&["10.1.0.0/24"]),
                json!({"ipam": {"type": "nope"}}),
            ),
            "",
        ),
        (
            "ptp",
            conf::with(&conf::ptp(&["10.1.0.0/24"]), json!({"ipam": {"type": ""}})),
            "",
        ),
        ("portmap", conf::portmap(0), ""),
        (
            "portmap",
            conf::with(&conf::portmap(8080), json!({"markMasqBit": 32})),
            "",
        ),
        (
            "portmap",
            conf::with(
                &conf::portmap(8080),
                json!({"markMasqBit": 5, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
            ),
            "",
        ),
        ("portmap", conf::plugin("portmap"), ""),
        ("bridge", conf::bridge_l2(), "FOO=1"),
        ("bridge", conf::bridge_l2(), "MAC"),
        ("host-local", with_ipam(json!({"type": "host-local"})), ""),
        (
            "host-local",
            with_ipam(json!({"type": "host-local", "ranges": [[]]})),
            "",
        ),
        (
            "host-local",
            with_ipam(json!({"type": "host-local", "subnet": "10.0.0.0/31"})),
            "",
        ),
        (
            "host-local",
            with_ipam(json!({"type": "host-local", "subnet": "10.0.0.9/24"})),
            "",
        ),
        (
            "host-local",
            with_ipam(
                json!({"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}),
            ),
            "",
        ),
        (
            "host-local",
            conf::host_local(&["10.1.0.0/24"]),
            "IP=10.1.0.1",
        ),
        (
            "host-local",
            conf::host_local(&["10.1.0.0/24"]),
            "IP=10.9.0.1",
        ),
        (
            "static",
            conf::static_ipam(&json!([{"address": "10.5.0.9"}])),
            "",
        ),
        ("static", conf::static_ipam(&json!([])), "IP=10.5.0.9"),
        (
            "static",
            conf::static_ipam(&json!([])),
            "IP=10.5.0.9/24;GATEWAY=x",
        ),
    ];
    for (plugin, conf, args) in cases {
        let pair = Pair::new();
        let conf = conf::at(&conf, "1.0.0");
        let messages = pair.both(|sandbox, suite| {
            sandbox.wire();
            let pod = sandbox.pod("a");
            let cni = sandbox.cni(plugin).suite(suite).args(args);
            let msg = ADD(cni, &conf, &pod).error().msg;
            // Plugins before v1.3 end one of them with a full stop.
            let msg = msg.trim_end_matches('.').to_owned();
            let path = format!(
                "[{}/fakes {}]",
                sandbox.dir().display(),
                suite.dir().display()
            );
            msg.replace(&path, "[PATH]")
        });
        assert_eq!(messages[0], messages[1], "{plugin} {conf} {args}");
    }
}
