//! The keys of the role, and what they mean.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::env::IfName;
use flannel::Annotations;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::{Access, ApiAccess};

use super::nodes;

/// The key `overlay`, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// How etcd is reached.
    etcd: Option<EtcdKeys>,
    /// Instead of etcd: the nodes of a Kubernetes cluster.
    kubernetes: Option<KubernetesKeys>,
    /// Instead of etcd: a file with keys and values, for tests.
    file: Option<PathBuf>,
    /// The networks that this node is in.
    networks: Vec<NetworkKeys>,
}

/// How etcd is reached, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EtcdKeys {
    endpoints: Vec<String>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    username: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct KubernetesKeys {
    kubeconfig: Option<PathBuf>,
    node_name: Option<String>,
    config_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NetworkKeys {
    name: String,
    prefix: Option<String>,
    dev: String,
    #[serde(rename = "publicIP")]
    public_ip: Option<Ipv4Addr>,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    bridge: Option<String>,
    ip_masq: Option<bool>,
    ip_masq_except: Vec<String>,
    subnet_file: Option<PathBuf>,
    conflist: Option<PathBuf>,
    lease_seconds: Option<u64>,
    ipam: Option<Map<String, Value>>,
}

/// What the role does.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the networks are kept.
    pub source: Source,
    /// The networks.
    pub networks: Vec<Membership>,
}

/// Where the networks are kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In etcd.
    Etcd(Access),
    /// In the nodes of a cluster.
    Kubernetes(ApiAccess, nodes::Membership),
    /// In a file.
    File(PathBuf),
}

/// A network that this node is in.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// Its name for the runtime.
    pub name: String,
    /// What its keys in the store begin with, without a slash at the end.
    pub prefix: String,
    /// The interface of the underlay; `None` for the one with the default route.
    pub dev: Option<IfName>,
    /// The address that other nodes send to, where it is not the one that this node sends from.
    pub public_ip: Option<Ipv4Addr>,
    /// The same over IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The bridge of the pods, in the conflist.
    pub bridge: IfName,
    /// Whether packets that leave the network get the node's address, in the conflist.
    pub ip_masq: bool,
    /// Where packets keep the pod's address besides, in the conflist: networks of nodes.
    pub ip_masq_except: Vec<IpNetwork>,
    /// Where `subnet.env` is written.
    pub subnet_file: PathBuf,
    /// Where the list of plugins is written.
    pub conflist: PathBuf,
    /// How long the store keeps the node's subnet after the last sign of life.
    pub ttl: Duration,
    /// Whether pods have names, in the conflist.
    pub has_names: bool,
    /// Whether Kubernetes assigns the node's subnet.
    pub assigned: bool,
    /// The section `ipam` of the list of plugins, in a network that is one segment; `None` if this node
    /// has no addresses for it.
    pub ipam: Option<Value>,
}

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const CONFLIST: &str = "/etc/cni/net.d/10-podwire.conflist";
/// Where flanneld's ConfigMap is mounted.
const CONFIG_FILE: &str = "/etc/kube-flannel/net-conf.json";
/// The variable that a DaemonSet sets to the name of the node.
const NODE_NAME: &str = "NODE_NAME";
const BRIDGE: &str = "cni0";
/// As flanneld's leases: a day.
const TTL: u64 = 86400;

impl Settings {
    /// Checks the keys.
    ///
    /// # Errors
    /// All faults, each with its key.
    pub fn new(conf: &Conf) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let source = match (&conf.etcd, &conf.kubernetes, &conf.file) {
            (Some(etcd), None, None) => Some(Source::Etcd(etcd.access())),
            (None, Some(keys), None) => cluster(keys, &conf.networks, &mut faults),
            (None, None, Some(file)) => Some(Source::File(file.clone())),
            (None, None, None) => {
                faults.push("overlay.etcd: missing, and so is overlay.kubernetes".into());
                None
            }
            _ => {
                let why = "overlay: etcd, kubernetes and file: more than one of them";
                faults.push(why.into());
                None
            }
        };
        let assigned = conf.kubernetes.is_some();
        if conf.networks.is_empty() {
            faults.push("overlay.networks: missing".into());
        }
        let mut networks = Vec::new();
        for (index, keys) in conf.networks.iter().enumerate() {
            let place = format!("overlay.networks[{index}]");
            if let Some(network) = membership(keys, assigned, &place, &mut faults) {
                clashes(&networks, &network, &place, &mut faults);
                networks.push(network);
            }
        }
        match source {
            Some(source) if faults.is_empty() => Ok(Self { source, networks }),
            _ => Err(faults),
        }
    }

    /// Has the pods of all networks get names.
    pub fn add_names(&mut self) {
        self.networks.iter_mut().for_each(|it| it.has_names = true);
    }

    /// Has the role `ipam`, which is reached at `socket` and has its journal in `data_dir`, give
    /// addresses to the pods of networks that name no other plugin.
    pub fn add_addresses(&mut self, socket: &Path, data_dir: &Path) {
        let ipam = json!({"type": "cluster", "agent": socket, "dataDir": data_dir});
        for network in &mut self.networks {
            network.ipam.get_or_insert_with(|| ipam.clone());
        }
    }
}

impl EtcdKeys {
    /// What the store's client needs.
    pub fn access(&self) -> Access {
        let keys = self.clone();
        Access {
            endpoints: keys.endpoints,
            ca_file: keys.ca_file,
            cert_file: keys.cert_file,
            key_file: keys.key_file,
            username: keys.username,
            password_file: keys.password_file,
        }
    }
}

/// The name of this node in its cluster: the value of `key`, or what a DaemonSet says.
pub fn node_name(given: Option<&str>, key: &str, faults: &mut Vec<String>) -> Option<String> {
    let given = given.map(str::to_owned);
    let node = given.or_else(|| std::env::var(NODE_NAME).ok());
    let Some(node) = node.filter(|it| !it.is_empty()) else {
        faults.push(format!("{key}: missing, and {NODE_NAME} is not set"));
        return None;
    };
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"-.".contains(&it);
    if !node.bytes().all(is_plain) {
        faults.push(format!("{key}: {node:?} is no name of a node"));
    }
    Some(node)
}

/// The cluster that this node is in. It assigns one subnet to each node, so there is one network.
fn cluster(
    keys: &KubernetesKeys,
    networks: &[NetworkKeys],
    faults: &mut Vec<String>,
) -> Option<Source> {
    let key = "overlay.kubernetes.nodeName";
    let node = node_name(keys.node_name.as_deref(), key, faults);
    if networks.len() > 1 {
        let why = "overlay.networks[1]: a cluster assigns one subnet to a node, for one network";
        faults.push(why.into());
    }
    let prefix = networks.first().and_then(|it| it.prefix.as_deref());
    let prefix = prefix.unwrap_or(flannel::ANNOTATIONS).to_owned();
    let annotations = Annotations::new(&prefix);
    let annotations = annotations.map_err(|why| {
        faults.push(format!("overlay.networks[0].prefix: {why}"));
    });
    let config_file = keys.config_file.clone();
    let access = ApiAccess {
        kubeconfig: keys.kubeconfig.clone(),
    };
    let membership = nodes::Membership {
        node: node?,
        config_file: config_file.unwrap_or_else(|| CONFIG_FILE.into()),
        annotations: annotations.ok()?,
        prefix,
    };
    Some(Source::Kubernetes(access, membership))
}

fn membership(
    keys: &NetworkKeys,
    assigned: bool,
    place: &str,
    faults: &mut Vec<String>,
) -> Option<Membership> {
    let before = faults.len();
    let mut interface = |key: &str, text: &str| match IfName::parse_new(text) {
        Ok(name) => Some(name),
        Err(error) => {
            faults.push(format!("{place}.{key}: {text:?}: {error}"));
            None
        }
    };
    let dev = match keys.dev.as_str() {
        "" => None,
        dev => interface("dev", dev),
    };
    let bridge = interface("bridge", keys.bridge.as_deref().unwrap_or(BRIDGE));
    if keys.name.is_empty() {
        faults.push(format!("{place}.name: missing"));
    }
    let default = if assigned {
        flannel::ANNOTATIONS
    } else {
        flannel::PREFIX
    };
    let prefix = keys.prefix.as_deref().unwrap_or(default);
    let prefix = prefix.trim_end_matches('/');
    if !assigned && !prefix.starts_with('/') {
        faults.push(format!(
            "{place}.prefix: {prefix:?} does not begin with a slash"
        ));
    }
    let mut ip_masq_except = Vec::new();
    for text in &keys.ip_masq_except {
        match text.parse() {
            Ok(network) => ip_masq_except.push(network),
            Err(error) => faults.push(format!("{place}.ipMasqExcept: {text:?}: {error}")),
        }
    }
    let ttl = keys.lease_seconds.unwrap_or(TTL);
    // etcd grants nothing shorter than its own elections.
    if !(5..=31_536_000).contains(&ttl) {
        faults.push(format!(
            "{place}.leaseSeconds: {ttl} is not between 5 and 31536000"
        ));
    }
    let mut path = |key: &str, path: &Option<PathBuf>, default: &str| {
        let path = path.clone().unwrap_or_else(|| default.into());
        if !path.is_absolute() {
            let path = path.display();
            faults.push(format!("{place}.{key}: {path} is not an absolute path"));
        }
        path
    };
    let subnet_file = path("subnetFile", &keys.subnet_file, SUBNET_FILE);
    let conflist = path("conflist", &keys.conflist, CONFLIST);
    let network = Membership {
        name: keys.name.clone(),
        prefix: prefix.to_owned(),
        dev,
        public_ip: keys.public_ip,
        public_ipv6: keys.public_ipv6,
        bridge: bridge?,
        ip_masq: keys.ip_masq.unwrap_or(true),
        ip_masq_except,
        subnet_file,
        conflist,
        ttl: Duration::from_secs(ttl),
        has_names: false,
        assigned,
        ipam: keys.ipam.clone().map(Value::Object),
    };
    (faults.len() == before).then_some(network)
}

/// What two networks cannot share.
fn clashes(others: &[Membership], one: &Membership, place: &str, faults: &mut Vec<String>) {
    for (index, other) in others.iter().enumerate() {
        let shared = [
            ("name", one.name == other.name),
            ("prefix", one.prefix == other.prefix),
            ("bridge", one.bridge == other.bridge),
            ("subnetFile", one.subnet_file == other.subnet_file),
            ("conflist", one.conflist == other.conflist),
        ];
        for (key, _) in shared.iter().filter(|(_, shared)| *shared) {
            faults.push(format!(
                "{place}.{key}: that of overlay.networks[{index}], too"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, Vec<String>> {
        let conf: Conf = cni::json::read(text).unwrap();
        Settings::new(&conf)
    }

    #[test]
    fn one_network_needs_a_name_only() {
        let text =
            r#"{"etcd": {"endpoints": ["http://192.0.2.1:2379"]}, "networks": [{"name": "pods"}]}"#;
        let network = &settings(text).unwrap().networks[0];
        assert_eq!(network.prefix, "/coreos.com/network");
        assert_eq!(
            network.subnet_file.to_str(),
            Some("/run/flannel/subnet.env")
        );
        assert_eq!(network.ttl.as_secs(), 86400);
        assert!(network.ip_masq);
    }

    #[test]
    fn a_cluster_has_one_network_and_annotations() {
        let with = |networks: &str| {
            settings(&format!(
                r#"{{"kubernetes": {{"nodeName": "a"}}, "networks": [{networks}]}}"#
            ))
        };
        let network = &with(r#"{"name": "pods"}"#).unwrap().networks[0];
        assert!(network.assigned);
        assert_eq!(network.prefix, "flannel.alpha.coreos.com");
        let faults = with(r#"{"name": "a", "prefix": "/x/y"}, {"name": "b"}"#).unwrap_err();
        assert!(faults[0].starts_with("overlay.networks[1]: "), "{faults:?}");
        assert!(
            faults[1].starts_with("overlay.networks[0].prefix: "),
            "{faults:?}"
        );
    }

    #[test]
    fn faults_name_their_keys() {
        let faults = settings("{}").unwrap_err();
        assert_eq!(
            faults,
            [
                "overlay.etcd: missing, and so is overlay.kubernetes",
                "overlay.networks: missing"
            ]
        );
        let text = r#"{"file": "/x", "networks": [{"name": "a"},
            {"name": "b", "prefix": "x", "leaseSeconds": 1, "bridge": "much-too-long-a-name", "conflist": "y"},
            {"name": "a", "prefix": "/b/"}]}"#;
        let faults = settings(text).unwrap_err();
        let keys: Vec<_> = faults
            .iter()
            .map(|it| it.split(": ").next().unwrap())
            .collect();
        let expected = [
            "[1].bridge",
            "[1].prefix",
            "[1].leaseSeconds",
            "[1].conflist",
            "[2].name",
            "[2].bridge",
            "[2].subnetFile",
            "[2].conflist",
        ];
        assert_eq!(keys, expected.map(|it| format!("overlay.networks{it}")));
    }
}
