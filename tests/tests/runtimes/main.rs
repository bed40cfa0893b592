//! Real runtimes, real containers: containerd (`ctr run --cni` and the CRI, as the kubelet drives it) and podman put
//! containers on a bridge with host-local.
//!
//! Debian packages: containerd runc podman conmon busybox-static curl. No image comes from a registry ([`sandbox::image`]), and each
//! test has a node of its own ([`RuntimeNode`]): daemons, state, sockets and processes are private and go with it.

mod connect;
mod containerd;
mod cri;
mod podman;
mod start;

use sandbox::{NODE, Netns, RuntimeNode, conf};
use serde_json::{Value, json};

/// The network all tests use: bridge `cni0` with a gateway, one pool, a default route.
fn network(version: &str) -> Value {
    let bridge = conf::with(
        &conf::bridge(&["10.88.0.0/24"]),
        json!({"ipam": {"routes": [{"dst": "0.0.0.0/0"}]}, "capabilities": {"ips": true, "mac": true}}),
    );
    let plugin = conf::with(&bridge, json!({"cniVersion": null, "name": null}));
    json!({"cniVersion": version, "name": conf::NETWORK, "plugins": [plugin]})
}

/// [`network`] with masquerade and ports, as Kubernetes and podman have it.
fn network_with_ports(version: &str) -> Value {
    let mut list = network(version);
    list["plugins"][0]["ipMasq"] = true.into();
    // Where bridged packets pass the hooks of IP, a pod reaches itself by hairpin only.
    list["plugins"][0]["hairpinMode"] = true.into();
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    list["plugins"]
        .as_array_mut()
        .expect("plugins")
        .push(portmap);
    list
}

/// A list of netconf-examples/, under the name that the tests look for.
fn example(file: &str) -> Value {
    let path = format!("{}/../netconf-examples/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let list: Value = serde_json::from_str(&text).expect("JSON");
    conf::with(&list, json!({"name": conf::NETWORK}))
}

/// Serves a page in a container.
const SERVE: &str =
    "mkdir -p /tmp/www && echo the page >/tmp/www/index.html && httpd -p 80 -h /tmp/www";

/// What a web server at an address answers to a namespace.
fn fetch(from: &Netns, to: &str, port: u16) -> String {
    let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {to} {port}");
    from.run(&["sh", "-c", &request]).stdout
}

/// Asserts that port 8080 of the node leads to the page, from outside and from the node.
#[track_caller]
fn assert_published(node: &RuntimeNode, outside: &Netns) {
    for (from, to) in [
        (outside, NODE[0]),
        (&node.sandbox().host(), NODE[0]),
        (&node.sandbox().host(), "127.0.0.1"),
    ] {
        let page = fetch(from, to, 8080);
        assert!(
            page.contains("the page"),
            "{to} from {}: {page:?}",
            from.name()
        );
    }
}

/// The gateway of [`network`].
const GATEWAY: &str = "10.88.0.1";
