//! Networks that podman and nerdctl made.

use sandbox::beyond_peer;
use serde_json::{Value, json};

use crate::WHY;
use crate::node::{Node, bad, good};

fn lists(node: &Node) {
    let subnet = |subnet: &str| json!({"type": "host-local", "ranges": [[{"subnet": subnet, "gateway": "10.89.0.1"}]]});
    let podman = json!({"cniVersion": "0.4.0", "name": "of-podman", "plugins": [
        {"type": "bridge", "bridge": "cni-podman1", "ipam": subnet("10.89.0.0/24"), "args": {"podman_labels": {"app": "x"}}}]});
    let nerdctl = json!({"cniVersion": "1.0.0", "name": "of-nerdctl", "nerdctlID": "5d".repeat(32),
        "nerdctlLabels": {"app": "y"}, "plugins": [
            {"type": "bridge", "bridge": "br-5d5d5d5d5d5d", "ipam": subnet("10.4.1.0/24")}]});
    let own = json!({"cniVersion": "1.0.0", "name": "single", "type": "ptp", "ipam": subnet("10.7.0.0/24")});
    node.write("net.d/of-podman.conflist", &podman);
    node.write("net.d/nerdctl-of-nerdctl.conflist", &nerdctl);
    node.write("net.d/10-single.conf", &own);
}

#[test]
fn they_are_listed_inspected_and_not_removed() {
    beyond_peer(WHY, || {
        let node = Node::new();
        lists(&node);
        let names =
            good(&node.network(&["ls", "--format", "{{.Name}} {{.Driver}} {{.Label \"app\"}}"]));
        let expected = "bridge bridge \nhost host \nnone null \nof-nerdctl bridge y\nof-podman bridge x\nsingle ptp \n";
        assert_eq!(names, expected);
        assert_eq!(node.inspect("5d5d")["Name"], "of-nerdctl");
        // podman's id is the hash of the name.
        let hash = node.host().sh("printf of-podman | sha256sum");
        assert_eq!(
            node.inspect("of-podman")["Id"],
            hash.split(' ').next().expect("a hash")
        );
        let config = |name| node.inspect(name)["IPAM"]["Config"][0]["Subnet"].clone();
        assert_eq!(
            ["of-podman", "of-nerdctl", "single"].map(config),
            ["10.89.0.0/24", "10.4.1.0/24", "10.7.0.0/24"].map(Value::from)
        );
        for (name, text) in [
            ("of-podman", "podman network rm"),
            ("of-nerdctl", "nerdctl network rm"),
            ("single", "10-single.conf"),
        ] {
            bad(&node.network(&["rm", name]), text);
            bad(
                &node.network(&["create", name]),
                &format!("network with name {name} already exists"),
            );
        }
        assert_eq!(good(&node.network(&["prune", "-f"])), "");
        assert_eq!(node.files().len(), 3);
    });
}

#[test]
fn their_subnets_are_avoided() {
    beyond_peer(WHY, || {
        let node = Node::new();
        lists(&node);
        bad(
            &node.network(&["create", "--subnet", "10.89.0.0/25", "n"]),
            "Pool overlaps with other one on this address space: 10.89.0.0/25 overlaps with 10.89.0.0/24 of network of-podman (",
        );
        node.write(
            "pools.json",
            &json!([{"base": "10.4.0.0/23", "size": 24}, {"base": "10.89.0.0/24", "size": 25}]),
        );
        node.create(&["--pools", "pools.json", "n"]);
        assert_eq!(
            node.template("{{range .IPAM.Config}}{{.Subnet}}{{end}}", "n"),
            "10.4.0.0/24"
        );
        bad(
            &node.network(&["create", "--pools", "pools.json", "m"]),
            "all predefined address pools have been fully subnetted: 10.4.0.0/23 overlaps with",
        );
    });
}
