//! Nodes of a network: podwired's and, by their entries, flanneld's.

use sandbox::Netns;
use serde_json::{Value, json};

use sandbox::cluster::{
    Cluster, address, config, entries, flannels, has, is_gone, lease_key, programmed,
};

const MAC: &str = "be:9f:00:00:00:07";
const OTHER_MAC: &str = "be:9f:00:00:00:08";

#[test]
fn pods_of_three_nodes_reach_each_other_and_a_node_leaves_and_returns() {
    let cluster = Cluster::new(3);
    let etcd = cluster.etcd(&config());
    let conf = |node| cluster.conf(node, &etcd.url);
    let _agents: Vec<_> = (1..=3)
        .map(|node| cluster.ready(node, &conf(node)))
        .collect();
    let pods: Vec<_> = (1..=3).map(|node| cluster.pod(node, "a")).collect();
    let ip = |node: usize| format!("{}.2", cluster.subnet(node));
    for (from, pod) in pods.iter().enumerate() {
        for to in (1..=3).filter(|to| *to != from + 1) {
            pod.wait_until("the other pod answers", |pod| {
                pod.ping(&ip(to), 1) == [true]
            });
        }
    }
    // The pods' addresses stay.
    let capture = pods[1].capture("eth0", "icmp");
    assert!(pods[0].ping(&ip(2), 1)[0]);
    pods[1].wait_until("the ping is seen", |_| {
        capture.output().contains(&format!("{} > ", ip(1)))
    });

    let (key, value) = cluster.lease_of(&address(3)).expect("the lease of node 3");
    let mac = value["BackendData"]["VtepMAC"]
        .as_str()
        .expect("a MAC")
        .to_owned();
    cluster.delete(&key);
    // Its agent writes it again at once, so it is back, too, when it was seen to go.
    cluster.wait("the node is back", || {
        cluster.lease_of(&address(3)).is_some_and(|it| it.0 == key)
    });
    let subnet = cluster.subnet(3);
    let expected = programmed(&subnet, &address(3), &mac);
    cluster.wait("it is programmed again", || {
        has(&entries(cluster.node(1), &subnet), &expected)
    });
    assert!(pods[0].ping(&ip(3), 1)[0]);
}

#[test]
fn a_lease_is_written_as_flanneld_writes_it() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let (key, value) = cluster.lease_of(&address(1)).expect("the lease");
    let subnet = cluster.subnet(1);
    assert_eq!(key, lease_key(&format!("{subnet}.0-24")));
    let device = cluster.node(1).link("flannel.1").expect("the device");
    let mac = device["address"].as_str().expect("a MAC");
    let written = cluster.etcdctl(&["get", "--print-value-only", &key]);
    let flannels = flannels(&address(1), mac);
    assert!(
        written.starts_with(flannels.trim_end_matches('}')),
        "{written}"
    );
    assert_eq!(value["BackendData"], json!({"VNI": 1, "VtepMAC": mac}));
    assert_eq!(device["mtu"], 1450);
    let data = &device["linkinfo"]["info_data"];
    assert_eq!(
        (&data["id"], &data["port"], &data["learning"]),
        (&json!(1), &json!(8472), &json!(false))
    );
    assert_eq!(
        cluster.node(1).addresses("flannel.1")[0],
        format!("{subnet}.0/32")
    );
    // The lease lasts for a day.
    let shown: Value =
        serde_json::from_str(&cluster.etcdctl(&["get", "-w", "json", &key])).expect("JSON");
    let lease = format!("{:x}", shown["kvs"][0]["lease"].as_i64().expect("a lease"));
    assert!(
        cluster
            .etcdctl(&["lease", "timetolive", &lease])
            .contains("granted with TTL(86400s)")
    );
    let env = cluster
        .sandbox
        .read(cluster.path("n1/subnet.env"))
        .expect("subnet.env");
    assert_eq!(
        env,
        format!(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={subnet}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        )
    );
}

#[test]
fn a_node_of_flanneld_is_programmed_follows_its_changes_and_goes() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    cluster.put_lease("10.5.77.0-24", "172.20.7.2", &MAC.to_uppercase());
    node.sh("ip route add 10.99.0.0/16 via 172.20.1.1");
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let is_at =
        |ip: &str, mac: &str| has(&entries(node, "10.5.77"), &programmed("10.5.77", ip, mac));
    // Before the node was ready.
    assert!(is_at("172.20.7.2", MAC), "{:?}", entries(node, "10.5.77"));

    cluster.put_lease("10.5.77.0-24", "172.20.8.2", MAC);
    cluster.wait("its address is followed", || is_at("172.20.8.2", MAC));
    cluster.put_lease("10.5.77.0-24", "172.20.8.2", OTHER_MAC);
    cluster.wait("its MAC is followed", || is_at("172.20.8.2", OTHER_MAC));
    cluster.wait("the old MAC is gone", || {
        !node.sh("bridge fdb show dev flannel.1").contains(MAC)
    });

    cluster.delete(&lease_key("10.5.77.0-24"));
    cluster.wait("it is gone", || is_gone(node, "10.5.77", OTHER_MAC));
    assert_eq!(node.routes_to("-4", "10.99.0.0/16").len(), 1);
}

#[test]
fn what_cannot_be_used_blocks_no_other_node() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    // In the way of the route to a peer.
    node.sh("ip route add 10.5.70.0/24 via 172.20.1.1");
    let leases = [
        ("10.5.71.0-24", "no JSON".to_owned()),
        ("10.5.72.0-24", flannels("172.20.7.2", "01:00:00:00:00:01")),
        (
            "10.5.73.0-24",
            r#"{"PublicIP":"172.20.7.3","BackendType":"host-gw"}"#.to_owned(),
        ),
        ("no-subnet", flannels("172.20.7.4", MAC)),
        ("10.5.70.0-24", flannels("172.20.7.5", OTHER_MAC)),
        ("10.5.77.0-24", flannels("172.20.7.7", MAC)),
    ];
    for (subnet, value) in &leases {
        cluster.put(&lease_key(subnet), value);
    }
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    let good = programmed("10.5.77", "172.20.7.7", MAC);
    assert!(has(&entries(node, "10.5.77"), &good));
    let metrics = cluster.page(1, "metrics");
    assert!(
        metrics.contains("podwired_overlay_store_up{network=\"pods\"} 1"),
        "{metrics}"
    );
    // The route is repaired once what was in its way is gone.
    node.sh("ip route del 10.5.70.0/24");
    let repaired = programmed("10.5.70", "172.20.7.5", OTHER_MAC);
    cluster.wait("it is tried again", || {
        has(&entries(node, "10.5.70"), &repaired)
    });
    // What was broken is right at its next event.
    cluster.put_lease("10.5.72.0-24", "172.20.7.2", "be:9f:00:00:00:72");
    let mended = programmed("10.5.72", "172.20.7.2", "be:9f:00:00:00:72");
    cluster.wait("the mended lease is used", || {
        has(&entries(node, "10.5.72"), &mended)
    });
}

#[test]
fn a_node_takes_over_from_flanneld_and_keeps_subnet_mac_and_traffic() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    node.sh(&format!(
        "ip link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dstport 8472 local 172.20.1.2 dev eth0 nolearning
         ip address add 10.5.40.0/32 dev flannel.1
         ip link set flannel.1 up"
    ));
    let index = node.link("flannel.1").expect("flannel.1")["ifindex"].clone();
    cluster.put_lease("10.5.40.0-24", &address(1), MAC);
    let _second = cluster.ready(2, &cluster.conf(2, &etcd.url));
    let _first = cluster.ready(1, &cluster.conf(1, &etcd.url));
    assert_eq!(cluster.subnet(1), "10.5.40");
    let device = node.link("flannel.1").expect("flannel.1");
    assert_eq!(
        (&device["ifindex"], &device["address"]),
        (&index, &json!(MAC))
    );
    let expected = programmed("10.5.40", &address(1), MAC);
    assert!(has(&entries(cluster.node(2), "10.5.40"), &expected));
}

#[test]
fn of_two_nodes_with_one_mac_the_second_is_used_once_the_first_is_gone() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let node = cluster.node(1);
    cluster.put_lease("10.5.70.0-24", "172.20.7.2", MAC);
    let _agent = cluster.ready(1, &cluster.conf(1, &etcd.url));
    cluster.put_lease("10.5.71.0-24", "172.20.7.3", MAC);
    let first = programmed("10.5.70", "172.20.7.2", MAC);
    cluster.wait("the second is refused", || {
        cluster
            .page(1, "metrics")
            .contains("podwired_overlay_peers_programmed{network=\"pods\"} 1")
            && has(&entries(node, "10.5.70"), &first)
    });
    cluster.delete(&lease_key("10.5.70.0-24"));
    let second = programmed("10.5.71", "172.20.7.3", MAC);
    cluster.wait("the second is used", || {
        has(&entries(node, "10.5.71"), &second)
    });
}

#[test]
fn a_key_that_another_program_writes_is_reported_and_not_fought_for() {
    let cluster = Cluster::new(1);
    let etcd = cluster.etcd(&config());
    let conf = cluster.conf(1, &etcd.url);
    let agent = cluster.ready(1, &conf);
    let (key, _) = cluster.lease_of(&address(1)).expect("the lease");
    cluster.put(&key, &flannels(&address(1), MAC));
    cluster.wait("it is reported", || {
        cluster
            .page(1, "readyz")
            .contains("was written by flanneld, or by hand")
    });
    let (_, value) = cluster.lease_of(&address(1)).expect("the lease");
    assert_eq!(value["BackendData"]["VtepMAC"], MAC);
    // Started again, it has the subnet, and the MAC that the other nodes know.
    drop(agent);
    let _agent = cluster.ready(1, &conf);
    assert_eq!(cluster.lease_of(&address(1)).expect("the lease").0, key);
    assert_eq!(
        cluster.node(1).link("flannel.1").expect("flannel.1")["address"],
        MAC
    );
}

#[test]
fn both_families() {
    let cluster = Cluster::new(2);
    let mut config = config();
    config["EnableIPv6"] = true.into();
    config["IPv6Network"] = "fd00:5::/48".into();
    let etcd = cluster.etcd(&config);
    let _agents: Vec<_> = (1..=2)
        .map(|node| cluster.ready(node, &cluster.conf(node, &etcd.url)))
        .collect();
    let (key, value) = cluster.lease_of(&address(1)).expect("the lease");
    assert!(key.contains(".0-24&fd00:5:0:"), "{key}");
    assert_eq!(value["PublicIPv6"], "2001:db8:1::2");
    assert_eq!(value["BackendV6Data"]["VNI"], 1);
    let pods: Vec<_> = (1..=2).map(|node| cluster.pod(node, "a")).collect();
    let addresses = pods[1].addresses("eth0");
    assert_eq!(
        addresses
            .iter()
            .filter(|it| !it.starts_with("fe80"))
            .count(),
        2,
        "{addresses:?}"
    );
    for address in addresses.iter().filter(|it| !it.starts_with("fe80")) {
        let ip = address.split('/').next().expect("an address");
        pods[0].wait_until("the other pod answers", |pod| pod.ping(ip, 1) == [true]);
    }
    // What fits into both tunnels.
    assert_eq!(pods[0].link("eth0").expect("eth0")["mtu"], 1430);
}

#[test]
fn packets_between_nodes_and_pods_keep_their_source() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(&config());
    let nodes = [1, 2].map(|n| cluster.node(n));
    let agents = [1, 2].map(|n| cluster.ready(n, &cluster.conf(n, &etcd.url)));
    let pods = [1, 2].map(|n| cluster.pod(n, "a"));
    let subnets = [1, 2].map(|n| cluster.subnet(n));
    let ip = format!("{}.2", subnets[1]);
    pods[0].wait_until("the other pod answers", |pod| pod.ping(&ip, 1) == [true]);
    let own = format!("{}.2", subnets[0]);
    let sees =
        |at: &Netns, interface: &str, from: &Netns, to: &str, more: &[&str], source: &str| {
            let capture = at.capture(interface, "icmp");
            let argv = [&["ping", "-c", "1", "-W", "2"], more, &[to]].concat();
            assert_eq!(from.run(&argv).code, 0, "{to}");
            let line = format!("{source} > {to}");
            at.wait_until(&line, |_| capture.output().contains(&line));
        };
    // The node's address inside the network, or the one that was chosen.
    let inside = format!("{}.0", subnets[0]);
    sees(&pods[1], "eth0", nodes[0], &ip, &[], &inside);
    sees(
        &pods[1],
        "eth0",
        nodes[0],
        &ip,
        &["-I", &address(1)],
        &address(1),
    );
    sees(nodes[0], "cni0", &pods[0], &address(1), &[], &own);
    sees(
        nodes[1],
        "flannel.1",
        &pods[0],
        &format!("{}.0", subnets[1]),
        &[],
        &own,
    );
    // The network's end: as with flannel.
    sees(nodes[1], "eth0", &pods[0], &address(2), &[], &address(1));

    let mut conf = cluster.conf(1, &etcd.url);
    conf["overlay"]["networks"][0]["ipMasqExcept"] = json!(["172.20.0.0/16"]);
    drop(agents);
    let _agents = [
        cluster.ready(1, &conf),
        cluster.ready(2, &cluster.conf(2, &etcd.url)),
    ];
    let pod = cluster.pod(1, "b");
    sees(
        nodes[1],
        "eth0",
        &pod,
        &address(2),
        &[],
        &format!("{}.3", subnets[0]),
    );
}
