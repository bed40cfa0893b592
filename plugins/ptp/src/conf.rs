//! The keys of ptp, as they are written. `plan.rs` checks their values, because DEL ignores wrong
//! ones.

use serde::Deserialize;
use wiring::mac::{Args, Requested};
use wiring::mtu::Mtu;
use wiring::port::ConfiguredRules;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Masquerade packets that leave the pods' subnet.
    pub ip_masq: bool,
    /// The back end: `iptables` or `nftables`.
    pub ip_masq_backend: Option<String>,
    /// Choose source ports at random.
    pub ip_masq_random_fully: bool,
    /// Destinations that are not masqueraded.
    pub ip_masq_except: Vec<String>,
    /// The families that are masqueraded: `ipv4`, `ipv6`; both without the key.
    pub ip_masq_families: Option<Vec<String>>,
    /// MTU of the veth pair.
    pub mtu: Mtu,
    /// Requests of the runtime for this pod.
    pub runtime_config: Requested,
    /// Requests of the configuration's author.
    pub args: Args,
}

impl Conf {
    /// The packet filter rules that DEL removes.
    pub fn rules(&self) -> ConfiguredRules<'_> {
        ConfiguredRules {
            masquerade: self.ip_masq,
            ..ConfiguredRules::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let conf: Conf = read(
            r#"{"IPMasq": true, "ipmasqbackend": "iptables", "MTU": 1400,
                "RuntimeConfig": {"IPs": ["10.1.0.9/24"]}}"#,
        )
        .unwrap();
        assert!(conf.ip_masq && conf.runtime_config.ips.is_some());
        assert_eq!(conf.ip_masq_backend.as_deref(), Some("iptables"));
        assert_eq!(conf.mtu, Mtu::Bytes(1400));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"ipMasq": "yes"}"#,
            r#"{"ipMasqBackend": 1}"#,
            r#"{"mtu": "big"}"#,
            r#"{"mtu": 1.5}"#,
            r#"{"ipMasqExcept": "10.0.0.0/8"}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
