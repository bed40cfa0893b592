//! A real containerd on a node, with the image of the tests.

use crate::RuntimeNode;
use crate::image::{self, IMAGE};

/// Everything that containerd owns lies in the node's directory. What it would ask of the machine is switched off: AppArmor
/// profiles, and OOM scores, which take CAP_SYS_RESOURCE. The snapshotter `native` copies layers and so needs no overlay mounts.
const CONFIG: &str = r#"
version = 2
root = "DIR/containerd"
state = "DIR/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "DIR/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "DIR/runc"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "PLUGINS"
    conf_dir = "DIR/net.d"
    max_conf_num = NETWORKS
"#;

/// Starts containerd, which finds plugins in `bin_dir` and up to `networks` networks in the node's directory `net.d`.
pub fn start(node: &mut RuntimeNode, bin_dir: &str, networks: usize) {
    let config = CONFIG
        .replace("DIR", &node.dir().display().to_string())
        .replace("PLUGINS", bin_dir)
        .replace("NETWORKS", &networks.to_string())
        .replace("IMAGE", IMAGE);
    let config = node.write("containerd.toml", config);
    let socket = socket(node);
    node.start(
        &["containerd", "--config", &config],
        &["ctr", "--address", &socket, "version"],
    );
    let archive = image::archive(node);
    // The CRI keeps its images apart from those of ctr.
    for namespace in ["k8s.io", "default"] {
        import(node, namespace, &archive);
    }
}

/// Loads the images of an archive into a namespace of containerd.
pub fn import(node: &RuntimeNode, namespace: &str, archive: &str) {
    let socket = socket(node);
    let client = ["ctr", "--address", &socket, "--namespace", namespace];
    let import = ["images", "import", "--snapshotter", "native", archive];
    node.must(&[&client[..], &import].concat());
}

/// Where containerd listens.
pub fn socket(node: &RuntimeNode) -> String {
    node.path("containerd.sock")
}
