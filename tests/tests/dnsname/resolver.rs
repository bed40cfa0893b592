//! dnsname with the real `podwired`: names answer when ADD returns, and no longer when DEL does.

use sandbox::{Netns, Sandbox, beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::{WHY, aliases, bridged, chained, named};

/// The lines of dig(1)'s short answer, sorted: answers are rotated.
fn dig(pod: &Netns, words: &str) -> Vec<String> {
    let output = pod.sh(&format!("dig +short +timeout=2 +tries=1 @10.1.0.1 {words}"));
    let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn status(pod: &Netns, words: &str) -> String {
    let output = pod.sh(&format!("dig +timeout=2 +tries=1 @10.1.0.1 {words}"));
    let status = output.split("status: ").nth(1).unwrap_or_default();
    status.split(',').next().unwrap_or_default().to_owned()
}

/// Attaches a pod; there is nothing on standard error.
fn add(sandbox: &Sandbox, name: &str, keys: Value) -> (Netns, Value) {
    let (pod, result) = bridged(sandbox, name);
    let conf = chained(&result, conf::with(&json!({"resolver": "on-demand"}), keys));
    let answer = sandbox
        .cni("dnsname")
        .args(&named(name))
        .add(&conf, &pod, "eth0");
    assert_eq!(
        answer.result()["dns"]["nameservers"],
        json!(["10.1.0.1", "fd01::1"])
    );
    assert_eq!(answer.stderr(), "");
    (pod, conf)
}

#[test]
fn pods_find_each_other_from_add_to_del() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (front, front_conf) = add(&sandbox, "front", aliases(&["www"]));
        let (db, db_conf) = add(&sandbox, "db", aliases(&["postgres", "www"]));
        for name in ["db", "DB", "postgres", "db.testnet", "db.pods.internal"] {
            assert_eq!(dig(&front, name), ["10.1.0.3"], "{name}");
        }
        let id = container_id(&db);
        assert_eq!(dig(&front, id.get(..12).unwrap_or(&id)), ["10.1.0.3"]);
        assert_eq!(dig(&front, "db AAAA"), ["fd01::3"]);
        assert_eq!(dig(&front, "www"), ["10.1.0.2", "10.1.0.3"]);
        assert_eq!(dig(&front, "+tcp front"), ["10.1.0.2"]);
        assert_eq!(dig(&front, "-x 10.1.0.3"), ["db.pods.internal."]);
        assert_eq!(status(&front, "nobody"), "NXDOMAIN");
        assert_eq!(status(&front, "db MX"), "NOERROR");

        sandbox.cni("dnsname").del(&db_conf, &db, "eth0").silent();
        assert_eq!(status(&front, "db"), "NXDOMAIN");
        assert_eq!(dig(&front, "www"), ["10.1.0.2"]);
        sandbox
            .cni("dnsname")
            .del(&front_conf, &front, "eth0")
            .silent();
        // Started on demand, it ends with the last name.
        sandbox.host().wait_until("podwired ends", |_| {
            sandbox
                .list("/run/podwire")
                .iter()
                .all(|it| it != "podwired.sock")
        });
    });
}

#[test]
fn a_killed_resolver_is_back_with_all_names_when_the_next_add_returns() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (front, _) = add(&sandbox, "front", json!({}));
        let host = sandbox.host();
        // The processes of other sandboxes are not in this one's network namespace.
        host.sh("for pid in $(pgrep -x podwired); do [ \"$(readlink /proc/$pid/ns/net)\" = \"$(readlink /proc/self/ns/net)\" ] && kill -9 $pid; done; true");
        let (db, _) = add(&sandbox, "db", json!({}));
        assert_eq!(dig(&db, "front"), ["10.1.0.2"]);
        assert_eq!(dig(&front, "db"), ["10.1.0.3"]);
    });
}

#[test]
fn an_internal_network_and_an_own_domain_ask_nowhere() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let records = json!([
            {"name": "*.apps", "addresses": ["192.0.2.9"]}, {"name": "alias", "cname": "front"},
            {"name": "_http._tcp", "srv": [{"port": 80, "target": "front"}]},
        ]);
        let keys =
            json!({"internal": true, "ttl": 7, "records": records, "servers": ["192.0.2.1"]});
        let (front, _) = add(&sandbox, "front", keys);
        assert_eq!(dig(&front, "a.b.apps"), ["192.0.2.9"]);
        assert_eq!(dig(&front, "alias"), ["10.1.0.2", "front."]);
        assert_eq!(dig(&front, "_http._tcp SRV"), ["0 0 80 front."]);
        let answer = front.sh("dig +noall +answer +timeout=2 +tries=1 @10.1.0.1 front");
        assert_eq!(answer.split_whitespace().nth(1), Some("7"), "{answer}");
        for name in ["x.pods.internal", "x.testnet"] {
            assert_eq!(status(&front, name), "NXDOMAIN", "{name}");
        }
        assert_eq!(status(&front, "example.org"), "SERVFAIL");
    });
}
