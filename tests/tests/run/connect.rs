//! `podwire network connect` and `disconnect` on containers of `podwire run` and on namespaces.

use sandbox::beyond_peer;
use serde_json::json;

use crate::{Node, WHY, fails};

#[test]
fn a_running_container_gets_a_further_network_and_loses_it() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "--hostname",
            "web",
            "sleep",
            "1000",
        ]);
        node.must(&[
            "network",
            "connect",
            "--ip",
            "10.2.0.9",
            "--alias",
            "db",
            "--mac-address",
            "02:00:00:00:00:09",
            "m",
            "web",
        ]);
        let seen = |script: &str| node.must(&["exec", "web", "sh", "-c", script]);
        let addresses = seen("ip -br addr; ip -br link; cat /etc/hosts");
        assert!(addresses.contains("10.2.0.9/24"), "{addresses}");
        assert!(addresses.contains("02:00:00:00:00:09"), "{addresses}");
        assert!(addresses.contains("10.2.0.9\tweb\n"), "{addresses}");
        assert!(seen("ip route get 192.0.2.1").contains("dev eth0"));
        assert_eq!(node.ps()[0]["Networks"], "n,m");
        let again = node.podwire(&["network", "connect", "m", "web"]);
        fails(
            &again,
            1,
            "endpoint with name web already exists in network m",
        );

        node.must(&["network", "disconnect", "n", "web"]);
        assert!(seen("ip route get 192.0.2.1").contains("via 10.2.0.1 dev eth1"));
        assert!(!seen("cat /etc/hosts").contains("10.1.0.2"));
        let gone = node.podwire(&["network", "disconnect", "n", "web"]);
        fails(&gone, 1, "is not connected to the network n");
        node.must(&["network", "disconnect", "-f", "n", "web"]);
        // eth0 is free again, and a higher number takes the default route.
        node.must(&["network", "connect", "--gw-priority", "1", "n", "web"]);
        assert!(seen("ip route get 192.0.2.1").contains("via 10.1.0.1 dev eth0"));
        node.must(&["stop", "-t", "0", "web"]);
        node.assert_clean();
    });
}

#[test]
fn what_cannot_be_connected_is_refused() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&[
            "run",
            "-d",
            "--name",
            "alone",
            "--network",
            "none",
            "sleep",
            "1000",
        ]);
        node.must(&[
            "run",
            "-d",
            "--name",
            "host",
            "--network",
            "host",
            "sleep",
            "1000",
        ]);
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "sleep",
            "1000",
        ]);
        node.must(&[
            "run",
            "-d",
            "--name",
            "shares",
            "--network",
            "container:web",
            "sleep",
            "1000",
        ]);
        for (args, text) in [
            (&["m", "alone"][..], "networks in private (none) mode"),
            (
                &["m", "host"],
                "cannot be disconnected from host network or connected to host network",
            ),
            (
                &["m", "shares"],
                "container sharing network namespace with another container or host",
            ),
            (&["host", "web"], "connected to host network"),
            (&["nope", "web"], "network nope not found"),
            (&["m", "nope"], "No such container: nope"),
            (&["m", "/run/netns/nope"], "no such file or directory"),
            (
                &["--ip", "10.9.0.1", "m", "web"],
                "no configured subnet contains IP address 10.9.0.1",
            ),
            (&["--ip", "10.2.0.1", "m", "web"], "10.2.0.1"),
            (
                &["--ifname", "eth0", "m", "web"],
                "has an interface eth0 already",
            ),
            (
                &["--ifname", "a/b", "m", "web"],
                "interface name contains / or :",
            ),
            (&["--alias", "a b", "m", "web"], "invalid alias"),
        ] {
            let done = node.podwire(&[&["network", "connect"], args].concat());
            fails(&done, 1, text);
        }
        assert_eq!(
            node.must(&["exec", "web", "ls", "/sys/class/net"]),
            "eth0\nlo\n"
        );
        node.must(&["stop", "-t", "0", "shares", "web", "host", "alone"]);
        node.assert_clean();
    });
}

#[test]
fn a_namespace_is_connected_by_its_path_and_swept_when_it_is_gone() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let pod = node.sandbox.pod("blue");
        node.must(&["network", "connect", "n", &pod.path()]);
        node.must(&["network", "connect", "--ifname", "net7", "m", &pod.path()]);
        assert_eq!(pod.addresses("eth0"), ["10.1.0.2/24", "fd01::2/64"]);
        assert_eq!(pod.addresses("net7"), ["10.2.0.2/24", "fd02::2/64"]);
        node.must(&["network", "disconnect", "m", &pod.path()]);
        assert_eq!(pod.links(), ["eth0", "lo"]);
        node.must(&["ps"]);
        assert_eq!(pod.links(), ["eth0", "lo"], "it lives");
        node.sandbox.remove_pod(&pod);
        node.must(&["ps"]);
        node.await_clean();
        // Another namespace at the same path is another container.
        let pod = node.sandbox.pod("blue");
        node.must(&["network", "connect", "n", &pod.path()]);
        node.sandbox.remove_pod(&pod);
        let pod = node.sandbox.pod("blue");
        node.must(&["ps"]);
        assert_eq!(pod.links(), ["lo"]);
        node.await_clean();
    });
}

/// Debian 12 has no CRI-O. What it keeps is laid out as its documentation and sources have it: libcni's
/// cache, and the configurations of containers in containers/storage.
#[test]
fn a_pod_of_crio_is_found_by_name_and_by_the_id_of_its_container() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let (sandbox, host) = (&node.sandbox, node.host());
        let blue = sandbox.pod("blue");
        let (pod, container) = ("5a".repeat(32), "c7".repeat(32));
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={pod}"
        );
        let add = node.argv(&["add", "--container-id", &pod, "n", &blue.path()]);
        host.sh(&format!("CNI_ARGS='{args}' {}", add.join(" ")));
        let config = json!({"annotations": {
            "io.container.manager": "cri-o",
            "io.kubernetes.cri-o.SandboxID": pod,
        }});
        let dir = "/run/containers/storage/overlay-containers";
        let file = format!("{dir}/{container}/userdata/config.json");
        sandbox.write(file, config.to_string());
        for word in [
            "web",
            "shop/web",
            &pod,
            &pod[..8],
            &container,
            &container[..8],
        ] {
            node.must(&["network", "connect", "m", word]);
            assert_eq!(blue.links(), ["eth0", "eth1", "lo"], "{word}");
            node.must(&["network", "disconnect", "m", word]);
        }
        let del = node.argv(&["del", "--container-id", &pod, "n", &blue.path()]);
        host.sh(&del.join(" "));
        node.assert_clean();
    });
}

#[test]
fn a_killed_connect_is_swept_though_the_container_lives() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let pod = node.sandbox.pod("blue");
        let argv = node
            .argv(&["network", "connect", "n", &pod.path()])
            .join(" ");
        for delay in 0..20 {
            node.host().sh(&format!(
                "setsid {argv} & pid=$!; sleep 0.{:03}; kill -9 $pid 2>/dev/null || :; wait $pid 2>/dev/null || :",
                delay * 2
            ));
            // A plugin may go on for a moment: it leads a group of its own.
            std::thread::sleep(std::time::Duration::from_millis(300));
            let connected = !node.sandbox.list("/var/lib/cni/results").is_empty();
            node.must(&["ps"]);
            assert_eq!(pod.links().len(), if connected { 2 } else { 1 });
            node.must(&["network", "disconnect", "-f", "n", &pod.path()]);
            node.await_clean();
        }
    });
}
