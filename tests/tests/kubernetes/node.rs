//! A whole node of a cluster of one: control plane, kubelet, kube-proxy and containerd, all real. It becomes ready by
//! `deploy/kubernetes/` alone.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use sandbox::image::IMAGE;
use sandbox::kubernetes::{ADMIN, CERTIFICATES, arguments, program};
use sandbox::{NODE, Netns, OUTSIDE, RuntimeNode, containerd};
use serde_json::{Value, json};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");
const IMAGE_BUILDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/image");

/// The name of the image in the manifests.
const PODWIRE: &str = "ghcr.io/podwire/podwire";

/// The namespaces of its cgroups are the test's, so kubelet makes none, and enforces nothing. How full
/// the machine's disk is does not matter: kubelet would remove the test's images.
const KUBELET: &str = r#"
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
oomScoreAdj: 0
nodeStatusUpdateFrequency: 1s
syncFrequency: 1s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "1Mi", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
"#;

/// How long kubelet and the controllers may take: they look at some things every ten seconds.
const PATIENCE: Duration = Duration::from_secs(90);

struct Node {
    node: RuntimeNode,
    outside: Netns,
}

impl Node {
    /// A node that waits for a network.
    fn new() -> Self {
        let node = RuntimeNode::new();
        let outside = node.sandbox().outside();
        // By it podwired and kube-proxy know the node's address.
        let route = format!("ip route add default via {}", OUTSIDE[0]);
        node.sandbox().host().sh(&route);
        let mut it = Self { node, outside };
        it.node.must(&["mount", "-t", "tmpfs", "tmpfs", "/var/log"]);
        it.control_plane();
        it.node.must(&["mkdir", "-p", &it.bin_dir()]);
        let bin_dir = it.bin_dir();
        containerd::start(&mut it.node, &bin_dir, 1);
        it.kubelet();
        it
    }

    /// Where the manifests are to put the plugins: the machine's own /opt is not written to.
    fn bin_dir(&self) -> String {
        self.node.path("bin")
    }

    /// Starts a program of Kubernetes as a client of the API server.
    fn start(&mut self, name: &str, arguments: &[&str]) {
        let kubeconfig = format!("--kubeconfig={}", self.node.path("kubeconfig"));
        let program = program(name);
        let argv = [&[program.as_str(), &kubeconfig], arguments].concat();
        self.node.start(&argv, &["true"]);
    }

    fn control_plane(&mut self) {
        let dir = self.node.path("pki");
        let script = format!("mkdir -p {dir}; cd {dir}; ip={}; {CERTIFICATES}", NODE[0]);
        self.node.must(&["sh", "-ec", &script]);
        let client = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}:6443", NODE[0]),
                "certificate-authority": format!("{dir}/ca.pem"),
            }}],
            "users": [{"name": "u", "user": {"token": ADMIN}}],
        });
        self.node.write("kubeconfig", client.to_string());
        let etcd = "http://127.0.0.1:2379";
        let data = format!("--data-dir={}", self.node.path("etcd"));
        let etcdctl = ["etcdctl", "--endpoints", etcd, "endpoint", "health"];
        self.node
            .start(&["etcd", "--log-level=error", &data], &etcdctl);
        let program = program("kube-apiserver");
        let arguments = arguments(&dir, NODE[0], etcd);
        let rest = arguments.iter().map(String::as_str);
        let argv: Vec<&str> = std::iter::once(program.as_str()).chain(rest).collect();
        self.node.start(&argv, &["true"]);
        self.wait("the API server", |it| {
            it.asks(&["get", "--raw", "/readyz"]).is_ok()
        });
        let key = format!("--service-account-private-key-file={dir}/accounts.key");
        let ca = format!("--root-ca-file={dir}/ca.pem");
        let cidrs = ["--allocate-node-cidrs=true", "--cluster-cidr=10.244.0.0/16"];
        let alone = "--leader-elect=false";
        self.start(
            "kube-controller-manager",
            &[&key, &ca, cidrs[0], cidrs[1], alone],
        );
        self.start("kube-scheduler", &[alone]);
    }

    fn kubelet(&mut self) {
        let config = self.node.write("kubelet.yaml", KUBELET);
        let socket = containerd::socket(&self.node);
        let own = |name: &str| self.node.path(name);
        let arguments = [
            format!("--config={config}"),
            "--container-runtime=remote".to_owned(),
            format!("--container-runtime-endpoint=unix://{socket}"),
            "--hostname-override=node1".to_owned(),
            format!("--node-ip={}", NODE[0]),
            format!("--root-dir={}", own("kubelet")),
            format!("--cert-dir={}", own("certificates")),
            format!("--volume-plugin-dir={}", own("volumes")),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.start("kubelet", &arguments);
        let cidr = "--cluster-cidr=10.244.0.0/16";
        let name = "--hostname-override=node1";
        self.start("kube-proxy", &[name, cidr, "--conntrack-max-per-core=0"]);
    }

    /// Loads the image of this build, with another tag beside that of the manifests.
    fn load_image(&self, other_tag: &str) {
        let archive = build_image(&self.node.path("image"));
        containerd::import(&self.node, "k8s.io", archive.trim());
        let socket = containerd::socket(&self.node);
        let ctr = [
            "ctr",
            "--address",
            &socket,
            "--namespace",
            "k8s.io",
            "images",
        ];
        let list = self.node.must(&[&ctr[..], &["ls", "-q"]].concat());
        let name = list.lines().find(|it| it.starts_with(PODWIRE));
        let name = name.unwrap_or_else(|| panic!("no image of podwire: {list}"));
        let other = format!("{PODWIRE}:{other_tag}");
        self.node.must(&[&ctr[..], &["tag", name, &other]].concat());
    }

    /// The manifests of `deploy/kubernetes/`, with places in the node's directory instead of the machine's.
    fn manifests(&self) -> String {
        let plugins = self.bin_dir();
        let places = [
            ("path: /opt/cni/bin", format!("path: {plugins}")),
            (
                "path: /etc/cni/net.d",
                format!("path: {}", self.node.path("net.d")),
            ),
            (
                "path: /usr/local/sbin",
                format!("path: {}", self.node.path("sbin")),
            ),
        ];
        let dir = self.node.path("deploy");
        for name in ["podwire.yaml", "podwired.yaml"] {
            let text = std::fs::read_to_string(format!("{MANIFESTS}/{name}")).expect("a manifest");
            let text = places
                .iter()
                .fold(text, |text, (from, to)| text.replace(from, to));
            self.node.write(&format!("deploy/{name}"), text);
        }
        dir
    }

    /// What kubectl prints, or its complaint.
    fn asks(&self, arguments: &[&str]) -> Result<String, String> {
        let kubeconfig = self.node.path("kubeconfig");
        let argv = [
            &[
                "kubectl",
                "--kubeconfig",
                &kubeconfig,
                "--cache-dir",
                "/run/kubectl",
            ],
            arguments,
        ];
        // kubectl waits for rollouts and deletions, which kubelet takes its time for.
        let done = self.node.run_for(&argv.concat(), PATIENCE);
        if done.code == 0 {
            Ok(done.stdout)
        } else {
            Err(done.stderr)
        }
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.asks(arguments)
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}{}", self.story()))
    }

    /// Waits until `check` holds.
    fn wait(&self, what: &str, check: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !check(self) {
            assert!(Instant::now() < deadline, "{what}: never{}", self.story());
            sleep(Duration::from_millis(200));
        }
    }

    /// What the cluster says about itself, for a failure.
    fn story(&self) -> String {
        let parts = [
            &["get", "nodes,pods,daemonsets", "-A", "-o", "wide"][..],
            &["get", "events", "-A"],
        ];
        let mut story: String = parts
            .iter()
            .map(|it| self.asks(it).unwrap_or_else(|error| error))
            .collect();
        let agent = ["curl", "-s", "http://127.0.0.1:9474/readyz"];
        story.push_str(&self.node.run(&agent).stdout);
        for name in ["kubelet", "containerd", "kube-controller-manager"] {
            let log = self
                .node
                .run(&["tail", "-n", "20", &self.node.path(&format!("{name}.log"))]);
            story.push_str(&format!("\n{name}:\n{}", log.stdout));
        }
        format!("\n{story}")
    }

    /// Whether the condition Ready of the node is true, and its message.
    fn ready(&self) -> (bool, String) {
        let Ok(text) = self.asks(&["get", "node", "node1", "-o", "json"]) else {
            return (false, String::new());
        };
        let node: Value = serde_json::from_str(&text).expect("JSON");
        let all = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = all.iter().find(|it| it["type"] == "Ready");
        let ready = ready.cloned().unwrap_or_default();
        let message = ready["message"].as_str().unwrap_or_default().to_owned();
        (ready["status"] == "True", message)
    }

    /// Starts a pod and returns its address.
    fn pod(&self, name: &str, spec: &Value) -> String {
        let mut container = json!({
            "name": "it", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", "cat >/tmp/index.html; httpd -f -p 80 -h /tmp"],
            "stdin": false,
        });
        if let Some(ports) = spec.get("ports") {
            container["ports"] = ports.clone();
        }
        let annotations = spec.get("annotations").cloned().unwrap_or_default();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
            "spec": {
                "containers": [container], "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
            },
        });
        let file = self.node.write(&format!("{name}.json"), pod.to_string());
        self.kubectl(&["create", "-f", &file]);
        let address = |it: &Self| {
            let path = "jsonpath={.status.phase} {.status.podIP}";
            let shown = it.asks(&["get", "pod", name, "-o", path]).ok()?;
            let ip = shown.strip_prefix("Running ")?;
            (!ip.is_empty()).then(|| ip.to_owned())
        };
        self.wait(&format!("pod {name} runs"), |it| address(it).is_some());
        address(self).expect("an address")
    }

    /// Runs a command in a pod, as `kubectl exec` does.
    fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }
}

/// Makes the image in a directory and returns its file. A build without optimisation takes a minute to compress, longer than
/// a sandbox waits.
#[expect(
    clippy::disallowed_methods,
    reason = "a program that only writes into that directory"
)]
fn build_image(out: &str) -> String {
    let output = Command::new(IMAGE_BUILDER).arg(out).output();
    let output = output.expect("start packaging/image");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("a path")
}

#[test]
fn a_node_becomes_ready_by_the_manifests_alone_and_goes_back() {
    let it = Node::new();
    it.wait("the node waits for a network", |it| {
        let (ready, message) = it.ready();
        !ready && message.contains("cni")
    });
    it.load_image("next");
    let manifests = it.manifests();
    it.kubectl(&["apply", "-f", &manifests]);
    it.wait("the node is ready", |it| it.ready().0);

    // Pods reach each other, the node, services and the outside.
    let a = it.pod("a", &json!({}));
    let limits =
        json!({"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "10M"});
    let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
    let b = it.pod("b", &json!({"ports": ports, "annotations": limits}));
    assert!(
        a.starts_with("10.244.0.") && b.starts_with("10.244.0."),
        "{a} {b}"
    );
    for address in [b.as_str(), NODE[0], OUTSIDE[0]] {
        it.exec("a", &["ping", "-c", "1", "-W", "2", address]);
    }
    it.kubectl(&["expose", "pod", "b", "--port", "80"]);
    let service = it.kubectl(&["get", "service", "b", "-o", "jsonpath={.spec.clusterIP}"]);
    let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {service} 80");
    it.wait("the service", |it| {
        it.asks(&["exec", "a", "--", "sh", "-c", &fetch])
            .is_ok_and(|page| page.contains("HTTP/1."))
    });
    let request = format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} 8080",
        NODE[0]
    );
    assert!(
        it.outside.sh(&request).contains("HTTP/1."),
        "{}",
        it.story()
    );
    let doctor = format!("{}/podwire", it.node.path("sbin"));
    let version = it
        .node
        .must(&[&doctor, "version", "--plugin-dir", &it.bin_dir()]);
    assert!(version.contains("bridge"), "{version}");

    // Both images are replaced under the pods.
    let pings = it.node.path("pings");
    let ping = format!("ping -q -i 0.05 {a} >{pings} 2>&1 & echo $!");
    let ping = it.node.must(&["sh", "-c", &ping]);
    for (set, container, namespace) in [
        ("podwire", "install", "kube-system"),
        ("podwired", "podwired", "podwire"),
    ] {
        let image = format!("{container}={PODWIRE}:next");
        let set = format!("daemonset/{set}");
        it.kubectl(&["set", "image", "-n", namespace, &set, &image]);
        it.kubectl(&["rollout", "status", "-n", namespace, &set, "--timeout=90s"]);
    }
    it.node.must(&["kill", "-INT", ping.trim()]);
    it.wait("the pings end", |it| {
        let shown = it.node.must(&["cat", &pings]);
        shown.contains("packets transmitted")
    });
    let lost = it.node.must(&["cat", &pings]);
    assert!(lost.contains(" 0% packet loss"), "{lost}");
    let c = it.pod("c", &json!({}));
    it.exec("a", &["ping", "-c", "1", "-W", "2", &c]);

    // The way back.
    it.kubectl(&["delete", "pod", "a", "b", "c", "--wait"]);
    it.kubectl(&["delete", "-f", &manifests, "--wait"]);
    assert!(
        it.ready().0,
        "runtimes need the plugins to delete pods: {}",
        it.story()
    );
    let reserved = it.node.sandbox().list("/var/lib/cni/networks/cbr0");
    assert!(
        !reserved.iter().any(|name| name.starts_with("10.")),
        "{reserved:?}"
    );
    let list = it.node.path("net.d/10-podwire.conflist");
    it.node.must(&["rm", &list]);
    it.wait("the node has no network", |it| !it.ready().0);
}
