//! Which pods reach which.

use std::thread;

use sandbox::{Netns, beyond_peer, conf};
use serde_json::{Value, json};

use crate::fleet::{BOTH, Fleet, Underlay, address, addresses};

pub const WHY: &str = "there is no vxlan among the Go plugins";

type Conf = fn(&Fleet, usize, u32, Underlay) -> Value;

pub const MODES: [(&str, Conf); 2] = [("l2", Fleet::segment), ("l3", Fleet::routed)];

/// A pod with its addresses.
struct Pod {
    netns: Netns,
    vni: u32,
    ips: Vec<String>,
}

/// Those of `targets` that do not answer within ten seconds; all are tried at the same time.
pub fn silent(from: &Netns, targets: &[String]) -> Vec<String> {
    let script = format!(
        "for ip in {}; do (ping -n -q -c 1 -w 10 -i 0.5 $ip >/dev/null || echo $ip) & done; wait",
        targets.join(" ")
    );
    let mut silent: Vec<String> = from.sh(&script).lines().map(str::to_owned).collect();
    silent.sort();
    silent
}

/// Those that answer.
fn answering(from: &Netns, targets: &[String]) -> Vec<String> {
    let script = format!(
        "for ip in {}; do (ping -n -q -c 1 -W 1 $ip >/dev/null 2>&1 && echo $ip) & done; wait",
        targets.join(" ")
    );
    let mut all: Vec<String> = from.sh(&script).lines().map(str::to_owned).collect();
    all.sort();
    all
}

/// Three hosts, ten pods each, two networks: every pair of a network talks, no pair across does.
fn every_client_reaches_its_own_pod(make: Conf, underlay: Underlay) {
    let fleet = Fleet::new(3);
    let vnis = [5, 6];
    let mut pods = Vec::new();
    for host in 1..=3 {
        for n in 0..10 {
            let vni = vnis[n % 2];
            let conf = make(&fleet, host, vni, underlay);
            let netns = fleet.add(host, &format!("p{n}"), &conf);
            let ips = addresses(&netns);
            assert_eq!(ips.len(), 2, "{ips:?}");
            pods.push(Pod { netns, vni, ips });
        }
    }
    let ips = |same: bool, vni: u32| -> Vec<String> {
        let pods = pods.iter().filter(|it| (it.vni == vni) == same);
        pods.flat_map(|it| it.ips.clone()).collect()
    };
    let none: [String; 0] = [];
    let look = |pod: &Pod| {
        let name = pod.netns.name();
        let (ours, theirs) = (ips(true, pod.vni), ips(false, pod.vni));
        assert_eq!(silent(&pod.netns, &ours), none, "{name} misses its own");
        assert_eq!(answering(&pod.netns, &theirs), none, "{name} hears others");
    };
    // A few at a time: it is no test of the machine.
    for some in pods.chunks(5) {
        thread::scope(|scope| {
            for pod in some {
                scope.spawn(move || look(pod));
            }
        });
    }
}

#[test]
fn pods_of_one_segment_reach_only_each_other_over_ipv4() {
    beyond_peer(WHY, || {
        every_client_reaches_its_own_pod(Fleet::segment, Underlay::V4)
    });
}

#[test]
fn pods_of_one_segment_reach_only_each_other_over_ipv6() {
    beyond_peer(WHY, || {
        every_client_reaches_its_own_pod(Fleet::segment, Underlay::V6)
    });
}

#[test]
fn routed_pods_reach_each_other_over_ipv4() {
    beyond_peer(WHY, || {
        every_client_reaches_its_own_pod(Fleet::routed, Underlay::V4)
    });
}

#[test]
fn routed_pods_reach_each_other_over_ipv6() {
    beyond_peer(WHY, || {
        every_client_reaches_its_own_pod(Fleet::routed, Underlay::V6)
    });
}

/// A route that is not the default one leads to the peers' subnets, too.
#[test]
fn ipv6_peers_are_reached_where_another_route_covers_them() {
    beyond_peer(WHY, || {
        for underlay in BOTH {
            let fleet = Fleet::new(3);
            let subnet = |host: usize| format!("2001:cafe:42:{host}::/64");
            let pods: Vec<Netns> = (1..=3)
                .map(|host| {
                    fleet.host(host).sh(&format!(
                        "ip -6 route add 2000::/3 via 2001:db8:{host}::1 dev eth0"
                    ));
                    let mut conf = fleet.routed(host, 5, underlay);
                    for peer in conf["peers"].as_array_mut().expect("peers") {
                        let vtep = peer["vtep"].as_str().expect("a vtep").to_owned();
                        let other = (1..=3).find(|n| address(*n, underlay) == vtep);
                        peer["subnet"] = subnet(other.expect("a host")).into();
                    }
                    conf["ipam"]["ranges"] = json!([[{"subnet": subnet(host)}]]);
                    let pod = fleet.pod(host, "p");
                    let added = fleet.cni(host).add(&conf, &pod, "eth0");
                    let result = added.result();
                    assert_eq!(added.stderr(), "");
                    let checked = conf::with_prev(&conf, &result);
                    fleet.cni(host).check(&checked, &pod, "eth0").silent();
                    pod
                })
                .collect();
            let all: Vec<String> = pods.iter().flat_map(addresses).collect();
            let none: [String; 0] = [];
            for pod in &pods {
                assert_eq!(silent(pod, &all), none, "{underlay:?}");
            }
        }
    });
}

#[test]
fn a_megabyte_passes_by_tcp_both_ways_in_both_families() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            for underlay in BOTH {
                let fleet = Fleet::new(2);
                let a = fleet.add(1, "a", &make(&fleet, 1, 5, underlay));
                let b = fleet.add(2, "b", &make(&fleet, 2, 5, underlay));
                for (from, to) in [(&a, &b), (&b, &a)] {
                    for ip in addresses(to) {
                        let sum = transfer(from, to, &ip);
                        assert_eq!(sum, ZEROS, "{mode} over {underlay:?} to {ip}");
                    }
                }
            }
        }
    });
}

/// The checksum of a million zeros.
const ZEROS: &str = "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025";

fn transfer(from: &Netns, to: &Netns, ip: &str) -> String {
    let listen = format!("nc -n -l {ip} 9000 | sha256sum");
    let server = to.start(&["sh", "-c", &listen]);
    to.wait_until("it listens", |pod| {
        !pod.sh("ss -Hltn 'sport = :9000'").trim().is_empty()
    });
    from.sh(&format!(
        "head -c 1000000 /dev/zero | nc -n -N -w 5 {ip} 9000"
    ));
    to.wait_until("all has come", |_| server.output().contains("-"));
    let output = server.output();
    output.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_router_in_between_sees_only_the_hosts() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(2);
            let watch = fleet.sandbox.host().capture("r1", "ip");
            let a = fleet.add(1, "a", &make(&fleet, 1, 5, Underlay::V4));
            let b = fleet.add(2, "b", &make(&fleet, 2, 5, Underlay::V4));
            let ip = addresses(&b)[0].clone();
            assert_eq!(a.ping(&ip, 2), [true, true], "{mode}");
            // Two questions and two answers.
            fleet.sandbox.host().wait_until("they are seen", |_| {
                watch
                    .output()
                    .matches(".4789: VXLAN, flags [I] (0x08), vni 5")
                    .count()
                    >= 4
            });
            let seen = watch.output();
            let outer = seen.lines().filter(|line| line.contains(".4789: VXLAN"));
            for line in outer {
                assert!(
                    line.contains("172.20.1.2") && line.contains("172.20.2.2"),
                    "{line}"
                );
            }
        }
    });
}

#[test]
fn frames_of_one_vni_never_reach_the_device_of_another() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let vnis: Vec<u32> = (11..=30).collect();
        let mut pairs = Vec::new();
        for vni in &vnis {
            let a = fleet.add(1, &format!("a{vni}"), &fleet.segment(1, *vni, Underlay::V4));
            let b = fleet.add(2, &format!("b{vni}"), &fleet.segment(2, *vni, Underlay::V4));
            pairs.push((*vni, a, b));
        }
        let watched: Vec<_> = vnis
            .iter()
            .map(|vni| {
                // Everything that is not of this network's addresses.
                let device = format!("vxlan.{vni}");
                let foreign = format!("(arp or ip) and not igmp and not net 10.{vni}.0.0/16");
                (device.clone(), fleet.host(2).capture(&device, &foreign))
            })
            .collect();
        let own = fleet
            .host(2)
            .capture("vxlan.11", "icmp and net 10.11.0.0/16");
        thread::scope(|scope| {
            for (vni, a, b) in &pairs {
                scope.spawn(move || {
                    let ip = addresses(b)[0].clone();
                    assert_eq!(a.ping(&ip, 3), [true; 3], "VNI {vni}");
                    // To an unknown address: flooded to all hosts.
                    a.run(&[
                        "ping",
                        "-n",
                        "-c",
                        "1",
                        "-W",
                        "1",
                        &format!("10.{vni}.99.99"),
                    ]);
                });
            }
        });
        assert!(
            own.output().contains("ICMP echo request"),
            "the watch works"
        );
        for (device, watch) in watched {
            let seen = watch.output();
            let frames: Vec<_> = seen.lines().filter(|it| it.contains("ethertype")).collect();
            assert!(frames.is_empty(), "{device}: {frames:?}");
        }
    });
}

#[test]
fn a_group_reaches_all_hosts_of_a_segment() {
    beyond_peer(WHY, || {
        for (group, underlay) in [("239.1.1.1", Underlay::V4), ("ff05::1:1", Underlay::V6)] {
            let fleet = Fleet::new(3);
            one_wire(&fleet);
            let pods: Vec<Netns> = (1..=3)
                .map(|host| {
                    let mut conf = fleet.segment(host, 5, underlay);
                    conf["peers"] = Value::Null;
                    conf["group"] = group.into();
                    conf["dev"] = "wire".into();
                    fleet.add(host, "p", &conf)
                })
                .collect();
            let all: Vec<String> = pods.iter().flat_map(addresses).collect();
            let none: [String; 0] = [];
            for pod in &pods {
                assert_eq!(silent(pod, &all), none, "{underlay:?}");
            }
            let shown = fleet.host(1).sh("ip -d link show dev vxlan.5");
            assert!(shown.contains(group), "{shown}");
        }
    });
}

/// All hosts on one segment besides, as multicast is not routed here.
fn one_wire(fleet: &Fleet) {
    fleet
        .sandbox
        .host()
        .sh("ip link add wire type bridge mcast_snooping 0; ip link set wire up");
    for n in 1..=fleet.hosts.len() {
        fleet.sandbox.host().sh(&format!(
            "ip link add w{n} type veth peer name wire netns host{n}
             ip link set w{n} master wire up"
        ));
        fleet.host(n).sh(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/wire/accept_dad
             ip address add 172.21.0.{n}/24 dev wire
             ip address add 2001:db8:ff::{n}/64 dev wire nodad
             ip link set wire up"
        ));
    }
}

/// What the device has learned.
fn learned(host: &Netns) -> Vec<String> {
    let shown = host.sh("bridge fdb show dev vxlan.5 self");
    let lines = shown
        .lines()
        .filter(|it| it.contains(" dst ") && !it.contains("permanent"));
    lines.map(str::to_owned).collect()
}

#[test]
fn learning_is_on_unless_it_is_off() {
    beyond_peer(WHY, || {
        for (on, learning) in [
            (true, Value::Null),
            (true, json!(true)),
            (false, json!(false)),
        ] {
            let fleet = Fleet::new(2);
            let conf = |host| {
                let conf = fleet.segment(host, 5, Underlay::V4);
                conf::with(&conf, json!({"learning": learning}))
            };
            let (a, b) = (fleet.add(1, "a", &conf(1)), fleet.add(2, "b", &conf(2)));
            let none: [String; 0] = [];
            assert_eq!(silent(&a, &addresses(&b)), none);
            assert_eq!(
                !learned(fleet.host(1)).is_empty(),
                on,
                "{:?}",
                learned(fleet.host(1))
            );
        }
    });
}

/// With known pods, their host's bridge answers for them.
#[test]
fn the_device_answers_arp_for_known_pods() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let b = fleet.add(2, "b", &fleet.segment(2, 5, Underlay::V4));
        let mac = b.link("eth0").expect("eth0")["address"].clone();
        let mut conf = fleet.segment(1, 5, Underlay::V4);
        conf["learning"] = false.into();
        conf["peers"] = json!([
            {"vtep": "172.20.2.2", "mac": mac, "subnet": ["10.5.0.20/32", "fd00:5::20/128"]}
        ]);
        let watch = fleet
            .host(2)
            .capture("vxlan.5", "arp or (icmp6 and ip6[40] == 135)");
        let (a, result) = fleet.attached(1, "a", &conf);
        assert_eq!(a.ping("10.5.0.20", 2), [true, true]);
        assert_eq!(a.ping("fd00:5::20", 2), [true, true]);
        let about = |who: &str| {
            let seen = watch.output();
            seen.lines()
                .filter(|it| {
                    it.contains(&format!("who has {who}")) || it.contains(&format!("who-has {who}"))
                })
                .count()
        };
        assert_eq!(
            (about("10.5.0.20"), about("fd00:5::20")),
            (0, 0),
            "{}",
            watch.output()
        );
        // Requests for an unknown address still leave the host.
        a.run(&["ping", "-n", "-c", "1", "-W", "1", "10.5.0.99"]);
        assert!(about("10.5.0.99") > 0, "{}", watch.output());
        let checked = conf::with_prev(&conf, &result);
        fleet.cni(1).check(&checked, &a, "eth0").silent();
    });
}

#[test]
fn members_are_not_masqueraded_and_the_world_is() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(2);
            let change = json!({"ipMasq": true, "isDefaultGateway": true});
            let conf = |host| conf::with(&make(&fleet, host, 5, Underlay::V4), change.clone());
            let (a, b) = (fleet.add(1, "a", &conf(1)), fleet.add(2, "b", &conf(2)));
            let (own, other) = (addresses(&a)[0].clone(), addresses(&b)[0].clone());
            let _server = b.serve(7000);
            assert_eq!(
                a.ask("tcp", &other, 7000),
                format!("{} sees {own}", b.name()),
                "{mode}"
            );
            let world = fleet.sandbox.host().serve(7001);
            assert_eq!(
                a.ask("tcp", "172.20.1.1", 7001),
                "host sees 172.20.1.2",
                "{mode}"
            );
            drop(world);
        }
    });
}

/// The same hosts are gateways of both networks, and forward.
#[test]
fn networks_with_gateways_are_kept_apart() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(2);
            let conf = |host, vni| {
                let conf = make(&fleet, host, vni, Underlay::V4);
                conf::with(&conf, json!({"isDefaultGateway": true}))
            };
            let a = fleet.add(1, "a", &conf(1, 5));
            let others = [
                fleet.add(1, "b", &conf(1, 6)),
                fleet.add(2, "c", &conf(2, 6)),
            ];
            let friend = fleet.add(2, "d", &conf(2, 5));
            let ips: Vec<String> = others.iter().flat_map(addresses).collect();
            let none: [String; 0] = [];
            assert_eq!(answering(&a, &ips), none, "{mode}");
            assert_eq!(silent(&a, &addresses(&friend)), none, "{mode}");
            // It is that rule and nothing else.
            for host in &fleet.hosts {
                host.sh("nft flush chain inet podwire_networks forward");
            }
            assert!(!answering(&a, &ips).is_empty(), "{mode}");
            let _again = fleet.add(1, "e", &conf(1, 5));
            let here = addresses(&others[0]);
            assert_eq!(answering(&a, &here), none, "{mode}");
        }
    });
}

#[test]
fn a_segments_gateway_is_each_hosts_own() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let conf = |host| {
            let conf = fleet.segment(host, 5, Underlay::V4);
            conf::with(&conf, json!({"isDefaultGateway": true}))
        };
        let (a, b) = (fleet.add(1, "a", &conf(1)), fleet.add(2, "b", &conf(2)));
        for pod in [&a, &b] {
            assert_eq!(pod.ping("10.5.0.1", 2), [true, true]);
            assert_eq!(pod.ping("fd00:5::1", 2), [true, true]);
        }
        let none: [String; 0] = [];
        assert_eq!(silent(&a, &addresses(&b)), none);
        let gateways: Vec<String> = [&a, &b]
            .iter()
            .map(|pod| pod.sh("ip neighbour show 10.5.0.1 | cut -d' ' -f5"))
            .collect();
        assert_eq!(gateways[0], gateways[1]);
        // Through its own host, and not the other's.
        let watch = fleet.host(1).capture("vxlan.5", "icmp");
        a.ping("172.20.1.2", 2);
        assert!(!watch.output().contains("172.20.1.2"), "{}", watch.output());
    });
}

/// The other hosts learn from frames where a MAC is, so one must leave when the address comes back
/// on another host, with the same MAC or another.
#[test]
fn an_address_that_moves_to_another_host_of_its_segment_is_reached_at_once() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(3);
        let conf = |host: usize| {
            let mut conf = fleet.segment(host, 5, Underlay::V4);
            conf["ipam"]["ranges"] =
                json!([[{"subnet": "10.5.0.0/16"}], [{"subnet": "fd00:5::/64"}]]);
            conf
        };
        let requesting = |host: usize, ips: [String; 2]| {
            conf::with(&conf(host), json!({"runtimeConfig": {"ips": ips}}))
        };
        let sibling = |host: usize| {
            let ips = [format!("10.5.0.{host}0"), format!("fd00:5::{host}0")];
            fleet.add(host, "sibling", &requesting(host, ips))
        };
        let siblings: Vec<Netns> = (1..=3).map(sibling).collect();
        let ips = || ["10.5.0.99".to_owned(), "fd00:5::99".to_owned()];
        let requested = json!({"runtimeConfig": {"mac": "02:00:00:00:00:99"}});
        for (turn, host) in [1, 2, 1, 3, 2].into_iter().enumerate() {
            let mut conf = requesting(host, ips());
            if turn == 3 {
                conf = conf::with(&conf, requested.clone());
            }
            let (pod, result) = fleet.attached(host, &format!("pod{turn}"), &conf);
            for sibling in &siblings {
                for ip in ips() {
                    let from = sibling.name();
                    assert_eq!(sibling.ping(&ip, 3), [true; 3], "{from} to {ip} on {host}");
                }
            }
            let conf = conf::with_prev(&conf, &result);
            fleet.cni(host).del(&conf, &pod, "eth0").silent();
        }
    });
}

/// Addresses from the plugin cluster: no host knows which the others have handed out, and all hand out
/// the same ranges.
#[test]
fn pods_of_three_hosts_have_distinct_addresses_of_one_range() {
    let fleet = Fleet::new(3);
    let store = fleet.sandbox.dir().join("store.json");
    let dir = |host: usize| fleet.sandbox.dir().join(format!("agent{host}"));
    let agents: Vec<_> = (1..=3)
        .map(|host| fleet.agent(host, &dir(host), &store))
        .collect();
    let conf = |host: usize| {
        let mut conf = fleet.segment(host, 7, Underlay::V4);
        conf["ipam"] = json!({
            "type": "cluster", "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd00:7::/64"}]],
            "agent": dir(host).join("agent.sock"), "dataDir": dir(host).join("ipam"),
        });
        conf
    };
    // As if at random.
    let pods: Vec<_> = [2, 1, 3, 3, 1, 2, 1, 3, 2]
        .iter()
        .enumerate()
        .map(|(n, host)| fleet.add(*host, &format!("p{n}"), &conf(*host)))
        .collect();
    let all: Vec<Vec<String>> = pods.iter().map(addresses).collect();
    for (from, pod) in pods.iter().enumerate() {
        let failed = pod.sh("ip -6 address show dadfailed");
        assert_eq!(failed.trim(), "", "{}", pod.name());
        let others = all.iter().enumerate().filter(|(to, _)| *to != from);
        let others: Vec<String> = others.flat_map(|(_, it)| it.clone()).collect();
        assert_eq!(
            silent(pod, &others),
            Vec::<String>::new(),
            "{}: {all:?}",
            pod.name()
        );
    }
    drop(agents);
}
