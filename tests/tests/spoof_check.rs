//! `macspoofchk` of bridge: a pod that sends with another MAC than its own is not heard.

use sandbox::{Cni, Netns, Sandbox, Stdout, Suite, beyond_peer, conf, container_id};
use serde_json::{Value, json};

fn network() -> Value {
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    conf::with(&conf, json!({"macspoofchk": true}))
}

struct Node {
    sandbox: Sandbox,
    /// A pod without the spoof check.
    other: Netns,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let other = sandbox.pod("other");
        let plain = conf::with(&network(), json!({"macspoofchk": false}));
        sandbox.cni("bridge").add(&plain, &other, "eth0").result();
        Self { sandbox, other }
    }

    fn cni(&self) -> Cni {
        self.sandbox.cni("bridge")
    }

    fn pod(&self, name: &str) -> (Netns, Value) {
        let pod = self.sandbox.pod(name);
        let result = self.cni().add(&network(), &pod, "eth0").result();
        (pod, result)
    }

    /// Lines of the bridge family's rules, without indentation.
    fn rules(&self) -> Vec<String> {
        let text = self.sandbox.host().sh("nft -s list ruleset bridge");
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    fn about(&self, what: &str) -> Vec<String> {
        self.rules()
            .into_iter()
            .filter(|line| line.contains(what))
            .collect()
    }
}

/// Changes a pod's MAC, as a guest that is not to be trusted would.
fn disguise(pod: &Netns, mac: &str) {
    pod.sh(&format!(
        "ip link set eth0 address {mac}; ip neigh flush all"
    ));
}

fn mac(pod: &Netns) -> String {
    let link = pod.link("eth0").expect("eth0");
    link["address"].as_str().expect("a MAC").to_owned()
}

#[test]
fn frames_with_the_pods_own_mac_pass_and_others_are_dropped() {
    let node = Node::new();
    let (pod, _) = node.pod("a");
    let own = mac(&pod);
    assert_eq!(pod.ping("10.1.0.2", 1), [true]);
    assert_eq!(pod.ping("10.1.0.1", 1), [true]);
    disguise(&pod, "02:00:00:00:00:66");
    let heard = node.other.capture("eth0", "ether src 02:00:00:00:00:66");
    assert_eq!(pod.ping("10.1.0.2", 2), [false, false]);
    assert_eq!(pod.ping("10.1.0.1", 1), [false]);
    let frames = heard
        .output()
        .lines()
        .filter(|line| line.contains("ethertype"))
        .count();
    assert_eq!(frames, 0, "{}", heard.output());
    disguise(&pod, &own);
    assert_eq!(pod.ping("10.1.0.2", 1), [true]);
    // The neighbour is not checked.
    disguise(&node.other, "02:00:00:00:00:67");
    assert_eq!(node.other.ping("10.1.0.3", 1), [true]);
}

#[test]
fn a_neighbour_s_mac_is_not_taken() {
    let node = Node::new();
    let (pod, _) = node.pod("a");
    // The bridge would learn that the neighbour has moved.
    let theirs = mac(&node.other);
    disguise(&pod, &theirs);
    pod.ping("10.1.0.1", 2);
    let fdb = node.sandbox.host().sh("bridge -j fdb show br cni0");
    let fdb: Value = serde_json::from_str(&fdb).expect("JSON of bridge");
    let host = node.sandbox.host();
    let learned: Vec<&Value> = fdb
        .as_array()
        .into_iter()
        .flatten()
        .filter(|it| it["mac"] == theirs.as_str())
        .collect();
    let ports: Vec<&str> = learned
        .iter()
        .filter_map(|it| it["ifname"].as_str())
        .collect();
    assert!(ports.len() <= 1, "{ports:?}");
    assert_eq!(
        host.run(&["ping", "-c", "1", "-W", "1", "10.1.0.2"]).code,
        0
    );
    assert!(!node.about(&mac_of_result(&node, "a")).is_empty());
}

/// The MAC that a pod was born with, as the rules have it.
fn mac_of_result(node: &Node, pod: &str) -> String {
    let rules = node.about("ether saddr");
    let rule = rules
        .iter()
        .find(|rule| rule.contains(&format!("id-{pod}-eth0")));
    let rule = rule.cloned().unwrap_or_default();
    rule.split(' ').nth(2).unwrap_or_default().to_owned()
}

#[test]
fn the_chains_are_the_go_plugin_s() {
    let node = Node::new();
    let (pod, result) = node.pod("a");
    let veth = result["interfaces"][1]["name"]
        .as_str()
        .expect("the host veth")
        .to_owned();
    let (id, own) = (container_id(&pod), mac(&pod));
    let comment = format!("comment \"macspoofchk-{id}-eth0\"");
    let expected = [
        "table bridge nat {".to_owned(),
        "chain PREROUTING {".to_owned(),
        "type filter hook prerouting priority dstnat; policy accept;".to_owned(),
        format!("iifname \"{veth}\" jump cni-br-iface-{id}-eth0 {comment}"),
        "}".to_owned(),
        format!("chain cni-br-iface-{id}-eth0 {{"),
        format!("jump cni-br-iface-{id}-eth0-mac {comment}"),
        "}".to_owned(),
        format!("chain cni-br-iface-{id}-eth0-mac {{"),
        format!("ether saddr {own} return {comment}"),
        format!("drop {comment}"),
        "}".to_owned(),
        "}".to_owned(),
    ];
    assert_eq!(node.rules(), expected);
}

#[test]
fn a_requested_mac_may_send() {
    let node = Node::new();
    let pod = node.sandbox.pod("a");
    node.cni()
        .args("IgnoreUnknown=1;MAC=02:11:22:33:44:55")
        .add(&network(), &pod, "eth0")
        .result();
    assert_eq!(node.about("ether saddr 02:11:22:33:44:55").len(), 1);
    assert_eq!(pod.ping("10.1.0.2", 1), [true]);
}

#[test]
fn del_takes_the_chains_with_and_without_a_netns() {
    beyond_peer("without a netns they stay", || {
        let node = Node::new();
        let (first, _) = node.pod("first");
        node.cni().del(&network(), &first, "eth0").silent();
        let before = node.rules();
        for netns in [true, false] {
            let (pod, _) = node.pod("a");
            let (alive, _) = node.pod("b");
            if netns {
                node.cni().del(&network(), &pod, "eth0").silent();
                node.cni().del(&network(), &pod, "eth0").silent();
            }
            node.sandbox.remove_pod(&pod);
            if !netns {
                node.cni().netns("").del(&network(), &pod, "eth0").silent();
                node.cni().netns("").del(&network(), &pod, "eth0").silent();
            }
            assert_eq!(node.about("id-a"), [""; 0]);
            assert!(!node.about("id-b").is_empty());
            disguise(&alive, "02:00:00:00:00:66");
            assert_eq!(alive.ping("10.1.0.2", 1), [false]);
            node.cni().del(&network(), &alive, "eth0").silent();
            node.sandbox.remove_pod(&alive);
            assert_eq!(node.rules(), before);
        }
    });
}

#[test]
fn two_interfaces_of_a_pod_are_checked_one_by_one() {
    let node = Node::new();
    let (pod, _) = node.pod("a");
    node.cni().add(&network(), &pod, "net1").result();
    node.cni().del(&network(), &pod, "eth0").silent();
    assert_eq!(node.about("id-a-eth0"), [""; 0]);
    assert!(!node.about("id-a-net1").is_empty());
    node.cni().del(&network(), &pod, "net1").silent();
    assert_eq!(node.about("id-a"), [""; 0]);
}

#[test]
fn add_again_does_not_duplicate() {
    beyond_peer("a repeated ADD jumps twice", || {
        let node = Node::new();
        let pod = node.sandbox.pod("a");
        let address =
            json!({"ranges": null, "type": "static", "addresses": [{"address": "10.1.0.9/24"}]});
        let conf = conf::with(&network(), json!({"ipam": address}));
        for _ in 0..3 {
            node.cni().add(&conf, &pod, "eth0").result();
            assert_eq!(node.about("jump cni-br-iface-id-a-eth0 ").len(), 1);
            assert_eq!(node.about("ether saddr").len(), 1);
            assert_eq!(mac_of_result(&node, "a"), mac(&pod));
            pod.sh("ip link del eth0");
        }
    });
}

#[test]
fn check_misses_the_rules() {
    beyond_peer("CHECK there does not look at rules", || {
        let node = Node::new();
        let (pod, result) = node.pod("a");
        let checked = conf::with_prev(&network(), &result);
        let check = || node.cni().check(&checked, &pod, "eth0");
        check().silent();
        for broken in [
            "nft flush chain bridge nat PREROUTING",
            "nft flush chain bridge nat cni-br-iface-id-a-eth0-mac",
            "nft delete table bridge nat",
        ] {
            node.sandbox.host().sh(broken);
            let error = check().error();
            assert!(error.msg.contains("spoof check"), "{broken}: {}", error.msg);
        }
    });
}

#[test]
fn a_failure_after_the_check_was_made_takes_it_away() {
    beyond_peer(
        "nothing is rolled back when the result cannot be written",
        || {
            let node = Node::new();
            let (first, _) = node.pod("first");
            node.cni().del(&network(), &first, "eth0").silent();
            let before = node.rules();
            let pod = node.sandbox.pod("a");
            let failed = node
                .cni()
                .stdout(Stdout::NoReader)
                .add(&network(), &pod, "eth0");
            assert_ne!(failed.code(), 0);
            assert_eq!(node.rules(), before);
            let ipam = node.sandbox.fake("fake-ipam");
            ipam.fail("ADD", 11, "no addresses today");
            let conf = conf::with(&network(), json!({"ipam": {"type": "fake-ipam"}}));
            let error = node.cni().add(&conf, &pod, "eth0").error();
            assert_eq!(error.code, 11);
            assert_eq!(node.rules(), before);
            assert_eq!(pod.links(), ["lo"]);
        },
    );
}

#[test]
fn del_succeeds_when_the_chains_are_gone_already() {
    let node = Node::new();
    let (pod, _) = node.pod("a");
    node.sandbox.host().sh("nft flush ruleset");
    node.cni().del(&network(), &pod, "eth0").silent();
}

#[test]
fn pods_of_one_suite_lose_their_check_by_the_other_s_del() {
    for (from, to) in [(Suite::Ours, Suite::Peer), (Suite::Peer, Suite::Ours)] {
        let node = Node::new();
        let conf = conf::at(&network(), "1.0.0");
        let pod = node.sandbox.pod("a");
        node.cni().suite(from).add(&conf, &pod, "eth0").result();
        disguise(&pod, "02:00:00:00:00:66");
        assert_eq!(pod.ping("10.1.0.2", 1), [false], "{from:?}");
        node.cni().suite(to).del(&conf, &pod, "eth0").silent();
        assert_eq!(node.about("id-a"), [""; 0], "{from:?} to {to:?}");
    }
}

#[test]
fn gc_removes_the_spoof_check_of_a_pod_without_del() {
    beyond_peer("no GC there", || {
        let node = Node::new();
        let (alive, _) = node.pod("alive");
        let (_dead, _) = node.pod("dead");
        let (id, other) = (container_id(&alive), container_id(&node.other));
        let valid = [(&*id, "eth0"), (&*other, "eth0")];
        node.cni()
            .gc(&conf::with_valid(&network(), &valid))
            .silent();
        assert_eq!(node.about("id-dead"), [""; 0]);
        disguise(&alive, "02:00:00:00:00:66");
        assert_eq!(alive.ping("10.1.0.2", 1), [false]);
    });
}

#[test]
fn gc_takes_the_check_of_a_pod_whose_namespace_is_gone() {
    beyond_peer("no GC there", || {
        let node = Node::new();
        let (dead, _) = node.pod("dead");
        node.sandbox.remove_pod(&dead);
        let gone = |host: &Netns| host.ip_json(["link", "show", "master", "cni0"]).len() == 1;
        node.sandbox.host().wait_until("the veth is gone", gone);
        let other = container_id(&node.other);
        node.cni()
            .gc(&conf::with_valid(&network(), &[(&other, "eth0")]))
            .silent();
        assert_eq!(node.about("id-dead"), [""; 0]);
    });
}
