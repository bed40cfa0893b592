//! The keys of macvlan. `plan.rs` checks their values, because DEL ignores wrong ones.

use serde::Deserialize;
use wiring::mac::{Args, Requested};
use wiring::remains::Links;
use wiring::shim::HostShim;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// The parent: a name, or patterns of names; empty for the interface with the default route.
    pub master: String,
    /// How the macvlans of one parent communicate; empty for bridge.
    pub mode: String,
    /// MTU of the pod's interface; 0 for the parent's.
    pub mtu: i64,
    /// The pod's MAC; empty for a random one.
    pub mac: String,
    /// The parent is in the pod's namespace, not in the node's.
    pub link_in_container: bool,
    /// How many broadcasts may wait to be copied to the parent's macvlans; 0 for the kernel's
    /// default.
    pub bcqueuelen: u32,
    /// Probe the segment for an address before it is used.
    pub detect_conflicts: bool,
    /// What the pod does with router advertisements: `off`, `on` or `forwarding`; empty for
    /// the kernel's default.
    #[serde(rename = "acceptRA")]
    pub accept_ra: String,
    /// The node's own interface on the parent.
    pub host_shim: Option<HostShim>,
    /// What the runtime requests for this pod.
    pub runtime_config: Requested,
    /// What the configuration requests for this pod.
    pub args: Args,
}

impl Conf {
    /// The links that DEL deletes in a pod.
    pub(crate) fn links(&self) -> Links {
        Links {
            kind: crate::KIND,
            parent_in_pod: self.link_in_container,
            vlan_id: None,
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
            r#"{"Master": "eth1", "LINKINCONTAINER": true, "bcQueueLen": 7, "detectconflicts": true,
                "RuntimeConfig": {"Mac": "02:00:00:00:00:01"}, "args": {"cni": {"mac": "x"}}}"#,
        )
        .unwrap();
        assert_eq!((conf.master.as_str(), conf.bcqueuelen), ("eth1", 7));
        assert!(conf.link_in_container && conf.detect_conflicts);
        assert_eq!(conf.runtime_config.mac, "02:00:00:00:00:01");
        assert_eq!(conf.args.cni.mac, "x");
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for text in [
            r#"{"master": 1}"#,
            r#"{"mtu": "1500"}"#,
            r#"{"bcqueuelen": -1}"#,
            r#"{"linkInContainer": "yes"}"#,
        ] {
            assert!(read::<Conf>(text).is_err(), "{text}");
        }
    }
}
