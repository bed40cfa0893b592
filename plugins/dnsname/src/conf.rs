//! The keys of dnsname, as they are written. `plan.rs` checks their values, because DEL ignores
//! wrong ones.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::records::RecordKeys;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The domain that pods search for short names.
    pub domain_name: String,
    /// For how long a client may remember an answer, in seconds.
    pub ttl: u32,
    /// The name servers for unknown names, instead of the node's.
    pub servers: Vec<String>,
    /// The addresses of the node to which pods send queries, instead of their gateways.
    pub listen: Vec<String>,
    /// Further names, which belong to no pod.
    pub records: Vec<RecordKeys>,
    /// Whether unknown names are not forwarded to any server.
    pub internal: bool,
    /// `on-demand`, or empty: ADD starts podwired. `service`: something else does.
    pub resolver: String,
    /// What the runtime requests for this pod.
    pub runtime_config: RuntimeConfig,
}

/// `runtimeConfig`, where libcni passes the declared capabilities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Capability `aliases`: further names of the pod, for each network.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Capability `dns`.
    pub dns: Dns,
}

/// How a runtime wants a pod to resolve names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// The name servers for names that the network does not know.
    pub servers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_are_read_as_podman_writes_them() {
        let conf: Conf = read(
            r#"{"type": "dnsname", "domainName": "dns.podman", "capabilities": {"aliases": true},
                "runtimeConfig": {"aliases": {"web": ["0123456789ab", "db"]}}}"#,
        )
        .unwrap();
        assert_eq!(conf.domain_name, "dns.podman");
        assert_eq!(conf.runtime_config.aliases["web"], ["0123456789ab", "db"]);
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"domainName": 1}"#,
            r#"{"ttl": -1}"#,
            r#"{"ttl": "1s"}"#,
            r#"{"servers": "9.9.9.9"}"#,
            r#"{"listen": {}}"#,
            r#"{"records": {"db": "10.0.0.1"}}"#,
            r#"{"records": [{"name": "db", "addresses": "10.0.0.1"}]}"#,
            r#"{"records": [{"name": "db", "srv": [{"port": 65536}]}]}"#,
            r#"{"internal": "yes"}"#,
            r#"{"resolver": false}"#,
            r#"{"runtimeConfig": {"aliases": ["db"]}}"#,
            r#"{"runtimeConfig": {"aliases": {"web": "db"}}}"#,
            r#"{"runtimeConfig": {"dns": []}}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
