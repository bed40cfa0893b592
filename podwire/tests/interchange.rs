//! Attachments that go from one tool to the other: files as libcni writes
//! them, and what podwire leaves for it.

mod node;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use node::{NETNS, Node, container_id};
use serde_json::{Value, json};

/// As libcni's `json.Marshal` of a `cachedInfo` writes it, to the byte.
fn file_of_cnitool(id: &str) -> String {
    // base64 of {"cniVersion":"1.1.0","name":"net","plugins":[{"type":"a"}]}
    let config = "eyJjbmlWZXJzaW9uIjoiMS4xLjAiLCJuYW1lIjoibmV0IiwicGx1Z2lucyI6W3sidHlwZSI6ImEifV19";
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"{id}","config":"{config}","ifName":"eth0","networkName":"net","netns":"{NETNS}","cniArgs":[["K","V"]],"capabilityArgs":{{"ips":["10.0.0.2/24"]}},"result":{{"cniVersion":"1.1.0","interfaces":[{{"name":"cnitool"}}]}}}}"#
    )
}

fn node() -> Node {
    let node = Node::new();
    node.working_plugin("a");
    node.configure(
        "10-net.conflist",
        &json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
            {"type": "a", "capabilities": {"ips": true}}]}),
    );
    fs::create_dir(node.path("cache/results")).expect("make a directory");
    node
}

#[test]
fn del_takes_what_cnitool_has_added() {
    let node = node();
    fs::write(node.cached(), file_of_cnitool(&container_id())).unwrap();
    node.podwire(&["check", "net", NETNS]).succeeded();
    node.podwire(&["del", "net", NETNS]).succeeded();
    assert_eq!(node.order(), ["a:CHECK", "a:DEL"]);
    for call in node.calls() {
        let prev = &call.stdin["prevResult"];
        assert_eq!(prev["interfaces"], json!([{"name": "cnitool"}]));
        assert_eq!(call.stdin["runtimeConfig"], json!({"ips": ["10.0.0.2/24"]}));
        assert_eq!(call.env["CNI_ARGS"], "K=V");
    }
    assert!(!node.cached().exists());
}

#[test]
fn del_takes_a_bare_result_from_before_cni_cache_v1() {
    let node = node();
    let old = json!({"cniVersion": "0.4.0", "interfaces": [{"name": "old"}],
                     "ips": [{"version": "4", "address": "10.0.0.2/24"}], "dns": {}});
    fs::write(node.cached(), old.to_string()).unwrap();
    node.podwire(&["del", "net", NETNS]).succeeded();
    let prev = &node.calls()[0].stdin["prevResult"];
    assert_eq!(prev["cniVersion"], "1.1.0");
    assert_eq!(prev["interfaces"], json!([{"name": "old"}]));
    assert!(!node.cached().exists());
}

#[test]
fn del_goes_on_without_a_file_that_cannot_be_read() {
    let node = node();
    fs::write(node.cached(), "{").unwrap();
    let stderr = node.podwire(&["check", "net", NETNS]).failed();
    assert!(
        stderr.contains("failed to get network \"net\" cached result"),
        "{stderr}"
    );
    node.podwire(&["del", "net", NETNS]).succeeded();
    assert!(node.calls()[0].stdin.get("prevResult").is_none());
    assert!(!node.cached().exists());
}

#[test]
fn add_leaves_what_libcni_reads() {
    let node = node();
    fs::remove_dir(node.path("cache/results")).unwrap();
    let variables = [
        ("CNI_ARGS", "K=V"),
        ("CAP_ARGS", r#"{"ips": ["10.0.0.2/24"], "other": 1}"#),
    ];
    node.podwire_with(&variables, &["add", "net", NETNS])
        .succeeded();
    let text = fs::read_to_string(node.cached()).unwrap();
    // The order of the members is that of libcni's struct.
    let names = [
        "kind",
        "containerId",
        "config",
        "ifName",
        "networkName",
        "netns",
        "cniArgs",
        "capabilityArgs",
        "result",
    ];
    let mut places = names.iter().map(|name| text.find(&format!("\"{name}\":")));
    assert!(places.all(|place| place.is_some()), "{text}");
    let written: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(written["kind"], "cniCacheV1");
    assert_eq!(written["containerId"], container_id());
    assert_eq!(written["cniArgs"], json!([["K", "V"]]));
    assert_eq!(
        written["capabilityArgs"],
        json!({"ips": ["10.0.0.2/24"], "other": 1})
    );
    assert_eq!(written["result"]["interfaces"], json!([{"name": "a"}]));
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(node.cached()), 0o600);
    assert_eq!(mode(node.path("cache/results")), 0o700);
}

#[test]
fn gc_detaches_everything_then_passes_an_empty_list_to_the_plugins() {
    let node = node();
    node.podwire(&["add", "net", NETNS]).succeeded();
    let other = node.path("cache/results/net-pod1-eth0");
    fs::write(&other, file_of_cnitool("pod1")).unwrap();
    let foreign = node.path("cache/results/net2-pod1-eth0");
    let text = file_of_cnitool("pod1").replace(r#""net""#, r#""net2""#);
    fs::write(&foreign, text).unwrap();
    node.forget_calls();
    node.podwire(&["gc", "net", NETNS]).succeeded();
    assert_eq!(node.order(), ["a:DEL", "a:DEL", "a:GC"]);
    let gc = node.calls().pop().unwrap();
    assert_eq!(gc.stdin["cni.dev/valid-attachments"], json!([]));
    assert_eq!(gc.env["CNI_CONTAINERID"], "");
    assert!(!other.exists() && !node.cached().exists() && foreign.exists());
}

#[test]
fn gc_can_keep_what_is_in_the_cache() {
    let node = node();
    node.podwire(&["add", "net", NETNS]).succeeded();
    node.forget_calls();
    node.podwire(&["gc", "--keep-cached", "net"]).succeeded();
    assert_eq!(node.order(), ["a:GC"]);
    let valid = json!([{"containerID": container_id(), "ifname": "eth0"}]);
    let gc = node.calls().pop().unwrap();
    assert_eq!(gc.stdin["cni.dev/valid-attachments"], valid);
    assert_eq!(gc.stdin["cni.dev/attachments"], valid);
    assert!(gc.stdin.get("runtimeConfig").is_none());
    assert!(node.cached().exists());
}

#[test]
fn gc_does_everything_and_reports_what_failed() {
    let node = node();
    node.failing_plugin("a", "DEL", 999);
    node.failing_plugin("b", "GC", 11);
    node.network(&["b", "a"]);
    fs::write(node.cached(), file_of_cnitool(&container_id())).unwrap();
    let done = node.podwire(&["gc", "--json", "net"]);
    assert_eq!(done.status, 1);
    assert_eq!(node.order(), ["a:DEL", "b:DEL", "b:GC", "a:GC"]);
    let error = done.json();
    let id = container_id();
    assert_eq!(
        error["msg"],
        format!(
            "failed to delete stale attachment {id} eth0: plugin type=\"a\" failed (delete): a is broken"
        )
    );
    let details = error["details"].as_str().unwrap();
    assert!(
        details.contains("failed to GC plugin b: b is broken"),
        "{details}"
    );
}

#[test]
fn gc_before_110_only_detaches_and_can_be_disabled() {
    let node = node();
    let network = |version: &str, disable: bool| {
        node.configure(
            "10-net.conflist",
            &json!({"cniVersion": version, "name": "net", "disableGC": disable,
                    "plugins": [{"type": "a"}]}),
        );
    };
    fs::write(node.cached(), file_of_cnitool(&container_id())).unwrap();
    network("1.1.0", true);
    node.podwire(&["gc", "net"]).succeeded();
    assert!(node.order().is_empty() && node.cached().exists());
    network("1.0.0", false);
    node.podwire(&["gc", "net"]).succeeded();
    assert_eq!(node.order(), ["a:DEL"]);
    assert!(!node.cached().exists());
}
