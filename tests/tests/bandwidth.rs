//! bandwidth: how fast a pod receives and sends, what each key does, what CHECK notices, what
//! remains after DEL, GC and a failure (nothing).

use sandbox::{Netns, Sandbox, Snapshot, beyond_peer, conf, container_id};
use serde_json::{Value, json};

/// Receives on a port until `SECONDS` after the first byte. Prints the bits of the first second, and
/// the bits per second of the whole time.
const RECEIVE: &str = r#"
    use strict; use Socket; use IO::Socket::INET; use Time::HiRes 'time';
    my ($port, $seconds) = @ARGV;
    my $listen = IO::Socket::INET->new(LocalPort => $port, Listen => 1, ReuseAddr => 1) or die "listen: $@";
    $| = 1; print "ready\n";
    my $from = $listen->accept; my ($start, $first, $all) = (0, 0, 0);
    while (my $got = sysread($from, my $data, 1 << 16)) {
        $start ||= time; my $at = time - $start;
        $first += $got if $at < 1;
        last if $at > $seconds;
        $all += $got;
    }
    printf "done %d %d\n", $first * 8, $all * 8 / $seconds;"#;

/// Sends to a port until that is closed.
const SEND: &str = r#"
    use strict; use IO::Socket::INET; $SIG{PIPE} = 'IGNORE';
    my $to = IO::Socket::INET->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1], Timeout => 5) or die "connect: $@";
    my $data = 'x' x (1 << 16);
    1 while syswrite($to, $data);"#;

/// Bits per second, and in the first second, that `from` sends to `to` at the address `ip`.
fn transfer(from: &Netns, to: &Netns, ip: &str, seconds: u32) -> (f64, f64) {
    let receiver = to.start(&["perl", "-e", RECEIVE, "5001", &seconds.to_string()]);
    to.wait_until("it listens", |_| receiver.output().contains("ready"));
    let _sender = from.start(&["perl", "-e", SEND, ip, "5001"]);
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(u64::from(seconds) + 10);
    while !receiver.output().contains("done") {
        assert!(std::time::Instant::now() < limit, "{}", receiver.output());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = receiver.output();
    let numbers = output.split("done ").nth(1).expect("numbers");
    let mut numbers = numbers
        .split_whitespace()
        .map(|it| it.parse().expect("bits"));
    let first = numbers.next().expect("the first second");
    (numbers.next().expect("all"), first)
}

const POD: &str = "10.1.0.2";
const NODE: &str = "10.1.0.1";

/// A pod with a link to the node, and the result of its main plugin.
fn linked(sandbox: &Sandbox, name: &str) -> (Netns, Value) {
    let pod = sandbox.pod(name);
    pod.sh("ip link set lo up");
    let conf = conf::ptp(&["10.1.0.0/24", "fd01::/64"]);
    let result = sandbox.cni("ptp").add(&conf, &pod, "eth0").result();
    (pod, result)
}

/// bandwidth behind that plugin.
fn chained(result: &Value, keys: Value) -> Value {
    let conf = conf::with_prev(&conf::plugin("bandwidth"), result);
    conf::with(&conf, keys)
}

fn add(sandbox: &Sandbox, conf: &Value, pod: &Netns) -> Value {
    sandbox.cni("bandwidth").add(conf, pod, "eth0").result()
}

/// A pod with limits: node, pod, configuration, result.
fn limited(keys: Value) -> (Sandbox, Netns, Value, Value) {
    let sandbox = Sandbox::new();
    let (pod, result) = linked(&sandbox, "a");
    let conf = chained(&result, keys);
    let result = add(&sandbox, &conf, &pod);
    (sandbox, pod, conf, result)
}

fn both(rate: u64, burst: u64) -> Value {
    json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst})
}

/// As a runtime passes annotations of a pod: there is no burst in them.
fn annotated(rate: u64) -> Value {
    let limits = json!({"IngressRate": rate, "IngressBurst": u32::MAX,
        "EgressRate": rate, "EgressBurst": u32::MAX});
    json!({"runtimeConfig": {"bandwidth": limits}})
}

/// Names of the ifbs of a node; the machine may have its own.
fn ifbs(host: &Netns) -> Vec<String> {
    let mut links = host.links();
    links.retain(|it| it.starts_with("bwp"));
    links
}

fn host_veth(result: &Value) -> String {
    let name = result["interfaces"][0]["name"].as_str();
    name.expect("a name").to_owned()
}

fn qdiscs(host: &Netns, link: &str) -> Vec<String> {
    let text = host.sh(&format!("tc qdisc show dev {link}"));
    let lines = text.lines().map(|line| line.trim().to_owned());
    lines.collect()
}

#[track_caller]
fn assert_rate((rate, first): (f64, f64), limit: f64) {
    assert!(
        (rate / limit - 1.0).abs() < 0.05,
        "{rate} bits/s of {limit}"
    );
    assert!(
        first < 1.5 * limit,
        "{first} bits in the first second of {limit}"
    );
}

#[test]
fn both_directions_have_the_rate_from_the_first_second_on() {
    const LIMIT: f64 = 20e6;
    beyond_peer("the burst of a runtime lets everything through", || {
        // At the same time, on a node each: the acknowledgements of one would be part of the other.
        std::thread::scope(|scope| {
            let transfers = [true, false].map(|to_pod| {
                scope.spawn(move || {
                    let (sandbox, pod, _, _) = limited(annotated(LIMIT as u64));
                    let host = sandbox.host();
                    let measure = || {
                        if to_pod {
                            transfer(&host, &pod, POD, 10)
                        } else {
                            transfer(&pod, &host, NODE, 10)
                        }
                    };
                    // Other programs can make a transfer slower, but not faster than its limit.
                    let mut attempts = (0..2).map(|_| measure());
                    let in_time = attempts.find(|(rate, _)| *rate > 0.95 * LIMIT);
                    in_time.unwrap_or_else(measure)
                })
            });
            for measured in transfers {
                let measured = measured.join().expect("a transfer");
                println!("{measured:?} bits per second, bits in the first second");
                assert_rate(measured, LIMIT);
            }
        });
    });
}

#[test]
fn an_unlimited_burst_can_have_its_size() {
    let keys = json!({"boundBurst": false});
    let (sandbox, pod, _, _) = limited(conf::with(&annotated(20_000_000), keys));
    let (_, first) = transfer(&sandbox.host(), &pod, POD, 1);
    assert!(first > 100e6, "{first} bits in the first second");
}

#[test]
fn a_requested_burst_has_the_numbers_of_the_go_plugin() {
    let keys = json!({"ingressRate": 1_000_000, "ingressBurst": 2_000_000,
        "egressRate": 3_000_000, "egressBurst": 4_000_000, "fqCodel": false});
    let (sandbox, _pod, _, result) = limited(keys);
    let host = sandbox.host();
    let veth = qdiscs(&host, &host_veth(&result));
    assert_eq!(veth.len(), 2);
    let to_pod = "qdisc tbf 1: root refcnt 3 rate 1Mbit burst 250000b lat 25ms";
    // A veth of another plugin may have more queues.
    assert!(
        veth[0].contains("rate 1Mbit burst 250000b lat 25ms"),
        "{veth:?}, not {to_pod}"
    );
    assert!(veth[1].starts_with("qdisc ingress ffff: parent ffff:fff1"));
    let ifb = result["interfaces"][2]["name"].as_str().expect("an ifb");
    let from_pod = "qdisc tbf 1: root refcnt 2 rate 3Mbit burst 499999b lat 25ms";
    assert_eq!(qdiscs(&host, ifb), [from_pod]);
    let link = host.link(ifb).expect("an ifb");
    assert_eq!(result["interfaces"][2]["mac"], link["address"]);
    assert_eq!(ifb.len(), 15);
    assert_eq!(
        (&link["mtu"], &link["operstate"]),
        (&json!(1500), &json!("UNKNOWN"))
    );
}

#[test]
fn one_direction_is_limited_alone() {
    let (sandbox, _pod, _, result) = limited(json!({"ingressRate": 8000, "ingressBurst": 80}));
    let host = sandbox.host();
    assert_eq!(ifbs(&host), [""; 0]);
    assert_eq!(qdiscs(&host, &host_veth(&result)).len(), 1);
    assert_eq!(
        result["interfaces"].as_array().expect("interfaces").len(),
        2
    );
    let (sandbox, _pod, _, result) = limited(json!({"egressRate": 8000, "egressBurst": 80}));
    let host = sandbox.host();
    assert_eq!(ifbs(&host).len(), 1);
    let veth = qdiscs(&host, &host_veth(&result));
    assert!(!veth.iter().any(|it| it.contains("tbf")), "{veth:?}");
}

#[test]
fn without_limits_the_result_is_returned_and_nothing_changes() {
    for keys in [
        json!({}),
        both(0, 0),
        json!({"runtimeConfig": {"bandwidth": {"ingressRate": 0}}}),
    ] {
        let sandbox = Sandbox::new();
        let (pod, result) = linked(&sandbox, "a");
        let snapshot = sandbox.snapshot();
        let conf = chained(&result, keys);
        assert_eq!(add(&sandbox, &conf, &pod), result);
        snapshot.assert_unchanged();
    }
}

#[test]
fn own_limits_replace_those_of_the_runtime() {
    let own = json!({"egressRate": 8000, "egressBurst": 80});
    let (sandbox, _pod, _, _) = limited(conf::with(&annotated(20_000_000), own));
    let host = sandbox.host();
    let ifb = qdiscs(&host, &ifbs(&host)[0]);
    assert!(ifb[0].contains("rate 8Kbit"), "{ifb:?}");
}

#[test]
fn networks_that_are_not_shaped_are_as_fast_as_ever() {
    beyond_peer("it has no such key", || {
        for (key, networks, is_limited) in [
            ("unshapedSubnets", json!(["10.1.0.1/32", "fd00::/8"]), false),
            ("unshapedSubnets", json!(["192.0.2.0/24"]), true),
            ("shapedSubnets", json!(["10.1.0.0/16", "fd00::/8"]), true),
            ("shapedSubnets", json!(["192.0.2.0/24"]), false),
        ] {
            let (sandbox, pod, _, _) =
                limited(conf::with(&annotated(10_000_000), json!({key: networks})));
            let host = sandbox.host();
            for (rate, first) in [
                transfer(&host, &pod, POD, 2),
                transfer(&pod, &host, NODE, 2),
            ] {
                if is_limited {
                    // A kernel without fq_codel drops many packets at once, and TCP pauses.
                    let between = 6e6..10.5e6;
                    assert!(
                        between.contains(&rate) && first < 15e6,
                        "{key}: {rate}, {first}"
                    );
                } else {
                    assert!(rate > 50e6, "{key}: {rate}");
                }
            }
        }
    });
}

#[test]
fn networks_of_ipv6_are_compared_too() {
    beyond_peer("it has no such key", || {
        // Until three packets of 1,400 bytes are answered, four seconds pass at that rate.
        let ping = [
            "ping", "-6", "-n", "-i", "0.01", "-s", "1400", "-c", "3", "-w", "30", "fd01::1",
        ];
        for (key, limited_for) in [("unshapedSubnets", 0), ("shapedSubnets", 1)] {
            let networks = json!({key: ["fd01::1/128"]});
            let (_sandbox, pod, _, _) = limited(conf::with(&annotated(8_000), networks));
            let done = pod.run(&ping);
            let seconds = done.elapsed.as_secs();
            assert_eq!(seconds >= 1, limited_for == 1, "{key}: {done:?}");
        }
    });
}

#[test]
fn a_second_add_replaces_the_first() {
    beyond_peer("create qdisc: file exists", || {
        let sandbox = Sandbox::new();
        let (pod, result) = linked(&sandbox, "a");
        let host = sandbox.host();
        let veth = host_veth(&result);
        for keys in [
            both(8_000_000, 80_000),
            conf::with(
                &both(4_000_000, 80_000),
                json!({"shapedSubnets": ["10.0.0.0/8"]}),
            ),
            conf::with(&both(2_000_000, 80_000), json!({"fqCodel": false})),
            json!({"ingressRate": 1_000_000, "ingressBurst": 80_000}),
            json!({"egressRate": 1_000_000, "egressBurst": 80_000}),
        ] {
            let conf = chained(&result, keys.clone());
            let done = add(&sandbox, &conf, &pod);
            let limits = qdiscs(&host, &veth);
            let to_pod = limits.iter().filter(|it| it.contains(" 1: root"));
            assert_eq!(to_pod.count(), keys.get("ingressRate").map_or(0, |_| 1));
            let from_pod = keys.get("egressRate").map_or(0, |_| 1);
            assert_eq!(ifbs(&host).len(), from_pod);
            let ingress = limits.iter().filter(|it| it.contains("ingress"));
            assert_eq!(ingress.count(), from_pod, "{limits:?}");
            let checked = conf::with_prev(&conf, &done);
            sandbox
                .cni("bandwidth")
                .check(&checked, &pod, "eth0")
                .silent();
        }
    });
}

#[test]
fn an_add_after_a_del_of_the_limits_alone_succeeds() {
    beyond_peer("create qdisc: file exists", || {
        let (sandbox, pod, conf, _) = limited(both(8_000_000, 80_000));
        sandbox.cni("bandwidth").del(&conf, &pod, "eth0").silent();
        let result = add(&sandbox, &conf, &pod);
        let checked = conf::with_prev(&conf, &result);
        sandbox
            .cni("bandwidth")
            .check(&checked, &pod, "eth0")
            .silent();
    });
}

#[test]
fn an_add_after_one_that_was_killed_before_its_filter_succeeds() {
    beyond_peer("create ingress qdisc: file exists", || {
        let sandbox = Sandbox::new();
        let (pod, result) = linked(&sandbox, "a");
        let veth = host_veth(&result);
        sandbox
            .host()
            .sh(&format!("tc qdisc add dev {veth} ingress"));
        let conf = chained(&result, both(8_000_000, 80_000));
        let checked = conf::with_prev(&conf, &add(&sandbox, &conf, &pod));
        sandbox
            .cni("bandwidth")
            .check(&checked, &pod, "eth0")
            .silent();
    });
}

#[test]
fn gc_deletes_the_ifb_of_an_add_that_was_killed_before_its_alias() {
    beyond_peer("it has no GC", || {
        let (sandbox, _pod, _, result) = limited(both(8_000_000, 80_000));
        let host = sandbox.host();
        let ifb = result["interfaces"][2]["name"].as_str().expect("an ifb");
        host.sh(&format!(
            "ip link set {ifb} down && ip link set {ifb} alias ''
            ip link add bwpother type ifb"
        ));
        let collect = |network: &str| {
            let own = conf::with(&conf::plugin("bandwidth"), json!({"name": network}));
            let none = conf::with_valid(&own, &[]);
            sandbox.cni("bandwidth").gc(&none).silent();
        };
        collect("other");
        assert_eq!(ifbs(&host).len(), 2);
        collect(conf::NETWORK);
        assert_eq!(ifbs(&host), ["bwpother"]);
    });
}

#[test]
fn two_interfaces_of_a_container_have_limits_of_their_own() {
    beyond_peer("adding link: file exists", || {
        let sandbox = Sandbox::new();
        let (pod, first) = linked(&sandbox, "a");
        let ptp = conf::ptp(&["10.1.0.0/24"]);
        let second = sandbox.cni("ptp").add(&ptp, &pod, "net1").result();
        let host = sandbox.host();
        for (result, ifname) in [(&first, "eth0"), (&second, "net1")] {
            let conf = chained(result, both(8_000_000, 80_000));
            sandbox.cni("bandwidth").add(&conf, &pod, ifname).result();
        }
        assert_eq!(ifbs(&host).len(), 2);
        let del = |ifname: &str| {
            let call = sandbox.cni("bandwidth").netns("");
            call.del(&conf::plugin("bandwidth"), &pod, ifname).silent();
        };
        del("eth0");
        let left = host.link(&ifbs(&host)[0]).expect("an ifb");
        let alias = left["ifalias"].as_str().expect("an alias");
        assert!(alias.ends_with("/net1"), "{alias}");
        del("net1");
        assert_eq!(ifbs(&host), [""; 0]);
    });
}

#[test]
fn links_that_cannot_be_limited_are_named() {
    let sandbox = Sandbox::new();
    let _segment = sandbox.segment();
    let pod = sandbox.pod("a");
    let macvlan = conf::macvlan(&["10.1.0.0/24"]);
    let result = sandbox.cni("macvlan").add(&macvlan, &pod, "eth0").result();
    let snapshot = sandbox.snapshot();
    let conf = chained(&result, both(8000, 80));
    let error = sandbox.cni("bandwidth").add(&conf, &pod, "eth0").error();
    let begin = "container interface eth0 has no veth peer: ";
    assert!(error.msg.starts_with(begin), "{}", error.msg);
    if !sandbox::testing_the_peer() {
        assert_eq!(error.msg, format!("{begin}it is no veth but a macvlan"));
    }
    snapshot.assert_unchanged();
}

#[test]
fn the_host_end_must_be_in_the_previous_result() {
    let sandbox = Sandbox::new();
    let (pod, result) = linked(&sandbox, "a");
    let snapshot = sandbox.snapshot();
    let refused = |interfaces: Value| {
        let changed = conf::with(&result, json!({"interfaces": interfaces}));
        let conf = chained(&changed, both(8000, 80));
        sandbox
            .cni("bandwidth")
            .add(&conf, &pod, "eth0")
            .error()
            .msg
    };
    assert_eq!(refused(json!([])), "no interfaces provided");
    assert_eq!(
        refused(json!([{"name": "other"}, {"name": "eth0", "sandbox": pod.path()}])),
        "no veth peer of container interface found in host ns"
    );
    let conf = conf::with(&conf::plugin("bandwidth"), both(8000, 80));
    let error = sandbox.cni("bandwidth").add(&conf, &pod, "eth0").error();
    assert_eq!(error.msg, "must be called as chained plugin");
    let error = sandbox.cni("bandwidth").check(&conf, &pod, "eth0").error();
    assert_eq!(error.msg, "must be called as a chained plugin");
    snapshot.assert_unchanged();
}

#[test]
fn wrong_values_are_refused_before_anything_is_made() {
    beyond_peer("it has other codes, and fewer checks", || {
        let sandbox = Sandbox::new();
        let (pod, result) = linked(&sandbox, "a");
        let snapshot = sandbox.snapshot();
        for (keys, expected) in [
            (
                json!({"ingressRate": 8}),
                "if rate is set, burst must also be set",
            ),
            (
                json!({"egressBurst": 8}),
                "if burst is set, rate must also be set",
            ),
            (
                json!({"egressRate": 8, "egressBurst": 34_359_738_360_u64}),
                "burst cannot be more than 4GB",
            ),
            (
                json!({"egressRate": 7, "egressBurst": 8}),
                "rate must be at least 8",
            ),
            (
                json!({"egressRate": 8, "egressBurst": 7}),
                "burst must be at least 8",
            ),
            (json!({"egressRate": "1M"}), "egressRate"),
            (json!({"ingressBurst": -1}), "ingressBurst"),
            (json!({"shapedSubnets": ["x"]}), "bad subnet \"x\" provided"),
            (json!({"unshapedSubnets": "10.0.0.0/8"}), "unshapedSubnets"),
            (
                json!({"shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["10.0.0.0/8"]}),
                "cannot be both specified",
            ),
            (json!({"boundBurst": 1}), "boundBurst"),
            (json!({"fqCodel": "yes"}), "fqCodel"),
            (
                json!({"runtimeConfig": {"bandwidth": {"ingressRate": 8}}}),
                "if rate is set",
            ),
        ] {
            let conf = chained(&result, keys);
            let error = sandbox.cni("bandwidth").add(&conf, &pod, "eth0").error();
            assert_eq!(error.code, 7, "{error:?}");
            assert!(error.msg.contains(expected), "{error:?}");
        }
        snapshot.assert_unchanged();
    });
}

#[test]
fn versions_without_interfaces_are_refused() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    for version in ["0.1.0", "0.2.0"] {
        let conf = conf::at(&conf::plugin("bandwidth"), version);
        let error = sandbox.cni("bandwidth").add(&conf, &pod, "eth0").error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (1, "incompatible CNI versions")
        );
    }
}

/// What a main plugin leaves on the node beside its pod.
fn snapshot(sandbox: &Sandbox) -> Snapshot {
    let snapshot = sandbox.snapshot().allow_forwarding();
    snapshot.allow_host_local(conf::NETWORK)
}

#[test]
fn del_needs_nothing_and_leaves_nothing() {
    for with_netns in [true, false] {
        let sandbox = Sandbox::new();
        let before = snapshot(&sandbox);
        let (pod, result) = linked(&sandbox, "a");
        add(&sandbox, &chained(&result, both(8000, 80)), &pod);
        let netns = if with_netns {
            pod.path()
        } else {
            String::new()
        };
        if !with_netns {
            sandbox.remove_pod(&pod);
        }
        for _ in 0..2 {
            for plugin in ["bandwidth", "ptp"] {
                let conf = conf::ptp(&["10.1.0.0/24", "fd01::/64"]);
                let conf = conf::with(&conf, json!({"type": plugin}));
                let call = sandbox.cni(plugin).netns(&netns);
                call.del(&conf, &pod, "eth0").silent();
            }
        }
        if with_netns {
            sandbox.remove_pod(&pod);
        }
        before.assert_unchanged();
    }
}

#[test]
fn del_ignores_values_that_add_refuses() {
    beyond_peer("it checks them", || {
        let (sandbox, pod, conf, _) = limited(both(8000, 80));
        let conf = conf::with(&conf, json!({"ingressRate": -1, "egressBurst": 0}));
        sandbox.cni("bandwidth").del(&conf, &pod, "eth0").silent();
        assert_eq!(ifbs(&sandbox.host()), [""; 0]);
    });
}

#[test]
fn gc_deletes_the_ifbs_of_the_network_that_no_valid_attachment_has() {
    beyond_peer("it has no GC", || {
        let sandbox = Sandbox::new();
        let (a, first) = linked(&sandbox, "a");
        let (b, second) = linked(&sandbox, "b");
        add(&sandbox, &chained(&first, both(8000, 80)), &a);
        add(&sandbox, &chained(&second, both(8000, 80)), &b);
        let other = json!({"name": "other"});
        let (c, third) = linked(&sandbox, "c");
        add(
            &sandbox,
            &chained(&third, conf::with(&both(8000, 80), other)),
            &c,
        );
        let host = sandbox.host();
        let own = conf::plugin("bandwidth");
        let valid = conf::with_valid(&own, &[(&container_id(&b), "eth0")]);
        sandbox.cni("bandwidth").gc(&valid).silent();
        assert_eq!(ifbs(&host).len(), 2);
        sandbox
            .cni("bandwidth")
            .gc(&conf::with_valid(&own, &[]))
            .silent();
        let left = host.link(&ifbs(&host)[0]).expect("an ifb");
        let alias = left["ifalias"].as_str().expect("an alias");
        assert!(alias.starts_with("podwire:other/"), "{alias}");
        assert_eq!(ifbs(&host).len(), 1);
    });
}

/// Changes a limit on the host end or on the ifb.
type Tamper = fn(&Netns, &str, &str);

#[test]
fn check_passes_after_add() {
    for keys in [
        both(1_000_000, 80_000),
        annotated(1_000_000),
        both(8_000, 400_000),
    ] {
        let (sandbox, pod, conf, result) = limited(keys);
        let conf = conf::with_prev(&conf, &result);
        sandbox.cni("bandwidth").check(&conf, &pod, "eth0").silent();
    }
}

#[test]
fn check_notices_other_limits() {
    beyond_peer("a qdisc of another kind ends its comparison", || {
        let tampers: [(Tamper, &str); 5] = [
            (
                |host, veth, _| drop(host.sh(&format!("tc qdisc del dev {veth} root"))),
                "Failed to find qdisc",
            ),
            (
                |host, veth, _| {
                    drop(host.sh(&format!("tc qdisc change dev {veth} handle 1: root tbf rate 2mbit burst 10000 latency 25ms")))
                },
                "Rate doesn't match",
            ),
            (
                |host, _, ifb| {
                    drop(host.sh(&format!("tc qdisc change dev {ifb} handle 1: root tbf rate 1mbit burst 10000 latency 50ms")))
                },
                "Limit doesn't match",
            ),
            (
                |host, _, ifb| {
                    drop(host.sh(&format!(
                    "tc qdisc change dev {ifb} handle 1: root tbf rate 1mbit burst 9000 limit 13125"
                )))
                },
                "Buffer doesn't match",
            ),
            (
                |host, _, ifb| drop(host.sh(&format!("ip link del {ifb}"))),
                "Link not found",
            ),
        ];
        for (tamper, expected) in tampers {
            let (sandbox, pod, conf, result) = limited(both(1_000_000, 80_000));
            let host = sandbox.host();
            tamper(&host, &host_veth(&result), &ifbs(&host)[0]);
            let conf = conf::with_prev(&conf, &result);
            let error = sandbox.cni("bandwidth").check(&conf, &pod, "eth0").error();
            assert!(error.msg.contains(expected), "{}", error.msg);
        }
    });
}

#[test]
fn check_notices_that_the_pod_sends_past_its_limit() {
    beyond_peer("it does not look at the filter", || {
        let (sandbox, pod, conf, result) = limited(both(1_000_000, 80_000));
        let veth = host_veth(&result);
        sandbox
            .host()
            .sh(&format!("tc qdisc del dev {veth} ingress"));
        let conf = conf::with_prev(&conf, &result);
        let error = sandbox.cni("bandwidth").check(&conf, &pod, "eth0").error();
        assert!(error.msg.contains("is not redirected"), "{}", error.msg);
    });
}

/// calico#7698: Calico with eBPF.
#[test]
fn a_failure_leaves_nothing_and_other_qdiscs_stay() {
    beyond_peer("its ifb stays", || {
        for (kind, filter) in [
            (
                "ingress",
                "parent ffff: protocol ip u32 match u32 0 0 flowid 1:1",
            ),
            ("clsact", "ingress protocol ip u32 match u32 0 0 flowid 1:1"),
        ] {
            let sandbox = Sandbox::new();
            let (pod, result) = linked(&sandbox, "a");
            let (host, veth) = (sandbox.host(), host_veth(&result));
            host.sh(&format!(
                "tc qdisc add dev {veth} {kind}
                tc filter add dev {veth} {filter}"
            ));
            let snapshot = sandbox.snapshot();
            let conf = chained(&result, both(8000, 80));
            let error = sandbox.cni("bandwidth").add(&conf, &pod, "eth0").error();
            assert_eq!(error.msg, "create ingress qdisc: file exists (17)");
            let why = format!("tc qdisc show dev {veth} ingress");
            assert!(error.details.contains(&why), "{}", error.details);
            assert_eq!(ifbs(&host), [""; 0]);
            let left = qdiscs(&host, &veth);
            assert!(left.iter().any(|it| it.contains(kind)), "{left:?}");
            assert!(!left.iter().any(|it| it.contains("tbf")), "{left:?}");
            snapshot.assert_unchanged();
            // What the pod receives is not affected.
            let conf = chained(&result, json!({"ingressRate": 8000, "ingressBurst": 80}));
            add(&sandbox, &conf, &pod);
        }
    });
}

#[test]
fn status_reports_wrong_values() {
    beyond_peer("it has no STATUS", || {
        let sandbox = Sandbox::new();
        let own = conf::plugin("bandwidth");
        sandbox.cni("bandwidth").status(&own).silent();
        let wrong = conf::with(&own, json!({"ingressRate": 8}));
        assert_eq!(sandbox.cni("bandwidth").status(&wrong).error().code, 7);
    });
}
