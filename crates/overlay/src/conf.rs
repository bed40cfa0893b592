//! The keys of vxlan, as they are written. `network.rs` finds contradictions, which DEL ignores.

use std::net::IpAddr;

use cni::address::{Cidrs, optional_ip};
use cni::json::Json;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use wiring::access::{AccessKeys, LinkKeys, RuntimeConfig};
use wiring::mac::Args;
use wiring::mtu::Mtu;
use wiring::port::ConfiguredRules;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// One segment across hosts (`l2`), or a subnet for each host (`l3`).
    #[serde(default = "default_mode")]
    pub mode: String,
    /// The VXLAN network identifier.
    pub vni: Option<i64>,
    /// The UDP port of all hosts.
    #[serde(default = "default_port")]
    pub port: i64,
    /// The interface for packets between hosts.
    pub dev: String,
    /// The address of this host, their source.
    #[serde(deserialize_with = "optional_ip")]
    pub local: Option<IpAddr>,
    /// The family of the network between the hosts: `ipv4` or `ipv6`.
    #[serde(deserialize_with = "text_or_number")]
    pub underlay: String,
    /// The other hosts, or their pods.
    pub peers: Vec<PeerKeys>,
    /// A multicast group of all hosts.
    #[serde(deserialize_with = "optional_ip")]
    pub group: Option<IpAddr>,
    /// Hop limit of packets between hosts; 0 for the node's.
    pub ttl: i64,
    /// Learn from received packets which address is on which host.
    pub learning: Option<bool>,
    /// The largest packet of a pod.
    pub mtu: Mtu,
    /// Use the group policy extension.
    pub gbp: bool,
    /// Send UDP checksums in packets between hosts.
    #[serde(default = "default_udp_checksum")]
    pub udp_checksum: bool,
    /// The MAC of this host's VXLAN device.
    pub mac: String,
    /// Name of the bridge on the host.
    pub bridge: String,
    /// Make the bridge the pods' gateway: add its address and enable forwarding.
    pub is_gateway: Option<bool>,
    /// As `isGateway`, and as the pods' default route.
    pub is_default_gateway: Option<bool>,
    /// Replace a conflicting address on the bridge instead of failing.
    pub force_address: bool,
    /// Masquerade packets that leave the network.
    pub ip_masq: bool,
    /// The back end: `iptables` or `nftables`.
    pub ip_masq_backend: Option<String>,
    /// Choose source ports at random.
    pub ip_masq_random_fully: bool,
    /// Destinations that are not masqueraded.
    pub ip_masq_except: Vec<String>,
    /// The families that are masqueraded: `ipv4`, `ipv6`; both without the key.
    pub ip_masq_families: Option<Vec<String>>,
    /// Let the port send frames back to where they came from.
    pub hairpin_mode: bool,
    /// Drop frames that the pod sends with another source MAC.
    pub macspoofchk: bool,
    /// Detect duplicate IPv6 addresses.
    pub enabledad: bool,
    /// The last pod's DEL removes device and bridge.
    pub remove_when_empty: bool,
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
    pub links: Vec<LinkKeys>,
    /// Requests of the runtime for this pod.
    pub runtime_config: RuntimeConfig,
    /// Requests of the configuration's author.
    pub args: Args,
}

fn default_mode() -> String {
    "l3".to_owned()
}

fn default_port() -> i64 {
    4789
}

fn default_udp_checksum() -> bool {
    true
}

impl Conf {
    /// The keys that restrict access to and from the pods.
    pub fn access(&self) -> AccessKeys<'_> {
        AccessKeys {
            modes: [&self.gateway_mode_ipv4, &self.gateway_mode_ipv6].map(Option::as_deref),
            internal: self.internal,
            icc: self.icc,
            port_isolation: false,
            is_default_gateway: self.is_default_gateway == Some(true),
            port_mappings: &self.runtime_config.port_mappings,
            links: [&self.links, &self.runtime_config.links],
        }
    }

    /// The packet filter rules that DEL removes.
    pub fn rules(&self) -> ConfiguredRules<'_> {
        ConfiguredRules {
            masquerade: self.ip_masq,
            isolation: self.access().restrict(),
            open_ports: !self.runtime_config.port_mappings.is_empty(),
            links: self.access().links.iter().any(|it| !it.is_empty()),
            // The Go suite has no such plugin.
            bridge: None,
            spoof_check: self.macspoofchk,
        }
    }
}

/// One entry of `peers`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PeerKeys {
    /// The host's address in the network between the hosts.
    #[serde(deserialize_with = "optional_ip")]
    pub vtep: Option<IpAddr>,
    /// The MAC of its VXLAN device, or of its pod.
    pub mac: String,
    /// The subnets of its pods, or the addresses of its pod.
    pub subnet: Cidrs,
}

/// `"ipv6"`, and `6` as well.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match &Json::deserialize(deserializer)? {
        Json::String(text) => Ok(text.clone()),
        Json::Number(number) if number.is_u64() => Ok(number.to_string()),
        other => {
            let expected = &"\"ipv4\" or \"ipv6\"";
            Err(D::Error::invalid_type(other.unexpected(), expected))
        }
    }
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
}
