//! The cache, the kernel and host-local's reservations.

use sandbox::beyond_peer;
use serde_json::Value;

use crate::{Node, WHY, bridge, network, portmap};

#[test]
fn rules_that_were_flushed() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("nft flush ruleset");
        node.is_found_and_fixed("PW020");
        node.host().sh("nft delete table ip podwire_hostports");
        node.is_found_and_cured("PW020");
    });
}

#[test]
fn a_bridge_without_its_address() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip addr flush dev cni0");
        // Its route is gone with it, so that the way to the pod is unknown.
        node.is_found_and_fixed("PW021");
    });
}

#[test]
fn a_pod_that_was_never_detached() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.sandbox.remove_pod(&node.blue);
        node.is_found_and_fixed("PW022");
        assert!(
            node.sandbox
                .read("/var/lib/cni/networks/net/10.1.0.2")
                .is_none()
        );
    });
}

#[test]
fn an_attachment_that_the_cache_does_not_have() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let (from, to) = ("/var/lib/cni/results", "/var/lib/elsewhere");
        node.host().sh(&format!("mkdir {to}; mv {from}/* {to}"));
        let finding = node.finding("PW023");
        assert_eq!(finding["network"], "net");
        node.host().sh(&format!("mv {to}/* {from}"));
        node.assert_healthy();
    });
}

#[test]
fn addresses_of_containers_that_are_gone() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for ip in ["10.1.0.7", "10.1.0.8"] {
            node.sandbox
                .write(format!("/var/lib/cni/networks/net/{ip}"), "old\r\neth0");
        }
        node.is_found_and_fixed("PW024");
        // Of a network without a configuration.
        node.sandbox
            .write("/var/lib/cni/networks/old/10.9.0.7", "old\r\neth0");
        node.is_found_and_cured("PW024");
        // A pod of another runtime has its address.
        node.sandbox
            .pod("red")
            .sh("ip link set lo up; ip addr add 10.1.0.9/32 dev lo");
        node.sandbox
            .write("/var/lib/cni/networks/net/10.1.0.9", "other\r\neth0");
        node.assert_healthy();
    });
}

#[test]
fn ports_of_a_pod_that_is_gone() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.sandbox.remove_pod(&node.blue);
        // Another suite's DEL knows nothing of podwire's table.
        node.host().wait_until("the veth pair is gone", |host| {
            !host.links().iter().any(|it| it.starts_with("veth"))
        });
        node.host()
            .sh("rm /var/lib/cni/results/*; rm /var/lib/cni/networks/net/10.1.0.2");
        node.is_found_and_fixed("PW025");
    });
}

#[test]
fn a_file_of_the_cache_that_a_crash_has_truncated() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.sandbox
            .write("/var/lib/cni/results/net-dead-eth0", "{");
        node.is_found_and_cured("PW026");
    });
}

#[test]
fn a_name_without_a_namespace() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.sandbox.write("/run/netns/cni-dead", "");
        node.is_found_and_cured("PW027");
    });
}

#[test]
fn a_bridge_that_was_deleted_cannot_be_restored() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip link del cni0");
        let (code, document) = node.examine(&[]);
        assert_eq!(code, 1);
        let ids = document["findings"].as_array().expect("findings").iter();
        let ids: Vec<_> = ids.filter_map(|it| it["id"].as_str()).collect();
        assert_eq!(ids, ["PW028"], "{document:#}");
        node.must(&["del", "net", &node.blue.path()]);
        node.must(&["add", "net", &node.blue.path()]);
        node.assert_healthy();
    });
}

#[test]
fn a_report_has_the_findings_and_no_secret() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let mut list = network("net", &[bridge(), portmap()]);
        list["podwire"] = serde_json::json!({"labels": {"apiToken": "hidden-value"}});
        node.configure("net", &list);
        node.sandbox.write("/run/netns/cni-dead", "");
        let file = node.sandbox.dir().join("report.tar").display().to_string();
        let (code, _) = node.examine(&["--report", &file]);
        assert_eq!(code, 1);
        let names = node.host().sh(&format!("tar -tf {file}"));
        for name in [
            "doctor.json",
            "namespaces",
            "attachments",
            "networks/net.json",
        ] {
            assert!(names.contains(name), "{name}: {names}");
        }
        let all = node.host().sh(&format!("tar -xOf {file}"));
        assert!(all.contains("PW027") && !all.contains("hidden-value"));
        assert_eq!(node.host().sh(&format!("stat -c %a {file}")), "600\n");
        let again = node.execute(&["podwire", "doctor", "--report", &file], &Value::Null);
        assert_eq!(again.code, 2, "a file is not overwritten");
    });
}

#[test]
fn long_work_shows_a_bar_on_a_terminal_alone() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("cd /var/lib/cni/results; for i in $(seq 60); do
            sed \"s/cnitool-[0-9a-f]*/gone$i/; s#/run/netns/blue#/run/netns/gone$i#g\" net-cnitool-*-eth0 > net-gone$i-eth0
            done");
        let piped = node.execute(&["podwire", "resync", "--dry-run"], &Value::Null);
        assert_eq!(piped.code, 0, "{piped:?}");
        assert!(!piped.stderr.contains(['\r', '\x1b']), "{piped:?}");
        // A bar needs a terminal that can move its cursor, whatever the tests were started on.
        let command = "TERM=linux podwire resync --dry-run";
        let terminal = ["script", "-qec", command, "/dev/null"];
        let shown = node.execute(&terminal, &Value::Null);
        assert!(shown.stdout.contains("/61"), "{shown:?}");
    });
}
