//! From keys and the result so far to what is to be published, without touching anything.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::address::parse_ip;
use cni::faults::{Checks, Fault, Faults};
use cni::result::{AddResult, IpConfig};
use cni::{Attachment, Code};
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
    /// Code 7, each fault with its key, in the Go plugin's words where it has any.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let backend = checks.take(backend(conf));
        let mappings = mappings(&conf.runtime_config.port_mappings, &mut checks);
        let mark = checks.take(mark(conf));
        checks.finish(|| {
            Some(Self {
                backend: backend?,
                mappings,
                snat: match (conf.snat.unwrap_or(true), conf.masq_all) {
                    (false, _) => Snat::Off,
                    (true, false) => Snat::Hairpin,
                    (true, true) => Snat::All,
                },
                mark: mark?,
                conditions_v4: conf.conditions_v4.clone().unwrap_or_default(),
                conditions_v6: conf.conditions_v6.clone().unwrap_or_default(),
                reserved: conf.reserved_ports.clone().unwrap_or_default(),
            })
        })
    }

    /// Refuses mappings that a new pod may not have: their host port is reserved, or no
    /// packet could reach them. A pod that runs was added before the operator reserved it.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn admit(&self) -> Result<(), Faults> {
        let mut checks = Checks::default();
        for (index, mapping) in self.mappings.iter().enumerate() {
            let (port, protocol) = (mapping.host_port, mapping.protocol);
            if self.reserved.iter().any(|it| it.has(mapping)) {
                let msg =
                    format!("host port {port}/{protocol} is kept for the node (reservedPorts)");
                checks.add(Fault::new(key(index, "hostPort"), msg));
            }
            if let Some(reason) = mapping.host_ip.and_then(|ip| unreachable(ip, self.snat)) {
                let msg = format!("host port {port}/{protocol}: {reason}");
                checks.add(Fault::new(key(index, "hostIP"), msg));
            }
        }
        checks.finish(|| Some(()))
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
fn unreachable(host_ip: IpAddr, snat: Snat) -> Option<String> {
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

/// The key of a member of a mapping.
fn key(index: usize, member: &str) -> String {
    format!("runtimeConfig.portMappings[{index}].{member}")
}

/// The back end that the configuration names, or the one that its keys are for.
fn backend(conf: &Conf) -> Result<Option<Kind>, Fault> {
    let named = conf.backend.as_deref().filter(|text| !text.is_empty());
    let named = named
        .map(|text| {
            let unknown = || Fault::new("backend", format!("unrecognized backend {text:?}"));
            Kind::parse(text).ok_or_else(unknown)
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
    let (iptables, nftables) = (iptables.join(" "), nftables.join(" "));
    let (other, keys) = match named {
        None if !iptables.is_empty() && !nftables.is_empty() => {
            let msg = format!(
                "configuration contains both iptables-specific options [{iptables}] and nftables-specific options [{nftables}]"
            );
            return Err(Fault::new("", msg));
        }
        None if !iptables.is_empty() => return Ok(Some(Kind::Iptables)),
        None if !nftables.is_empty() => return Ok(Some(Kind::Nftables)),
        None => return Ok(None),
        Some(Kind::Nftables) => (Kind::Iptables, iptables),
        Some(Kind::Iptables) => (Kind::Nftables, nftables),
    };
    match named {
        Some(named) if !keys.is_empty() => Err(Fault::new(
            "backend",
            format!(
                "{named} backend was requested but configuration contains {other}-specific options [{keys}]"
            ),
        )),
        named => Ok(named),
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

fn mark(conf: &Conf) -> Result<Mark, Fault> {
    let fault =
        |key, msg: String, details| Fault::at(key, Code::InvalidConfig.err(msg).details(details));
    match (&conf.external_set_mark_chain, conf.mark_masq_bit) {
        (Some(chain), Some(bit)) => Err(fault(
            "markMasqBit",
            "Cannot specify externalSetMarkChain and markMasqBit".to_owned(),
            format!("externalSetMarkChain is {chain:?}, markMasqBit is {bit}"),
        )),
        (Some(chain), None) if is_chain_name(chain) => Ok(Mark::ExternalChain(chain.clone())),
        (Some(chain), None) => Err(Fault::new(
            "externalSetMarkChain",
            format!("externalSetMarkChain {chain:?} is no name of an iptables chain"),
        )),
        (None, None) => Ok(Mark::Bit(DEFAULT_BIT)),
        (None, Some(bit)) => {
            let known = u8::try_from(bit).ok().filter(|bit| *bit < 32);
            known.map(Mark::Bit).ok_or_else(|| {
                let msg = "MasqMarkBit must be between 0 and 31".to_owned();
                fault("markMasqBit", msg, format!("markMasqBit is {bit}"))
            })
        }
    }
}

/// The name becomes a word of a rule, so it must be one word, of at most 28 bytes
/// (`XT_EXTENSION_MAXNAMELEN`).
fn is_chain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=28).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(plain)
}

fn mappings(entries: &[PortMapping], checks: &mut Checks) -> Vec<Mapping> {
    let mut taken = HashSet::new();
    let mut mappings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(mapping) = checks.take(mapping(index, entry)) else {
            continue;
        };
        let target = |address| (address, mapping.protocol, mapping.host_port);
        if !addresses(&mapping)
            .into_iter()
            .all(|address| taken.insert(target(address)))
        {
            checks.add(duplicate(index, &mapping));
        }
        mappings.push(mapping);
    }
    mappings
}

/// The addresses whose port is mapped. All addresses of a family are one: the
/// port of a single address may well lead elsewhere.
fn addresses(mapping: &Mapping) -> Vec<IpAddr> {
    let all = || vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    mapping.host_ip.map_or_else(all, |ip| vec![ip])
}

fn duplicate(index: usize, mapping: &Mapping) -> Fault {
    let (port, protocol) = (mapping.host_port, mapping.protocol);
    let of = mapping.host_ip.map(|ip| format!(" of hostIP {ip}"));
    let of = of.unwrap_or_default();
    let msg = format!("duplicate mapping in portMappings: hostPort {port}/{protocol}{of}");
    Fault::new(key(index, "hostPort"), msg)
}

fn mapping(index: usize, entry: &PortMapping) -> Result<Mapping, Faults> {
    let fault = |member, msg: String| Fault::new(key(index, member), msg);
    let mut checks = Checks::default();
    let host_ip = Some(entry.host_ip.as_str()).filter(|text| !text.is_empty());
    let host_ip = host_ip.map(parse_ip).transpose();
    let host_ip = host_ip.map_err(|error| fault("hostIP", format!("hostIP: {error}")));
    let host_ip = checks.take(host_ip);
    let mut port = |member, whose, number: i64| {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        let msg = || format!("Invalid {whose} port number: {number}");
        checks.take(port.ok_or_else(|| fault(member, msg())))
    };
    // The Go plugin looks at this one first.
    let container_port = port("containerPort", "container", entry.container_port);
    let host_port = port("hostPort", "host", entry.host_port);
    let protocol = Protocol::parse(&entry.protocol).ok_or_else(|| {
        let text = &entry.protocol;
        let msg = format!("invalid protocol {text:?}: must be tcp, udp or sctp");
        fault("protocol", msg)
    });
    let protocol = checks.take(protocol);
    checks.finish(|| {
        Some(Mapping {
            host_ip: host_ip?,
            container_port: container_port?,
            host_port: host_port?,
            protocol: protocol?,
        })
    })
}

#[cfg(test)]
mod tests;
