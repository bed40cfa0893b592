//! Names of pods on other nodes.

use sandbox::{Netns, Running, Suite};
use serde_json::{Value, json};

use sandbox::cluster::{Cluster, config};

/// Shows a directory of the node in the place of `/run/podwire`: all nodes of a cluster have one `/run`.
const OWN_RUN: &str = r#"mount --bind "$0" /run/podwire; exec "$@""#;

struct Names {
    cluster: Cluster,
    etcd: String,
}

impl Names {
    fn new(cluster: Cluster, etcd: &str) -> Self {
        cluster.sandbox.host().sh("mkdir -m 700 -p /run/podwire");
        let names = Self {
            cluster,
            etcd: etcd.to_owned(),
        };
        for node in 1..=names.cluster.nodes.len() {
            let dir = names.run_of(node);
            names
                .cluster
                .sandbox
                .host()
                .sh(&format!("mkdir -m 700 -p {dir}"));
        }
        names
    }

    fn run_of(&self, node: usize) -> String {
        self.cluster
            .path(&format!("run{node}"))
            .display()
            .to_string()
    }

    /// Starts the agent of a node with both roles, and waits until the node is ready.
    fn start(&self, node: usize) -> Running {
        let mut conf = self.cluster.conf(node, &self.etcd);
        conf["resolver"] = json!({});
        conf["socket"] = "/run/podwire/podwired.sock".into();
        let file = self.cluster.path(&format!("n{node}.json"));
        self.cluster.sandbox.write(&file, conf.to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let (dir, file) = (self.run_of(node), file.display().to_string());
        let script = format!("hostname n{node}; {OWN_RUN}");
        let argv = [
            "unshare", "--mount", "--uts", "sh", "-c", &script, &dir, &program, "--config", &file,
        ];
        let running = self.cluster.node(node).start(&argv);
        self.cluster.await_ready(node, &running);
        running
    }

    /// The plugin's entry in the list that the agent has written.
    fn plugin(&self, node: usize) -> Value {
        let list = self.cluster.path(&format!("n{node}/net.d/10.conflist"));
        let list = self.cluster.sandbox.read(list).expect("the conflist");
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let mut plugin = list["plugins"][2].clone();
        assert_eq!(plugin["type"], "dnsname", "{list}");
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
        plugin
    }

    fn call(&self, node: usize, name: &str) -> sandbox::Cni {
        let (dir, node) = (self.run_of(node), self.cluster.node(node).name());
        let under = ["ip", "netns", "exec", node, "sh", "-c", OWN_RUN, &dir];
        let args = format!("IgnoreUnknown=1;K8S_POD_NAME={name}");
        self.cluster
            .sandbox
            .cni("dnsname")
            .under(&under)
            .args(&args)
    }

    /// A pod with a name; its address.
    fn pod(&self, node: usize, name: &str) -> (Netns, String) {
        let pod = self.cluster.pod(node, name);
        let address = pod.addresses("eth0").remove(0);
        let gateway = format!("{}.1", self.cluster.subnet(node));
        let mut conf = self.plugin(node);
        conf["prevResult"] = json!({
            "cniVersion": conf["cniVersion"],
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": pod.path()}],
            "ips": [{"address": address, "gateway": gateway, "interface": 1}],
        });
        let answer = self.call(node, name).add(&conf, &pod, "eth0");
        assert_eq!(answer.result()["dns"]["nameservers"], json!([gateway]));
        (pod, address.trim_end_matches("/24").to_owned())
    }

    fn remove(&self, node: usize, name: &str, pod: &Netns) {
        self.call(node, name)
            .del(&self.plugin(node), pod, "eth0")
            .silent();
    }

    /// What `podwire names` lists on a node.
    fn list(&self, node: usize) -> String {
        let program = Suite::Ours.dir().join("podwire").display().to_string();
        let argv = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            OWN_RUN,
            &self.run_of(node),
            &program,
            "names",
        ];
        self.cluster.node(node).run(&argv).stdout
    }

    /// What a pod of a node finds.
    fn dig(&self, (node, pod): (usize, &Netns), words: &[&str]) -> String {
        let server = format!("@{}.1", self.cluster.subnet(node));
        let fixed = ["dig", "+short", "+tries=1", "+time=2", &server];
        pod.run(&[&fixed, words].concat()).stdout.trim().to_owned()
    }
}

#[test]
fn pods_are_found_by_name_on_all_nodes_and_gone_with_their_node() {
    let cluster = Cluster::new(2);
    let etcd = cluster.etcd(&config());
    let names = Names::new(cluster, &etcd.url);
    let (one, two) = (names.start(1), names.start(2));
    let (web, at_web) = names.pod(1, "web");
    let (front, at_front) = names.pod(2, "front");
    let in_front = |words: &[&str]| names.dig((2, &front), words);
    names
        .cluster
        .wait("the pod of the other node has a name", || {
            in_front(&["web"]) == at_web
        });
    assert_eq!(in_front(&["web.podwire.internal"]), at_web);
    assert_eq!(in_front(&["-x", &at_web]), "web.podwire.internal.");
    names.cluster.wait("in the other direction as well", || {
        names.dig((1, &web), &["front"]) == at_front
    });
    let listed = names.list(2);
    let line = |name: &str| {
        listed
            .lines()
            .find(|it| it.ends_with(name))
            .map(str::to_owned)
    };
    let of_web = line("web").expect("web");
    assert!(of_web.contains(&format!("  n1    {at_web}  ")), "{listed}");
    assert!(line("front").expect("front").contains("  -  "), "{listed}");
    let (db, at_db) = names.pod(1, "db");
    names
        .cluster
        .wait("a new pod is known", || in_front(&["db"]) == at_db);
    names.remove(1, "db", &db);
    names.cluster.wait("a pod that has ended is not", || {
        in_front(&["db"]).is_empty()
    });

    // Where the store is away, what is known stays. What happens meanwhile is known later.
    let host = names.cluster.sandbox.host();
    host.sh("ip address del 172.20.0.1/32 dev lo; ip route add blackhole 172.20.0.1");
    let (late, at_late) = names.pod(1, "late");
    assert_eq!(names.dig((1, &web), &["late"]), at_late);
    assert_eq!(
        (in_front(&["web"]), in_front(&["late"])),
        (at_web.clone(), String::new())
    );
    host.sh("ip route del blackhole 172.20.0.1; ip address add 172.20.0.1/32 dev lo");
    names
        .cluster
        .wait("the store is back", || in_front(&["late"]) == at_late);

    // An agent that starts again has the names of others, and keeps its own.
    drop(two);
    let _two = names.start(2);
    names
        .cluster
        .wait("the names are back", || in_front(&["web"]) == at_web);
    names.remove(1, "late", &late);
    names
        .cluster
        .wait("the pod is gone", || in_front(&["late"]).is_empty());

    // A node ends: its lease does.
    drop(one);
    let key = format!("{}/names/", sandbox::cluster::PREFIX);
    let keys = names
        .cluster
        .etcdctl(&["get", "--prefix", "--keys-only", &key]);
    let of_web = keys.lines().find(|it| it.ends_with("web:eth0"));
    let of_web = of_web.unwrap_or_else(|| panic!("no key of the pod: {keys}"));
    let found = names.cluster.etcdctl(&["get", "-w", "json", of_web]);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let lease = found["kvs"][0]["lease"].as_i64().expect("a lease");
    names
        .cluster
        .etcdctl(&["lease", "revoke", &format!("{lease:x}")]);
    names
        .cluster
        .wait("its pods are gone", || in_front(&["web"]).is_empty());
    assert_eq!(in_front(&["front"]), at_front);
}
