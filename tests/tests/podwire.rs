//! podwire in cnitool's place: network lists, the cache, the capabilities, the order
//! of a chain. Debian has no cnitool, so nothing here can be proved against it.

use sandbox::{FakePlugin, Finished, Netns, Sandbox, Suite, beyond_peer, conf};
use serde_json::{Value, json};

const WHY: &str = "Debian has no cnitool";

/// A node with a directory of network lists.
struct Node {
    sandbox: Sandbox,
    pod: Netns,
    env: Vec<(String, String)>,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("blue");
        let fakes = sandbox.dir().join("fakes");
        let path = format!("{}:{}", fakes.display(), Suite::Ours.dir().display());
        let dir = sandbox.dir().join("net.d").display().to_string();
        let env = vec![("CNI_PATH".into(), path), ("NETCONFPATH".into(), dir)];
        Self { sandbox, pod, env }
    }

    fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    fn conf(&self, file: &str, content: &Value) -> &Self {
        self.raw_conf(file, &content.to_string())
    }

    fn raw_conf(&self, file: &str, content: &str) -> &Self {
        self.sandbox
            .write(self.sandbox.dir().join("net.d").join(file), content);
        self
    }

    /// Runs `podwire verb network netns`.
    fn run(&self, verb: &str) -> Finished {
        self.podwire(&[verb, "net", &self.pod.path()])
    }

    fn podwire(&self, args: &[&str]) -> Finished {
        let program = Suite::Ours.dir().join("podwire").display().to_string();
        let env: Vec<String> = self.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut argv = vec!["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
        argv.extend(env.iter().map(String::as_str));
        argv.push(&program);
        argv.extend(args);
        self.sandbox.host().run(&argv)
    }

    fn add(&self) -> Value {
        let done = good(self.run("add"));
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"))
    }

    /// The id that cnitool makes of the path: ten bytes of its SHA-512.
    fn id(&self) -> String {
        let script = format!("printf %s {} | sha512sum", self.pod.path());
        format!("cnitool-{}", &self.sandbox.host().sh(&script)[..20])
    }
}

#[track_caller]
fn good(done: Finished) -> Finished {
    assert_eq!(done.code, 0, "{done:?}");
    done
}

#[track_caller]
fn bad(done: &Finished, text: &str) {
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains(text), "no word of {text:?}: {done:?}");
}

fn list(plugins: &[Value]) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "plugins": plugins})
}

fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": conf::host_local_ipam(&["10.1.0.0/24"])})
}

/// A node whose network is two fakes: (node, first, second).
fn chain(change: Value) -> (Node, FakePlugin, FakePlugin) {
    let node = Node::new();
    let (first, second) = (node.sandbox.fake("first"), node.sandbox.fake("second"));
    first.answer(
        "ADD",
        &json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]}),
    );
    second.answer(
        "ADD",
        &json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.3/24"}]}),
    );
    let plugins = list(&[
        json!({"type": "first", "capabilities": {"mac": true, "ips": false}}),
        json!({"type": "second"}),
    ]);
    node.conf("10-net.conflist", &conf::with(&plugins, change));
    (node, first, second)
}

fn input(fake: &FakePlugin, call: usize) -> Value {
    serde_json::from_str(&fake.calls()[call].stdin).expect("JSON")
}

#[test]
fn a_pod_is_attached_checked_and_detached() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.conf("10-net.conflist", &list(&[bridge()]));
        let snapshot = node.sandbox.snapshot();
        let result = node.add();
        assert_eq!(result["cniVersion"], "1.1.0");
        assert_eq!(node.pod.addresses("eth0"), ["10.1.0.2/24"]);
        good(node.run("check"));
        node.pod.sh("ip addr flush dev eth0");
        bad(&node.run("check"), "10.1.0.2/24");
        assert_eq!(good(node.run("del")).stdout, "");
        good(node.run("del"));
        assert_eq!(node.pod.links(), ["lo"]);
        let snapshot = snapshot.allow_bridge_network().allow_host_local("net");
        snapshot
            .allow("dir /var/lib/cni/results ")
            .assert_unchanged();
    });
}

#[test]
fn the_container_id_follows_from_the_path() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.conf("10-net.conflist", &list(&[bridge()]));
        node.add();
        let file = node.sandbox.read("/var/lib/cni/networks/net/10.1.0.2");
        assert_eq!(file, Some(format!("{}\r\neth0", node.id())));
    });
}

#[test]
fn the_attachment_is_cached_as_libcni_does_it() {
    beyond_peer(WHY, || {
        let node = Node::new()
            .with_env("CNI_ARGS", "K=V;A=B")
            .with_env("CAP_ARGS", "{\"mac\": \"02:00:00:00:00:07\"}");
        let plugin = conf::with(&bridge(), json!({"capabilities": {"mac": true}}));
        let node = Node {
            env: node
                .env
                .into_iter()
                .map(|(k, v)| (k, v.replace("K=V;A=B", "IgnoreUnknown=1;K=V")))
                .collect(),
            ..node
        };
        node.conf("10-net.conflist", &list(&[plugin]));
        let result = node.add();
        let path = format!("/var/lib/cni/results/net-{}-eth0", node.id());
        let cached: Value =
            serde_json::from_str(&node.sandbox.read(&path).expect("a cache file")).expect("JSON");
        assert_eq!(cached["kind"], "cniCacheV1");
        assert_eq!(cached["containerId"], node.id());
        assert_eq!(cached["ifName"], "eth0");
        assert_eq!(cached["networkName"], "net");
        assert_eq!(cached["netns"], node.pod.path());
        assert_eq!(
            cached["cniArgs"],
            json!([["IgnoreUnknown", "1"], ["K", "V"]])
        );
        assert_eq!(
            cached["capabilityArgs"],
            json!({"mac": "02:00:00:00:00:07"})
        );
        assert_eq!(cached["result"], result);
        assert!(cached["config"].is_string(), "base64 of the list");
        let modes = node
            .sandbox
            .host()
            .sh(&format!("stat -c %a {path} /var/lib/cni/results"));
        assert_eq!(modes, "600\n700\n");
        good(node.run("del"));
        assert_eq!(node.sandbox.read(&path), None);
    });
}

#[test]
fn a_chain_goes_forward_for_add_and_backward_for_del() {
    beyond_peer(WHY, || {
        let (node, first, second) = chain(json!({}));
        let result = node.add();
        assert_eq!(result["ips"][0]["address"], "10.1.0.3/24");
        assert!(input(&first, 0).get("prevResult").is_none());
        assert_eq!(
            input(&second, 0)["prevResult"]["ips"][0]["address"],
            "10.1.0.2/24"
        );
        for fake in [&first, &second] {
            assert_eq!(input(fake, 0)["name"], "net");
            assert_eq!(input(fake, 0)["cniVersion"], "1.1.0");
        }
        good(node.run("check"));
        good(node.run("del"));
        for fake in [&first, &second] {
            assert_eq!(fake.verbs(), ["ADD", "CHECK", "DEL"]);
            for call in [1, 2] {
                assert_eq!(
                    input(fake, call)["prevResult"]["ips"][0]["address"],
                    "10.1.0.3/24"
                );
            }
        }
    });
}

#[test]
fn del_goes_on_after_an_error_and_may_be_repeated() {
    beyond_peer(WHY, || {
        // libcni stops at the first error, and so loses the address (reference 6.1).
        let (node, first, second) = chain(json!({}));
        node.add();
        second.fail("DEL", 11, "not now");
        bad(&node.run("del"), "not now");
        assert_eq!(first.verbs(), ["ADD", "DEL"]);
        assert_eq!(node.sandbox.list("/var/lib/cni/results").len(), 1);
        second.set("DEL", 0, "", "");
        good(node.run("del"));
        assert!(node.sandbox.list("/var/lib/cni/results").is_empty());
    });
}

#[test]
fn only_declared_capabilities_reach_a_plugin() {
    beyond_peer(WHY, || {
        let (node, first, second) = chain(json!({}));
        let node = node.with_env(
            "CAP_ARGS",
            "{\"mac\": \"02:00:00:00:00:07\", \"ips\": [\"10.1.0.9\"]}",
        );
        node.add();
        assert_eq!(
            input(&first, 0)["runtimeConfig"],
            json!({"mac": "02:00:00:00:00:07"})
        );
        assert!(input(&second, 0).get("runtimeConfig").is_none());
    });
}

#[test]
fn interface_and_arguments_come_from_the_environment() {
    beyond_peer(WHY, || {
        let (node, first, _) = chain(json!({}));
        let node = node
            .with_env("CNI_IFNAME", "net7")
            .with_env("CNI_ARGS", "K=V");
        node.add();
        let call = &first.calls()[0];
        assert_eq!(call.env["CNI_IFNAME"], "net7");
        assert_eq!(call.env["CNI_ARGS"], "K=V");
        assert_eq!(call.env["CNI_NETNS"], node.pod.path());
        assert_eq!(call.env["CNI_CONTAINERID"], node.id());
    });
}

#[test]
fn disable_check_makes_check_a_success() {
    beyond_peer(WHY, || {
        for value in [json!(true), json!("true")] {
            let (node, first, _) = chain(json!({"disableCheck": value}));
            node.add();
            good(node.run("check"));
            assert_eq!(first.verbs(), ["ADD"]);
        }
    });
}

#[test]
fn gc_detaches_what_is_cached_and_calls_the_plugins() {
    beyond_peer(WHY, || {
        let (node, first, _) = chain(json!({}));
        node.add();
        good(node.podwire(&["gc", "net", &node.pod.path()]));
        assert_eq!(first.verbs(), ["ADD", "DEL", "GC"]);
        assert!(node.sandbox.list("/var/lib/cni/results").is_empty());
    });
}

/// What a crash, a full disk or a careless hand makes of a cache file.
const SPOILS: [(&str, &str); 7] = [
    ("empty", ": > $f"),
    ("half a file", "head -c 60 $f > $f.x; mv $f.x $f"),
    ("a directory", "rm $f; mkdir $f"),
    ("a pipe", "rm $f; mkfifo $f"),
    ("a link to nothing", "ln -sf /nonexistent $f"),
    ("no attachment", "echo null > $f"),
    (
        "of another container",
        "sed -i 's/\"containerId\":\"[^\"]*\"/\"containerId\":\"other\"/' $f",
    ),
];

#[test]
fn an_attachment_whose_file_cannot_be_read_is_in_use_and_named() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.conf("10-net.conflist", &list(&[bridge()]));
        let snapshot = node.sandbox.snapshot();
        node.add();
        let file = format!("/var/lib/cni/results/net-{}-eth0", node.id());
        let content = node.sandbox.read(&file).expect("a cache file");
        for (what, spoil) in SPOILS {
            let leftover = "/var/lib/cni/networks/net/10.1.0.200";
            node.sandbox.write(leftover, "gone\r\neth0");
            node.sandbox.host().sh(&format!("f={file}; {spoil}"));
            bad(&node.podwire(&["gc", "--keep-cached", "net"]), &file);
            assert_eq!(node.pod.ping("10.1.0.1", 1), [true], "{what}");
            let lease = node.sandbox.read("/var/lib/cni/networks/net/10.1.0.2");
            assert!(lease.is_some(), "{what}: the address was given away");
            assert_eq!(node.sandbox.read(leftover), None, "{what}: collected");
            for verb in ["resync", "adopt", "release"] {
                bad(&node.podwire(&[verb]), &file);
                bad(&node.podwire(&[verb, "net"]), &file);
            }
            node.sandbox.host().sh(&format!("rm -rf {file}"));
            node.sandbox.write(&file, &content);
        }
        good(node.podwire(&["gc", "--keep-cached", "net"]));
        node.sandbox
            .host()
            .sh("rm -r /var/lib/cni/results; : > /var/lib/cni/results");
        bad(
            &node.podwire(&["gc", "--keep-cached", "net"]),
            "/var/lib/cni/results",
        );
        assert_eq!(
            node.pod.ping("10.1.0.1", 1),
            [true],
            "the cache is no directory"
        );
        let results = "rm /var/lib/cni/results; mkdir /var/lib/cni/results";
        node.sandbox.host().sh(results);
        node.sandbox.write(&file, &content);
        good(node.run("del"));
        let snapshot = snapshot.allow_bridge_network().allow_host_local("net");
        snapshot
            .allow("dir /var/lib/cni/results ")
            .assert_unchanged();
    });
}

#[test]
fn an_attachment_of_an_old_libcni_is_in_use() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.conf("10-net.conflist", &list(&[bridge()]));
        let result = node.add();
        let file = format!("/var/lib/cni/results/net-{}-eth0", node.id());
        node.sandbox.write(&file, result.to_string());
        let done = good(node.podwire(&["gc", "--keep-cached", "net"]));
        assert!(done.stderr.contains(&file), "{done:?}");
        assert_eq!(node.pod.ping("10.1.0.1", 1), [true]);
        good(node.podwire(&["resync"]));
    });
}

#[test]
fn without_a_cache_nothing_is_collected() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.conf("10-net.conflist", &list(&[bridge()]));
        node.add();
        let mistyped = ["gc", "--keep-cached", "--cache-dir", "/var/lib/cnj", "net"];
        bad(&node.podwire(&mistyped), "/var/lib/cnj/results is missing");
        assert_eq!(node.pod.ping("10.1.0.1", 1), [true]);
    });
}

#[test]
fn a_network_whose_name_begins_with_another_s_keeps_its_pods() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let other = conf::with(
            &list(&[conf::with(
                &bridge(),
                json!({"bridge": "cni1", "ipam": conf::host_local_ipam(&["10.2.0.0/24"])}),
            )]),
            json!({"name": "net-b"}),
        );
        node.conf("10-net.conflist", &list(&[bridge()]))
            .conf("20-net-b.conflist", &other);
        good(node.podwire(&["add", "net-b", &node.pod.path()]));
        let file = format!("/var/lib/cni/results/net-b-{}-eth0", node.id());
        node.sandbox.write(&file, "");
        // The name may also be that of container b-… on net: that is in use as well.
        bad(&node.podwire(&["gc", "--keep-cached", "net"]), &file);
        bad(&node.podwire(&["gc", "--keep-cached", "net-b"]), &file);
        assert_eq!(node.pod.ping("10.2.0.1", 1), [true]);
    });
}

#[test]
fn status_asks_in_order_and_keeps_the_code() {
    beyond_peer(WHY, || {
        let (node, first, second) = chain(json!({}));
        assert_eq!(good(node.run("status")).stdout, "");
        first.fail("STATUS", 50, "no addresses");
        bad(&node.run("status"), "no addresses");
        assert_eq!((first.verbs().len(), second.verbs().len()), (2, 1));
        let (node, first, _) = chain(json!({"cniVersion": "1.0.0"}));
        good(node.run("status"));
        assert!(first.calls().is_empty(), "1.0.0 has no STATUS");
    });
}

#[test]
fn the_highest_common_version_of_a_list_is_taken() {
    beyond_peer(WHY, || {
        let (node, first, _) =
            chain(json!({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "9.0.0"]}));
        node.add();
        assert_eq!(input(&first, 0)["cniVersion"], "1.0.0");
    });
}

#[test]
fn a_single_configuration_is_a_list_of_one() {
    beyond_peer(WHY, || {
        for file in ["10-net.conf", "10-net.json"] {
            let node = Node::new();
            let single = conf::with(&bridge(), json!({"cniVersion": "1.0.0", "name": "net"}));
            node.conf(file, &single);
            assert_eq!(node.add()["cniVersion"], "1.0.0");
        }
    });
}

#[test]
fn lists_come_before_single_configurations_and_in_order() {
    beyond_peer(WHY, || {
        let (node, first, second) = chain(json!({}));
        node.conf(
            "00-net.conf",
            &json!({"cniVersion": "1.0.0", "name": "net", "type": "second"}),
        );
        node.conf("20-net.conflist", &list(&[json!({"type": "second"})]));
        node.add();
        assert_eq!((first.verbs().len(), second.verbs().len()), (1, 1));
    });
}

#[test]
fn a_network_that_is_not_there_is_named() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let dir = node.sandbox.dir().join("net.d").display().to_string();
        node.sandbox.host().sh(&format!("mkdir -p {dir}"));
        bad(
            &node.run("add"),
            &format!("no net configurations found in {dir}"),
        );
        node.conf(
            "10-other.conflist",
            &conf::with(&list(&[bridge()]), json!({"name": "other"})),
        );
        bad(
            &node.run("add"),
            &format!("no net configuration with name \"net\" in {dir}"),
        );
        node.raw_conf("05-broken.conflist", "{");
        bad(&node.run("add"), "05-broken.conflist");
    });
}

#[test]
fn plugins_in_the_network_s_directory_are_appended() {
    beyond_peer(WHY, || {
        let (node, first, second) = chain(json!({"plugins": [{"type": "first"}]}));
        node.conf("net/50-more.conf", &json!({"type": "second"}));
        node.add();
        assert_eq!((first.verbs().len(), second.verbs().len()), (1, 1));
        let (node, _, second) =
            chain(json!({"plugins": [{"type": "first"}], "loadOnlyInlinedPlugins": true}));
        node.conf("net/50-more.conf", &json!({"type": "second"}));
        node.add();
        assert!(second.verbs().is_empty());
    });
}

#[test]
fn a_failing_plugin_is_named_and_nothing_is_cached() {
    beyond_peer(WHY, || {
        let (node, first, second) = chain(json!({}));
        second.fail("ADD", 7, "cannot do that");
        bad(&node.run("add"), "cannot do that");
        assert!(node.sandbox.list("/var/lib/cni/results").is_empty());
        assert!(
            first.verbs().ends_with(&["DEL".to_owned()]),
            "rolled back: {:?}",
            first.verbs()
        );
    });
}

#[test]
fn misuse_and_failure_have_different_exit_statuses() {
    beyond_peer(WHY, || {
        let node = Node::new();
        for args in [
            &["add"][..],
            &["add", "net"],
            &["nonsense"],
            &["add", "--nonsense", "net", "x"],
        ] {
            let done = node.podwire(args);
            assert_eq!(
                (done.code, done.stdout.as_str()),
                (2, ""),
                "{args:?}: {done:?}"
            );
            assert!(!done.stderr.is_empty());
        }
        good(node.podwire(&["--help"]));
    });
}

#[test]
fn what_is_no_file_or_too_long_is_named_and_holds_nothing_up() {
    beyond_peer(WHY, || {
        for (make, message) in [
            ("mkfifo $f", "is a pipe"),
            ("truncate -s 5G $f", "is longer than"),
            ("ln -s /dev/zero $f", "is a device"),
            ("ln -s . $f", "is a directory"),
            ("ln -s $f $f", "symbolic link"),
            ("touch $f; chmod 0 $f", ""),
        ] {
            // Before the network's own file, as that file, and as a plugin beside it.
            for place in ["05-other.conflist", "10-net.conflist", "net/50-more.conf"] {
                let node = Node::new();
                node.conf("10-net.conflist", &list(&[bridge()]))
                    .conf("net/40-last.conf", &json!({"type": "portmap"}));
                let dir = node.sandbox.dir().join("net.d").display().to_string();
                let file = format!("{dir}/{place}");
                let script = format!("f={file}; rm -f $f; {make}");
                node.sandbox.host().sh(&script);
                let done = node.podwire(&["validate", &dir]);
                assert_eq!(done.code, 1, "{script}: {done:?}");
                assert!(done.stdout.contains(place), "{script}: {done:?}");
                assert!(done.stdout.contains(message), "{script}: {done:?}");
                assert_eq!(node.podwire(&["validate", &file]).code, 1);
                for verb in ["add", "status", "gc"] {
                    bad(&node.run(verb), place);
                    bad(&node.run(verb), message);
                }
                let peers = node.podwire(&["peers", "set", "net", &file]);
                assert_eq!(peers.code, 1, "{script}: {peers:?}");
            }
        }
    });
}

#[test]
fn status_tells_people_what_it_does_not_tell_runtimes() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let ipam = json!({"type": "host-local", "ranges": [
            [{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.3"}],
            [{"subnet": "fd01::/64"}]]});
        node.conf(
            "10-net.conflist",
            &list(&[conf::with(&bridge(), json!({ "ipam": ipam }))]),
        );
        let verbose = || good(node.podwire(&["status", "-v", "net"])).stdout;
        let range = "10.1.0.2-10.1.0.3";
        assert!(verbose().contains(&format!("{range}: 0 of 2 addresses in use, 2 free\n")));
        node.add();
        assert!(verbose().contains(&format!("{range}: 1 of 2 addresses in use, 1 free\n")));
        node.sandbox
            .write("/var/lib/cni/networks/net/10.1.0.3", "other\r\neth0");
        let message = verbose();
        let line = format!("{range}: 2 of 2 addresses in use, 0 free: exhausted\n");
        assert!(message.contains(&line), "{message}");
        assert!(message.ends_with("net can take attachments\n"), "{message}");
        let json = good(node.podwire(&["status", "--verbose", "--json", "net"])).stdout;
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["available"], true);
        assert_eq!(
            json["ranges"][0],
            json!({"ranges": range, "total": 2, "used": 2, "free": 0})
        );
        assert_eq!(json["ranges"][1]["used"], 1);
        // What cannot be counted is reported, and the rest is still printed.
        let host = node.sandbox.host();
        host.sh("cd /var/lib/cni; mv networks n; : > networks; ip link del cni0; ip link add cni0 type veth peer name x");
        let done = node.podwire(&["status", "--verbose", "net"]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("ranges: "), "{done:?}");
        let json = node
            .podwire(&["status", "--verbose", "--json", "net"])
            .stdout;
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(
            (&json["available"], &json["error"]["code"]),
            (&json!(false), &json!(50))
        );
        assert!(json["problems"][0].is_string(), "{json}");
        assert_eq!(good(node.podwire(&["status", "-h"])).stderr, "");
    });
}

#[test]
fn version_names_the_plugin_that_answered() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let ours = Suite::Ours.dir().display().to_string();
        let release = |dir: &str, args: &[&str]| {
            let line = [&["version", "--plugin-dir", dir], args].concat();
            good(node.podwire(&line)).stdout
        };
        let text = release(&ours, &[]);
        let line = |name: &str| {
            let mut lines = text.lines().skip(1);
            lines
                .find(|line| line.starts_with(name))
                .expect(name)
                .to_owned()
        };
        let version = text.lines().next().expect("a line").to_owned();
        for plugin in [
            "bridge",
            "dhcp",
            "host-local",
            "loopback",
            "macvlan",
            "portmap",
            "static",
            "vxlan",
        ] {
            assert!(line(plugin).ends_with(&format!("({version})")), "{text}");
        }
        assert!(
            !text
                .lines()
                .skip(1)
                .any(|line| line.starts_with("podwire ")),
            "{text}"
        );
        let peer = Suite::Peer.dir().display().to_string();
        let json: Value = serde_json::from_str(&release(&peer, &["--json"])).expect("JSON");
        let bridge = json["plugins"].as_array().expect("plugins").iter();
        let bridge = bridge
            .clone()
            .find(|it| it["name"] == "bridge")
            .expect("bridge");
        let whose = bridge["release"].as_str().expect("a release");
        assert!(whose.starts_with("Go "), "{whose}");
        // A plugin that does not say so, beside podwire under another name.
        node.sandbox.fake("mine");
        let fakes = node.sandbox.dir().join("fakes").display().to_string();
        node.sandbox.host().sh(&format!(
            "ln -s {ours}/podwire {fakes}/pw; cp {ours}/bridge {fakes}/.bridge.new.7"
        ));
        let text = node.podwire(&["version", "--plugin-dir", &fakes]).stdout;
        assert!(
            text.lines().skip(1).all(|line| line.starts_with("mine ")),
            "{text}"
        );
        assert!(!text.contains('('), "{text}");
    });
}

/// What NetworkManager does to interfaces that it takes for its own.
#[test]
fn the_bridge_s_addresses_are_checked_and_come_back() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let ipam = conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"]);
        let plugin = conf::with(&bridge(), json!({"isDefaultGateway": true, "ipam": ipam}));
        node.conf("10-net.conflist", &list(&[plugin]));
        node.add();
        let (host, pod) = (node.sandbox.host(), &node.pod);
        let reached = || [pod.ping("10.1.0.1", 1), pod.ping("fd01::1", 1)] == [[true], [true]];
        for (taken, message, line) in [
            (
                "ip addr del 10.1.0.1/24 dev cni0",
                "no address 10.1.0.1/24",
                "ip address add 10.1.0.1/24 dev cni0",
            ),
            (
                "ip addr del fd01::1/64 dev cni0",
                "no address fd01::1/64",
                "ip address add fd01::1/64 dev cni0",
            ),
            (
                "ip addr flush dev cni0",
                "no address 10.1.0.1/24",
                "ip address add 10.1.0.1/24 dev cni0",
            ),
            // The kernel takes IPv6 addresses away by itself.
            (
                "ip link set cni0 down",
                "cni0 is down",
                "ip link set cni0 up",
            ),
            (
                "ip addr flush dev cni0; ip link set cni0 down",
                "cni0 is down",
                "ip link set cni0 up",
            ),
        ] {
            host.sh(taken);
            bad(&node.run("check"), message);
            let before = host.sh("ip -br addr show dev cni0");
            let dry = good(node.podwire(&["resync", "--dry-run", "net"])).stdout;
            assert!(dry.contains(line), "{taken}: {dry}");
            assert_eq!(host.sh("ip -br addr show dev cni0"), before, "{taken}");
            let done = good(node.podwire(&["resync"])).stdout;
            assert!(done.contains("put back: "), "{taken}: {done}");
            good(node.run("check"));
            assert!(reached(), "{taken}");
            let again = good(node.podwire(&["resync", "--json"])).stdout;
            let again: Value = serde_json::from_str(&again).expect("JSON");
            assert_eq!(again["done"], json!([]), "{taken}");
        }
        // Another address has its place: that is for people to decide.
        host.sh("ip addr del 10.1.0.1/24 dev cni0; ip addr add 10.9.0.1/24 dev cni0");
        let done = good(node.podwire(&["resync"]));
        assert!(
            done.stderr
                .contains("10.1.0.1/24 of cni0: 10.9.0.1/24 is in its place"),
            "{done:?}"
        );
        bad(&node.run("check"), "no address 10.1.0.1/24");
        // Without a bridge there is nothing to give them to.
        host.sh("ip link del cni0");
        let done = node.podwire(&["resync"]);
        assert!(done.stderr.contains("cni0 is missing"), "{done:?}");
        assert!(host.link("cni0").is_none());
        // A network without a gateway wants the bridge up, and nothing else.
        let node = Node::new();
        let plugin = conf::with(&bridge(), json!({"isGateway": false}));
        node.conf("10-net.conflist", &list(&[plugin]));
        node.add();
        node.sandbox.host().sh("ip link set cni0 down");
        bad(&node.run("check"), "cni0 is down");
        good(node.podwire(&["resync"]));
        good(node.run("check"));
        assert_eq!(node.sandbox.host().sh("ip -4 addr show dev cni0"), "");
    });
}

/// Pods that are gone want nothing.
#[test]
fn a_bridge_without_pods_stays_as_it_is() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.conf("10-net.conflist", &list(&[bridge()]));
        node.add();
        node.sandbox.remove_pod(&node.pod);
        let host = node.sandbox.host();
        host.sh("ip addr flush dev cni0; ip link set cni0 down");
        good(node.podwire(&["resync"]));
        let cni0 = host.sh("ip -o link show dev cni0; ip -4 addr show dev cni0");
        assert!(
            cni0.contains("state DOWN") && !cni0.contains("10.1.0.1"),
            "{cni0}"
        );
    });
}
