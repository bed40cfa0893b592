//! Beside other programs' rules: kube-proxy's, and those of the Go plugin.

use sandbox::{BackEnd, NODE, Netns, Suite, conf};
use serde_json::json;

use crate::{HTTP, Node, each, port, publishing, tcp};

/// What kube-proxy makes in its mode iptables, cut down to one Service 10.96.0.10:8080 on the
/// pod, its node port 30080, and the marking of what is to be masqueraded.
const KUBE_PROXY: &str = r#"
    for chain in KUBE-SERVICES KUBE-POSTROUTING KUBE-NODEPORTS KUBE-MARK-MASQ KUBE-SEP; do $IPTABLES -t nat -N $chain; done
    $IPTABLES -t nat -I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
    $IPTABLES -t nat -I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
    $IPTABLES -t nat -I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
    $IPTABLES -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
    $IPTABLES -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    $IPTABLES -t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
    $IPTABLES -t nat -A KUBE-POSTROUTING -j MASQUERADE
    $IPTABLES -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 8080 -j KUBE-SEP
    $IPTABLES -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
    $IPTABLES -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-MARK-MASQ
    $IPTABLES -t nat -A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-SEP
    $IPTABLES -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination 10.1.0.2:80"#;

fn kube_proxy(node: &Node) {
    let program = match node.back_end {
        BackEnd::IptablesLegacy => "iptables-legacy",
        _ => "iptables-nft",
    };
    node.host().sh(&format!("IPTABLES={program}\n{KUBE_PROXY}"));
}

fn kube_rules(node: &Node) -> Vec<String> {
    let rules = node.host().rules();
    let saved = rules
        .lines()
        .filter(|line| line.starts_with("-A") && line.contains("KUBE"));
    saved.map(str::to_owned).collect()
}

#[test]
fn services_of_kube_proxy_and_ports_of_pods_live_side_by_side() {
    each(&BackEnd::ALL, |node| {
        let service = node.pod("service");
        let _service = service.netns.serve(80);
        kube_proxy(node);
        let kube = kube_rules(node);
        // The same port as the Service's.
        let pod = node.published("a", &tcp());
        let _server = pod.netns.serve(80);
        node.outside.sh("ip route add 10.96.0.0/16 via 192.0.2.1");
        let ask = |from: &Netns, to: &str, number: u16| from.ask("tcp", to, number);
        assert_eq!(
            ask(&node.outside, "10.96.0.10", 8080),
            "service sees 192.0.2.9"
        );
        assert_eq!(ask(&node.outside, NODE[0], 30080), "service sees 10.1.0.1");
        assert_eq!(ask(&node.outside, NODE[0], HTTP), "a sees 192.0.2.9");
        assert!(ask(&pod.netns, "10.96.0.10", 8080).starts_with("service sees"));
        assert_eq!(ask(&pod.netns, NODE[0], HTTP), "a sees 10.1.0.1");
        assert_eq!(ask(&node.host(), "127.0.0.1", HTTP), "a sees 10.1.0.1");
        assert_eq!(
            kube_rules(node),
            kube,
            "kube-proxy's rules, and their place"
        );
        node.unpublish(&pod, &tcp());
        assert_eq!(kube_rules(node), kube);
        assert_eq!(ask(&node.outside, NODE[0], 30080), "service sees 10.1.0.1");
    });
}

#[test]
fn kube_proxy_may_do_the_masquerading() {
    each(&BackEnd::IPTABLES, |node| {
        kube_proxy(node);
        // For IPv6, a chain of this name as well.
        let six = match node.back_end {
            BackEnd::IptablesLegacy => "ip6tables-legacy",
            _ => "ip6tables-nft",
        };
        node.host().sh(&format!("{six} -t nat -N KUBE-MARK-MASQ"));
        let pod = node.pod("a");
        let conf = conf::with(
            &node.conf(),
            json!({"backend": null, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
        );
        node.publish_with(&conf, &pod, &tcp()).result();
        let _server = pod.netns.serve(80);
        assert_eq!(pod.netns.ask("tcp", NODE[0], HTTP), "a sees 10.1.0.1");
        assert_eq!(node.outside.ask("tcp", NODE[0], HTTP), "a sees 192.0.2.9");
        let rules = node.host().rules();
        assert!(
            !rules.contains("CNI-HOSTPORT-SETMARK") && rules.contains("KUBE-MARK-MASQ"),
            "{rules}"
        );
    });
}

#[test]
fn the_iptables_rules_are_the_go_plugin_s() {
    for back_end in BackEnd::IPTABLES {
        let rules = |suite: Suite| {
            let node = Node::new(back_end);
            let pod = node.pod("a");
            let mut at = port(8443, 443, "tcp");
            at["hostIP"] = "192.0.2.1".into();
            let mappings = [port(8080, 80, "tcp"), at, port(5353, 53, "udp")];
            let conf = conf::at(&publishing(&node.conf(), &mappings), "1.0.0");
            let conf = conf::with_prev(&conf, &conf::at(&pod.result, "1.0.0"));
            node.portmap()
                .suite(suite)
                .add(&conf, &pod.netns, "eth0")
                .result();
            let rules = node.host().rules();
            let saved = rules.lines().filter(|line| line.starts_with("-A "));
            saved.map(str::to_owned).collect::<Vec<_>>()
        };
        let (ours, theirs) = (rules(Suite::Ours), rules(Suite::Peer));
        assert!(theirs.len() > 20, "{theirs:?}");
        assert_eq!(ours, theirs, "{back_end:?}");
    }
}
