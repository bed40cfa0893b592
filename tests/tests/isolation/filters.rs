//! Beside rules of other programs.

use sandbox::{BackEnd, NODE, OUTSIDE, beyond_peer, conf};
use serde_json::json;

use crate::lab::{A, Expected, Lab, OPEN, PUBLISHED, SERVICE, WHY, assert_all};
use crate::modes;

/// A rule of another program that drops stays one.
#[test]
fn what_another_program_drops_stays_dropped() {
    beyond_peer(WHY, || {
        for priority in ["-10", "10"] {
            let mut lab = Lab::new(json!({"isDefaultGateway": true, "gatewayModeIPv4": "nat"}));
            let [_a, b, c] = lab.pods(true);
            lab.host().sh(&format!(
                "nft add table inet foreign
                 nft 'add chain inet foreign forward {{ type filter hook forward priority {priority}; policy drop; }}'"
            ));
            lab.filter_bridged(false);
            let mut out = Expected::default();
            out.port(OUTSIDE, SERVICE, [None; 2]);
            out.port(A, OPEN, [Some("a"); 2]);
            let mut inward = Expected::default();
            inward.port(NODE, PUBLISHED, [None; 2]);
            assert_all(&[(&b, out), (&c, inward)]);
        }
    });
}

/// The firewall plugin lets packets through where the policy of FORWARD is DROP, and the mode
/// still keeps others away.
#[test]
fn a_mode_and_the_firewall_plugin_work_together() {
    beyond_peer(WHY, || {
        for back_end in BackEnd::IPTABLES {
            let keys = json!({"isDefaultGateway": true, "gatewayModeIPv4": "nat",
                "gatewayModeIPv6": "nat"});
            let mut lab = Lab::new(keys.clone());
            let programs = back_end.path(&lab.sandbox);
            lab.host().sh(&format!(
                "export PATH={programs}; iptables -P FORWARD DROP; ip6tables -P FORWARD DROP"
            ));
            let conf = crate::lab::network(keys);
            let (a, result) = lab.serve(&conf, "a");
            let firewall = conf::with(&conf::plugin("firewall"), json!({"backend": "iptables"}));
            let firewall = conf::with_prev(&firewall, &result);
            lab.sandbox
                .cni_with(back_end, "firewall")
                .add(&firewall, &a, "eth0")
                .result();
            let mut out = Expected::default();
            out.port(OUTSIDE, SERVICE, [Some("outside"); 2]);
            out.ping(OUTSIDE, [true; 2]);
            let mut inward = Expected::default();
            inward.port(A, OPEN, [None; 2]);
            assert_all(&[(&a, out), (&lab.outside, inward)]);
        }
    });
}

/// Docker sets the policy of FORWARD to DROP on its nodes.
#[test]
fn the_modes_are_the_same_where_iptables_drops_what_is_forwarded() {
    beyond_peer(WHY, || {
        for back_end in BackEnd::IPTABLES {
            eprintln!("{back_end:?}");
            let keys = json!({"isDefaultGateway": true, "gatewayModeIPv4": "nat",
                "gatewayModeIPv6": "routed", "runtimeConfig": modes::mappings()});
            let mut lab = Lab::with(back_end, keys);
            let before = lab.rules();
            lab.drop_forwarded();
            let dropping = lab.rules();
            let pods = lab.pods(true);
            let routed = modes::Passes {
                published: true,
                ..modes::ROUTED
            };
            modes::assert_passes(&lab, &pods, [modes::NAT, routed], true);
            // Two rules for each family, however many pods.
            let rules = lab.rules();
            assert_eq!(rules.matches("podwire: gateway mode").count(), 4, "{rules}");
            let conf = lab.conf();
            for pod in &pods[..2] {
                lab.cni("bridge").del(&conf, pod, "eth0").silent();
            }
            assert_ne!(before, dropping);
            assert!(!lab.rules().contains("podwire: gateway mode"));
        }
    });
}

/// What is bridged passes FORWARD, too, while `bridge-nf-call-iptables` is on.
#[test]
fn pods_of_an_internal_network_reach_each_other_where_iptables_drops_what_is_forwarded() {
    beyond_peer(WHY, || {
        let keys = json!({"isGateway": true, "internal": true});
        let mut lab = Lab::with(BackEnd::IptablesNft, keys);
        lab.drop_forwarded();
        lab.filter_bridged(true);
        let pods = lab.pods(false);
        modes::assert_passes(&lab, &pods, [modes::INTERNAL; 2], true);
    });
}
