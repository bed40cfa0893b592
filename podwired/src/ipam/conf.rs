//! The keys of the role, and what they mean.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::overlay::{EtcdKeys, Source};

/// The key `ipam`, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// How etcd is reached.
    etcd: Option<EtcdKeys>,
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
        let source = match (&conf.etcd, &conf.file) {
            (Some(etcd), None) => Some(Source::Etcd(etcd.access())),
            (None, Some(file)) => Some(Source::File(file.clone())),
            (None, None) => {
                faults.push("ipam.etcd: missing".into());
                None
            }
            (Some(_), Some(_)) => {
                faults.push("ipam.file: there is etcd, too".into());
                None
            }
        };
        let prefix = conf.prefix.as_deref().unwrap_or(PREFIX);
        if !prefix.starts_with('/') {
            faults.push(format!(
                "ipam.prefix: {prefix:?} does not begin with a slash"
            ));
        }
        let node = conf.node.clone();
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

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::Json;

    fn settings(text: &str) -> Result<Settings, Vec<String>> {
        let conf: Conf = Json::parse(text.as_bytes()).unwrap().decode().unwrap();
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
        assert_eq!(both, ["ipam.file: there is etcd, too"]);
    }
}
