//! `podwire peers`, and peers that change under traffic.

use std::collections::BTreeSet;

use sandbox::{Finished, beyond_peer};
use serde_json::{Value, json};

use crate::fleet::{Fleet, Underlay, address, addresses, subnets};
use crate::traffic::{MODES, WHY, silent};

const NONE: [String; 0] = [];

#[track_caller]
fn good(done: Finished) -> String {
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

/// The configuration without peers.
fn alone(fleet: &Fleet, host: usize) -> Value {
    let mut conf = fleet.routed(host, 5, Underlay::V4);
    conf["peers"] = json!([]);
    conf
}

fn word(host: usize) -> String {
    let subnets = subnets(5, host).join(",");
    format!("{},{subnets}", address(host, Underlay::V4))
}

#[test]
fn peers_are_set_from_arguments_before_or_after_the_first_pod() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(3);
        let confs: Vec<Value> = (1..=3).map(|n| alone(&fleet, n)).collect();
        let set = |host: usize, others: &[usize]| {
            let words: Vec<String> = others.iter().map(|n| word(*n)).collect();
            let mut line = vec!["peers", "set", "net5"];
            line.extend(words.iter().map(String::as_str));
            good(fleet.podwire(host, &confs[host - 1], &line))
        };
        set(1, &[2, 3]);
        let pods: Vec<_> = (1..=3).map(|n| fleet.add(n, "p", &confs[n - 1])).collect();
        set(2, &[1, 3]);
        set(3, &[1, 2]);
        let all: Vec<String> = pods.iter().flat_map(addresses).collect();
        for pod in &pods {
            assert_eq!(silent(pod, &all), NONE);
        }
        // Another pod changes nothing of it.
        let later = fleet.add(1, "q", &confs[0]);
        assert_eq!(silent(&later, &all), NONE);
    });
}

#[test]
fn list_shows_what_set_takes() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let conf = alone(&fleet, 1);
        let run = |line: &[&str]| fleet.podwire(1, &conf, line);
        assert_eq!(good(run(&["peers", "list", "net5"])), "");
        good(run(&[
            "peers",
            "set",
            "net5",
            &word(2),
            "172.20.3.2,02:00:00:00:00:03,10.5.3.0/24",
        ]));
        let listed = good(run(&["peers", "list", "--json", "net5"]));
        let document: Value = serde_json::from_str(&listed).expect("JSON");
        assert_eq!(
            document["peers"][1],
            json!({"vtep": "172.20.3.2", "mac": "02:00:00:00:00:03", "subnet": "10.5.3.0/24"})
        );
        assert_eq!(document["peers"][0]["subnet"], json!(subnets(5, 2)));
        let file = fleet.sandbox.dir().join("peers.json").display().to_string();
        fleet.sandbox.write(&file, &listed);
        let done = good(run(&["peers", "set", "--json", "net5", &file]));
        let done: Value = serde_json::from_str(&done).expect("JSON");
        assert_eq!(
            (&done["added"], &done["removed"], &done["kept"]),
            (&json!(0), &json!(0), &json!(8))
        );
        // The same in a list of plugins; without peers, it is not taken for "remove all".
        let mut plugin = json!({"type": "vxlan", "peers": document["peers"]});
        let list = fleet
            .sandbox
            .dir()
            .join("net5.conflist")
            .display()
            .to_string();
        let network = |plugin: &Value| json!({"name": "net5", "plugins": [plugin]}).to_string();
        fleet.sandbox.write(&list, network(&plugin));
        let again = good(run(&["peers", "set", "--json", "net5", &list]));
        let again: Value = serde_json::from_str(&again).expect("JSON");
        assert_eq!(again, done);
        plugin["peers"] = Value::Null;
        fleet.sandbox.write(&list, network(&plugin));
        let none = run(&["peers", "set", "net5", &list]);
        assert_eq!(none.code, 1, "{none:?}");
        assert!(none.stderr.contains("no peers in it"), "{none:?}");
        assert_eq!(good(run(&["peers", "list", "--json", "net5"])), listed);
        good(run(&["peers", "add", "net5", "172.20.4.2,10.5.4.0/24"]));
        good(run(&["peers", "remove", "net5", "172.20.3.2"]));
        let shown = good(run(&["peers", "list", "net5"]));
        let vteps: Vec<&str> = shown
            .lines()
            .filter_map(|it| it.split(' ').next())
            .collect();
        assert_eq!(vteps, ["172.20.2.2", "172.20.4.2"]);
        good(run(&["peers", "set", "net5"]));
        assert_eq!(good(run(&["peers", "list", "net5"])), "");
        assert_eq!(fleet.host(1).sh("ip route show dev vxlan.5; ip neigh show dev vxlan.5 nud permanent; bridge fdb show dev vxlan.5"), "");
    });
}

#[test]
fn peers_of_a_segment_are_hosts_and_pods() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let mut conf = fleet.segment(1, 5, Underlay::V4);
        conf["peers"] = json!([]);
        let b = fleet.add(2, "b", &fleet.segment(2, 5, Underlay::V4));
        let run = |line: &[&str]| fleet.podwire(1, &conf, line);
        good(run(&["peers", "add", "net5", "172.20.2.2"]));
        let a = fleet.add(1, "a", &conf);
        assert_eq!(silent(&a, &addresses(&b)), NONE);
        let mac = b.link("eth0").expect("eth0")["address"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let pod = format!("172.20.2.2,{mac},10.5.0.20/32");
        good(run(&["peers", "add", "net5", &pod]));
        let shown = good(run(&["peers", "list", "net5"]));
        assert_eq!(shown.trim(), format!("172.20.2.2 {mac} 10.5.0.20/32"));
        assert_eq!(silent(&a, &addresses(&b)), NONE);
        good(run(&["peers", "remove", "net5", "172.20.2.2"]));
        assert_eq!(good(run(&["peers", "list", "net5"])), "");
    });
}

#[test]
fn mistakes_are_reported_and_change_nothing() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let conf = alone(&fleet, 1);
        let before = fleet.host(1).links();
        for (line, code, expected) in [
            (
                vec!["peers", "set", "net5", "172.20.1.2,10.5.2.0/24"],
                1,
                "peers[0].vtep: 172.20.1.2 is this node",
            ),
            (
                vec!["peers", "set", "net5", "172.20.2.2"],
                1,
                "peers[0].subnet: missing",
            ),
            (
                vec![
                    "peers",
                    "set",
                    "net5",
                    "172.20.2.2,10.5.2.0/24",
                    "172.20.3.2,10.5.2.0/24",
                ],
                1,
                "overlaps",
            ),
            (
                vec!["peers", "set", "net5", "/nonexistent.json"],
                1,
                "read /nonexistent.json",
            ),
            (
                vec!["peers", "add", "net5", "one", "two"],
                2,
                "\"one\" is not a peer",
            ),
            (
                vec!["peers", "add", "net5", "172.20.2.12,172.20.2.8/29"],
                1,
                "peers[0].subnet: 172.20.2.8/29 holds 172.20.2.12, which is the vtep of a peer",
            ),
            (
                vec!["peers", "set", "net5", "172.20.2.2,172.20.1.0/31"],
                1,
                "peers[0].subnet: 172.20.1.0/31 holds 172.20.1.1, which is a router of this node",
            ),
            (vec!["peers", "add", "net5"], 2, "not provided: <PEER>..."),
            (vec!["peers", "list", "net5", "x"], 2, "unexpected argument"),
            (
                vec!["peers", "change", "net5"],
                2,
                "unrecognized subcommand 'change'",
            ),
        ] {
            let done = fleet.podwire(1, &conf, &line);
            assert_eq!(done.code, code, "{done:?}");
            assert!(done.stderr.contains(expected), "{expected}: {done:?}");
        }
        assert_eq!(fleet.host(1).links(), before);
    });
}

#[test]
fn status_names_the_missing_peers() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(3);
        let conf = fleet.routed(1, 5, Underlay::V4);
        let status = || {
            fleet
                .podwire(1, &conf, &["status", "net5", "--verbose"])
                .stdout
        };
        assert!(!status().contains("peer"), "no device yet");
        let pod = fleet.pod(1, "x");
        fleet.cni(1).add(&conf, &pod, "eth0").result();
        let output = status();
        assert!(
            output.contains("the kernel knows 2 of 2 peers\n"),
            "{output}"
        );
        // One of the entries that a peer is made of is enough.
        fleet.host(1).sh("ip route del 10.5.3.0/24 dev vxlan.5");
        let output = status();
        assert!(
            output.contains("the kernel knows 1 of 2 peers\n"),
            "{output}"
        );
        assert!(output.contains("missing peer: 172.20.3.2"), "{output}");
        assert!(!output.contains("missing peer: 172.20.2.2"), "{output}");
    });
}

#[test]
fn a_refusal_of_the_kernel_is_reported_and_blocks_nothing() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(2);
        let conf = alone(&fleet, 1);
        fleet.host(1).sh("ip route add 10.5.9.0/24 via 172.20.1.1");
        let done = fleet.podwire(
            1,
            &conf,
            &["peers", "set", "net5", "172.20.9.2,10.5.9.0/24", &word(2)],
        );
        assert_eq!(done.code, 1, "{done:?}");
        assert!(
            done.stderr
                .contains("add route 10.5.9.0/24 via 10.5.9.0: file exists (17)"),
            "{done:?}"
        );
        let a = fleet.add(1, "a", &conf);
        let b = fleet.add(2, "b", &fleet.routed(2, 5, Underlay::V4));
        assert_eq!(silent(&a, &addresses(&b)), NONE);
        assert!(
            fleet
                .host(1)
                .sh("ip route show 10.5.9.0/24")
                .contains("172.20.1.1")
        );
    });
}

/// If no peer of a family can be set, the pod is not usable in that family: ADD fails.
#[test]
fn an_add_fails_with_the_kernels_words_where_it_refuses_every_peer() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(3);
        let conf = fleet.routed(1, 5, Underlay::V4);
        let host = fleet.host(1);
        host.sh("ip route add 10.5.2.0/24 via 172.20.1.1");
        let pod = fleet.pod(1, "a");
        // One of two is reported on standard error.
        let added = fleet.cni(1).add(&conf, &pod, "eth0");
        added.result();
        let expected =
            "configure the peers of net5: add route 10.5.2.0/24 via 10.5.2.0: file exists (17)";
        assert!(added.stderr().contains(expected), "{added:?}");
        fleet.cni(1).del(&conf, &pod, "eth0").silent();
        host.sh("ip route del 10.5.3.0/24; ip route add 10.5.3.0/24 via 172.20.1.1");
        let error = fleet.cni(1).add(&conf, &pod, "eth0").error();
        assert!(error.msg.contains(expected), "{error:?}");
        assert!(!host.sh("ip -br link").contains("veth"));
        assert_eq!(host.sh("find /run/ipam-h1 -name '10.*'"), "");
    });
}

#[test]
fn traffic_to_a_peer_does_not_notice_that_others_come_and_go() {
    beyond_peer(WHY, || {
        for (mode, make) in MODES {
            let fleet = Fleet::new(2);
            let conf = make(&fleet, 1, 5, Underlay::V4);
            let a = fleet.add(1, "a", &conf);
            let b = fleet.add(2, "b", &make(&fleet, 2, 5, Underlay::V4));
            let ip = addresses(&b)[0].clone();
            assert_eq!(a.ping(&ip, 1), [true], "{mode}");
            let pings = a.start(&["ping", "-n", "-i", "0.005", &ip]);
            let answered = || -> BTreeSet<usize> {
                let output = pings.output();
                let numbers = output.split("icmp_seq=").skip(1);
                let numbers = numbers.filter_map(|rest| rest.split(' ').next()?.parse().ok());
                numbers.collect()
            };
            let stays = match mode {
                "l3" => word(2),
                _ => "172.20.2.2".to_owned(),
            };
            for round in 0..10 {
                let other = match mode {
                    "l3" => format!("172.20.{}.2,10.5.{}.0/24", 100 + round, 100 + round),
                    _ => format!("172.20.{}.2", 100 + round),
                };
                good(fleet.podwire(1, &conf, &["peers", "set", "net5", &stays, &other]));
            }
            let during = answered().len();
            a.wait_until("more are answered", |_| answered().len() >= during + 100);
            let answered = answered();
            // The last ones may be on their way, or half written.
            let sure = answered.last().expect("an answer") - 10;
            let lost: Vec<usize> = (1..sure).filter(|it| !answered.contains(it)).collect();
            assert!(during > 0 && lost.is_empty(), "{mode}: of {sure}: {lost:?}");
        }
    });
}

#[test]
fn five_thousand_peers_are_one_command() {
    beyond_peer(WHY, || {
        let fleet = Fleet::new(1);
        let conf = alone(&fleet, 1);
        let peers: Vec<Value> = (1..=5000_u32)
            .map(|n| {
                let vtep = format!("198.18.{}.{}", n >> 8, n & 255);
                json!({"vtep": vtep, "subnet": format!("10.{}.{}.0/24", 100 + (n >> 8), n & 255)})
            })
            .collect();
        let file = fleet.sandbox.dir().join("many.json").display().to_string();
        fleet
            .sandbox
            .write(&file, json!({"peers": peers}).to_string());
        let set = || good(fleet.podwire(1, &conf, &["peers", "set", "--json", "net5", &file]));
        let done: Value = serde_json::from_str(&set()).expect("JSON");
        assert_eq!(
            (&done["added"], &done["failed"]),
            (&json!(15000), &json!([]))
        );
        let again: Value = serde_json::from_str(&set()).expect("JSON");
        assert_eq!(
            (&again["added"], &again["kept"]),
            (&json!(0), &json!(15000))
        );
        let count = fleet
            .host(1)
            .sh("ip route show dev vxlan.5 | wc -l; bridge fdb show dev vxlan.5 | wc -l");
        assert_eq!(
            count.split_whitespace().collect::<Vec<_>>(),
            ["5000", "5000"]
        );
        good(fleet.podwire(1, &conf, &["peers", "set", "net5"]));
        assert_eq!(
            fleet.host(1).sh("ip route show dev vxlan.5 | wc -l").trim(),
            "0"
        );
    });
}
