//! Side by side with the Go plugins: their rules, and the plugin itself where
//! Debian's (1.1.1) writes nf_tables.

use std::io::Write;
use std::process::{Command, Stdio};

use packet_filter::{Backend, Protocol, Snat};
use packet_filter::{Nftables, SpoofCheck};

use crate::hostport::{mapping, ports};
use crate::node::{Node, attachment, nft, ruleset};
use crate::traffic::{ask_tcp, serve_tcp};
use sandbox::here::run;

/// The Go portmap plugin's nf_tables layout, from the reference: a port of
/// containers c2 and c3 each.
const GO_HOSTPORTS: &str = r#"table ip cni_hostport {
	comment "CNI portmap plugin"
	chain hostports {
		tcp dport 8080 dnat to 10.22.0.2:80 comment "c2"
		ip daddr 192.0.2.1 tcp dport 8081 dnat to 10.22.0.3:80 comment "c3"
	}

	chain hostip_hostports {
	}

	chain hostports_all {
		jump hostip_hostports
		jump hostports
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump hostports_all
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump hostports_all
	}

	chain masquerading {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.22.0.2 ip daddr 10.22.0.2 masquerade comment "c2"
		ip saddr 127.0.0.1 ip daddr 10.22.0.2 masquerade comment "c2"
	}
}
"#;

#[test]
fn ports_that_go_published_pass_the_check_and_are_unpublished() {
    Node::bare();
    nft(GO_HOSTPORTS);
    let nat = Nftables::open().unwrap();
    let mut wanted = ports(2, &[mapping(Protocol::Tcp, 8080, 80)]);
    wanted.pod_v6 = None;
    nat.check_published(&wanted).unwrap();
    let mut more = wanted.clone();
    more.mappings.push(mapping(Protocol::Tcp, 9999, 80));
    assert!(nat.check_published(&more).is_err());
    let mut other = ports(3, &[mapping(Protocol::Tcp, 8081, 80)]);
    other.pod_v6 = None;
    assert!(
        nat.check_published(&other).is_err(),
        "nothing masquerades for c3"
    );
    other.snat = Snat::Off;
    nat.check_published(&other).unwrap();

    // GC cannot tell whose network c2 is in.
    nat.collect_published("mynet", &[]).unwrap();
    assert_eq!(ruleset(), GO_HOSTPORTS);
    nat.unpublish(&wanted.owner).unwrap();
    let left: String = GO_HOSTPORTS
        .lines()
        .filter(|line| !line.contains("\"c2\""))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(ruleset(), left);
}

#[test]
fn both_publish_on_one_node() {
    let node = Node::new();
    let (one, two) = (node.pod(2), node.pod(4));
    serve_tcp(&one, "0.0.0.0:80", "go");
    serve_tcp(&two, "0.0.0.0:80", "ours");
    nft(GO_HOSTPORTS);
    let nat = Nftables::open().unwrap();
    let wanted = ports(4, &[mapping(Protocol::Tcp, 8082, 80)]);
    nat.publish(&wanted).unwrap();
    let ask = |port| ask_tcp(&node.world, &format!("192.0.2.1:{port}"));
    assert_eq!(ask(8080).unwrap(), "go 192.0.2.9");
    assert_eq!(ask(8082).unwrap(), "ours 192.0.2.9");
    nat.unpublish(&wanted.owner).unwrap();
    assert_eq!(ask(8080).unwrap(), "go 192.0.2.9");
    assert!(ask(8082).is_err());
}

const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "mynet", "type": "bridge",
    "bridge": "cni0", "macspoofchk": true, "ipam": {}}"#;

#[test]
fn the_go_bridge_plugin_removes_our_spoof_check_and_we_its() {
    Node::bare();
    run("ip netns add pod");
    let nat = Nftables::open().unwrap();
    go_bridge("ADD");
    let theirs = ruleset();
    assert!(theirs.contains("macspoofchk-c1-eth0"), "{theirs}");
    let wanted = SpoofCheck {
        owner: attachment("mynet", "c1"),
        host_veth: between(&theirs, "iifname \"", '"').to_owned(),
        mac: mac(between(&theirs, "ether saddr ", ' ')),
    };
    // It is as we want it.
    nat.check_spoof_check(&wanted).unwrap();
    nat.ensure_spoof_check(&wanted, &|_| false).unwrap();
    assert_eq!(ruleset(), theirs);

    nat.remove_spoof_check(&wanted.owner, &|_| false).unwrap();
    assert!(!ruleset().contains("c1-eth0"), "{}", ruleset());
    nat.ensure_spoof_check(&wanted, &|_| false).unwrap();
    assert_eq!(ruleset(), theirs);
    go_bridge("DEL");
    assert!(!ruleset().contains("c1-eth0"), "{}", ruleset());
}

/// Debian's Go bridge plugin, for container c1 in namespace `pod`.
#[expect(
    clippy::disallowed_methods,
    reason = "tests look with other people's tools"
)]
fn go_bridge(verb: &str) {
    let mut plugin = Command::new("/usr/lib/cni/bridge")
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = plugin.stdin.take().unwrap();
    stdin.write_all(BRIDGE.as_bytes()).unwrap();
    drop(stdin);
    let out = plugin.wait_with_output().unwrap();
    assert!(out.status.success(), "{verb}: {out:?}");
}

fn between<'a>(text: &'a str, before: &str, after: char) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap();
    rest.split(after).next().unwrap()
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<_> = text
        .split(':')
        .map(|it| u8::from_str_radix(it, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}
