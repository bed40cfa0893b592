//! The keys of firewall. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// `iptables`, `nftables` or `firewalld`; any other text: the plugin chooses.
    pub backend: String,
    /// The chain of iptables for the administrator's own rules; empty for `CNI-ADMIN`.
    pub iptables_admin_chain_name: String,
    /// The zone of firewalld; empty for `trusted`.
    pub firewalld_zone: String,
    /// Which pods may reach this one: `open`, `same-bridge` or `isolated`; empty for `open`.
    pub ingress_policy: String,
    /// Whether the policy holds for published ports as well.
    pub isolate_published_ports: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::Json;

    #[test]
    fn keys_match_in_any_case() {
        let text = r#"{"Backend": "iptables", "IPTABLESADMINCHAINNAME": "X", "isolatepublishedports": true}"#;
        let conf: Conf = Json::parse(text.as_bytes()).unwrap().decode().unwrap();
        assert_eq!(
            (
                conf.backend.as_str(),
                conf.iptables_admin_chain_name.as_str()
            ),
            ("iptables", "X")
        );
        assert!(conf.isolate_published_ports);
    }
}
