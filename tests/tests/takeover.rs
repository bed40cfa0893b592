//! A node's packet filter as a whole: flushed and put back (`podwire resync`), taken
//! over from the peer's plugins (`podwire adopt`) and given back (`podwire release`),
//! under pods that run and connections that live.

use std::ops::Deref;

use sandbox::{
    BackEnd, FilterNode, Finished, NO_ANSWER, NODE, Netns, OUTSIDE, Running, Suite, beyond_peer,
    conf,
};
use serde_json::{Value, json};

const WHY: &str = "Debian has no cnitool, and the peer no such commands";

/// A node with a network and a directory of configurations.
struct Node(FilterNode);

impl Deref for Node {
    type Target = FilterNode;

    fn deref(&self) -> &FilterNode {
        &self.0
    }
}

/// What a pod publishes.
fn ports(first: u16) -> Value {
    json!({"portMappings": [
        {"hostPort": first, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": first, "containerPort": 80, "protocol": "udp"},
        {"hostPort": first + 1, "containerPort": 80, "protocol": "tcp", "hostIP": NODE[0]},
    ]})
}

fn network(subnets: &[&str]) -> Value {
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
        "ipMasq": true, "macspoofchk": true, "ipam": conf::host_local_ipam(subnets),
    });
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    json!({"cniVersion": "1.0.0", "name": "mynet", "plugins": [bridge, portmap]})
}

const DUAL: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];

impl Node {
    /// With a network in which nothing names a back end.
    fn new(back_end: BackEnd, subnets: &[&str]) -> Self {
        let node = Self::empty(back_end);
        node.configure(&network(subnets));
        node
    }

    /// With a network whose configuration names the back end.
    fn forced(back_end: BackEnd) -> Self {
        let node = Self::empty(back_end);
        let mut network = network(&DUAL);
        network["plugins"][0]["ipMasqBackend"] = back_end.name().into();
        network["plugins"][1]["backend"] = back_end.name().into();
        node.configure(&network);
        node
    }

    fn empty(back_end: BackEnd) -> Self {
        Self(FilterNode::new(back_end))
    }

    fn configure(&self, network: &Value) {
        let file = self.sandbox.dir().join("net.d/10-mynet.conflist");
        self.sandbox.write(file, network.to_string());
    }

    fn podwire(&self, suite: Suite, args: &[&str], offered: &Value) -> Finished {
        let path = self.back_end.path(&self.sandbox);
        self.podwire_with(&path, suite, args, offered)
    }

    fn podwire_with(&self, path: &str, suite: Suite, args: &[&str], offered: &Value) -> Finished {
        let program = Suite::Ours.dir().join("podwire").display().to_string();
        let env = [
            format!("PATH={path}"),
            format!("CNI_PATH={}", suite.dir().display()),
            format!("NETCONFPATH={}/net.d", self.sandbox.dir().display()),
            format!("CAP_ARGS={offered}"),
            // The peer's spoof check writes files there.
            format!("TMPDIR={}", self.sandbox.dir().display()),
        ];
        let mut argv = vec!["env", "-i"];
        argv.extend(env.iter().map(String::as_str));
        argv.push(&program);
        argv.extend(args);
        self.host().run(&argv)
    }

    /// ADD, CHECK or DEL by the plugins of a suite.
    #[track_caller]
    fn run(&self, suite: Suite, verb: &str, pod: &Netns, first: u16) {
        let args = [verb, "mynet", &pod.path()];
        good(self.podwire(suite, &args, &ports(first)));
    }

    /// CHECK by the peer, for a pod without IPv6: v1.1 looks for a chain in every
    /// family that it finds a program for.
    #[track_caller]
    fn peer_checks(&self, pod: &Netns, first: u16) {
        let dir = self.sandbox.dir().join("without-ip6tables");
        let path = dir.display();
        let script = "mkdir -p $1; ln -sf $(command -v iptables) $1/iptables";
        let programs = format!("PATH={}", self.back_end.path(&self.sandbox));
        let argv = [
            "env",
            &programs,
            "sh",
            "-c",
            script,
            "sh",
            &path.to_string(),
        ];
        good(self.host().run(&argv));
        let args = ["check", "mynet", &pod.path()];
        good(self.podwire_with(&path.to_string(), Suite::Peer, &args, &ports(first)));
    }

    /// GC, with which the rule for a subnet goes; a network of 1.0.0 has none.
    fn gc(&self) {
        let mut network = network(&DUAL);
        network["cniVersion"] = "1.1.0".into();
        self.configure(&network);
        self.task(&["gc", "mynet"]);
    }

    /// One of the three commands.
    #[track_caller]
    fn task(&self, args: &[&str]) -> Finished {
        good(self.podwire(Suite::Ours, args, &Value::Null))
    }

    fn check_fails(&self, pod: &Netns, first: u16) -> String {
        let args = ["check", "mynet", &pod.path()];
        let done = self.podwire(Suite::Ours, &args, &ports(first));
        assert_eq!(done.code, 1, "{done:?}");
        done.stderr
    }

    /// A pod that `suite` has added, and that serves port 80.
    fn pod(&self, suite: Suite, name: &str, first: u16) -> (Netns, Running) {
        let pod = self.sandbox.pod(name);
        self.run(suite, "add", &pod, first);
        let server = pod.serve(80);
        (pod, server)
    }

    /// A connection to a published port that goes on and on.
    fn talk(&self, port: u16) -> Running {
        let talk = self.outside.converse("tcp", NODE[0], port);
        self.outside
            .wait_until("an answer", |_| talk.output().contains("sees"));
        talk
    }

    #[track_caller]
    fn goes_on(&self, talk: &Running) {
        let so_far = talk.output().len();
        self.outside.wait_until("more answers", |_| {
            talk.output().contains("closed") || talk.output().len() > so_far + 200
        });
        assert!(!talk.output().contains("closed"), "{}", talk.output());
    }

    /// Every way in to the pod `name`, and its way out.
    #[track_caller]
    fn assert_reached(&self, name: &str, pod: &Netns, first: u16) {
        let seen = format!("{name} sees {}", OUTSIDE[0]);
        for protocol in ["tcp", "udp"] {
            assert_eq!(
                self.outside.ask(protocol, NODE[0], first),
                seen,
                "{protocol}"
            );
        }
        assert_eq!(self.outside.ask("tcp", NODE[0], first + 1), seen);
        let seen = format!("{name} sees 10.1.0.1");
        assert_eq!(self.host().ask("tcp", "127.0.0.1", first), seen);
        let _server = self.outside.serve(7000);
        let seen = format!("outside sees {}", NODE[0]);
        assert_eq!(pod.ask("tcp", OUTSIDE[0], 7000), seen);
    }

    /// All rules, in an order that does not depend on the order of ADDs.
    fn rules(&self) -> Vec<String> {
        let rules = self.host().rules();
        let lines = rules.lines().map(|line| line.trim().to_owned());
        // A table that is there, and empty, is the same as none.
        let empty = |line: &String| {
            line.is_empty()
                || ["*nat", "COMMIT", "}"].contains(&line.as_str())
                || line.starts_with(':') && line.ends_with(" ACCEPT")
        };
        let mut lines: Vec<_> = lines.filter(|line| !empty(line)).collect();
        lines.sort();
        lines
    }
}

#[track_caller]
fn good(done: Finished) -> Finished {
    assert_eq!(done.code, 0, "{done:?}");
    done
}

/// The same, of each back end; the test fails with the name of the one it was.
fn each(back_ends: &[BackEnd], test: impl Fn(BackEnd)) {
    for back_end in back_ends {
        eprintln!("{back_end:?}");
        beyond_peer(WHY, || test(*back_end));
    }
}

/// The rules of pods, without iptables' shared chains and empty tables.
fn of_pods(node: &Node) -> Vec<String> {
    let mut rules = node.rules();
    rules.retain(|line| {
        line.contains("CNI-DN-")
            || line.contains("name:")
            || line.contains("mynet")
            || line.contains("cnitool-")
    });
    rules
}

#[test]
fn isolation_behind_the_gateway_is_put_back() {
    beyond_peer(WHY, || {
        let node = Node::empty(BackEnd::Nftables);
        let mut network = network(&DUAL);
        network["plugins"][0]["portIsolation"] = true.into();
        node.configure(&network);
        let (_a, _server) = node.pod(Suite::Ours, "a", 8080);
        let rules = || node.host().sh("nft list table inet podwire_isolation");
        let before = rules();
        assert!(before.contains("net: mynet"), "{before}");
        assert_eq!(node.task(&["resync"]).stdout, "");
        node.host().sh("nft delete table inet podwire_isolation");
        let output = node.task(&["resync"]).stdout;
        assert_eq!(output, "put back: isolation of mynet\n");
        assert_eq!(rules(), before);
        node.task(&["release"]);
        assert!(!rules().contains("net: mynet"), "{}", rules());
    });
}

#[test]
fn the_mode_of_a_network_is_put_back_under_a_live_connection() {
    beyond_peer(WHY, || {
        let node = Node::empty(BackEnd::Nftables);
        let mut network = network(&DUAL);
        network["plugins"][0]["gatewayModeIPv4"] = "nat".into();
        network["plugins"][0]["gatewayModeIPv6"] = "routed".into();
        network["plugins"][0]["capabilities"] = json!({"portMappings": true});
        node.configure(&network);
        node.host().sh("iptables -P FORWARD DROP");
        let (a, _server) = node.pod(Suite::Ours, "a", 8080);
        let talk = node.talk(8080);
        let before = node.rules();
        assert_eq!(node.task(&["resync"]).stdout, "");
        node.host().sh("nft delete table ip podwire_access
            nft delete table ip6 podwire_access
            iptables -F FORWARD");
        let why = node.check_fails(&a, 8080);
        assert!(why.contains("podwire_access"), "{why}");
        let output = node.task(&["resync"]).stdout;
        for what in [
            "access to mynet",
            "forwarding for mynet",
            "opened ports of mynet/",
        ] {
            assert!(output.contains(&format!("put back: {what}")), "{output}");
        }
        assert_eq!(node.rules(), before);
        node.goes_on(&talk);
        node.run(Suite::Ours, "check", &a, 8080);
        node.host().sh("iptables -F FORWARD");
        let why = node.check_fails(&a, 8080);
        assert!(why.contains("FORWARD is DROP"), "{why}");
        node.task(&["release"]);
        let left = node.host().rules();
        assert!(!left.contains("podwire_access"), "{left}");
        assert!(!left.contains("podwire: gateway mode"), "{left}");
    });
}

// ---- adopt

#[test]
fn pods_of_the_peer_are_adopted_under_a_live_connection() {
    each(&BackEnd::IPTABLES, |back_end| {
        let node = Node::new(back_end, &DUAL);
        let (a, _a) = node.pod(Suite::Peer, "a", 8080);
        let (b, _b) = node.pod(Suite::Peer, "b", 9090);
        assert!(node.host().rules().contains("CNI-DN-"));
        let talk = node.talk(8080);

        let dry = node.task(&["adopt", "--dry-run"]).stdout;
        assert!(dry.contains("would be adopted: ports of mynet/"), "{dry}");
        assert!(
            dry.contains("create element ip podwire_hostports ports"),
            "{dry}"
        );
        assert!(dry.contains("-X CNI-DN-"), "{dry}");
        assert!(node.host().rules().contains("CNI-DN-"), "only reported");

        let output = node.task(&["adopt"]).stdout;
        assert_eq!(
            output.matches("adopted: masquerade of mynet/").count(),
            2,
            "{output}"
        );
        assert_eq!(
            output.matches("adopted: ports of mynet/").count(),
            2,
            "{output}"
        );
        node.goes_on(&talk);
        let rules = node.host().rules();
        assert!(
            !rules.contains("CNI-DN-") && !rules.contains("name: "),
            "{rules}"
        );
        assert!(rules.contains("map ports {"), "{rules}");
        node.assert_reached("a", &a, 8080);
        node.assert_reached("b", &b, 9090);

        // Once more there is nothing to do.
        let rules = node.rules();
        assert_eq!(node.task(&["adopt"]).stdout, "");
        assert_eq!(node.rules(), rules);

        for (pod, first) in [(&a, 8080), (&b, 9090)] {
            node.run(Suite::Ours, "check", pod, first);
            node.run(Suite::Ours, "del", pod, first);
        }
        node.gc();
        assert_eq!(of_pods(&node), [""; 0]);
        assert_eq!(node.outside.ask("tcp", NODE[0], 8080), NO_ANSWER);
    });
}

#[test]
fn the_rule_of_adopted_pods_goes_with_the_last_of_them() {
    beyond_peer(WHY, || {
        let node = Node::new(BackEnd::IptablesNft, &DUAL);
        let (a, _a) = node.pod(Suite::Peer, "a", 8080);
        let (b, _b) = node.pod(Suite::Peer, "b", 9090);
        node.task(&["adopt"]);
        // One of podwire's own is the last that is known by its interface.
        let (c, _c) = node.pod(Suite::Ours, "c", 7070);
        let _server = node.0.outside.serve(81);
        let seen = format!("outside sees {}", NODE[0]);
        for (pod, first) in [(&c, 7070), (&a, 8080)] {
            node.run(Suite::Ours, "del", pod, first);
            assert_eq!(b.ask("tcp", OUTSIDE[0], 81), seen);
        }
        node.run(Suite::Ours, "del", &b, 9090);
        let rules = node.host().rules();
        assert!(!rules.contains("10.1.0.0/24"), "{rules}");
        // What stays until the next boot is the note that another suite handed out addresses.
        let left = node.host().sh("ls /run/podwire || true");
        assert!(!left.contains("shared"), "{left}");
    });
}

#[test]
fn only_the_network_that_is_named_is_adopted() {
    beyond_peer(WHY, || {
        let node = Node::new(BackEnd::IptablesNft, &DUAL);
        let (_a, _server) = node.pod(Suite::Peer, "a", 8080);
        let rules = node.rules();
        assert_eq!(node.task(&["adopt", "other"]).stdout, "");
        assert_eq!(node.rules(), rules);
        assert!(node.task(&["adopt", "mynet"]).stdout.contains("adopted: "));
    });
}

#[test]
fn unknown_parts_stay_as_the_peer_made_them() {
    beyond_peer(WHY, || {
        let node = Node::new(BackEnd::IptablesNft, &DUAL);
        let (_a, _server) = node.pod(Suite::Peer, "a", 8080);
        node.host().sh("rm /var/lib/cni/results/*");
        let rules = node.rules();
        let done = node.task(&["adopt"]);
        assert_eq!(done.stdout, "");
        let left = "left as it is: iptables chain CNI-DN-";
        assert!(done.stderr.contains(left), "{}", done.stderr);
        assert_eq!(node.rules(), rules);
        assert!(node.outside.ask("tcp", NODE[0], 8080).starts_with("a sees"));
    });
}

#[test]
fn a_configuration_that_names_iptables_keeps_it() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::IptablesLegacy);
        let (_a, _server) = node.pod(Suite::Peer, "a", 8080);
        let rules = node.rules();
        assert_eq!(node.task(&["adopt"]).stdout, "");
        assert_eq!(node.rules(), rules);
    });
}

// ---- release

#[test]
fn pods_of_ours_are_released_under_a_live_connection() {
    each(&BackEnd::IPTABLES, |back_end| {
        // v1.1 cannot CHECK two families.
        let node = Node::new(back_end, &DUAL[..1]);
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let (b, _b) = node.pod(Suite::Ours, "b", 9090);
        assert!(!node.host().rules().contains("CNI-DN-"));
        let talk = node.talk(8080);

        let before = node.rules();
        let dry = node.task(&["release", "--dry-run"]).stdout;
        assert!(dry.contains("would be released: ports of mynet/"), "{dry}");
        assert_eq!(node.rules(), before);

        let output = node.task(&["release"]).stdout;
        assert_eq!(
            output.matches("released: masquerade of mynet/").count(),
            2,
            "{output}"
        );
        assert_eq!(
            output.matches("released: ports of mynet/").count(),
            2,
            "{output}"
        );
        node.goes_on(&talk);
        let rules = node.host().rules();
        assert!(!rules.contains("podwire"), "{rules}");
        assert!(rules.contains("CNI-DN-"), "{rules}");
        node.assert_reached("a", &a, 8080);
        node.assert_reached("b", &b, 9090);
        assert_eq!(node.task(&["release"]).stdout, "");

        for (pod, first) in [(&a, 8080), (&b, 9090)] {
            node.peer_checks(pod, first);
            node.run(Suite::Peer, "del", pod, first);
        }
        assert_eq!(of_pods(&node), [""; 0]);
        assert_eq!(node.outside.ask("tcp", NODE[0], 8080), NO_ANSWER);
    });
}

#[test]
fn a_rule_that_pods_outside_the_cache_use_is_not_released() {
    beyond_peer(WHY, || {
        let node = Node::new(BackEnd::IptablesNft, &DUAL);
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let (b, _b) = node.pod(Suite::Ours, "b", 9090);
        node.host()
            .sh("rm $(grep -l /run/netns/b /var/lib/cni/results/*)");
        let done = node.podwire(Suite::Ours, &["release"], &Value::Null);
        assert_eq!(done.code, 1, "{done:?}");
        let expected =
            "masquerade of mynet stays: attachments that are not in the cache may use it";
        assert!(done.stderr.contains(expected), "{}", done.stderr);
        let _server = node.0.outside.serve(81);
        for pod in [&a, &b] {
            let seen = format!("outside sees {}", NODE[0]);
            assert_eq!(pod.ask("tcp", OUTSIDE[0], 81), seen);
        }
    });
}

/// A node that went from the peer's plugins to ours and back without `release`, and a pod of
/// ours that the peer's DEL has taken away since. Port 9090 is published for another one. Of two
/// tables at one place, a packet meets the younger one first: the node has a pod of the peer.
fn forgotten(node: &Node) -> (Netns, Running) {
    let old = node.sandbox.pod("old");
    node.run(Suite::Ours, "add", &old, 9090);
    // With the namespace there, the peer's DEL fails without its own masquerade.
    node.sandbox.remove_pod(&old);
    node.run(Suite::Peer, "del", &old, 9090);
    let (new, server) = node.pod(Suite::Peer, "new", 9090);
    assert_eq!(
        node.outside.ask("tcp", NODE[0], 9090),
        NO_ANSWER,
        "a black hole"
    );
    (new, server)
}

#[test]
fn a_forgotten_release_is_made_up_for() {
    each(&BackEnd::IPTABLES, |back_end| {
        let node = Node::new(back_end, &DUAL);
        let (_first, _first_server) = node.pod(Suite::Peer, "first", 7000);
        let (living, _living) = node.pod(Suite::Ours, "living", 8080);
        let (new, _new) = forgotten(&node);
        let dry = node.task(&["release", "--dry-run"]).stdout;
        assert!(dry.contains("would be removed: ports of mynet/"), "{dry}");
        assert_eq!(
            node.outside.ask("tcp", NODE[0], 9090),
            NO_ANSWER,
            "only reported"
        );
        let done = node.task(&["release"]);
        assert!(done.stdout.contains("removed: ports of mynet/"), "{done:?}");
        assert!(!done.stderr.contains("left as it is"), "{done:?}");
        node.assert_reached("new", &new, 9090);
        node.assert_reached("living", &living, 8080);
        assert!(
            !node
                .rules()
                .iter()
                .any(|line| line.contains("podwire_hostports"))
        );
    });
}

#[test]
fn gc_makes_up_for_a_forgotten_release_in_lists_of_every_version() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        beyond_peer(WHY, || {
            let node = Node::new(BackEnd::IptablesNft, &DUAL);
            let (_first, _first_server) = node.pod(Suite::Peer, "first", 7000);
            let (living, _living) = node.pod(Suite::Ours, "living", 8080);
            let (new, _new) = forgotten(&node);
            let mut network = network(&DUAL);
            network["cniVersion"] = version.into();
            node.configure(&network);
            // v1.1 of the peer knows no 1.1.0.
            let suite = match version {
                "1.1.0" => Suite::Ours,
                _ => Suite::Peer,
            };
            good(node.podwire(suite, &["gc", "--keep-cached", "mynet"], &Value::Null));
            node.assert_reached("new", &new, 9090);
            node.assert_reached("living", &living, 8080);
        });
    }
}

#[test]
fn what_may_be_of_a_living_pod_is_not_released_and_the_remedy_is_named() {
    beyond_peer(WHY, || {
        let node = Node::new(BackEnd::IptablesNft, &DUAL);
        let (pod, _server) = node.pod(Suite::Ours, "a", 8080);
        // Its runtime keeps its cache elsewhere.
        node.host()
            .sh("mkdir /var/lib/other; mv /var/lib/cni/results /var/lib/other/");
        let rules = node.rules();
        let refused = || {
            let done = node.podwire(Suite::Ours, &["release"], &Value::Null);
            assert_eq!(done.code, 1, "{done:?}");
            assert!(done.stderr.contains("ports of mynet/"), "{done:?}");
            assert!(done.stderr.contains("--cache-dir"), "{done:?}");
            assert_eq!(node.rules(), rules);
        };
        refused();
        let gc = ["gc", "--keep-cached", "mynet"];
        let done = node.podwire(Suite::Peer, &gc, &Value::Null);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("--cache-dir"), "{done:?}");
        // With an empty one, the pod is not known, but its veth pair is.
        node.host().sh("mkdir /var/lib/cni/results");
        good(node.podwire(Suite::Peer, &gc, &Value::Null));
        assert_eq!(node.rules(), rules);
        node.assert_reached("a", &pod, 8080);
        // Not even its veth pair is known by name, as with macvlan.
        node.host()
            .sh("ip link set $(ls /sys/class/net | grep ^veth) alias x");
        refused();
        node.assert_reached("a", &pod, 8080);
        node.task(&["release", "--cache-dir", "/var/lib/other"]);
        node.assert_reached("a", &pod, 8080);
        assert!(
            !node
                .rules()
                .iter()
                .any(|line| line.contains("podwire_hostports"))
        );
    });
}

#[test]
fn adopted_and_released_the_rules_are_what_they_were() {
    each(&BackEnd::IPTABLES, |back_end| {
        let node = Node::new(back_end, &DUAL);
        let (a, _a) = node.pod(Suite::Peer, "a", 8080);
        let (_b, _b_server) = node.pod(Suite::Peer, "b", 9090);
        let of_iptables = || {
            let mut rules = node.rules();
            rules.retain(|line| line.starts_with("-A ") || line.starts_with(':'));
            rules
        };
        let before = of_iptables();
        let talk = node.talk(8080);
        node.task(&["adopt"]);
        assert_ne!(of_iptables(), before);
        node.task(&["release"]);
        assert_eq!(of_iptables(), before);
        assert!(!node.host().rules().contains("podwire"));
        node.goes_on(&talk);
        node.assert_reached("a", &a, 8080);
    });
}

#[test]
fn a_configuration_that_names_nftables_is_released_into_the_peers_table() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::Nftables);
        let (a, _server) = node.pod(Suite::Ours, "a", 8080);
        let talk = node.talk(8080);
        node.task(&["release"]);
        node.goes_on(&talk);
        let rules = node.host().rules();
        assert!(!rules.contains("podwire"), "{rules}");
        assert!(
            rules.contains("tcp dport 8080 dnat to 10.1.0.2:80 comment \"cnitool-"),
            "{rules}"
        );
        assert!(
            rules.contains("tcp dport 8080 dnat to [fd01::2]:80 comment \"cnitool-"),
            "{rules}"
        );
        assert!(
            rules.contains("ip saddr 10.1.0.2 ip daddr != 10.1.0.0/24 masquerade"),
            "{rules}"
        );
        node.assert_reached("a", &a, 8080);
        // podwire's own plugins know that layout, too.
        node.run(Suite::Ours, "check", &a, 8080);

        let released = node.rules();
        node.task(&["adopt"]);
        node.goes_on(&talk);
        let rules = node.host().rules();
        assert!(!rules.contains("table ip cni_hostport "), "{rules}");
        assert!(!rules.contains("ip saddr 10.1.0.2 "), "{rules}");
        node.assert_reached("a", &a, 8080);
        node.task(&["release"]);
        assert_eq!(node.rules(), released);
        node.run(Suite::Ours, "del", &a, 8080);
        assert_eq!(of_pods(&node), [""; 0]);
    });
}

#[test]
fn a_port_of_two_pods_stays_the_newer_one_s_in_the_peers_table_too() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::Nftables);
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let (b, _b) = node.pod(Suite::Ours, "b", 8080);
        for task in ["release", "adopt"] {
            node.task(&[task]);
            node.assert_reached("b", &b, 8080);
        }
        node.run(Suite::Ours, "del", &b, 8080);
        node.assert_reached("a", &a, 8080);
        node.run(Suite::Ours, "del", &a, 8080);
        assert_eq!(of_pods(&node), [""; 0]);
    });
}

// ---- resync

#[test]
fn what_is_flushed_comes_back_under_a_live_connection() {
    each(&BackEnd::ALL, |back_end| {
        let node = Node::forced(back_end);
        // As on every node with a firewall: the kernel tracks connections only while
        // some rule matches on the state of connections.
        node.host().sh("nft add table inet firewall
             nft add chain inet firewall input '{ type filter hook input priority 0; }'
             nft add rule inet firewall input ct state established accept");
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let (b, _b) = node.pod(Suite::Ours, "b", 9090);
        let before = node.rules();
        let talk = node.talk(8080);
        match back_end {
            BackEnd::Nftables => node.host().sh(
                "nft flush table ip podwire_hostports; nft flush table ip6 podwire_hostports
                 nft flush set ip podwire_hostports masqueraded
                 nft flush map ip podwire_hostports ports
                 nft flush table inet cni_plugins_masquerade; nft flush table bridge nat",
            ),
            BackEnd::IptablesNft => node
                .host()
                .sh("iptables-nft -t nat -F; ip6tables-nft -t nat -F"),
            BackEnd::IptablesLegacy => node
                .host()
                .sh("iptables-legacy -t nat -F; ip6tables-legacy -t nat -F"),
        };
        assert_ne!(node.rules(), before);
        assert_ne!(node.check_fails(&a, 8080), "");

        let dry = node.task(&["resync", "--dry-run"]).stdout;
        assert!(dry.contains("would be put back: ports of mynet/"), "{dry}");
        let output = node.task(&["resync"]).stdout;
        assert_eq!(
            output.matches("put back: ports of mynet/").count(),
            2,
            "{output}"
        );
        assert_eq!(node.rules(), before);
        node.goes_on(&talk);
        for (name, pod, first) in [("a", &a, 8080), ("b", &b, 9090)] {
            node.run(Suite::Ours, "check", pod, first);
            node.assert_reached(name, pod, first);
        }
        assert_eq!(node.task(&["resync"]).stdout, "");
        assert_eq!(node.rules(), before);
    });
}

#[test]
fn after_a_flush_of_everything_all_is_back_but_for_pods_that_are_gone() {
    each(&BackEnd::ALL, |back_end| {
        let node = Node::forced(back_end);
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let before = node.rules();
        let gone = node.sandbox.pod("gone");
        node.run(Suite::Ours, "add", &gone, 7070);
        node.sandbox.remove_pod(&gone);
        node.host().sh("nft flush ruleset
             for it in iptables ip6tables; do $it-legacy -t nat -F; $it-legacy -t nat -X; done");
        assert_eq!(node.outside.ask("tcp", NODE[0], 8080), NO_ANSWER);
        let done = node.task(&["resync", "mynet"]);
        assert!(
            done.stdout.contains("put back: spoof check of mynet/"),
            "{done:?}"
        );
        let expected = "its network namespace /run/netns/gone is gone";
        assert!(done.stderr.contains(expected), "{done:?}");
        assert_eq!(node.rules(), before);
        node.run(Suite::Ours, "check", &a, 8080);
        node.assert_reached("a", &a, 8080);
    });
}

#[test]
fn a_network_of_several_hosts_comes_back_whole() {
    beyond_peer(WHY, || {
        let node = Node::empty(BackEnd::Nftables);
        let vxlan = json!({"type": "vxlan", "vni": 5, "dev": "uplink", "ipMasq": true,
            "ipam": conf::host_local_ipam(&DUAL[..1])});
        node.configure(&json!({"cniVersion": "1.0.0", "name": "mynet", "plugins": [vxlan]}));
        let pod = node.sandbox.pod("a");
        node.run(Suite::Ours, "add", &pod, 8080);
        let before = node.rules();
        assert!(
            before
                .iter()
                .any(|it| it.contains("oifname != \"vxlan.5\""))
        );
        node.host().sh("nft flush ruleset");
        let output = node.task(&["resync"]).stdout;
        assert!(output.contains("put back: separation of mynet"), "{output}");
        assert_eq!(node.rules(), before);
        node.run(Suite::Ours, "check", &pod, 8080);
    });
}

#[test]
fn what_others_made_since_stays_theirs() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::Nftables);
        let (_a, _server) = node.pod(Suite::Ours, "a", 8080);
        node.host().sh("nft flush ruleset");
        // A pod of another runtime, whose cache is elsewhere.
        let (b, _b_server) = node.pod(Suite::Ours, "b", 8080);
        node.host().sh(&format!(
            "rm /var/lib/cni/results/mynet-cnitool-$(printf %s {} | sha512sum | cut -c1-20)-eth0",
            b.path()
        ));
        let done = node.task(&["resync"]);
        assert!(
            done.stderr
                .contains("left as it is: host port 8080/tcp belongs to mynet/"),
            "{done:?}"
        );
        assert!(node.outside.ask("tcp", NODE[0], 8080).starts_with("b sees"));
        // Once more nothing is put back, and the port is given back when b goes.
        let again = node.task(&["resync"]);
        assert_eq!(again.stdout, "");
        assert!(
            again.stderr.contains("left as it is: host port 8080/tcp"),
            "{again:?}"
        );
        node.run(Suite::Ours, "del", &b, 8080);
        assert!(node.outside.ask("tcp", NODE[0], 8080).starts_with("a sees"));
    });
}

#[test]
fn pods_of_the_peer_are_put_back_too() {
    each(&BackEnd::IPTABLES, |back_end| {
        let node = Node::new(back_end, &DUAL);
        let (a, _server) = node.pod(Suite::Peer, "a", 8080);
        // Nothing is missing: not in whichever layout it is.
        assert_eq!(node.task(&["resync"]).stdout, "");
        let variant = match back_end {
            BackEnd::IptablesNft => "nft",
            _ => "legacy",
        };
        node.host().sh(&format!(
            "iptables-{variant} -t nat -F; ip6tables-{variant} -t nat -F"
        ));
        node.task(&["resync"]);
        node.assert_reached("a", &a, 8080);
        node.run(Suite::Ours, "check", &a, 8080);
        node.run(Suite::Ours, "del", &a, 8080);
        node.gc();
        assert_eq!(of_pods(&node), [""; 0]);
    });
}

#[test]
fn a_file_that_makes_no_sense_is_reported_and_the_rest_is_done() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::Nftables);
        let (a, _server) = node.pod(Suite::Ours, "a", 8080);
        let broken = json!({"kind": "cniCacheV1", "containerId": "c", "ifName": "eth0",
            "networkName": "mynet", "config": "e30="});
        node.sandbox
            .write("/var/lib/cni/results/mynet-c-eth0", broken.to_string());
        node.host().sh("nft flush ruleset");
        let done = node.podwire(Suite::Ours, &["resync", "--json"], &Value::Null);
        assert_eq!(done.code, 1, "{done:?}");
        let document: Value = serde_json::from_str(&done.stdout).expect("a document");
        assert_eq!(
            document["done"].as_array().map(Vec::len),
            Some(3),
            "{document}"
        );
        let error = document["errors"][0].as_str().unwrap_or_default();
        assert!(error.starts_with("mynet/c/eth0: "), "{document}");
        node.assert_reached("a", &a, 8080);
        let done = node.podwire(Suite::Ours, &["resync", "a", "b"], &Value::Null);
        assert_eq!(done.code, 2, "{done:?}");
    });
}

#[test]
fn resync_misses_what_check_misses_of_conditions_that_are_several_rules() {
    each(&BackEnd::IPTABLES, |back_end| {
        let node = Node::empty(back_end);
        let mut network = network(&DUAL);
        network["plugins"][1]["backend"] = "iptables".into();
        network["plugins"][1]["conditionsV4"] = json!(["-d", "192.0.2.1/32,127.0.0.1/32"]);
        network["plugins"][1]["conditionsV6"] = json!(["-d", "2001:db8::1/128,2001:db8::2/128"]);
        node.configure(&network);
        let (pod, _server) = node.pod(Suite::Ours, "a", 8080);
        let before = node.rules();
        let variant = match back_end {
            BackEnd::IptablesNft => "nft",
            _ => "legacy",
        };
        for program in ["iptables", "ip6tables"] {
            for number in [1, 2] {
                assert_eq!(node.task(&["resync"]).stdout, "");
                node.host().sh(&format!(
                    "{program}-{variant} -t nat -D CNI-HOSTPORT-DNAT {number}"
                ));
                node.check_fails(&pod, 8080);
                let output = node.task(&["resync"]).stdout;
                assert!(
                    output.contains("put back: ports of mynet/"),
                    "{program}: {output}"
                );
                node.run(Suite::Ours, "check", &pod, 8080);
                assert_eq!(node.rules(), before, "{program}");
            }
        }
    });
}

#[test]
fn after_a_flush_the_newest_has_a_port_and_the_one_before_gets_it_back() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::Nftables);
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let (b, _b) = node.pod(Suite::Ours, "b", 8080);
        let (c, _c) = node.pod(Suite::Ours, "c", 8080);
        let before = node.rules();
        node.host().sh("nft flush ruleset");
        node.task(&["resync"]);
        assert_eq!(node.rules(), before);
        for (pod, next) in [(&c, "b"), (&b, "a")] {
            node.run(Suite::Ours, "del", pod, 8080);
            node.assert_reached(next, if next == "a" { &a } else { &b }, 8080);
        }
    });
}

#[test]
fn what_an_older_version_left_out_is_no_fault_until_it_is_needed() {
    beyond_peer(WHY, || {
        let node = Node::forced(BackEnd::Nftables);
        let (a, _a) = node.pod(Suite::Ours, "a", 8080);
        let before = node.rules();
        let filtered = |state: &str| {
            node.host().sh(&format!(
                "for it in iptables ip6tables; do
                     it=/proc/sys/net/bridge/bridge-nf-call-$it
                     if [ -e $it ]; then echo {state} >$it; fi
                 done"
            ));
        };
        let is_filtered = |node: &Node| {
            let read = "cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || echo 0";
            node.host().sh(read).trim() == "1"
        };
        filtered("1");
        // Written where bridged frames pass the rules, by version 1.9.
        node.host()
            .sh("nft flush chain ip podwire_hostports neighbours
             nft flush chain ip6 podwire_hostports neighbours
             nft delete element ip podwire_hostports masqueraded '{ 10.1.0.0 . 10.1.0.2 }'
             nft delete element ip6 podwire_hostports masqueraded '{ fd01:: . fd01::2 }'
             nft -a list chain ip podwire_hostports martians | sed -n 's/.* saddr .*handle //p' |
                 xargs nft delete rule ip podwire_hostports martians handle");
        if is_filtered(&node) {
            node.run(Suite::Ours, "check", &a, 8080);
        }
        filtered("0");
        let output = node.check_fails(&a, 8080);
        assert!(
            output.contains("pods of its bridge do not reach"),
            "{output}"
        );
        let output = node.task(&["resync"]).stdout;
        assert!(output.contains("put back: ports of mynet/"), "{output}");
        assert_eq!(node.rules(), before);
        node.run(Suite::Ours, "check", &a, 8080);

        // What all pods share is brought up to date though no pod misses anything.
        node.host().sh(
            "nft -a list chain ip podwire_hostports martians | sed -n 's/.* saddr .*handle //p' |
                 xargs nft delete rule ip podwire_hostports martians handle",
        );
        node.run(Suite::Ours, "check", &a, 8080);
        let output = node.task(&["resync"]).stdout;
        assert_eq!(output, "put back: rules for published ports\n");
        assert_eq!(node.rules(), before);
    });
}

// ---- the plugin firewall

/// [`network`] with firewall.
fn with_firewall(keys: Value) -> Value {
    let mut network = network(&DUAL);
    let firewall = conf::with(&json!({"type": "firewall"}), keys);
    let plugins = network["plugins"].as_array_mut().expect("plugins");
    plugins.push(firewall);
    network
}

impl Node {
    /// What firewall has, without counters.
    fn firewall(&self) -> Vec<String> {
        let mut rules = self.rules();
        rules.retain(|it| {
            let of_go = it.contains("CNI-FORWARD") || it.contains("CNI-ISOLATION");
            of_go || it.contains("podwire_firewall") || it.contains("podwire: published ports")
        });
        rules
    }

    /// What firewall has noted.
    fn notes(&self) -> usize {
        let notes = self.host().sh("find /run -path '*:firewall/*' -type f");
        notes.lines().filter(|it| !it.ends_with("lock")).count()
    }
}

#[test]
fn the_firewall_is_put_back_after_a_flush() {
    each(&BackEnd::ALL, |back_end| {
        for policy in ["open", "isolated"] {
            let node = Node::empty(back_end);
            let keys = json!({"backend": back_end.name(), "ingressPolicy": policy});
            node.configure(&with_firewall(keys));
            let (a, _a) = node.pod(Suite::Ours, "a", 8080);
            let _b = node.pod(Suite::Ours, "b", 9090);
            let before = node.firewall();
            assert_eq!(node.task(&["resync"]).stdout, "");
            let path = node.back_end.path(&node.sandbox);
            node.host().sh(&format!(
                "PATH={path}; for it in iptables ip6tables; do $it -F; $it -X; done; nft flush ruleset"
            ));
            let dry = node.task(&["resync", "--dry-run"]).stdout;
            let output = node.task(&["resync"]).stdout;
            let of_firewall = output
                .lines()
                .filter(|it| it.contains("firewall of"))
                .count();
            let expected = if before.is_empty() { 0 } else { 2 };
            assert_eq!(of_firewall, expected, "{policy}: {output}");
            assert_eq!(dry.contains("firewall of"), expected > 0, "{dry}");
            let (mut now, mut before) = (node.firewall(), before);
            now.sort();
            before.sort();
            assert_eq!(now, before, "{policy}");
            node.run(Suite::Ours, "check", &a, 8080);
            node.run(Suite::Ours, "del", &a, 8080);
        }
    });
}

#[test]
fn the_firewall_of_the_peers_pods_is_adopted() {
    each(&BackEnd::IPTABLES, |back_end| {
        for names in [back_end, BackEnd::Nftables] {
            let node = Node::empty(back_end);
            let keys = json!({"backend": names.name(), "ingressPolicy": "same-bridge"});
            node.configure(&with_firewall(keys));
            let (a, _a) = node.pod(Suite::Peer, "a", 8080);
            let (b, _b) = node.pod(Suite::Peer, "b", 9090);
            assert_eq!(node.notes(), 0);
            let output = node.task(&["adopt"]).stdout;
            let of_firewall = output
                .lines()
                .filter(|it| it.contains("firewall of"))
                .count();
            assert_eq!((of_firewall, node.notes()), (2, 2), "{output}");
            assert_eq!(node.task(&["adopt"]).stdout, "");
            if names == BackEnd::Nftables {
                let rules = node.firewall().concat();
                assert!(!rules.contains("-s 10.1.0.2/32"), "{rules}");
                assert!(rules.contains("podwire_firewall"), "{rules}");
            }
            node.run(Suite::Ours, "check", &a, 8080);
            for (pod, port) in [(&a, 8080), (&b, 9090)] {
                node.run(Suite::Ours, "del", pod, port);
            }
            let left = node.firewall().concat();
            let is_left = left.contains("ISOLATION") || left.contains("podwire_firewall");
            assert!(!is_left, "{left}");
            assert_eq!(node.notes(), 0);
        }
    });
}

#[test]
fn the_firewall_is_released_to_the_peer() {
    each(&BackEnd::IPTABLES, |back_end| {
        for names in [back_end, BackEnd::Nftables] {
            let node = Node::empty(back_end);
            let keys = json!({"backend": names.name(), "ingressPolicy": "same-bridge"});
            node.configure(&with_firewall(keys));
            let (a, _a) = node.pod(Suite::Ours, "a", 8080);
            let (b, _b) = node.pod(Suite::Ours, "b", 9090);
            let dry = node.task(&["release", "--dry-run"]).stdout;
            assert!(dry.contains("firewall of"), "{dry}");
            let output = node.task(&["release"]).stdout;
            let of_firewall = output
                .lines()
                .filter(|it| it.contains("firewall of"))
                .count();
            assert_eq!((of_firewall, node.notes()), (2, 0), "{output}");
            assert_eq!(node.task(&["release"]).stdout, "");
            let rules = node.firewall().concat();
            assert!(rules.contains("-s 10.1.0.2/32 -j ACCEPT"), "{rules}");
            assert!(
                rules.contains("CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0"),
                "{rules}"
            );
            let is_ours = rules.contains("podwire_firewall") || rules.contains("podwire:");
            assert!(!is_ours, "{rules}");
            for (pod, port) in [(&a, 8080), (&b, 9090)] {
                node.run(Suite::Peer, "del", pod, port);
            }
            assert!(!node.firewall().concat().contains("/32"));
        }
    });
}

#[test]
fn gc_removes_the_firewall_of_pods_that_are_gone_in_lists_of_every_version() {
    each(&BackEnd::IPTABLES, |back_end| {
        let node = Node::empty(back_end);
        node.configure(&with_firewall(json!({"backend": "iptables"})));
        let _a = node.pod(Suite::Ours, "a", 8080);
        let before = node.firewall();
        let (b, server) = node.pod(Suite::Ours, "b", 9090);
        drop(server);
        // The cache forgets the newer one.
        let dir = "/var/lib/cni/results";
        node.host()
            .sh(&format!("rm {dir}/$(ls -t {dir} | head -1)"));
        let pairs = |host: &Netns| {
            let links = host.links();
            links.iter().filter(|it| it.starts_with("veth")).count()
        };
        let all = pairs(&node.host());
        node.sandbox.remove_pod(&b);
        // The kernel deletes them later; until then the pod counts as running.
        let is_gone = |host: &Netns| pairs(host) < all;
        node.host().wait_until("its veth pair is gone", is_gone);
        node.task(&["gc", "--keep-cached", "mynet"]);
        assert_eq!(node.firewall(), before);
        assert_eq!(node.notes(), 1);
    });
}
