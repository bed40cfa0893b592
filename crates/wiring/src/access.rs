//! The keys that say who reaches a network's pods, and whom they reach: `gatewayModeIPv4`,
//! `gatewayModeIPv6`, `internal`, `icc`, and the ports that a runtime publishes.

use cni::Attachment;
use cni::faults::{Checks, Fault, Faults};
use cni::json::Json;
use cni::result::IpConfig;
use ipnetwork::IpNetwork;
use packet_filter::{Access, GatewayMode, OpenPorts, Protocol};
use serde::Deserialize;

use crate::mac::Requested;

/// `runtimeConfig` of a plugin whose node is the pods' gateway.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// The MAC of the pod's interface.
    pub mac: String,
    /// The pod's addresses, for the IPAM plugin.
    pub ips: Option<Json>,
    /// The published ports, which are opened in mode `routed`.
    #[serde(rename = "portMappings")]
    pub port_mappings: Vec<PortMapping>,
}

impl RuntimeConfig {
    /// What is requested for the interface.
    pub fn requested(&self) -> Requested {
        Requested {
            mac: self.mac.clone(),
            ips: self.ips.clone(),
        }
    }
}

/// One entry of `portMappings`. What it says of the node is for portmap: a port that is opened is
/// not translated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortMapping {
    /// Port of the node.
    pub host_port: i64,
    /// Address of the node.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
    /// Port of the pod.
    pub container_port: i64,
    /// `tcp`, `udp` or `sctp`, in any case.
    pub protocol: String,
}

/// The keys of a configuration, as they are written.
#[derive(Clone, Copy, Debug)]
pub struct AccessKeys<'a> {
    /// `gatewayModeIPv4`, `gatewayModeIPv6`
    pub modes: [Option<&'a str>; 2],
    /// `internal`
    pub internal: bool,
    /// `icc`
    pub icc: Option<bool>,
    /// `portIsolation`, where the plugin has it.
    pub port_isolation: bool,
    /// `isDefaultGateway`
    pub is_default_gateway: bool,
    /// `runtimeConfig.portMappings`
    pub port_mappings: &'a [PortMapping],
}

impl AccessKeys<'_> {
    /// Whether any restricts something, be it legal or not.
    pub fn restrict(&self) -> bool {
        self.internal || self.icc == Some(false) || self.modes.iter().any(Option::is_some)
    }
}

/// The keys of the modes.
const MODES: [&str; 2] = ["gatewayModeIPv4", "gatewayModeIPv6"];

/// Who reaches the pods, and whom they reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    /// The modes of IPv4 and IPv6; `None` if no key restricts anything.
    modes: Option<[GatewayMode; 2]>,
    /// Whether pods of the network do not reach each other (`icc` false).
    pub apart: bool,
    /// The published ports.
    ports: Vec<(Protocol, u16)>,
}

impl Reachability {
    /// Reads the keys.
    ///
    /// # Errors
    /// Code 7, each fault with its key: an unknown mode; keys that contradict each other; a port or
    /// protocol that is none.
    pub fn parse(keys: &AccessKeys<'_>) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let modes = [0, 1].map(|family| checks.take(mode(keys, family)));
        if keys.internal && keys.is_default_gateway {
            let msg =
                "internal: an internal network has no default route, but isDefaultGateway is true";
            checks.add(Fault::new("internal", msg));
        }
        if keys.icc == Some(true) && keys.port_isolation {
            let msg = "icc: true contradicts portIsolation";
            checks.add(Fault::new("icc", msg));
        }
        let ports = keys.port_mappings.iter().enumerate();
        let ports = ports.filter_map(|(index, it)| checks.take(port(index, it)));
        let ports = ports.collect();
        checks.finish(|| {
            let [v4, v6] = modes;
            let modes = [v4?, v6?];
            let is_restricted = modes.iter().any(Option::is_some);
            let modes = modes.map(|it| it.unwrap_or(GatewayMode::NatUnprotected));
            Some(Self {
                modes: is_restricted.then_some(modes),
                apart: keys.icc == Some(false),
                ports,
            })
        })
    }

    fn modes(&self) -> [GatewayMode; 2] {
        self.modes.unwrap_or([GatewayMode::NatUnprotected; 2])
    }

    /// Whether nf_tables is needed.
    pub fn needs_nftables(&self) -> bool {
        self.modes.is_some() || self.apart
    }

    /// Whether ports may be opened.
    pub fn is_routed(&self) -> bool {
        self.modes().contains(&GatewayMode::Routed)
    }

    /// Whether packets of IPv4 and IPv6 to other networks are masqueraded, if the configuration asks
    /// for it.
    pub fn masqueraded(&self) -> [bool; 2] {
        self.modes()
            .map(|it| matches!(it, GatewayMode::Nat | GatewayMode::NatUnprotected))
    }

    /// The families in which the network has no way out.
    pub fn closed(&self) -> [bool; 2] {
        self.modes()
            .map(|it| matches!(it, GatewayMode::Internal | GatewayMode::Isolated))
    }

    /// The families in which the node has an address in the network, if it is a gateway.
    pub fn has_gateway(&self) -> [bool; 2] {
        self.modes().map(|it| it != GatewayMode::Isolated)
    }

    /// The rules of the network with these devices; `None` if nothing is restricted. `apart`:
    /// whether nothing is forwarded between its pods.
    pub fn access(&self, network: &str, devices: Vec<String>, apart: bool) -> Option<Access> {
        (self.modes.is_some() || apart).then(|| Access {
            network: network.to_owned(),
            devices,
            modes: self.modes(),
            apart,
        })
    }

    /// The ports that are opened for a pod with the addresses `ips`; `None` if none are.
    pub fn open_ports(&self, owner: &Attachment, ips: &[IpConfig]) -> Option<OpenPorts> {
        let modes = self.modes();
        let is_routed = |ip: &IpNetwork| modes[usize::from(ip.is_ipv6())] == GatewayMode::Routed;
        let addresses = ips.iter().map(|it| it.address.0).filter(is_routed);
        let wanted = OpenPorts {
            owner: owner.clone(),
            addresses: addresses.map(|it| it.ip()).collect(),
            ports: self.ports.clone(),
        };
        (!wanted.addresses.is_empty() && !wanted.ports.is_empty()).then_some(wanted)
    }
}

/// The mode of a family; `None` without a key.
fn mode(keys: &AccessKeys<'_>, family: usize) -> Result<Option<GatewayMode>, Fault> {
    let key = MODES[family];
    let mode = match keys.modes[family].unwrap_or_default() {
        "" => None,
        "nat" => Some(GatewayMode::Nat),
        "nat-unprotected" => Some(GatewayMode::NatUnprotected),
        "routed" => Some(GatewayMode::Routed),
        "isolated" => Some(GatewayMode::Isolated),
        other => {
            let msg = format!(
                "{key}: {other:?} is none of \"nat\", \"nat-unprotected\", \"routed\", \"isolated\""
            );
            return Err(Fault::new(key, msg));
        }
    };
    match mode {
        Some(mode) if keys.internal && mode != GatewayMode::Isolated => {
            let text = keys.modes[family].unwrap_or_default();
            let msg = format!("{key}: {text:?} leads out of the network, which internal forbids");
            Err(Fault::new(key, msg))
        }
        None if keys.internal => Ok(Some(GatewayMode::Internal)),
        mode => Ok(mode),
    }
}

fn port(index: usize, mapping: &PortMapping) -> Result<(Protocol, u16), Fault> {
    let key = |member| format!("runtimeConfig.portMappings[{index}].{member}");
    let port = u16::try_from(mapping.container_port).ok();
    let port = port.filter(|it| *it != 0).ok_or_else(|| {
        let msg = format!("Invalid container port number: {}", mapping.container_port);
        Fault::new(key("containerPort"), msg)
    })?;
    let protocol = Protocol::parse(&mapping.protocol).ok_or_else(|| {
        let text = &mapping.protocol;
        let msg = format!("invalid protocol {text:?}: must be tcp, udp or sctp");
        Fault::new(key("protocol"), msg)
    })?;
    Ok((protocol, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: AccessKeys<'_> = AccessKeys {
        modes: [None; 2],
        internal: false,
        icc: None,
        port_isolation: false,
        is_default_gateway: false,
        port_mappings: &[],
    };

    #[test]
    fn without_keys_nothing_is_restricted() {
        let open = Reachability::parse(&NONE).unwrap();
        assert!(!open.needs_nftables());
        assert_eq!(open.access("mynet", vec!["cni0".into()], false), None);
        assert_eq!((open.masqueraded(), open.closed()), ([true; 2], [false; 2]));
    }

    #[test]
    fn each_family_has_its_mode() {
        let keys = AccessKeys {
            modes: [Some("nat"), Some("routed")],
            ..NONE
        };
        let parsed = Reachability::parse(&keys).unwrap();
        assert_eq!(parsed.modes(), [GatewayMode::Nat, GatewayMode::Routed]);
        assert_eq!(parsed.masqueraded(), [true, false]);
        let internal = AccessKeys {
            modes: [None, Some("isolated")],
            internal: true,
            ..NONE
        };
        let parsed = Reachability::parse(&internal).unwrap();
        assert_eq!(
            parsed.modes(),
            [GatewayMode::Internal, GatewayMode::Isolated]
        );
        assert_eq!(
            (parsed.closed(), parsed.has_gateway()),
            ([true; 2], [true, false])
        );
    }

    #[test]
    fn every_fault_has_its_key() {
        let mapping = |container_port, protocol: &str| PortMapping {
            container_port,
            protocol: protocol.into(),
            ..PortMapping::default()
        };
        let keys = AccessKeys {
            modes: [Some("bridged"), Some("nat")],
            internal: true,
            icc: Some(true),
            port_isolation: true,
            is_default_gateway: true,
            port_mappings: &[mapping(80, "TCP"), mapping(0, "tcp"), mapping(1, "icmp")],
        };
        let faults = Reachability::parse(&keys).unwrap_err();
        let keys: Vec<_> = faults.into_iter().map(|it| it.key).collect();
        let expected = [
            "gatewayModeIPv4",
            "gatewayModeIPv6",
            "internal",
            "icc",
            "runtimeConfig.portMappings[1].containerPort",
            "runtimeConfig.portMappings[2].protocol",
        ];
        assert_eq!(keys, expected);
    }
}
