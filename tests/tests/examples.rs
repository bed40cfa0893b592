//! What people copy: the configurations of netconf-examples/ and the commands of README.md, run as they stand.
//!
//! The examples with VLANs and with dummy interfaces need a kernel that has them: `bridge_vlan.rs`, `vlan.rs` and `dummy.rs` run them in the virtual machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sandbox::{Finished, NO_ANSWER, NODE, Netns, Sandbox, Suite, beyond_peer};

const WHY: &str = "podwire runs them, and it is not among the Go plugins";

/// A file of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A shell on the node, with the suite's binaries in its path and the examples as its networks.
fn shell(node: &Netns, variables: &str, script: &str) -> Finished {
    let bin = Suite::Ours.dir().display();
    let examples = project("netconf-examples");
    let script = format!(
        "export PATH={bin}:$PATH CNI_PATH={bin} NETCONFPATH={} {variables}\ncd {}\n{script}",
        examples.display(),
        project(".").display(),
    );
    node.run(&["sh", "-euc", &script])
}

#[track_caller]
fn good(done: Finished) -> String {
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

/// Adds a pod to the example's network, looks at it, has it checked, and deletes it without a trace.
fn lives(name: &str, bridge: &str, variables: &str, look: impl FnOnce(&Sandbox, &Netns)) {
    lives_in(&Sandbox::new(), (name, bridge, variables), look);
}

fn lives_in(
    sandbox: &Sandbox,
    (name, bridge, variables): (&str, &str, &str),
    look: impl FnOnce(&Sandbox, &Netns),
) {
    let snapshot = sandbox
        .snapshot()
        .allow_host_local(name)
        .allow_link(bridge)
        // As libcni leaves it.
        .allow("dir /var/lib/cni/results")
        .allow("dir /run/cni")
        .allow_forwarding();
    let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
    let run = |verb: &str| {
        let command = format!("podwire {verb} {name} {}", pod.path());
        good(shell(&host, variables, &command))
    };
    run("status");
    run("add");
    look(sandbox, &pod);
    run("check");
    run("del");
    sandbox.remove_pod(&pod);
    snapshot.assert_unchanged();
}

#[test]
fn a_bridge_gives_an_address_and_a_way_out() {
    beyond_peer(WHY, || {
        lives("example-bridge", "ex-bridge", "", |_, pod| {
            assert_eq!(pod.addresses("eth0"), ["10.210.10.2/24"]);
            assert_eq!(pod.ping("10.210.10.1", 1), [true]);
            assert_eq!(pod.routes_to("-4", "default")[0]["gateway"], "10.210.10.1");
        });
    });
}

#[test]
fn dual_stack_gives_an_address_of_each_family() {
    beyond_peer(WHY, || {
        lives("example-dual-stack", "ex-dual", "", |_, pod| {
            assert_eq!(
                pod.addresses("eth0"),
                ["10.210.20.100/24", "fd00:210:20::2/64"]
            );
            assert_eq!(pod.ping("10.210.20.254", 1), [true]);
            assert_eq!(pod.ping("fd00:210:20::1", 1), [true]);
        });
    });
}

#[test]
fn ptp_gives_a_link_to_the_node_and_a_way_out() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        let run = |verb: &str| {
            let command = format!("podwire {verb} example-ptp {}", pod.path());
            good(shell(&host, "", &command))
        };
        for verb in ["status", "add", "check"] {
            run(verb);
        }
        let addresses = ["10.210.35.2/24", "fd00:210:35::2/64"];
        assert_eq!(pod.addresses("eth0"), addresses);
        assert_eq!(pod.ping("10.210.35.1", 1), [true]);
        assert_eq!(pod.ping("fd00:210:35::1", 1), [true]);
        run("del");
        assert_eq!(pod.links(), ["lo"]);
        let rules = host.rules();
        assert!(!rules.contains("10.210.35"), "{rules}");
    });
}

#[test]
fn bandwidth_limits_what_the_runtime_asks_for() {
    beyond_peer(WHY, || {
        let requested =
            r#"CAP_ARGS='{"bandwidth": {"ingressRate": 10000000, "ingressBurst": 2147483647}}'"#;
        lives(
            "example-bandwidth",
            "ex-bandwidth",
            requested,
            |sandbox, _| {
                let host = sandbox.host();
                let veth = host.links().into_iter().find(|it| it.starts_with("veth"));
                let veth = veth.expect("a veth");
                let classes = host.sh(&format!("tc class show dev {veth}"));
                assert!(classes.contains("rate 10Mbit"), "{classes}");
            },
        );
    });
}

#[test]
fn dnsname_records_the_names_of_the_pod() {
    beyond_peer(WHY, || {
        let requested = r#"CAP_ARGS='{"aliases": {"example-names": ["web"]}}'"#;
        lives("example-names", "ex-names", requested, |sandbox, _| {
            let listed = good(shell(&sandbox.host(), "", "podwire names example-names"));
            assert!(listed.contains("10.210.74.2  web,"), "{listed}");
        });
    });
}

#[test]
fn layer_2_gives_a_port_and_no_address() {
    beyond_peer(WHY, || {
        lives("example-layer2", "ex-layer2", "", |_, pod| {
            assert!(pod.addresses("eth0").is_empty());
            assert_eq!(pod.link("eth0").unwrap()["operstate"], "UP");
        });
    });
}

#[test]
fn macvlan_gives_an_unused_address_of_the_segment() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let segment = sandbox.segment();
        let machine = &segment.machine;
        machine.sh("ip addr add 10.210.45.1/24 dev eth1; ip addr add 10.210.45.100/24 dev eth1");
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        let run = |verb: &str| {
            let command = format!("podwire {verb} example-macvlan {}", pod.path());
            good(shell(&host, "", &command))
        };
        for verb in ["status", "add", "check"] {
            run(verb);
        }
        assert_eq!(pod.addresses("eth0"), ["10.210.45.101/24"]);
        assert_eq!(pod.ping("10.210.45.1", 1), [true]);
        assert_eq!(pod.routes_to("-4", "default")[0]["gateway"], "10.210.45.1");
        run("del");
        assert_eq!(pod.links(), ["lo"]);
    });
}

#[test]
fn host_device_gives_a_card_for_a_while() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        host.sh("ip link add ens1f0 type veth peer name far; ip link set far up");
        for verb in ["status", "add", "check", "del"] {
            let command = format!("podwire {verb} example-host-device {}", pod.path());
            good(shell(&host, "", &command));
            match verb {
                "add" => assert_eq!(pod.addresses("eth0"), ["10.210.46.7/24"]),
                "del" => assert_eq!(pod.links(), ["lo"]),
                _ => {}
            }
        }
        assert!(host.link("ens1f0").is_some());
    });
}

#[test]
fn tap_gives_a_device_for_a_program() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        for verb in ["status", "add", "check", "del"] {
            let command = format!("podwire {verb} example-tap {}", pod.path());
            good(shell(&host, "", &command));
            if verb == "add" {
                let link = pod.link("eth0").expect("eth0");
                assert!(!link["linkinfo"]["info_data"]["user"].is_null(), "{link}");
                assert_eq!(link["mtu"], 1450);
            }
        }
        assert_eq!(pod.links(), ["lo"]);
    });
}

#[test]
fn static_gives_the_address_that_is_written() {
    beyond_peer(WHY, || {
        lives("example-static", "ex-static", "", |_, pod| {
            let addresses = pod.addresses("eth0");
            assert!(addresses[0].starts_with("10.210.50."), "{addresses:?}");
        });
    });
}

#[test]
fn cluster_asks_the_agent() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let _agent = sandbox.make_ready("cluster");
        let network = ("example-cluster", "ex-cluster", "");
        lives_in(&sandbox, network, |_, pod| {
            let addresses = pod.addresses("eth0");
            assert!(addresses[0].starts_with("10.210.52."), "{addresses:?}");
            assert!(addresses[1].starts_with("fd00:210:52::"), "{addresses:?}");
        });
    });
}

#[test]
fn requested_gives_the_requested_address() {
    beyond_peer(WHY, || {
        let requested = r#"CAP_ARGS='{"ips": ["10.210.60.77"]}'"#;
        lives("example-requested", "ex-requested", requested, |_, pod| {
            assert_eq!(pod.addresses("eth0"), ["10.210.60.77/24"]);
        });
    });
}

/// A port of the node that leads to port 80 of the pod.
const PORT: &str =
    r#"CAP_ARGS='{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'"#;

/// The pod answers at its port through the node's port.
fn answers_through_the_node(sandbox: &Sandbox, pod: &Netns) {
    let server = pod.start(&["sh", "-c", "echo hello | nc -n -l -p 80 -q 1"]);
    pod.wait_until("it listens", |pod| {
        !pod.sh("ss -Hltn 'sport = :80'").trim().is_empty()
    });
    let host = sandbox.host();
    assert_eq!(
        host.sh("nc -n -w 2 127.0.0.1 8080 </dev/null").trim(),
        "hello"
    );
    drop(server);
}

#[test]
fn a_usual_node_masquerades_and_publishes() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        let run = |verb: &str| {
            let command = format!("podwire {verb} example-node {}", pod.path());
            good(shell(&host, PORT, &command))
        };
        run("add");
        answers_through_the_node(&sandbox, &pod);
        run("check");
        let rules = host.sh("nft list ruleset");
        assert!(rules.contains("ip saddr 10.210.70.0/24"), "{rules}");
        run("del");
        let left = host.sh("nft list map ip podwire_hostports ports");
        assert!(!left.contains("elements"), "{left}");
    });
}

#[test]
fn sbr_routes_a_second_interface_by_its_address() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        // As Multus does: the first interface is there.
        pod.sh(
            "ip link add eth0 type veth peer name x; ip link set x up; ip link set eth0 up
             ip address add 10.9.0.2/24 dev eth0; ip route add default via 10.9.0.1",
        );
        let before = pod.sh("ip rule; ip route show table all");
        let run = |verb: &str| {
            let command = format!("podwire {verb} --ifname net1 example-sbr {}", pod.path());
            good(shell(&host, "", &command))
        };
        good(shell(&host, "", "podwire status example-sbr"));
        run("add");
        let way = |to: &str| pod.sh(&format!("ip route get {to}"));
        assert!(way("198.51.100.1").contains("via 10.9.0.1 dev eth0"));
        assert!(way("198.51.100.1 from 10.210.47.100").contains("via 10.210.47.1 dev net1"));
        assert!(way("10.210.47.7").contains("dev net1 src 10.210.47.100"));
        assert_eq!(pod.sysctl("net/ipv4/conf/net1/arp_announce"), "2");
        run("check");
        run("del");
        assert_eq!(pod.sh("ip rule; ip route show table all"), before);
    });
}

#[test]
fn an_isolated_network_is_reached_by_its_published_ports_only() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let outside = sandbox.outside();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        let run = |verb: &str| {
            let command = format!("podwire {verb} example-isolated {}", pod.path());
            good(shell(&host, PORT, &command))
        };
        run("add");
        run("check");
        let _server = pod.serve(80);
        let ask = |to: &str, port| outside.ask("tcp", to, port);
        assert!(ask(NODE[0], 8080).starts_with("blue sees"));
        assert!(ask("fd00:210:15::2", 80).starts_with("blue sees"));
        assert_eq!(ask("10.210.15.2", 80), NO_ANSWER);
        run("del");
        let rules = host.rules();
        assert!(!rules.contains("ex-isolated"), "{rules}");
    });
}

#[test]
fn tuning_changes_settings_of_the_pod() {
    beyond_peer(WHY, || {
        let requested = r#"CAP_ARGS='{"mac": "02:00:00:00:75:01"}'"#;
        lives("example-tuning", "ex-tuning", requested, |sandbox, pod| {
            assert_eq!(pod.sysctl("net/core/somaxconn"), "1024");
            assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_filter"), "1");
            let link = pod.link("eth0").unwrap();
            assert_eq!((&link["mtu"], &link["txqlen"]), (&1450.into(), &500.into()));
            assert_eq!(link["address"], "02:00:00:00:75:01");
            assert_eq!(sandbox.host().ping("10.210.76.2", 1), [true]);
        });
    });
}

#[test]
fn networks_of_podman_and_nerdctl_need_no_other_plugins() {
    beyond_peer(WHY, || {
        for (name, subnet) in [
            ("example-podman", "10.210.87."),
            ("example-nerdctl", "10.210.88."),
        ] {
            let sandbox = Sandbox::new();
            let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
            let run = |verb: &str| {
                let command = format!("podwire {verb} {name} {}", pod.path());
                good(shell(&host, PORT, &command))
            };
            run("add");
            answers_through_the_node(&sandbox, &pod);
            run("check");
            let rules = || host.sh("iptables-save -t filter");
            assert!(
                rules().contains(&format!("-s {subnet}2/32 -j ACCEPT")),
                "{}",
                rules()
            );
            assert_eq!(rules().contains("ISOLATION"), name == "example-nerdctl");
            run("del");
            let left = rules();
            assert!(
                !left.contains(subnet) && !left.contains("ISOLATION"),
                "{left}"
            );
        }
    });
}

#[test]
fn a_node_with_iptables_has_its_chains() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let (host, pod) = (sandbox.host(), sandbox.pod("blue"));
        let run = |verb: &str| {
            let command = format!("podwire {verb} example-node-iptables {}", pod.path());
            good(shell(&host, PORT, &command))
        };
        run("add");
        answers_through_the_node(&sandbox, &pod);
        run("check");
        let rules = host.sh("iptables-save -t nat");
        assert!(
            rules.contains("-A POSTROUTING -s 10.210.80.2/32"),
            "{rules}"
        );
        assert!(rules.contains("-j CNI-DN-"), "{rules}");
        run("del");
        let left = host.sh("iptables-save -t nat");
        assert!(
            !left.contains("10.210.80.") && !left.contains("CNI-DN-"),
            "{left}"
        );
    });
}

#[test]
fn loopback_brings_lo_up() {
    beyond_peer(WHY, || {
        lives("example-loopback", "none", "", |_, pod| {
            assert_eq!(pod.ping("127.0.0.1", 1), [true]);
        });
    });
}

/// The indented or fenced block of a page that starts with `first`.
fn block(page: &str, first: &str) -> String {
    let text = std::fs::read_to_string(project(page)).expect("a page of the project");
    let start = text
        .find(&format!("```\n{first}"))
        .unwrap_or_else(|| panic!("{page} has no block that starts with {first:?}"));
    let body = &text[start + 4..];
    body[..body.find("```").expect("a block has an end")].to_owned()
}

#[test]
fn the_commands_of_the_readme_do_what_they_say() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let commands = block("README.md", "cp netconf-examples/");
        // /etc cannot be written in a sandbox.
        let dir = sandbox.dir().join("net.d").display().to_string();
        let commands = commands.replace("/etc/cni/net.d", &dir);
        let script = format!(
            "mkdir {dir}; export NETCONFPATH={dir}; ip link set lo up
             {commands}
             ip netns del alice"
        );
        let output = good(shell(&sandbox.host(), "", &script));
        assert!(output.contains("10.210.70.2/24"), "{output}");
    });
}

#[test]
fn an_example_is_tried_as_its_page_says() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let commands = block("netconf-examples/README.md", "unshare -nm");
        let output = good(shell(&sandbox.host(), "", &commands));
        assert!(output.contains("inet 10.210.10.2/24"), "{output}");
    });
}

/// The list of docs/files.md is a network, and its pools are what subnets come from.
#[test]
fn the_files_of_the_page_are_understood() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let snapshot = sandbox.snapshot();
        let page = std::fs::read_to_string(project("docs/files.md")).expect("the page");
        let mut examples = page.split("```json\n").skip(1);
        let mut next = || examples.next().and_then(|it| it.split("```").next());
        let dir = sandbox.dir().display().to_string();
        sandbox.write(format!("{dir}/pods.conflist"), next().expect("a list"));
        sandbox.write(format!("{dir}/pools.json"), next().expect("pools"));
        let made = "podwire network create --conf-dir $D/net.d --pools $D/pools.json x";
        let script = format!(
            "D={dir}; podwire validate $D/pods.conflist; mkdir $D/net.d; {made}
             podwire network inspect --conf-dir $D/net.d --format '{{{{(index .IPAM.Config 0).Subnet}}}}' x
             podwire network rm --conf-dir $D/net.d x"
        );
        let printed = good(shell(&sandbox.host(), "", &script));
        assert!(printed.contains("10.208.0.0/24"), "{printed}");
        snapshot.assert_unchanged();
    });
}

/// The map is of this tree: every path that it names is there.
#[test]
fn the_map_leads_somewhere() {
    let map = std::fs::read_to_string(project("ARCHITECTURE.md")).expect("the map");
    let table = map.split("\n\n").find(|it| it.starts_with("| I want "));
    let rows = table.expect("the table").lines();
    let mut found = 0;
    for row in rows.skip(2) {
        let mut dir = PathBuf::new();
        let places = row.split('|').nth(2).expect("a second column");
        for name in places.split('`').skip(1).step_by(2) {
            // A bare file name lies beside the one before it.
            let path = if name.contains('/') {
                PathBuf::from(name)
            } else {
                dir.join(name)
            };
            assert!(
                project(&path.display().to_string()).exists(),
                "{row}: {name}"
            );
            dir = if name.ends_with('/') {
                path
            } else {
                path.parent().map(Path::to_owned).unwrap_or_default()
            };
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn the_map_lists_the_dependencies_of_every_package() {
    let map = std::fs::read_to_string(project("ARCHITECTURE.md")).expect("the map");
    let table = map.split("| | calls |").nth(1).expect("the table of calls");
    let mut listed = BTreeMap::new();
    for row in table.lines().skip(2).take_while(|row| row.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').collect();
        let words = |cell: &str| -> Vec<String> {
            let words = cell.split('`').skip(1).step_by(2);
            words.map(str::to_owned).collect()
        };
        for caller in words(cells[1]) {
            listed.insert(caller, words(cells[2]));
        }
    }
    let mut packages = vec!["podwire".to_owned(), "podwired".to_owned()];
    for parent in ["crates", "plugins", "ipam"] {
        for entry in std::fs::read_dir(project(parent)).expect("a folder of packages") {
            let name = entry.expect("an entry").file_name();
            packages.push(format!("{parent}/{}", name.to_string_lossy()));
        }
    }
    let own: Vec<&str> = packages
        .iter()
        .filter_map(|it| it.split('/').nth(1))
        .collect();
    let mut actual = BTreeMap::new();
    for package in &packages {
        let manifest = std::fs::read_to_string(project(&format!("{package}/Cargo.toml")));
        let manifest = manifest.unwrap_or_else(|error| panic!("{package}: {error}"));
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        let names = dependencies
            .lines()
            .filter_map(|line| line.split(['.', ' ']).next());
        let mut called: Vec<String> = names
            .filter(|name| own.contains(name))
            .map(str::to_owned)
            .collect();
        called.sort_unstable();
        if !called.is_empty() {
            actual.insert(package.clone(), called);
        }
    }
    assert_eq!(listed, actual);
}

#[test]
fn the_demo_passes_for_root_and_for_an_ordinary_user() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let before = sandbox.snapshot();
        sandbox.copy_readable(Suite::Ours.dir(), "project/bin");
        sandbox.copy_readable(&project("tests/demo"), "project/tests");
        let dir = sandbox.dir().display();
        sandbox.host().sh(&format!("mkdir -m 1777 {dir}/tmp"));
        let tmp = format!("TMPDIR={dir}/tmp");
        let demo = format!("{dir}/project/tests/demo");
        let as_nobody = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ];
        for user in [&[][..], &as_nobody] {
            let output = good(sandbox.host().run(&[user, &["env", &tmp, &demo]].concat()));
            assert!(output.contains("nothing is left"), "{output}");
        }
        // mount(8) keeps its own state there.
        before.allow("dir /run/mount").assert_unchanged();
    });
}
