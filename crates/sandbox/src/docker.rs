//! Docker, as the peer of networks by name: a daemon on a node of its own.

use serde_json::json;

use crate::{Finished, RuntimeNode, image};

/// A Docker daemon with its containers, its containerd and the image [`image::IMAGE`].
///
/// Debian package: docker.io.
pub struct Docker {
    node: RuntimeNode,
    socket: String,
}

/// Debian's client, also on a machine that has another one.
const CLIENT: &str = "/usr/bin/docker";

impl Docker {
    /// Starts a daemon with its usual settings: the bridge `docker0`, rules of iptables, a proxy
    /// for ports. `options` are further ones of `dockerd`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(options: &[&str]) -> Self {
        let node = RuntimeNode::new();
        let socket = format!("unix://{}", node.path("docker.sock"));
        let mut docker = Self { node, socket };
        docker.start_daemon(options);
        let archive = image::archive(&docker.node);
        docker.must(&["load", "-i", &archive]);
        docker
    }

    fn start_daemon(&mut self, options: &[&str]) {
        let (node, socket) = (&mut self.node, &self.socket);
        let (data, state) = (node.path("docker"), node.path("docker-exec"));
        let pid = node.path("docker.pid");
        // The usual place of the key is below /etc, which is read-only on the node.
        let key = json!({"deprecated-key-path": node.path("docker-key.json")});
        let settings = node.write("daemon.json", key.to_string());
        let cgroup = node.cgroup();
        let fixed = [
            "dockerd",
            "--host",
            socket,
            "--data-root",
            &data,
            "--exec-root",
            &state,
            "--pidfile",
            &pid,
            "--config-file",
            &settings,
            "--cgroup-parent",
            &cgroup,
            // Copies layers, and so needs no overlay mounts.
            "--storage-driver",
            "vfs",
        ];
        let ready = [CLIENT, "--host", socket, "version"];
        node.start(&[&fixed, options].concat(), &ready);
    }

    /// The node: its sandbox's host namespace is Docker's.
    pub fn node(&self) -> &RuntimeNode {
        &self.node
    }

    /// Runs `docker` with these arguments, whatever its exit status.
    pub fn run(&self, args: &[&str]) -> Finished {
        self.node.run(&self.argv(args))
    }

    /// The same, which must succeed; its output without the last line break.
    #[track_caller]
    pub fn must(&self, args: &[&str]) -> String {
        self.node.must(&self.argv(args)).trim_end().to_owned()
    }

    fn argv<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&[CLIENT, "--host", self.socket.as_str()], args].concat()
    }
}
