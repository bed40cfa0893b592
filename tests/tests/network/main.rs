//! `podwire network`: networks by name, compared with what the kernel and the files have.

mod bad_input;
mod foreign;
mod listing;
mod node;
mod page;
mod removal;
mod subnets;
mod update;

use sandbox::beyond_peer;
use serde_json::{Value, json};

use node::{Node, bad, good};

const WHY: &str = "podwire has networks by name, the Go suite has no such command";

#[test]
fn a_network_is_created_used_and_removed() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot().allow_bridge_network();
        let id = node.create(&["--subnet", "10.5.0.0/24", "--ipv6", "--label", "a=b", "n"]);
        assert!(
            id.len() == 64 && id.bytes().all(|it| it.is_ascii_hexdigit()),
            "{id}"
        );
        assert_eq!(node.files(), ["zz-podwire-n.conflist"]);
        let pod = node.sandbox.pod("blue");
        good(&node.podwire(&["add", "n", &pod.path()]));
        let bridge = format!("br-{}", &id[..12]);
        assert!(
            node.host()
                .addresses(&bridge)
                .contains(&"10.5.0.1/24".to_owned())
        );
        assert!(pod.addresses("eth0").contains(&"10.5.0.2/24".to_owned()));
        let document = node.inspect("n");
        let containers = document["Containers"].as_object().expect("an object");
        let container = containers.values().next().expect("a container");
        assert_eq!(container["IPv4Address"], "10.5.0.2/24");
        assert_eq!(
            container["MacAddress"],
            pod.link("eth0").expect("eth0")["address"]
        );
        assert_eq!(document["Id"], *id);
        assert_eq!(document["Labels"], json!({"a": "b"}));
        let used = &document["Status"]["IPAM"]["Subnets"]["10.5.0.0/24"];
        assert_eq!(*used, json!({"IPsInUse": 4, "DynamicIPsAvailable": 252}));
        bad(
            &node.network(&["rm", "n"]),
            "network n has active endpoints (name:",
        );
        assert_eq!(node.files(), ["zz-podwire-n.conflist"]);
        good(&node.podwire(&["del", "n", &pod.path()]));
        assert_eq!(
            good(&node.network(&["rm", &id[..5]])),
            format!("{}\n", &id[..5])
        );
        assert_eq!(node.files(), [""; 0]);
        node.sandbox.remove_pod(&pod);
        assert_eq!(node.host().link(&bridge), None);
        assert_eq!(node.sandbox.list("/var/lib/cni/networks"), [".podwire"]);
        snapshot
            .allow("dir /var/lib/cni")
            .allow("cni_plugins_masquerade")
            .assert_unchanged();
    });
}

/// The keys that scripts read, in Docker's order.
#[test]
fn the_document_has_dockers_keys() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.create(&["n"]);
        let text = good(&node.network(&["inspect", "n"]));
        let keys = [
            "Name",
            "Id",
            "Created",
            "Scope",
            "Driver",
            "EnableIPv4",
            "EnableIPv6",
            "IPAM",
            "Internal",
            "Attachable",
            "Ingress",
            "ConfigFrom",
            "ConfigOnly",
            "Containers",
            "Options",
            "Labels",
            "Status",
        ];
        let places = keys.map(|key| {
            text.find(&format!("\n        \"{key}\": "))
                .unwrap_or_else(|| panic!("{key}: {text}"))
        });
        assert!(places.is_sorted(), "{text}");
        let document = node.inspect("n");
        assert_eq!(document.as_object().expect("an object").len(), keys.len());
        assert_eq!(
            document["IPAM"]["Config"][0],
            json!({"Subnet": "10.208.0.0/24", "IPRange": "", "Gateway": "10.208.0.1"})
        );
        assert_eq!(document["ConfigFrom"], json!({"Network": ""}));
        for predefined in ["none", "host", "bridge"] {
            let document = node.inspect(predefined);
            assert_eq!(document["Name"], predefined);
            assert_eq!(document["IPAM"]["Config"], json!([]));
        }
    });
}

#[test]
fn a_configuration_edited_by_hand_counts() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let id = node.create(&[
            "--subnet",
            "10.5.0.0/24",
            "--ip-range",
            "10.5.0.128/25",
            "n",
        ]);
        let file = "net.d/zz-podwire-n.conflist";
        let mut list = node.json(file);
        list["name"] = "renamed".into();
        list["plugins"][0]["ipam"]["ranges"][0][0] =
            json!({"subnet": "10.6.0.0/24", "rangeEnd": "10.6.0.9"});
        node.write(file, &list);
        let document = node.inspect(&id);
        assert_eq!(document["Name"], "renamed");
        let config = &document["IPAM"]["Config"][0];
        assert_eq!(
            *config,
            json!({"Subnet": "10.6.0.0/24", "IPRange": "10.6.0.1-10.6.0.9", "Gateway": "10.6.0.1"})
        );
        bad(&node.network(&["inspect", "n"]), "network n not found");
        bad(
            &node.network(&["create", "--subnet", "10.6.0.0/16", "m"]),
            "of network renamed (",
        );
        node.create(&["--subnet", "10.5.0.0/24", "m"]);
        list["podwire"] = Value::from("nonsense");
        node.write(file, &list);
        bad(&node.network(&["rm", "renamed"]), "podwire has not made it");
    });
}
