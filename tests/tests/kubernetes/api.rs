//! A real API server on the router of a cluster, with a real etcd.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sandbox::Running;
use sandbox::cluster::{Cluster, address};
use sandbox::kubernetes::{self, ADMIN, CERTIFICATES, arguments, program};
use serde_json::{Value, json};

const SERVER: &str = "https://172.20.0.1:6443";

/// A cluster with an API server. The manifest is applied; there are no nodes yet.
pub struct Api {
    pub cluster: Cluster,
    pub server: Option<Running>,
    _etcd: Running,
}

impl Api {
    pub fn new(nodes: usize) -> Self {
        let cluster = Cluster::new(nodes);
        let dir = cluster.path("pki");
        std::fs::create_dir_all(&dir).expect("make a directory");
        let dir = dir.display();
        cluster
            .sandbox
            .host()
            .sh(&format!("cd {dir}; ip=172.20.0.1; {CERTIFICATES}"));
        let etcd = cluster.start_etcd("etcd");
        let mut api = Self {
            cluster,
            server: None,
            _etcd: etcd,
        };
        api.start();
        api.kubectl(&["apply", "-f", MANIFEST]);
        api
    }

    pub fn start(&mut self) {
        let dir = self.cluster.path("pki").display().to_string();
        let mut arguments = arguments(&dir, "172.20.0.1", "http://172.20.0.1:2379");
        arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
        let program = program("kube-apiserver");
        let argv = std::iter::once(program.as_str()).chain(arguments.iter().map(String::as_str));
        let argv: Vec<&str> = argv.collect();
        self.server = Some(self.cluster.sandbox.host().start(&argv));
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.curl(&["-k", &format!("{SERVER}/readyz")]) != "ok" {
            let output = self
                .server
                .as_ref()
                .map(Running::output)
                .unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "the API server does not serve: {output}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let token = format!("Authorization: Bearer {ADMIN}");
        let mut argv = vec!["curl", "-s", "-H", &token];
        argv.extend(arguments);
        self.cluster.sandbox.host().run(&argv).stdout
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let ca = self.cluster.path("pki/ca.pem").display().to_string();
        let mut argv = vec!["kubectl", "--server", SERVER, "--token", ADMIN];
        argv.extend([
            "--certificate-authority",
            &ca,
            "--cache-dir",
            "/run/kubectl",
        ]);
        argv.extend(arguments);
        let done = self.cluster.sandbox.host().run(&argv);
        assert_eq!(done.code, 0, "kubectl {arguments:?}: {}", done.stderr);
        done.stdout
    }

    /// A new node, as kubelet registers it, with the subnet 10.244.N.0/24.
    pub fn add_node(&self, name: &str, subnet: Option<usize>) {
        let cidrs: Vec<_> = subnet.iter().map(|n| format!("10.244.{n}.0/24")).collect();
        let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        if let Some(cidr) = cidrs.first() {
            node["spec"] = json!({"podCIDR": cidr, "podCIDRs": cidrs});
        }
        let file = self.cluster.path(&format!("{name}.json"));
        self.cluster.sandbox.write(&file, node.to_string());
        self.kubectl(&["create", "-f", &file.display().to_string()]);
    }

    /// A node of flanneld.
    pub fn add_flannel(&self, name: &str, subnet: usize, ip: &str, mac: &str) {
        self.add_node(name, Some(subnet));
        self.annotate(name, ip, mac);
    }

    /// What flanneld writes.
    pub fn annotate(&self, name: &str, ip: &str, mac: &str) {
        let own = |key: &str, value: &str| format!("flannel.alpha.coreos.com/{key}={value}");
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        let all = [
            own("kube-subnet-manager", "true"),
            own("backend-type", "vxlan"),
            own("backend-data", &data),
            own("public-ip", ip),
        ];
        let mut argv = vec!["annotate", "--overwrite", "node", name];
        argv.extend(all.iter().map(String::as_str));
        self.kubectl(&argv);
    }

    pub fn node(&self, name: &str) -> Value {
        let text = self.kubectl(&["get", "node", name, "-o", "json"]);
        serde_json::from_str(&text).expect("JSON")
    }

    /// A token of the account that the manifest makes.
    pub fn token(&self) -> String {
        let url = format!("{SERVER}/api/v1/namespaces/podwire/serviceaccounts/podwired/token");
        let request =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let json = "Content-Type: application/json";
        let answer = self.curl(&["-k", "-H", json, "-d", &request.to_string(), &url]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["status"]["token"]
            .as_str()
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    pub fn write_token(&self, token: &str) {
        self.cluster
            .sandbox
            .write(self.cluster.path("token"), token);
    }

    /// Writes a kubeconfig of the account that the manifest makes, whose token is in a file.
    pub fn kubeconfig(&self) -> PathBuf {
        let kubeconfig = self.cluster.path("kubeconfig");
        let text = kubernetes::kubeconfig(SERVER, "pki/ca.pem", "tokenFile: token");
        self.cluster.sandbox.write(&kubeconfig, text);
        kubeconfig
    }

    /// The configuration of podwired on a node: the manifest's, with the places of this sandbox.
    pub fn conf(&self, node: usize) -> Value {
        let map = self.kubectl(&[
            "get",
            "configmap",
            "podwired",
            "-n",
            "podwire",
            "-o",
            "json",
        ]);
        let map: Value = serde_json::from_str(&map).expect("JSON");
        let data = |key: &str| map["data"][key].as_str().expect("a file").to_owned();
        let config_file = self.cluster.path("net-conf.json");
        self.cluster
            .sandbox
            .write(&config_file, data("net-conf.json"));
        let kubeconfig = self.kubeconfig();
        let mut conf: Value = serde_json::from_str(&data("podwired.json")).expect("JSON");
        let places = self.cluster.conf(node, "");
        for key in ["socket", "endpoint"] {
            conf[key] = places[key].clone();
        }
        let network = &mut conf["overlay"]["networks"][0];
        for key in ["bridge", "subnetFile", "conflist"] {
            network[key] = places["overlay"]["networks"][0][key].clone();
        }
        conf["overlay"]["kubernetes"] = json!({
            "kubeconfig": kubeconfig,
            "nodeName": format!("node{node}"),
            "configFile": config_file,
        });
        conf
    }

    /// A node with podwired that is ready.
    pub fn ready(&self, node: usize) -> Running {
        self.add_node(&format!("node{node}"), Some(node));
        self.write_token(&self.token());
        self.cluster.ready(node, &self.conf(node))
    }

    /// Cuts a node off from the API server, or no longer.
    pub fn cut(&self, node: usize, off: bool) {
        let change = if off { "add" } else { "del" };
        let (host, ip) = (self.cluster.sandbox.host(), address(node));
        self.cluster
            .node(node)
            .sh(&format!("ip route {change} blackhole 172.20.0.1"));
        host.sh(&format!("ip route {change} blackhole {ip}"));
    }
}

const MANIFEST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/kubernetes/podwired.yaml"
);
