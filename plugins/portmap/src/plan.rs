//! From keys and the result so far to what is to be published, without touching anything.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::address::parse_ip;
use cni::result::{AddResult, IpConfig};
use cni::{Attachment, Code, Error};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use packet_filter::{HostPorts, Kind, Mapping, Mark, Protocol, Snat};

use crate::conf::{Conf, PortMapping};
use crate::reserved::ReservedPorts;

/// The bit that the Go plugin marks with, and Kubernetes does not use.
const DEFAULT_BIT: u8 = 13;

/// A configuration in which nothing contradicts anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The back end that the configuration forces, by name or by what only one understands.
    pub backend: Option<Kind>,
    /// In the order of the configuration; empty: there is nothing to do.
    pub mappings: Vec<Mapping>,
    snat: Snat,
    mark: Mark,
    conditions_v4: Vec<String>,
    conditions_v6: Vec<String>,
    reserved: Vec<ReservedPorts>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// Code 7, with the key and its value, in the Go plugin's words where it has any.
    pub fn new(conf: &Conf) -> Result<Self, Error> {
        Ok(Self {
            backend: backend(conf)?,
            mappings: mappings(&conf.runtime_config.port_mappings)?,
            snat: match (conf.snat.unwrap_or(true), conf.masq_all) {
                (false, _) => Snat::Off,
                (true, false) => Snat::Hairpin,
                (true, true) => Snat::All,
            },
            mark: mark(conf)?,
            conditions_v4: conf.conditions_v4.clone().unwrap_or_default(),
            conditions_v6: conf.conditions_v6.clone().unwrap_or_default(),
            reserved: conf.reserved_ports.clone().unwrap_or_default(),
        })
    }

    /// Refuses what a new pod may not have: the operator keeps it, or it could not be
    /// reached. Not asked for a pod that runs: it was added before the operator said so.
    ///
    /// # Errors
    /// Code 7, with the mapping and the reason.
    pub fn admit(&self) -> Result<(), Error> {
        for mapping in &self.mappings {
            let (port, protocol) = (mapping.host_port, mapping.protocol);
            if self.reserved.iter().any(|it| it.has(mapping)) {
                return Err(invalid(format!(
                    "host port {port}/{protocol} is kept for the node (reservedPorts)"
                )));
            }
            if let Some(reason) = mapping.host_ip.and_then(|ip| unreachable(ip, self.snat)) {
                return Err(invalid(format!("host port {port}/{protocol}: {reason}")));
            }
        }
        Ok(())
    }

    /// What is to be published for the pod whose result so far is `previous`.
    pub fn host_ports(&self, owner: &Attachment, previous: &AddResult) -> HostPorts {
        let networks: Vec<_> = pod_addresses(owner, previous).collect();
        HostPorts {
            owner: owner.clone(),
            pod_v4: networks.iter().find_map(v4),
            pod_v6: networks.iter().find_map(v6),
            mappings: self.mappings.clone(),
            snat: self.snat,
            mark: self.mark.clone(),
            conditions_v4: self.conditions_v4.clone(),
            conditions_v6: self.conditions_v6.clone(),
        }
    }

    /// Whether connections from 127.0.0.1 are to reach an IPv4 pod.
    pub fn opens_to_localhost(&self) -> bool {
        self.snat != Snat::Off && self.mappings.iter().any(|mapping| mapping.applies_to(true))
    }
}

/// Why nothing that is sent to `host_ip` could reach a pod.
pub fn unreachable(host_ip: IpAddr, snat: Snat) -> Option<String> {
    if !host_ip.is_loopback() {
        return None;
    }
    // A packet from the node's loopback leaves for a pod only with route_localnet and another
    // source.
    let reason = match (host_ip, snat) {
        (IpAddr::V6(_), _) => "IPv6 has no route_localnet",
        (IpAddr::V4(_), Snat::Off) => "snat is false",
        _ => return None,
    };
    Some(format!("hostIP {host_ip} leads to no pod: {reason}"))
}

fn v4(network: &IpNetwork) -> Option<Ipv4Network> {
    match network {
        IpNetwork::V4(v4) => Some(*v4),
        IpNetwork::V6(_) => None,
    }
}

fn v6(network: &IpNetwork) -> Option<Ipv6Network> {
    match network {
        IpNetwork::V6(v6) => Some(*v6),
        IpNetwork::V4(_) => None,
    }
}

/// The addresses that are the container's: without an interface, or of the one
/// that is attached. A result may also have those of host interfaces.
fn pod_addresses(owner: &Attachment, previous: &AddResult) -> impl Iterator<Item = IpNetwork> {
    let of_container = move |ip: &&IpConfig| {
        let interface = ip
            .interface
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| previous.interfaces.get(index));
        interface.is_none_or(|it| it.name == owner.ifname.as_str() && !it.sandbox.is_empty())
    };
    previous
        .ips
        .iter()
        .filter(of_container)
        .map(|ip| ip.address.0)
}

fn invalid(msg: impl Into<String>) -> Error {
    Code::InvalidConfig.err(msg)
}

/// Which back end a key can be for, besides the one that is named.
fn backend(conf: &Conf) -> Result<Option<Kind>, Error> {
    let named = conf.backend.as_deref().filter(|text| !text.is_empty());
    let named = named
        .map(|text| {
            Kind::parse(text).ok_or_else(|| invalid(format!("unrecognized backend {text:?}")))
        })
        .transpose()?;
    let mut iptables = Vec::new();
    let mut nftables = Vec::new();
    if conf.external_set_mark_chain.is_some() {
        iptables.push("externalSetMarkChain");
    }
    for (key, words) in [
        ("conditionsV4", &conf.conditions_v4),
        ("conditionsV6", &conf.conditions_v6),
    ] {
        match words.as_deref().and_then(language) {
            Some(Kind::Iptables) => iptables.push(key),
            Some(Kind::Nftables) => nftables.push(key),
            None => {}
        }
    }
    let contradiction = |asked: Kind, other: Kind, keys: &[&str]| {
        invalid(format!(
            "{asked} backend was requested but configuration contains {other}-specific options [{}]",
            keys.join(" ")
        ))
    };
    match (named, iptables.is_empty(), nftables.is_empty()) {
        (Some(Kind::Nftables), false, _) => {
            Err(contradiction(Kind::Nftables, Kind::Iptables, &iptables))
        }
        (Some(Kind::Iptables), _, false) => {
            Err(contradiction(Kind::Iptables, Kind::Nftables, &nftables))
        }
        (None, false, false) => Err(invalid(format!(
            "configuration contains both iptables-specific options [{}] and nftables-specific options [{}]",
            iptables.join(" "),
            nftables.join(" ")
        ))),
        (None, false, true) => Ok(Some(Kind::Iptables)),
        (None, true, false) => Ok(Some(Kind::Nftables)),
        (named, ..) => Ok(named),
    }
}

/// Conditions of iptables start with an option or a negation, nftables has neither.
fn language(words: &[String]) -> Option<Kind> {
    let first = words.first()?;
    Some(match first.starts_with(['-', '!']) {
        true => Kind::Iptables,
        false => Kind::Nftables,
    })
}

fn mark(conf: &Conf) -> Result<Mark, Error> {
    match (&conf.external_set_mark_chain, conf.mark_masq_bit) {
        (Some(chain), Some(bit)) => Err(invalid(
            "Cannot specify externalSetMarkChain and markMasqBit",
        )
        .details(format!(
            "externalSetMarkChain is {chain:?}, markMasqBit is {bit}"
        ))),
        (Some(chain), None) => Ok(Mark::ExternalChain(chain_name(chain)?)),
        (None, None) => Ok(Mark::Bit(DEFAULT_BIT)),
        (None, Some(bit)) => u8::try_from(bit)
            .ok()
            .filter(|bit| *bit < 32)
            .map(Mark::Bit)
            .ok_or_else(|| {
                invalid("MasqMarkBit must be between 0 and 31")
                    .details(format!("markMasqBit is {bit}"))
            }),
    }
}

/// A chain's name becomes a word of a rule: nothing else may come with it.
fn chain_name(name: &str) -> Result<String, Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 28 || name.starts_with('-') || !name.bytes().all(plain) {
        return Err(invalid(format!(
            "externalSetMarkChain {name:?} is no name of an iptables chain"
        )));
    }
    Ok(name.to_owned())
}

fn mappings(entries: &[PortMapping]) -> Result<Vec<Mapping>, Error> {
    let mut taken = HashSet::new();
    let mut mappings = Vec::new();
    for entry in entries {
        let mapping = mapping(entry)?;
        for address in addresses(&mapping) {
            if !taken.insert((address, mapping.protocol, mapping.host_port)) {
                return Err(duplicate(&mapping));
            }
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

/// The addresses whose port is mapped. All addresses of a family are one: the
/// port of a single address may well lead elsewhere.
fn addresses(mapping: &Mapping) -> Vec<IpAddr> {
    let all = || vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    mapping.host_ip.map_or_else(all, |ip| vec![ip])
}

fn duplicate(mapping: &Mapping) -> Error {
    let of = mapping.host_ip.map(|ip| format!(" of hostIP {ip}"));
    invalid(format!(
        "duplicate mapping in portMappings: hostPort {}/{}{}",
        mapping.host_port,
        mapping.protocol,
        of.unwrap_or_default()
    ))
}

fn mapping(entry: &PortMapping) -> Result<Mapping, Error> {
    Ok(Mapping {
        host_ip: host_ip(&entry.host_ip)?,
        // The Go plugin looks at this one first.
        container_port: port("container", entry.container_port)?,
        host_port: port("host", entry.host_port)?,
        protocol: protocol(&entry.protocol)?,
    })
}

fn host_ip(text: &str) -> Result<Option<IpAddr>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_ip(text)
        .map(Some)
        .map_err(|error| invalid(format!("hostIP: {error}")))
}

fn port(whose: &str, number: i64) -> Result<u16, Error> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| invalid(format!("Invalid {whose} port number: {number}")))
}

fn protocol(text: &str) -> Result<Protocol, Error> {
    Protocol::parse(text).ok_or_else(|| {
        invalid(format!(
            "invalid protocol {text:?}: must be tcp, udp or sctp"
        ))
    })
}

#[cfg(test)]
mod tests;
