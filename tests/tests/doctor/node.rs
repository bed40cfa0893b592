//! Settings of the node, its packet filter, other programs.

use sandbox::{BackEnd, beyond_peer, conf};
use serde_json::{Value, json};

use crate::{Node, WHY, bridge, network};

#[test]
fn forwarding_that_was_switched_off() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("sysctl -qw net.ipv4.ip_forward=0");
        let finding = node.is_found_and_cured("PW001");
        assert_eq!(finding["network"], "net");
        // A network without a gateway does not need it.
        let plain = Node::empty();
        plain.configure(
            "net",
            &network(
                "net",
                &[json!({"type": "bridge", "ipam": conf::host_local_ipam(&["10.1.0.0/24"])})],
            ),
        );
        plain.must(&["add", "net", &plain.blue.path()]);
        plain.host().sh("sysctl -qw net.ipv4.ip_forward=0");
        plain.assert_healthy();
    });
}

#[test]
fn a_policy_that_drops_what_is_forwarded() {
    beyond_peer(WHY, || {
        for program in ["iptables-nft", "iptables-legacy"] {
            let node = Node::new();
            // As Docker leaves it.
            node.host().sh(&format!(
                "{program} -P FORWARD DROP; {program} -N DOCKER-USER
                {program} -A FORWARD -j DOCKER-USER
                {program} -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
                {program} -A FORWARD -i docker0 ! -o docker0 -j ACCEPT"
            ));
            let finding = node.is_found_and_cured("PW002");
            assert!(finding["remedy"].to_string().contains("DOCKER-USER"));
        }
    });
}

/// As in many an /etc/nftables.conf.
#[test]
fn a_chain_of_nftables_that_drops_what_is_forwarded() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh(r#"nft -f - <<END
            table inet filter {
                set blocked { type ipv4_addr; }
                chain forward {
                    type filter hook forward priority filter; policy drop;
                    ct state vmap { established : accept, related : accept, invalid : drop }
                    ip saddr @blocked drop
                    iifname "docker0" accept
                }
            }
END"#);
        let finding = node.is_found_and_cured("PW007");
        assert_eq!(finding["network"], "net");
    });
}

#[test]
fn rules_in_both_variants_of_iptables() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host()
            .sh("iptables-nft -A INPUT -p tcp --dport 22 -j ACCEPT");
        node.assert_healthy();
        node.host()
            .sh("iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT");
        node.finding("PW003");
        node.host().sh("iptables-legacy -F");
        node.assert_healthy();
    });
}

#[test]
fn a_policy_that_needs_br_netfilter() {
    beyond_peer(WHY, || {
        let mut node = Node::empty();
        node.programs = BackEnd::IptablesNft.path(&node.sandbox);
        let firewall =
            json!({"type": "firewall", "backend": "iptables", "ingressPolicy": "isolated"});
        node.configure("net", &network("net", &[bridge(), firewall]));
        node.must(&["add", "net", &node.blue.path()]);
        node.assert_healthy();
        node.host()
            .sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
        let finding = node.is_found_and_cured("PW004");
        assert_eq!(finding["network"], "net");
    });
}

#[test]
fn a_strict_filter_of_the_reverse_path() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip link add second type veth peer name beyond
            ip link set second up; ip link set beyond up; ip addr add 198.51.100.1/24 dev second
            sysctl -qw net.ipv4.conf.second.rp_filter=1 net.ipv4.conf.uplink.rp_filter=0 net.ipv4.conf.all.rp_filter=0");
        node.assert_healthy();
        // With a second way out, answers may come back by the other one.
        node.host()
            .sh("ip route add default via 198.51.100.2 metric 50");
        node.is_found_and_cured("PW005");
    });
}

#[test]
fn advertisements_that_forwarding_has_switched_off() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh(
            "sysctl -qw net.ipv6.conf.uplink.accept_ra=1 net.ipv6.conf.all.forwarding=1
            ip -6 addr add fd99::1/64 dev uplink nodad
            ip -6 route add default via fe80::1 dev uplink proto ra",
        );
        node.is_found_and_cured("PW006");
    });
}

#[test]
fn programs_that_manage_the_interfaces_of_pods() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let index = node.host().sh("cat /sys/class/net/cni0/ifindex");
        let file = format!("/run/NetworkManager/devices/{}", index.trim());
        node.sandbox.write(&file, "[device]\nmanaged=true\n");
        node.finding("PW040");
        node.sandbox.write(&file, "[device]\nmanaged=false\n");
        node.assert_healthy();
        let file = format!("/run/systemd/netif/links/{}", index.trim());
        node.sandbox.write(&file, "ADMIN_STATE=configured\n");
        node.finding("PW041");
        node.sandbox.write(&file, "ADMIN_STATE=unmanaged\n");
        node.assert_healthy();
    });
}

#[test]
fn a_network_that_firewalld_does_not_know() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("mkdir /run/firewalld");
        let finding = node.finding("PW042");
        assert_eq!(finding["network"], "net");
        let firewall = json!({"type": "firewall", "backend": "nftables"});
        node.configure(
            "net",
            &network("net", &[bridge(), crate::portmap(), firewall]),
        );
        node.assert_healthy();
    });
}

#[test]
fn what_is_no_subject_is_an_error() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let done = node.execute(&["podwire", "doctor", "nope"], &Value::Null);
        assert_eq!(done.code, 2, "{done:?}");
        assert!(done.stderr.contains("No such container: nope"), "{done:?}");
        node.must(&["doctor", "net"]);
        // The name of the pod's namespace, as ip netns has it.
        node.must(&["doctor", "blue"]);
        let traced = node.execute(&["podwire", "trace", "blue", "10.1.0.1"], &Value::Null);
        assert_eq!(traced.code, 0, "{traced:?}");
    });
}
