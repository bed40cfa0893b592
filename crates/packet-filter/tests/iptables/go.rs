//! Side by side with the Go plugins.

use packet_filter::{Backend, HostPorts, Mapping, Mark, Protocol, Snat};
use serde_json::{Value, json};

use crate::{
    assert_same, count,
    host::{Host, on_both},
    host_ports, masquerade, owner, tcp,
};

const ID: &str = "aaaabbbbccccdddd";

fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "mynet", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true,
        "ipam": { "type": "static", "addresses": [
            { "address": "10.22.0.2/24", "gateway": "10.22.0.1" },
            { "address": "fd00:22::2/64", "gateway": "fd00:22::1" },
        ]},
    })
}

/// A pod on a bridge, as the Go plugins make it.
fn with_pod(host: &Host) -> Value {
    host.run("ip netns add pod");
    host.go("bridge", "ADD", &owner(ID), &bridge())
}

fn portmap(prev: &Value, keys: &Value, mappings: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "mynet", "type": "portmap",
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings },
        "prevResult": prev,
    });
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

/// The same for both: what to publish, and the Go plugin's configuration.
/// (Debian's plugin is too old for `masqAll`: the unit tests have it.)
fn cases(host: &Host, prev: &Value) -> Vec<(&'static str, HostPorts, Value)> {
    let mapping = |protocol: &str, host: u16, container: u16| json!({ "hostPort": host, "containerPort": container, "protocol": protocol });
    let on_address = |ip: &str, port: u16| Mapping {
        host_ip: Some(ip.parse().unwrap()),
        ..tcp(port, 80)
    };
    let one = host_ports(ID, &[tcp(8080, 80)]);
    let one_json = json!([mapping("tcp", 8080, 80)]);
    let conf = |keys: Value| portmap(prev, &keys, &one_json);

    let udp = Mapping {
        protocol: Protocol::Udp,
        ..tcp(5353, 53)
    };
    let sctp = Mapping {
        protocol: Protocol::Sctp,
        ..tcp(9, 99)
    };
    let mixed = [
        udp,
        tcp(8080, 80),
        on_address("192.0.2.7", 81),
        on_address("2001:db8::7", 82),
        on_address("0.0.0.0", 83),
        on_address("::", 84),
        sctp,
    ];
    let mut mixed_json = vec![mapping("udp", 5353, 53), mapping("tcp", 8080, 80)];
    let ips = ["192.0.2.7", "2001:db8::7", "0.0.0.0", "::"];
    for (port, ip) in (81..).zip(ips) {
        let mut it = mapping("tcp", port, 80);
        it["hostIP"] = ip.into();
        mixed_json.push(it);
    }
    mixed_json.push(mapping("sctp", 9, 99));

    let many: Vec<_> = (1..=33).map(|port| tcp(port, port)).collect();
    let many_json: Vec<_> = (1..=33).map(|port| mapping("tcp", port, port)).collect();

    let mut cases = vec![
        ("one", one.clone(), conf(json!({}))),
        (
            "no snat",
            HostPorts {
                snat: Snat::Off,
                ..one.clone()
            },
            conf(json!({ "snat": false })),
        ),
        (
            "another mark",
            HostPorts {
                mark: Mark::Bit(3),
                ..one.clone()
            },
            conf(json!({ "markMasqBit": 3 })),
        ),
        (
            "another program's mark",
            HostPorts {
                mark: Mark::ExternalChain("KUBE-MARK-MASQ".into()),
                ..one.clone()
            },
            conf(json!({ "externalSetMarkChain": "KUBE-MARK-MASQ" })),
        ),
        (
            "conditions",
            HostPorts {
                conditions_v4: ["!", "-s", "10.9.0.0/16"].map(Into::into).into(),
                conditions_v6: ["!", "-s", "fd09::/16"].map(Into::into).into(),
                ..one.clone()
            },
            conf(json!({
                "conditionsV4": ["!", "-s", "10.9.0.0/16"],
                "conditionsV6": ["!", "-s", "fd09::/16"],
            })),
        ),
        (
            "all kinds",
            host_ports(ID, &mixed),
            portmap(prev, &json!({}), &mixed_json.into()),
        ),
        (
            "33 ports",
            host_ports(ID, &many),
            portmap(prev, &json!({}), &many_json.into()),
        ),
    ];
    if host.variant == "legacy" {
        // ip6tables-legacy 1.8.9 says of a second port's rules that they are there
        // already, and the Go plugin leaves them out: compared is IPv4 alone.
        for (_, wanted, conf) in &mut cases {
            if wanted.mappings.len() > 1 {
                wanted.pod_v6 = None;
                without_v6(conf);
            }
        }
    }
    cases
}

/// Takes the IPv6 address out of the prevResult.
fn without_v6(conf: &mut Value) {
    let ips = conf["prevResult"]["ips"].as_array_mut().unwrap();
    ips.retain(|it| !it["address"].as_str().unwrap().contains(':'));
    assert_eq!(ips.len(), 1);
}

/// The Go plugin's CHECK. Debian's looks for the rules of IPv4 in IPv6 too, its
/// own included, and gives up on them only where there is no ip6tables.
fn check(host: &Host, owner: &cni::Attachment, mut conf: Value) {
    without_v6(&mut conf);
    host.go_without_ip6tables("portmap", "CHECK", owner, &conf);
}

/// Empties the tables, but for the chain that a case may need.
fn fresh(host: &Host) {
    host.flush();
    for family in ["iptables", "ip6tables"] {
        host.run(&format!("{family} -t nat -N KUBE-MARK-MASQ"));
    }
}

#[test]
fn masquerading_is_laid_down_as_bridge_does() {
    on_both(|host| {
        let empty = host.tables();
        let prev = with_pod(host);
        let go = host.tables();
        assert_eq!(count(&go, "-j MASQUERADE"), 2, "{go}");
        let wanted = masquerade(ID, &["10.22.0.2/24", "fd00:22::2/64"]);
        host.iptables().check_masquerade(&wanted).unwrap();

        // Ours, beside theirs: nothing to add, all to remove.
        host.iptables().masquerade(&wanted).unwrap();
        assert_same(&host.tables(), &go, "tables");
        let ips: Vec<_> = wanted.addresses.iter().map(|it| it.ip()).collect();
        host.iptables()
            .remove_masquerade(&wanted.owner, &ips)
            .unwrap();
        assert_same(&host.tables(), &empty, "tables");

        // Ours alone, and theirs removes it.
        host.iptables().masquerade(&wanted).unwrap();
        assert_same(&host.tables(), &go, "tables");
        let mut conf = bridge();
        conf["prevResult"] = prev;
        host.go("bridge", "DEL", &wanted.owner, &conf);
        assert_same(&host.tables(), &empty, "tables");
    });
}

#[test]
fn ports_are_published_as_portmap_does() {
    on_both(|host| {
        let prev = with_pod(host);
        for (name, wanted, conf) in cases(host, &prev) {
            fresh(host);
            host.go("portmap", "ADD", &wanted.owner, &conf);
            let go = host.tables();
            assert_ne!(count(&go, "-j DNAT"), 0, "{name}: {go}");
            host.iptables().check_published(&wanted).unwrap();

            fresh(host);
            host.iptables().publish(&wanted).unwrap();
            assert_same(&host.tables(), &go, name);
            check(host, &wanted.owner, conf);
        }
    });
}

#[test]
fn each_publishes_over_and_removes_what_the_other_published() {
    on_both(|host| {
        let prev = with_pod(host);
        for (name, wanted, conf) in cases(host, &prev) {
            fresh(host);
            host.go("portmap", "ADD", &wanted.owner, &conf);
            let both = host.tables();
            host.iptables().publish(&wanted).unwrap();
            assert_same(&host.tables(), &both, &format!("{name}: over Go's"));
            host.iptables().unpublish(&wanted.owner).unwrap();
            let ours = host.tables();
            assert_eq!(count(&ours, "CNI-DN-"), 0, "{name}: {ours}");

            host.iptables().publish(&wanted).unwrap();
            host.go("portmap", "ADD", &wanted.owner, &conf);
            assert_same(&host.tables(), &both, &format!("{name}: Go's over ours"));
            host.go("portmap", "DEL", &wanted.owner, &conf);
            assert_same(&host.tables(), &ours, &format!("{name}: Go's DEL"));
        }
    });
}

#[test]
fn a_comment_that_is_too_long_is_the_same_for_both() {
    on_both(|host| {
        let prev = with_pod(host);
        let keys = json!({ "name": "a".repeat(250) });
        let mappings = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
        let conf = portmap(&prev, &keys, &mappings);
        let mut wanted = host_ports(ID, &[tcp(8080, 80)]);
        wanted.owner.network = "a".repeat(250);
        fresh(host);
        host.go("portmap", "ADD", &wanted.owner, &conf);
        let go = host.tables();
        fresh(host);
        host.iptables().publish(&wanted).unwrap();
        assert_same(&host.tables(), &go, "tables");
        host.iptables().check_published(&wanted).unwrap();
        check(host, &wanted.owner, conf);
        host.iptables().unpublish(&wanted.owner).unwrap();
        assert_eq!(count(&host.tables(), "CNI-DN-"), 0);
    });
}
