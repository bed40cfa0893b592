//! Every plugin, each with a configuration and what it needs of a node: for tests of
//! what all of them owe a runtime.

use serde_json::{Value, json};

use crate::conf;
use crate::netns::{Netns, Running};
use crate::sandbox::Sandbox;
use crate::suite::{Suite, testing_the_peer};

/// All of them. The peer has no vxlan.
pub fn plugins() -> Vec<&'static str> {
    let mut all = vec![
        "bridge",
        "macvlan",
        "vxlan",
        "portmap",
        "loopback",
        "host-local",
        "static",
        "dhcp",
    ];
    all.retain(|plugin| *plugin != "vxlan" || !testing_the_peer());
    all
}

/// A configuration of the plugin that an ADD succeeds with on a node that was made
/// ready ([`Sandbox::make_ready`]); dhcp wants a server besides.
pub fn conf_of(plugin: &str) -> Value {
    const DUAL: [&str; 2] = ["10.1.0.0/24", "fd01::/64"];
    match plugin {
        "bridge" => conf::bridge(&DUAL),
        "macvlan" => conf::macvlan(&DUAL),
        "vxlan" => conf::vxlan(&DUAL),
        "portmap" => conf::portmap(8080),
        "loopback" => conf::loopback(),
        "host-local" => conf::host_local(&DUAL[..1]),
        "static" => conf::static_ipam(&json!([{"address": "10.1.0.9/24"}])),
        "dhcp" => conf::with(&conf::plugin("bridge"), json!({"ipam": {"type": "dhcp"}})),
        other => panic!("no configuration of {other}"),
    }
}

/// Runs `test` once per plugin, with a sandbox that was made ready and a pod of its own.
pub fn each_plugin(test: impl Fn(&Sandbox, &Netns, &'static str)) {
    for plugin in plugins() {
        let sandbox = Sandbox::new();
        let _daemon = sandbox.make_ready(plugin);
        let pod = sandbox.pod("a");
        test(&sandbox, &pod, plugin);
    }
}

impl Sandbox {
    /// Gives the node what [`conf_of`] this plugin supposes: a wire for macvlan, one
    /// with an address for vxlan, a pod's bridge for portmap, a daemon for dhcp. The
    /// daemon ends with what is returned.
    pub fn make_ready(&self, plugin: &str) -> Option<Running> {
        match plugin {
            "macvlan" => self.wire(),
            "vxlan" => {
                self.wire();
                self.host().sh("ip addr add 192.0.2.1/24 dev eth1");
            }
            "portmap" => {
                self.host().sh("ip link add cni0 type bridge
                     echo 0 >/proc/sys/net/ipv6/conf/cni0/accept_dad
                     ip addr add 10.1.0.1/24 dev cni0
                     ip link set cni0 up");
            }
            "dhcp" => return Some(self.dhcp_daemon(Suite::Ours, &[])),
            _ => {}
        }
        None
    }

    /// The daemon of a suite's dhcp, with these flags, once it listens.
    pub fn dhcp_daemon(&self, suite: Suite, flags: &[&str]) -> Running {
        let program = suite.dir().join("dhcp").display().to_string();
        let daemon = self
            .host()
            .start(&[&[program.as_str(), "daemon"], flags].concat());
        let socket = format!("pid={},", daemon.id());
        let listens = |host: &Netns| host.sh("ss -Hlxp").contains(&socket);
        self.host().wait_until("the daemon listens", listens);
        daemon
    }
}
