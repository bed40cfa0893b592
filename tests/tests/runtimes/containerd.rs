//! containerd: pods through the CRI, as the kubelet makes them, and containers of `ctr run --cni`.

use std::time::Instant;

use sandbox::containerd::{self, socket};
use sandbox::image::IMAGE;
use sandbox::{OUTSIDE, RuntimeNode, conf};
use serde_json::{Value, json};

use crate::connect::Podwire;
use crate::cri::Cri;
use crate::{GATEWAY, SERVE, assert_published, example, fetch, network, network_with_ports};

/// A node on which containerd runs and knows the image and the network.
fn node() -> RuntimeNode {
    node_on(&network("1.0.0"))
}

fn node_on(network: &Value) -> RuntimeNode {
    node_on_all(&[network])
}

/// A node whose pods are attached to all of these networks.
fn node_on_all(networks: &[&Value]) -> RuntimeNode {
    let mut node = RuntimeNode::new();
    for (number, network) in networks.iter().enumerate() {
        let name = format!("net.d/1{number}-network.conflist");
        node.write(&name, network.to_string());
    }
    let plugins = node.plugins();
    containerd::start(&mut node, &plugins, networks.len());
    node
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

/// containerd passes a pod's name. The pod's resolv.conf is Kubernetes' business, so the question names
/// the server.
#[test]
fn pods_of_the_cri_are_found_by_name() {
    let mut list = network("1.0.0");
    let plugins = list["plugins"].as_array_mut().expect("plugins");
    plugins.push(json!({"type": "dnsname", "domainName": "pods.internal"}));
    let node = node_on(&list);
    let cri = Cri::new(&node, &socket(&node));
    let (a, b) = (cri.run_pod("a"), cri.run_pod("b"));
    let in_a = cri.run_container(&a, IMAGE);
    let found = cri.exec(&in_a, &["busybox", "nslookup", "b", GATEWAY]);
    assert!(found.contains(&cri.address(&b)), "{found}");
    for pod in [&a, &b] {
        cri.stop(pod);
        cri.remove(pod);
    }
    assert!(node.sandbox().list("/run/podwire/names").is_empty());
}

/// Has ctr find this network and the plugins. It has no setting for either: it looks where Debian has built
/// it to look.
fn show_ctr(node: &RuntimeNode) {
    node.bind(&node.path("net.d"), "/etc/cni/net.d");
    node.bind(&node.plugins(), "/usr/lib/cni");
}

/// What a script prints in a container of `ctr run --cni`.
fn ctr_run(node: &RuntimeNode, id: &str, script: &str) -> String {
    let (cgroup, runc) = (format!("{}/ctr", node.cgroup()), node.path("runc"));
    node.must(&[
        "ctr",
        "--address",
        &socket(node),
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
        id,
        "sh",
        "-c",
        script,
    ])
}

#[test]
fn a_container_of_ctr_comes_and_goes() {
    let node = node();
    show_ctr(&node);
    let before = node.before();
    let script = format!("ip addr show dev eth0 && ping -c 1 -W 2 {GATEWAY}");
    let shown = ctr_run(&node, "one", &script);
    assert!(
        shown.contains("inet 10.88.0.2/24"),
        "no address on eth0: {shown}"
    );
    // ctr sends DEL when the container's namespace has gone.
    node.assert_left_nothing(&before);
}

/// ctr passes no name: that of its container's id is `<namespace>-<id>`.
#[test]
fn a_container_of_ctr_has_a_name_as_long_as_it_runs() {
    let mut network = network("1.0.0");
    let plugins = network["plugins"].as_array_mut().expect("plugins");
    plugins.push(json!({"type": "dnsname"}));
    let node = node_on(&network);
    show_ctr(&node);
    let script = format!("nslookup default-webserver {GATEWAY}");
    let found = ctr_run(&node, "webserver", &script);
    assert!(found.contains("10.88.0.2"), "{found}");
    assert!(node.sandbox().list("/run/podwire/names").is_empty());
}

/// A container of `ctr run --cni` on a network of `podwire network create`, connected to another one.
#[test]
fn podwire_connects_a_container_of_ctr_on_a_network_that_it_made() {
    let node = node_on_all(&[]);
    let (address, conf_dir) = (socket(&node), node.path("net.d"));
    let program = format!("{}/podwire", node.plugins());
    let network = |args: &[&str]| {
        let command = [&program, "network", args[0], "--conf-dir", &conf_dir];
        node.must(&[&command[..], &args[1..]].concat())
    };
    network(&["create", "--subnet", "10.6.0.0/24", "made"]);
    node.bind(&conf_dir, "/etc/cni/net.d");
    node.bind(&node.plugins(), "/usr/lib/cni");
    let (cgroup, runc) = (format!("{}/ctr", node.cgroup()), node.path("runc"));
    let ctr = |args: &[&str]| node.must(&[&["ctr", "--address", &address], args].concat());
    let run = ["run", "-d", "--cni", "--snapshotter", "native"];
    let places = ["--cgroup", &cgroup, "--runc-root", &runc];
    ctr(&[&run[..], &places, &[IMAGE, "one", "sleep", "1000"]].concat());
    let exec = |argv: &[&str]| {
        let exec = ["tasks", "exec", "--exec-id", "look", "one"];
        ctr(&[&exec[..], argv].concat())
    };
    let shown = exec(&["ip", "addr", "show", "dev", "eth0"]);
    assert!(shown.contains("inet 10.6.0."), "{shown}");
    Podwire::new(&node).connects("one", exec, || {
        ctr(&["tasks", "kill", "--signal", "KILL", "one"]);
        ctr(&["tasks", "rm", "--force", "one"]);
    });
    // A container in the background is not detached by ctr: rm does it, as its namespace is gone.
    network(&["rm", "--plugin-dir", &node.plugins(), "made"]);
    let reserved = node.sandbox().list("/var/lib/cni/networks/made");
    assert!(reserved.is_empty(), "{reserved:?}");
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

/// The rates of the token bucket filters of the node's interfaces, in bit/s.
fn limits(node: &RuntimeNode) -> Vec<(String, u64)> {
    let printed = node.sandbox().host().sh("tc -j qdisc show");
    let qdiscs: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
    let limits = qdiscs.iter().filter_map(|it| {
        let rate = it["options"]["rate"]
            .as_u64()
            .filter(|_| it["kind"] == "tbf")?;
        let dev = it["dev"].as_str()?.get(..3)?.to_owned();
        Some((dev, rate * 8))
    });
    limits.collect()
}

#[test]
fn the_bandwidth_annotations_of_the_kubelet_limit_a_pod() {
    let mut network = network("1.0.0");
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let plugins = network["plugins"].as_array_mut().expect("plugins");
    plugins.push(bandwidth);
    let node = node_on(&network);
    let cri = Cri::new(&node, &socket(&node));
    let first = cri.run_pod("first");
    cri.stop(&first);
    cri.remove(&first);
    let before = node.before();

    let annotations = [
        ("kubernetes.io/ingress-bandwidth", "20M"),
        ("kubernetes.io/egress-bandwidth", "8M"),
    ];
    let pod = cri.run_pod_with("limited", &[], &annotations);
    let other = cri.run_pod("other");
    let mut limits = limits(&node);
    limits.sort();
    let expected = [
        ("bwp".to_owned(), 8_000_000),
        ("vet".to_owned(), 20_000_000),
    ];
    assert_eq!(limits, expected);
    // containerd passes an unlimited burst, which would let the whole file through at once.
    let container = cri.run_container(&pod, IMAGE);
    cri.exec(&container, &["httpd", "-p", "80", "-h", "/bin"]);
    let address = cri.address(&pod);
    let request = "printf 'GET /busybox HTTP/1.0\\r\\n\\r\\n'";
    let started = Instant::now();
    let fetched = node
        .sandbox()
        .host()
        .sh(&format!("{request} | nc -w 9 {address} 80 | wc -c"));
    let seconds = started.elapsed().as_secs_f64();
    let bits = 8.0 * fetched.trim().parse::<f64>().expect("a number");
    assert!(bits > 8e6, "the file is too small: {bits} bits");
    assert!(bits / seconds < 1.2 * 8e6, "{bits} bits in {seconds} s");

    for pod in [&pod, &other] {
        cri.stop(pod);
        cri.remove(pod);
    }
    node.assert_left_nothing(&before);
}

/// A list as nerdctl writes it: its default network, and one of `nerdctl network create`.
fn of_nerdctl(name: &str, bridge: &str, subnet: u8, labels: &Value) -> Value {
    let range =
        json!({"gateway": format!("10.4.{subnet}.1"), "subnet": format!("10.4.{subnet}.0/24")});
    let ipam = json!({
        "ranges": [[range]], "routes": [{"dst": "0.0.0.0/0"}], "type": "host-local"
    });
    json!({
        "cniVersion": "1.0.0",
        "name": name,
        "nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121",
        "nerdctlLabels": labels,
        "plugins": [
            {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true,
             "hairpinMode": true, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall", "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ],
    })
}

#[test]
fn the_networks_of_nerdctl_need_no_other_plugins() {
    let default = json!({"nerdctl/default-network": "true"});
    let lists = [
        of_nerdctl("bridge", "nerdctl0", 0, &default),
        of_nerdctl("second", "br-8b9335f8b612", 1, &json!({"a": "b"})),
    ];
    let node = node_on_all(&[&lists[0], &lists[1]]);
    let (host, outside) = (node.sandbox().host(), node.sandbox().outside());
    let cri = Cri::new(&node, &socket(&node));
    let (web, other) = (
        cri.run_pod_with_ports("web", &[(8080, 80)]),
        cri.run_pod("other"),
    );
    let (in_web, in_other) = (
        cri.run_container(&web, IMAGE),
        cri.run_container(&other, IMAGE),
    );
    let links = cri.exec(&in_other, &["ip", "addr"]);
    assert!(
        links.contains("10.4.0.") && links.contains("10.4.1."),
        "{links}"
    );
    cri.exec(&in_web, &["sh", "-c", SERVE]);
    assert_published(&node, &outside);
    let at_web = cri.address(&web);
    for address in ["10.4.0.1", "10.4.1.1", &at_web, OUTSIDE[0]] {
        cri.exec(&in_other, &["ping", "-c", "1", "-W", "2", address]);
    }
    let filter = || host.sh("iptables-save -t filter");
    for bridge in ["nerdctl0", "br-8b9335f8b612"] {
        let rule = format!("-A CNI-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge}");
        assert!(filter().contains(&rule), "{}", filter());
    }

    for pod in [&web, &other] {
        cri.stop(pod);
        cri.remove(pod);
    }
    let left = filter();
    assert!(
        !left.contains("ISOLATION") && !left.contains("10.4."),
        "{left}"
    );
    assert!(!host.rules().contains("10.4."), "{}", host.rules());
    for network in ["bridge", "second"] {
        let reserved = node
            .sandbox()
            .list(format!("/var/lib/cni/networks/{network}"));
        assert!(
            !reserved.iter().any(|it| it.starts_with("10.")),
            "{reserved:?}"
        );
    }
    assert!(!host.links().iter().any(|it| it.starts_with("veth")));
}

#[test]
fn podwire_connects_a_pod_by_its_name_and_by_the_first_digits_of_its_id() {
    let node = node();
    let cri = Cri::new(&node, &socket(&node));
    let podwire = Podwire::new(&node);
    for by_name in [true, false] {
        let pod = cri.run_pod("web");
        let container = cri.run_container(&pod, IMAGE);
        let word = if by_name {
            "default/web"
        } else {
            &pod.id[..10]
        };
        let run = |argv: &[&str]| cri.exec(&container, argv);
        podwire.connects(word, run, || {
            cri.stop(&pod);
            cri.remove(&pod);
        });
    }
}
