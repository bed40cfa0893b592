//! `podwire graph`: what ip, bridge and nft know is in the graph, and nothing else; `podwire top`.

use std::collections::BTreeSet;

use sandbox::{BackEnd, FilterNode, Netns, Sandbox, Suite, beyond_peer, conf};
use serde_json::{Value, json};

const WHY: &str = "Debian has nothing like it";

/// A node with a bridge that publishes a port and links a pod to another one, a macvlan, and an overlay with three peers.
struct Node {
    sandbox: Sandbox,
    pods: Vec<Netns>,
}

fn list(name: &str, plugins: Value) -> String {
    json!({"cniVersion": "1.1.0", "name": name, "plugins": plugins}).to_string()
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.wire();
        sandbox
            .host()
            .sh("ip address add 192.0.2.11/24 dev eth1; ip route add default via 192.0.2.1");
        let peers = ["12", "13", "14"].map(|it| json!({"vtep": format!("192.0.2.{it}")}));
        let web = json!([
            {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true,
             "gatewayModeIPv4": "nat", "icc": false, "macspoofchk": true, "links": [],
             "capabilities": {"links": true}, "ipam": conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"])},
            {"type": "portmap", "capabilities": {"portMappings": true}}]);
        let lan = json!([{"type": "macvlan", "master": "eth1", "ipam": conf::host_local_ipam(&["198.51.100.0/24"])}]);
        let overlay = json!([{"type": "vxlan", "mode": "l2", "vni": 7, "bridge": "ov0", "dev": "eth1",
            "peers": peers, "ipam": conf::host_local_ipam(&["10.9.0.0/24"])}]);
        for (file, name, plugins) in [
            ("10", "web", web),
            ("20", "lan", lan),
            ("30", "overlay", overlay),
        ] {
            let file = sandbox.dir().join(format!("net.d/{file}-{name}.conflist"));
            sandbox.write(file, list(name, plugins));
        }
        let mut node = Self {
            sandbox,
            pods: Vec::new(),
        };
        let ports =
            json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        node.attach("web", "a<b>", "eth0", &ports.to_string());
        let link = json!({"containerID": "a", "ifName": "eth0", "ports": ["80/tcp"],
            "addresses": ["10.1.0.2", "fd01::2"]});
        node.attach("web", "b", "eth0", &json!({"links": [link]}).to_string());
        node.attach("lan", "b", "net1", "");
        node.attach("overlay", "c", "eth0", "");
        node
    }

    fn attach(&mut self, network: &str, name: &str, ifname: &str, capabilities: &str) {
        let path = name.replace(['<', '>'], "-");
        let pod = match self.pods.iter().find(|it| it.name() == path) {
            Some(pod) => pod.path(),
            None => {
                let pod = self.sandbox.pod(&path);
                self.pods.push(pod);
                self.pods[self.pods.len() - 1].path()
            }
        };
        let args = format!("IgnoreUnknown=1;K8S_POD_NAME={name}");
        let env = [("CNI_ARGS", args.as_str()), ("CAP_ARGS", capabilities)];
        self.podwire(&env, &["add", "-i", ifname, network, &pod]);
    }

    fn podwire(&self, env: &[(&str, &str)], args: &[&str]) -> String {
        let bin = Suite::Ours.dir();
        let program = bin.join("podwire").display().to_string();
        let lists = self.sandbox.dir().join("net.d");
        let mut argv = vec![
            "env".to_owned(),
            format!("CNI_PATH={}", bin.display()),
            format!("NETCONFPATH={}", lists.display()),
        ];
        argv.extend(env.iter().map(|(name, value)| format!("{name}={value}")));
        argv.push(program);
        argv.extend(args.iter().map(|it| (*it).to_owned()));
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        let done = self.sandbox.host().run(&argv);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(done.stderr, "");
        done.stdout
    }

    fn graph(&self, args: &[&str]) -> Value {
        let args = [&["graph", "-o", "json"], args].concat();
        let text = self.podwire(&[], &args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn all<'a>(graph: &'a Value, list: &str, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    array(&graph[list])
        .iter()
        .filter(move |it| it["kind"] == kind)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Each link with the id of its object: the namespace's, and the index.
fn links(node: &Node) -> Vec<(String, Value)> {
    let mut links = Vec::new();
    let namespaces = node.pods.iter().chain([]).map(Netns::path);
    let inode = |path: String| {
        let inode = node.sandbox.host().sh(&format!("stat -L -c %i {path}"));
        format!("net:[{}]", inode.trim())
    };
    for link in node.sandbox.host().ip_json(["link", "show"]) {
        links.push((format!("node/{}", link["ifindex"]), link));
    }
    for (pod, path) in node.pods.iter().zip(namespaces) {
        let id = inode(path);
        for link in pod.ip_json(["link", "show"]) {
            links.push((format!("{id}/{}", link["ifindex"]), link));
        }
    }
    links
}

/// A pair of ids as text, for one kind of edges.
fn edges(graph: &Value, kind: &str) -> BTreeSet<String> {
    let all = all(graph, "edges", kind);
    all.map(|it| format!("{} {}", text(&it["from"]), text(&it["to"])))
        .collect()
}

#[test]
fn the_graph_has_what_ip_and_bridge_know_and_nothing_else() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let graph = node.graph(&[]);
        let links = links(&node);
        let ours = |list: &[(String, Value)]| -> BTreeSet<_> {
            let line = |(id, it): &(String, Value)| {
                format!(
                    "{id} {} {} {}",
                    text(&it["ifname"]),
                    text(&it["address"]),
                    it["mtu"]
                )
            };
            list.iter().map(line).collect()
        };
        // The other end of the wire is in a namespace that is no pod's.
        let known: BTreeSet<_> = links
            .iter()
            .map(|(id, _)| id.split('/').next().unwrap_or_default())
            .collect();
        let drawn: BTreeSet<_> = all(&graph, "nodes", "interface")
            .filter(|it| known.contains(text(&it["within"]).as_str()))
            .map(|it| {
                format!(
                    "{} {} {} {}",
                    text(&it["id"]),
                    text(&it["name"]),
                    it["mac"].as_str().unwrap_or("00:00:00:00:00:00"),
                    it["mtu"]
                )
            })
            .collect();
        assert_eq!(drawn, ours(&links));
        let node_of = |id: &str| id.split('/').next().unwrap_or_default().to_owned();
        let mut masters = BTreeSet::new();
        let mut wires = 0;
        for (id, link) in &links {
            if let Some(master) = link["master"].as_str() {
                let found = links
                    .iter()
                    .find(|(other, it)| it["ifname"] == master && node_of(other) == node_of(id));
                masters.insert(format!("{id} {}", found.expect("its master").0));
            }
            wires += usize::from(link["linkinfo"]["info_kind"] == "veth" && id.starts_with("net:"));
        }
        assert_eq!(edges(&graph, "port"), masters);
        let pods_wires = edges(&graph, "veth");
        let of_pods = pods_wires.iter().filter(|it| it.starts_with("net:"));
        assert_eq!(of_pods.count(), wires, "{pods_wires:?}");
        // The macvlan on its parent, the VXLAN device on its underlay.
        assert_eq!(edges(&graph, "parent").len(), 2);
        let fdb = node.sandbox.host().sh("bridge -j fdb show dev vxlan.7");
        let fdb: Value = serde_json::from_str(&fdb).expect("JSON");
        let peers: BTreeSet<_> = array(&fdb)
            .iter()
            .filter_map(|it| it["dst"].as_str())
            .map(str::to_owned)
            .collect();
        assert_eq!(peers.len(), 3);
        let drawn: BTreeSet<_> = all(&graph, "nodes", "peer")
            .map(|it| text(&it["name"]))
            .collect();
        assert_eq!(drawn, peers);
        assert_eq!(edges(&graph, "peer").len(), 3);
    });
}

/// The elements and rules with a comment that belong to a network or a pod.
fn commented(node: &Node) -> Vec<String> {
    let ruleset = node.sandbox.host().sh("nft -j list ruleset");
    let ruleset: Value = serde_json::from_str(&ruleset).expect("JSON");
    let mut found = Vec::new();
    for object in array(&ruleset["nftables"]) {
        let rule = &object["rule"];
        let entered = rule["chain"] != "masq_checks" && rule["table"] == "cni_plugins_masquerade";
        // One of the three rules of each spoof check.
        let inner = rule["table"] == "nat" && rule["chain"] != "PREROUTING";
        if rule["comment"].is_string() && !entered && !inner {
            found.push(format!(
                "{} {}",
                text(&rule["family"]),
                text(&rule["table"])
            ));
        }
        for kind in ["set", "map"] {
            let set = &object[kind];
            let table = text(&set["table"]);
            // Each element of `linked` belongs to one of `links`.
            let own = ["podwire_access", "podwire_networks"].contains(&table.as_str());
            if own && set["name"] != "linked"
                || (table == "podwire_vxlan" && set["name"] == "networks")
            {
                let place = format!("{} {table}", text(&set["family"]));
                found.extend(array(&set["elem"]).iter().map(|_| place.clone()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_graph_has_the_ports_and_rules_that_nft_knows() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let graph = node.graph(&[]);
        let ports: Vec<_> = all(&graph, "nodes", "port")
            .map(|it| text(&it["name"]))
            .collect();
        assert_eq!(
            ports,
            ["8080/tcp → 80", "8080/tcp → 80"],
            "one for each family"
        );
        assert_eq!(edges(&graph, "publishes").len(), 2);
        let mut rules: Vec<_> = all(&graph, "nodes", "rule")
            .map(|it| text(&it["table"]))
            .collect();
        rules.sort();
        assert_eq!(rules, commented(&node));
        let link = all(&graph, "nodes", "rule").find(|it| it["subject"] == "link");
        let link = link.expect("a link");
        assert_eq!(link["name"], "link 10.1.0.3 . 10.1.0.2 . tcp . 80");
        let start = text(&link["id"]) + " ";
        let ends = edges(&graph, "applies");
        let ends = ends.iter().filter(|it| it.starts_with(&start));
        assert_eq!(ends.count(), 2, "client and server");
        // Each is about an interface, but for the guard of a VXLAN port.
        for rule in all(&graph, "nodes", "rule").filter(|it| it["subject"] != "VXLAN guard") {
            let id = text(&rule["id"]) + " ";
            let mut edges = edges(&graph, "applies").into_iter();
            assert!(edges.any(|it| it.starts_with(&id)), "{rule}");
        }
    });
}

/// What podwire and the Go plugins keep in iptables: each rule that leads to a pod or network.
#[test]
fn the_graph_has_the_rules_that_iptables_knows() {
    beyond_peer(WHY, || {
        for back_end in BackEnd::IPTABLES {
            let node = FilterNode::new(back_end);
            let bridge = json!({"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true,
                "ipMasqBackend": "iptables", "ipam": conf::host_local_ipam(&["10.1.0.0/24"])});
            let portmap = json!({"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": true}});
            let firewall = json!({"type": "firewall", "backend": "iptables"});
            let lists = node.sandbox.dir().join("net.d");
            node.sandbox.write(
                lists.join("10-web.conflist"),
                list("web", json!([bridge, portmap, firewall])),
            );
            let bin = Suite::Ours.dir().display();
            let podwire = |args: &str| {
                let ports = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
                let script = format!(
                    "export PATH={} CNI_PATH={bin} NETCONFPATH={} CAP_ARGS='{ports}'; {bin}/podwire {args}",
                    back_end.path(&node.sandbox),
                    lists.display()
                );
                node.host().sh(&script)
            };
            podwire(&format!("add web {}", node.sandbox.pod("a").path()));
            let graph = podwire("graph -o json");
            let graph: Value = serde_json::from_str(&graph).expect("JSON");
            let drawn: Vec<_> = all(&graph, "nodes", "rule")
                .filter(|it| it["backend"] == "iptables")
                .map(|it| format!("{} {}", text(&it["table"]), text(&it["element"])))
                .collect();
            for (rule, count) in [
                ("iptables nat POSTROUTING ", 1),
                ("iptables nat CNI-HOSTPORT-DNAT 8080", 1),
                ("iptables filter CNI-FORWARD ", 2),
            ] {
                let found = drawn.iter().filter(|it| *it == rule).count();
                assert_eq!(found, count, "{back_end:?} {rule}: {drawn:?}");
            }
            // Each leads to the pod, or to its bridge.
            for rule in all(&graph, "nodes", "rule") {
                let id = text(&rule["id"]) + " ";
                let mut edges = edges(&graph, "applies").into_iter();
                assert!(edges.any(|it| it.starts_with(&id)), "{rule}");
            }
        }
    });
}

#[test]
fn a_network_or_a_pod_is_drawn_alone_and_in_each_form() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let names = |graph: &Value, kind| -> BTreeSet<_> {
            all(graph, "nodes", kind)
                .map(|it| text(&it["name"]))
                .collect()
        };
        let of = |list: &[&str]| {
            list.iter()
                .map(|it| (*it).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let user = node.graph(&["--view", "user"]);
        assert_eq!(names(&user, "pod"), of(&["a<b>", "b", "c"]));
        assert_eq!(names(&user, "network"), of(&["web", "lan", "overlay"]));
        assert_eq!(edges(&user, "attached").len(), 4);
        let web = node.graph(&["--view", "user", "web"]);
        assert_eq!(names(&web, "pod"), of(&["a<b>", "b"]));
        let overlay = node.graph(&["overlay"]);
        assert_eq!(names(&overlay, "peer").len(), 3);
        assert!(!names(&overlay, "interface").contains("cni0"));
        let pod = node.graph(&["b"]);
        let has = |name: &str| names(&pod, "interface").contains(name);
        assert!(has("cni0") && has("eth1") && has("net1") && !has("ov0"));
        for (form, starts) in [
            ("text", ""),
            ("svg", "<svg "),
            ("dot", "graph "),
            ("html", "<!doctype html>"),
        ] {
            for view in ["host", "user"] {
                let drawn = node.podwire(&[], &["graph", "--view", view, "-o", form]);
                assert!(
                    drawn.starts_with(starts) && drawn.contains("192.0.2.1") | (view == "user")
                );
                let raw = drawn.contains("a<b>");
                assert_eq!(raw, matches!(form, "text" | "dot"), "{form}: {drawn}");
            }
        }
        let bin = Suite::Ours.dir().join("podwire").display().to_string();
        let missing = node.sandbox.host().run(&[&bin, "graph", "nope"]);
        assert_eq!(missing.code, 1, "{missing:?}");
        assert!(
            missing
                .stderr
                .contains("there is no network and no pod called \"nope\"")
        );
    });
}

/// `podwire top`: what the pod itself sees, whatever side counts it.
#[test]
fn top_shows_rates_and_connections_of_each_pod() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let _server = node.pods[0].serve(80);
        let host = node.sandbox.host();
        host.wait_until("the pod answers", |host| {
            host.ask("tcp", "10.1.0.2", 80).starts_with("a-b- sees ")
        });
        let _ping = host.start(&["ping", "-q", "-i", "0.02", "-w", "20", "10.1.0.2"]);
        let text = node.podwire(&[], &["top", "--json", "--interval", "0.5"]);
        let top: Value = serde_json::from_str(&text).expect("JSON");
        let interfaces = array(&top["interfaces"]);
        assert_eq!(interfaces.len(), 4, "{text}");
        let busiest = &interfaces[0];
        assert_eq!(
            (&busiest["pod"], &busiest["network"]),
            (&json!("a<b>"), &json!("web"))
        );
        for direction in ["received", "sent"] {
            let rate = busiest[direction]["packetsPerSecond"].as_f64();
            assert!(rate.is_some_and(|it| it > 1.0), "{text}");
        }
        let port = &busiest["ports"][0];
        assert_eq!(
            (&port["port"], &port["published"]),
            (&json!("80/tcp"), &json!([8080]))
        );
        assert!(
            port["connections"].as_u64().is_some_and(|it| it >= 1),
            "{text}"
        );
        let table = node.podwire(&[], &["top", "--interval", "0.1"]);
        assert!(
            table.starts_with("POD ") && table.contains("8080→80/tcp ("),
            "{table}"
        );
    });
}
