//! dnsname with the real `podwired`: names answer when ADD returns, and no longer when DEL does.

use sandbox::{Netns, Running, Sandbox, beyond_peer, conf, container_id};
use serde_json::{Value, json};

use crate::{WHY, aliases, bridged, chained, named};

/// The lines of dig(1)'s short answer, sorted: answers are rotated.
fn dig(pod: &Netns, words: &str) -> Vec<String> {
    dig_at("10.1.0.1", pod, words)
}

fn dig_at(server: &str, pod: &Netns, words: &str) -> Vec<String> {
    let output = pod.sh(&format!(
        "dig +short +timeout=2 +tries=1 @{server} {words} || true"
    ));
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
        assert_eq!(dig(&front, &id), ["10.1.0.3"]);
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

/// The processes of other sandboxes are not in this one's network namespace.
fn kill_resolver(host: &Netns) {
    host.sh("for pid in $(pgrep -x podwired); do [ \"$(readlink /proc/$pid/ns/net)\" = \"$(readlink /proc/self/ns/net)\" ] && kill -9 $pid; done; true");
}

#[test]
fn a_killed_resolver_is_back_with_all_names_when_the_next_add_returns() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (front, _) = add(&sandbox, "front", json!({}));
        let host = sandbox.host();
        kill_resolver(&host);
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

/// A server of the node that has port 53 of all addresses, as dnsmasq has without further options.
fn other_server(host: &Netns) -> Running {
    host.name_server(&["--address=/of.the.node/192.0.2.7"])
}

#[test]
fn where_a_server_of_the_node_has_port_53_pods_ask_at_another_address() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let host = sandbox.host();
        let other = other_server(&host);
        let attach = |name: &str| {
            let (pod, result) = bridged(&sandbox, name);
            let conf = chained(&result, json!({"resolver": "on-demand"}));
            let call = sandbox.cni("dnsname").args(&named(name));
            let answer = call.add(&conf, &pod, "eth0");
            let servers = answer.result()["dns"]["nameservers"].clone();
            (pod, conf, servers, answer.stderr().to_owned())
        };
        let (front, front_conf, servers, log) = attach("front");
        assert_eq!(servers, json!(["10.1.0.0"]));
        assert!(
            log.contains(
                "names are answered at 10.1.0.0, as another server of the node has port 53"
            ),
            "{log}"
        );
        let (db, db_conf, ..) = attach("db");
        for words in ["db", "+tcp db", "db.testnet"] {
            assert_eq!(dig_at("10.1.0.0", &front, words), ["10.1.0.3"], "{words}");
        }
        assert_eq!(dig(&front, "of.the.node"), ["192.0.2.7"]);
        assert_eq!(dig_at("10.1.0.0", &host, "db"), ["10.1.0.3"]);

        // The resolver starts again: the pods keep the address.
        kill_resolver(&host);
        drop(other);
        let (late, late_conf, servers, _) = attach("late");
        assert_eq!(servers, json!(["10.1.0.1", "fd01::1"]));
        assert_eq!(dig_at("10.1.0.0", &front, "late"), ["10.1.0.4"]);
        assert_eq!(dig(&late, "db"), ["10.1.0.3"]);

        for (pod, conf) in [(&front, &front_conf), (&db, &db_conf), (&late, &late_conf)] {
            sandbox.cni("dnsname").del(conf, pod, "eth0").silent();
        }
        host.wait_until("the port goes", |host| {
            !host.links().iter().any(|it| it.starts_with("names"))
        });
    });
}

/// Its list is edited under running pods. They are recorded under the old name until they end, and are
/// in one segment with new ones.
#[test]
fn pods_of_a_renamed_network_find_each_other() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (front, front_conf) = add(&sandbox, "front", json!({}));
        let pod = sandbox.pod("late");
        let range = json!([{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100"}]);
        let ipam = json!({"type": "host-local", "ranges": [range]});
        let renamed = json!({"name": "renamed", "isDefaultGateway": true, "ipam": ipam});
        let bridge = conf::with(&conf::bridge(&[]), renamed);
        let result = sandbox.cni("bridge").add(&bridge, &pod, "eth0").result();
        let keys = json!({"name": "renamed", "resolver": "on-demand"});
        let late_conf = chained(&result, keys);
        let call = sandbox.cni("dnsname").args(&named("late"));
        call.add(&late_conf, &pod, "eth0").result();
        for name in ["late", "late.renamed", "late.pods.internal"] {
            assert_eq!(dig(&front, name), ["10.1.0.100"], "{name}");
        }
        for name in ["front", "front.testnet", "front.pods.internal"] {
            assert_eq!(dig(&pod, name), ["10.1.0.2"], "{name}");
        }
        sandbox
            .cni("dnsname")
            .del(&front_conf, &front, "eth0")
            .silent();
        assert_eq!(status(&pod, "front"), "NXDOMAIN");
        assert_eq!(sandbox.list("/run/podwire/names"), ["renamed"]);
        sandbox
            .cni("dnsname")
            .del(&late_conf, &pod, "eth0")
            .silent();
        assert!(sandbox.list("/run/podwire/names").is_empty());
    });
}

#[test]
fn pods_on_macvlan_ask_at_the_shim_of_the_node() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let _segment = sandbox.segment();
        let shim = json!({"hostShim": {"name": "shim0", "address": "10.1.0.250/32"}});
        let macvlan = conf::with(&conf::macvlan(&["10.1.0.0/24"]), shim);
        let attach = |name: &str, keys: Value| {
            let pod = sandbox.pod(name);
            let result = sandbox.cni("macvlan").add(&macvlan, &pod, "eth0").result();
            let keys = conf::with(&json!({"resolver": "on-demand"}), keys);
            let conf = chained(&result, keys);
            let call = sandbox.cni("dnsname").args(&named(name));
            let answer = call.add(&conf, &pod, "eth0");
            let servers = answer.result()["dns"]["nameservers"].clone();
            (pod, conf, servers, answer.stderr().to_owned())
        };
        let (alone, alone_conf, servers, log) = attach("alone", json!({}));
        assert_eq!(servers, Value::Null);
        assert!(
            log.contains("the node has no address in the network: the key listen"),
            "{log}"
        );
        sandbox
            .cni("dnsname")
            .del(&alone_conf, &alone, "eth0")
            .silent();

        let listen = json!({"listen": ["10.1.0.250"]});
        let (front, _, servers, log) = attach("front", listen.clone());
        assert_eq!((servers, log.as_str()), (json!(["10.1.0.250"]), ""));
        let (db, ..) = attach("db", listen);
        let [at_front, at_db] = [&front, &db].map(|pod| {
            let address = pod.addresses("eth0").remove(0);
            address.trim_end_matches("/24").to_owned()
        });
        assert_eq!(dig_at("10.1.0.250", &front, "db"), [at_db]);
        assert_eq!(dig_at("10.1.0.250", &db, "front"), [at_front]);
    });
}
