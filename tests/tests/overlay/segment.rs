//! A network that is one segment of all pods (`vxlan-l2`).

use sandbox::cluster::{Cluster, PREFIX, address};
use sandbox::{Netns, Running};
use serde_json::{Value, json};

fn config() -> Value {
    json!({"Network": "10.6.0.0/24", "Backend": {"Type": "vxlan-l2", "VNI": 7}})
}

/// The agent has both roles: the nodes are in one store, and so are the blocks of addresses.
fn conf(cluster: &Cluster, node: usize, etcd: &str) -> Value {
    let mut conf = cluster.conf(node, etcd);
    conf["ipam"] = json!({
        "etcd": {"endpoints": [etcd]},
        "node": format!("node{node}"),
        "dataDir": cluster.path(&format!("n{node}/blocks")),
    });
    conf
}

fn floods(node: &Netns) -> Vec<String> {
    let shown = node.sh("bridge fdb show dev vxlan.7 | grep ^00:00:00:00:00:00 || :");
    let mut to: Vec<String> = shown
        .lines()
        .filter_map(|it| Some(it.split(" dst ").nth(1)?.split(' ').next()?.to_owned()))
        .collect();
    to.sort();
    to
}

fn ip(pod: &Netns) -> String {
    let address = pod.addresses("eth0").remove(0);
    address.trim_end_matches("/24").to_owned()
}

fn nodes(cluster: &Cluster) -> Vec<String> {
    let keys = [
        "get",
        "--prefix",
        "--keys-only",
        &format!("{PREFIX}/nodes/"),
    ];
    let keys = cluster.etcdctl(&keys);
    keys.split_whitespace().map(str::to_owned).collect()
}

fn reaches(from: &Netns, to: &Netns) {
    let to = ip(to);
    from.wait_until("the other pod answers", |pod| pod.ping(&to, 1) == [true]);
}

#[test]
fn pods_of_three_nodes_share_a_segment_and_a_node_leaves_and_returns() {
    let cluster = Cluster::new(3);
    let etcd = cluster.etcd(&config());
    let mut agents: Vec<Running> = (1..=3)
        .map(|n| cluster.ready(n, &conf(&cluster, n, &etcd.url)))
        .collect();
    let first = cluster.node(1);
    cluster.wait("each node floods to the others", || {
        floods(first) == [address(2), address(3)]
    });
    let pods = [1, 2, 3].map(|n| cluster.pod(n, "a"));
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        reaches(&pods[from], &pods[to]);
    }
    // One segment: a pod is its own neighbour's neighbour, and the source stays.
    let mac = pods[1].link("eth0").expect("eth0")["address"].clone();
    let neighbour = pods[0].sh(&format!("ip neighbour show {}", ip(&pods[1])));
    assert!(
        neighbour.contains(mac.as_str().expect("a MAC")),
        "{neighbour}"
    );
    let capture = pods[1].capture("eth0", "icmp");
    assert!(pods[0].ping(&ip(&pods[1]), 1)[0]);
    let from = format!("{} > ", ip(&pods[0]));
    pods[1].wait_until("the ping is seen", |_| capture.output().contains(&from));
    // Where pods are was learned; a list of peers that the plugin has applied would have removed it.
    let learned = |of: &str| {
        let shown = first.sh("bridge fdb show dev vxlan.7");
        shown
            .lines()
            .any(|it| !it.starts_with("00:00") && it.contains(of))
    };
    assert!(learned(&address(2)) && learned(&address(3)));

    agents.truncate(2);
    cluster.delete(&format!("{PREFIX}/nodes/{}", address(3)));
    cluster.wait("nothing leads to the node that left", || {
        floods(first) == [address(2)] && !learned(&address(3))
    });
    cluster.node(3).sh("ip address add 172.20.3.77/24 dev eth0
         ip address del 172.20.3.2/24 dev eth0
         ip address add 172.20.3.77/24 dev eth0 2>/dev/null || :
         ip route replace default via 172.20.3.1");
    agents.push(cluster.ready(3, &conf(&cluster, 3, &etcd.url)));
    cluster.wait("it is back at another address", || {
        floods(first) == [address(2), "172.20.3.77".into()]
    });
    reaches(&pods[0], &pods[2]);
    reaches(&pods[2], &pods[1]);

    // The agent moves the key of a node whose address changes while it runs.
    cluster.node(3).sh("ip address add 172.20.3.78/24 dev eth0
         ip address del 172.20.3.77/24 dev eth0
         ip address add 172.20.3.78/24 dev eth0 2>/dev/null || :
         ip route replace default via 172.20.3.1");
    cluster.wait("the key has moved", || {
        floods(first) == [address(2), "172.20.3.78".into()]
    });
    assert_eq!(nodes(&cluster).len(), 3);
    reaches(&pods[0], &pods[2]);

    first.sh("ip link del vxlan.7");
    cluster.wait("the device is back", || {
        floods(first) == [address(2), "172.20.3.78".into()]
    });
    reaches(&pods[0], &pods[1]);
}

#[test]
fn addresses_of_a_segment_need_a_role_or_a_key() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let mut conf = cluster.conf(1, &etcd.url);
    let agent = cluster.start(1, &conf);
    cluster.wait("it says what is missing", || {
        cluster.page(1, "readyz").contains("lacks the role ipam")
    });
    drop(agent);
    let ipam = json!({"type": "host-local", "ranges": [[
        {"subnet": "10.6.0.0/24", "rangeStart": "10.6.0.10", "rangeEnd": "10.6.0.19"}]]});
    conf["overlay"]["networks"][0]["ipam"] = ipam;
    let _agent = cluster.ready(1, &conf);
    assert_eq!(ip(&cluster.pod(1, "a")), "10.6.0.10");
}
