//! loopback: bring `lo` up in the pod, and say so.

use sandbox::{Netns, Sandbox, beyond_peer, conf, newest};
use serde_json::json;

fn is_up(pod: &Netns) -> bool {
    let link = pod.link("lo").expect("lo");
    link["flags"]
        .as_array()
        .expect("flags")
        .contains(&json!("UP"))
}

#[test]
fn add_brings_lo_up_and_reports_its_addresses() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    assert!(!is_up(&pod));
    let result = sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "lo")
        .result();
    assert!(is_up(&pod));
    assert_eq!(pod.ping("127.0.0.1", 1), [true]);
    assert_eq!(pod.ping("::1", 1), [true]);
    assert_eq!(result["cniVersion"], newest());
    let interface = &result["interfaces"][0];
    assert_eq!(interface["name"], "lo");
    assert_eq!(interface["mac"], "00:00:00:00:00:00");
    assert_eq!(interface["sandbox"], pod.path());
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(1));
    let ips =
        json!([{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}]);
    assert_eq!(result["ips"], ips);
}

#[test]
fn the_interface_name_does_not_matter() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "eth0")
        .result();
    assert_eq!(result["interfaces"][0]["name"], "lo");
    assert!(is_up(&pod));
    assert_eq!(pod.links(), ["lo"]);
}

#[test]
fn add_twice_is_as_good_as_once() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let add = || {
        sandbox
            .cni("loopback")
            .add(&conf::loopback(), &pod, "lo")
            .result()
    };
    assert_eq!(add(), add());
}

#[test]
fn add_without_ipv6_reports_what_there_is() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1");
    let result = sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "lo")
        .result();
    assert_eq!(
        result["ips"],
        json!([{"address": "127.0.0.1/8", "interface": 0}])
    );
}

#[test]
fn add_refuses_an_address_on_lo_that_is_no_loopback_address() {
    for address in ["10.9.9.9/32", "fd00::9/128"] {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        pod.sh(&format!("ip link set lo up; ip addr add {address} dev lo"));
        let error = sandbox
            .cni("loopback")
            .add(&conf::loopback(), &pod, "lo")
            .error();
        let bare = address.split('/').next().expect("an address");
        let text = format!("loopback interface found with non-loopback address \"{bare}");
        assert!(error.msg.contains(&text), "{}", error.msg);
    }
}

#[test]
fn add_in_a_missing_namespace_fails() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let error = sandbox
        .cni("loopback")
        .netns("/run/netns/nope")
        .add(&conf::loopback(), &pod, "lo")
        .error();
    let text = "failed to Statfs \"/run/netns/nope\": no such file or directory";
    assert!(error.msg.contains(text), "{}", error.msg);
}

#[test]
fn chained_it_passes_the_previous_result_on() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let previous = json!({
        "cniVersion": newest(),
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.path()}],
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {"nameservers": ["10.1.0.53"]},
    });
    let conf = conf::with_prev(&conf::loopback(), &previous);
    assert_eq!(
        sandbox.cni("loopback").add(&conf, &pod, "lo").result(),
        previous
    );
    assert!(is_up(&pod));
}

#[test]
fn check_passes_while_lo_is_up_and_fails_when_it_is_down() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let result = sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "lo")
        .result();
    let conf = conf::with_prev(&conf::loopback(), &result);
    let check = || sandbox.cni("loopback").check(&conf, &pod, "lo");
    check().silent();
    sandbox
        .cni("loopback")
        .check(&conf::loopback(), &pod, "lo")
        .silent();
    pod.sh("ip link set lo down");
    assert!(
        check().error().msg.contains("loopback interface is down"),
        "{}",
        check()
    );
}

#[test]
fn del_sets_lo_down_and_may_be_repeated() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "lo")
        .result();
    for _ in 0..2 {
        sandbox
            .cni("loopback")
            .del(&conf::loopback(), &pod, "lo")
            .silent();
        assert!(!is_up(&pod));
    }
    // The kernel keeps the address that it gave lo when it first came up.
    snapshot.allow("127.0.0.").assert_unchanged();
}

#[test]
fn nothing_on_the_node_changes() {
    let sandbox = Sandbox::new();
    let snapshot = sandbox.snapshot();
    let pod = sandbox.pod("a");
    sandbox
        .cni("loopback")
        .add(&conf::loopback(), &pod, "lo")
        .result();
    snapshot.assert_unchanged();
}

#[test]
fn old_versions_get_the_result_in_their_own_form() {
    beyond_peer(
        "reference 8 #19: the 1.x body merely stamped with the old version",
        || {
            let sandbox = Sandbox::new();
            let pod = sandbox.pod("a");
            let add = |version: &str| {
                let conf = conf::at(&conf::loopback(), version);
                sandbox.cni("loopback").add(&conf, &pod, "lo").result()
            };
            for version in ["0.1.0", "0.2.0"] {
                let expected = json!({
                    "cniVersion": version, "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {},
                });
                assert_eq!(add(version), expected);
            }
            for version in ["0.3.0", "0.3.1", "0.4.0"] {
                let expected = json!({
                    "cniVersion": version,
                    "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path()}],
                    "ips": [
                        {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                        {"version": "6", "interface": 0, "address": "::1/128"},
                    ],
                    "dns": {},
                });
                assert_eq!(add(version), expected);
            }
        },
    );
}

#[test]
fn without_a_version_the_result_is_in_the_oldest_form() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(&conf::loopback(), json!({"cniVersion": null}));
    let result = sandbox.cni("loopback").add(&conf, &pod, "lo").result();
    assert_eq!(result["ip4"], json!({"ip": "127.0.0.1/8"}));
    assert!(result.get("interfaces").is_none(), "{result}");
}

#[test]
fn what_containerd_sends_is_understood() {
    // Its built-in network: version 0.3.1, interface lo, and arguments of its own.
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let call = || {
        sandbox
            .cni("loopback")
            .args("IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p")
    };
    call().add(&conf, &pod, "lo").result();
    assert!(is_up(&pod));
    call().del(&conf, &pod, "lo").silent();
    call().netns("").del(&conf, &pod, "lo").silent();
}
