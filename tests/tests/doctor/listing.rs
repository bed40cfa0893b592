//! `podwire ps` and `inspect`: what the cache, the kernel and the stores have.

use sandbox::beyond_peer;
use serde_json::{Value, json};

use crate::{Node, WHY, bridge, network};

fn rows(node: &Node, args: &[&str]) -> Vec<Value> {
    let args: Vec<_> = ["ps", "--json"].iter().chain(args).copied().collect();
    serde_json::from_str(&node.must(&args)).expect("JSON")
}

#[test]
fn pods_of_any_runtime_are_listed_with_what_differs() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let row = &rows(&node, &[])[0];
        let link = node.blue.link("eth0").expect("an interface");
        for (key, value) in [
            ("Networks", json!("net")),
            ("Addresses", json!("10.1.0.2")),
            ("Ports", json!("0.0.0.0:8080->80/tcp")),
            ("Interfaces", json!("eth0")),
            ("MACs", link["address"].clone()),
            ("Runtime", json!("cnitool")),
            ("State", json!("running")),
            ("Health", json!("ok")),
        ] {
            assert_eq!(row[key], value, "{key}: {row:#}");
        }
        let health = || rows(&node, &[])[0]["Health"].clone();
        node.blue.sh("ip link set eth0 down");
        assert_eq!(health(), "down");
        node.blue.sh("ip link set eth0 up");
        node.host()
            .sh("mkdir /var/lib/elsewhere; mv /var/lib/cni/results/* /var/lib/elsewhere");
        assert_eq!(health(), "not cached");
        node.host()
            .sh("mv /var/lib/elsewhere/* /var/lib/cni/results");
        node.sandbox.remove_pod(&node.blue);
        assert_eq!(health(), "cache only");
        assert_eq!(rows(&node, &[])[0]["State"], "gone");
    });
}

#[test]
fn a_network_is_chosen_and_the_form() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let mut other = bridge();
        other["bridge"] = "cni1".into();
        other["ipam"]["ranges"] = json!([[{"subnet": "10.2.0.0/24"}]]);
        node.configure("other", &network("other", &[other]));
        let red = node.sandbox.pod("red");
        node.must(&["add", "other", &red.path()]);
        assert_eq!(rows(&node, &[]).len(), 2);
        assert_eq!(
            rows(&node, &["--network", "other"])[0]["Addresses"],
            "10.2.0.2"
        );
        let wide = node.must(&["ps", "--network", "net", "--format", "wide"]);
        let lines: Vec<_> = wide.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("MAC ADDRESSES") && lines[1].contains("cnitool"));
        let template = node.must(&[
            "ps",
            "--network",
            "net",
            "--format",
            "{{.Addresses}} {{.Health}}",
        ]);
        assert_eq!(template, "10.1.0.2 ok\n");
        let done = node.execute(&["podwire", "ps", "--network", "nope"], &Value::Null);
        assert_eq!(done.code, 1, "{done:?}");
    });
}

#[test]
fn a_pod_is_inspected() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let text = node.must(&["inspect", &node.blue.path()]);
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let attachment = &all[0]["Attachments"][0];
        assert_eq!(attachment["Network"], "net");
        assert_eq!(attachment["OnNode"]["Name"], node.veth());
        assert_eq!(attachment["Master"], "cni0");
        assert_eq!(attachment["Reserved"], json!(["10.1.0.2"]));
        assert_eq!(attachment["Ports"], json!(["0.0.0.0:8080->80/tcp"]));
        assert_eq!(
            attachment["In"],
            json!({"Cache": true, "Kernel": true, "HostLocal": true, "PublishedPorts": true})
        );
        let link = node.blue.link("eth0").expect("an interface");
        assert_eq!(attachment["InPod"]["MacAddress"], link["address"]);
        assert_eq!(attachment["Result"]["ips"][0]["address"], "10.1.0.2/24");
        assert_eq!(all[0]["Namespace"]["Path"], node.blue.path());
        let id = all[0]["ID"].as_str().expect("an id");
        let text = node.must(&["inspect", "--format", "{{.ID}} {{.Runtime}}", id]);
        assert_eq!(text, format!("{id} cnitool\n"));
        let done = node.execute(&["podwire", "inspect", "nope"], &Value::Null);
        assert_eq!(done.code, 1);
    });
}
