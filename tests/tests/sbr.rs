//! sbr: rules and tables for the addresses of an interface, what stays in the main table, and what
//! DEL gives back.

use std::ops::Deref;

use sandbox::{Cni, Netns, Sandbox, beyond_peer, conf, newest, supports};
use serde_json::{Value, json};

/// A node with a pod that has eth0 with the default route, and net1 on a second network.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
}

impl Deref for Node {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.sandbox
    }
}

/// Interfaces of a pod whose addresses and routes the main plugins have set.
const INTERFACES: &str = "
    sysctl -qw net.ipv6.conf.default.accept_dad=0
    ip link set lo up
    for name in eth0 net1; do
        ip link add $name type veth peer name peer-$name
        ip link set peer-$name up
        ip link set $name up
    done
    ip address add 10.9.0.2/24 dev eth0
    ip address add fd09::2/64 dev eth0 nodad
    ip route add default via 10.9.0.1
    ip -6 route add default via fd09::1
    ip address add 10.1.0.2/24 dev net1
    ip address add fd01::2/64 dev net1 nodad
    ip route add 10.8.0.0/16 via 10.1.0.8 mtu 1300";

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        pod.sh(INTERFACES);
        // The kernel adds the routes of a link that comes up in its own time.
        pod.wait_until("net1 has a link-local route", |pod| {
            !table(pod, "-6", "main", "net1").is_empty()
                && table(pod, "-6", "main", "net1")
                    .iter()
                    .any(|it| it.starts_with("fe80"))
        });
        Self { sandbox, pod }
    }

    fn sbr(&self) -> Cni {
        self.cni("sbr")
    }

    fn add(&self, conf: &Value) -> Value {
        self.sbr().add(conf, &self.pod, "net1").result()
    }

    fn del(&self, conf: &Value) {
        self.sbr().del(conf, &self.pod, "net1").silent();
    }

    /// All rules and routes.
    fn state(&self) -> String {
        self.pod
            .sh("for family in -4 -6; do ip $family rule; ip -d $family route show table all; done")
    }

    fn rules(&self) -> Vec<String> {
        rules(&self.pod)
    }

    fn table(&self, family: &str, table: &str) -> Vec<String> {
        self::table(&self.pod, family, table, "net1")
    }
}

/// `FROM lookup TABLE` of all rules that name an address.
fn rules(pod: &Netns) -> Vec<String> {
    let rules = |family| {
        let rules = pod.ip_json([family, "rule", "show"]);
        let chosen = rules.into_iter().filter(|it| it["src"] != "all");
        chosen.map(|it| {
            let text = |key: &str| it[key].as_str().unwrap_or_default().to_owned();
            format!("{} lookup {}", text("src"), text("table"))
        })
    };
    rules("-4").chain(rules("-6")).collect()
}

/// `DST [via GW] [src IP]` of the routes of a table through `link`, sorted.
fn table(pod: &Netns, family: &str, table: &str, link: &str) -> Vec<String> {
    let script = format!("ip -j {family} route show table {table} dev {link} 2>/dev/null || :");
    let text = pod.sh(&script);
    let routes: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let mut routes: Vec<String> = routes
        .iter()
        .filter(|it| it["dst"] != "ff00::/8")
        .map(|it| {
            let mut text = it["dst"].as_str().expect("a destination").to_owned();
            for (word, key) in [("via", "gateway"), ("src", "prefsrc")] {
                if let Some(value) = it[key].as_str() {
                    text.push_str(&format!(" {word} {value}"));
                }
            }
            text
        })
        .collect();
    routes.sort();
    routes
}

/// The result of the plugin that made net1.
fn previous() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth1", "mac": "02:00:00:00:00:09"},
            {"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a"},
        ],
        "ips": [
            {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd01::2/64", "gateway": "fd01::1", "interface": 1},
        ],
        "routes": [],
    })
}

fn sbr_after(keys: Value, previous: &Value) -> Value {
    let conf = conf::with(&conf::plugin("sbr"), keys);
    conf::with_prev(&conf, previous)
}

fn sbr(keys: Value) -> Value {
    sbr_after(keys, &previous())
}

// ---- ADD

#[test]
fn each_address_gets_a_rule_and_a_table_with_the_routes_of_the_interface() {
    let node = Node::new();
    let conf = sbr(json!({}));
    let result = node.add(&conf);
    assert_eq!(
        (&result["ips"], &result["interfaces"]),
        (&previous()["ips"], &previous()["interfaces"])
    );
    assert_eq!(node.rules(), ["10.1.0.2 lookup 100", "fd01::2 lookup 101"]);
    assert_eq!(
        node.table("-4", "100"),
        [
            "10.1.0.0/24 src 10.1.0.2",
            "10.8.0.0/16 via 10.1.0.8",
            "default via 10.1.0.1"
        ]
    );
    assert_eq!(
        node.table("-6", "101"),
        ["default via fd01::1", "fd01::/64", "fe80::/64"]
    );
    assert_eq!(node.table("-4", "main"), [] as [&str; 0]);
    assert!(!node.table("-6", "main").contains(&"fd01::/64".to_owned()));
    let eth0 = |family| table(&node.pod, family, "main", "eth0");
    assert_eq!(
        eth0("-4"),
        ["10.9.0.0/24 src 10.9.0.2", "default via 10.9.0.1"]
    );
    assert!(eth0("-6").contains(&"default via fd09::1".to_owned()));
    // With all that a route has.
    let moved = node
        .pod
        .ip_json(["-d", "route", "show", "10.8.0.0/16", "table", "100"]);
    assert_eq!(moved[0]["metrics"][0]["mtu"], 1300);
    node.sbr().check(&conf, &node.pod, "net1").silent();
}

#[test]
fn packets_leave_by_the_interface_of_their_source() {
    let node = Node::new();
    node.add(&sbr(json!({})));
    let way = |args: &str| node.pod.sh(&format!("ip -j route get {args}"));
    assert!(way("198.51.100.1 from 10.1.0.2").contains(r#""dev":"net1""#));
    assert!(way("198.51.100.1 from 10.9.0.2").contains(r#""dev":"eth0""#));
    assert!(way("198.51.100.1").contains(r#""dev":"eth0""#));
    assert!(way("2001:db8::1 from fd01::2").contains(r#""dev":"net1""#));
    assert!(way("2001:db8::1").contains(r#""dev":"eth0""#));
}

#[test]
fn link_local_destinations_are_reached_without_a_source_address() {
    beyond_peer("it takes their route out of the main table", || {
        let node = Node::new();
        node.add(&sbr(json!({})));
        assert!(node.table("-6", "main").contains(&"fe80::/64".to_owned()));
        node.pod.sh("ip -6 route get fe80::99 oif net1");
    });
}

#[test]
fn the_gateway_may_be_that_of_the_routes() {
    beyond_peer("it has no default route then", || {
        // The main plugin could not add them: eth0 has some.
        let routes =
            json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.7"}, {"dst": "::/0", "gw": "fd01::7"}]);
        let ips = json!([{"address": "10.1.0.2/24", "interface": 1}, {"address": "fd01::2/64", "interface": 1}]);
        let previous = conf::with(&previous(), json!({"ips": ips, "routes": routes}));
        let node = Node::new();
        node.add(&sbr_after(json!({}), &previous));
        assert!(
            node.table("-4", "100")
                .contains(&"default via 10.1.0.7".to_owned())
        );
        assert!(
            node.table("-6", "101")
                .contains(&"default via fd01::7".to_owned())
        );
    });
}

#[test]
fn a_link_local_gateway_is_kept() {
    beyond_peer("it deletes such a route", || {
        let node = Node::new();
        node.pod
            .sh("ip -6 route add fd08::/48 via fe80::1 dev net1");
        node.add(&sbr(json!({})));
        assert!(
            node.table("-6", "101")
                .contains(&"fd08::/48 via fe80::1".to_owned())
        );
    });
}

#[test]
fn a_gateway_may_be_in_no_network_of_the_interface() {
    beyond_peer("the kernel refuses the gateway", || {
        let node = Node::new();
        node.pod.sh("ip address add 203.0.113.5/32 dev net1");
        let mut single = previous();
        single["ips"] =
            json!([{"address": "203.0.113.5/32", "gateway": "198.51.100.1", "interface": 1}]);
        node.add(&sbr_after(json!({}), &single));
        assert!(
            node.table("-4", "100")
                .contains(&"default via 198.51.100.1".to_owned())
        );
    });
}

#[test]
fn the_default_route_of_the_interface_moves() {
    let node = Node::new();
    node.pod
        .sh("ip route del default; ip route add default via 10.1.0.1");
    node.add(&sbr(json!({})));
    assert!(
        node.table("-4", "100")
            .contains(&"default via 10.1.0.1".to_owned())
    );
    assert_eq!(node.table("-4", "main"), [] as [&str; 0]);
}

#[test]
fn a_default_route_that_the_kernel_joined_with_another_moves_alone() {
    beyond_peer("half of the connections of eth0 leave by net1", || {
        let node = Node::new();
        node.pod
            .sh("ip -6 route append default via fd01::7 dev net1");
        let [joined] = &node.pod.ip_json(["-6", "route", "show", "default"])[..] else {
            panic!("the kernel has not joined them");
        };
        assert_eq!(joined["nexthops"].as_array().map(Vec::len), Some(2));
        node.add(&sbr(json!({})));
        let of_eth0 = table(&node.pod, "-6", "main", "eth0");
        assert!(of_eth0.contains(&"default via fd09::1".to_owned()));
        let of_net1 = node.table("-6", "101");
        assert!(of_net1.contains(&"default via fd01::7".to_owned()));
        let [alone] = &node.pod.ip_json(["-6", "route", "show", "default"])[..] else {
            panic!("there is one default route");
        };
        assert_eq!(alone["nexthops"], Value::Null);
    });
}

#[test]
fn several_addresses_of_a_network_have_a_table_each() {
    let node = Node::new();
    node.pod
        .sh("ip address add 10.1.0.3/24 dev net1; ip address add 10.2.0.2/24 dev net1");
    let ips = json!([
        {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1},
        {"address": "10.1.0.3/24", "interface": 1},
        {"address": "10.2.0.2/24", "gateway": "10.2.0.1"},
    ]);
    node.add(&sbr_after(
        json!({}),
        &conf::with(&previous(), json!({"ips": ips})),
    ));
    assert_eq!(
        node.rules(),
        [
            "10.2.0.2 lookup 102",
            "10.1.0.3 lookup 101",
            "10.1.0.2 lookup 100"
        ]
    );
    assert!(
        node.table("-4", "101")
            .contains(&"10.1.0.0/24 src 10.1.0.2".to_owned())
    );
    assert_eq!(
        node.table("-4", "102"),
        ["10.2.0.0/24 src 10.2.0.2", "default via 10.2.0.1"]
    );
}

#[test]
fn a_table_in_use_is_not_chosen() {
    beyond_peer("it takes a table that has routes and no rule", || {
        let node = Node::new();
        node.pod.sh("ip rule add from 192.0.2.1 lookup 100
             ip route add 192.0.2.0/24 dev eth0 table 101
             ip -6 route add fd07::/64 dev eth0 table 102");
        node.add(&sbr(json!({})));
        let rules = node.rules();
        assert!(
            rules.contains(&"10.1.0.2 lookup 103".to_owned()),
            "{rules:?}"
        );
        assert!(
            rules.contains(&"fd01::2 lookup 104".to_owned()),
            "{rules:?}"
        );
    });
}

#[test]
fn interfaces_that_are_added_at_once_have_tables_of_their_own() {
    const AT_ONCE: usize = 8;
    let node = Node::new();
    for n in 0..AT_ONCE {
        node.pod.sh(&format!(
            "ip link add if{n} type veth peer name to{n}; ip link set to{n} up; ip link set if{n} up
             ip address add 10.2.{n}.2/24 dev if{n}"
        ));
    }
    std::thread::scope(|scope| {
        for n in 0..AT_ONCE {
            let node = &node;
            scope.spawn(move || {
                let previous = json!({
                    "cniVersion": "1.0.0",
                    "interfaces": [{"name": format!("if{n}"), "sandbox": "/run/netns/a"}],
                    "ips": [{"address": format!("10.2.{n}.2/24"), "gateway": format!("10.2.{n}.1"), "interface": 0}],
                });
                let conf = sbr_after(json!({}), &previous);
                node.sbr().add(&conf, &node.pod, &format!("if{n}")).result();
            });
        }
    });
    let mut tables: Vec<_> = node
        .rules()
        .iter()
        .map(|it| it.split(' ').next_back().map(str::to_owned))
        .collect();
    tables.sort();
    tables.dedup();
    assert_eq!(tables.len(), AT_ONCE, "{:?}", node.rules());
    for n in 0..AT_ONCE {
        let rule = node
            .rules()
            .into_iter()
            .find(|it| it.starts_with(&format!("10.2.{n}.2 ")));
        let rule = rule.expect("a rule");
        let number = rule.split(' ').next_back().expect("a table");
        let routes = table(&node.pod, "-4", number, &format!("if{n}"));
        assert_eq!(
            routes,
            [
                format!("10.2.{n}.0/24 src 10.2.{n}.2"),
                format!("default via 10.2.{n}.1")
            ]
        );
    }
}

#[test]
fn a_second_add_changes_nothing() {
    beyond_peer("it adds rules and tables again", || {
        for keys in [
            json!({}),
            json!({"table": 7}),
            json!({"addSourceHints": true}),
        ] {
            let node = Node::new();
            node.add(&sbr(keys.clone()));
            let state = node.state();
            node.add(&sbr(keys.clone()));
            assert_eq!(node.state(), state, "{keys}");
        }
    });
}

#[test]
fn a_failed_add_leaves_the_pod_as_it_was() {
    beyond_peer("it leaves rules and routes", || {
        let node = Node::new();
        let before = node.state();
        let conf = sbr(json!({"gateways": ["192.0.2.1"]}));
        let error = node.sbr().add(&conf, &node.pod, "net1").error();
        assert!(
            error
                .msg
                .starts_with("add route to 0.0.0.0/0 in table 100: "),
            "{error:?}"
        );
        assert_eq!(node.state(), before);
        let conf = sbr(json!({"gateways": ["fd99::1"]}));
        node.sbr().add(&conf, &node.pod, "net1").error();
        assert_eq!(
            node.state(),
            before,
            "after the first address has got its table"
        );
    });
}

// ---- keys

#[test]
fn with_a_table_there_are_only_rules() {
    beyond_peer("older releases have no such key", || {
        let node = Node::new();
        let routes = || {
            node.pod
                .sh("ip route show table all; ip -6 route show table all")
        };
        let before = routes();
        let conf = sbr(json!({"table": 5000}));
        node.add(&conf);
        assert_eq!(
            node.rules(),
            ["10.1.0.2 lookup 5000", "fd01::2 lookup 5000"]
        );
        assert_eq!(routes(), before);
        node.sbr().check(&conf, &node.pod, "net1").silent();
        node.pod.sh("ip rule add from 10.1.0.2 lookup 6000");
        node.del(&conf);
        assert_eq!(node.rules(), ["10.1.0.2 lookup 6000"]);
        assert_eq!(routes(), before);
    });
}

#[test]
fn configured_gateways_go_before_those_of_the_result() {
    beyond_peer("its releases have no such key", || {
        let node = Node::new();
        node.pod
            .sh("ip -6 route add default via fd01::1 dev net1 metric 512");
        let before = node.state();
        let conf = sbr(json!({"gateways": ["fd01::fe", "10.1.0.254"]}));
        node.add(&conf);
        assert!(
            node.table("-4", "100")
                .contains(&"default via 10.1.0.254".to_owned())
        );
        let way = node.pod.sh("ip -6 route get 2001:db8::1 from fd01::2");
        assert!(way.contains("via fd01::fe"), "{way}");
        node.sbr().check(&conf, &node.pod, "net1").silent();
        node.del(&conf);
        assert_eq!(node.state(), before);
    });
}

#[test]
fn source_hints_keep_the_networks_of_the_interface_in_the_main_table() {
    beyond_peer("its releases have no such key", || {
        let node = Node::new();
        let before = node.state();
        let conf = sbr(json!({"addSourceHints": true}));
        node.add(&conf);
        assert_eq!(node.table("-4", "main"), ["10.1.0.0/24 src 10.1.0.2"]);
        assert_eq!(
            node.table("-6", "main"),
            ["fd01::/64 src fd01::2", "fe80::/64"]
        );
        assert_eq!(
            node.table("-4", "100"),
            [
                "10.1.0.0/24 src 10.1.0.2",
                "10.8.0.0/16 via 10.1.0.8",
                "default via 10.1.0.1"
            ]
        );
        let way = node
            .pod
            .sh("ip route get 10.1.0.9; ip -6 route get fd01::9");
        assert!(
            way.contains("src 10.1.0.2") && way.contains("src fd01::2"),
            "{way}"
        );
        node.sbr().check(&conf, &node.pod, "net1").silent();
        node.del(&conf);
        assert_eq!(node.state(), before);
    });
}

#[test]
fn invalid_values_are_refused_before_anything_is_touched() {
    beyond_peer("it checks nothing before", || {
        let node = Node::new();
        let before = node.state();
        let gateways = "gateways list";
        for (keys, msg) in [
            (
                json!({"table": 0}),
                "invalid table 0: must be 1 to 4294967295".to_owned(),
            ),
            (
                json!({"table": -3}),
                "invalid table -3: must be 1 to 4294967295".into(),
            ),
            (
                json!({"table": 4_294_967_296_i64}),
                "invalid table 4294967296: must be 1 to 4294967295".into(),
            ),
            (
                json!({"gateways": ["10.1.0.x"]}),
                "invalid static gateway IP address: 10.1.0.x".into(),
            ),
            (
                json!({"gateways": ["10.1.0.1", "10.1.0.2"]}),
                format!("{gateways} contains multiple IPv4 addresses: 10.1.0.1 and 10.1.0.2"),
            ),
            (
                json!({"gateways": ["10.1.0.1", "fd01::1", "fd01::2"]}),
                format!("{gateways} cannot contain more than 2 entries (one IPv4, one IPv6)"),
            ),
        ] {
            let conf = sbr(keys);
            for verb in ["ADD", "CHECK", "STATUS"] {
                let error = match verb {
                    "STATUS" if newest() < "1.1.0" => continue,
                    "STATUS" => node.sbr().status(&conf).error(),
                    verb => node
                        .sbr()
                        .attachment(verb, &conf, &node.pod, "net1")
                        .error(),
                };
                assert_eq!((error.code, &error.msg), (7, &msg), "{verb}");
            }
            node.del(&conf);
        }
        for keys in [
            json!({"table": "7"}),
            json!({"table": 7.5}),
            json!({"gateways": "10.1.0.1"}),
            json!({"addSourceHints": 1}),
        ] {
            let conf = sbr(keys);
            node.sbr().add(&conf, &node.pod, "net1").error();
            node.del(&conf);
        }
        assert_eq!(node.state(), before);
    });
}

#[test]
fn it_needs_a_result_with_an_address_of_the_interface() {
    let node = Node::new();
    let msg = |conf: &Value| node.sbr().add(conf, &node.pod, "net1").error().msg;
    assert_eq!(
        msg(&conf::plugin("sbr")),
        "This plugin must be called as chained plugin"
    );
    assert_eq!(
        msg(&conf::at(&conf::plugin("sbr"), "0.2.0")),
        "This plugin must be called as chained plugin"
    );
    let none = conf::with(&previous(), json!({"ips": []}));
    assert_eq!(
        msg(&sbr_after(json!({}), &none)),
        "No IP addresses supplied on interface: net1"
    );
    let conf = sbr(json!({}));
    let error = node.sbr().add(&conf, &node.pod, "net7").error();
    assert!(error.msg.contains("net7"), "{error:?}");
}

#[test]
fn the_result_is_that_of_the_plugin_before_in_every_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        if !supports(version) {
            continue;
        }
        let node = Node::new();
        let mut previous = conf::with(&previous(), json!({"cniVersion": version}));
        if version < "1.0.0" {
            for (ip, family) in [(0, "4"), (1, "6")] {
                previous["ips"][ip]["version"] = family.into();
            }
        }
        let conf = conf::at(&sbr_after(json!({}), &previous), version);
        let result = node.add(&conf);
        assert_eq!(
            (&result["cniVersion"], &result["ips"]),
            (&version.into(), &previous["ips"])
        );
        node.del(&conf);
    }
    let node = Node::new();
    let previous =
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}});
    let result = node.add(&conf::at(&sbr_after(json!({}), &previous), "0.2.0"));
    assert_eq!(result["ip4"]["ip"], "10.1.0.2/24");
    assert_eq!(node.rules(), ["10.1.0.2 lookup 100"]);
}

// ---- CHECK

#[test]
fn check_finds_a_missing_rule_and_a_missing_default_route() {
    beyond_peer("its CHECK does nothing", || {
        let node = Node::new();
        let conf = sbr(json!({}));
        let check = || node.sbr().check(&conf, &node.pod, "net1");
        assert_eq!(
            check().error().msg,
            "rule for packets from 10.1.0.2 not found"
        );
        node.add(&conf);
        check().silent();
        node.pod.sh("ip link set net1 down; ip link set net1 up");
        assert_eq!(
            check().error().msg,
            "default route for packets from 10.1.0.2 not found in table 100"
        );
        node.pod.sh("ip link del net1");
        assert_eq!(check().error().msg, "Interface name net1 not found");
    });
}

// ---- DEL

#[test]
fn del_gives_rules_and_routes_back() {
    beyond_peer("it leaves the routes in their tables", || {
        let node = Node::new();
        let before = node.state();
        let conf = sbr(json!({}));
        for without_result in [false, true] {
            node.add(&conf);
            let conf = if without_result {
                conf::with(&conf, json!({"prevResult": null}))
            } else {
                conf.clone()
            };
            node.del(&conf);
            assert_eq!(node.state(), before, "without result: {without_result}");
            node.del(&conf);
            assert_eq!(node.state(), before);
        }
    });
}

#[test]
fn del_gives_the_only_default_route_back() {
    beyond_peer("it leaves the routes in their tables", || {
        let node = Node::new();
        node.pod
            .sh("ip route del default; ip route add default via 10.1.0.1");
        let before = node.state();
        let conf = sbr(json!({}));
        node.add(&conf);
        node.del(&conf);
        assert_eq!(node.state(), before);
    });
}

#[test]
fn del_removes_rules_of_an_interface_that_is_gone() {
    beyond_peer("it leaves the rules", || {
        let node = Node::new();
        let conf = sbr(json!({}));
        node.add(&conf);
        node.pod.sh("ip link del net1");
        node.del(&conf);
        assert_eq!(node.rules(), [] as [&str; 0]);
    });
}

#[test]
fn del_touches_no_other_interface_and_no_other_rule() {
    let node = Node::new();
    node.pod.sh("ip rule add from 10.9.0.2 lookup 200
         ip rule add from 10.1.0.2 fwmark 1 lookup 201
         ip route add default via 10.9.0.1 table 200");
    let before = (node.rules(), table(&node.pod, "-4", "200", "eth0"));
    beyond_peer(
        "it removes every rule with an address of the interface",
        || {
            let conf = sbr(json!({}));
            node.add(&conf);
            node.del(&conf);
            assert_eq!(
                (node.rules(), table(&node.pod, "-4", "200", "eth0")),
                before
            );
        },
    );
}

#[test]
fn del_never_makes_a_file_where_a_namespace_was() {
    let node = Node::new();
    let conf = sbr(json!({}));
    node.add(&conf);
    let snapshot = node.snapshot();
    beyond_peer("it makes a file, and fails", || {
        for path in ["/run/netns/gone", ""] {
            let del = node.sbr().netns(path);
            del.del(&conf, &node.pod, "net1").silent();
            assert_eq!(node.list("/run/netns"), ["a"]);
        }
        node.write("/run/netns/plain", "");
        let del = node.sbr().netns("/run/netns/plain");
        del.del(&conf, &node.pod, "net1").silent();
        assert_eq!(node.read("/run/netns/plain").as_deref(), Some(""));
        node.host().sh("rm /run/netns/plain");
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_pod_that_holds_the_lock_does_not_keep_del_from_its_work() {
    beyond_peer("it waits for ever", || {
        let node = Node::new();
        let before = node.state();
        let conf = sbr(json!({}));
        node.add(&conf);
        let holder = node
            .pod
            .start(&["flock", "/proc/self/ns/net", "sleep", "60"]);
        node.pod.wait_until("the lock is held", |pod| {
            pod.run(&["flock", "-n", "/proc/self/ns/net", "true"]).code != 0
        });
        node.del(&conf);
        assert_eq!(node.state(), before);
        drop(holder);
    });
}

// ---- GC and STATUS

#[test]
fn gc_and_status_have_nothing_to_complain_of() {
    if newest() < "1.1.0" {
        return;
    }
    let node = Node::new();
    let conf = sbr(json!({}));
    node.add(&conf);
    let state = node.state();
    node.sbr().gc(&conf::with_valid(&conf, &[])).silent();
    node.sbr().status(&conf).silent();
    assert_eq!(node.state(), state, "it does not know the namespace");
}
