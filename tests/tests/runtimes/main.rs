//! Real runtimes, real containers: containerd (`ctr run --cni` and the CRI, as the kubelet drives it) and podman put
//! containers on a bridge with host-local.
//!
//! Debian packages: containerd runc podman conmon busybox-static curl. No image comes from a registry ([`image`]), and each test
//! has a node of its own ([`node`]): daemons, state, sockets and processes are private and go with it.

mod containerd;
mod cri;
mod image;
mod node;
mod podman;

use serde_json::{Value, json};
use testkit::conf;

/// The network all tests use: bridge `cni0` with a gateway, one pool, a default route.
fn network(version: &str) -> Value {
    let bridge = conf::with(
        &conf::bridge(&["10.88.0.0/24"]),
        json!({"ipam": {"routes": [{"dst": "0.0.0.0/0"}]}, "capabilities": {"ips": true, "mac": true}}),
    );
    let plugin = conf::with(&bridge, json!({"cniVersion": null, "name": null}));
    json!({"cniVersion": version, "name": conf::NETWORK, "plugins": [plugin]})
}

/// The gateway of [`network`].
const GATEWAY: &str = "10.88.0.1";
