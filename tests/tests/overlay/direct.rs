//! Nodes on one segment: reached by routes past the VXLAN device, or without one.

use sandbox::cluster::{Cluster, PREFIX, config, entries, has, lease_key, programmed};
use serde_json::{Value, json};

const MAC: &str = "be:9f:00:00:00:07";

/// Two nodes, with a segment beside their wires to the router.
fn neighbours() -> Cluster {
    let cluster = Cluster::new(2);
    cluster
        .sandbox
        .host()
        .sh("ip link add seg1 type veth peer name seg netns node2
         ip link set seg1 netns node1 name seg");
    for n in [1, 2] {
        cluster.node(n).sh(&format!(
            "ip address add 172.30.0.{n}/24 dev seg; ip link set seg up"
        ));
    }
    cluster
}

fn conf(cluster: &Cluster, node: usize, etcd: &str) -> Value {
    let mut conf = cluster.conf(node, etcd);
    conf["overlay"]["networks"][0]["dev"] = "seg".into();
    conf
}

fn configure(cluster: &Cluster, backend: &Value) -> Value {
    let mut all = config();
    all["Backend"] = backend.clone();
    cluster.put(&format!("{PREFIX}/config"), &all.to_string());
    all
}

fn mac_of(cluster: &Cluster, ip: &str) -> String {
    let (_, value) = cluster.lease_of(ip).expect("the lease");
    let mac = value["BackendData"]["VtepMAC"].as_str();
    mac.expect("a MAC").to_owned()
}

#[test]
fn near_nodes_are_routed_to_and_far_ones_are_behind_vxlan() {
    let cluster = neighbours();
    let mut direct = config();
    direct["Backend"]["DirectRouting"] = true.into();
    let etcd = cluster.etcd(&direct);
    cluster.put_lease("10.5.77.0-24", "172.20.7.2", MAC);
    let node = cluster.node(1);
    node.sh("ip route add 10.99.0.0/16 via 172.30.0.2");
    let _agents = [1, 2].map(|n| cluster.ready(n, &conf(&cluster, n, &etcd.url)));
    let subnet = cluster.subnet(2);
    let route = || node.sh(&format!("ip route show {subnet}.0/24"));
    let is_direct = || route().contains("via 172.30.0.2 dev seg proto 112");
    cluster.wait("the near node is routed to", is_direct);
    let far = programmed("10.5.77", "172.20.7.2", MAC);
    assert!(has(&entries(node, "10.5.77"), &far));
    assert!(
        !node
            .sh("bridge fdb show dev flannel.1")
            .contains("172.30.0.2")
    );
    let pods = [1, 2].map(|n| cluster.pod(n, "a"));
    let ip = format!("{subnet}.2");
    pods[0].wait_until("the other pod answers", |pod| pod.ping(&ip, 1) == [true]);
    let capture = node.capture("seg", "icmp");
    assert!(pods[0].ping(&ip, 1)[0]);
    node.wait_until("it is not encapsulated, and its address stays", |_| {
        capture
            .output()
            .contains(&format!("{}.2 > {ip}", cluster.subnet(1)))
    });
    node.sh(&format!("ip route del {subnet}.0/24"));
    cluster.wait("the route is back", is_direct);

    configure(&cluster, &json!({"Type": "vxlan"}));
    let near = programmed(&subnet, "172.30.0.2", &mac_of(&cluster, "172.30.0.2"));
    cluster.wait("it is behind VXLAN now", || {
        has(&entries(node, &subnet), &near)
    });
    pods[0].wait_until("the other pod answers", |pod| pod.ping(&ip, 1) == [true]);
    assert_eq!(node.routes_to("-4", "10.99.0.0/16").len(), 1);
}

#[test]
fn host_gw_is_routes_alone() {
    let cluster = neighbours();
    let backend = json!({"Type": "host-gw"});
    let mut all = config();
    all["Backend"] = backend;
    let etcd = cluster.etcd(&all);
    let flannels =
        |ip: &str| format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
    cluster.put(&lease_key("10.5.77.0-24"), &flannels("172.30.0.9"));
    // Not on the segment: the kernel refuses it, and that blocks no other.
    cluster.put(&lease_key("10.5.78.0-24"), &flannels("172.20.7.2"));
    let [first, _second] = [1, 2].map(|n| cluster.ready(n, &conf(&cluster, n, &etcd.url)));
    let node = cluster.node(1);
    let subnet = cluster.subnet(2);
    let route = |subnet: &str| node.sh(&format!("ip route show {subnet}.0/24"));
    assert!(
        route("10.5.77").contains("via 172.30.0.9 dev seg"),
        "{}",
        route("10.5.77")
    );
    cluster.wait("the node is routed to", || {
        route(&subnet).contains("via 172.30.0.2 dev seg")
    });
    assert!(node.link("flannel.1").is_none());
    assert!(route("10.5.78").trim().is_empty());
    let (key, _) = cluster.lease_of("172.30.0.1").expect("the lease");
    let written = cluster.etcdctl(&["get", "--print-value-only", &key]);
    let own = flannels("172.30.0.1");
    assert!(written.starts_with(own.trim_end_matches('}')), "{written}");
    let env = cluster.sandbox.read(cluster.path("n1/subnet.env"));
    assert!(env.is_some_and(|it| it.contains("FLANNEL_MTU=1500")));
    let pods = [1, 2].map(|n| cluster.pod(n, "a"));
    let ip = format!("{subnet}.2");
    pods[0].wait_until("the other pod answers", |pod| pod.ping(&ip, 1) == [true]);

    drop(first);
    cluster.delete(&lease_key("10.5.77.0-24"));
    let _first = cluster.ready(1, &conf(&cluster, 1, &etcd.url));
    assert!(route("10.5.77").trim().is_empty());

    configure(&cluster, &json!({"Type": "vxlan"}));
    cluster.wait("the other node has a MAC", || {
        cluster
            .lease_of("172.30.0.2")
            .is_some_and(|it| it.1["BackendType"] == "vxlan")
    });
    let peer = programmed(&subnet, "172.30.0.2", &mac_of(&cluster, "172.30.0.2"));
    cluster.wait("it is behind VXLAN now", || {
        has(&entries(node, &subnet), &peer)
    });
    pods[0].wait_until("the other pod answers", |pod| pod.ping(&ip, 1) == [true]);
}
