//! The keys of the role, and what they mean.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use store::{Access, ApiAccess};

use crate::overlay::{EtcdKeys, node_name};

/// The key `ipam`, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// How etcd is reached.
    etcd: Option<EtcdKeys>,
    /// Instead of etcd: custom resources of a Kubernetes cluster.
    kubernetes: Option<KubernetesKeys>,
    /// Instead of etcd: a file with keys and values, for tests.
    file: Option<PathBuf>,
    /// What all keys in the store begin with.
    prefix: Option<String>,
    /// The name of this node.
    node: Option<String>,
    /// How long the store believes that the node lives after its last sign of life.
    lease_seconds: Option<u64>,
    /// How long after that its blocks stay its own.
    grace_seconds: Option<u64>,
    /// Where the journal is.
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct KubernetesKeys {
    kubeconfig: Option<PathBuf>,
    node_name: Option<String>,
    namespace: Option<String>,
}

/// Where blocks are claimed.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In etcd.
    Etcd(Access),
    /// In custom resources of a cluster; leases are in this namespace.
    Kubernetes(ApiAccess, String),
    /// In a file.
    File(PathBuf),
}

/// What the role does.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where blocks are claimed.
    pub source: Source,
    /// What all keys begin with, without a slash at the end.
    pub prefix: String,
    /// The name of this node.
    pub node: String,
    /// How long a lease lasts.
    pub lease: Duration,
    /// How long after its lease a node keeps its blocks.
    pub grace: Duration,
    /// Where the journal is.
    pub data_dir: PathBuf,
}

const PREFIX: &str = "/podwire/ipam";
/// Where `deploy/kubernetes/podwired.yaml` puts the agent.
const NAMESPACE: &str = "podwire";
const LEASE: u64 = 30;
/// An agent that cannot start is mended within this time, and its pods live meanwhile.
const GRACE: u64 = 3600;

/// Where the journal is, unless the configuration says otherwise: the plugin looks there, too.
pub const DATA_DIR: &str = pools::DATA_DIR;

impl Settings {
    /// Checks the keys.
    ///
    /// # Errors
    /// All faults, each with its key.
    pub fn new(conf: &Conf) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let source = match (&conf.etcd, &conf.kubernetes, &conf.file) {
            (Some(etcd), None, None) => Some(Source::Etcd(etcd.access())),
            (None, Some(keys), None) => cluster(keys, &mut faults),
            (None, None, Some(file)) => Some(Source::File(file.clone())),
            (None, None, None) => {
                faults.push("ipam.etcd: missing, and so is ipam.kubernetes".into());
                None
            }
            _ => {
                faults.push("ipam: etcd, kubernetes and file: more than one of them".into());
                None
            }
        };
        let prefix = conf.prefix.as_deref().unwrap_or(PREFIX);
        if !prefix.starts_with('/') {
            faults.push(format!(
                "ipam.prefix: {prefix:?} does not begin with a slash"
            ));
        }
        let node = match &conf.kubernetes {
            // In the cluster it is looked up whether the node is there.
            Some(_) if conf.node.is_some() => {
                faults.push("ipam.node: ipam.kubernetes.nodeName is the name of this node".into());
                conf.node.clone()
            }
            Some(keys) => {
                let key = "ipam.kubernetes.nodeName";
                // Without one, there is a fault already.
                let name = node_name(keys.node_name.as_deref(), key, &mut faults);
                Some(name.unwrap_or_else(|| "unknown".into()))
            }
            None => conf.node.clone(),
        };
        let node = node.or_else(|| cni::host::name().ok()).unwrap_or_default();
        if node.is_empty() || node.contains(['/', '\n']) {
            faults.push(format!("ipam.node: {node:?} cannot be the name of a node"));
        }
        let mut seconds = |key: &str, value: Option<u64>, usual, least| {
            let value = value.unwrap_or(usual);
            if !(least..=31_536_000).contains(&value) {
                let why = format!("{value} is not between {least} and 31536000");
                faults.push(format!("ipam.{key}: {why}"));
            }
            Duration::from_secs(value)
        };
        // etcd grants nothing shorter than its own elections.
        let lease = seconds("leaseSeconds", conf.lease_seconds, LEASE, 5);
        let grace = seconds("graceSeconds", conf.grace_seconds, GRACE, 1);
        let data_dir = conf.data_dir.clone().unwrap_or_else(|| DATA_DIR.into());
        if !data_dir.is_absolute() {
            let path = data_dir.display();
            faults.push(format!("ipam.dataDir: {path} is not an absolute path"));
        }
        match source {
            Some(source) if faults.is_empty() => Ok(Self {
                source,
                prefix: prefix.trim_end_matches('/').to_owned(),
                node,
                lease,
                grace,
                data_dir,
            }),
            _ => Err(faults),
        }
    }
}

/// The custom resources of the cluster that this node is in.
fn cluster(keys: &KubernetesKeys, faults: &mut Vec<String>) -> Option<Source> {
    let namespace = keys.namespace.as_deref().unwrap_or(NAMESPACE);
    let is_plain = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    if namespace.is_empty() || !namespace.bytes().all(is_plain) {
        let why = format!("{namespace:?} cannot be the name of a namespace");
        faults.push(format!("ipam.kubernetes.namespace: {why}"));
        return None;
    }
    let access = ApiAccess {
        kubeconfig: keys.kubeconfig.clone(),
    };
    Some(Source::Kubernetes(access, namespace.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json;

    fn settings(text: &str) -> Result<Settings, Vec<String>> {
        let conf: Conf = json::read(text).unwrap();
        Settings::new(&conf)
    }

    #[test]
    fn the_store_is_enough() {
        let settings = settings(r#"{"etcd": {"endpoints": ["http://192.0.2.1:2379"]}}"#).unwrap();
        assert_eq!(settings.prefix, "/podwire/ipam");
        assert_eq!(settings.node, cni::host::name().unwrap());
        assert_eq!(settings.grace.as_secs(), 3600);
    }

    #[test]
    fn faults_name_their_keys() {
        let text = r#"{"prefix": "x", "node": "a/b", "leaseSeconds": 1, "graceSeconds": 0,
            "dataDir": "d"}"#;
        let faults = settings(text).unwrap_err();
        let keys = faults.iter().map(|it| it.split(':').next().unwrap());
        let expected = [
            "etcd",
            "prefix",
            "node",
            "leaseSeconds",
            "graceSeconds",
            "dataDir",
        ];
        let expected = expected.map(|it| format!("ipam.{it}"));
        assert_eq!(keys.collect::<Vec<_>>(), expected);
        let both = settings(r#"{"etcd": {}, "file": "/x"}"#).unwrap_err();
        assert_eq!(
            both,
            ["ipam: etcd, kubernetes and file: more than one of them"]
        );
    }

    #[test]
    fn a_cluster_names_the_node() {
        let named = settings(r#"{"kubernetes": {"nodeName": "a.b"}}"#).unwrap();
        assert_eq!(named.node, "a.b");
        let Source::Kubernetes(access, namespace) = named.source else {
            panic!("{:?}", named.source);
        };
        assert_eq!((access.kubeconfig, namespace.as_str()), (None, "podwire"));
        let text = r#"{"node": "a", "kubernetes": {"nodeName": "b", "namespace": "x/y"}}"#;
        let faults = settings(text).unwrap_err();
        let keys: Vec<_> = faults
            .iter()
            .filter_map(|it| it.split(": ").next())
            .collect();
        assert_eq!(keys, ["ipam.kubernetes.namespace", "ipam.node"]);
        let odd = settings(r#"{"kubernetes": {"nodeName": "a b"}}"#).unwrap_err();
        assert_eq!(
            odd,
            [r#"ipam.kubernetes.nodeName: "a b" is no name of a node"#]
        );
    }
}
