//! bridge at all seven CNI versions: one attachment, seven shapes of result
//! (reference 1.8).

use sandbox::{Netns, Sandbox, beyond_peer, conf, supports};
use serde_json::{Value, json};

const OLD: [&str; 2] = ["0.1.0", "0.2.0"];
const MIDDLE: [&str; 3] = ["0.3.0", "0.3.1", "0.4.0"];
const NEW: [&str; 2] = ["1.0.0", "1.1.0"];

fn bridge(version: &str) -> Value {
    let ipam = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let conf = conf::bridge(&["10.1.0.0/24", "fd01::/64"]);
    conf::at(&conf::with(&conf, json!({"ipam": ipam})), version)
}

/// Result of an ADD at this version, as a value and as it was printed.
fn add(version: &str) -> (Sandbox, Netns, Value, String) {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let outcome = sandbox.cni("bridge").add(&bridge(version), &pod, "eth0");
    let (result, text) = (outcome.result(), outcome.stdout().to_owned());
    (sandbox, pod, result, text)
}

fn keys(value: &Value) -> Vec<String> {
    value
        .as_object()
        .map(|o| o.keys().cloned().collect())
        .unwrap_or_default()
}

/// Whether these keys are printed in this order.
fn in_order(text: &str, wanted: &[&str]) -> bool {
    let places: Option<Vec<usize>> = wanted
        .iter()
        .map(|key| text.find(&format!("\"{key}\":")))
        .collect();
    places.is_some_and(|places| places.is_sorted())
}

#[test]
fn the_oldest_versions_know_one_address_per_family_and_no_interfaces() {
    for version in OLD {
        let (_sandbox, _pod, result, text) = add(version);
        let expected = json!({
            "cniVersion": version,
            "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd01::2/64", "gateway": "fd01::1", "routes": [{"dst": "::/0"}]},
            "dns": {},
        });
        assert_eq!(result, expected);
        assert!(
            in_order(&text, &["cniVersion", "ip4", "ip6", "dns"]),
            "{text}"
        );
    }
}

#[test]
fn of_more_addresses_the_oldest_versions_get_the_first() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let answer = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.7.0.5/24"}, {"address": "10.8.0.5/24"}]});
    sandbox.fake("fake-ipam").answer("ADD", &answer);
    let conf = conf::with(
        &conf::bridge_l2(),
        json!({"ipam": {"type": "fake-ipam"}, "cniVersion": "0.2.0"}),
    );
    let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    assert_eq!(
        result,
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.7.0.5/24"}, "dns": {}})
    );
}

#[test]
fn the_middle_versions_have_interfaces_and_a_version_in_every_address() {
    for version in MIDDLE {
        let (_sandbox, pod, result, text) = add(version);
        assert_eq!(
            keys(&result),
            ["cniVersion", "dns", "interfaces", "ips", "routes"]
        );
        let order = ["cniVersion", "interfaces", "ips", "routes", "dns"];
        assert!(in_order(&text, &order), "{text}");
        assert_eq!(keys(&result["interfaces"][0]), ["mac", "name"]);
        assert_eq!(keys(&result["interfaces"][2]), ["mac", "name", "sandbox"]);
        assert_eq!(result["interfaces"][2]["sandbox"], pod.path());
        let ips = json!([
            {"version": "4", "interface": 2, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
            {"version": "6", "interface": 2, "address": "fd01::2/64", "gateway": "fd01::1"},
        ]);
        assert_eq!(result["ips"], ips);
        assert_eq!(
            result["routes"],
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
        assert_eq!(result["dns"], json!({}));
    }
}

#[test]
fn the_new_versions_say_no_version_of_an_address() {
    for version in NEW.into_iter().filter(|v| supports(v)) {
        let (_sandbox, _pod, result, _) = add(version);
        assert_eq!(result["cniVersion"], version);
        let ips = json!([
            {"interface": 2, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
            {"interface": 2, "address": "fd01::2/64", "gateway": "fd01::1"},
        ]);
        assert_eq!(result["ips"], ips);
        assert_eq!(
            result["routes"],
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
    }
}

#[test]
fn the_new_versions_leave_out_what_is_empty_and_sort_their_keys() {
    beyond_peer(
        "libraries before v1.2 print an empty dns and do not sort",
        || {
            for version in NEW {
                let (_sandbox, _pod, result, text) = add(version);
                assert_eq!(keys(&result), ["cniVersion", "interfaces", "ips", "routes"]);
                assert!(
                    in_order(&text, &["cniVersion", "interfaces", "ips", "routes"]),
                    "{text}"
                );
                assert!(
                    in_order(&text, &["address", "gateway", "interface"]),
                    "{text}"
                );
            }
        },
    );
}

#[test]
fn only_the_newest_version_tells_the_mtu() {
    for version in OLD.into_iter().chain(MIDDLE).chain(["1.0.0"]) {
        let (_sandbox, _pod, _, text) = add(version);
        assert!(!text.contains("\"mtu\""), "{text}");
    }
    beyond_peer("the peer is older than CNI 1.1.0", || {
        let (sandbox, pod, result, _) = add("1.1.0");
        for (index, link) in [sandbox.host().link("cni0"), pod.link("eth0")]
            .into_iter()
            .enumerate()
        {
            assert_eq!(
                result["interfaces"][index * 2]["mtu"],
                link.expect("a link")["mtu"]
            );
        }
        assert_eq!(result["interfaces"][1]["mtu"], 1500);
    });
}

#[test]
fn results_are_indented_by_four_and_end_without_a_newline() {
    for version in OLD.into_iter().chain(MIDDLE).chain(["1.0.0"]) {
        let (_sandbox, _pod, _, text) = add(version);
        assert!(text.starts_with("{\n    \"cniVersion\": \""), "{text}");
        assert!(text.ends_with("\n}"), "{text}");
    }
}

#[test]
fn a_missing_version_is_the_oldest() {
    for version in [Value::Null, json!("")] {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let conf = conf::with(&bridge("1.0.0"), json!({"cniVersion": version}));
        let result = sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
        assert_eq!(result["cniVersion"], "0.1.0");
        assert_eq!(result["ip4"]["ip"], "10.1.0.2/24");
        assert!(result.get("interfaces").is_none(), "{result}");
    }
}

#[test]
fn every_version_can_be_checked_and_deleted_with_its_own_result() {
    for version in OLD
        .into_iter()
        .chain(MIDDLE)
        .chain(NEW)
        .filter(|v| supports(v))
    {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        let snapshot = sandbox.snapshot().allow_bridge_network();
        let result = sandbox
            .cni("bridge")
            .add(&bridge(version), &pod, "eth0")
            .result();
        let conf = conf::with_prev(&bridge(version), &result);
        if version >= "0.4.0" {
            sandbox.cni("bridge").check(&conf, &pod, "eth0").silent();
        }
        sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
        snapshot.assert_unchanged();
    }
}

#[test]
fn what_the_kernel_holds_does_not_depend_on_the_version() {
    let (first, _first_pod, _, _) = add("0.1.0");
    for version in ["0.3.1", "0.4.0", sandbox::newest()] {
        let (sandbox, _pod, _, _) = add(version);
        // The index of host-local holds the time of each reservation.
        sandbox.assert_same_state(&first, |line| {
            (!line.contains("/.podwire/")).then_some(line)
        });
    }
}
