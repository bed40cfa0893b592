//! Masquerading.

use netns::NetNs;
use packet_filter::Nftables;
use packet_filter::{Backend, Masquerade};

use crate::node::{Node, attachment, nft, objects, ruleset, valid};
use crate::traffic::{ask_tcp, ask_udp, serve_tcp, serve_udp};
use sandbox::here::run;

fn wanted(network: &str, container: &str, addresses: &[&str]) -> Masquerade {
    Masquerade {
        owner: attachment(network, container),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        random_fully: false,
        except: Vec::new(),
        not_through: None,
    }
}

/// A rule as the Go plugins write it, for container `c1` of network `mynet`.
const GO_RULE: &str = "add rule inet cni_plugins_masquerade masq_checks \
    ip saddr 10.22.0.3 ip daddr != 10.22.0.0/24 masquerade comment ";

fn go_rule(comment: &str) {
    nft(&format!("{GO_RULE}\"{comment}\"\n"));
}

#[test]
fn nft_shows_the_rules_as_they_are_meant() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let addresses = ["10.22.0.2/24", "fd00:22::2/64"];
    nat.masquerade(&wanted("mynet", "c1", &addresses)).unwrap();
    let random = Masquerade {
        random_fully: true,
        ..wanted("other", "c1", &["10.23.4.2/22", "10.24.0.7/32"])
    };
    nat.masquerade(&random).unwrap();
    assert_eq!(
        ruleset(),
        r#"table inet cni_plugins_masquerade {
	comment "Masquerading for plugins from github.com/containernetworking/plugins"
	chain masq_checks {
		comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
		ip saddr 10.22.0.0/24 ip daddr != 10.22.0.0/24 masquerade comment "d23676b4f2d9fe04, net: mynet"
		ip6 saddr fd00:22::/64 ip6 daddr != fd00:22::/64 masquerade comment "d23676b4f2d9fe04, net: mynet"
		ip saddr 10.23.4.0/22 ip daddr != 10.23.4.0/22 masquerade fully-random comment "e25ac3845f8cbe12, net: other"
		ip saddr 10.24.0.7 ip daddr != 10.24.0.7 masquerade fully-random comment "e25ac3845f8cbe12-GO, net: other, if: eth0, id: c1"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		goto masq_checks
	}
}
"#
        .replace("GO", &go_hash())
    );
}

/// sha512("eth0:c1"), by another program.
fn go_hash() -> String {
    std::fs::write("/run/text", "eth0:c1").unwrap();
    run("sha512sum /run/text")[..16].to_owned()
}

#[test]
fn the_world_sees_the_node_and_pods_see_each_other() {
    let node = Node::new();
    let (one, two) = (node.pod(2), node.pod(3));
    for (ns, name) in [(&node.world, "world"), (&two, "two")] {
        serve_tcp(ns, "[::]:80", name);
        serve_udp(ns, "[::]:53", name);
    }
    assert!(
        ask_tcp(&one, "192.0.2.9:80").is_err(),
        "the world has no route"
    );

    let nat = Nftables::open().unwrap();
    let addresses = ["10.22.0.2/24", "fd00:22::2/64"];
    nat.masquerade(&wanted("mynet", "c1", &addresses)).unwrap();
    let ask = |to| ask_tcp(&one, to).unwrap();
    assert_eq!(ask("192.0.2.9:80"), "world ::ffff:192.0.2.1");
    assert_eq!(ask("[2001:db8::9]:80"), "world 2001:db8::1");
    assert_eq!(
        ask_udp(&one, "192.0.2.9:53").unwrap(),
        "world ::ffff:192.0.2.1"
    );
    assert_eq!(
        ask_udp(&one, "[2001:db8::9]:53").unwrap(),
        "world 2001:db8::1"
    );
    assert_eq!(ask("10.22.0.3:80"), "two ::ffff:10.22.0.2");
    assert_eq!(ask("[fd00:22::3]:80"), "two fd00:22::2");
    // The next pod of the network needs nothing more.
    assert_eq!(
        ask_tcp(&two, "192.0.2.9:80").unwrap(),
        "world ::ffff:192.0.2.1"
    );
}

#[test]
fn multicast_keeps_its_source() {
    let node = Node::new();
    let pod = node.pod(2);
    let nat = Nftables::open().unwrap();
    nat.masquerade(&wanted("mynet", "c1", &["10.22.0.2/24"]))
        .unwrap();
    // Multicast is counted where it comes in, and where it would be masqueraded.
    for chain in ["postrouting", "masq_checks"] {
        let table = "inet cni_plugins_masquerade";
        nft(&format!(
            "insert rule {table} {chain} ip daddr 224.0.0.0/4 counter\n"
        ));
    }
    run("ip -n p2 route add 224.0.0.0/4 dev eth0");
    run("ip route add 224.0.0.0/4 dev up0");
    for ns in [&pod, &node.here] {
        assert!(
            ask_udp(ns, "239.1.2.3:5353").is_err(),
            "no answer is possible"
        );
    }
    let packets = |chain: &str| {
        let rules = objects("rule").into_iter();
        let mut counters = rules.filter(|it| it["chain"] == chain);
        counters.find_map(|it| it["expr"][1]["counter"]["packets"].as_u64())
    };
    assert!(packets("postrouting").unwrap() > 0);
    assert_eq!(packets("masq_checks").unwrap(), 0);
}

#[test]
fn once_more_changes_nothing_at_all() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let one = wanted("mynet", "c1", &["10.22.0.2/24", "fd00:22::2/64"]);
    nat.masquerade(&one).unwrap();
    let before = run("nft -a list ruleset");
    nat.masquerade(&one).unwrap();
    nat.masquerade(&wanted("mynet", "c2", &["10.22.0.3/24"]))
        .unwrap();
    // Handles too: nothing was written again.
    assert_eq!(run("nft -a list ruleset"), before);
    nat.check_masquerade(&one).unwrap();
}

#[test]
fn a_changed_configuration_replaces_the_rule() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let plain = wanted("mynet", "c1", &["10.22.0.2/24"]);
    nat.masquerade(&plain).unwrap();
    let random = Masquerade {
        random_fully: true,
        ..plain.clone()
    };
    nat.masquerade(&random).unwrap();
    assert_eq!(ruleset().matches("masquerade fully-random").count(), 1);
    assert_eq!(ruleset().matches("net: mynet").count(), 1);
    nat.check_masquerade(&plain).unwrap();
}

#[test]
fn removal_takes_the_rules_of_the_pod_and_leaves_the_network() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.masquerade(&wanted("mynet", "c1", &["10.22.0.2/24"]))
        .unwrap();
    let before = run("nft -a list ruleset");
    nat.remove_masquerade(&attachment("mynet", "c1"), &[])
        .unwrap();
    assert_eq!(run("nft -a list ruleset"), before);

    let hash = go_hash();
    go_rule(&format!(
        "d23676b4f2d9fe04-{hash}, net: mynet, if: eth0, id: c1"
    ));
    go_rule("d23676b4f2d9fe04-0123456789abcdef, net: mynet, if: eth0, id: c2");
    // An address that is a subnet of its own has a rule of its own.
    nat.masquerade(&wanted("mynet", "c1", &["10.24.0.7/32"]))
        .unwrap();
    assert_eq!(ruleset().matches("id: c1").count(), 2);
    nat.remove_masquerade(&attachment("mynet", "c1"), &[])
        .unwrap();
    assert!(!ruleset().contains("id: c1"), "{}", ruleset());
    assert!(ruleset().contains("id: c2") && ruleset().contains("fe04, net: mynet"));
}

#[test]
fn removal_without_a_table_is_no_error() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.remove_masquerade(&attachment("mynet", "c1"), &[])
        .unwrap();
    nat.collect_masquerade("mynet", &[]).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn collection_keeps_the_valid_and_other_networks() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.masquerade(&wanted("mynet", "c1", &["10.22.0.2/24"]))
        .unwrap();
    nat.masquerade(&wanted("other", "c1", &["10.23.0.2/24"]))
        .unwrap();
    let hash = go_hash();
    go_rule(&format!(
        "d23676b4f2d9fe04-{hash}, net: mynet, if: eth0, id: c1"
    ));
    go_rule("d23676b4f2d9fe04-0123456789abcdef, net: mynet, if: eth0, id: gone");
    go_rule("e25ac3845f8cbe12-0123456789abcdef, net: other, if: eth0, id: c9");

    nat.collect_masquerade("mynet", &[valid("c1")]).unwrap();
    let after = ruleset();
    assert!(
        !after.contains("id: gone") && after.contains("id: c1"),
        "{after}"
    );
    assert!(
        after.contains("fe04, net: mynet") && after.contains("id: c9"),
        "{after}"
    );

    nat.collect_masquerade("mynet", &[]).unwrap();
    let after = ruleset();
    assert!(!after.contains("net: mynet"), "{after}");
    assert!(
        after.contains("e25ac3845f8cbe12, net: other") && after.contains("id: c9"),
        "{after}"
    );
}

#[test]
fn check_names_what_is_missing_and_accepts_go_rules() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let one = wanted("mynet", "c1", &["10.22.0.3/24"]);
    let missing = nat.check_masquerade(&one).unwrap_err().to_string();
    assert_eq!(
        missing,
        "no rule in chain inet cni_plugins_masquerade masq_checks masquerades 10.22.0.3/24 \
         of network mynet"
    );
    nat.masquerade(&one).unwrap();
    nat.check_masquerade(&one).unwrap();
    nft("flush chain inet cni_plugins_masquerade postrouting\n");
    assert!(nat.check_masquerade(&one).is_err());
    // The next ADD repairs it.
    nat.masquerade(&one).unwrap();
    nat.check_masquerade(&one).unwrap();

    nft("flush chain inet cni_plugins_masquerade masq_checks\n");
    assert!(nat.check_masquerade(&one).is_err());
    go_rule(&format!(
        "d23676b4f2d9fe04-{}, net: mynet, if: eth0, id: c1",
        go_hash()
    ));
    nat.check_masquerade(&one).unwrap();
}

#[test]
fn what_go_flushes_and_refills_is_left_alone() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    // As the Go plugins write it on each ADD.
    nft("add table inet cni_plugins_masquerade
        add chain inet cni_plugins_masquerade masq_checks
        add chain inet cni_plugins_masquerade postrouting { type nat hook postrouting priority srcnat ; }
        flush chain inet cni_plugins_masquerade postrouting
        add rule inet cni_plugins_masquerade postrouting ip daddr 224.0.0.0/4 return
        add rule inet cni_plugins_masquerade postrouting ip6 daddr ff00::/8 return
        add rule inet cni_plugins_masquerade postrouting goto masq_checks\n");
    let chain = "nft -a list chain inet cni_plugins_masquerade postrouting";
    let before = run(chain);
    nat.masquerade(&wanted("mynet", "c1", &["10.22.0.2/24"]))
        .unwrap();
    assert_eq!(run(chain), before);
}

#[test]
fn many_at_once_leave_one_rule() {
    Node::bare();
    let here = NetNs::current().unwrap();
    std::thread::scope(|scope| {
        for pod in 2..34 {
            let here = &here;
            scope.spawn(move || {
                let address = format!("10.22.0.{pod}/24");
                let one = wanted("mynet", &format!("c{pod}"), &[&address]);
                let add = || Nftables::open().unwrap().masquerade(&one).unwrap();
                here.enter(add).unwrap();
            });
        }
    });
    assert_eq!(ruleset().matches("net: mynet").count(), 1);
    assert_eq!(ruleset().matches("goto masq_checks").count(), 1);
}
