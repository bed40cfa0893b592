//! The keys of bridge, as they are written. What contradicts what is decided
//! in `plan.rs`, because DEL must not mind.

use serde::Deserialize;
use wiring::mac::{Args, RuntimeConfig};
use wiring::mtu::Mtu;
use wiring::port::Extras;

/// The plugin's own keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// Name of the bridge on the host.
    pub bridge: String,
    /// Put the gateway's address on the bridge and forward.
    pub is_gateway: bool,
    /// The same, and make it the pod's default route.
    pub is_default_gateway: bool,
    /// Replace another address on the bridge rather than fail.
    pub force_address: bool,
    /// Masquerade what leaves the pods' subnet.
    pub ip_masq: bool,
    /// How to masquerade.
    pub ip_masq_backend: Option<String>,
    /// Draw source ports at random.
    pub ip_masq_random_fully: bool,
    /// Networks to which nothing is masqueraded.
    pub ip_masq_except: Vec<String>,
    /// The families that are masqueraded: `ipv4`, `ipv6`; both without the key.
    pub ip_masq_families: Option<Vec<String>>,
    /// MTU of the veth pair and of a bridge that is created.
    pub mtu: Mtu,
    /// Let the port send frames back where they came from.
    pub hairpin_mode: bool,
    /// Make the bridge promiscuous.
    pub promisc_mode: bool,
    /// VLAN of the port; 0 for none.
    pub vlan: i64,
    /// VLANs that the port carries tagged.
    pub vlan_trunk: Option<Vec<TrunkItem>>,
    /// Leave the port in the bridge's default VLAN as well.
    pub preserve_default_vlan: bool,
    /// Drop what the pod sends with another MAC.
    pub macspoofchk: bool,
    /// Detect duplicate IPv6 addresses.
    pub enabledad: bool,
    /// Ask the segment before an address is used.
    pub detect_conflicts: bool,
    /// Leave the container's end down.
    pub disable_container_interface: bool,
    /// Let the port talk to ports that are not isolated only.
    pub port_isolation: bool,
    /// What the runtime asks for this pod.
    pub runtime_config: RuntimeConfig,
    /// What the configuration's author asks for this pod.
    pub args: Args,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            ip_masq_random_fully: false,
            ip_masq_except: Vec::new(),
            ip_masq_families: None,
            mtu: Mtu::Unset,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: None,
            preserve_default_vlan: false,
            macspoofchk: false,
            enabledad: false,
            detect_conflicts: false,
            disable_container_interface: false,
            port_isolation: false,
            runtime_config: RuntimeConfig::default(),
            args: Args::default(),
        }
    }
}

impl Conf {
    /// What a port of this configuration has besides its veth pair.
    pub fn extras(&self) -> Extras<'_> {
        Extras {
            masquerade: self.ip_masq,
            isolation: self.port_isolation,
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
    use cni::json::Json;

    fn decode(text: &str) -> Result<Conf, String> {
        let document = Json::parse(text.as_bytes()).unwrap();
        document.decode().map_err(|error| error.to_string())
    }

    #[test]
    fn keys_match_in_any_case() {
        let conf = decode(
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
        let conf = decode(r#"{"bridge": null}"#).unwrap();
        assert_eq!((conf.bridge.as_str(), conf.mtu), ("cni0", Mtu::Unset));
    }

    #[test]
    fn mtu_is_a_number_or_auto() {
        assert_eq!(decode(r#"{"mtu": 9000}"#).unwrap().mtu, Mtu::Bytes(9000));
        assert_eq!(decode(r#"{"mtu": "auto"}"#).unwrap().mtu, Mtu::Auto);
        assert_eq!(
            decode(r#"{"mtu": "big"}"#).unwrap_err(),
            "mtu: invalid value: string \"big\", expected an integer or \"auto\""
        );
        assert!(decode(r#"{"mtu": 1.5}"#).is_err());
    }
}
