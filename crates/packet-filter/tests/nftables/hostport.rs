//! Published ports.

use netns::NetNs;
use packet_filter::{Backend, HostPorts, Mapping, Mark, Notice, Protocol, Snat};
use packet_filter::{Family, Leftovers, Nftables};

use crate::node::{NODE, NODE_V6, Node, attachment, nft, objects, ruleset, valid};
use crate::traffic::{ask_tcp, ask_udp, serve_tcp, serve_udp};
use sandbox::here::run;

/// A mapping of all addresses.
pub fn mapping(protocol: Protocol, host_port: u16, container_port: u16) -> Mapping {
    Mapping {
        host_ip: None,
        host_port,
        container_port,
        protocol,
    }
}

/// The same of one address.
fn mapping_of(ip: &str, protocol: Protocol, host_port: u16, container_port: u16) -> Mapping {
    Mapping {
        host_ip: Some(ip.parse().unwrap()),
        ..mapping(protocol, host_port, container_port)
    }
}

/// The ports of container `c<number>`, whose pod is `number`.
pub fn ports(number: u8, mappings: &[Mapping]) -> HostPorts {
    HostPorts {
        owner: attachment("mynet", &format!("c{number}")),
        pod_v4: Some(format!("10.22.0.{number}/24").parse().unwrap()),
        pod_v6: Some(format!("fd00:22::{number}/64").parse().unwrap()),
        mappings: mappings.to_vec(),
        snat: Snat::Hairpin,
        mark: Mark::Bit(13),
        conditions_v4: Vec::new(),
        conditions_v6: Vec::new(),
    }
}

#[test]
fn nft_shows_the_rules_as_they_are_meant() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let mappings = [
        mapping(Protocol::Tcp, 8080, 80),
        mapping_of("192.0.2.7", Protocol::Udp, 5353, 53),
        mapping_of("0.0.0.0", Protocol::Sctp, 9, 10),
        mapping_of("fd00::7", Protocol::Tcp, 8443, 443),
    ];
    let mut wanted = ports(2, &mappings);
    assert!(nat.publish(&wanted).unwrap().is_empty());
    nat.check_published(&wanted).unwrap();
    wanted.owner = attachment("mynet", "c3");
    wanted.pod_v4 = Some("10.22.0.3/24".parse().unwrap());
    wanted.pod_v6 = None;
    wanted.mappings = vec![mapping(Protocol::Tcp, 81, 80)];
    wanted.snat = Snat::All;
    assert!(nat.publish(&wanted).unwrap().is_empty());
    nat.check_published(&wanted).unwrap();
    // nft prints elements in the order of the kernel's table, which is random.
    let sorted = sort_elements(&ruleset());
    assert_eq!(sorted, RULESET);
}

const RULESET: &str = r#"table ip podwire_hostports {
	comment "published ports of pods"
	map hostip_ports {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 192.0.2.7 . udp . 5353 comment "mynet/c2/eth0" : 10.22.0.2 . 53 }
	}

	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { sctp . 9 comment "mynet/c2/eth0" : 10.22.0.2 . 10, tcp . 8080 comment "mynet/c2/eth0" : 10.22.0.2 . 80, tcp . 81 comment "mynet/c3/eth0" : 10.22.0.3 . 80 }
	}

	set masqueraded {
		type ipv4_addr . ipv4_addr
		elements = { 10.22.0.0 . 10.22.0.2 comment "mynet/c2/eth0", 10.22.0.2 . 10.22.0.2 comment "mynet/c2/eth0", 127.0.0.1 . 10.22.0.2 comment "mynet/c2/eth0" }
	}

	set masqueraded_ports {
		type ipv4_addr . inet_proto . inet_service
		elements = { 10.22.0.3 . tcp . 80 comment "mynet/c3/eth0" }
	}

	map published {
		type mark : mark
		elements = { 0x0b9aa794 comment "mynet/c2/eth0" : 0x9fb427ab, 0x31253364 comment "mynet/c3/eth0" : 0x563c202d }
	}

	map displaced {
		type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service : mark
	}

	chain neighbours {
		ip saddr & 255.255.255.0 . ip daddr @masqueraded masquerade
	}

	chain hostports {
		dnat ip to ip daddr . meta l4proto . th dport map @hostip_ports
		dnat ip to meta l4proto . th dport map @ports
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump hostports
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump hostports
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr . ip daddr @masqueraded masquerade
		ct status dnat ip daddr . meta l4proto . th dport @masqueraded_ports masquerade
		ct status dnat jump neighbours
	}

	chain martians {
		type filter hook prerouting priority raw; policy accept;
		iifname != "lo" ip daddr 127.0.0.0/8 drop
		iifname != "lo" ip saddr 127.0.0.0/8 drop
	}
}
table ip6 podwire_hostports {
	comment "published ports of pods"
	map hostip_ports {
		type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
		elements = { fd00::7 . tcp . 8443 comment "mynet/c2/eth0" : fd00:22::2 . 443 }
	}

	map ports {
		type inet_proto . inet_service : ipv6_addr . inet_service
		elements = { tcp . 8080 comment "mynet/c2/eth0" : fd00:22::2 . 80 }
	}

	set masqueraded {
		type ipv6_addr . ipv6_addr
		elements = { fd00:22:: . fd00:22::2 comment "mynet/c2/eth0", fd00:22::2 . fd00:22::2 comment "mynet/c2/eth0" }
	}

	set masqueraded_ports {
		type ipv6_addr . inet_proto . inet_service
	}

	map published {
		type mark : mark
	}

	map displaced {
		type ipv6_addr . inet_proto . inet_service . ipv6_addr . inet_service : mark
	}

	chain neighbours {
		ip6 saddr & ffff:ffff:ffff:ffff:: . ip6 daddr @masqueraded masquerade
	}

	chain hostports {
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostip_ports
		dnat ip6 to meta l4proto . th dport map @ports
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump hostports
	}

	chain output {
		type nat hook output priority -100; policy accept;
		ip6 daddr != ::1 fib daddr type local jump hostports
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip6 saddr . ip6 daddr @masqueraded masquerade
		ct status dnat ip6 daddr . meta l4proto . th dport @masqueraded_ports masquerade
		ct status dnat jump neighbours
	}
}
"#;

/// Elements of a set in one line, sorted.
fn sort_elements(ruleset: &str) -> String {
    let joined = ruleset.replace(",\n\t\t\t     ", ", ");
    let lines = joined.lines().map(|line| {
        let Some((head, rest)) = line.split_once("elements = { ") else {
            return line.to_owned() + "\n";
        };
        let inner = rest.trim_end_matches(" }");
        let mut elements: Vec<_> = inner.split(", ").collect();
        elements.sort_unstable();
        format!("{head}elements = {{ {} }}\n", elements.join(", "))
    });
    lines.collect()
}

/// Every way to the port, and the source that the pod sees.
#[test]
fn a_port_is_reached_from_everywhere() {
    let node = Node::new();
    let (pod, other) = (node.pod(2), node.pod(3));
    serve_tcp(&pod, "[::]:80", "pod");
    serve_udp(&pod, "0.0.0.0:53", "pod");
    serve_udp(&pod, "[fd00:22::2]:53", "pod");
    let nat = Nftables::open().unwrap();
    let wanted = ports(
        2,
        &[
            mapping(Protocol::Tcp, 8080, 80),
            mapping(Protocol::Udp, 5353, 53),
        ],
    );
    nat.publish(&wanted).unwrap();

    let here = &node.here;
    let (v4, v6) = (NODE.to_owned(), format!("[{NODE_V6}]"));
    let cases: [(&str, &NetNs, &str, &str); 11] = [
        ("the world", &node.world, &v4, "192.0.2.9"),
        ("another pod", &other, &v4, "10.22.0.1"),
        (
            "another pod, by its gateway",
            &other,
            "10.22.0.1",
            "10.22.0.1",
        ),
        // Else the pod would see itself, and answer itself.
        ("the pod itself", &pod, &v4, "10.22.0.1"),
        ("the node", here, &v4, NODE),
        ("the node, by 127.0.0.1", here, "127.0.0.1", "10.22.0.1"),
        ("the world, IPv6", &node.world, &v6, "2001:db8::9"),
        ("another pod, IPv6", &other, &v6, "fd00:22::1"),
        ("the pod itself, IPv6", &pod, &v6, "fd00:22::1"),
        ("the node, IPv6", here, &v6, NODE_V6),
        (
            "the node, by its gateway, IPv6",
            here,
            "[fd00:22::1]",
            "fd00:22::1",
        ),
    ];
    for (from, ns, to, seen) in cases {
        let tcp = ask_tcp(ns, &format!("{to}:8080"));
        let tcp = tcp.map(|it| it.replace("::ffff:", ""));
        assert_eq!(
            tcp.ok().as_deref(),
            Some(&*format!("pod {seen}")),
            "{from}, tcp"
        );
        let udp = ask_udp(ns, &format!("{to}:5353"));
        assert_eq!(
            udp.ok().as_deref(),
            Some(&*format!("pod {seen}")),
            "{from}, udp"
        );
    }
    // Neither the other protocol nor another address than the node's.
    assert!(ask_tcp(&node.world, &format!("{NODE}:5353")).is_err());
    run("ip -n world address add 203.0.113.5/32 dev lo");
    run("ip route add 203.0.113.5 via 192.0.2.9");
    serve_tcp(&node.world, "203.0.113.5:8080", "world");
    nft("add table ip t
        add chain ip t c { type nat hook postrouting priority srcnat ; }
        add rule ip t c oifname up0 masquerade\n");
    assert_eq!(
        ask_tcp(&pod, "203.0.113.5:8080").unwrap(),
        format!("world {NODE}")
    );

    nat.unpublish(&wanted.owner).unwrap();
    assert!(ask_tcp(&node.world, &format!("{NODE}:8080")).is_err());
    assert!(ask_tcp(here, "127.0.0.1:8080").is_err());
}

#[test]
fn an_address_of_the_mapping_comes_before_all_addresses() {
    let node = Node::new();
    run("ip address add 192.0.2.2/24 dev up0");
    let (one, two) = (node.pod(2), node.pod(3));
    serve_tcp(&one, "0.0.0.0:80", "one");
    serve_tcp(&two, "0.0.0.0:80", "two");
    let nat = Nftables::open().unwrap();
    nat.publish(&ports(2, &[mapping(Protocol::Tcp, 8080, 80)]))
        .unwrap();
    let of = mapping_of("192.0.2.2", Protocol::Tcp, 8080, 80);
    assert!(nat.publish(&ports(3, &[of])).unwrap().is_empty());
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "one 192.0.2.9"
    );
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.2:8080").unwrap(),
        "two 192.0.2.9"
    );
    assert_eq!(
        ask_tcp(&node.here, "192.0.2.2:8080").unwrap(),
        "two 192.0.2.1"
    );
}

#[test]
fn snat_is_off_for_hairpin_or_for_all() {
    let node = Node::new();
    let pod = node.pod(2);
    serve_tcp(&pod, "0.0.0.0:80", "pod");
    serve_tcp(&pod, "0.0.0.0:81", "pod");
    let nat = Nftables::open().unwrap();
    let mut wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    wanted.snat = Snat::Off;
    nat.publish(&wanted).unwrap();
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "pod 192.0.2.9"
    );
    assert!(ask_tcp(&pod, "192.0.2.1:8080").is_err());

    nat.unpublish(&wanted.owner).unwrap();
    wanted.snat = Snat::All;
    nat.publish(&wanted).unwrap();
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "pod 10.22.0.1"
    );
    assert_eq!(ask_tcp(&pod, "192.0.2.1:8080").unwrap(), "pod 10.22.0.1");
    assert_eq!(
        ask_tcp(&node.here, "127.0.0.1:8080").unwrap(),
        "pod 10.22.0.1"
    );
    // What is not redirected keeps its source.
    run("ip -n world route add 10.22.0.0/24 via 192.0.2.1");
    assert_eq!(
        ask_tcp(&node.world, "10.22.0.2:80").unwrap(),
        "pod 192.0.2.9"
    );
    assert_eq!(
        ask_tcp(&node.world, "10.22.0.2:81").unwrap(),
        "pod 192.0.2.9"
    );
}

#[test]
fn neighbours_do_not_reach_what_listens_on_localhost() {
    let node = Node::new();
    let pod = node.pod(2);
    serve_tcp(&node.here, "127.0.0.1:9000", "secret");
    run("ip -n p2 route add 127.0.0.0/8 via 10.22.0.1 table 7");
    run("ip -n p2 rule add pref 0 to 127.0.0.0/8 lookup 7");
    run("ip -n p2 rule add pref 1 lookup local");
    run("ip -n p2 rule del pref 0 lookup local");
    run("ip netns exec p2 sysctl -qw net.ipv4.conf.eth0.route_localnet=1");
    // The hole that route_localnet opens, without the rule.
    assert_eq!(
        ask_tcp(&pod, "127.0.0.1:9000").ok().as_deref(),
        Some("secret 10.22.0.2")
    );
    let nat = Nftables::open().unwrap();
    nat.publish(&ports(3, &[mapping(Protocol::Tcp, 8080, 80)]))
        .unwrap();
    assert!(ask_tcp(&pod, "127.0.0.1:9000").is_err());
    assert_eq!(
        ask_tcp(&node.here, "127.0.0.1:9000").unwrap(),
        "secret 127.0.0.1"
    );
}

#[test]
fn the_newest_wins_and_the_loser_does_not_remove_it() {
    let node = Node::new();
    let (one, two) = (node.pod(2), node.pod(3));
    serve_tcp(&one, "0.0.0.0:80", "one");
    serve_tcp(&two, "0.0.0.0:80", "two");
    let nat = Nftables::open().unwrap();
    let web = mapping(Protocol::Tcp, 8080, 80);
    let own = mapping(Protocol::Tcp, 81, 80);
    let (old, new) = (ports(2, &[web, own]), ports(3, &[web]));
    nat.publish(&old).unwrap();
    let taken = nat.publish(&new).unwrap();
    let expected = Notice {
        mapping: web,
        from: "mynet/c2/eth0".into(),
    };
    // Once, although it was so in both families.
    assert_eq!(taken, [expected]);
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "two 192.0.2.9"
    );
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:81").unwrap(),
        "one 192.0.2.9"
    );
    let missing = nat.check_published(&old).unwrap_err().to_string();
    assert!(missing.contains("belongs to mynet/c3/eth0"), "{missing}");

    nat.unpublish(&old.owner).unwrap();
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "two 192.0.2.9"
    );
    assert!(ask_tcp(&node.world, "192.0.2.1:81").is_err());
    nat.check_published(&new).unwrap();
}

#[test]
fn a_repeated_add_changes_nothing_and_takes_no_port() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let mut wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    nat.publish(&wanted).unwrap();
    let before = run("nft -a list ruleset");
    assert!(nat.publish(&wanted).unwrap().is_empty());
    assert_eq!(run("nft -a list ruleset"), before);
    // A new address of the same attachment.
    wanted.pod_v4 = Some("10.22.0.99/24".parse().unwrap());
    assert!(nat.publish(&wanted).unwrap().is_empty());
    assert!(ruleset().contains(": 10.22.0.99 . 80"));
    assert!(!ruleset().contains(": 10.22.0.2 . 80"));
}

#[test]
fn nothing_to_publish_touches_nothing() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.publish(&ports(2, &[])).unwrap();
    nat.check_published(&ports(2, &[])).unwrap();
    nat.unpublish(&attachment("mynet", "c2")).unwrap();
    nat.collect_published("mynet", &[]).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn the_first_mapping_of_a_port_counts() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let twice = [mapping(Protocol::Tcp, 80, 1), mapping(Protocol::Tcp, 80, 2)];
    nat.publish(&ports(2, &twice)).unwrap();
    assert!(ruleset().contains(": 10.22.0.2 . 1 }"), "{}", ruleset());
    nat.check_published(&ports(2, &twice)).unwrap();
}

#[test]
fn collection_keeps_the_valid_and_other_networks() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    for number in 2..5 {
        let port = 8000 + u16::from(number);
        nat.publish(&ports(number, &[mapping(Protocol::Tcp, port, 80)]))
            .unwrap();
    }
    let mut other = ports(5, &[mapping(Protocol::Tcp, 8005, 80)]);
    other.owner.network = "mynet2".into();
    nat.publish(&other).unwrap();
    nat.collect_published("mynet", &[valid("c3")]).unwrap();
    let left = ruleset();
    assert!(
        left.contains("tcp . 8003") && left.contains("tcp . 8005"),
        "{left}"
    );
    assert!(!left.contains("/c2/") && !left.contains("/c4/"), "{left}");
}

#[test]
fn long_names_are_found_again() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let mut wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    wanted.owner = attachment(&"n".repeat(80), &"c".repeat(64));
    nat.publish(&wanted).unwrap();
    nat.check_published(&wanted).unwrap();
    let mut valid = valid(&"c".repeat(64));
    nat.collect_published(&"n".repeat(80), std::slice::from_ref(&valid))
        .unwrap();
    nat.check_published(&wanted).unwrap();
    valid.ifname = "eth1".into();
    nat.collect_published(&"n".repeat(79), &[]).unwrap();
    nat.check_published(&wanted).unwrap();
    nat.collect_published(&"n".repeat(80), &[valid]).unwrap();
    assert!(!ruleset().contains("elements"), "{}", ruleset());
}

#[test]
fn check_names_what_is_missing_and_the_next_add_repairs_it() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    let missing = |nat: &Nftables| nat.check_published(&wanted).unwrap_err().to_string();
    assert_eq!(
        missing(&nat),
        "published port is missing: no tcp . 8080 of ip podwire_hostports ports"
    );
    nat.publish(&wanted).unwrap();
    nft("delete element ip podwire_hostports ports { tcp . 8080 }\n");
    assert!(missing(&nat).contains("missing"));
    nat.publish(&wanted).unwrap();
    nft("flush chain ip6 podwire_hostports prerouting\n");
    assert_eq!(missing(&nat), "table ip6 podwire_hostports is not complete");
    nat.publish(&wanted).unwrap();
    nat.check_published(&wanted).unwrap();
    nft("flush ruleset\n");
    nat.publish(&wanted).unwrap();
    nat.check_published(&wanted).unwrap();
}

#[test]
fn conditions_are_the_attachments_own() {
    let node = Node::new();
    let (one, two, three) = (node.pod(2), node.pod(3), node.pod(4));
    serve_tcp(&one, "0.0.0.0:80", "one");
    serve_tcp(&two, "0.0.0.0:80", "two");
    serve_tcp(&three, "0.0.0.0:80", "three");
    let nat = Nftables::open().unwrap();
    let web = mapping(Protocol::Tcp, 8080, 80);
    let mut first = ports(2, &[web]);
    first.pod_v6 = None;
    first.conditions_v4 = ["ip", "saddr", "192.0.2.0/24"].map(String::from).to_vec();
    let mut second = ports(3, &[web]);
    second.pod_v6 = None;
    second.conditions_v4 = ["iifname", "cni0"].map(String::from).to_vec();
    nat.publish(&first).unwrap();
    nat.publish(&second).unwrap();
    nat.publish(&ports(4, &[web])).unwrap();
    for one in [&first, &second] {
        nat.publish(one).unwrap();
        nat.check_published(one).unwrap();
    }
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "one 192.0.2.9"
    );
    assert_eq!(ask_tcp(&one, "192.0.2.1:8080").unwrap(), "two 10.22.0.1");
    assert_eq!(
        ask_tcp(&node.here, "127.0.0.1:8080").unwrap(),
        "three 10.22.0.1"
    );

    nat.unpublish(&first.owner).unwrap();
    assert!(nat.check_published(&first).is_err());
    assert_eq!(
        ask_tcp(&node.world, "192.0.2.1:8080").unwrap(),
        "three 192.0.2.9"
    );
    nat.check_published(&second).unwrap();
    nat.collect_published("mynet", &[valid("c4")]).unwrap();
    assert!(!ruleset().contains("/c3/"), "{}", ruleset());
    let jumps = |it: &serde_json::Value| it["table"] == "podwire_hostports_conditional";
    assert_eq!(objects("rule").into_iter().filter(jumps).count(), 0);
}

#[test]
fn a_condition_is_no_command() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let mut wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    wanted.conditions_v4 = vec!["accept\nflush ruleset".into()];
    let error = cni::Error::from_chain(&nat.publish(&wanted).unwrap_err());
    assert_eq!(error.code, 7);
    wanted.conditions_v4 = vec!["no such match".into()];
    let error = format!("{:#}", nat.publish(&wanted).unwrap_err());
    assert!(
        error.starts_with("publish ports of mynet/c2/eth0 with conditions: nft: "),
        "{error}"
    );
}

#[test]
fn a_pod_may_have_thousands_of_ports() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let all: Vec<_> = (1..=5000)
        .map(|port| mapping(Protocol::Tcp, port, port))
        .collect();
    let wanted = ports(2, &all);
    nat.publish(&wanted).unwrap();
    nat.check_published(&wanted).unwrap();
    assert_eq!(ruleset().matches(" : 10.22.0.2 . ").count(), 5000);
    // All of them are taken over at once, each with a notice.
    let taken = nat.publish(&ports(3, &all)).unwrap();
    assert_eq!(taken.len(), 5000);
    nat.unpublish(&wanted.owner).unwrap();
    nat.check_published(&ports(3, &all)).unwrap();
    nat.unpublish(&attachment("mynet", "c3")).unwrap();
    assert!(!ruleset().contains("elements"));
}

#[test]
fn neighbours_are_masqueraded_whatever_bridged_frames_pass_at_add() {
    Node::bare();
    let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let nat = Nftables::open().unwrap();
    let wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    for setting in ["1", "0"] {
        // Absent without the module br_netfilter.
        let _ = std::fs::write(path, setting);
        nat.publish(&wanted).unwrap();
        assert!(ruleset().contains("10.22.0.0 . 10.22.0.2"));
        assert!(ruleset().contains("fd00:22:: . fd00:22::2"));
        nat.check_published(&wanted).unwrap();
        nat.unpublish(&wanted.owner).unwrap();
    }
}

fn is_usable(family: Family) -> bool {
    Nftables::find_usable(family).unwrap().is_some()
}

#[test]
fn a_probe_finds_nf_tables_and_leaves_nothing() {
    Node::bare();
    for family in [Family::Ip, Family::Ip6, Family::Inet, Family::Bridge] {
        assert!(is_usable(family), "{family}");
    }
    assert_eq!(ruleset(), "");
    Nftables::open()
        .unwrap()
        .publish(&ports(2, &[mapping(Protocol::Tcp, 1, 1)]))
        .unwrap();
    assert!(is_usable(Family::Ip));
}

/// Elements of all sets that have a comment of `owner`.
fn owned(owner: &str) -> usize {
    let all = run("nft list ruleset");
    all.matches(&format!("comment \"mynet/{owner}/eth0\""))
        .count()
}

/// Pods c2 and c3 with two ports each.
fn two_pods() -> [HostPorts; 2] {
    let nat = Nftables::open().unwrap();
    [2, 3].map(|number| {
        let port = 8000 + u16::from(number) * 10;
        let mappings = [
            mapping(Protocol::Tcp, port, 80),
            mapping_of("192.0.2.7", Protocol::Udp, port, 53),
        ];
        let wanted = ports(number, &mappings);
        nat.publish(&wanted).unwrap();
        wanted
    })
}

#[test]
fn unpublish_with_known_ports_removes_everything() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let [gone, kept] = two_pods();
    let before = owned("c3");
    assert_eq!(owned("c2"), before);
    Leftovers::unpublish(&gone.owner, Some(&gone)).unwrap();
    assert_eq!((owned("c2"), owned("c3")), (0, before));
    nat.check_published(&kept).unwrap();
}

#[test]
fn known_ports_may_differ_from_the_published_ones() {
    let changes: [fn(&mut HostPorts); 6] = [
        |it| it.snat = Snat::Off,
        |it| it.mappings.truncate(1),
        |it| it.mappings.push(mapping(Protocol::Sctp, 9000, 80)),
        |it| it.mappings.clear(),
        // Of another pod, or of one that got another address.
        |it| it.pod_v4 = Some("10.22.0.3/24".parse().unwrap()),
        |it| (it.pod_v4, it.pod_v6) = (None, None),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        Node::bare();
        let nat = Nftables::open().unwrap();
        let [gone, kept] = two_pods();
        let (before, mut known) = (owned("c3"), gone.clone());
        change(&mut known);
        Leftovers::unpublish(&gone.owner, Some(&known)).unwrap();
        assert_eq!((owned("c2"), owned("c3")), (0, before), "{number}");
        nat.check_published(&kept).unwrap();
    }
}

/// What a container publishes that is added again and again, though a runtime must not do so.
fn variants() -> [HostPorts; 5] {
    let base = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    let with = |change: fn(&mut HostPorts)| {
        let mut other = base.clone();
        change(&mut other);
        other
    };
    [
        with(|it| it.mappings = vec![mapping(Protocol::Udp, 9090, 90)]),
        with(|it| it.mappings.push(mapping(Protocol::Udp, 9090, 90))),
        with(|it| it.pod_v4 = None),
        with(|it| {
            it.pod_v4 = Some("10.22.0.7/24".parse().unwrap());
            it.snat = Snat::All;
        }),
        base,
    ]
}

/// Makes it look as if an older version had published everything: it wrote no records.
fn forget_records() {
    for family in ["ip", "ip6"] {
        nft(&format!(
            "add table {family} podwire_hostports
             add map {family} podwire_hostports published {{ type mark : mark ; }}
             delete map {family} podwire_hostports published"
        ));
    }
}

#[test]
fn whatever_several_adds_published_is_removed_whichever_del_names() {
    for is_older in [false, true] {
        for first in &variants() {
            for second in &variants() {
                // With nothing in common but the owner, an older version's ADD leaves no trace.
                if is_older && first.mappings[0] != second.mappings[0] {
                    continue;
                }
                for known in [first, second] {
                    Node::bare();
                    let nat = Nftables::open().unwrap();
                    nat.publish(first).unwrap();
                    if is_older {
                        forget_records();
                    }
                    nat.publish(second).unwrap();
                    Leftovers::unpublish(&known.owner, Some(known)).unwrap();
                    assert_eq!(owned("c2"), 0, "{first:?}, {second:?}\n{}", ruleset());
                }
            }
        }
    }
}

#[test]
fn known_ports_that_another_pod_has_now_stay_its_own() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let all = [mapping(Protocol::Tcp, 8080, 80)];
    let (old, new) = (ports(2, &all), ports(3, &all));
    nat.publish(&old).unwrap();
    nat.publish(&new).unwrap();
    Leftovers::unpublish(&old.owner, Some(&old)).unwrap();
    assert_eq!(owned("c2"), 0, "displaced ones included");
    nat.check_published(&new).unwrap();
    // And the other way round: the port goes back.
    nat.publish(&old).unwrap();
    Leftovers::unpublish(&old.owner, Some(&old)).unwrap();
    assert_eq!(owned("c2"), 0);
    nat.check_published(&new).unwrap();
}

#[test]
fn where_the_record_names_the_known_ports_no_other_is_listed() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    let foreign = "add element ip podwire_hostports ports \
                   { tcp . 1 comment \"mynet/c2/eth0\" : 10.22.0.2 . 1 }";
    for (is_older, left) in [(false, 1), (true, 0)] {
        nat.publish(&wanted).unwrap();
        // No ADD ever wrote this one: only a listing finds it.
        nft(foreign);
        if is_older {
            forget_records();
        }
        Leftovers::unpublish(&wanted.owner, Some(&wanted)).unwrap();
        assert_eq!(owned("c2"), left, "{is_older}");
    }
}
