//! `podwire run`, `exec`, `ps`, `stop`, and `podwire network connect` and `disconnect`: what a
//! command sees in each network mode, and what is left however it ends.

mod connect;
mod ends;
mod links;
mod modes;

use std::time::{Duration, Instant};

use sandbox::{Finished, Netns, Running, Sandbox, Suite, conf};
use serde_json::{Value, json};

/// Debian has no such command, so nothing here can be proved against a peer.
const WHY: &str = "the Go plugins have no such command";

/// A node with the networks `n` and `m`.
struct Node {
    sandbox: Sandbox,
    dir: String,
}

/// A network with a bridge, both families, masquerade and ports.
fn list(name: &str, subnets: &[&str]) -> Value {
    json!({"cniVersion": "1.0.0", "name": name, "plugins": [
        {"type": "bridge", "bridge": format!("br-{name}"), "isDefaultGateway": true,
         "capabilities": {"ips": true, "mac": true}, "ipam": conf::host_local_ipam(subnets)},
        {"type": "portmap", "capabilities": {"portMappings": true}}]})
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let dir = sandbox.dir().join("net.d").display().to_string();
        let node = Self { sandbox, dir };
        node.network(&list("n", &["10.1.0.0/24", "fd01::/64"]));
        node.network(&list("m", &["10.2.0.0/24", "fd02::/64"]));
        node
    }

    fn network(&self, list: &Value) {
        let name = list["name"].as_str().expect("a name");
        self.sandbox
            .write(format!("{}/{name}.conflist", self.dir), list.to_string());
    }

    fn host(&self) -> Netns {
        self.sandbox.host()
    }

    fn argv(&self, args: &[&str]) -> Vec<String> {
        let bin = Suite::Ours.dir().display().to_string();
        let mut argv = vec![
            "env".to_owned(),
            format!("NETCONFPATH={}", self.dir),
            format!("CNI_PATH={bin}"),
            format!("{bin}/podwire"),
        ];
        argv.extend(args.iter().map(|it| (*it).to_owned()));
        argv
    }

    /// Runs podwire with these arguments.
    fn podwire(&self, args: &[&str]) -> Finished {
        let argv = self.argv(args);
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        self.host().run(&argv)
    }

    /// The same, which must succeed; its output.
    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        let done = self.podwire(args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout
    }

    /// Starts podwire, which goes on running.
    fn start(&self, args: &[&str]) -> Running {
        let argv = self.argv(args);
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        self.host().start(&argv)
    }

    /// What `podwire ps` says about the containers.
    fn ps(&self) -> Vec<Value> {
        serde_json::from_str(&self.must(&["ps", "--json"])).expect("JSON")
    }

    /// Asserts that nothing of any container is left.
    #[track_caller]
    fn assert_clean(&self) {
        let left = self.left();
        assert!(left.is_empty(), "left: {left:?}");
    }

    /// Links, reservations, rules, records and processes of containers.
    fn left(&self) -> Vec<String> {
        let mut left = self.host().links();
        left.retain(|it| {
            !["lo", "podwire0", "uplink", "there"].contains(&it.as_str()) && !it.starts_with("br-")
        });
        for dir in [
            "/run/podwire/run",
            "/var/lib/cni/podwire",
            "/var/lib/cni/results",
        ] {
            left.extend(self.sandbox.list(dir));
        }
        for network in ["n", "m"] {
            let files = self
                .sandbox
                .list(format!("/var/lib/cni/networks/{network}"));
            left.extend(
                files
                    .into_iter()
                    .filter(|it| it.starts_with("10.") || it.starts_with("fd")),
            );
        }
        left
    }

    /// Waits until nothing is left.
    #[track_caller]
    fn await_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.left().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.assert_clean();
    }
}

#[track_caller]
fn fails(done: &Finished, code: i32, text: &str) {
    assert_eq!(done.code, code, "{done:?}");
    assert!(done.stderr.contains(text), "no {text:?} in {done:?}");
}
