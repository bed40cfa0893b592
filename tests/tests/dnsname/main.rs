//! dnsname: which names are recorded, what the result says, what remains after DEL and GC (nothing),
//! and what happens without a resolver.

mod resolver;

use sandbox::{Netns, Sandbox, beyond_peer, conf, container_id};
use serde_json::{Value, json};

/// Debian's package of the peer has no such plugin.
const WHY: &str = "it has no dnsname";

const NAMES: &str = "/run/podwire/names/testnet";

/// A pod on the bridge `cni0`, and the result of that ADD.
fn bridged(sandbox: &Sandbox, name: &str) -> (Netns, Value) {
    let pod = sandbox.pod(name);
    let conf = conf::with(
        &conf::bridge(&["10.1.0.0/24", "fd01::/64"]),
        json!({"isDefaultGateway": true}),
    );
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    (pod, result)
}

/// dnsname behind that plugin. A test that wants a resolver has another `resolver`.
fn chained(result: &Value, keys: Value) -> Value {
    let mut conf = conf::plugin("dnsname");
    conf["domainName"] = "pods.internal".into();
    conf["resolver"] = "service".into();
    conf::with(&conf::with_prev(&conf, result), keys)
}

fn aliases(names: &[&str]) -> Value {
    json!({"runtimeConfig": {"aliases": {"testnet": names}}})
}

fn record(sandbox: &Sandbox, pod: &Netns) -> Option<Value> {
    let text = sandbox.read(format!("{NAMES}/{}:eth0", container_id(pod)))?;
    Some(serde_json::from_str(&text).expect("a record"))
}

/// podman's and Kubernetes' arguments.
fn named(name: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=x;K8S_POD_NAME={name}")
}

#[test]
fn a_pod_is_recorded_with_its_names_and_what_its_network_is() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        let keys = json!({
            "ttl": 5, "servers": ["192.0.2.1"],
            "records": [{"name": "*.apps", "addresses": ["192.0.2.9"]}],
            "runtimeConfig": {"aliases": {"testnet": ["db", "Web"], "other": ["x"]}, "dns": {"servers": ["192.0.2.2"]}},
        });
        let conf = chained(&result, keys);
        let call = sandbox.cni("dnsname").args(&named("front"));
        let answer = call.add(&conf, &pod, "eth0");
        let id = container_id(&pod);
        let record = record(&sandbox, &pod).expect("a record");
        assert_eq!(
            record["names"],
            json!(["front", "db", "web", id.to_lowercase()])
        );
        assert_eq!(record["addresses"], json!(["10.1.0.2", "fd01::2"]));
        assert_eq!(record["servers"], json!(["192.0.2.2"]));
        assert_eq!(
            (&record["container"], &record["ifname"]),
            (&json!(id), &json!("eth0"))
        );
        assert_eq!(record["namespace"]["path"], pod.path());
        let inode = sandbox.host().sh(&format!("stat -c %i {}", pod.path()));
        assert_eq!(record["namespace"]["inode"].to_string(), inode.trim());
        assert_eq!(
            record["network"],
            json!({
                "name": "testnet", "domain": "pods.internal", "listen": ["10.1.0.1", "fd01::1"],
                "bridge": "cni0", "subnets": ["10.1.0.0/24", "fd01::/64"], "ttl": 5, "servers": ["192.0.2.1"],
                "records": [{"name": "*.apps", "addresses": ["192.0.2.9"]}],
            })
        );
        let mut expected = result;
        expected["dns"] = json!({
            "nameservers": ["10.1.0.1", "fd01::1"], "domain": "pods.internal", "search": ["pods.internal"],
        });
        assert_eq!(answer.result(), expected);
    });
}

#[test]
fn without_a_resolver_add_succeeds_and_says_so() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        let answer = sandbox
            .cni("dnsname")
            .add(&chained(&result, json!({})), &pod, "eth0");
        answer.result();
        let log = answer.stderr();
        assert!(
            log.contains(
                "names are not answered yet: connect to the resolver at /run/podwire/podwired.sock"
            ),
            "{log}"
        );
    });
}

#[test]
fn what_was_in_dns_before_stays() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, mut result) = bridged(&sandbox, "a");
        result["dns"] = json!({"nameservers": ["192.0.2.3"], "domain": "example.org", "search": ["example.org"], "options": ["ndots:1"]});
        let answer = sandbox
            .cni("dnsname")
            .add(&chained(&result, json!({})), &pod, "eth0")
            .result();
        assert_eq!(
            answer["dns"],
            json!({
                "nameservers": ["10.1.0.1", "fd01::1", "192.0.2.3"], "domain": "example.org",
                "search": ["example.org", "pods.internal"], "options": ["ndots:1"],
            })
        );
    });
}

/// Where the gateway is another machine, no socket of the node can have its address.
#[test]
fn pods_ask_only_at_addresses_of_the_node() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::with(&conf::bridge(&["10.1.0.0/24"]), json!({"isGateway": false}));
        let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
        let add = |keys: Value| {
            sandbox
                .cni("dnsname")
                .add(&chained(&result, keys), &pod, "eth0")
                .result()
        };
        assert_eq!(add(json!({}))["dns"].get("nameservers"), None);
        let listen = json!({"listen": ["10.1.0.7"]});
        assert_eq!(add(listen)["dns"]["nameservers"], json!(["10.1.0.7"]));
    });
}

#[test]
fn a_pod_without_an_address_has_no_names() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let result = sandbox
            .cni("bridge")
            .add(&conf::bridge_l2(), &pod, "eth0")
            .result();
        let answer = sandbox
            .cni("dnsname")
            .add(&chained(&result, json!({})), &pod, "eth0");
        assert_eq!(answer.result(), result);
        assert_eq!(record(&sandbox, &pod), None);
    });
}

#[test]
fn del_needs_nothing_and_leaves_nothing() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        let (other, other_result) = bridged(&sandbox, "b");
        let snapshot = sandbox.snapshot();
        for keys in [json!({}), aliases(&["db"])] {
            let conf = chained(&result, keys);
            sandbox.cni("dnsname").add(&conf, &pod, "eth0").result();
            sandbox.cni("dnsname").add(&conf, &pod, "eth0").result();
            let other_conf = chained(&other_result, json!({}));
            sandbox
                .cni("dnsname")
                .add(&other_conf, &other, "eth0")
                .result();
            let bare = conf::plugin("dnsname");
            sandbox
                .cni("dnsname")
                .netns("")
                .del(&bare, &pod, "eth0")
                .silent();
            assert_eq!(record(&sandbox, &pod), None);
            assert!(record(&sandbox, &other).is_some());
            sandbox.cni("dnsname").del(&conf, &pod, "eth0").silent();
            sandbox
                .cni("dnsname")
                .del(&other_conf, &other, "eth0")
                .silent();
            snapshot.assert_unchanged();
        }
    });
}

#[test]
fn del_ignores_values_that_add_refuses() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        sandbox
            .cni("dnsname")
            .add(&chained(&result, json!({})), &pod, "eth0")
            .result();
        let wrong = json!({"domainName": "a..b", "ttl": "x", "resolver": 1});
        sandbox
            .cni("dnsname")
            .del(&chained(&result, wrong), &pod, "eth0")
            .silent();
        assert_eq!(record(&sandbox, &pod), None);
    });
}

#[test]
fn gc_removes_the_records_of_the_network_that_no_valid_attachment_has() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (kept, kept_result) = bridged(&sandbox, "a");
        let (gone, gone_result) = bridged(&sandbox, "b");
        sandbox
            .cni("dnsname")
            .add(&chained(&kept_result, json!({})), &kept, "eth0")
            .result();
        sandbox
            .cni("dnsname")
            .add(&chained(&gone_result, json!({})), &gone, "eth0")
            .result();
        let elsewhere = chained(&gone_result, json!({"name": "other"}));
        sandbox
            .cni("dnsname")
            .add(&elsewhere, &gone, "eth0")
            .result();
        let id = container_id(&kept);
        let conf = conf::with_valid(&conf::plugin("dnsname"), &[(&id, "eth0")]);
        sandbox.cni("dnsname").gc(&conf).silent();
        assert!(record(&sandbox, &kept).is_some());
        assert_eq!(record(&sandbox, &gone), None);
        let file = format!("/run/podwire/names/other/{}:eth0", container_id(&gone));
        assert!(sandbox.read(file).is_some());
    });
}

#[test]
fn check_notices_what_is_not_recorded() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        let conf = chained(&result, aliases(&["db"]));
        sandbox.cni("dnsname").add(&conf, &pod, "eth0").result();
        sandbox.cni("dnsname").check(&conf, &pod, "eth0").silent();
        let fault = |conf: &Value| sandbox.cni("dnsname").check(conf, &pod, "eth0").error().msg;
        let more = chained(&result, aliases(&["db", "web"]));
        assert!(fault(&more).ends_with("web is not recorded"));
        let mut moved = result.clone();
        moved["ips"][0]["address"] = "10.1.0.9/24".into();
        assert!(
            fault(&chained(&moved, json!({}))).ends_with("they are recorded with other addresses")
        );
        sandbox.cni("dnsname").del(&conf, &pod, "eth0").silent();
        assert!(fault(&conf).ends_with("they are not recorded"));
    });
}

#[test]
fn wrong_values_are_refused_before_anything_is_recorded() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        for (keys, text) in [
            (
                json!({"domainName": "a..b"}),
                "domainName: invalid name \"a..b\": a name has no empty label between its dots",
            ),
            (json!({"ttl": -1}), "failed to load netconf: ttl: "),
            (
                json!({"servers": ["dns.google"]}),
                "servers[0]: \"dns.google\": ",
            ),
            (json!({"listen": ["x"]}), "listen[0]: \"x\": "),
            (
                json!({"resolver": "none"}),
                "resolver: unknown value \"none\": expected on-demand or service",
            ),
            (
                json!({"records": [{"name": "db"}]}),
                "records[0]: expected one of addresses, cname, srv and txt",
            ),
            (json!({"internal": 1}), "failed to load netconf: internal: "),
            (
                aliases(&["my alias"]),
                "runtimeConfig.aliases.testnet[0]: \"my alias\": ",
            ),
        ] {
            let conf = chained(&result, keys.clone());
            let error = sandbox.cni("dnsname").add(&conf, &pod, "eth0").error();
            assert_eq!(error.code, 7, "{keys}: {}", error.msg);
            assert!(error.msg.starts_with(text), "{keys}: {}", error.msg);
            assert_eq!(
                sandbox
                    .cni("dnsname")
                    .status(&conf::with(&conf::plugin("dnsname"), keys))
                    .error()
                    .code,
                7
            );
        }
        let alone = conf::plugin("dnsname");
        let error = sandbox.cni("dnsname").add(&alone, &pod, "eth0").error();
        assert_eq!(
            (error.code, error.msg.as_str()),
            (7, "must be called as chained plugin")
        );
        assert_eq!(record(&sandbox, &pod), None);
        sandbox.cni("dnsname").status(&alone).silent();
    });
}

/// A killed ADD, and another program, may leave anything in the directory of the records.
#[test]
fn objects_of_other_programs_are_not_followed_and_do_not_stop_a_del() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (pod, result) = bridged(&sandbox, "a");
        let conf = chained(&result, json!({}));
        let file = format!("{NAMES}/{}:eth0", container_id(&pod));
        let host = sandbox.host();
        host.sh(&format!("mkdir -p {NAMES}; chmod 700 /run/podwire /run/podwire/names; echo precious >/run/precious; ln -s /run/precious {file}"));
        sandbox.cni("dnsname").add(&conf, &pod, "eth0").result();
        assert!(record(&sandbox, &pod).is_some());
        host.sh(&format!(
            "ln -sf /run/precious {file}; ln -sf /run/precious {NAMES}/.{}:eth0",
            container_id(&pod)
        ));
        sandbox.cni("dnsname").del(&conf, &pod, "eth0").silent();
        assert_eq!(sandbox.read("/run/precious").as_deref(), Some("precious\n"));
        assert!(sandbox.list(NAMES).is_empty());
        host.sh("rmdir /run/podwire/names; ln -s /tmp /run/podwire/names");
        let error = sandbox.cni("dnsname").add(&conf, &pod, "eth0").error();
        assert!(
            error.msg.contains("/run/podwire/names is not a directory"),
            "{}",
            error.msg
        );
    });
}
