//! portmap, chained after bridge: ports of the node that lead to a pod, asked for from
//! everywhere, with every back end, beside others that write rules.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::time::{Duration, Instant};

use sandbox::{
    BackEnd, Cni, FilterNode, NOBODY, NODE, Netns, OUTSIDE, Outcome, Sandbox, Stdout, Suite,
    beyond_peer, conf, container_id,
};
use serde_json::{Value, json};

/// What portmap adds to a network.
fn portmap(back_end: BackEnd) -> Value {
    let mut conf = conf::plugin("portmap");
    conf["backend"] = back_end.name().into();
    conf
}

fn bridge() -> Value {
    bridge_of(&["10.1.0.0/24", "fd01::/64"])
}

fn bridge_of(subnets: &[&str]) -> Value {
    // Where bridged packets pass the hooks of IP, a pod reaches itself by hairpin only.
    let keys = json!({"isDefaultGateway": true, "hairpinMode": true});
    conf::with(&conf::bridge(subnets), keys)
}

/// `portMappings` as runtimes send them.
fn port(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

fn publishing(conf: &Value, mappings: &[Value]) -> Value {
    conf::with(conf, json!({"runtimeConfig": {"portMappings": mappings}}))
}

/// A node whose pods publish ports.
struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

/// A pod that has been added to the bridge.
struct Pod {
    netns: Netns,
    /// What bridge said.
    result: Value,
}

impl Node {
    fn new(back_end: BackEnd) -> Self {
        Self(FilterNode::new(back_end))
    }

    fn portmap(&self) -> Cni {
        self.cni("portmap")
    }

    fn conf(&self) -> Value {
        portmap(self.back_end)
    }

    /// A pod without ports.
    fn pod(&self, name: &str) -> Pod {
        let netns = self.sandbox.pod(name);
        let result = self.cni("bridge").add(&bridge(), &netns, "eth0").result();
        Pod { netns, result }
    }

    fn publish_with(&self, conf: &Value, pod: &Pod, mappings: &[Value]) -> Outcome {
        let conf = conf::with_prev(&publishing(conf, mappings), &pod.result);
        self.portmap().add(&conf, &pod.netns, "eth0")
    }

    fn publish(&self, pod: &Pod, mappings: &[Value]) -> Outcome {
        self.publish_with(&self.conf(), pod, mappings)
    }

    /// A pod with ports.
    fn published(&self, name: &str, mappings: &[Value]) -> Pod {
        let pod = self.pod(name);
        self.publish(&pod, mappings).result();
        pod
    }

    /// DEL as a runtime with a cache sends it.
    fn unpublish(&self, pod: &Pod, mappings: &[Value]) {
        let conf = conf::with_prev(&publishing(&self.conf(), mappings), &pod.result);
        self.portmap().del(&conf, &pod.netns, "eth0").silent();
    }

    /// The rules, once what all pods share has been made.
    fn rules_after_a_first_pod(&self) -> String {
        let mappings = [port(1, 1, "tcp"), port(1, 1, "udp")];
        let first = self.published("first", &mappings);
        self.unpublish(&first, &mappings);
        let rules = self.host().rules();
        assert!(!rules.contains("id-first"), "{rules}");
        rules
    }
}

fn each(back_ends: &[BackEnd], test: impl Fn(&Node)) {
    FilterNode::each(back_ends, |node| test(&Node(node)));
}

const HTTP: u16 = 8080;

fn tcp() -> [Value; 1] {
    [port(HTTP, 80, "tcp")]
}

// ---- who reaches it, and whom the server sees

#[test]
fn a_port_is_reached_from_everywhere() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &[port(8080, 80, "tcp"), port(8080, 80, "udp")]);
        let neighbour = node.pod("b");
        let _server = pod.netns.serve(80);
        for protocol in ["tcp", "udp"] {
            for (to, from) in NODE.into_iter().zip(OUTSIDE) {
                let asked = node.outside.ask(protocol, to, 8080);
                assert_eq!(asked, format!("a sees {from}"), "{protocol} from outside");
                let asked = node.host().ask(protocol, to, 8080);
                assert_eq!(asked, format!("a sees {to}"), "{protocol} from the node");
                let asked = neighbour.netns.ask(protocol, to, 8080);
                assert!(
                    asked.starts_with("a sees "),
                    "{protocol} from a neighbour: {asked}"
                );
            }
            for (to, gateway) in NODE.into_iter().zip(["10.1.0.1", "fd01::1"]) {
                let asked = pod.netns.ask(protocol, to, 8080);
                assert_eq!(
                    asked,
                    format!("a sees {gateway}"),
                    "{protocol} from the pod"
                );
            }
            let asked = node.host().ask(protocol, "127.0.0.1", 8080);
            assert_eq!(asked, "a sees 10.1.0.1", "{protocol} from 127.0.0.1");
        }
        assert_eq!(node.outside.ask("tcp", NODE[0], 8081), NOBODY);
        assert_eq!(node.outside.ask("tcp", NODE[0], 80), NOBODY);
    });
}

#[test]
fn a_page_is_fetched_with_nc() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let _server = pod.netns.start(&["sh", "-c",
            "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nthe page\\n' | nc -l -N 80 >/dev/null; done"]);
        let fetch = |from: &Netns, to: &str| {
            from.run(&[
                "sh",
                "-c",
                &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {to} {HTTP}"),
            ])
            .stdout
        };
        for (from, to) in [
            (&node.outside, NODE[0]),
            (&node.host(), NODE[0]),
            (&node.host(), "127.0.0.1"),
        ] {
            node.host()
                .wait_until("the page", |_| fetch(from, to).contains("the page"));
        }
    });
}

#[test]
fn a_host_address_is_the_only_one() {
    each(&BackEnd::ALL, |node| {
        node.host()
            .sh("ip addr add 192.0.2.2/24 dev uplink; ip addr add 2001:db8::2/64 dev uplink nodad");
        let at = |address: &str, number: u16| {
            let mut mapping = port(number, 80, "tcp");
            mapping["hostIP"] = address.into();
            mapping
        };
        let mappings = [
            at("192.0.2.2", 8080),
            at("2001:db8::2", 8081),
            at("0.0.0.0", 8082),
            at("::", 8083),
        ];
        let pod = node.published("a", &mappings);
        let _server = pod.netns.serve(80);
        let ask = |to: &str, number: u16| node.outside.ask("tcp", to, number) != NOBODY;
        for (to, number, answers) in [
            ("192.0.2.2", 8080, true),
            ("192.0.2.1", 8080, false),
            ("2001:db8::2", 8081, true),
            ("2001:db8::1", 8081, false),
            ("192.0.2.1", 8082, true),
            ("192.0.2.2", 8082, true),
            ("2001:db8::1", 8082, false),
            ("2001:db8::1", 8083, true),
            ("192.0.2.1", 8083, false),
        ] {
            assert_eq!(ask(to, number), answers, "{to} {number}");
        }
        // The same port at another address is another's to have.
        let other = node.published("b", &[at("192.0.2.1", 8080)]);
        let _other = other.netns.serve(80);
        assert_eq!(
            node.outside.ask("tcp", "192.0.2.1", 8080),
            "b sees 192.0.2.9"
        );
        assert_eq!(
            node.outside.ask("tcp", "192.0.2.2", 8080),
            "a sees 192.0.2.9"
        );
    });
}

#[test]
fn without_snat_a_pod_does_not_reach_itself_but_others_do() {
    each(&BackEnd::ALL, |node| {
        let pod = node.pod("a");
        let conf = conf::with(&node.conf(), json!({"snat": false}));
        node.publish_with(&conf, &pod, &tcp()).result();
        let _server = pod.netns.serve(80);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
        assert_eq!(pod.netns.ask("tcp", NODE[0], HTTP), NOBODY);
        assert_eq!(node.host().ask("tcp", "127.0.0.1", HTTP), NOBODY);
    });
}

#[test]
fn all_connections_are_masqueraded_when_asked_for() {
    beyond_peer("no such key in v1.1", || {
        each(&BackEnd::ALL, |node| {
            let pod = node.pod("a");
            let conf = conf::with(&node.conf(), json!({"masqAll": true}));
            node.publish_with(&conf, &pod, &tcp()).result();
            let _server = pod.netns.serve(80);
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 10.1.0.1");
            assert_eq!(node.outside.ask("tcp", NODE[1], HTTP), "a sees fd01::1");
        });
    });
}

#[test]
fn conditions_are_those_of_the_pod_that_has_them() {
    beyond_peer(
        "no conditions of nftables, and no CHECK of two families",
        || {
            each(&BackEnd::ALL, |node| {
                node.host().sh("ip addr add 192.0.2.2/24 dev uplink");
                let condition = match node.back_end {
                    BackEnd::Nftables => json!(["ip", "daddr", "192.0.2.2"]),
                    _ => json!(["-d", "192.0.2.2"]),
                };
                let (a, b) = (node.pod("a"), node.pod("b"));
                let conf = conf::with(&node.conf(), json!({"conditionsV4": condition}));
                node.publish_with(&conf, &a, &tcp()).result();
                node.publish(&b, &[port(8081, 80, "tcp")]).result();
                let (_a, _b) = (a.netns.serve(80), b.netns.serve(80));
                assert_eq!(
                    node.outside.ask("tcp", "192.0.2.2", 8080),
                    "a sees 192.0.2.9"
                );
                assert_eq!(node.outside.ask("tcp", "192.0.2.1", 8080), NOBODY);
                assert_eq!(
                    node.outside.ask("tcp", "192.0.2.1", 8081),
                    "b sees 192.0.2.9"
                );
                let checked = conf::with_prev(&publishing(&conf, &tcp()), &a.result);
                node.portmap().check(&checked, &a.netns, "eth0").silent();
                let before = node.host().rules();
                assert!(before.contains("192.0.2.2"));
                node.portmap().del(&checked, &a.netns, "eth0").silent();
                let rules = node.host().rules();
                assert!(
                    !rules.contains("192.0.2.2") && !rules.contains("10.1.0.2:80"),
                    "{rules}"
                );
                assert_eq!(
                    node.outside.ask("tcp", "192.0.2.1", 8081),
                    "b sees 192.0.2.9"
                );
            })
        },
    );
}

#[test]
fn many_ports_of_one_pod_are_all_reached() {
    each(&BackEnd::ALL, |node| {
        // More than one rule of multiport holds.
        let mappings: Vec<Value> = (0..40)
            .map(|n| port(8000 + n, 80, ["tcp", "udp"][usize::from(n % 2)]))
            .collect();
        let pod = node.published("a", &mappings);
        let _server = pod.netns.serve(80);
        for number in [8000, 8032, 8038] {
            assert_eq!(node.outside.ask("tcp", NODE[0], number), "a sees 192.0.2.9");
        }
        let six = || {
            for number in [8001, 8039] {
                assert_eq!(
                    node.outside.ask("udp", NODE[1], number),
                    "a sees 2001:db8::9"
                );
            }
        };
        match node.back_end {
            // ip6tables-legacy -C compares all but the last bytes of a rule.
            BackEnd::IptablesLegacy => beyond_peer("it believes -C", six),
            _ => six(),
        }
        node.unpublish(&pod, &mappings);
        assert_eq!(node.outside.ask("tcp", NODE[0], 8000), NOBODY);
    });
}

#[test]
fn protocols_may_be_written_in_capitals() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &[port(HTTP, 80, "TCP")]);
        let _server = pod.netns.serve(80);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
        node.unpublish(&pod, &[port(HTTP, 80, "TCP")]);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), NOBODY);
    });
}

#[test]
fn the_node_s_own_loopback_is_not_the_neighbours_business() {
    beyond_peer("plugins#729: route_localnet without a filter", || {
        each(&BackEnd::ALL, |node| {
            let pod = node.published("a", &tcp());
            let _service = node.host().serve(9000);
            let way = node.host().sysctl("net/ipv4/conf/cni0/route_localnet");
            assert_eq!(way, "1");
            // From outside it takes an address on the same wire, and a node that is open there.
            pod.netns
                .sh("echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
            ip route add 127.0.0.0/8 via 10.1.0.1");
            assert_eq!(pod.netns.ask("tcp", "10.1.0.1", 9000), "host sees 10.1.0.2");
            for protocol in ["tcp", "udp"] {
                assert_eq!(pod.netns.ask(protocol, "127.0.0.1", 9000), NOBODY);
            }
            // It is the rule that keeps them out.
            node.host().sh("nft flush ruleset");
            assert_eq!(
                pod.netns.ask("tcp", "127.0.0.1", 9000),
                "host sees 10.1.0.2"
            );
        });
    });
}

// ---- connections, and who has a port

#[test]
fn a_connection_outlives_other_pods() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let _server = pod.netns.serve(80);
        let talk = node.outside.converse("tcp", NODE[0], HTTP);
        node.outside
            .wait_until("an answer", |_| talk.output().contains("a sees"));
        for name in ["b", "c"] {
            let other = node.published(name, &[port(9090, 80, "tcp"), port(9090, 80, "udp")]);
            node.unpublish(&other, &[port(9090, 80, "tcp"), port(9090, 80, "udp")]);
        }
        let so_far = talk.output().len();
        node.outside
            .wait_until("more answers", |_| talk.output().len() > so_far + 100);
        assert!(!talk.output().contains("closed"));
    });
}

#[test]
fn the_newest_add_of_a_port_wins_and_says_so() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let a = node.published("a", &tcp());
            let b = node.pod("b");
            let (_a, _b) = (a.netns.serve(80), b.netns.serve(80));
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
            let took = node.publish(&b, &tcp());
            took.result();
            assert!(
                took.stderr().contains("8080/tcp") && took.stderr().contains("id-a"),
                "{took}"
            );
            for to in NODE {
                assert!(node.outside.ask("tcp", to, HTTP).starts_with("b sees"));
            }
            assert_eq!(node.host().ask("tcp", "127.0.0.1", HTTP), "b sees 10.1.0.1");
            node.unpublish(&a, &tcp());
            for to in NODE {
                assert!(
                    node.outside.ask("tcp", to, HTTP).starts_with("b sees"),
                    "the loser's DEL took it"
                );
            }
            let checked = conf::with_prev(&publishing(&node.conf(), &tcp()), &b.result);
            node.portmap().check(&checked, &b.netns, "eth0").silent();
            node.unpublish(&b, &tcp());
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), NOBODY);
        });
    });
}

#[test]
fn a_client_of_udp_reaches_the_new_pod_at_once() {
    each(&BackEnd::ALL, |node| {
        let dns = [port(5353, 53, "udp")];
        let a = node.published("a", &dns);
        let server = a.netns.serve(53);
        let talk = node.outside.converse("udp", NODE[0], 5353);
        node.outside
            .wait_until("an answer", |_| talk.output().contains("a sees"));
        node.unpublish(&a, &dns);
        node.cni("bridge").del(&bridge(), &a.netns, "eth0").silent();
        drop(server);
        // Now the client talks to the node itself, and the kernel remembers that.
        std::thread::sleep(Duration::from_millis(200));
        let b = node.pod("b");
        let _server = b.netns.serve(53);
        node.publish(&b, &dns).result();
        // In seconds: what the kernel remembers by itself it forgets after thirty.
        node.outside.wait_until("the new pod's answer", |_| {
            talk.output().contains("b sees 192.0.2.9")
        });
    });
}

#[test]
fn a_pod_that_crashed_does_not_keep_its_clients_of_udp() {
    each(&BackEnd::ALL, |node| {
        let dns = [port(5353, 53, "udp")];
        let a = node.published("a", &dns);
        let _a = a.netns.serve(53);
        let talk = node.outside.converse("udp", NODE[0], 5353);
        node.outside
            .wait_until("an answer", |_| talk.output().contains("a sees"));
        // No DEL: the runtime starts the next one first, and deletes later.
        let b = node.pod("b");
        let _b = b.netns.serve(53);
        beyond_peer("the old mapping wins", || {
            node.publish(&b, &dns).result();
            node.outside.wait_until("the new pod's answer", |_| {
                talk.output().contains("b sees 192.0.2.9")
            });
            node.unpublish(&a, &dns);
            let so_far = talk.output().len();
            node.outside
                .wait_until("more answers", |_| talk.output().len() > so_far + 100);
            assert!(
                talk.output()[so_far..]
                    .lines()
                    .skip(1)
                    .all(|line| line.starts_with("b sees"))
            );
        });
    });
}

#[test]
fn del_forgets_connections_of_udp() {
    beyond_peer("plugins#1190: only ADD does", || {
        each(&BackEnd::ALL, |node| {
            let dns = [port(5353, 53, "udp")];
            let a = node.published("a", &dns);
            let _a = a.netns.serve(53);
            assert_eq!(node.outside.ask("udp", NODE[0], 5353), "a sees 192.0.2.9");
            // Somebody else's: the node itself asked the same port elsewhere.
            node.host().ask("udp", OUTSIDE[0], 5353);
            let known = |to: &str| {
                let listed = node
                    .host()
                    .sh("conntrack -L -p udp --orig-port-dst 5353 2>/dev/null");
                listed.lines().any(|line| line.contains(to))
            };
            assert!(known(" src=10.1.0.2 ") && known(" src=192.0.2.1 dst=192.0.2.9 "));
            node.unpublish(&a, &dns);
            assert!(!known(" src=10.1.0.2 "), "{:?}", node.back_end);
            assert!(
                known(" src=192.0.2.1 dst=192.0.2.9 "),
                "{:?}",
                node.back_end
            );
        });
    });
}

#[test]
fn of_many_that_want_one_port_at_once_one_has_it() {
    let node = Node::new(BackEnd::Nftables);
    let before = node.rules_after_a_first_pod();
    let pods: Vec<Pod> = (0..10).map(|n| node.pod(&format!("p{n}"))).collect();
    let _servers: Vec<_> = pods.iter().map(|pod| pod.netns.serve(80)).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.publish(pod, &tcp()).result());
        }
    });
    let answer = |to: &str| node.outside.ask("tcp", to, HTTP);
    let (v4, v6) = (answer(NODE[0]), answer(NODE[1]));
    let name = |answer: &str| answer.split(' ').next().unwrap_or_default().to_owned();
    assert!(
        v4.contains("sees 192.0.2.9") && v6.contains("sees 2001:db8::9"),
        "{v4}, {v6}"
    );
    assert_eq!(name(&v4), name(&v6), "one has it for both families");
    for pod in pods.iter().filter(|pod| pod.netns.name() != name(&v4)) {
        node.unpublish(pod, &tcp());
    }
    assert_eq!(answer(NODE[0]), v4);
    for pod in &pods {
        node.unpublish(pod, &tcp());
    }
    node.assert_rules(&before);
}

// ---- a port that comes back

/// CHECK as a runtime sends it after ADD.
fn check(node: &Node, pod: &Pod, mappings: &[Value]) -> Outcome {
    let conf = conf::with_prev(&publishing(&node.conf(), mappings), &pod.result);
    node.portmap().check(&conf, &pod.netns, "eth0")
}

/// TCP and UDP of all addresses, and TCP of one address.
fn of_all_and_of_one() -> [Value; 3] {
    let mut one = port(9045, 80, "tcp");
    one["hostIP"] = NODE[0].into();
    [port(9044, 80, "tcp"), port(9044, 80, "udp"), one]
}

/// Who answers at each of [`of_all_and_of_one`]; panics unless it is one pod.
#[track_caller]
fn holder(node: &Node) -> String {
    let asked = [
        ("tcp", NODE[0], 9044),
        ("tcp", NODE[1], 9044),
        ("udp", NODE[0], 9044),
        ("udp", NODE[1], 9044),
        ("tcp", NODE[0], 9045),
    ];
    let answers = asked.map(|(protocol, to, number)| node.outside.ask(protocol, to, number));
    let name = |answer: &String| answer.split(' ').next().unwrap_or_default().to_owned();
    let names: BTreeSet<_> = answers.iter().map(name).collect();
    assert_eq!(names.len(), 1, "{:?}: {answers:?}", node.back_end);
    names.into_iter().next().unwrap_or_default()
}

#[test]
fn a_port_that_was_taken_over_is_given_back() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let ports = of_all_and_of_one();
            let pods = ["a", "b", "c", "d"].map(|name| node.published(name, &ports));
            let [a, b, c, d] = &pods;
            let _servers = pods.each_ref().map(|pod| pod.netns.serve(80));
            assert_eq!(holder(node), "d");
            node.unpublish(d, &ports);
            assert_eq!(holder(node), "c", "the one before");
            check(node, c, &ports).silent();
            // One that waits goes before its turn comes.
            node.unpublish(b, &ports);
            assert_eq!(holder(node), "c");
            // By owner alone, as of a runtime that has forgotten the rest.
            node.portmap()
                .netns("")
                .del(&conf::plugin("portmap"), &c.netns, "eth0")
                .silent();
            assert_eq!(holder(node), "a", "not one that has gone");
            check(node, a, &ports).silent();
            node.unpublish(a, &ports);
            node.assert_rules(&before);
        });
    });
}

#[test]
fn a_failed_add_and_gc_give_ports_back() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let ports = of_all_and_of_one();
            let a = node.published("a", &ports);
            let b = node.pod("b");
            let _servers = [&a, &b].map(|pod| pod.netns.serve(80));
            let published = node.rules();
            let conf = conf::with_prev(&publishing(&node.conf(), &ports), &b.result);
            let failed = node
                .portmap()
                .stdout(Stdout::NoReader)
                .add(&conf, &b.netns, "eth0");
            assert_ne!(failed.code(), 0, "{failed}");
            assert_eq!(holder(node), "a");
            node.assert_rules(&published);

            node.publish(&b, &ports).result();
            assert_eq!(holder(node), "b");
            let id = container_id(&a.netns);
            let gc = conf::with_valid(&node.conf(), &[(&id, "eth0")]);
            node.portmap().gc(&gc).silent();
            assert_eq!(holder(node), "a");
            node.assert_rules(&published);

            // One that waits is collected, too, and does not come back.
            node.publish(&b, &ports).result();
            let id = container_id(&b.netns);
            let gc = conf::with_valid(&node.conf(), &[(&id, "eth0")]);
            node.portmap().gc(&gc).silent();
            assert_eq!(holder(node), "b");
            node.unpublish(&b, &ports);
            assert!(!node.rules().contains("9044"), "{}", node.rules());
        });
    });
}

#[test]
fn an_add_again_takes_its_own_port_back_and_gives_it_back_once() {
    beyond_peer("plugins#1267: the first one wins", || {
        each(&BackEnd::ALL, |node| {
            let ports = of_all_and_of_one();
            let (a, b) = (node.published("a", &ports), node.published("b", &ports));
            let _servers = [&a, &b].map(|pod| pod.netns.serve(80));
            node.publish(&a, &ports).result();
            assert_eq!(holder(node), "a");
            node.unpublish(&a, &ports);
            assert_eq!(holder(node), "b");
            node.unpublish(&b, &ports);
            assert!(!node.rules().contains("9044"), "{}", node.rules());
        });
    });
}

#[test]
fn clients_of_udp_follow_a_port_there_and_back() {
    beyond_peer(
        "plugins#1190: DEL leaves them with the pod that is gone",
        || {
            each(&BackEnd::ALL, |node| {
                let dns = [port(5353, 53, "udp")];
                let a = node.published("a", &dns);
                let _a = a.netns.serve(53);
                let talk = node.outside.converse("udp", NODE[0], 5353);
                let hears = |name: &str| {
                    let so_far = talk.output().len();
                    let what = format!("an answer of {name}");
                    node.outside.wait_until(&what, |_| {
                        talk.output()[so_far..].contains(&format!("{name} sees"))
                    });
                };
                hears("a");
                let b = node.published("b", &dns);
                let _b = b.netns.serve(53);
                hears("b");
                node.unpublish(&b, &dns);
                hears("a");
            });
        },
    );
}

#[test]
fn two_networks_of_a_container_may_publish_the_same_port() {
    beyond_peer("v1.1 cannot CHECK two families", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let ports = of_all_and_of_one();
            for last in ["net1", "eth0"] {
                let pod = node.published(&format!("before-{last}"), &ports);
                let subnets = ["10.2.0.0/24", "fd02::/64"];
                let second = conf::with(
                    &bridge(),
                    json!({"name": "second", "bridge": "cni1", "isDefaultGateway": false,
                        "isGateway": true, "ipam": conf::host_local_ipam(&subnets)}),
                );
                let result = node.cni("bridge").add(&second, &pod.netns, "net1").result();
                let conf = conf::with(&node.conf(), json!({"name": "second"}));
                let conf = conf::with_prev(&publishing(&conf, &ports), &result);
                let added = node.portmap().add(&conf, &pod.netns, "net1");
                added.result();
                assert_eq!(added.stderr(), "", "it took nothing from another container");
                check(node, &pod, &ports).silent();
                node.portmap().check(&conf, &pod.netns, "net1").silent();
                let _server = pod.netns.serve(80);
                let sees = |from: &str| {
                    let asked = node.host().ask("tcp", "127.0.0.1", 9044);
                    assert_eq!(asked, format!("before-{last} sees {from}"));
                };
                sees("10.2.0.1");
                if last == "eth0" {
                    // podman network disconnect of the newer one.
                    node.portmap().del(&conf, &pod.netns, "net1").silent();
                    sees("10.1.0.1");
                    check(node, &pod, &ports).silent();
                    node.unpublish(&pod, &ports);
                } else {
                    node.unpublish(&pod, &ports);
                    sees("10.2.0.1");
                    node.portmap().check(&conf, &pod.netns, "net1").silent();
                    node.portmap().del(&conf, &pod.netns, "net1").silent();
                }
                assert_eq!(node.host().ask("tcp", "127.0.0.1", 9044), NOBODY);
                node.cni("bridge").del(&second, &pod.netns, "net1").silent();
                node.cni("bridge")
                    .del(&bridge(), &pod.netns, "eth0")
                    .silent();
            }
            node.assert_rules(&before);
        });
    });
}

#[test]
fn a_saved_ruleset_that_is_loaded_again_gives_ports_back() {
    beyond_peer("plugins#1267: the first one wins", || {
        let node = Node::new(BackEnd::Nftables);
        let ports = of_all_and_of_one();
        let (a, b) = (node.published("a", &ports), node.published("b", &ports));
        let _servers = [&a, &b].map(|pod| pod.netns.serve(80));
        let ruleset = node.host().sh("nft list ruleset");
        assert!(ruleset.contains(" : 0x00000001"), "{ruleset}");
        let file = node.sandbox.dir().join("ruleset").display().to_string();
        node.host().sh(&format!(
            "nft list ruleset >{file}; nft flush ruleset; nft -f {file}"
        ));
        assert_eq!(holder(&node), "b");
        node.unpublish(&b, &ports);
        assert_eq!(holder(&node), "a");
        check(&node, &a, &ports).silent();
    });
}

/// What `bridge-nf-call-iptables` may be on this kernel.
fn states(node: &Node) -> Vec<&'static str> {
    let has = node
        .host()
        .sh("modprobe -q br_netfilter || :; ls /proc/sys/net 2>/dev/null");
    match has.lines().any(|name| name == "bridge") {
        true => vec!["1", "0"],
        // Without the module it is as with 0, for ever.
        false => vec![""],
    }
}

fn filter_bridges(node: &Node, state: &str) {
    if !state.is_empty() {
        node.host().sh(&format!(
            "echo {state} >/proc/sys/net/bridge/bridge-nf-call-iptables
             echo {state} >/proc/sys/net/bridge/bridge-nf-call-ip6tables"
        ));
    }
}

#[test]
fn neighbours_reach_a_port_whatever_bridged_frames_pass_at_add_and_later() {
    each(&BackEnd::ALL, |node| {
        for at_add in states(node) {
            filter_bridges(node, at_add);
            let name = format!("a{at_add}");
            let pod = node.published(&name, &[port(8080, 80, "tcp"), port(8080, 80, "udp")]);
            let neighbour = node.pod(&format!("b{at_add}"));
            let _server = pod.netns.serve(80);
            for later in states(node) {
                filter_bridges(node, later);
                for (protocol, to) in [("tcp", NODE[0]), ("tcp", NODE[1]), ("udp", NODE[0])] {
                    let asked = neighbour.netns.ask(protocol, to, 8080);
                    let told = format!("{protocol} {to}: {at_add:?} at ADD, {later:?} now");
                    assert!(
                        asked.starts_with(&format!("{name} sees ")),
                        "{told}: {asked}"
                    );
                }
            }
            node.unpublish(&pod, &[port(8080, 80, "tcp"), port(8080, 80, "udp")]);
        }
    });
}

// ---- ADD again, CHECK, DEL, GC, STATUS

#[test]
fn a_pod_that_the_node_has_no_route_to_is_published_all_the_same() {
    for back_end in BackEnd::ALL {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::with(&conf::portmap(HTTP), json!({"backend": back_end.name()}));
        let cni = || sandbox.cni_with(back_end, "portmap");
        let added = cni().add(&conf, &pod, "eth0");
        added.result();
        assert!(sandbox.host().rules().contains("10.1.0.2"), "{back_end:?}");
        beyond_peer("it says nothing", || {
            let way = "find the way to 10.1.0.2: network is unreachable";
            assert!(added.stderr().contains(way), "{added}");
        });
        cni().del(&conf, &pod, "eth0").silent();
        assert!(!sandbox.host().rules().contains("10.1.0.2"), "{back_end:?}");
    }
}

#[test]
fn add_again_does_not_duplicate() {
    each(&BackEnd::ALL, |node| {
        let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
        let pod = node.published("a", &mappings);
        let rules = node.host().rules();
        let again = node.publish(&pod, &mappings);
        again.result();
        assert_eq!(again.stderr(), "", "nothing was anybody else's");
        node.assert_rules(&rules);
    });
}

#[test]
fn the_result_so_far_is_passed_on() {
    each(&BackEnd::ALL, |node| {
        let pod = node.pod("a");
        assert_eq!(node.publish(&pod, &tcp()).result(), pod.result);
        assert_eq!(node.publish(&pod, &[]).result(), pod.result);
    });
}

#[test]
fn without_mappings_nothing_is_touched() {
    each(&BackEnd::ALL, |node| {
        let pod = node.pod("a");
        let before = node.host().rules();
        node.publish(&pod, &[]).result();
        node.assert_rules(&before);
        assert_eq!(node.host().sysctl("net/ipv4/conf/cni0/route_localnet"), "0");
        let conf = conf::with_prev(&node.conf(), &pod.result);
        node.portmap().check(&conf, &pod.netns, "eth0").silent();
        node.portmap().del(&conf, &pod.netns, "eth0").silent();
        node.assert_rules(&before);
    });
}

#[test]
fn check_says_what_is_missing() {
    beyond_peer("v1.1 cannot CHECK two families", || {
        each(&BackEnd::ALL, |node| {
            let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
            let pod = node.published("a", &mappings);
            let checked = conf::with_prev(&publishing(&node.conf(), &mappings), &pod.result);
            let check = || node.portmap().check(&checked, &pod.netns, "eth0");
            check().silent();
            let flush = match node.back_end {
                BackEnd::Nftables => "nft flush ruleset",
                BackEnd::IptablesNft => "iptables-nft -t nat -F",
                BackEnd::IptablesLegacy => "iptables-legacy -t nat -F",
            };
            node.host().sh(flush);
            let error = check().error();
            let named = match node.back_end {
                BackEnd::Nftables => "8080",
                _ => "CNI-",
            };
            assert!(
                error.msg.contains(named),
                "{:?}: {}",
                node.back_end,
                error.msg
            );
            // The same ADD mends it, as after a reload of the firewall.
            node.publish(&pod, &mappings).result();
            check().silent();
        })
    });
}

#[test]
fn check_sees_what_only_one_family_lost() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let flush = match node.back_end {
            BackEnd::Nftables => "nft delete table ip6 podwire_hostports",
            BackEnd::IptablesNft => "ip6tables-nft -t nat -F CNI-HOSTPORT-DNAT",
            BackEnd::IptablesLegacy => "ip6tables-legacy -t nat -F CNI-HOSTPORT-DNAT",
        };
        let host = node.host();
        let checked = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
        let flushed = host.run(&["sh", "-c", flush]);
        // The peer has no such table; its rules are another case's.
        if flushed.code == 0 {
            node.portmap().check(&checked, &pod.netns, "eth0").error();
        } else {
            assert!(sandbox::testing_the_peer(), "{}", flushed.stderr);
        }
    });
}

#[test]
fn del_by_owner_alone() {
    beyond_peer("DEL without portMappings cleans nothing", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let mappings = [
                port(8080, 80, "tcp"),
                port(5353, 53, "udp"),
                port(7000, 70, "sctp"),
            ];
            let pod = node.published("a", &mappings);
            let alive = node.published("b", &[port(8081, 80, "tcp")]);
            let _server = alive.netns.serve(80);
            node.sandbox.remove_pod(&pod.netns);
            for _ in 0..2 {
                // No mappings, no prevResult, no namespace.
                node.portmap()
                    .netns("")
                    .del(&conf::plugin("portmap"), &pod.netns, "eth0")
                    .silent();
            }
            assert_eq!(node.outside.ask("tcp", NODE[0], 8081), "b sees 192.0.2.9");
            node.unpublish(&alive, &[port(8081, 80, "tcp")]);
            node.assert_rules(&before);
        });
    });
}

#[test]
fn del_finds_what_another_back_end_was_told_at_add() {
    beyond_peer("v1.1 knows one back end", || {
        for (added, deleted) in [
            (BackEnd::IptablesNft, BackEnd::Nftables),
            (BackEnd::IptablesLegacy, BackEnd::Nftables),
            (BackEnd::Nftables, BackEnd::IptablesNft),
            (BackEnd::Nftables, BackEnd::IptablesLegacy),
        ] {
            let node = Node::new(added);
            let before = node.rules_after_a_first_pod();
            let pod = node.published("a", &tcp());
            let conf = conf::with_prev(&publishing(&portmap(deleted), &tcp()), &pod.result);
            node.portmap().check(&conf, &pod.netns, "eth0").silent();
            node.portmap().del(&conf, &pod.netns, "eth0").silent();
            let rules = node.host().rules();
            for trace in ["id-a", "10.1.0.3", "fd01::3", "CNI-DN-"] {
                assert!(
                    !rules.contains(trace),
                    "{added:?}, {deleted:?}: {trace} in {rules}"
                );
            }
            if deleted == BackEnd::Nftables {
                node.assert_rules(&before);
            }
        }
    });
}

#[test]
fn two_networks_of_a_container_do_not_take_each_others_ports() {
    each(&BackEnd::ALL, |node| {
        let pod = node.published("a", &tcp());
        let _server = pod.netns.serve(80);
        let second = conf::with(
            &bridge(),
            json!({"name": "second", "bridge": "cni1",
            "isDefaultGateway": false, "ipam": conf::host_local_ipam(&["10.2.0.0/24"])}),
        );
        let result = node.cni("bridge").add(&second, &pod.netns, "net1").result();
        let conf = conf::with(&node.conf(), json!({"name": "second"}));
        let mappings = [port(8081, 80, "tcp")];
        let conf = conf::with_prev(&publishing(&conf, &mappings), &result);
        node.portmap().add(&conf, &pod.netns, "net1").result();
        assert_eq!(node.host().ask("tcp", "127.0.0.1", 8081), "a sees 10.2.0.1");
        node.portmap().del(&conf, &pod.netns, "net1").silent();
        assert_eq!(node.host().ask("tcp", "127.0.0.1", 8081), NOBODY);
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
    });
}

#[test]
fn gc_takes_what_belongs_to_nobody() {
    beyond_peer("no GC there", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let alive = node.published("alive", &tcp());
            let _server = alive.netns.serve(80);
            let dead = node.published("dead", &[port(8081, 80, "tcp"), port(5353, 53, "udp")]);
            node.sandbox.remove_pod(&dead.netns);
            let id = container_id(&alive.netns);
            node.portmap()
                .gc(&conf::with_valid(&node.conf(), &[(&id, "eth0")]))
                .silent();
            let rules = node.host().rules();
            assert!(
                !rules.contains("id-dead") && !rules.contains("8081"),
                "{:?}: {rules}",
                node.back_end
            );
            assert_eq!(
                node.outside.ask("tcp", NODE[0], HTTP),
                "alive sees 192.0.2.9"
            );
            // Another network's list says nothing about this one.
            let other = conf::with(&node.conf(), json!({"name": "other"}));
            node.portmap().gc(&conf::with_valid(&other, &[])).silent();
            assert_eq!(
                node.outside.ask("tcp", NODE[1], HTTP),
                "alive sees 2001:db8::9"
            );
            node.portmap()
                .gc(&conf::with_valid(&node.conf(), &[]))
                .silent();
            node.assert_rules(&before);
        });
    });
}

#[test]
fn nftables_needs_no_program() {
    beyond_peer("it executes iptables", || {
        let node = Node::new(BackEnd::Nftables);
        let bare = || node.sandbox.cni("portmap").without(&BackEnd::PROGRAMS);
        let pod = node.pod("a");
        let _server = pod.netns.serve(80);
        let before = node.rules_after_a_first_pod();
        for key in [Value::Null, "nftables".into()] {
            let conf = conf::with(&node.conf(), json!({"backend": key}));
            bare().status(&conf).silent();
            let conf = conf::with_prev(&publishing(&conf, &tcp()), &pod.result);
            bare().add(&conf, &pod.netns, "eth0").result();
            assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
            bare().check(&conf, &pod.netns, "eth0").silent();
            bare().del(&conf, &pod.netns, "eth0").silent();
            node.assert_rules(&before);
        }
        let iptables = portmap(BackEnd::IptablesNft);
        assert_eq!(bare().status(&iptables).error().code, 50);
        let conf = conf::with_prev(&publishing(&iptables, &tcp()), &pod.result);
        let error = bare().add(&conf, &pod.netns, "eth0").error();
        assert!(error.msg.contains("iptables"), "{}", error.msg);
        node.assert_rules(&before);
    });
}

#[test]
fn rules_that_the_programs_cannot_see_are_not_forgotten() {
    beyond_peer("it says that all is well", || {
        let node = Node::new(BackEnd::IptablesNft);
        let pod = node.pod("a");
        node.rules_after_a_first_pod();
        // The legacy programs make a table of their own by looking for it.
        let rules = || node.host().sh("iptables-nft-save -t nat | grep ^-A");
        let before = rules();
        let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
        let portmap = || node.sandbox.cni_with(BackEnd::IptablesNft, "portmap");
        portmap().add(&conf, &pod.netns, "eth0").result();
        let published = rules();

        // Not installed any more, and the other variant since the ADD.
        let bare = || portmap().without(&BackEnd::PROGRAMS);
        let error = bare().del(&conf, &pod.netns, "eth0").error();
        assert!(
            error.msg.contains("find iptables: not installed"),
            "{error:?}"
        );
        let legacy = node.sandbox.cni_with(BackEnd::IptablesLegacy, "portmap");
        let error = legacy.del(&conf, &pod.netns, "eth0").error();
        assert!(error.msg.contains("iptables does not see it"), "{error:?}");
        assert_eq!(rules(), published);

        portmap().del(&conf, &pod.netns, "eth0").silent();
        assert_eq!(rules(), before);
        // Nothing is left, so nobody needs a program.
        bare().del(&conf, &pod.netns, "eth0").silent();
    });
}

#[test]
fn no_program_is_executed_with_nftables() {
    beyond_peer("dozens of them", || {
        let node = Node::new(BackEnd::Nftables);
        let pod = node.pod("a");
        let trace = node.sandbox.dir().join("trace").display().to_string();
        let strace = ["strace", "-f", "-e", "trace=execve", "-o", &trace];
        let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
        for verb in ["ADD", "CHECK", "DEL"] {
            let done = node
                .portmap()
                .under(&strace)
                .attachment(verb, &conf, &pod.netns, "eth0");
            assert_eq!(done.code(), 0, "{done}");
            let text = std::fs::read_to_string(&trace).expect("the trace");
            assert_eq!(text.matches("execve(").count(), 1, "{verb}: {text}");
        }
    });
}

// ---- beside others

/// What kube-proxy makes in its mode iptables, cut down to one Service 10.96.0.10:8080 on the
/// pod, its node port 30080, and the marking of what is to be masqueraded.
const KUBE_PROXY: &str = r#"
    for chain in KUBE-SERVICES KUBE-POSTROUTING KUBE-NODEPORTS KUBE-MARK-MASQ KUBE-SEP; do $IPTABLES -t nat -N $chain; done
    $IPTABLES -t nat -I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
    $IPTABLES -t nat -I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
    $IPTABLES -t nat -I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
    $IPTABLES -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
    $IPTABLES -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    $IPTABLES -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
    $IPTABLES -t nat -A KUBE-POSTROUTING -j MASQUERADE
    $IPTABLES -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 8080 -j KUBE-SEP
    $IPTABLES -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
    $IPTABLES -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-MARK-MASQ
    $IPTABLES -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-SEP
    $IPTABLES -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination 10.1.0.2:80"#;

fn kube_proxy(node: &Node) {
    let program = match node.back_end {
        BackEnd::IptablesLegacy => "iptables-legacy",
        _ => "iptables-nft",
    };
    node.host().sh(&format!("IPTABLES={program}\n{KUBE_PROXY}"));
}

fn kube_rules(node: &Node) -> Vec<String> {
    let rules = node.host().rules();
    let saved = rules
        .lines()
        .filter(|line| line.starts_with("-A") && line.contains("KUBE"));
    saved.map(str::to_owned).collect()
}

#[test]
fn services_of_kube_proxy_and_ports_of_pods_live_side_by_side() {
    each(&BackEnd::ALL, |node| {
        let service = node.pod("service");
        let _service = service.netns.serve(80);
        kube_proxy(node);
        let kube = kube_rules(node);
        // The same port as the Service's.
        let pod = node.published("a", &tcp());
        let _server = pod.netns.serve(80);
        node.outside.sh("ip route add 10.96.0.0/16 via 192.0.2.1");
        let ask = |from: &Netns, to: &str, number: u16| from.ask("tcp", to, number);
        assert_eq!(
            ask(&node.outside, "10.96.0.10", 8080),
            "service sees 192.0.2.9"
        );
        assert_eq!(ask(&node.outside, NODE[0], 30080), "service sees 10.1.0.1");
        assert_eq!(ask(&node.outside, NODE[0], HTTP), "a sees 192.0.2.9");
        assert!(ask(&pod.netns, "10.96.0.10", 8080).starts_with("service sees"));
        assert_eq!(ask(&pod.netns, NODE[0], HTTP), "a sees 10.1.0.1");
        assert_eq!(ask(&node.host(), "127.0.0.1", HTTP), "a sees 10.1.0.1");
        assert_eq!(
            kube_rules(node),
            kube,
            "kube-proxy's rules, and their place"
        );
        node.unpublish(&pod, &tcp());
        assert_eq!(kube_rules(node), kube);
        assert_eq!(ask(&node.outside, NODE[0], 30080), "service sees 10.1.0.1");
    });
}

#[test]
fn kube_proxy_may_do_the_masquerading() {
    each(&BackEnd::IPTABLES, |node| {
        kube_proxy(node);
        // For IPv6, a chain of this name as well.
        let six = match node.back_end {
            BackEnd::IptablesLegacy => "ip6tables-legacy",
            _ => "ip6tables-nft",
        };
        node.host().sh(&format!("{six} -t nat -N KUBE-MARK-MASQ"));
        let pod = node.pod("a");
        let conf = conf::with(
            &node.conf(),
            json!({"backend": null, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
        );
        node.publish_with(&conf, &pod, &tcp()).result();
        let _server = pod.netns.serve(80);
        assert_eq!(pod.netns.ask("tcp", NODE[0], HTTP), "a sees 10.1.0.1");
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
        let rules = node.host().rules();
        assert!(
            !rules.contains("CNI-HOSTPORT-SETMARK") && rules.contains("KUBE-MARK-MASQ"),
            "{rules}"
        );
    });
}

#[test]
fn the_iptables_rules_are_the_go_plugin_s() {
    for back_end in BackEnd::IPTABLES {
        let rules = |suite: Suite| {
            let node = Node::new(back_end);
            let pod = node.pod("a");
            let mut at = port(8443, 443, "tcp");
            at["hostIP"] = "192.0.2.1".into();
            let mappings = [port(8080, 80, "tcp"), at, port(5353, 53, "udp")];
            let conf = conf::at(&publishing(&node.conf(), &mappings), "1.0.0");
            let conf = conf::with_prev(&conf, &conf::at(&pod.result, "1.0.0"));
            node.portmap()
                .suite(suite)
                .add(&conf, &pod.netns, "eth0")
                .result();
            let rules = node.host().rules();
            let saved = rules.lines().filter(|line| line.starts_with("-A "));
            saved.map(str::to_owned).collect::<Vec<_>>()
        };
        let (ours, theirs) = (rules(Suite::Ours), rules(Suite::Peer));
        assert!(theirs.len() > 20, "{theirs:?}");
        assert_eq!(ours, theirs, "{back_end:?}");
    }
}

// ---- a node that switches

/// Both plugins of a list, by one suite.
struct List<'a> {
    node: &'a Node,
    suite: Suite,
    id: String,
    subnets: &'a [&'a str],
}

impl List<'_> {
    fn conf(&self) -> [Value; 2] {
        let bridge = conf::with(
            &bridge_of(self.subnets),
            json!({"ipMasq": true, "ipMasqBackend": self.node.back_end.name()}),
        );
        let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
        [bridge, publishing(&self.node.conf(), &mappings)].map(|conf| conf::at(&conf, "1.0.0"))
    }

    fn cni(&self, kind: &str) -> Cni {
        self.node.cni(kind).suite(self.suite).id(&self.id)
    }

    fn add(&self, pod: &Netns) -> Value {
        let [bridge, ports] = self.conf();
        let result = self.cni("bridge").add(&bridge, pod, "eth0").result();
        self.cni("portmap")
            .add(&conf::with_prev(&ports, &result), pod, "eth0")
            .result()
    }

    fn check(&self, pod: &Netns, result: &Value) {
        let [bridge, ports] = self.conf();
        self.cni("bridge")
            .check(&conf::with_prev(&bridge, result), pod, "eth0")
            .silent();
        let mut check = self.cni("portmap");
        if self.suite.dir() == Suite::Peer.dir() {
            // v1.1 looks for the rules of each family in both tables, its own pods' too: it can
            // only check IPv4, and only where it finds no ip6tables.
            if self.subnets.len() > 1 {
                return;
            }
            let path = self.node.back_end.path(&self.node.sandbox);
            let (programs, _) = path.split_once(':').expect("directories");
            let alone = format!("{programs}/alone");
            let link = format!("mkdir -p {alone}; ln -sf ../iptables {alone}/iptables");
            self.node.host().sh(&link);
            check = check.env("PATH", alone);
        }
        check
            .check(&conf::with_prev(&ports, result), pod, "eth0")
            .silent();
    }

    fn del(&self, pod: &Netns, result: &Value) {
        let [bridge, ports] = self.conf();
        self.cni("portmap")
            .del(&conf::with_prev(&ports, result), pod, "eth0")
            .silent();
        self.cni("bridge")
            .del(&conf::with_prev(&bridge, result), pod, "eth0")
            .silent();
    }
}

const SUBNETS: &[&str] = &["10.1.0.0/24", "fd01::/64"];

#[test]
fn pods_of_one_suite_are_checked_and_deleted_by_the_other() {
    for back_end in BackEnd::IPTABLES {
        for (from, to) in [(Suite::Peer, Suite::Ours), (Suite::Ours, Suite::Peer)] {
            for subnets in [SUBNETS, &SUBNETS[..1]] {
                eprintln!("{from:?} to {to:?}, {subnets:?}");
                switch(&Node::new(back_end), from, to, subnets);
            }
        }
    }
}

fn switch(node: &Node, from: Suite, to: Suite, subnets: &[&str]) {
    let list = |suite: Suite, id: &str| List {
        node,
        suite,
        id: id.to_owned(),
        subnets,
    };
    let pod = node.sandbox.pod("a");
    // What stays for all pods, of either suite: ours also closes 127.0.0.0/8.
    for suite in [from, to] {
        let first = list(suite, "first").add(&pod);
        list(suite, "first").del(&pod, &first);
    }
    let before = node.host().rules();

    let result = list(from, "one").add(&pod);
    let _server = pod.serve(80);
    let _outside = node.outside.serve(80);
    list(to, "one").check(&pod, &result);
    // A pod of the other suite comes and goes beside it.
    let beside = node.sandbox.pod("beside");
    let mut other = list(to, "beside");
    other.subnets = &["10.1.0.0/24"];
    let ports = [port(9090, 80, "tcp")];
    let [bridge, conf] = other.conf();
    let beside_result = other.cni("bridge").add(&bridge, &beside, "eth0").result();
    let conf = conf::with_prev(&publishing(&conf, &ports), &beside_result);
    other.cni("portmap").add(&conf, &beside, "eth0").result();
    other.cni("portmap").del(&conf, &beside, "eth0").silent();
    other.cni("bridge").del(&bridge, &beside, "eth0").silent();

    assert_eq!(node.outside.ask("tcp", NODE[0], 8080), "a sees 192.0.2.9");
    assert_eq!(pod.ask("tcp", OUTSIDE[0], 80), "outside sees 192.0.2.1");
    list(to, "one").check(&pod, &result);
    list(to, "one").del(&pod, &result);
    if subnets.len() > 1 {
        return node.assert_rules(&before);
    }
    // The peer looks into ip6tables as well, whose nft variant then makes its table.
    let rules = node.host().rules();
    let left: Vec<&str> = rules.lines().filter(|line| line.contains("one")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn pods_of_the_go_plugins_are_deleted_by_ours_whatever_the_back_end() {
    for back_end in BackEnd::IPTABLES {
        for netns in [true, false] {
            let node = Node::new(back_end);
            let list = |suite: Suite| List {
                node: &node,
                suite,
                id: "one".to_owned(),
                subnets: SUBNETS,
            };
            let pod = node.sandbox.pod("a");
            let result = list(Suite::Peer).add(&pod);
            // The new suite's configuration forces nothing, and so chooses nftables.
            let [bridge, ports] = list(Suite::Ours).conf();
            let bridge = conf::with(&bridge, json!({"ipMasqBackend": null}));
            let ports = conf::with(&ports, json!({"backend": null}));
            beyond_peer("one back end at a time", || {
                let cni = |kind: &str| list(Suite::Ours).cni(kind);
                cni("bridge")
                    .check(&conf::with_prev(&bridge, &result), &pod, "eth0")
                    .silent();
                cni("portmap")
                    .check(&conf::with_prev(&ports, &result), &pod, "eth0")
                    .silent();
                let path = match netns {
                    true => pod.path(),
                    false => String::new(),
                };
                if !netns {
                    node.sandbox.remove_pod(&pod);
                }
                let bare = conf::with(&ports, json!({"runtimeConfig": null}));
                cni("portmap")
                    .netns(&path)
                    .del(&bare, &pod, "eth0")
                    .silent();
                cni("bridge")
                    .netns(&path)
                    .del(&bridge, &pod, "eth0")
                    .silent();
                let rules = node.host().rules();
                for trace in ["\\\"one\\\"", "10.1.0.2", "fd01::2", "CNI-DN-"] {
                    assert!(!rules.contains(trace), "{back_end:?}: {trace} in {rules}");
                }
            });
        }
    }
}

// ---- what goes wrong

#[test]
fn a_failure_after_publishing_takes_it_back() {
    beyond_peer("nothing is rolled back", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let pod = node.pod("a");
            let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
            for stdout in [Stdout::NoReader, Stdout::Full] {
                let failed = node.portmap().stdout(stdout).add(&conf, &pod.netns, "eth0");
                assert_ne!(failed.code(), 0, "{failed}");
                node.assert_rules(&before);
            }
        });
    });
}

/// What is refused: a change of the configuration, the code, and a part of the message.
fn refused() -> Vec<(Value, u64, &'static str)> {
    let mapped = |mapping: Value| json!({"runtimeConfig": {"portMappings": [port(8080, 80, "tcp"), mapping]}});
    let hosted = |text: &str| {
        let mut mapping = port(8081, 80, "tcp");
        mapping["hostIP"] = text.into();
        mapped(mapping)
    };
    let numbers = |host: i64, container: i64| {
        mapped(json!({"hostPort": host, "containerPort": container, "protocol": "tcp"}))
    };
    vec![
        (numbers(0, 80), 7, "Invalid host port number: 0"),
        (numbers(-1, 80), 7, "Invalid host port number: -1"),
        (numbers(65536, 80), 7, "Invalid host port number: 65536"),
        (numbers(8081, 0), 7, "Invalid container port number: 0"),
        (
            numbers(8081, 70000),
            7,
            "Invalid container port number: 70000",
        ),
        (mapped(port(8081, 80, "icmp")), 7, "icmp"),
        (mapped(port(8081, 80, "")), 7, "protocol"),
        (mapped(port(8081, 80, "tcp -j ACCEPT")), 7, "protocol"),
        (hosted("192.0.2"), 7, "hostIP"),
        (hosted("192.0.2.1 -j ACCEPT"), 7, "hostIP"),
        (mapped(port(8080, 81, "tcp")), 7, "duplicate"),
        (
            json!({"backend": "ebtables"}),
            7,
            "unrecognized backend \"ebtables\"",
        ),
        (
            json!({"backend": "iptables", "markMasqBit": 32}),
            7,
            "must be between 0 and 31",
        ),
        (
            json!({"backend": "iptables", "markMasqBit": 5, "externalSetMarkChain": "X"}),
            7,
            "Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            json!({"backend": "nftables", "externalSetMarkChain": "X"}),
            7,
            "iptables-specific options [externalSetMarkChain]",
        ),
        (
            json!({"backend": "nftables", "conditionsV4": ["-s", "10.0.0.0/8"]}),
            7,
            "iptables-specific options [conditionsV4]",
        ),
        (
            json!({"backend": "iptables", "conditionsV6": ["ip6", "saddr", "::1"]}),
            7,
            "nftables-specific options [conditionsV6]",
        ),
        (
            json!({"backend": "iptables", "externalSetMarkChain": "X -j DROP"}),
            7,
            "externalSetMarkChain",
        ),
        (
            json!({"backend": "iptables", "externalSetMarkChain": "X\nCOMMIT"}),
            7,
            "externalSetMarkChain",
        ),
        (
            json!({"runtimeConfig": {"portMappings": "8080:80"}}),
            7,
            "portMappings",
        ),
    ]
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    beyond_peer("some is left to the programs, and none has a code", || {
        each(&BackEnd::ALL, |node| {
            let before = node.rules_after_a_first_pod();
            let pod = node.pod("a");
            for (change, code, msg) in refused() {
                let conf = conf::with_prev(&publishing(&node.conf(), &tcp()), &pod.result);
                let conf = conf::with(&conf, change.clone());
                let error = node.portmap().add(&conf, &pod.netns, "eth0").error();
                assert_eq!(error.code, code, "{change}: {}", error.msg);
                assert!(error.msg.contains(msg), "{change}: {}", error.msg);
            }
            node.assert_rules(&before);
            let lone = publishing(&node.conf(), &tcp());
            let error = node.portmap().add(&lone, &pod.netns, "eth0").error();
            assert_eq!(
                (error.code, error.msg.as_str()),
                (7, "must be called as chained plugin")
            );
            let conf = conf::with_prev(&lone, &pod.result);
            for variable in ["CNI_IFNAME", "CNI_CONTAINERID", "CNI_NETNS"] {
                let error = node
                    .portmap()
                    .unset(variable)
                    .add(&conf, &pod.netns, "eth0")
                    .error();
                assert_eq!(error.code, 4, "{}", error.msg);
            }
            let error = node
                .portmap()
                .env("CNI_IFNAME", "a/b")
                .add(&conf, &pod.netns, "eth0")
                .error();
            assert_eq!(error.code, 4, "{}", error.msg);
            node.assert_rules(&before);
        });
    });
}

#[test]
fn conditions_that_the_kernel_does_not_understand_leave_nothing_half_done() {
    each(&BackEnd::ALL, |node| {
        let before = node.rules_after_a_first_pod();
        let pod = node.pod("a");
        let wrong = match node.back_end {
            BackEnd::Nftables => vec![
                json!(["frobnicate", "1"]),
                json!(["ip", "daddr", "nowhere!"]),
                json!(["accept", ";", "flush", "ruleset"]),
            ],
            _ => vec![
                json!(["-m", "frobnicate"]),
                json!(["-s", "not/an/address"]),
                json!(["!", "--nonsense"]),
            ],
        };
        for words in wrong {
            // IPv4 is fine; IPv6 is not.
            let conf = conf::with(&node.conf(), json!({"conditionsV6": words}));
            let mappings = [port(8080, 80, "tcp"), port(5353, 53, "udp")];
            let failed = node.publish_with(&conf, &pod, &mappings);
            beyond_peer("what was made stays, or the key is not known", || {
                failed.error();
                node.assert_rules(&before);
            });
        }
    });
}

#[test]
fn a_pod_without_addresses_publishes_nothing() {
    each(&BackEnd::ALL, |node| {
        let before = node.rules_after_a_first_pod();
        let netns = node.sandbox.pod("a");
        let result = node
            .cni("bridge")
            .add(&conf::bridge_l2(), &netns, "eth0")
            .result();
        let pod = Pod { netns, result };
        assert_eq!(node.publish(&pod, &tcp()).result(), pod.result);
        node.assert_rules(&before);
    });
}

// ---- many

/// Sixty pods in all, up to twenty at a time, half of which are forgotten before DEL.
fn churn(back_end: BackEnd) {
    let node = Node::new(back_end);
    let before = node.rules_after_a_first_pod();
    let begun = Instant::now();
    let mut alive: Vec<(u16, Pod)> = Vec::new();
    let mut taken = BTreeSet::new();
    for number in 0..60 {
        let name = format!("p{number}");
        let host = 9000 + number;
        alive.push((
            host,
            node.published(&name, &[port(host, 80, "tcp"), port(host, 80, "udp")]),
        ));
        taken.insert(host);
        if alive.len() == 20 || number == 59 {
            let (host, pod) = alive.last().expect("a pod");
            let _server = pod.netns.serve(80);
            assert!(
                node.outside
                    .ask("tcp", NODE[0], *host)
                    .contains("sees 192.0.2.9")
            );
            for (index, (host, pod)) in alive.drain(..).enumerate() {
                let conf = match index % 2 {
                    0 => node.conf(),
                    _ => publishing(
                        &node.conf(),
                        &[port(host, 80, "tcp"), port(host, 80, "udp")],
                    ),
                };
                node.portmap()
                    .netns("")
                    .del(&conf, &pod.netns, "eth0")
                    .silent();
                node.cni("bridge")
                    .del(&bridge(), &pod.netns, "eth0")
                    .silent();
            }
        }
    }
    assert_eq!(taken.len(), 60);
    node.assert_rules(&before);
    let took = begun.elapsed();
    eprintln!("{back_end:?}: 60 pods in {took:?}");
    let limit = sandbox::in_time(Duration::from_secs(120));
    assert!(took < limit, "{back_end:?}: {took:?}");
}

#[test]
fn sixty_pods_with_ports_leave_the_rules_as_they_were() {
    beyond_peer("DEL without portMappings cleans nothing", || {
        BackEnd::ALL.into_iter().for_each(churn);
    });
}
