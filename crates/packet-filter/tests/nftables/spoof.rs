//! The MAC spoof check.

use packet_filter::{Nftables, SpoofCheck};

use crate::node::{Node, attachment, nft, ruleset};
use sandbox::here::{attempt, run};

fn wanted(container: &str, host_veth: &str, mac: [u8; 6]) -> SpoofCheck {
    SpoofCheck {
        owner: attachment("mynet", container),
        host_veth: host_veth.to_owned(),
        mac,
    }
}

/// As the Go bridge plugin leaves it, from the reference.
const GO_LAYOUT: &str = r#"table bridge nat {
	chain PREROUTING {
		type filter hook prerouting priority -300; policy accept;
		iifname "vp2" jump cni-br-iface-c1-eth0 comment "macspoofchk-c1-eth0"
	}

	chain cni-br-iface-c1-eth0 {
		jump cni-br-iface-c1-eth0-mac comment "macspoofchk-c1-eth0"
	}

	chain cni-br-iface-c1-eth0-mac {
		ether saddr 02:00:00:00:00:01 return comment "macspoofchk-c1-eth0"
		drop comment "macspoofchk-c1-eth0"
	}
}
"#;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

#[test]
fn the_layout_is_that_of_the_go_plugin() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.ensure_spoof_check(&wanted("c1", "vp2", MAC), &|_| false)
        .unwrap();
    let ours = ruleset();
    run("nft flush ruleset");
    nft(GO_LAYOUT);
    assert_eq!(ours, ruleset());
}

#[test]
fn once_more_does_not_jump_twice() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    let one = wanted("c1", "vp2", MAC);
    nat.ensure_spoof_check(&one, &|_| false).unwrap();
    let before = run("nft -a list ruleset");
    nat.ensure_spoof_check(&one, &|_| false).unwrap();
    assert_eq!(run("nft -a list ruleset"), before);
    nat.check_spoof_check(&one).unwrap();

    let other = wanted("c1", "vp3", [2, 0, 0, 0, 0, 9]);
    assert!(nat.check_spoof_check(&other).is_err());
    nat.ensure_spoof_check(&other, &|_| false).unwrap();
    nat.check_spoof_check(&other).unwrap();
    let after = ruleset();
    assert!(
        !after.contains("vp2") && !after.contains("00:01"),
        "{after}"
    );
    assert_eq!(after.matches("iifname").count(), 1);
}

#[test]
fn what_go_wrote_is_removed_also_when_it_jumps_twice() {
    Node::bare();
    let nat = Nftables::open().unwrap();
    nat.ensure_spoof_check(&wanted("c2", "vp9", MAC), &|_| false)
        .unwrap();
    let others = ruleset();
    nft(GO_LAYOUT);
    nft(
        "add rule bridge nat PREROUTING iifname \"vp2\" jump cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\"\n",
    );
    nat.remove_spoof_check(&attachment("mynet", "c1"), &|_| false)
        .unwrap();
    assert_eq!(ruleset(), others);
    nat.remove_spoof_check(&attachment("mynet", "c1"), &|_| false)
        .unwrap();
    nat.remove_spoof_check(&attachment("mynet", "c2"), &|_| false)
        .unwrap();
    assert!(!ruleset().contains("macspoofchk"), "{}", ruleset());
}

#[test]
fn a_frame_with_another_mac_is_dropped() {
    let node = Node::new();
    let pod = node.pod(2);
    let link: serde_json::Value = serde_json::from_str(&run("ip -n p2 -j link show eth0")).unwrap();
    let mut mac = [0; 6];
    for (byte, hex) in mac
        .iter_mut()
        .zip(link[0]["address"].as_str().unwrap().split(':'))
    {
        *byte = u8::from_str_radix(hex, 16).unwrap();
    }
    let nat = Nftables::open().unwrap();
    nat.ensure_spoof_check(&wanted("c1", "vp2", mac), &|_| false)
        .unwrap();
    let ping = || {
        let command = "ip netns exec p2 ping -n -q -c 2 -i 0.1 -W 1 10.22.0.1";
        attempt(command).status.success()
    };
    assert!(ping());
    run("ip -n p2 link set eth0 down");
    run("ip -n p2 link set eth0 address 02:00:00:00:00:77");
    run("ip -n p2 link set eth0 up");
    assert!(!ping(), "the frame got through");
    nat.remove_spoof_check(&attachment("mynet", "c1"), &|_| false)
        .unwrap();
    assert!(ping());
    drop(pod);
}
