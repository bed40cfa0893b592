//! podman with its CNI back end.

use sandbox::conf::{NETWORK, STATE};
use sandbox::image::{self, IMAGE};
use sandbox::{OUTSIDE, RuntimeNode};
use serde_json::Value;

use crate::connect::Podwire;
use crate::{GATEWAY, SERVE, assert_published, example, fetch, network, network_with_ports};

/// The built-in limits of processes take CAP_SYS_RESOURCE; systemd and a journal may be absent.
const CONFIG: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "DIR/libpod"
[network]
network_backend = "cni"
cni_plugin_dirs = ["PLUGINS"]
network_config_dir = "DIR/net.d"
default_network = "NETWORK"
"#;

/// `vfs` copies layers and so needs no overlay mounts.
const STORAGE: &str = r#"
[storage]
driver = "vfs"
graphroot = "DIR/storage"
runroot = "DIR/run"
"#;

/// The name of podman's default network: bridge, portmap, firewall and tuning.
const ITS_OWN: &str = "podman";

/// podman on a node of its own, with the image loaded.
struct Podman {
    node: RuntimeNode,
    environment: Vec<String>,
}

impl Podman {
    fn new() -> Self {
        Self::on(&network("0.4.0"))
    }

    fn on(network: &Value) -> Self {
        Self::with(Some(network))
    }

    /// With the network that podman has where no file makes one.
    fn with_its_own_network() -> Self {
        Self::with(None)
    }

    fn with(network: Option<&Value>) -> Self {
        let node = RuntimeNode::new();
        let dir = node.dir().display().to_string();
        let config = CONFIG
            .replace("DIR", &dir)
            .replace("PLUGINS", &node.plugins());
        let config = node.write(
            "containers.conf",
            config.replace("NETWORK", network.map_or(ITS_OWN, |_| NETWORK)),
        );
        let storage = node.write("storage.conf", STORAGE.replace("DIR", &dir));
        let environment = vec![
            format!("CONTAINERS_CONF={config}"),
            format!("CONTAINERS_STORAGE_CONF={storage}"),
            format!("HOME={dir}"),
            format!("TMPDIR={dir}"),
        ];
        match network {
            Some(network) => node.install(network),
            None => node.must(&["mkdir", "-p", &node.path("net.d")]).clear(),
        }
        let archive = image::archive(&node);
        let podman = Self { node, environment };
        podman.must(&["load", "--quiet", "--input", &archive]);
        podman
    }

    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        let environment = self.environment.iter().map(String::as_str);
        let argv: Vec<&str> = ["env"]
            .into_iter()
            .chain(environment)
            .chain(["podman"])
            .chain(args.iter().copied())
            .collect();
        self.node.must(&argv)
    }

    /// Starts a container that waits for `exec`.
    #[track_caller]
    fn start(&self, name: &str, options: &[&str]) {
        let cgroup = self.node.cgroup();
        let run = [
            "run",
            "--detach",
            "--name",
            name,
            "--cgroup-parent",
            &cgroup,
        ];
        self.must(&[&run[..], options, &[IMAGE]].concat());
    }

    #[track_caller]
    fn remove(&self, name: &str) {
        self.must(&["rm", "--force", "--time", "0", name]);
    }

    fn address(&self, name: &str) -> String {
        self.address_on(NETWORK, name)
    }

    fn address_on(&self, network: &str, name: &str) -> String {
        let format = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
        self.must(&["inspect", "--format", &format, name])
            .trim()
            .to_owned()
    }
}

#[test]
fn podman_runs_with_the_cni_back_end() {
    let podman = Podman::new();
    assert_eq!(
        podman
            .must(&["info", "--format", "{{.Host.NetworkBackend}}"])
            .trim(),
        "cni"
    );
}

#[test]
fn containers_of_podman_come_and_go() {
    let podman = Podman::new();
    let before = podman.node.before();
    podman.start("a", &[]);
    podman.start("b", &[]);
    let (at_a, at_b) = (podman.address("a"), podman.address("b"));
    assert_ne!(at_a, at_b);

    let eth0 = podman.must(&["exec", "a", "ip", "addr", "show", "dev", "eth0"]);
    assert!(
        eth0.contains(&format!("inet {at_a}/24")),
        "{at_a} is not on eth0: {eth0}"
    );
    for address in [GATEWAY, &at_b] {
        podman.must(&["exec", "a", "ping", "-c", "1", "-W", "2", address]);
    }

    podman.remove("a");
    podman.remove("b");
    podman.node.assert_left_nothing(&before);
}

#[test]
fn the_examples_are_networks_of_this_podman() {
    for (file, gateway) in [
        ("10-bridge.conflist", "10.210.10.1"),
        ("70-node.conflist", "10.210.70.1"),
    ] {
        let podman = Podman::on(&example(file));
        podman.start("a", &[]);
        podman.must(&["exec", "a", "ping", "-c", "1", "-W", "2", gateway]);
        podman.remove("a");
        let reserved = podman.node.sandbox().list(STATE);
        assert!(
            !reserved.iter().any(|name| name.starts_with("10.")),
            "{reserved:?}"
        );
    }
}

/// `podwire network create`: podman lists the network and runs containers on it, and podwire sees them.
#[test]
fn a_network_that_podwire_made_is_one_of_podmans() {
    let podman = Podman::new();
    let before = podman.node.before();
    let (conf_dir, program) = (podman.node.path("net.d"), podwire());
    let podwire = |args: &[&str]| {
        let network = [&program[..], "network"];
        podman
            .node
            .must(&[&network[..], args, &["--conf-dir", &conf_dir]].concat())
    };
    // The base of the masquerade table stays after the last rule, as that of the Go plugins does.
    let no_masquerade = "com.docker.network.bridge.enable_ip_masquerade=false";
    let id = podwire(&[
        "create",
        "--subnet",
        "10.5.0.0/24",
        "-o",
        no_masquerade,
        "made",
    ]);
    let listed = podman.must(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    assert!(listed.contains("made bridge"), "{listed}");
    let subnets = "{{range .Subnets}}{{.Subnet}} {{.Gateway}}{{end}}";
    let subnets = podman.must(&["network", "inspect", "--format", subnets, "made"]);
    assert_eq!(subnets.trim(), "10.5.0.0/24 10.5.0.1");

    podman.start("a", &["--network", "made", "--ip", "10.5.0.77"]);
    podman.must(&["exec", "a", "ping", "-c", "1", "-W", "2", "10.5.0.1"]);
    let containers = "{{range .Containers}}{{.Name}} {{.IPv4Address}}{{end}}";
    let containers = podwire(&["inspect", "--format", containers, &id[..12]]);
    assert_eq!(containers, "a 10.5.0.77/24\n");
    let refused = [
        &program[..],
        "network",
        "rm",
        "--conf-dir",
        &conf_dir,
        "made",
    ];
    let refused = podman.node.run(&refused);
    assert!(
        refused.stderr.contains("active endpoints (name:\"a\""),
        "{refused:?}"
    );

    podman.remove("a");
    podwire(&["rm", "made"]);
    podman.node.assert_left_nothing(&before);
}

fn podwire() -> String {
    sandbox::Suite::Ours
        .dir()
        .join("podwire")
        .display()
        .to_string()
}

#[test]
fn podman_asks_for_an_address_and_a_mac() {
    let podman = Podman::new();
    let before = podman.node.before();
    podman.start(
        "a",
        &["--ip", "10.88.0.77", "--mac-address", "02:00:00:00:00:77"],
    );
    let eth0 = podman.must(&["exec", "a", "ip", "addr", "show", "dev", "eth0"]);
    assert!(
        eth0.contains("inet 10.88.0.77/24"),
        "not the requested address: {eth0}"
    );
    assert!(
        eth0.contains("02:00:00:00:00:77"),
        "not the requested MAC: {eth0}"
    );
    assert!(
        podman
            .node
            .sandbox()
            .read(format!("{STATE}/10.88.0.77"))
            .is_some()
    );
    podman.remove("a");
    podman.node.assert_left_nothing(&before);
}

#[test]
fn a_page_is_fetched_through_a_published_port() {
    let podman = Podman::on(&network_with_ports("0.4.0"));
    let outside = podman.node.sandbox().outside();
    let ports = [
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:8081:80",
        "-p",
        "5353:53/udp",
    ];
    // The first container with ports leaves what all share.
    podman.start("first", &ports);
    podman.remove("first");
    let before = podman.node.before();
    let host = podman.node.sandbox().host();
    let rules = host.rules();

    podman.start("web", &ports);
    podman.must(&["exec", "web", "sh", "-c", SERVE]);
    assert_published(&podman.node, &outside);
    assert!(fetch(&host, "127.0.0.1", 8081).contains("the page"));
    assert_eq!(fetch(&outside, "192.0.2.1", 8081), "");
    podman.must(&["exec", "web", "ping", "-c", "1", "-W", "2", OUTSIDE[0]]);

    podman.remove("web");
    assert_eq!(fetch(&outside, "192.0.2.1", 8080), "");
    host.assert_rules(&rules);
    podman.node.assert_left_nothing(&before);
}

/// The filter rules of iptables.
fn filter(podman: &Podman) -> String {
    let host = podman.node.sandbox().host();
    host.sh("iptables-save -t filter | grep '^-A'")
}

#[test]
fn the_default_network_of_podman_needs_no_other_plugins() {
    let podman = Podman::with_its_own_network();
    let outside = podman.node.sandbox().outside();
    let host = podman.node.sandbox().host();
    // The first container leaves what all share: the bridge and the chains of firewall.
    podman.start("first", &["-p", "8080:80"]);
    podman.remove("first");
    let before = podman.node.before_on("cni-podman0", ITS_OWN);
    let rules = host.rules();

    let options = ["--ip", "10.88.0.77", "-p", "8080:80"];
    podman.start("web", &options);
    podman.start("other", &[]);
    assert_eq!(podman.address_on(ITS_OWN, "web"), "10.88.0.77");
    podman.must(&["exec", "web", "sh", "-c", SERVE]);
    assert_published(&podman.node, &outside);
    let accepts = "-A CNI-FORWARD -s 10.88.0.77/32 -j ACCEPT";
    assert!(filter(&podman).contains(accepts), "{}", filter(&podman));
    for address in ["10.88.0.1", "10.88.0.77", OUTSIDE[0]] {
        podman.must(&["exec", "other", "ping", "-c", "1", "-W", "2", address]);
    }

    podman.remove("web");
    podman.remove("other");
    host.assert_rules(&rules);
    podman.node.assert_left_nothing(&before);
}

#[test]
fn a_container_of_podman_is_connected_to_another_network_and_disconnected() {
    let podman = Podman::with_its_own_network();
    let create = ["network", "create", "--subnet", "10.99.0.0/24", "second"];
    podman.must(&create);
    podman.start("first", &["--network", "second"]);
    podman.start("a", &[]);
    podman.start("b", &["--network", "second"]);
    podman.remove("first");
    let before = filter(&podman);

    podman.must(&["network", "connect", "--ip", "10.99.0.50", "second", "a"]);
    assert_eq!(podman.address_on("second", "a"), "10.99.0.50");
    let at_b = podman.address_on("second", "b");
    for address in ["10.88.0.1", "10.99.0.1", &at_b] {
        podman.must(&["exec", "a", "ping", "-c", "1", "-W", "2", address]);
    }
    podman.must(&["exec", "b", "ping", "-c", "1", "-W", "2", "10.99.0.50"]);

    podman.must(&["network", "disconnect", "second", "a"]);
    let links = podman.must(&["exec", "a", "ip", "-o", "link"]);
    assert!(links.contains("eth0") && !links.contains("eth1"), "{links}");
    assert_eq!(filter(&podman), before);
    podman.must(&["exec", "a", "ping", "-c", "1", "-W", "2", "10.88.0.1"]);
    podman.remove("a");
    podman.remove("b");
    podman.must(&["network", "rm", "second"]);
    assert!(!filter(&podman).contains("/32"), "{}", filter(&podman));
}

/// podman writes dnsname into the networks that it makes, and the pods' resolv.conf by its result.
#[test]
fn containers_of_podman_find_each_other_by_name() {
    let podman = Podman::with_its_own_network();
    podman.must(&["network", "create", "--subnet", "10.99.0.0/24", "named"]);
    podman.start("a", &["--network", "named"]);
    podman.start("b", &["--network", "named", "--network-alias", "db"]);
    let reaches = |from: &str, names: &[&str]| {
        for name in names {
            podman.must(&["exec", from, "ping", "-c", "1", "-W", "2", name]);
        }
    };
    reaches("a", &["b", "db", "b.dns.podman"]);
    reaches("b", &["a"]);
    podman.must(&["restart", "--time", "0", "b"]);
    reaches("a", &["b", "db"]);
    reaches("b", &["a"]);
    podman.must(&["network", "disconnect", "named", "b"]);
    let lost = podman.node.sandbox().list("/run/podwire/names/named");
    assert_eq!(lost.len(), 1, "{lost:?}");
    podman.remove("b");
    podman.remove("a");
    assert!(podman.node.sandbox().list("/run/podwire/names").is_empty());
    podman.must(&["network", "rm", "named"]);
}

#[test]
fn podwire_connects_a_container_of_podman_by_its_name() {
    let podman = Podman::new();
    let podwire = Podwire::new(&podman.node);
    podman.start("web", &[]);
    let run = |argv: &[&str]| podman.must(&[&["exec", "web"], argv].concat());
    podwire.connects("web", run, || podman.remove("web"));
}
