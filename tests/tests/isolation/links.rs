//! Links between pods of a network that keeps its pods apart.

use sandbox::{Netns, OUTSIDE, beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::lab::{A, B, Expected, Lab, OPEN, PRIVATE, SERVICE, WHY, assert_all};

pub fn keys() -> Value {
    json!({"isDefaultGateway": true, "icc": false, "links": [], "gatewayModeIPv4": "nat",
        "gatewayModeIPv6": "nat"})
}

/// The configuration of a pod that reaches the port of `a`.
pub fn linked(lab: &Lab, a: &Netns) -> Value {
    let ports = [format!("{OPEN}/tcp"), format!("{OPEN}/udp")];
    let link = json!({"containerID": container_id(a), "addresses": A, "ports": ports});
    conf::with(&lab.conf(), json!({"links": [link]}))
}

/// What the node has of links.
fn links(host: &Netns) -> String {
    host.sh("for set in links linked; do for family in ip ip6; do
             nft list set $family podwire_access $set 2>/dev/null | grep -A9 elements || :
         done; done
         ip -6 neigh show proxy")
}

/// TCP and UDP of both families.
fn expect(to: [&str; 2], port: u16, answers: Option<&str>) -> Expected {
    let mut expected = Expected::default();
    expected.port(to, port, [answers; 2]);
    expected
}

#[test]
fn a_link_leads_to_the_ports_of_one_pod_in_one_direction() {
    for bridged in [false, true] {
        beyond_peer(WHY, || {
            eprintln!("bridge-nf-call-iptables {bridged}");
            let mut lab = Lab::new(keys());
            lab.filter_bridged(bridged);
            let (a, _) = lab.serve(&lab.conf(), "a");
            let (b, _) = lab.serve(&linked(&lab, &a), "b");
            let (d, _) = lab.serve(&lab.conf(), "d");
            let mut of_b = expect(A, OPEN, Some("a"));
            of_b.port(A, PRIVATE, [None; 2]);
            of_b.ping(A, [false; 2]);
            of_b.port(OUTSIDE, SERVICE, [Some("outside"); 2]);
            let mut of_a = expect(B, OPEN, None);
            of_a.port(OUTSIDE, SERVICE, [Some("outside"); 2]);
            assert_all(&[(&b, of_b), (&a, of_a), (&d, expect(A, OPEN, None))]);
            // The node's advice to send to the neighbour itself would end the connection.
            assert_all(&[(&b, expect(A, OPEN, Some("a")))]);
        });
    }
}

#[test]
fn a_link_goes_with_either_end() {
    beyond_peer(WHY, || {
        let lab = Lab::new(keys());
        let host = lab.host();
        let add = |conf: &Value, name: &str| {
            let pod = lab.sandbox.pod(name);
            lab.cni("bridge").add(conf, &pod, "eth0").result();
            pod
        };
        let plain = lab.conf();
        let a = add(&plain, "a");
        assert_eq!(links(&host), "");
        let linked = linked(&lab, &a);
        let b = add(&linked, "b");
        let both = links(&host);
        assert_eq!(both.matches(A[0]).count(), 4, "{both}");
        assert!(both.contains(&format!("{} dev cni0 proxy", A[1])), "{both}");
        // A further pod with the same link, which then goes.
        let d = add(&linked, "d");
        assert_eq!(links(&host).matches(A[0]).count(), 8);
        lab.cni("bridge").del(&linked, &d, "eth0").silent();
        assert_eq!(links(&host), both);
        lab.cni("bridge").del(&plain, &a, "eth0").silent();
        assert_eq!(links(&host), "");
        // The other end is gone already.
        lab.cni("bridge").del(&linked, &b, "eth0").silent();
        assert_eq!(links(&host), "");
    });
}

#[test]
fn gc_removes_the_links_of_pods_that_are_gone() {
    beyond_peer(WHY, || {
        let lab = Lab::new(keys());
        let (plain, a, b) = (lab.conf(), lab.sandbox.pod("a"), lab.sandbox.pod("b"));
        for (conf, pod) in [(&plain, &a), (&linked(&lab, &a), &b)] {
            lab.cni("bridge").add(conf, pod, "eth0").result();
        }
        let gc = |pods: &[&Netns]| {
            let valid = pods.iter();
            let valid = valid.map(|it| json!({"containerID": container_id(it), "ifname": "eth0"}));
            let valid: Vec<_> = valid.collect();
            let conf = conf::with(&plain, json!({"cni.dev/valid-attachments": valid}));
            lab.cni("bridge").gc(&conf).silent();
        };
        let before = links(&lab.host());
        gc(&[&a, &b]);
        assert_eq!(links(&lab.host()), before);
        gc(&[&b]);
        assert_eq!(links(&lab.host()), "");
    });
}
