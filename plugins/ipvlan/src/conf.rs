//! The keys of ipvlan. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The parent: a name, or patterns of names. If it is empty, the interface of the previous
    /// result; without a result, the interface with the default route.
    pub master: String,
    /// Where packets are routed; empty for l2.
    pub mode: String,
    /// MTU of the pod's interface; 0 for the parent's.
    pub mtu: i64,
    /// The parent is in the pod's namespace, not in the node's.
    pub link_in_container: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let text = r#"{"Master": "eth1", "MODE": "l3", "Mtu": 1400, "linkincontainer": true}"#;
        let conf: Conf = read(text).unwrap();
        assert_eq!((conf.master.as_str(), conf.mode.as_str()), ("eth1", "l3"));
        assert!(conf.mtu == 1400 && conf.link_in_container);
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"master": 1}"#,
            r#"{"mode": 3}"#,
            r#"{"mtu": "1500"}"#,
            r#"{"linkInContainer": "yes"}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
