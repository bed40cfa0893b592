//! A pod whose address was another pod's a moment ago answers the first ping, whatever the MAC of
//! that other pod was: the tables of the node and of the other pods still have it (reference 2.12;
//! pains.md 4: ten seconds of black hole). Where both MACs are the same, nothing is announced.

use sandbox::{Cni, Netns, Running, Sandbox, Suite, beyond_peer, conf};
use serde_json::{Value, json};

const V4: &str = "10.1.0.50";
const V6: &str = "fd01::50";
const OTHER_V4: &str = "10.1.0.51";
const OTHER_V6: &str = "fd01::51";
const REQUESTED: &str = "02:00:00:00:00:99";

/// A network with an IPv4 and an IPv6 subnet.
fn dual() -> Value {
    conf::bridge(&["10.1.0.0/24", "fd01::/64"])
}

/// The network of the family of these addresses.
fn network_of(ips: &[&str]) -> Value {
    let v6 = ips.iter().any(|ip| ip.contains(':'));
    match (ips.len(), v6) {
        (1, false) => conf::bridge(&["10.1.0.0/24"]),
        (1, true) => conf::bridge(&["fd01::/64"]),
        _ => dual(),
    }
}

/// The three kinds of pods: IPv4, IPv6, both.
const FAMILIES: [&[&str]; 3] = [&[V4], &[V6], &[V4, V6]];

/// The same network, with the addresses that the test wants.
fn with_ips(conf: &Value, ips: &[&str]) -> Value {
    conf::with(conf, json!({"runtimeConfig": {"ips": ips}}))
}

/// And with a MAC.
fn with_mac(conf: &Value) -> Value {
    conf::with(conf, json!({"runtimeConfig": {"mac": REQUESTED}}))
}

/// A node with a pod beside the one that comes and goes.
struct Scene {
    sandbox: Sandbox,
    sibling: Netns,
    attachments: u32,
}

/// An attached pod.
struct Pod {
    netns: Netns,
    conf: Value,
    result: Value,
}

impl Pod {
    /// Its configuration as libcni sends it with DEL.
    fn conf_of_del(&self) -> Value {
        conf::with_prev(&self.conf, &self.result)
    }
}

impl Scene {
    /// The sibling is attached by `suite`, which creates the bridge.
    fn by(suite: Suite, conf: &Value) -> Self {
        let sandbox = Sandbox::new();
        let sibling = sandbox.pod("sibling");
        let cni = sandbox.cni("bridge").suite(suite);
        cni.add(conf, &sibling, "eth0").result();
        // An IPv6 address of the Go plugins' bridge is checked for duplicates for a second.
        sandbox.host().wait_until("no address is tentative", |it| {
            it.sh("ip -6 addr show dev cni0 scope global tentative")
                .is_empty()
        });
        Self {
            sandbox,
            sibling,
            attachments: 0,
        }
    }

    fn new(conf: &Value) -> Self {
        Self::by(Suite::Ours, conf)
    }

    fn cni(&self) -> Cni {
        self.sandbox.cni("bridge")
    }

    /// A new pod, attached by `suite`.
    fn add_by(&mut self, suite: Suite, conf: &Value) -> Pod {
        self.attachments += 1;
        let netns = self.sandbox.pod(&format!("pod{}", self.attachments));
        let cni = self.cni().suite(suite);
        Pod {
            result: cni.add(conf, &netns, "eth0").result(),
            netns,
            conf: conf.clone(),
        }
    }

    fn add(&mut self, conf: &Value) -> Pod {
        self.add_by(Suite::Ours, conf)
    }

    fn del(&self, pod: &Pod) {
        self.del_by(Suite::Ours, pod);
    }

    fn del_by(&self, suite: Suite, pod: &Pod) {
        let cni = self.cni().suite(suite);
        cni.del(&pod.conf_of_del(), &pod.netns, "eth0").silent();
    }

    /// The node and the sibling reach each of these addresses with each packet.
    #[track_caller]
    fn assert_reachable(&self, ips: &[&str], when: &str) {
        for from in [&self.sandbox.host(), &self.sibling] {
            for ip in ips {
                assert_eq!(
                    from.ping(ip, 3),
                    [true; 3],
                    "{} to {ip} {when}",
                    from.name()
                );
            }
        }
    }

    /// A pod with `before` is pinged and goes; one with `after` takes its place.
    fn hand_over(&mut self, before: &Value, after: &Value, ips: &[&str]) -> Pod {
        let pod = self.add(before);
        self.assert_reachable(ips, "before");
        self.del(&pod);
        let pod = self.add(after);
        self.assert_reachable(ips, "afterwards");
        pod
    }

    /// What the sibling hears that announces an address.
    fn announcements(&self) -> Announcements {
        Announcements(self.sibling.capture("eth0", "arp or icmp6"))
    }
}

/// Gratuitous ARP and unsolicited neighbour advertisements that a pod receives.
struct Announcements(Running);

impl Announcements {
    fn of(&self, ip: &str) -> usize {
        let arp = [
            format!("who-has {ip} tell {ip},"),
            format!("who-has {ip} (ff:ff:ff:ff:ff:ff) tell {ip},"),
            format!("Announcement {ip},"),
        ];
        let na = format!("> ff02::1: ICMP6, neighbor advertisement, tgt is {ip},");
        let text = self.0.output();
        let is_one = |line: &&str| line.contains(&na) || arp.iter().any(|it| line.contains(it));
        text.lines().filter(is_one).count()
    }
}

fn mac_of(pod: &Pod) -> String {
    let link = pod.netns.link("eth0").expect("eth0");
    link["address"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn an_address_that_comes_back_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            let conf = with_ips(&network_of(ips), ips);
            let mut scene = Scene::new(&network_of(ips));
            scene.hand_over(&conf, &conf, ips);
        }
    });
}

#[test]
fn an_address_that_comes_back_has_its_mac_and_is_not_announced() {
    beyond_peer("the Go plugins' MACs are random", || {
        for ips in FAMILIES {
            let conf = with_ips(&network_of(ips), ips);
            let mut scene = Scene::new(&network_of(ips));
            let first = scene.add(&conf);
            let heard = scene.announcements();
            let mac = mac_of(&first);
            scene.del(&first);
            let second = scene.add(&conf);
            assert_eq!(mac_of(&second), mac);
            // The request of the sibling comes after all announcements, so these have been heard.
            scene.assert_reachable(ips, "");
            for ip in ips {
                assert_eq!(heard.of(ip), 0, "{ip}");
            }
        }
    });
}

#[test]
fn another_mac_than_before_is_announced() {
    beyond_peer("the announcement is lost before the port forwards", || {
        for ips in FAMILIES {
            let conf = with_ips(&network_of(ips), ips);
            let mut scene = Scene::new(&network_of(ips));
            let requested = scene.add(&with_mac(&conf));
            scene.del(&requested);
            let heard = scene.announcements();
            let derived = scene.add(&conf);
            scene.sibling.wait_until("both are announced", |_| {
                ips.iter().all(|ip| heard.of(ip) > 0)
            });
            // Once is enough.
            scene.del(&derived);
            let heard = scene.announcements();
            scene.add(&conf);
            scene.assert_reachable(ips, "");
            assert!(ips.iter().all(|ip| heard.of(ip) == 0));
        }
    });
}

#[test]
fn the_successor_of_a_pod_with_a_requested_mac_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            let conf = with_ips(&network_of(ips), ips);
            let mut scene = Scene::new(&network_of(ips));
            scene.hand_over(&with_mac(&conf), &conf, ips);
        }
    });
}

#[test]
fn a_pod_with_a_requested_mac_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            let conf = with_ips(&network_of(ips), ips);
            let mut scene = Scene::new(&network_of(ips));
            let pod = scene.hand_over(&conf, &with_mac(&conf), ips);
            assert_eq!(mac_of(&pod), REQUESTED);
        }
    });
}

/// The MAC of a pod with both families follows from its IPv4 address, so an IPv6 address that comes
/// back with another IPv4 address has another MAC.
#[test]
fn an_ipv6_address_with_another_ipv4_address_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        let mut scene = Scene::new(&dual());
        let pairs = [[V4, V6], [OTHER_V4, V6], [OTHER_V4, OTHER_V6], [V4, V6]];
        for pair in pairs {
            let pod = scene.add(&with_ips(&dual(), &pair));
            scene.assert_reachable(&pair, "");
            scene.del(&pod);
        }
    });
}

/// As a runtime sends it to plugins of both suites.
fn at_1_0(conf: &Value) -> Value {
    conf::at(conf, "1.0.0")
}

#[test]
fn the_successor_of_a_go_pod_on_a_go_bridge_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            let network = at_1_0(&network_of(ips));
            let conf = with_ips(&network, ips);
            let mut scene = Scene::by(Suite::Peer, &network);
            let pod = scene.add_by(Suite::Peer, &conf);
            scene.assert_reachable(ips, "before");
            scene.del_by(Suite::Peer, &pod);
            let pod = scene.add(&conf);
            scene.assert_reachable(ips, "afterwards");
            scene.del(&pod);
            scene.hand_over(&with_mac(&conf), &conf, ips);
        }
    });
}

#[test]
fn the_successor_of_a_go_pod_on_our_bridge_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            for deletes in [Suite::Ours, Suite::Peer] {
                let network = at_1_0(&network_of(ips));
                let conf = with_ips(&network, ips);
                let mut scene = Scene::new(&network);
                let ours = scene.hand_over(&conf, &conf, ips);
                scene.del(&ours);
                let go = scene.add_by(Suite::Peer, &conf);
                // Its announcement is lost: the neighbours learn its MAC by and by.
                scene.sandbox.host().sh("ip neigh flush dev cni0");
                scene.sibling.sh("ip neigh flush dev eth0");
                scene.assert_reachable(ips, "of the Go plugins");
                scene.del_by(deletes, &go);
                scene.add(&conf);
                scene.assert_reachable(ips, &format!("after DEL by {deletes:?}"));
            }
        }
    });
}

/// Before CNI 0.4.0 runtimes pass no result to DEL.
#[test]
fn the_successor_of_a_go_pod_that_was_deleted_without_its_result_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            let network = conf::at(&network_of(ips), "0.3.1");
            let conf = with_ips(&network, ips);
            let mut scene = Scene::new(&network);
            let go = scene.add_by(Suite::Peer, &conf);
            scene.assert_reachable(ips, "of the Go plugins");
            scene.cni().del(&conf, &go.netns, "eth0").silent();
            let ours = scene.add(&conf);
            scene.assert_reachable(ips, "afterwards");
            scene.cni().del(&conf, &ours.netns, "eth0").silent();
            scene.hand_over(&with_mac(&conf), &conf, ips);
        }
    });
}

#[test]
fn the_successor_of_a_pod_that_changed_its_mac_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        for ips in FAMILIES {
            let conf = with_ips(&network_of(ips), ips);
            let mut scene = Scene::new(&network_of(ips));
            let pod = scene.add(&conf);
            let change = format!("ip link set eth0 address {REQUESTED}");
            pod.netns.sh(&change);
            scene.sandbox.host().sh("ip neigh flush dev cni0");
            scene.sibling.sh("ip neigh flush dev eth0");
            scene.assert_reachable(ips, "with another MAC");
            scene.del(&pod);
            scene.add(&conf);
            scene.assert_reachable(ips, "afterwards");
        }
    });
}

/// The Go plugin `tuning`, as the next plugin of the list, changes the MAC and the result.
#[test]
fn the_successor_of_a_pod_with_a_tuned_mac_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        let network = at_1_0(&dual());
        let (ips, conf) = ([V4, V6], with_ips(&network, &[V4, V6]));
        let mut scene = Scene::new(&network);
        let mut pod = scene.add(&conf);
        let tuning = json!({"type": "tuning", "mac": REQUESTED, "prevResult": pod.result});
        let tuning = conf::with(&at_1_0(&conf::plugin("tuning")), tuning);
        let cni = scene.sandbox.cni("tuning").peer();
        pod.result = cni.add(&tuning, &pod.netns, "eth0").result();
        scene.assert_reachable(&ips, "with another MAC");
        // The runtime has deleted the namespace before it calls DEL.
        scene.sandbox.host().sh("ip netns del pod1");
        scene.del(&pod);
        scene.add(&conf);
        scene.assert_reachable(&ips, "afterwards");
    });
}

/// A pod that was attached before its bridge was deleted and created again by another program.
#[test]
fn nothing_is_known_of_a_bridge_that_another_program_has_created() {
    beyond_peer("plugins#756, #858", || {
        let conf = with_ips(&dual(), &[V4, V6]);
        let mut scene = Scene::new(&dual());
        let pod = scene.hand_over(&conf, &conf, &[V4, V6]);
        scene.del(&pod);
        scene.sandbox.host().sh("ip link del cni0
             ip link add cni0 type bridge
             ip link set cni0 up");
        let sibling = scene.add(&dual());
        scene.sibling = sibling.netns;
        let heard = scene.announcements();
        scene.add(&conf);
        let is_announced = |_: &Netns| [V4, V6].iter().all(|ip| heard.of(ip) > 0);
        scene.sibling.wait_until("it is announced", is_announced);
    });
}

/// Two nodes whose bridges are connected. A pod moves from one to the other and back; switches and
/// bridges in between learn from frames where its MAC is. With IPv6 a pod sends frames by itself when
/// it comes up, so one without IPv6 is the test.
#[test]
fn an_address_that_moves_to_another_node_of_its_segment_is_reached_at_once() {
    beyond_peer("plugins#756, #858", || {
        let sandbox = Sandbox::new();
        let nodes = [sandbox.pod("node1"), sandbox.pod("node2")];
        let conf = |node: usize, ips: &[&str]| {
            let data = format!("/run/ipam{node}");
            let change = json!({"isGateway": false, "ipam": {"dataDir": data}});
            conf::with(&with_ips(&network_of(ips), ips), change)
        };
        let cni = |node: usize| {
            let name = nodes[node].name();
            sandbox.cni("bridge").under(&["ip", "netns", "exec", name])
        };
        let mut siblings = Vec::new();
        for node in 0..2 {
            let sibling = sandbox.pod(&format!("sibling{node}"));
            let last = node + 2;
            let own = format!("10.1.0.{last}");
            cni(node)
                .add(&conf(node, &[&own]), &sibling, "eth0")
                .result();
            siblings.push(sibling);
        }
        // Only now, as an operator does.
        nodes[0].sh(&format!(
            "ip link add uplink type veth peer name uplink netns {}
             ip link set uplink master cni0 up",
            nodes[1].name()
        ));
        nodes[1].sh("ip link set uplink master cni0 up");
        nodes[1].wait_until("the wire is up", |it| it.is_settled("uplink"));
        for (turn, node) in [0, 1, 0, 1].into_iter().enumerate() {
            let pod = sandbox.pod(&format!("pod{turn}"));
            pod.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
            let conf = conf(node, &[V4]);
            let result = cni(node).add(&conf, &pod, "eth0").result();
            for sibling in &siblings {
                let (from, to) = (sibling.name(), node + 1);
                assert_eq!(sibling.ping(V4, 3), [true; 3], "{from} to node {to}");
            }
            let conf = conf::with_prev(&conf, &result);
            cni(node).del(&conf, &pod, "eth0").silent();
        }
    });
}

#[test]
fn the_pod_s_own_first_ping_is_answered() {
    let mut scene = Scene::new(&dual());
    let conf = with_ips(&dual(), &[V4, V6]);
    let pod = scene.add(&conf);
    scene.del(&pod);
    let pod = scene.add(&conf);
    for ip in ["10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2"] {
        assert_eq!(pod.netns.ping(ip, 2), [true, true], "{ip}");
    }
}

#[test]
fn new_addresses_are_reachable_at_once() {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
    sandbox.cni("bridge").add(&dual(), &a, "eth0").result();
    assert_eq!(sandbox.host().ping("10.1.0.2", 1), [true]);
    sandbox.cni("bridge").add(&dual(), &b, "eth0").result();
    assert_eq!(a.ping("10.1.0.3", 1), [true]);
    assert_eq!(a.ping("fd01::3", 1), [true]);
}

#[test]
fn the_first_pod_of_a_network_reaches_its_ipv6_gateway_at_once() {
    beyond_peer("the bridge's address is tentative for a second", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        sandbox.cni("bridge").add(&dual(), &pod, "eth0").result();
        assert_eq!(pod.ping("fd01::1", 1), [true]);
        assert_eq!(sandbox.host().ping("fd01::2", 1), [true]);
    });
}
