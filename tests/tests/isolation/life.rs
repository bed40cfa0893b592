//! How long the rules stay, what they cost, and what CHECK and GC notice.

use sandbox::{NODE, Netns, beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::lab::{A, Expected, Lab, OPEN, PRIVATE, WHY, assert_all, network, other};

const TABLES: &str = "for family in ip ip6; do nft list table $family podwire_access; done";

/// The table of the masquerade stays without rules of networks.
const MASQUERADE: &str = "cni_plugins_masquerade";

fn nat() -> Value {
    json!({"isDefaultGateway": true, "gatewayModeIPv4": "nat", "gatewayModeIPv6": "nat"})
}

/// What the two tables are; empty if there are none.
fn tables(host: &Netns) -> String {
    host.sh(&format!("{{ {TABLES}; }} 2>/dev/null || :"))
}

fn add(lab: &Lab, conf: &Value, name: &str) -> (Netns, Value) {
    let pod = lab.sandbox.pod(name);
    let result = lab.cni("bridge").add(conf, &pod, "eth0").result();
    (pod, result)
}

fn del(lab: &Lab, conf: &Value, pod: &Netns) {
    lab.cni("bridge").del(conf, pod, "eth0").silent();
}

#[test]
fn the_rules_do_not_grow_with_pods_and_go_with_the_last_one() {
    beyond_peer(WHY, || {
        let lab = Lab::new(json!({}));
        let snapshot = lab.sandbox.snapshot().allow_bridge_network();
        let snapshot = snapshot.allow_link("uplink").allow_link("cni1");
        let snapshot = snapshot.allow_host_local("other").allow(MASQUERADE);
        let conf = network(nat());
        let (first, _) = add(&lab, &conf, "p0");
        let rules = tables(&lab.host());
        assert!(rules.contains("\"cni0\""), "{rules}");
        let more: Vec<_> = (1..10)
            .map(|n| add(&lab, &conf, &format!("p{n}")).0)
            .collect();
        assert_eq!(tables(&lab.host()), rules);
        // Another network has elements in the same sets, and keeps them.
        let neighbour = conf::with(&other(), nat());
        let (c, _) = add(&lab, &neighbour, "c");
        for pod in &more {
            del(&lab, &conf, pod);
        }
        assert!(tables(&lab.host()).contains("\"cni0\""));
        del(&lab, &conf, &first);
        del(&lab, &conf, &first);
        let left = tables(&lab.host());
        assert!(
            !left.contains("\"cni0\"") && left.contains("\"cni1\""),
            "{left}"
        );
        del(&lab, &neighbour, &c);
        assert_eq!(tables(&lab.host()), "");
        snapshot.assert_unchanged();
    });
}

#[test]
fn what_is_missing_is_found_by_check_and_put_back_by_the_next_add() {
    beyond_peer(WHY, || {
        let lab = Lab::new(json!({}));
        let conf = network(nat());
        let (a, result) = add(&lab, &conf, "a");
        let checked = conf::with_prev(&conf, &result);
        let check = || lab.cni("bridge").check(&checked, &a, "eth0");
        check().silent();
        let whole = tables(&lab.host());
        for (number, damage) in [
            "nft flush chain ip podwire_access forward",
            "nft flush chain ip6 podwire_access to_published",
            "nft delete element ip podwire_access nat_devices { cni0 }",
            "nft delete element ip6 podwire_access within { cni0 . cni0 }",
            "nft delete table ip6 podwire_access",
            "nft add element ip podwire_access routed_devices { cni0 }",
        ]
        .iter()
        .enumerate()
        {
            lab.host().sh(damage);
            let error = check().error();
            assert!(
                error.msg.contains("podwire_access"),
                "{damage}: {}",
                error.msg
            );
            add(&lab, &conf, &format!("next{number}"));
            assert_eq!(tables(&lab.host()), whole, "{damage}");
            check().silent();
        }
    });
}

#[test]
fn the_newest_configuration_is_that_of_the_network() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(json!({}));
        let before = network(json!({"isDefaultGateway": true}));
        let (a, _) = lab.serve(&before, "a");
        let (c, _) = lab.serve(&other(), "c");
        let elsewhere = |passes: bool| {
            let mut expected = Expected::default();
            expected.port(A, PRIVATE, [passes.then_some("a"); 2]);
            expected
        };
        assert_all(&[(&c, elsewhere(true))]);
        let (b, _) = add(&lab, &network(nat()), "b");
        assert_all(&[(&c, elsewhere(false))]);
        // Another mode of one family.
        let mixed = conf::with(
            &network(nat()),
            json!({"gatewayModeIPv6": "nat-unprotected"}),
        );
        let (d, _) = add(&lab, &mixed, "d");
        let mut expected = Expected::default();
        expected.port(A, PRIVATE, [None, Some("a")]);
        assert_all(&[(&c, expected)]);
        // The keys are gone, but pods rely on the rules.
        let (e, _) = add(&lab, &before, "e");
        del(&lab, &before, &e);
        del(&lab, &before, &b);
        assert!(tables(&lab.host()).contains("nat_devices"));
        del(&lab, &before, &d);
        // `a` was added without the keys.
        assert_eq!(tables(&lab.host()), "");
        assert_all(&[(&c, elsewhere(true))]);
        del(&lab, &before, &a);
    });
}

#[test]
fn gc_removes_what_lost_pods_have_left() {
    beyond_peer(WHY, || {
        let lab = Lab::new(json!({}));
        let routed = json!({"isDefaultGateway": true, "gatewayModeIPv4": "routed",
            "gatewayModeIPv6": "routed", "runtimeConfig": {"portMappings": [
                {"hostPort": 1, "containerPort": OPEN, "protocol": "tcp"}]}});
        let conf = network(routed);
        let (a, result) = add(&lab, &conf, "a");
        let (b, _) = add(&lab, &conf, "b");
        let opened = |address: &str| tables(&lab.host()).contains(&format!("{address} . tcp . 80"));
        assert!(opened("10.1.0.2") && opened("fd01::2") && opened("10.1.0.3"));
        let checked = conf::with_prev(&conf, &result);
        lab.host()
            .sh("nft delete element ip podwire_access opened_ports { 10.1.0.2 . tcp . 80 }");
        let error = lab.cni("bridge").check(&checked, &a, "eth0").error();
        assert!(error.msg.contains("10.1.0.2 . tcp . 80"), "{}", error.msg);
        // A DEL without the mappings knows of them.
        lab.sandbox.remove_pod(&a);
        let without = conf::with(&conf, json!({"runtimeConfig": null}));
        del(&lab, &without, &a);
        assert!(!opened("fd01::2") && opened("10.1.0.3"));
        let (d, _) = add(&lab, &conf, "d");
        lab.sandbox.remove_pod(&b);
        let id = container_id(&d);
        let valid = conf::with_valid(&without, &[(&id, "eth0")]);
        lab.cni("bridge").gc(&valid).silent();
        assert!(!opened("10.1.0.3") && opened("10.1.0.4"));
        let none = conf::with_valid(&without, &[]);
        lab.sandbox.remove_pod(&d);
        lab.cni("bridge").gc(&none).silent();
        assert_eq!(tables(&lab.host()), "");
    });
}

#[test]
fn a_failed_add_leaves_no_rules() {
    beyond_peer(WHY, || {
        let lab = Lab::new(json!({}));
        let conf = network(nat());
        let snapshot = lab.sandbox.snapshot().allow_bridge_network();
        let snapshot = snapshot.allow_link("uplink").allow(MASQUERADE);
        let pod = lab.sandbox.pod("a");
        pod.sh("ip link add eth0 type bridge");
        lab.cni("bridge").add(&conf, &pod, "eth0").error();
        assert_eq!(tables(&lab.host()), "");
        pod.sh("ip link del eth0");
        let full = conf::with(
            &conf,
            json!({"ipam": {"ranges": [[
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"}]]}}),
        );
        let (b, _) = add(&lab, &full, "b");
        lab.cni("bridge").add(&full, &pod, "eth0").error();
        assert!(tables(&lab.host()).contains("\"cni0\""), "b needs them");
        del(&lab, &full, &b);
        assert_eq!(tables(&lab.host()), "");
        snapshot.assert_unchanged();
    });
}

/// The pod's own flow, and one to its published port, go on while the mode changes.
#[test]
fn connections_survive_a_change_of_the_mode() {
    beyond_peer(WHY, || {
        let mut lab = Lab::new(json!({}));
        let open = network(json!({"isDefaultGateway": true}));
        let (a, result) = lab.serve(&open, "a");
        lab.publish(&a, &result);
        let (c, _) = lab.serve(&other(), "c");
        let talks = [
            c.converse("tcp", A[0], PRIVATE),
            c.converse("udp", A[1], PRIVATE),
            lab.outside.converse("tcp", NODE[0], crate::lab::PUBLISHED),
            a.converse("tcp", crate::lab::C[1], PRIVATE),
        ];
        for talk in &talks {
            a.wait_until("an answer", |_| talk.output().contains("sees"));
        }
        let internal = json!({"isDefaultGateway": false, "isGateway": true, "internal": true});
        let (_b, _) = add(&lab, &network(internal), "b");
        for talk in &talks {
            let so_far = talk.output().len();
            a.wait_until("more answers", |_| talk.output().len() > so_far + 200);
            assert!(!talk.output().contains("closed"));
        }
        // A new one does not pass.
        let mut expected = Expected::default();
        expected.port(A, PRIVATE, [None; 2]);
        assert_all(&[(&c, expected)]);
    });
}
