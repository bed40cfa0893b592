//! containerd: pods through the CRI, as the kubelet makes them, and containers of `ctr run --cni`.

use sandbox::{OUTSIDE, conf};
use serde_json::Value;

use crate::cri::Cri;
use crate::image::{self, IMAGE};
use crate::node::Node;
use crate::{GATEWAY, SERVE, assert_published, example, fetch, network, network_with_ports};

/// Everything that containerd owns lies in the node's directory. What it would ask of the machine is switched off: AppArmor
/// profiles, and OOM scores, which take CAP_SYS_RESOURCE. The snapshotter `native` copies layers and so needs no overlay mounts.
const CONFIG: &str = r#"
version = 2
root = "DIR/containerd"
state = "DIR/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "DIR/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "DIR/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "PLUGINS"
    conf_dir = "DIR/net.d"
"#;

/// A node on which containerd runs and knows the image and the network.
fn node() -> Node {
    node_on(&network("1.0.0"))
}

fn node_on(network: &Value) -> Node {
    let mut node = Node::new();
    let dir = node.dir().display().to_string();
    let config = CONFIG
        .replace("DIR", &dir)
        .replace("PLUGINS", &node.plugins());
    let config = node.write("containerd.toml", config.replace("IMAGE", IMAGE));
    node.install(network);
    let archive = image::archive(&node);
    let socket = socket(&node);
    node.start(
        &["containerd", "--config", &config],
        &["ctr", "--address", &socket, "version"],
    );
    // The CRI keeps its images apart from those of ctr.
    for namespace in ["k8s.io", "default"] {
        let client = ["ctr", "--address", &socket, "--namespace", namespace];
        let import = ["images", "import", "--snapshotter", "native", &archive];
        node.must(&[&client[..], &import].concat());
    }
    node
}

fn socket(node: &Node) -> String {
    node.path("containerd.sock")
}

#[test]
fn the_cri_is_ready_for_pods() {
    let node = node();
    let conditions = Cri::new(&node, &socket(&node)).conditions();
    let met = |name: &str| (name.to_owned(), true);
    assert_eq!(conditions, [met("RuntimeReady"), met("NetworkReady")]);
}

#[test]
fn pods_of_the_cri_come_and_go() {
    let node = node();
    let cri = Cri::new(&node, &socket(&node));
    let before = node.before();
    let (a, b) = (cri.run_pod("a"), cri.run_pod("b"));
    let (at_a, at_b) = (cri.address(&a), cri.address(&b));
    assert_ne!(at_a, at_b);

    let in_a = cri.run_container(&a, IMAGE);
    let eth0 = cri.exec(&in_a, &["ip", "addr", "show", "dev", "eth0"]);
    assert!(
        eth0.contains(&format!("inet {at_a}/24")),
        "{at_a} is not on eth0: {eth0}"
    );
    let lo = cri.exec(&in_a, &["ip", "addr", "show", "dev", "lo"]);
    assert!(
        lo.contains("LOOPBACK,UP") && lo.contains("127.0.0.1/8"),
        "lo is not up: {lo}"
    );
    for address in [GATEWAY, &at_b, "127.0.0.1"] {
        cri.exec(&in_a, &["ping", "-c", "1", "-W", "2", address]);
    }

    for pod in [&a, &b] {
        // Both detach the pod: the second DEL has no namespace and finds nothing.
        cri.stop(pod);
        cri.remove(pod);
    }
    node.assert_left_nothing(&before);
}

#[test]
fn the_examples_are_networks_of_this_containerd() {
    for (file, gateway) in [
        ("10-bridge.conflist", "10.210.10.1"),
        ("70-node.conflist", "10.210.70.1"),
    ] {
        let node = node_on(&example(file));
        let cri = Cri::new(&node, &socket(&node));
        let pod = cri.run_pod("a");
        let container = cri.run_container(&pod, IMAGE);
        cri.exec(&container, &["ping", "-c", "1", "-W", "2", gateway]);
        cri.stop(&pod);
        cri.remove(&pod);
        let reserved = node.sandbox().list(conf::STATE);
        assert!(
            !reserved.iter().any(|name| name.starts_with("10.")),
            "{reserved:?}"
        );
    }
}

#[test]
fn an_address_belongs_to_its_pod_until_the_pod_stops() {
    let node = node();
    let cri = Cri::new(&node, &socket(&node));
    let pod = cri.run_pod("a");
    let reservation = format!("{}/{}", conf::STATE, cri.address(&pod));
    let owner = node.sandbox().read(&reservation);
    assert!(
        owner.is_some_and(|id| id.starts_with(&pod.id)),
        "{reservation} is not the pod's"
    );
    cri.stop(&pod);
    assert_eq!(node.sandbox().read(&reservation), None);
    cri.remove(&pod);
}

#[test]
fn a_container_of_ctr_comes_and_goes() {
    let node = node();
    let socket = socket(&node);
    // ctr has no setting for either: it looks where Debian has built it to look.
    node.bind(&node.path("net.d"), "/etc/cni/net.d");
    node.bind(&node.plugins(), "/usr/lib/cni");
    let before = node.before();
    let (cgroup, runc) = (format!("{}/ctr", node.cgroup()), node.path("runc"));
    let script = format!("ip addr show dev eth0 && ping -c 1 -W 2 {GATEWAY}");
    let shown = node.must(&[
        "ctr",
        "--address",
        &socket,
        "run",
        "--rm",
        "--cni",
        "--snapshotter",
        "native",
        "--cgroup",
        &cgroup,
        "--runc-root",
        &runc,
        IMAGE,
        "one",
        "sh",
        "-c",
        &script,
    ]);
    assert!(
        shown.contains("inet 10.88.0.2/24"),
        "no address on eth0: {shown}"
    );
    // ctr sends DEL when the container's namespace has gone.
    node.assert_left_nothing(&before);
}

#[test]
fn a_page_is_fetched_through_a_host_port_of_the_cri() {
    let node = node_on(&network_with_ports("1.0.0"));
    let outside = node.sandbox().outside();
    let cri = Cri::new(&node, &socket(&node));
    // The first pod with ports leaves what all share.
    let first = cri.run_pod_with_ports("first", &[(8080, 80)]);
    cri.stop(&first);
    cri.remove(&first);
    let before = node.before();
    let rules = node.sandbox().host().rules();

    let pod = cri.run_pod_with_ports("web", &[(8080, 80), (8443, 443)]);
    let container = cri.run_container(&pod, IMAGE);
    cri.exec(&container, &["sh", "-c", SERVE]);
    assert_published(&node, &outside);
    cri.exec(&container, &["ping", "-c", "1", "-W", "2", OUTSIDE[0]]);
    // From the pod itself, through the node.
    let request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 192.0.2.1 8080";
    let page = cri.exec(&container, &["sh", "-c", request]);
    assert!(page.contains("the page"), "{page}");

    cri.stop(&pod);
    assert_eq!(fetch(&outside, "192.0.2.1", 8080), "");
    cri.remove(&pod);
    node.sandbox().host().assert_rules(&rules);
    node.assert_left_nothing(&before);
}
