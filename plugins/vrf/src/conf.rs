//! The keys of vrf. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conf {
    /// The name of the VRF in the pod.
    pub vrfname: String,
    /// Its routing table; 0 for a free one.
    pub table: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let conf: Conf = read(r#"{"vrfName": "blue", "Table": 7}"#).unwrap();
        assert_eq!((conf.vrfname.as_str(), conf.table), ("blue", 7));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"vrfname": 1}"#,
            r#"{"table": -1}"#,
            r#"{"table": "main"}"#,
            r#"{"table": 4294967296}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
