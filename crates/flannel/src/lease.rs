//! The lease of a node: the value of `<prefix>/subnets/<subnet>`.

use std::net::{Ipv4Addr, Ipv6Addr};

use cni::json::Json;
use netlink::Mac;
use serde::{Deserialize, Serialize};

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address in the underlay.
    pub public_ip: Option<Ipv4Addr>,
    /// Its IPv6 address in the underlay.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`; a node with another backend cannot be reached by one with this.
    pub backend_type: String,
    /// Its device for IPv4.
    pub v4: Option<Backing>,
    /// Its device for IPv6.
    pub v6: Option<Backing>,
    /// Which podwired wrote it; `None` for flanneld. flanneld ignores the key.
    pub owner: Option<String>,
}

/// The VXLAN device of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The VNI that the node uses.
    pub vni: u32,
    /// The MAC of the device.
    pub mac: Mac,
}

/// In the order and with the names of flanneld, whose null for "no address" is kept, too.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Option<String>,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<String>,
    #[serde(rename = "BackendType")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<WrittenBacking>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<WrittenBacking>,
    #[serde(rename = "PodwireOwner", skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
}

#[derive(Serialize)]
struct WrittenBacking {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(rename = "PublicIP")]
    public_ip: String,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: String,
    #[serde(rename = "BackendType")]
    backend_type: String,
    #[serde(rename = "BackendData")]
    backend_data: Option<BackingKeys>,
    #[serde(rename = "BackendV6Data")]
    backend_v6_data: Option<BackingKeys>,
    #[serde(rename = "PodwireOwner")]
    owner: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BackingKeys {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: String,
}

impl Lease {
    /// Reads the value of a lease. Keys match in any case, and others are ignored.
    ///
    /// # Errors
    /// What of it cannot be read, with the key.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let json = Json::parse(text).map_err(|error| error.to_string())?;
        let keys: Keys = json.decode().map_err(|error| error.to_string())?;
        let is_vxlan = keys.backend_type == "vxlan";
        // The data of another backend has other keys.
        let backing = |key: &str, data: Option<BackingKeys>| match data {
            Some(data) if is_vxlan && !data.mac.is_empty() => backing(key, &data).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            public_ip: address("PublicIP", &keys.public_ip)?,
            public_ipv6: address("PublicIPv6", &keys.public_ipv6)?,
            v4: backing("BackendData", keys.backend_data)?,
            v6: backing("BackendV6Data", keys.backend_v6_data)?,
            backend_type: keys.backend_type,
            owner: keys.owner,
        })
    }

    /// The value, as flanneld writes it.
    pub fn to_json(&self) -> String {
        let backing = |it: Backing| WrittenBacking {
            vni: it.vni,
            mac: it.mac.to_string(),
        };
        let written = Written {
            public_ip: self.public_ip.map(|it| it.to_string()),
            public_ipv6: self.public_ipv6.map(|it| it.to_string()),
            backend_type: &self.backend_type,
            backend_data: self.v4.map(backing),
            backend_v6_data: self.v6.map(backing),
            owner: self.owner.as_deref(),
        };
        // Texts and numbers only: it cannot fail.
        serde_json::to_string(&written).unwrap_or_default()
    }
}

fn backing(key: &str, keys: &BackingKeys) -> Result<Backing, String> {
    let mac = keys.mac.to_ascii_lowercase().parse::<Mac>();
    let mac = mac.map_err(|error| format!("{key}.VtepMAC: {:?}: {error}", keys.mac))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(format!(
            "{key}.VtepMAC: {mac} is no address of an interface"
        ));
    }
    Ok(Backing { vni: keys.vni, mac })
}

/// An empty text stands for no address.
fn address<A: std::str::FromStr>(key: &str, text: &str) -> Result<Option<A>, String>
where
    A::Err: std::fmt::Display,
{
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map(Some);
    parsed.map_err(|error| format!("{key}: {text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = r#"{"PublicIP":"192.168.77.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:9f:00:00:00:01"}}"#;
    const BOTH: &str = r#"{"PublicIP":"192.168.77.11","PublicIPv6":"fd77::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:9f:00:00:00:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"be:9f:00:00:00:02"}}"#;

    #[test]
    fn values_are_flannels_to_the_letter() {
        for text in [V4, BOTH] {
            assert_eq!(Lease::parse(text.as_bytes()).unwrap().to_json(), text);
        }
    }

    #[test]
    fn unknown_keys_and_upper_case_are_accepted() {
        let text = V4
            .replace("be:9f", "BE:9F")
            .replace("\"VNI\":1", "\"VNI\":1,\"X\":{}");
        let lease = Lease::parse(text.as_bytes()).unwrap();
        assert_eq!(lease.v4.unwrap().mac.to_string(), "be:9f:00:00:00:01");
    }

    #[test]
    fn another_backend_is_no_fault_and_a_wrong_mac_is() {
        let text =
            r#"{"PublicIP":"192.0.2.1","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}"#;
        let lease = Lease::parse(text.as_bytes()).unwrap();
        assert_eq!((lease.backend_type.as_str(), lease.v4), ("wireguard", None));
        for (from, to) in [
            ("be:9f:00:00:00:01", "be:9f"),
            ("be:9f", "01:00"),
            ("192.168.77.11", "x"),
        ] {
            let text = V4.replace(from, to);
            assert!(Lease::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
