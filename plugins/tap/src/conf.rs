//! The keys of tap. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;
use wiring::mac::{Args, Requested};

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Several queues, each of which a thread of the program can serve.
    pub multi_queue: bool,
    /// MTU of the device; 0 for the kernel's 1500.
    pub mtu: i64,
    /// The device's MAC; empty for a random one.
    pub mac: String,
    /// The user who may open the device; if it is absent, only a privileged user.
    pub owner: Option<u32>,
    /// The group whose members may open the device; absent: no group.
    pub group: Option<u32>,
    /// The SELinux label of the device; empty for that of the plugin.
    pub selinux_context: String,
    /// A bridge in the pod; the device becomes its port. Empty for none.
    pub bridge: String,
    /// What the runtime requests for this pod.
    pub runtime_config: Requested,
    /// What the configuration requests for this pod.
    pub args: Args,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let conf: Conf = read(
            r#"{"multiqueue": true, "MTU": 1400, "Owner": 0, "GROUP": 107, "SelinuxContext": "a:b:c:s0",
                "bridge": "br1", "RuntimeConfig": {"Mac": "02:00:00:00:00:01"}, "args": {"cni": {"mac": "x"}}}"#,
        )
        .unwrap();
        assert!(conf.multi_queue);
        assert_eq!(
            (conf.mtu, conf.owner, conf.group),
            (1400, Some(0), Some(107))
        );
        assert_eq!(conf.selinux_context, "a:b:c:s0");
        assert_eq!(conf.bridge, "br1");
        assert_eq!(conf.runtime_config.mac, "02:00:00:00:00:01");
        assert_eq!(conf.args.cni.mac, "x");
    }

    #[test]
    fn nobody_is_not_root() {
        let conf: Conf = read(r#"{"owner": null}"#).unwrap();
        assert_eq!((conf.owner, conf.group), (None, None));
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"owner": -1}"#,
            r#"{"owner": 4294967296}"#,
            r#"{"group": "kvm"}"#,
            r#"{"multiQueue": 1}"#,
            r#"{"mtu": "1500"}"#,
            r#"{"bridge": true}"#,
            r#"{"selinuxContext": []}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
