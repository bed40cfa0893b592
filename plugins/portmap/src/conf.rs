//! The keys of portmap, as they are written.

use serde::Deserialize;

use crate::reserved::ReservedPorts;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// `nftables` or `iptables`; absent, the kernel's best.
    pub backend: Option<String>,
    /// Masquerade the pod's own connections to its ports, and those from 127.0.0.1.
    pub snat: Option<bool>,
    /// Masquerade all connections to its ports.
    pub masq_all: bool,
    /// The bit of the packet mark that iptables uses.
    pub mark_masq_bit: Option<i64>,
    /// Somebody else's chain that marks for masquerade (iptables).
    pub external_set_mark_chain: Option<String>,
    /// Conditions that IPv4 packets must fulfil, one word each.
    #[serde(rename = "conditionsV4")]
    pub conditions_v4: Option<Vec<String>>,
    /// Conditions that IPv6 packets must fulfil, one word each.
    #[serde(rename = "conditionsV6")]
    pub conditions_v6: Option<Vec<String>>,
    /// Host ports that no pod may have.
    pub reserved_ports: Option<Vec<ReservedPorts>>,
    /// What the runtime asks for this pod.
    pub runtime_config: RuntimeConfig,
}

/// `runtimeConfig`: what libcni passes of the capabilities that are declared.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RuntimeConfig {
    /// Capability `portMappings`.
    pub port_mappings: Vec<PortMapping>,
}

/// One entry of `portMappings`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortMapping {
    /// Port of the node.
    pub host_port: i64,
    /// Port of the pod.
    pub container_port: i64,
    /// `tcp`, `udp` or `sctp`, in any case.
    pub protocol: String,
    /// Address of the node; empty for all.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json::Json;

    #[test]
    fn mappings_are_read_as_containerd_sends_them() {
        let text = r#"{"runtimeConfig": {"portMappings": [
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]}}"#;
        let conf: Conf = Json::parse(text.as_bytes()).unwrap().decode().unwrap();
        let mapping = &conf.runtime_config.port_mappings[0];
        assert_eq!((mapping.host_port, mapping.container_port), (8080, 80));
        assert_eq!(mapping.protocol, "tcp");
    }

    #[test]
    fn reserved_ports_are_numbers_or_text() {
        let decode = |text: &str| Json::parse(text.as_bytes()).unwrap().decode::<Conf>();
        let conf = decode(r#"{"reservedPorts": [22, "10248-10259", "53/udp"]}"#).unwrap();
        let expected = ["22", "10248-10259", "53/udp"];
        let expected = expected.map(|it| ReservedPorts::parse(it).unwrap());
        assert_eq!(conf.reserved_ports.unwrap(), expected);
        for wrong in ["[true]", "[0]", r#"["ssh"]"#, "22", "[1.5]"] {
            let conf = format!(r#"{{"reservedPorts": {wrong}}}"#);
            assert!(decode(&conf).is_err(), "{wrong}");
        }
    }
}
