//! The keys of tuning. `plan.rs` checks their values, because DEL ignores wrong ones.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Settings of the pod's namespace.
    pub sysctl: Sysctls,
    /// The MAC of the pod's interface; empty to leave it.
    pub mac: String,
    /// Whether to switch promiscuous mode on; it is never switched off.
    pub promisc: bool,
    /// MTU of the pod's interface; 0 to leave it.
    pub mtu: i64,
    /// Whether the interface receives all multicast packets; absent to leave that.
    pub allmulti: Option<bool>,
    /// How many packets may wait to be sent; absent to leave that.
    pub tx_q_len: Option<i64>,
    /// Where the original values are kept; empty for [`crate::backup::DATA_DIR`].
    pub data_dir: String,
    /// What the runtime requests for this pod.
    pub runtime_config: RuntimeConfig,
    /// What the configuration requests for this pod.
    pub args: Args,
}

/// `runtimeConfig`, where libcni passes the declared capabilities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// Capability `mac`.
    pub mac: String,
}

/// `args`: by convention, each key names the programs that read its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Args {
    /// For CNI plugins.
    pub cni: Overrides,
}

/// `args.cni`: each key that is present replaces the plugin's own.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Overrides {
    /// Replaces single settings, and adds others.
    pub sysctl: Sysctls,
    /// Replaces `mac`, also if it is empty.
    pub mac: Option<String>,
    /// Replaces `promisc`.
    pub promisc: Option<bool>,
    /// Replaces `mtu`.
    pub mtu: Option<i64>,
    /// Replaces `allmulti`.
    pub allmulti: Option<bool>,
    /// Replaces `txQLen`.
    pub tx_q_len: Option<i64>,
}

/// Names and values of kernel settings, in the order and with the duplicates of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctls(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Sysctls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Settings;
        impl<'de> Visitor<'de> for Settings {
            type Value = Sysctls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Sysctls, A::Error> {
                let mut all = Vec::new();
                while let Some(member) = members.next_entry()? {
                    all.push(member);
                }
                Ok(Sysctls(all))
            }
        }
        deserializer.deserialize_map(Settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn settings_keep_their_order_and_their_duplicates() {
        let conf: Conf = read(r#"{"SysCtl": {"net.b": "1", "net.a": "2", "net.b": "3"}}"#).unwrap();
        let expected = [("net.b", "1"), ("net.a", "2"), ("net.b", "3")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(conf.sysctl.0, expected);
    }

    #[test]
    fn absent_and_null_differ_from_false_and_zero() {
        let conf = r#"{"allmulti": false, "txQLen": 0, "args": {"cni": {"mac": ""}}}"#;
        let conf: Conf = read(conf).unwrap();
        assert_eq!((conf.allmulti, conf.tx_q_len), (Some(false), Some(0)));
        assert_eq!(conf.args.cni.mac.as_deref(), Some(""));
        let conf: Conf = read(r#"{"allmulti": null, "txQLen": null, "args": null}"#).unwrap();
        assert_eq!((conf.allmulti, conf.tx_q_len), (None, None));
        assert_eq!(conf.args.cni.mac, None);
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"sysctl": {"net.a": 1}}"#,
            r#"{"sysctl": []}"#,
            r#"{"mtu": "1500"}"#,
            r#"{"promisc": "on"}"#,
            r#"{"txQLen": 1.5}"#,
            r#"{"args": {"cni": {"allmulti": 1}}}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
