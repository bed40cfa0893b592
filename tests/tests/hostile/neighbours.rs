//! What machines on the node's wires, and pods on its bridges, send that should not exist.

use sandbox::{BackEnd, FilterNode, NODE, Netns, beyond_peer, conf};
use serde_json::json;

/// Counts what arrives at the node from 127.0.0.0/8 and not through `lo`, after everything
/// that could drop it.
const COUNT: &str = "nft -f - <<RULES
    table ip seen {
        chain input {
            type filter hook input priority 1000
            ip saddr 127.0.0.0/8 iifname != \"lo\" counter
        }
    }
RULES";

fn seen(node: &FilterNode) -> bool {
    let listed = node.host().sh("nft list chain ip seen input");
    !listed.contains("counter packets 0 bytes 0")
}

/// Sends three packets to `to` from 127.0.0.2.
fn send(from: &Netns, to: &str) {
    from.sh(&format!(
        "ip addr add 127.0.0.2/32 dev lo 2>/dev/null || :
         ip link set lo up
         echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
         ping -q -c 3 -i 0.1 -W 1 -I 127.0.0.2 {to} || :"
    ));
}

#[test]
fn what_comes_from_127_0_0_0_does_not_reach_the_node() {
    beyond_peer("plugins#729: route_localnet without a filter", || {
        FilterNode::each(&BackEnd::ALL, |node| {
            let pod = node.sandbox.pod("a");
            let bridge = conf::with(
                &conf::bridge(&["10.1.0.0/24"]),
                json!({"isDefaultGateway": true, "hairpinMode": true}),
            );
            let result = node.cni("bridge").add(&bridge, &pod, "eth0").result();
            let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
            let portmap = conf::with(
                &conf::plugin("portmap"),
                json!({"backend": node.back_end.name(), "runtimeConfig": {"portMappings": mappings}}),
            );
            let portmap = conf::with_prev(&portmap, &result);
            node.cni("portmap").add(&portmap, &pod, "eth0").result();
            // As kube-proxy and many an administrator leave a node.
            node.host().sh("for it in all uplink cni0; do
                     echo 0 >/proc/sys/net/ipv4/conf/$it/rp_filter
                     echo 1 >/proc/sys/net/ipv4/conf/$it/route_localnet
                 done");
            node.host().sh(COUNT);
            let attacks = [(&pod, "10.1.0.1"), (&node.outside, NODE[0])];
            for (from, to) in attacks {
                send(from, to);
                assert!(!seen(&node), "{:?}: to {to}", node.back_end);
            }
            // 127.0.0.1 itself goes on to reach the pod.
            let _server = pod.serve(80);
            assert_eq!(node.host().ask("tcp", "127.0.0.1", 8080), "a sees 10.1.0.1");
            // It is the rule that keeps them out.
            node.host()
                .sh("nft flush chain ip podwire_hostports martians");
            for (from, to) in attacks {
                node.host().sh("nft delete table ip seen");
                node.host().sh(COUNT);
                send(from, to);
                assert!(seen(&node), "{:?}: to {to}", node.back_end);
            }
        });
    });
}
