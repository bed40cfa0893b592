use cni::json::Json;
use serde_json::json;

use super::*;

fn conf(document: serde_json::Value) -> Conf {
    let text = document.to_string();
    cni::json::read(text).unwrap()
}

fn plan(document: serde_json::Value) -> Plan {
    Plan::new(&conf(document), "web").unwrap()
}

fn faults(document: serde_json::Value) -> Vec<String> {
    let faults = Plan::new(&conf(document), "web").unwrap_err();
    faults
        .into_iter()
        .map(|it| format!("{}|{}", it.key, it.error.msg))
        .collect()
}

fn texts(names: &[Name]) -> Vec<&str> {
    names.iter().map(Name::as_str).collect()
}

fn result() -> AddResult {
    let document = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni-podman1"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"},
        ],
        "ips": [
            {"address": "10.89.0.2/24", "gateway": "10.89.0.1", "interface": 2},
            {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 2},
            {"address": "fe90::2/64", "gateway": "fe80::1", "interface": 2},
            {"address": "192.0.2.1/24", "interface": 0},
        ],
        "dns": {"nameservers": ["9.9.9.9"], "search": ["example.org"]},
    });
    let json = Json::parse(document.to_string().as_bytes()).unwrap();
    AddResult::decode(&json, cni::Version::V1_0_0).unwrap()
}

#[test]
fn names_are_in_dockers_order_and_each_is_there_once() {
    let plan = plan(json!({"runtimeConfig": {"aliases": {
        "web": ["db", "0123456789ab", "Front", "*.apps"], "other": ["elsewhere"],
    }}}));
    let names = plan.names(Some("front"), "0123456789abcdef0123");
    assert_eq!(texts(&names), ["front", "db", "0123456789ab", "*.apps"]);
    assert_eq!(
        texts(&plan.names(None, "short")),
        ["db", "0123456789ab", "front", "*.apps", "short"]
    );
}

#[test]
fn a_pods_name_that_cannot_be_answered_is_left_out() {
    let plan = plan(json!({}));
    for pod in ["", "a..b", &"a".repeat(64), "*.web"] {
        assert_eq!(texts(&plan.names(Some(pod), "c")), ["c"], "{pod}");
    }
    assert!(plan.names(None, "c..d").is_empty());
}

#[test]
fn a_record_has_the_pods_addresses_and_what_the_network_is() {
    let plan = plan(
        json!({"domainName": "dns.podman", "ttl": 5, "runtimeConfig": {"dns": {"servers": ["1.1.1.1"]}}}),
    );
    let owner = Attachment::parse("web", "c", "eth0").unwrap();
    let listen = gateways(&result());
    assert_eq!(
        listen.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
        ["10.89.0.1", "fd00::1"]
    );
    let record = plan.record(&owner, plan.names(None, "c"), &result(), listen, None);
    let document = serde_json::to_value(record).unwrap();
    assert_eq!(
        document,
        json!({
            "network": {
                "name": "web", "domain": "dns.podman", "listen": ["10.89.0.1", "fd00::1"],
                "bridge": "cni-podman1", "subnets": ["10.89.0.0/24", "fd00::/64", "fe90::/64"], "ttl": 5,
            },
            "container": "c", "ifname": "eth0", "names": ["c"],
            "addresses": ["10.89.0.2", "fd00::2", "fe90::2"], "servers": ["1.1.1.1"],
        })
    );
}

#[test]
fn pods_ask_here_first() {
    let servers = ["10.89.0.1".parse().unwrap()];
    let answer = plan(json!({"domainName": "dns.podman"})).answer(result(), &servers);
    assert_eq!(answer.dns.nameservers, ["10.89.0.1", "9.9.9.9"]);
    assert_eq!(answer.dns.search, ["example.org", "dns.podman"]);
    assert_eq!(answer.dns.domain, "dns.podman");
    assert_eq!(plan(json!({})).answer(result(), &[]), result());
}

#[test]
fn every_fault_is_reported_with_its_key() {
    let found = faults(json!({
        "domainName": "a..b",
        "servers": ["9.9.9.9", "dns.google"],
        "listen": ["10.1.0.1/24"],
        "resolver": "none",
        "records": [{"name": "a b", "addresses": ["10.0.0.1"]}],
        "runtimeConfig": {"aliases": {"web": ["my alias"]}, "dns": {"servers": ["x"]}},
    }));
    let keys: Vec<_> = found.iter().filter_map(|it| it.split('|').next()).collect();
    assert_eq!(
        keys,
        [
            "domainName",
            "servers[1]",
            "listen[0]",
            "records[0].name",
            "resolver",
            "runtimeConfig.aliases.web[0]",
            "runtimeConfig.dns.servers[0]",
        ]
    );
    for message in found {
        let (key, text) = message.split_once('|').unwrap();
        assert!(text.starts_with(&format!("{key}: ")), "{message}");
    }
}

#[test]
fn a_record_of_the_configuration_says_one_thing() {
    for (record, key) in [
        (json!({"name": "db"}), "records[0]"),
        (
            json!({"name": "db", "addresses": ["10.0.0.1"], "cname": "x"}),
            "records[0]",
        ),
        (json!({"addresses": ["10.0.0.1"]}), "records[0].name"),
        (
            json!({"name": "db", "addresses": []}),
            "records[0].addresses",
        ),
        (
            json!({"name": "db", "addresses": ["x"]}),
            "records[0].addresses[0]",
        ),
        (json!({"name": "db", "cname": "*.a"}), "records[0].cname"),
        (
            json!({"name": "_x._tcp", "srv": [{"port": 1}]}),
            "records[0].srv[0].target",
        ),
        (
            json!({"name": "db", "txt": ["x".repeat(256)]}),
            "records[0].txt[0]",
        ),
    ] {
        let found = faults(json!({"records": [record]}));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{key}|")), "{found:?}");
    }
    let records = json!([
        {"name": "*.apps", "addresses": ["10.0.0.1", "fd00::1"]},
        {"name": "www", "cname": "web"},
        {"name": "_http._tcp", "srv": [{"port": 80, "target": "web"}]},
        {"name": "note", "txt": ["text"]},
    ]);
    assert_eq!(plan(json!({"records": records})).network.records.len(), 4);
}

#[test]
fn podwired_is_started_unless_a_service_is() {
    for (resolver, starts) in [("", true), ("on-demand", true), ("service", false)] {
        assert_eq!(plan(json!({"resolver": resolver})).starts_resolver, starts);
    }
}
