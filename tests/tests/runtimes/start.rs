//! `docs/start.md`: its commands, as they stand. A node of a test has no registry, and a runtime of its own: shell functions in front of
//! `ctr` and `podman` add what the page cannot know.

use sandbox::containerd::{self, socket};
use sandbox::image::{self, IMAGE};
use sandbox::{RuntimeNode, beyond_peer};

const WHY: &str = "the page's command is podwire";

/// The first block of a section of the page.
fn block(section: &str) -> String {
    let project = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let page = std::fs::read_to_string(format!("{project}/docs/start.md")).expect("the page");
    let body = page
        .split(&format!("\n## {section}\n"))
        .nth(1)
        .expect("the section");
    let body = body.split("\n## ").next().expect("its text");
    let block = body.split("```").nth(1).expect("its commands");
    block
        .replace(
            "/usr/share/doc/podwire/examples/",
            &format!("{project}/netconf-examples/"),
        )
        .replace("docker.io/library/busybox:1.36", IMAGE)
}

/// A node with the plugins and an empty directory of networks where the page has them.
fn node() -> RuntimeNode {
    let node = RuntimeNode::new();
    node.must(&["mkdir", &node.path("net.d")]);
    node.bind(&node.path("net.d"), "/etc/cni/net.d");
    node.bind(&node.plugins(), "/usr/lib/cni");
    node
}

#[track_caller]
fn follow(node: &RuntimeNode, functions: &str, section: &str) -> String {
    let path = format!("export PATH=/usr/lib/cni:$PATH\n{functions}");
    node.must(&["bash", "-euc", &format!("{path}\n{}", block(section))])
}

#[test]
fn containerd_runs_a_container_as_the_page_says() {
    beyond_peer(WHY, || {
        let mut node = node();
        let plugins = node.plugins();
        containerd::start(&mut node, &plugins, 1);
        let (socket, cgroup, runc) = (socket(&node), node.cgroup(), node.path("runc"));
        let functions = format!(
            r#"ctr() {{
                case "$1" in
                    image) command ctr --address {socket} image ls -q | grep -qx "$3" ;;
                    run) command ctr --address {socket} run --snapshotter native --cgroup {cgroup}/ctr --runc-root {runc} "${{@:2}}" ;;
                esac
            }}"#
        );
        // The first pod leaves what all pods of the network share.
        let output = follow(&node, &functions, "containerd");
        let before = node.before_on("ex-node", "example-node");
        follow(&node, &functions, "containerd");
        assert!(output.contains("inet 10.210.70.2/24"), "{output}");
        node.assert_left_nothing(&before);
    });
}

#[test]
fn podman_publishes_a_port_as_the_page_says() {
    beyond_peer(WHY, || {
        let node = node();
        let dir = node.dir().display().to_string();
        // What a node of a test may not do, as in the other tests of podman.
        let settings = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
            [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n";
        let settings = format!("{settings}tmp_dir = \"{dir}/libpod\"\n");
        node.write("containers/containers.conf.d/test.conf", settings);
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/storage\"\nrunroot = \"{dir}/run\"\n"
        );
        node.write("containers/storage.conf", storage);
        node.must(&[
            "cp",
            "/etc/containers/policy.json",
            &node.path("containers"),
        ]);
        node.bind(&node.path("containers"), "/etc/containers");
        let archive = image::archive(&node);
        let cgroup = node.cgroup();
        let functions = format!(
            r#"export HOME={dir} TMPDIR={dir}
            podman() {{
                case "$1" in
                    pull) command podman load --quiet --input {archive} ;;
                    run) command podman run --cgroup-parent {cgroup} "${{@:2}}" ;;
                    *) command podman "$@" ;;
                esac
            }}"#
        );
        let output = follow(&node, &functions, "podman");
        // The file has no end of line; the last command prints "web".
        let line = output.lines().last().expect("a line of curl");
        let name = line.trim_end_matches("web");
        assert!(
            name.len() == 12 && name.bytes().all(|it| it.is_ascii_hexdigit()),
            "{output}"
        );
        let reserved = node.sandbox().list("/var/lib/cni/networks/example-podman");
        assert!(
            !reserved.iter().any(|it| it.starts_with("10.")),
            "{reserved:?}"
        );
    });
}

#[test]
fn podwire_needs_no_runtime_as_the_page_says() {
    beyond_peer(WHY, || {
        let node = node();
        let output = follow(&node, "", "Without a runtime");
        assert!(output.contains("10.210.70.2/24"), "{output}");
        assert!(output.contains(" 0% packet loss"), "{output}");
        let reserved = node.sandbox().list("/var/lib/cni/networks/example-node");
        assert!(
            !reserved.iter().any(|it| it.starts_with("10.")),
            "{reserved:?}"
        );
    });
}
