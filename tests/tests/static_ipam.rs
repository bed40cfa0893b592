//! static: the addresses of the configuration, or those that the runtime asks for.

use sandbox::{Cni, Netns, Sandbox, beyond_peer, conf, newest, supports};
use serde_json::{Value, json};

fn conf() -> Value {
    conf::static_ipam(&json!([
        {"address": "10.5.0.9/24", "gateway": "10.5.0.1"},
        {"address": "fd05::9/64"},
    ]))
}

/// ADD with a change to the configuration; returns the result.
fn add(change: Value, prepare: impl FnOnce(Cni) -> Cni) -> Value {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(&conf(), change);
    prepare(sandbox.cni("static"))
        .add(&conf, &pod, "eth0")
        .result()
}

/// ADD that must fail; returns the message.
fn refuses(change: Value, args: Option<&str>) -> sandbox::Failure {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(&conf(), change);
    let cni = sandbox.cni("static");
    let cni = match args {
        Some(args) => cni.args(args),
        None => cni,
    };
    cni.add(&conf, &pod, "eth0").error()
}

fn as_is(cni: Cni) -> Cni {
    cni
}

fn ipam(change: Value) -> Value {
    json!({"ipam": change})
}

#[test]
fn add_returns_what_the_configuration_says_in_its_order() {
    let change = ipam(json!({
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.6.0.0/16", "gw": "10.5.0.2"}],
        "dns": {"nameservers": ["10.5.0.53"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:2"]},
    }));
    let expected = json!({
        "cniVersion": newest(),
        "ips": [{"address": "10.5.0.9/24", "gateway": "10.5.0.1"}, {"address": "fd05::9/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.6.0.0/16", "gw": "10.5.0.2"}],
        "dns": {"nameservers": ["10.5.0.53"], "domain": "example.org", "search": ["a", "b"], "options": ["ndots:2"]},
    });
    assert_eq!(add(change, as_is), expected);
}

#[test]
fn route_extras_are_passed_on() {
    beyond_peer("plugins before v1.5 know only dst and gw", || {
        let route = json!({"dst": "10.0.0.0/8", "gw": "10.5.0.1", "mtu": 1400, "advmss": 1360, "priority": 100, "table": 200, "scope": 0});
        let result = add(ipam(json!({"routes": [route.clone()]})), as_is);
        assert_eq!(result["routes"], json!([route]));
    });
}

#[test]
fn a_legacy_version_beside_an_address_is_tolerated() {
    let addresses = json!([{"version": "4", "address": "10.5.0.9/24"}]);
    let result = add(ipam(json!({"addresses": addresses})), as_is);
    assert_eq!(result["ips"], json!([{"address": "10.5.0.9/24"}]));
}

#[test]
fn no_addresses_are_an_empty_result() {
    let result = add(ipam(json!({"addresses": []})), as_is);
    assert!(
        result.get("ips").is_none_or(|ips| ips == &json!([])),
        "{result}"
    );
}

#[test]
fn no_addresses_are_an_error_of_the_calling_plugin() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(
        &conf::bridge_l2(),
        json!({"ipam": {"type": "static", "addresses": []}}),
    );
    let error = sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
    assert!(
        error.msg.contains("IPAM plugin returned missing IP config"),
        "{}",
        error.msg
    );
}

#[test]
fn cni_args_add_addresses_and_gateways() {
    let result = add(json!({}), |cni| {
        cni.args("IP=10.7.0.5/24,10.8.0.5/24;GATEWAY=10.7.0.1")
    });
    let ips = result["ips"].as_array().expect("ips").clone();
    assert_eq!(ips.len(), 4);
    assert!(
        ips.contains(&json!({"address": "10.7.0.5/24", "gateway": "10.7.0.1"})),
        "{result}"
    );
    assert!(ips.contains(&json!({"address": "10.8.0.5/24"})), "{result}");
    assert!(
        ips.contains(&json!({"address": "10.5.0.9/24", "gateway": "10.5.0.1"})),
        "{result}"
    );
}

#[test]
fn args_of_the_configuration_replace_its_addresses() {
    let result = add(
        json!({"args": {"cni": {"ips": ["10.9.0.5/24", "fd09::5/64"]}}}),
        as_is,
    );
    assert_eq!(
        result["ips"],
        json!([{"address": "10.9.0.5/24"}, {"address": "fd09::5/64"}])
    );
}

#[test]
fn the_ips_capability_replaces_everything() {
    let change = json!({
        "args": {"cni": {"ips": ["10.9.0.5/24"]}},
        "runtimeConfig": {"ips": ["10.10.0.5/24"]},
    });
    let result = add(change, |cni| cni.args("IP=10.7.0.5/24"));
    assert_eq!(result["ips"], json!([{"address": "10.10.0.5/24"}]));
}

#[test]
fn addresses_need_a_prefix_wherever_they_come_from() {
    let configured = refuses(ipam(json!({"addresses": [{"address": "10.5.0.9"}]})), None);
    let text = "the 'address' field is expected to be in CIDR notation, got: '10.5.0.9'";
    assert!(configured.msg.contains(text), "{}", configured.msg);
    let argument = refuses(json!({}), Some("IP=10.5.0.9"));
    let text = "the 'ip' field is expected to be in CIDR notation, got: '10.5.0.9'";
    assert!(argument.msg.contains(text), "{}", argument.msg);
    let capability = refuses(json!({"runtimeConfig": {"ips": ["10.5.0.9"]}}), None);
    let text = "an entry in the 'ips' field is NOT in CIDR notation, got: '10.5.0.9'";
    assert!(capability.msg.contains(text), "{}", capability.msg);
}

#[test]
fn a_bad_gateway_argument_is_named() {
    let error = refuses(json!({}), Some("IP=10.7.0.5/24;GATEWAY=10.7.0"));
    assert!(
        error.msg.contains("invalid gateway address: 10.7.0"),
        "{}",
        error.msg
    );
}

#[test]
fn faults_have_the_code_of_where_they_are() {
    beyond_peer("every fault is 999", || {
        assert_eq!(
            refuses(ipam(json!({"addresses": [{"address": "10.5.0.9"}]})), None).code,
            7
        );
        assert_eq!(
            refuses(json!({"runtimeConfig": {"ips": ["x"]}}), None).code,
            7
        );
        assert_eq!(refuses(json!({}), Some("IP=10.5.0.9")).code, 4);
        assert_eq!(refuses(json!({}), Some("FOO=1")).code, 4);
        assert_eq!(refuses(json!({}), Some("IP=10.7.0.5/24;")).code, 4);
    });
}

#[test]
fn cni_args_keep_to_their_grammar() {
    for (args, text) in [
        ("FOO=1", "unknown args [\"FOO=1\"]"),
        ("IP=10.7.0.5/24;", "invalid pair \"\""),
        ("IP", "invalid pair \"IP\""),
        ("ip=10.7.0.5/24", "unknown args [\"ip=10.7.0.5/24\"]"),
    ] {
        let error = refuses(json!({}), Some(args));
        assert!(error.msg.contains(text), "{args}: {}", error.msg);
    }
    for args in [
        "IgnoreUnknown=1;FOO=1",
        "FOO=1;IgnoreUnknown=true",
        "IgnoreUnknown=0;IP=10.7.0.5/24",
    ] {
        add(json!({}), |cni| cni.args(args));
    }
}

#[test]
fn two_addresses_of_one_family_are_too_many_before_0_3_0() {
    let addresses = json!([{"address": "10.5.0.9/24"}, {"address": "10.5.1.9/24"}]);
    let change = |version: &str| json!({"cniVersion": version, "ipam": {"addresses": addresses}});
    assert_eq!(
        refuses(change("0.2.0"), None).msg,
        "CNI version 0.2.0 does not support more than 1 address per family"
    );
    assert_eq!(
        add(change("0.3.0"), as_is)["ips"].as_array().map(Vec::len),
        Some(2)
    );
}

#[test]
fn every_version_gets_its_own_form() {
    let result = add(json!({"cniVersion": "0.2.0"}), as_is);
    assert_eq!(
        result["ip4"],
        json!({"ip": "10.5.0.9/24", "gateway": "10.5.0.1"})
    );
    assert_eq!(result["ip6"], json!({"ip": "fd05::9/64"}));
    let result = add(json!({"cniVersion": "0.3.1"}), as_is);
    assert_eq!(
        result["ips"][1],
        json!({"version": "6", "address": "fd05::9/64"})
    );
    if supports("1.1.0") {
        let result = add(json!({"cniVersion": "1.1.0"}), as_is);
        assert_eq!(result["ips"][1], json!({"address": "fd05::9/64"}));
    }
}

#[test]
fn check_needs_a_previous_result_with_the_same_gateway() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = sandbox.cni("static").add(&conf(), &pod, "eth0").result();
    let check = |conf: &Value| sandbox.cni("static").check(conf, &pod, "eth0");
    check(&conf::with_prev(&conf(), &result)).silent();
    let missing = check(&conf()).error().msg;
    assert!(missing.contains("Required prevResult missing"), "{missing}");
    let mut other = result.clone();
    other["ips"][0]["gateway"] = "10.5.0.77".into();
    let error = check(&conf::with_prev(&conf(), &other)).error().msg;
    assert!(error.contains("static: Failed to match addr "), "{error}");
}

#[test]
fn del_succeeds_whatever_the_configuration() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let del = |conf: &Value, pod: &Netns| {
        sandbox.cni("static").del(conf, pod, "eth0").silent();
        sandbox
            .cni("static")
            .netns("")
            .del(conf, pod, "eth0")
            .silent();
    };
    del(&conf(), &pod);
    del(
        &conf::with(
            &conf(),
            json!({"ipam": {"addresses": [{"address": "nonsense"}]}}),
        ),
        &pod,
    );
    del(&conf::with(&conf(), json!({"ipam": null})), &pod);
}

#[test]
fn nothing_is_kept_anywhere() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    sandbox.cni("static").add(&conf(), &pod, "eth0").result();
    snapshot.assert_unchanged();
}
