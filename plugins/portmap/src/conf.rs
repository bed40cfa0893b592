//! The keys of portmap.

use packet_filter::ReservedPorts;
use serde::Deserialize;

/// The plugin's own keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {
    /// `nftables` or `iptables`; absent: nftables if the kernel has it.
    pub backend: Option<String>,
    /// Masquerade the pod's connections to its own ports, and those from 127.0.0.1.
    pub snat: Option<bool>,
    /// Masquerade all connections to its ports.
    pub masq_all: bool,
    /// The bit of the packet mark that iptables uses, 0 to 31.
    pub mark_masq_bit: Option<i64>,
    /// Another program's iptables chain that marks packets for masquerade.
    pub external_set_mark_chain: Option<String>,
    /// Conditions for IPv4 packets in the back end's syntax, one word each.
    #[serde(rename = "conditionsV4")]
    pub conditions_v4: Vec<String>,
    /// The same for IPv6 packets.
    #[serde(rename = "conditionsV6")]
    pub conditions_v6: Vec<String>,
    /// Host ports that pods must not have.
    pub reserved_ports: Vec<ReservedPorts>,
    /// What the runtime requests for this pod.
    pub runtime_config: RuntimeConfig,
}

/// `runtimeConfig`, where libcni passes the declared capabilities.
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
        assert_eq!(conf.reserved_ports, expected);
        for wrong in ["[true]", "[0]", r#"["ssh"]"#, "22", "[1.5]"] {
            let conf = format!(r#"{{"reservedPorts": {wrong}}}"#);
            assert!(decode(&conf).is_err(), "{wrong}");
        }
    }
}
