//! The keys of vxlan, as they are written. What contradicts what is decided in
//! `network.rs`, because DEL must not mind.

use std::fmt;
use std::net::IpAddr;

use cni::address::optional_ip;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use wiring::mac::{Args, RuntimeConfig};
use wiring::mtu::Mtu;
use wiring::port::Extras;

use crate::peer::PeerKeys;

/// The plugin's own keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// One segment across hosts (`l2`), or a subnet for each host (`l3`).
    pub mode: String,
    /// The VXLAN network identifier.
    pub vni: Option<i64>,
    /// The UDP port of all hosts.
    pub port: i64,
    /// The interface that packets between hosts leave by.
    pub dev: String,
    /// The address of this host that they are sent from.
    #[serde(deserialize_with = "optional_ip")]
    pub local: Option<IpAddr>,
    /// The family of the network between the hosts: `ipv4` or `ipv6`.
    #[serde(deserialize_with = "text_or_number")]
    pub underlay: String,
    /// The other hosts, or their pods.
    pub peers: Vec<PeerKeys>,
    /// A multicast group of the network between the hosts that reaches all of them.
    #[serde(deserialize_with = "optional_ip")]
    pub group: Option<IpAddr>,
    /// Hop limit of packets between hosts; 0 for the node's.
    pub ttl: i64,
    /// Learn from what comes in which address is on which host.
    pub learning: Option<bool>,
    /// The largest packet of a pod.
    pub mtu: Mtu,
    /// Carry the group policy extension.
    pub gbp: bool,
    /// Put checksums in packets between hosts.
    pub udp_checksum: bool,
    /// The MAC of this host's VXLAN device.
    pub mac: String,
    /// Name of the bridge on the host.
    pub bridge: String,
    /// Put the gateway's address on the bridge and forward.
    pub is_gateway: Option<bool>,
    /// The same, and make it the pod's default route.
    pub is_default_gateway: Option<bool>,
    /// Replace another address on the bridge rather than fail.
    pub force_address: bool,
    /// Masquerade what leaves the network.
    pub ip_masq: bool,
    /// How to masquerade.
    pub ip_masq_backend: Option<String>,
    /// Draw source ports at random.
    pub ip_masq_random_fully: bool,
    /// Networks to which nothing is masqueraded.
    pub ip_masq_except: Vec<String>,
    /// The families that are masqueraded: `ipv4`, `ipv6`; both without the key.
    pub ip_masq_families: Option<Vec<String>>,
    /// Let the port send frames back where they came from.
    pub hairpin_mode: bool,
    /// Drop what the pod sends with another MAC.
    pub macspoofchk: bool,
    /// Detect duplicate IPv6 addresses.
    pub enabledad: bool,
    /// The last pod's DEL takes device and bridge with it.
    pub remove_when_empty: bool,
    /// What the runtime asks for this pod.
    pub runtime_config: RuntimeConfig,
    /// What the configuration's author asks for this pod.
    pub args: Args,
}

impl Default for Conf {
    fn default() -> Self {
        Self {
            mode: "l3".to_owned(),
            vni: None,
            port: 4789,
            dev: String::new(),
            local: None,
            underlay: String::new(),
            peers: Vec::new(),
            group: None,
            ttl: 0,
            learning: None,
            mtu: Mtu::Unset,
            gbp: false,
            udp_checksum: true,
            mac: String::new(),
            bridge: String::new(),
            is_gateway: None,
            is_default_gateway: None,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            ip_masq_random_fully: false,
            ip_masq_except: Vec::new(),
            ip_masq_families: None,
            hairpin_mode: false,
            macspoofchk: false,
            enabledad: false,
            remove_when_empty: false,
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
            isolation: false,
            // The Go suite has no such plugin.
            bridge: None,
            spoof_check: self.macspoofchk,
        }
    }
}

/// `"ipv6"`, and `6` as well.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Either;
    impl Visitor<'_> for Either {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"ipv4\" or \"ipv6\"")
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_u64<E>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(Either)
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
    fn keys_match_in_any_case_and_null_is_the_default() {
        let conf = decode(
            r#"{"VNI": 7, "UDPchecksum": false, "PORT": null, "local": "",
                "peers": [{"VTEP": "192.0.2.2", "Subnet": "10.5.2.0/24"}]}"#,
        )
        .unwrap();
        assert_eq!((conf.vni, conf.port), (Some(7), 4789));
        assert!(!conf.udp_checksum && conf.local.is_none());
        assert_eq!(conf.peers[0].subnet.0.len(), 1);
    }

    #[test]
    fn a_fault_has_its_place() {
        for (text, fault) in [
            (
                r#"{"peers": [{"vtep": "x"}]}"#,
                "peers[0].vtep: invalid IP address: x",
            ),
            (
                r#"{"peers": [{"subnet": ["10.5.2.0"]}]}"#,
                "peers[0].subnet[0]: invalid CIDR address: 10.5.2.0",
            ),
            (r#"{"group": "y"}"#, "group: invalid IP address: y"),
        ] {
            assert_eq!(decode(text).unwrap_err(), fault);
        }
        assert!(decode(r#"{"vni": "7"}"#).unwrap_err().starts_with("vni: "));
    }
}
