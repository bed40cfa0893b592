//! The keys that restrict access to and from a network's pods: `gatewayModeIPv4`,
//! `gatewayModeIPv6`, `internal`, `icc`, `links`, and the ports that a runtime publishes.

use std::net::IpAddr;

use cni::Attachment;
use cni::env::{ContainerId, IfName};
use cni::faults::{Checks, Fault, Faults};
use cni::json::Json;
use cni::result::IpConfig;
use ipnetwork::IpNetwork;
use packet_filter::{Access, GatewayMode, Linked, Links, OpenPorts, Protocol};
use serde::Deserialize;

use crate::Gateway;
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
    /// The pods that this one reaches although `icc` is false.
    pub links: Vec<LinkKeys>,
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

/// One entry of `portMappings`. Only portmap uses the port and the address of the node: an opened
/// port is not translated.
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

/// One entry of `links`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LinkKeys {
    /// The id of the pod that is reached.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface of its attachment to this network.
    #[serde(rename = "ifName", default = "first_interface")]
    pub ifname: String,
    /// Its addresses in this network.
    pub addresses: Vec<String>,
    /// Its ports that are reached, such as `80/tcp`.
    pub ports: Vec<String>,
}

fn first_interface() -> String {
    "eth0".to_owned()
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
    /// `links`, and `runtimeConfig.links`
    pub links: [&'a [LinkKeys]; 2],
}

impl AccessKeys<'_> {
    /// Whether any key restricts access, also with an invalid value.
    pub fn restrict(&self) -> bool {
        self.internal || self.icc == Some(false) || self.modes.iter().any(Option::is_some)
    }
}

/// The keys of the modes.
const MODES: [&str; 2] = ["gatewayModeIPv4", "gatewayModeIPv6"];

/// Access to and from the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    /// The modes of IPv4 and IPv6; `None` if no key restricts anything.
    modes: Option<[GatewayMode; 2]>,
    /// Whether pods of the network do not reach each other (`icc` false).
    pub isolates_pods: bool,
    /// The published ports.
    ports: Vec<(Protocol, u16)>,
    links: Vec<LinkTo>,
}

/// A pod of the same network that this one reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LinkTo {
    container_id: ContainerId,
    ifname: IfName,
    addresses: Vec<IpAddr>,
    ports: Vec<(Protocol, u16)>,
}

impl Reachability {
    /// Reads the keys.
    ///
    /// # Errors
    /// Code 7, each fault with its key: an unknown mode; keys that contradict each other; an invalid
    /// port or protocol.
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
        let ports = checks.each("runtimeConfig.portMappings", keys.port_mappings, port);
        let mut links = checks.each("links", keys.links[0], link);
        links.extend(checks.each("runtimeConfig.links", keys.links[1], link));
        checks.finish(|| {
            let [v4, v6] = modes;
            let modes = [v4?, v6?];
            let is_restricted = modes.iter().any(Option::is_some);
            let modes = modes.map(|it| it.unwrap_or(GatewayMode::NatUnprotected));
            Some(Self {
                modes: is_restricted.then_some(modes),
                isolates_pods: keys.icc == Some(false),
                ports,
                links,
            })
        })
    }

    fn modes(&self) -> [GatewayMode; 2] {
        self.modes.unwrap_or([GatewayMode::NatUnprotected; 2])
    }

    /// Whether nf_tables is needed.
    pub fn needs_nftables(&self) -> bool {
        self.modes.is_some() || self.isolates_pods
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

    /// Whether there are links, which lead through the node.
    pub fn has_links(&self) -> bool {
        self.isolates_pods && !self.links.is_empty()
    }

    /// Checks that the node is the pods' `gateway` if there are links, because they lead through it.
    ///
    /// # Errors
    /// Code 7: it is not.
    pub fn check_links(&self, gateway: Gateway) -> Result<(), Fault> {
        if self.has_links() && gateway == Gateway::None {
            let msg = "links: they lead through the node, which is no gateway of the network";
            return Err(Fault::new("links", msg));
        }
        Ok(())
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

    /// The rules of the network with these devices; `None` if nothing is restricted. `isolates_pods`:
    /// whether nothing is forwarded between its pods.
    pub fn access(
        &self,
        network: &str,
        devices: Vec<String>,
        isolates_pods: bool,
    ) -> Option<Access> {
        (self.modes.is_some() || isolates_pods).then(|| Access {
            network: network.to_owned(),
            devices,
            modes: self.modes(),
            isolates_pods,
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

    /// The links of a pod with the addresses `ips`; `None` if there are none, or if pods of the
    /// network reach each other anyway.
    pub fn links(&self, owner: &Attachment, ips: &[IpConfig]) -> Option<Links> {
        let to = self.links.iter().map(|it| Linked {
            owner: Attachment {
                network: owner.network.clone(),
                container_id: it.container_id.clone(),
                ifname: it.ifname.clone(),
            },
            addresses: it.addresses.clone(),
            ports: it.ports.clone(),
        });
        self.has_links().then(|| Links {
            owner: owner.clone(),
            addresses: ips.iter().map(|it| it.address.0.ip()).collect(),
            to: to.collect(),
        })
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

fn port(place: &str, mapping: &PortMapping) -> Result<(Protocol, u16), Fault> {
    let key = |member| format!("{place}.{member}");
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

/// One entry of `links`, which stands at `place`.
fn link(place: &str, keys: &LinkKeys) -> Result<LinkTo, Fault> {
    let fault = |member: &str, msg: String| {
        let key = format!("{place}.{member}");
        Fault::new(key.as_str(), format!("{key}: {msg}"))
    };
    let id = &keys.container_id;
    let container_id =
        ContainerId::parse(id).map_err(|error| fault("containerID", error.to_string()))?;
    let ifname = IfName::parse(&keys.ifname).map_err(|error| fault("ifName", error.to_string()))?;
    let address = |it: &String| {
        let no_address = |_| fault("addresses", format!("{it:?} is no IP address"));
        it.parse().map_err(no_address)
    };
    let addresses = keys.addresses.iter().map(address);
    let port = |it: &String| {
        let (number, protocol) = it.split_once('/').unwrap_or((it, "tcp"));
        let number = number.parse().ok().filter(|it| *it != 0);
        number
            .zip(Protocol::parse(protocol))
            .map(|(number, protocol)| (protocol, number))
            .ok_or_else(|| fault("ports", format!("{it:?} is no port, such as \"80/tcp\"")))
    };
    Ok(LinkTo {
        container_id,
        ifname,
        addresses: addresses.collect::<Result<_, _>>()?,
        ports: keys.ports.iter().map(port).collect::<Result<_, _>>()?,
    })
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
        links: [&[]; 2],
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
        let link = |id: &str, address: &str, port: &str| LinkKeys {
            container_id: id.into(),
            ifname: first_interface(),
            addresses: vec![address.into()],
            ports: vec![port.into()],
        };
        let keys = AccessKeys {
            modes: [Some("bridged"), Some("nat")],
            internal: true,
            icc: Some(true),
            port_isolation: true,
            is_default_gateway: true,
            port_mappings: &[mapping(80, "TCP"), mapping(0, "tcp"), mapping(1, "icmp")],
            links: [
                &[link("/", "10.1.0.2", "80")],
                &[link("a", "x", "80"), link("a", "::1", "0/udp")],
            ],
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
            "links[0].containerID",
            "runtimeConfig.links[0].addresses",
            "runtimeConfig.links[1].ports",
        ];
        assert_eq!(keys, expected);
    }
}
