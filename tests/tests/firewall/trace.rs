//! What `podwire trace` says of packets that the firewall drops.

use std::fmt::Display;

use sandbox::{BackEnd, FilterNode, OUTSIDE, Suite, beyond_peer};
use serde_json::{Value, json};

use crate::firewalld::{Firewalld, automatic};
use crate::{Pod, bridge, each, firewall};

const WHY: &str = "the Go plugins have no such command";
const PORT: u16 = 70;

/// What drops connections of both families from a pod; `None` for those that arrive.
fn dropped(node: &FilterNode, pod: &Pod, [v4, v6]: [impl Display; 2]) -> [Option<String>; 2] {
    [format!("{v4}:{PORT}"), format!("[{v6}]:{PORT}")].map(|to| {
        let podwire = Suite::Ours.dir().join("podwire").display().to_string();
        let path = node.back_end.path(&node.sandbox);
        let (path, from) = (format!("PATH={path}"), pod.netns.path());
        let argv = ["env", &path, &podwire, "trace", "--json", &from, &to];
        let done = node.host().run(&argv);
        let traced: Value = serde_json::from_str(&done.stdout).expect("a trace");
        let why = traced["dropped"].as_str().map(str::to_owned);
        assert_eq!(why.is_none(), traced["arrived"] == true, "{traced:#}");
        why
    })
}

#[track_caller]
fn assert_dropped(node: &FilterNode, pod: &Pod, to: [impl Display; 2], by: &[&str]) {
    for why in dropped(node, pod, to) {
        let why = why.unwrap_or_default();
        assert!(by.iter().all(|it| why.contains(it)), "{by:?}: {why:?}");
    }
}

fn addresses(pod: &Pod) -> [String; 2] {
    ["4", "6"].map(|family| pod.ip(family))
}

#[test]
fn trace_names_the_rule_of_an_ingress_policy() {
    beyond_peer(WHY, || {
        each(|node| {
            let _server = node.outside.serve(PORT);
            let keys = json!({"ingressPolicy": "same-bridge"});
            let policy = firewall(node.back_end, keys);
            let [a, b] = ["a", "b"].map(|name| node.attach(name, 1, &policy));
            let c = node.attach("c", 2, &policy);
            let isolated = firewall(node.back_end, json!({"ingressPolicy": "isolated"}));
            let [d, e] = ["d", "e"].map(|name| node.attach(name, 3, &isolated));
            // By the gateway's MAC, the node would forward it.
            d.netns
                .sh("ip route add 10.3.0.3 via 10.3.0.1; ip route add fd03::3 via fd03::1");
            let [within, from_others] = match node.back_end {
                BackEnd::Nftables => ["inet podwire_firewall forward: "; 2],
                _ => ["CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"],
            };
            let drop = match node.back_end {
                BackEnd::IptablesLegacy => "-j DROP",
                _ => "drop",
            };
            assert_eq!(dropped(&node, &a, addresses(&b)), [None, None]);
            assert_eq!(dropped(&node, &a, OUTSIDE), [None, None]);
            assert_dropped(&node, &a, addresses(&c), &[from_others, drop]);
            assert_dropped(&node, &c, addresses(&a), &[from_others, drop]);
            assert_dropped(&node, &d, addresses(&e), &[within, drop]);
            if node.back_end != BackEnd::Nftables {
                let path = node.back_end.path(&node.sandbox);
                node.host().sh(&format!(
                    "export PATH={path}; for it in iptables ip6tables; do
                     $it -A CNI-ADMIN -i br1 -p tcp --dport {PORT} -j DROP; done"
                ));
                assert_dropped(&node, &a, OUTSIDE, &["CNI-ADMIN", drop]);
            }
        });
    });
}

/// firewalld rejects what comes from pods that are in none of its zones.
#[test]
fn trace_names_the_rule_of_firewalld() {
    beyond_peer(WHY, || {
        let node = Firewalld::new();
        let _server = node.outside.serve(PORT);
        let let_in = node.attach("a", 1, &automatic(json!({})));
        assert_eq!(dropped(&node, &let_in, OUTSIDE), [None, None]);
        let netns = node.sandbox.pod("b");
        let result = node.cni("bridge").add(&bridge(2), &netns, "eth0").result();
        let conf = bridge(2);
        let unknown = Pod {
            netns,
            result,
            conf,
        };
        assert_dropped(&node, &unknown, OUTSIDE, &["firewalld", "reject"]);
    });
}
