//! The keys of vlan. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The parent: a name, or patterns of names.
    pub master: String,
    /// The VLAN id.
    pub vlan_id: i64,
    /// MTU of the pod's interface; 0 for the parent's.
    pub mtu: i64,
    /// The parent is in the pod's namespace, not in the node's.
    pub link_in_container: bool,
    /// Probe the VLAN for an address before it is used.
    pub detect_conflicts: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let conf: Conf = read(
            r#"{"Master": "eth1", "VLANID": 5, "Mtu": 1400, "linkincontainer": true,
                "detectconflicts": true}"#,
        )
        .unwrap();
        assert_eq!(
            (conf.master.as_str(), conf.vlan_id, conf.mtu),
            ("eth1", 5, 1400)
        );
        assert!(conf.link_in_container && conf.detect_conflicts);
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"master": 1}"#,
            r#"{"vlanId": "5"}"#,
            r#"{"vlanId": 1.5}"#,
            r#"{"mtu": "auto"}"#,
            r#"{"linkInContainer": "yes"}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
