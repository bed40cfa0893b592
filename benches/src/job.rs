//! What is measured: a job that a runtime gives to plugins, and its verbs.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The CNI version spoken: the newest that both suites know.
pub const CNI_VERSION: &str = "1.0.0";
/// The bridge of all jobs.
pub const BRIDGE: &str = "cni0";
/// The parent of macvlan and of the overlay.
pub const PARENT: &str = "uplink";
/// The ports that a job with ports publishes.
pub const PORTS: [u16; 2] = [8080, 8443];

/// A request of a runtime to a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verb {
    /// VERSION: hardly more than the start and the end of the process.
    Version,
    /// ADD.
    Add,
    /// CHECK.
    Check,
    /// DEL.
    Del,
}

impl Verb {
    /// As in `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Version => "VERSION",
            Verb::Add => "ADD",
            Verb::Check => "CHECK",
            Verb::Del => "DEL",
        }
    }

    /// As the floor's program takes it.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Version => "nothing",
            Verb::Add => "add",
            Verb::Check => "check",
            Verb::Del => "del",
        }
    }
}

/// The plugins of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The named plugin answers VERSION.
    Start(&'static str),
    /// `lo` of a pod.
    Loopback,
    /// bridge with host-local.
    Bridge {
        /// With `ipMasq`.
        masquerade: bool,
        /// portmap behind it, with [`PORTS`].
        ports: bool,
    },
    /// The list of podman's default network: bridge, portmap, firewall and tuning.
    Podman {
        /// With [`PORTS`].
        ports: bool,
    },
    /// The named plugin with host-local; it needs nothing of the node.
    Alone(&'static str),
    /// The named plugin with host-local, its links on [`PARENT`].
    OnParent(&'static str),
    /// The named plugin, after another one that has made the interface.
    Chained(&'static str),
    /// macvlan with host-local.
    Macvlan,
    /// vxlan with host-local.
    Vxlan,
    /// host-local alone.
    HostLocal,
}

/// A job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Its name in the results.
    pub key: &'static str,
    /// Its name on the page.
    pub title: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// The jobs of the table, in its order.
pub const TABLE: [Job; 18] = [
    start("start-loopback", "start: loopback", "loopback"),
    start("start-bridge", "start: bridge", "bridge"),
    start("start-portmap", "start: portmap", "portmap"),
    start("start-host-local", "start: host-local", "host-local"),
    start("start-macvlan", "start: macvlan", "macvlan"),
    job("loopback", "loopback", Kind::Loopback),
    job("host-local", "host-local", Kind::HostLocal),
    BRIDGED,
    MASQUERADED,
    PUBLISHED,
    job(
        "podman",
        "podman's list: bridge + portmap + firewall + tuning",
        Kind::Podman { ports: false },
    ),
    job(
        "podman-ports",
        "podman's list, two ports",
        Kind::Podman { ports: true },
    ),
    job("ptp", "ptp + host-local", Kind::Alone("ptp")),
    chained("bandwidth"),
    chained("tuning"),
    chained("sbr"),
    job("macvlan", "macvlan + host-local", Kind::Macvlan),
    job("vxlan", "vxlan + host-local", Kind::Vxlan),
];

/// Jobs with kinds of links that many kernels lack: measured on Debian's kernel in the virtual machine
/// (`benches/vm`).
pub const LINKS: [Job; 4] = [
    job("vlan", "vlan + host-local", Kind::OnParent("vlan")),
    job("ipvlan", "ipvlan + host-local", Kind::OnParent("ipvlan")),
    job("dummy", "dummy + host-local", Kind::Alone("dummy")),
    chained("vrf"),
];

/// bridge without masquerade.
pub const BRIDGED: Job = bridge("bridge", "bridge + host-local", false, false);
/// bridge with masquerade.
pub const MASQUERADED: Job = bridge("bridge-masq", "bridge + host-local + ipMasq", true, false);
/// bridge with masquerade and two published ports.
pub const PUBLISHED: Job = bridge(
    "bridge-masq-portmap",
    "bridge + host-local + ipMasq + portmap, two ports",
    true,
    true,
);
/// host-local alone.
pub const ADDRESS: Job = job("host-local", "host-local", Kind::HostLocal);
/// What creates files, on the aged file system.
pub const AGED: [Job; 2] = [
    job(
        "host-local-aged",
        "host-local, aged file system",
        Kind::HostLocal,
    ),
    bridge(
        "bridge-masq-aged",
        "bridge + host-local + ipMasq, aged file system",
        true,
        false,
    ),
];

const fn job(key: &'static str, title: &'static str, kind: Kind) -> Job {
    Job { key, title, kind }
}

const fn start(key: &'static str, title: &'static str, plugin: &'static str) -> Job {
    job(key, title, Kind::Start(plugin))
}

/// Alone: the time of the plugin before it is not counted.
const fn chained(plugin: &'static str) -> Job {
    job(plugin, plugin, Kind::Chained(plugin))
}

const fn bridge(key: &'static str, title: &'static str, masquerade: bool, ports: bool) -> Job {
    job(key, title, Kind::Bridge { masquerade, ports })
}

impl Job {
    /// The verbs of this job.
    pub fn verbs(&self) -> &'static [Verb] {
        match self.kind {
            Kind::Start(_) => &[Verb::Version],
            _ => &[Verb::Add, Verb::Check, Verb::Del],
        }
    }

    /// The plugins that a suite must have for it.
    pub fn plugins(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Start(plugin) => vec![plugin],
            Kind::Loopback => vec!["loopback"],
            Kind::HostLocal => vec!["host-local"],
            Kind::Bridge { ports: false, .. } => vec!["bridge", "host-local"],
            Kind::Bridge { ports: true, .. } => vec!["bridge", "host-local", "portmap"],
            Kind::Podman { .. } => vec!["bridge", "host-local", "portmap", "firewall", "tuning"],
            Kind::Alone(plugin) | Kind::OnParent(plugin) => vec![plugin, "host-local"],
            Kind::Chained(plugin) => vec![plugin],
            Kind::Macvlan => vec!["macvlan", "host-local"],
            Kind::Vxlan => vec!["vxlan", "host-local"],
        }
    }

    /// The list of plugins with their configurations, as libcni would call them, without the name of the network.
    /// Addresses are kept under `state`.
    pub fn list(&self, state: &str) -> Vec<Value> {
        match self.kind {
            Kind::Start(plugin) => vec![conf(plugin, json!({}))],
            Kind::Loopback => vec![conf("loopback", json!({}))],
            Kind::HostLocal => vec![conf("host-local", json!({"ipam": ipam(state)}))],
            Kind::Podman { ports } => {
                let bridge = json!({"bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": ipam(state)});
                let portmap = if ports { portmap(&PORTS) } else { portmap(&[]) };
                let others = ["firewall", "tuning"].map(|plugin| conf(plugin, json!({})));
                let mut list = vec![conf("bridge", bridge), portmap];
                list.extend(others);
                list
            }
            Kind::Alone(plugin) => vec![conf(plugin, json!({"ipam": ipam(state)}))],
            Kind::OnParent(plugin) => {
                // Each reads its own of these keys.
                let keys =
                    json!({"master": PARENT, "vlanId": 100, "mode": "l2", "ipam": ipam(state)});
                vec![conf(plugin, keys)]
            }
            Kind::Chained(plugin) => vec![conf(plugin, chained_keys(plugin))],
            Kind::Macvlan => {
                let keys = json!({"master": PARENT, "mode": "bridge", "ipam": ipam(state)});
                vec![conf("macvlan", keys)]
            }
            Kind::Vxlan => vec![conf("vxlan", overlay(state))],
            Kind::Bridge { masquerade, ports } => {
                let keys = json!({"bridge": BRIDGE, "isGateway": true, "ipMasq": masquerade, "ipam": ipam(state)});
                let mut list = vec![conf("bridge", keys)];
                if ports {
                    list.push(portmap(&PORTS));
                }
                list
            }
        }
    }
}

/// portmap's configuration with its ports, as libcni fills it in.
pub fn portmap(ports: &[u16]) -> Value {
    let mappings: Vec<Value> = ports
        .iter()
        .map(|port| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"}))
        .collect();
    conf(
        "portmap",
        json!({"runtimeConfig": {"portMappings": mappings}}),
    )
}

/// The keys of a chained plugin.
fn chained_keys(plugin: &str) -> Value {
    match plugin {
        "bandwidth" => json!({"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
            "egressRate": 8_000_000, "egressBurst": 8_000_000}),
        "tuning" => json!({"sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400}),
        "vrf" => json!({"vrfname": "red"}),
        _ => json!({}),
    }
}

fn conf(plugin: &str, keys: Value) -> Value {
    let mut conf = json!({"cniVersion": CNI_VERSION, "type": plugin});
    if let (Some(conf), Value::Object(keys)) = (conf.as_object_mut(), keys) {
        conf.extend(keys);
    }
    conf
}

fn ipam(state: &str) -> Value {
    json!({
        "type": "host-local",
        "dataDir": state,
        "ranges": [[{"subnet": "10.0.0.0/8"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    })
}

fn overlay(state: &str) -> Value {
    json!({"mode": "l2", "vni": 100, "dev": PARENT, "isGateway": true, "ipam": ipam(state)})
}
