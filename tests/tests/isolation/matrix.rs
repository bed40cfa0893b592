//! `podwire trace` on each row of the isolation matrix, in both families: which pod reaches which, and what
//! drops the packet otherwise.

use sandbox::{NODE, Netns, OUTSIDE, beyond_peer, conf};
use serde_json::{Value, json};

use crate::lab::{A, B, GATEWAY, Lab, OPEN, PRIVATE, PUBLISHED, SERVICE, WHY, other};
use crate::links::{keys, linked};
use crate::modes::mappings;
use crate::trace::{modes, trace_with};

/// What drops packets to a network with published or opened ports.
const PUBLISHED_ONLY: &str = "podwire_access to_published: drop";
const FROM_INTERNAL: &str = "podwire_access forward: iifname @internal_devices drop";
const TO_INTERNAL: &str = "podwire_access forward: oifname @internal_devices drop";
const FROM_ISOLATED: &str = "podwire_access input: iifname @isolated_devices drop";
const TO_ISOLATED: &str = "podwire_access output: oifname @isolated_devices drop";
const ISOLATED_PORTS: &str = "both ports are isolated";
const THROUGH_NODE: &str = "inet podwire_isolation forward: iifname \"cni3\" oifname \"cni3\"";
const MARTIANS: &str = "ip podwire_hostports martians: iifname != \"lo\" ip daddr 127.0.0.0/8 drop";
const CHECKED: &str = "the pod's question for it: bridge nat ";

/// Packets of both families from one place to another, and what drops them.
struct Row {
    from: String,
    to: [String; 2],
    /// The source addresses, where they are forged.
    sources: Option<[&'static str; 2]>,
    dropped: Option<&'static str>,
}

/// A connection, or a ping where there is no port.
fn row(from: &Netns, [v4, v6]: [impl ToString; 2], port: impl Into<Option<u16>>) -> Row {
    let [v4, v6] = [v4.to_string(), v6.to_string()];
    let to = match port.into() {
        Some(port) => [format!("{v4}:{port}"), format!("[{v6}]:{port}")],
        None => [v4, v6],
    };
    let from = match from.name() {
        "host" => "node".into(),
        _ => from.path(),
    };
    Row {
        from,
        to,
        sources: None,
        dropped: None,
    }
}

impl Row {
    fn dropped_by(mut self, rule: &'static str) -> Self {
        self.dropped = Some(rule);
        self
    }

    fn pretending(mut self, sources: [&'static str; 2]) -> Self {
        self.sources = Some(sources);
        self
    }

    /// What is wrong with what trace says about one family.
    fn fault(&self, lab: &Lab, family: usize) -> Option<String> {
        let mut args = vec![self.from.as_str(), self.to[family].as_str()];
        args.extend(self.sources.iter().flat_map(|it| ["--source", it[family]]));
        let traced = trace_with(lab, &args);
        let is_right = match (self.dropped, traced["dropped"].as_str()) {
            (Some(rule), Some(dropped)) => dropped.contains(rule) && traced["arrived"] == false,
            (None, None) => traced["arrived"] == true,
            _ => false,
        };
        let expected = self.dropped.unwrap_or("an answer");
        (!is_right).then(|| format!("{args:?}: expected {expected}: {traced:#}"))
    }
}

#[track_caller]
fn assert_rows(lab: &Lab, rows: &[Row]) {
    let faults = rows
        .iter()
        .flat_map(|row| [0, 1].map(|it| row.fault(lab, it)));
    let faults: Vec<_> = faults.flatten().collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// An address of the network with this number: 1 is the gateway, 2 the first pod.
fn at(network: u8, host: u8) -> [String; 2] {
    [
        format!("10.{network}.0.{host}"),
        format!("fd0{network}::{host}"),
    ]
}

/// A pod of a network of its own, with these keys.
fn pod(lab: &mut Lab, number: u8, name: &str, keys: Value) -> Netns {
    let conf = conf::bridge(&[&format!("10.{number}.0.0/24"), &format!("fd0{number}::/64")]);
    let own =
        json!({"name": format!("net{number}"), "bridge": format!("cni{number}"), "ipMasq": true});
    let conf = conf::with(&conf::with(&conf, own), keys);
    lab.serve(&conf, name).0
}

/// A pod that gives itself a way out by its bridge.
fn reroute(lab: &Lab, pod: &Netns, number: u8) {
    let bridge = lab.host().link(&format!("cni{number}")).expect("a bridge");
    let mac = bridge["address"].as_str().expect("a MAC");
    for gateway in at(number, 1) {
        pod.sh(&format!(
            "ip neighbour replace {gateway} lladdr {mac} dev eth0
             ip route add default via {gateway} dev eth0 onlink"
        ));
    }
}

#[test]
fn trace_explains_each_gateway_mode() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(modes("nat"));
        let [a, b, c] = lab.pods(true);
        let inside = json!({"isGateway": true, "internal": true});
        let isolated = json!({"gatewayModeIPv4": "isolated", "gatewayModeIPv6": "isolated"});
        let isolated = conf::with(&inside, isolated);
        let f = pod(&mut lab, 4, "f", inside);
        let opened = conf::with(&modes("routed"), json!({"runtimeConfig": mappings()}));
        let g = pod(&mut lab, 5, "g", opened);
        let h = pod(&mut lab, 6, "h", modes("nat-unprotected"));
        let i = pod(&mut lab, 7, "i", isolated);
        reroute(&lab, &f, 4);
        reroute(&lab, &i, 7);
        let (host, outside) = (lab.host(), lab.outside.clone());
        // The node has no address there; as if an administrator had added the routes.
        host.sh("ip route add 10.7.0.0/24 dev cni7; ip route add fd07::/64 dev cni7");
        let mut rows = vec![
            // On one bridge, and to the gateway.
            row(&b, A, PRIVATE),
            row(&b, GATEWAY, SERVICE),
            row(&f, at(4, 1), SERVICE),
            row(&i, NODE, SERVICE).dropped_by(FROM_ISOLATED),
            row(&host, A, PRIVATE),
            row(&host, at(4, 2), PRIVATE),
            row(&host, at(7, 2), PRIVATE).dropped_by(TO_ISOLATED),
            // A published port is reached by the node's address, also from behind it.
            row(&b, NODE, PUBLISHED),
            row(&a, NODE, PUBLISHED),
            // Out.
            row(&a, OUTSIDE, SERVICE),
            row(&f, OUTSIDE, SERVICE).dropped_by(FROM_INTERNAL),
            row(&g, OUTSIDE, SERVICE),
            row(&h, OUTSIDE, None),
            row(&i, OUTSIDE, SERVICE).dropped_by(FROM_INTERNAL),
        ];
        // From elsewhere.
        for from in [&c, &outside] {
            rows.extend([
                row(from, NODE, PUBLISHED),
                row(from, A, OPEN).dropped_by(PUBLISHED_ONLY),
                row(from, A, PRIVATE).dropped_by(PUBLISHED_ONLY),
                row(from, A, None).dropped_by(PUBLISHED_ONLY),
                row(from, at(4, 2), OPEN).dropped_by(TO_INTERNAL),
                row(from, at(5, 2), OPEN),
                row(from, at(5, 2), PRIVATE).dropped_by(PUBLISHED_ONLY),
                row(from, at(5, 2), None),
                row(from, at(6, 2), PRIVATE),
                row(from, at(7, 2), OPEN).dropped_by(TO_INTERNAL),
            ]);
        }
        assert_rows(&lab, &rows);
    });
}

/// Pods that a network keeps apart, and links between them.
#[test]
fn trace_explains_what_keeps_pods_of_a_network_apart() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(keys());
        let (a, _) = lab.serve(&lab.conf(), "a");
        let (b, _) = lab.serve(&linked(&lab, &a), "b");
        let (d, _) = lab.serve(&lab.conf(), "d");
        let apart = json!({"isDefaultGateway": true, "icc": false});
        let [e, f] = ["e", "f"].map(|it| pod(&mut lab, 3, it, apart.clone()));
        // By the gateway's MAC, the node would forward it.
        f.sh("ip route add 10.3.0.2 via 10.3.0.1; ip route add fd03::2 via fd03::1");
        let rows = [
            row(&b, A, OPEN),
            row(&b, A, PRIVATE).dropped_by(PUBLISHED_ONLY),
            row(&b, A, None).dropped_by(PUBLISHED_ONLY),
            row(&a, B, OPEN).dropped_by(PUBLISHED_ONLY),
            row(&d, A, OPEN).dropped_by(PUBLISHED_ONLY),
            row(&e, at(3, 3), OPEN).dropped_by(ISOLATED_PORTS),
            row(&f, at(3, 2), OPEN).dropped_by(THROUGH_NODE),
        ];
        for bridged in [false, true] {
            lab.filter_bridged(bridged);
            assert_rows(&lab, &rows);
        }
    });
}

/// Forged sources, and addresses that no other machine is to reach.
#[test]
fn trace_explains_what_keeps_forged_packets_out() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(modes("nat"));
        let (a, result) = lab.serve(&lab.conf(), "a");
        let (c, _) = lab.serve(&other(), "c");
        let mut portmap = conf::with_prev(&conf::portmap(PUBLISHED), &result);
        portmap["runtimeConfig"] = json!({"portMappings": [{"hostPort": PUBLISHED,
            "containerPort": OPEN, "protocol": "tcp", "hostIP": "127.0.0.1"}]});
        lab.cni("portmap").add(&portmap, &a, "eth0").result();
        let checked = json!({"isDefaultGateway": true, "macspoofchk": true});
        let d = pod(&mut lab, 3, "d", checked);
        let e = pod(&mut lab, 4, "e", json!({"isDefaultGateway": true}));
        let host = lab.host();
        host.sh("echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
            echo 0 >/proc/sys/net/ipv4/conf/cni1/rp_filter
            echo 1 >/proc/sys/net/ipv4/conf/cni4/rp_filter
            nft add table ip6 sources
            nft 'add chain ip6 sources check { type filter hook prerouting priority -150; }'
            nft add rule ip6 sources check iifname cni4 fib saddr . iif oif missing drop");
        d.sh("ip link set eth0 address 02:00:00:00:00:77");
        let rows = [
            row(&d, OUTSIDE, SERVICE).dropped_by(CHECKED),
            // What counts is where it comes in.
            row(&c, A, OPEN).pretending(B).dropped_by(PUBLISHED_ONLY),
        ];
        assert_rows(&lab, &rows);
        // Strict reverse path filter; in IPv6 it is a rule.
        let forged = row(&e, OUTSIDE, SERVICE).pretending(B);
        let [v4, v6] = [0, 1].map(|it| forged.fault(&lab, it).expect("dropped"));
        assert!(
            v4.contains("the source must not come in there (rp_filter)"),
            "{v4}"
        );
        assert!(v6.contains("ip6 sources check: "), "{v6}");
        // The loopback addresses of the node.
        let from = [&c, &lab.outside];
        for (from, via) in from.iter().zip(["10.2.0.1", NODE[0]]) {
            from.sh(&format!(
                "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
                 ip address flush dev lo; ip route add 127.0.0.0/8 via {via}"
            ));
            let localhost = row(from, ["127.0.0.1", "::1"], PUBLISHED).dropped_by(MARTIANS);
            assert_eq!(localhost.fault(&lab, 0), None);
        }
        let published = row(&host, ["127.0.0.1", "::1"], PUBLISHED);
        assert_eq!(published.fault(&lab, 0), None);
    });
}
