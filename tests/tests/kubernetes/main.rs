//! The roles of podwired on a Kubernetes cluster: a real API server, with the account and the configuration
//! of `deploy/kubernetes/`. Here the overlay, whose store are the nodes; `addresses` are in custom resources.

mod addresses;
mod api;
mod chart;
mod node;
mod records;

use sandbox::cluster::{address, entries, has, is_gone, programmed};
use serde_json::Value;

use api::Api;

const MAC: &str = "be:9f:00:00:00:07";
const OTHER_MAC: &str = "be:9f:00:00:00:08";

fn annotation<'v>(node: &'v Value, name: &str) -> &'v Value {
    &node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")]
}

/// The status of the condition that keeps pods away.
fn unavailable(node: &Value) -> Option<&str> {
    let all = node["status"]["conditions"].as_array()?;
    let found = all.iter().find(|it| it["type"] == "NetworkUnavailable");
    found?["status"].as_str()
}

#[test]
fn a_node_is_annotated_as_flanneld_does_and_follows_nodes_of_flanneld() {
    let api = Api::new(1);
    let node = api.cluster.node(1);
    api.add_flannel("other", 7, "172.20.7.2", &MAC.to_uppercase());
    let _agent = api.ready(1);
    let is_at =
        |ip: &str, mac: &str| has(&entries(node, "10.244.7"), &programmed("10.244.7", ip, mac));
    // Before the node was ready.
    assert!(is_at("172.20.7.2", MAC), "{:?}", entries(node, "10.244.7"));
    let device = node.link("flannel.1").expect("flannel.1");
    let own = api.node("node1");
    assert_eq!(annotation(&own, "kube-subnet-manager"), "true");
    assert_eq!(annotation(&own, "backend-type"), "vxlan");
    assert_eq!(annotation(&own, "public-ip"), &address(1));
    let data = format!(r#"{{"VNI":1,"VtepMAC":{}}}"#, device["address"]);
    assert_eq!(annotation(&own, "backend-data"), &data);
    api.cluster.wait("pods may come", || {
        unavailable(&api.node("node1")) == Some("False")
    });
    let env = api.cluster.sandbox.read(api.cluster.path("n1/subnet.env"));
    let env = env.expect("subnet.env");
    assert!(
        env.contains("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n"),
        "{env}"
    );

    api.annotate("other", "172.20.8.2", OTHER_MAC);
    api.cluster.wait("its address and MAC are followed", || {
        is_at("172.20.8.2", OTHER_MAC)
    });
    api.kubectl(&[
        "annotate",
        "node",
        "other",
        "flannel.alpha.coreos.com/kube-subnet-manager-",
    ]);
    api.cluster.wait("it has left the network", || {
        is_gone(node, "10.244.7", OTHER_MAC)
    });
    api.annotate("other", "172.20.8.2", OTHER_MAC);
    api.cluster
        .wait("it is back", || is_at("172.20.8.2", OTHER_MAC));
    api.kubectl(&["delete", "node", "other"]);
    api.cluster
        .wait("it is gone", || is_gone(node, "10.244.7", OTHER_MAC));
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_the_server_may_end() {
    let mut api = Api::new(2);
    let _agents = [1, 2].map(|node| api.ready(node));
    let pods = [1, 2].map(|node| api.cluster.pod(node, "a"));
    pods[0].wait_until("the other pod answers", |pod| {
        pod.ping("10.244.2.2", 1) == [true]
    });
    let capture = pods[1].capture("eth0", "icmp");
    assert!(pods[0].ping("10.244.2.2", 1)[0]);
    pods[1].wait_until("its address stays", |_| {
        capture.output().contains("10.244.1.2 > ")
    });
    api.server = None;
    api.cluster.wait("it is reported", || {
        api.cluster
            .page(1, "metrics")
            .contains("podwired_overlay_store_up{network=\"cbr0\"} 0")
    });
    assert!(pods[0].ping("10.244.2.2", 1)[0]);
    api.start();
    api.add_flannel("other", 7, "172.20.7.2", MAC);
    let peer = programmed("10.244.7", "172.20.7.2", MAC);
    api.cluster.wait("it goes on", || {
        has(&entries(api.cluster.node(1), "10.244.7"), &peer)
    });
    // Killed and started again, a node writes nothing.
    let before = api.node("node1")["metadata"]["resourceVersion"].clone();
    let [first, _second] = _agents;
    drop(first);
    let _first = api.cluster.ready(1, &api.conf(1));
    assert_eq!(api.node("node1")["metadata"]["resourceVersion"], before);
}

#[test]
fn a_node_without_a_subnet_or_a_good_token_says_so_and_waits() {
    let api = Api::new(1);
    api.add_node("node1", None);
    api.write_token("expired");
    let agent = api.cluster.start(1, &api.conf(1));
    let says = |what: &str| {
        api.cluster
            .wait(what, || api.cluster.page(1, "readyz").contains(what))
    };
    says("Unauthorized");
    // The token is read again, without a restart.
    api.write_token(&api.token());
    says("node node1 has no podCIDR yet: kube-controller-manager assigns it");
    assert_ne!(unavailable(&api.node("node1")), Some("False"));
    let subnet = r#"{"spec": {"podCIDR": "10.245.1.0/24", "podCIDRs": ["10.245.1.0/24"]}}"#;
    api.kubectl(&["patch", "node", "node1", "-p", subnet]);
    says("are not one in each of 10.244.0.0/16");
    // What is assigned stays, so the node comes again.
    api.kubectl(&["delete", "node", "node1"]);
    says("there is no node \"node1\"");
    api.add_node("node1", Some(0));
    api.cluster.await_ready(1, &agent);
    assert_eq!(api.cluster.subnet(1), "10.244.0");
}

#[test]
fn what_was_compacted_while_the_node_was_cut_off_is_not_missed() {
    let mut api = Api::new(1);
    api.add_flannel("gone", 70, "172.20.7.1", MAC);
    api.add_flannel("moved", 71, "172.20.7.2", OTHER_MAC);
    let _agent = api.ready(1);
    api.cut(1, true);
    api.kubectl(&["delete", "node", "gone"]);
    api.annotate("moved", "172.20.7.9", OTHER_MAC);
    api.add_flannel("new", 72, "172.20.7.3", "be:9f:00:00:00:09");
    let shown = api
        .cluster
        .etcdctl(&["get", "-w", "json", "/registry/minions/new"]);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    api.cluster
        .etcdctl(&["compact", &shown["header"]["revision"].to_string()]);
    // A server that was just started has no history of its own.
    api.server = None;
    api.start();
    api.cut(1, false);
    let node = api.cluster.node(1);
    api.cluster.wait("the node that went is gone", || {
        is_gone(node, "10.244.70", MAC)
    });
    for (subnet, ip, mac) in [
        ("10.244.71", "172.20.7.9", OTHER_MAC),
        ("10.244.72", "172.20.7.3", "be:9f:00:00:00:09"),
    ] {
        let expected = programmed(subnet, ip, mac);
        api.cluster.wait("the others are followed", || {
            has(&entries(node, subnet), &expected)
        });
    }
}

#[test]
fn a_node_takes_over_from_flanneld_and_the_address_of_an_administrator_is_published() {
    let api = Api::new(1);
    api.add_flannel("node1", 1, &address(1), MAC);
    let overwrite = "flannel.alpha.coreos.com/public-ip-overwrite=203.0.113.7";
    api.kubectl(&["annotate", "node", "node1", overwrite]);
    api.write_token(&api.token());
    let _agent = api.cluster.ready(1, &api.conf(1));
    // The MAC that the other nodes know.
    let device = api.cluster.node(1).link("flannel.1").expect("flannel.1");
    assert_eq!(device["address"], MAC);
    assert_eq!(annotation(&api.node("node1"), "public-ip"), "203.0.113.7");
    // Another program on this node is reported, and not fought.
    api.annotate("node1", "172.20.1.9", OTHER_MAC);
    api.cluster.wait("it is reported", || {
        api.cluster
            .page(1, "readyz")
            .contains("was written by flanneld, or by hand")
    });
}
