//! The keys of sbr. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The table that the rules name, to which another program adds routes. If it is absent, the
    /// plugin chooses tables, and moves the routes of the interface there.
    pub table: Option<i64>,
    /// The routers of the interface, in place of those of the result: at most one of each family.
    pub gateways: Vec<String>,
    /// Whether the routes to the networks of the interface stay in the main table, each with the
    /// source address to use.
    pub add_source_hints: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case_and_null_is_absent() {
        let conf =
            read::<Conf>(r#"{"Table": 7, "GATEWAYS": ["10.0.0.1"], "addsourcehints": true}"#)
                .unwrap();
        assert_eq!((conf.table, conf.add_source_hints), (Some(7), true));
        assert_eq!(conf.gateways, ["10.0.0.1"]);
        let conf: Conf =
            read(r#"{"table": null, "gateways": null, "addSourceHints": null}"#).unwrap();
        assert_eq!((conf.table, conf.gateways.len()), (None, 0));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"table": "100"}"#,
            r#"{"table": 1.5}"#,
            r#"{"gateways": "10.0.0.1"}"#,
            r#"{"gateways": [1]}"#,
            r#"{"addSourceHints": "yes"}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
