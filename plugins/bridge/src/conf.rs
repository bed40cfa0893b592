//! The keys of bridge, as they are written. `plan.rs` finds contradictions, which DEL ignores.

use serde::Deserialize;
use wiring::access::{AccessKeys, LinkKeys, RuntimeConfig};
use wiring::mac::Args;
use wiring::mtu::Mtu;
use wiring::port::ConfiguredRules;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Name of the bridge on the host.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// Make the bridge the pods' gateway: add its address and enable forwarding.
    pub is_gateway: bool,
    /// As `isGateway`, and as the pods' default route.
    pub is_default_gateway: bool,
    /// Replace a conflicting address on the bridge instead of failing.
    pub force_address: bool,
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
    /// MTU of the veth pair, and of the bridge if it is created.
    pub mtu: Mtu,
    /// Let the port send frames back to where they came from.
    pub hairpin_mode: bool,
    /// Make the bridge promiscuous.
    pub promisc_mode: bool,
    /// VLAN of the port; 0 for none.
    pub vlan: i64,
    /// Tagged VLANs of the port.
    pub vlan_trunk: Option<Vec<TrunkItem>>,
    /// Keep the port in the bridge's default VLAN, too.
    pub preserve_default_vlan: bool,
    /// Drop frames that the pod sends with another source MAC.
    pub macspoofchk: bool,
    /// Detect duplicate IPv6 addresses.
    pub enabledad: bool,
    /// Probe the segment before an address is used.
    pub detect_conflicts: bool,
    /// Leave the pod's end down.
    pub disable_container_interface: bool,
    /// Let the port exchange frames only with ports that are not isolated.
    pub port_isolation: bool,
    /// What the node forwards to and from the pods, for IPv4: `nat`, `nat-unprotected`, `routed`,
    /// `isolated`.
    #[serde(rename = "gatewayModeIPv4")]
    pub gateway_mode_ipv4: Option<String>,
    /// The same for IPv6.
    #[serde(rename = "gatewayModeIPv6")]
    pub gateway_mode_ipv6: Option<String>,
    /// Packets neither leave the network nor enter it.
    pub internal: bool,
    /// Whether pods of the network reach each other.
    pub icc: Option<bool>,
    /// The pods that this one reaches although `icc` is false.
    pub links: Option<Vec<LinkKeys>>,
    /// Requests of the runtime for this pod.
    pub runtime_config: RuntimeConfig,
    /// Requests of the configuration's author.
    pub args: Args,
}

fn default_bridge() -> String {
    "cni0".to_owned()
}

impl Conf {
    /// The keys that restrict access to and from the pods.
    pub fn access(&self) -> AccessKeys<'_> {
        AccessKeys {
            modes: [&self.gateway_mode_ipv4, &self.gateway_mode_ipv6].map(Option::as_deref),
            internal: self.internal,
            icc: self.icc,
            port_isolation: self.port_isolation,
            is_default_gateway: self.is_default_gateway,
            port_mappings: &self.runtime_config.port_mappings,
            links: [
                self.links.as_deref().unwrap_or_default(),
                &self.runtime_config.links,
            ],
        }
    }

    /// The packet filter rules that DEL removes.
    pub fn rules(&self) -> ConfiguredRules<'_> {
        ConfiguredRules {
            masquerade: self.ip_masq,
            isolation: self.port_isolation || self.access().restrict(),
            open_ports: !self.runtime_config.port_mappings.is_empty(),
            links: self.access().links.iter().any(|it| !it.is_empty()),
            bridge: Some(&self.bridge),
            spoof_check: self.macspoofchk,
        }
    }
}

/// One entry of `vlanTrunk`: a range, a single id, or both.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TrunkItem {
    /// First of a range.
    #[serde(rename = "minID")]
    pub min_id: Option<i64>,
    /// Last of a range.
    #[serde(rename = "maxID")]
    pub max_id: Option<i64>,
    /// A single one.
    pub id: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::read;

    #[test]
    fn keys_match_in_any_case() {
        let conf: Conf = read(
            r#"{"Bridge": "br1", "ISGATEWAY": true, "vlantrunk": [{"minid": 3, "MaxID": 4}],
                "runtimeConfig": {"Mac": "02:00:00:00:00:01"}, "enableDAD": true}"#,
        )
        .unwrap();
        assert_eq!(conf.bridge, "br1");
        assert!(conf.is_gateway && conf.enabledad);
        assert_eq!(conf.vlan_trunk.unwrap()[0].max_id, Some(4));
        assert_eq!(conf.runtime_config.mac, "02:00:00:00:00:01");
    }

    #[test]
    fn without_keys_the_bridge_is_cni0() {
        let conf: Conf = read(r#"{"bridge": null}"#).unwrap();
        assert_eq!((conf.bridge.as_str(), conf.mtu), ("cni0", Mtu::Unset));
    }

    #[test]
    fn mtu_is_a_number_or_auto() {
        assert_eq!(
            read::<Conf>(r#"{"mtu": 9000}"#).unwrap().mtu,
            Mtu::Bytes(9000)
        );
        assert_eq!(read::<Conf>(r#"{"mtu": "auto"}"#).unwrap().mtu, Mtu::Auto);
        assert_eq!(
            read::<Conf>(r#"{"mtu": "big"}"#).unwrap_err().to_string(),
            "mtu: invalid value: string \"big\", expected an integer or \"auto\""
        );
        assert!(read::<Conf>(r#"{"mtu": 1.5}"#).is_err());
    }
}
