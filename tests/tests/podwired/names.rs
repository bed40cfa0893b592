//! What the resolver answers to which client.

use serde_json::{Value, json};

use super::names_node::{Names, record};
use sandbox::beyond_peer;

use super::WHY;

/// A network with two containers that share an alias, and names of its own.
fn web() -> (Names, Value) {
    let names = Names::new();
    let network = json!({
        "name": "Web", "domain": "dns.podman", "listen": ["10.1.0.1", "fd01::1"], "bridge": "br1",
        "subnets": ["10.1.0.0/24", "fd01::/64"], "ttl": 7,
        "records": [
            {"name": "*.apps", "addresses": ["10.1.0.90"]},
            {"name": "www", "cname": "db"},
            {"name": "_http._tcp", "srv": [{"port": 80, "target": "db"}]},
            {"name": "note", "txt": ["some text"]},
        ],
    });
    names.bridge("br1", &["10.1.0.1/24", "fd01::1/64"]);
    names.attach("a", "br1", &["10.1.0.2/24", "fd01::2/64"]);
    names.attach("b", "br1", &["10.1.0.3/24"]);
    let a = record(
        &network,
        "aaaaaaaaaaaa",
        &["db", "shared", "aaaaaaaaaaaa"],
        &["10.1.0.2", "fd01::2"],
    );
    let b = record(
        &network,
        "bbbbbbbbbbbb",
        &["Other", "shared", "*.b"],
        &["10.1.0.3"],
    );
    names.write("Web/aaaaaaaaaaaa:eth0", &a);
    names.write("Web/bbbbbbbbbbbb:eth0", &b);
    (names, network)
}

#[test]
fn names_aliases_addresses_and_records_of_a_network_are_answered() {
    beyond_peer(WHY, || {
        let (names, _) = web();
        let _agent = names.start();
        let answers = |name: &str, kind: &str| names.short("a", "10.1.0.1", &[name, kind]);
        for (name, kind, expected) in [
            ("db", "A", "10.1.0.2"),
            ("DB", "AAAA", "fd01::2"),
            ("aaaaaaaaaaaa", "A", "10.1.0.2"),
            ("db.web", "A", "10.1.0.2"),
            ("other.dns.podman", "A", "10.1.0.3"),
            ("x.y.apps", "A", "10.1.0.90"),
            ("x.apps.web", "A", "10.1.0.90"),
            ("any.b", "A", "10.1.0.3"),
            ("www", "A", "db.\n10.1.0.2"),
            ("_http._tcp", "SRV", "0 0 80 db."),
            ("note", "TXT", "\"some text\""),
            ("2.0.1.10.in-addr.arpa", "PTR", "db.dns.podman."),
        ] {
            assert_eq!(answers(name, kind), expected, "{name} {kind}");
        }
        assert_eq!(
            names.short("a", "fd01::1", &["-x", "fd01::2"]),
            "db.dns.podman."
        );
        // Two owners of an alias: both, and each is the first in turn.
        let pairs: Vec<String> = (0..4).map(|_| answers("shared", "A")).collect();
        assert!(pairs.iter().all(|it| it.lines().count() == 2), "{pairs:?}");
        assert_ne!(pairs[0], pairs[1]);
        let dig = |args: &[&str]| names.dig("a", "10.1.0.1", args);
        let first = dig(&["db.web"]);
        assert!(
            first.contains("\t7\tIN\tA\t10.1.0.2") && first.contains("flags: qr aa rd ra;"),
            "{first}"
        );
        // Known names without that type, and names that no container has: with SOA, and neither leaves the node.
        for (args, status) in [
            (&["other", "AAAA"][..], "NOERROR"),
            (&["db", "MX"], "NOERROR"),
            (&["nothing"], "NXDOMAIN"),
            (&["nothing.web"], "NXDOMAIN"),
            (&["nothing.dns.podman"], "NXDOMAIN"),
            (&["-x", "10.1.0.77"], "NXDOMAIN"),
        ] {
            let text = dig(args);
            let is_negative = text.contains("ANSWER: 0, AUTHORITY: 1") && text.contains("\tSOA\t");
            assert!(
                text.contains(&format!("status: {status},")) && is_negative,
                "{args:?}: {text}"
            );
        }
        for (args, status) in [
            (&["db", "-c", "CH"][..], "REFUSED"),
            (&["db", "+opcode=notify"], "NOTIMP"),
            (&["db", "+edns=1", "+noednsneg"], "BADVERS"),
        ] {
            let text = dig(args);
            assert!(
                text.contains(&format!("status: {status},")),
                "{args:?}: {text}"
            );
        }
        let found = names
            .node
            .ask(r#"{"names":{"resolve":"db"}}"#)
            .expect("an answer");
        assert_eq!(
            found["found"][0],
            json!({"network": "Web", "address": "10.1.0.2"})
        );
    });
}

#[test]
fn a_long_answer_is_truncated_and_whole_over_tcp() {
    beyond_peer(WHY, || {
        let (names, network) = web();
        for number in 0..60 {
            let id = format!("many{number}");
            let address = format!("10.1.0.{}", 100 + number);
            let file = format!("Web/{id}:eth0");
            names.write(&file, &record(&network, &id, &["many"], &[&address]));
        }
        let _agent = names.start();
        let dig = |args: &[&str]| names.dig("a", "10.1.0.1", args);
        for (args, least, most) in [(&["+noedns"][..], 20, 31), (&["+bufsize=800"], 35, 49)] {
            let text = dig(&[&["many", "+ignore"], args].concat());
            let count = text.matches("\tIN\tA\t").count();
            assert!(text.contains("flags: qr aa tc rd ra;"), "{text}");
            assert!((least..=most).contains(&count), "{count}: {text}");
        }
        for (args, by) in [
            (&[][..], "(UDP)"),
            (&["+tcp"], "(TCP)"),
            (&["+noedns"], "(TCP)"),
        ] {
            let text = dig(&[&["many"], args].concat());
            assert_eq!(text.matches("\tIN\tA\t").count(), 60, "{text}");
            assert!(text.contains(by), "{text}");
        }
    });
}

#[test]
fn a_client_sees_the_names_of_its_own_networks_only() {
    beyond_peer(WHY, || {
        let (names, _) = web();
        let back = json!({
            "name": "back", "listen": ["10.2.0.1"], "subnets": ["10.2.0.0/24"], "bridge": "br2",
        });
        names.bridge("br2", &["10.2.0.1/24"]);
        names.attach("c", "br2", &["10.2.0.2/24"]);
        names.write(
            "back/cccc:eth0",
            &record(&back, "cccc", &["cache"], &["10.2.0.2"]),
        );
        let both = record(&back, "bbbbbbbbbbbb", &["other"], &["10.2.0.3"]);
        names.write("back/bbbbbbbbbbbb:net1", &both);
        let _agent = names.start();
        let status = |pod: &str, server: &str, name: &str| {
            let text = names.dig(pod, server, &[name]);
            let status = text
                .split("status: ")
                .nth(1)
                .and_then(|it| it.split(',').next());
            status.unwrap_or(&text).to_owned()
        };
        assert_eq!(status("a", "10.1.0.1", "cache"), "NXDOMAIN");
        assert_eq!(status("a", "10.1.0.1", "cache.back"), "NXDOMAIN");
        assert_eq!(status("c", "10.2.0.1", "db.web"), "NXDOMAIN");
        // A container of both networks, on the one where it asks first.
        assert_eq!(names.short("b", "10.1.0.1", &["cache"]), "10.2.0.2");
        assert_eq!(names.short("b", "10.1.0.1", &["other"]), "10.1.0.3");
        assert_eq!(names.short("b", "10.1.0.1", &["other.back"]), "10.2.0.3");
        // A container whose record is not there sees its subnet's network.
        names.attach("d", "br2", &["10.2.0.9/24"]);
        assert_eq!(names.short("d", "10.2.0.1", &["cache"]), "10.2.0.2");
        // The node sees all, and asks its own servers for others.
        assert_eq!(names.short("host", "10.2.0.1", &["db.web"]), "10.1.0.2");
        assert_eq!(status("host", "10.2.0.1", "www.example"), "REFUSED");
        // A neighbour that routes through the node is no client.
        names.attach("e", "br2", &["198.51.100.2/24"]);
        names
            .node
            .host()
            .sh("ip address add 198.51.100.1/24 dev br2");
        assert_eq!(status("e", "10.2.0.1", "cache"), "REFUSED");
        assert_eq!(status("e", "10.2.0.1", "www.example"), "REFUSED");
    });
}
