//! Decides from keys and the previous result what to publish. Pure: no system calls.

use std::collections::HashSet;

use cni::address::parse_ip;
use cni::faults::{Checks, Fault, Faults};
use cni::{AddResult, Attachment, Code};
use ipnetwork::IpNetwork;
use packet_filter::node::Wanted;
use packet_filter::{HostPorts, Kind, Mapping, Mark, Protocol, ReservedPorts, Snat};

use crate::conf::{Conf, PortMapping};

/// The bit that the Go plugin marks with. Kubernetes does not use it.
const DEFAULT_BIT: u8 = 13;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The back end that the configuration names, or that its keys need.
    pub backend: Option<Kind>,
    mappings: Vec<Mapping>,
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
    /// Code 7, each fault with its key, with the Go plugin's text if it has one.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let backend = checks.take(backend(conf));
        let mappings = mappings(&conf.runtime_config.port_mappings, &mut checks);
        let mark = checks.take(mark(conf));
        checks.finish(|| {
            Some(Self {
                backend: backend?,
                mappings,
                snat: match conf.snat {
                    Some(false) => Snat::Off,
                    _ if conf.masq_all => Snat::All,
                    _ => Snat::Hairpin,
                },
                mark: mark?,
                conditions_v4: conf.conditions_v4.clone(),
                conditions_v6: conf.conditions_v6.clone(),
                reserved: conf.reserved_ports.clone(),
            })
        })
    }

    /// ADD: refuses host ports that are reserved, and host addresses from which no packet reaches
    /// a pod. CHECK does not: a running pod may be older than the reservation.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn admit(&self) -> Result<(), Faults> {
        let mut checks = Checks::default();
        for (index, mapping) in self.mappings.iter().enumerate() {
            let port = format!("host port {}/{}", mapping.host_port, mapping.protocol);
            if self.reserved.iter().any(|it| it.has(mapping)) {
                let msg = format!("{port} is reserved for the node (reservedPorts)");
                checks.add(Fault::new(key(index, "hostPort"), msg));
            }
            if let Some(reason) = mapping.unreachable(self.snat) {
                checks.add(Fault::new(
                    key(index, "hostIP"),
                    format!("{port}: {reason}"),
                ));
            }
        }
        checks.finish(|| Some(()))
    }

    /// What the attachment `owner` wants of the packet filter; `None` without mappings. `result`
    /// is that of the plugin before this one, or that of the whole chain.
    pub fn wanted(&self, owner: &Attachment, result: &AddResult) -> Option<Wanted<HostPorts>> {
        (!self.mappings.is_empty()).then(|| Wanted {
            rules: self.host_ports(owner, result),
            backend: self.backend,
        })
    }

    /// The same, also without mappings.
    pub fn host_ports(&self, owner: &Attachment, result: &AddResult) -> HostPorts {
        let (mut pod_v4, mut pod_v6) = (None, None);
        for ip in result.ips_of(owner.ifname.as_str()) {
            match ip.address.0 {
                IpNetwork::V4(address) => _ = pod_v4.get_or_insert(address),
                IpNetwork::V6(address) => _ = pod_v6.get_or_insert(address),
            }
        }
        HostPorts {
            owner: owner.clone(),
            pod_v4,
            pod_v6,
            mappings: self.mappings.clone(),
            snat: self.snat,
            mark: self.mark.clone(),
            conditions_v4: self.conditions_v4.clone(),
            conditions_v6: self.conditions_v6.clone(),
        }
    }
}

/// The key of a member of a mapping.
fn key(index: usize, member: &str) -> String {
    format!("runtimeConfig.portMappings[{index}].{member}")
}

/// The back end that the configuration names, or the one that its keys are for.
fn backend(conf: &Conf) -> Result<Option<Kind>, Fault> {
    let name = conf.backend.as_deref().unwrap_or_default();
    let named = Kind::parse(name);
    if named.is_none() && !name.is_empty() {
        let msg = format!("unrecognized backend {name:?}");
        return Err(Fault::new("backend", msg));
    }
    let chain = conf.external_set_mark_chain.as_ref();
    let keys = [
        ("externalSetMarkChain", chain.map(|_| Kind::Iptables)),
        ("conditionsV4", Kind::of_conditions(&conf.conditions_v4)),
        ("conditionsV6", Kind::of_conditions(&conf.conditions_v6)),
    ];
    let options_of = |kind| {
        let keys = keys.iter().filter(|(_, of)| *of == Some(kind));
        let keys: Vec<_> = keys.map(|(key, _)| *key).collect();
        (!keys.is_empty()).then(|| format!("{kind}-specific options [{}]", keys.join(" ")))
    };
    let (iptables, nftables) = (options_of(Kind::Iptables), options_of(Kind::Nftables));
    match (named, iptables, nftables) {
        (Some(Kind::Nftables), Some(other), _) | (Some(Kind::Iptables), _, Some(other)) => {
            let msg = format!("{name} backend was requested but configuration contains {other}");
            Err(Fault::new("backend", msg))
        }
        (None, Some(iptables), Some(nftables)) => {
            let msg = format!("configuration contains both {iptables} and {nftables}");
            Err(Fault::new("", msg))
        }
        (None, Some(_), None) => Ok(Some(Kind::Iptables)),
        (None, None, Some(_)) => Ok(Some(Kind::Nftables)),
        (named, ..) => Ok(named),
    }
}

fn mark(conf: &Conf) -> Result<Mark, Fault> {
    let (msg, details) = match (&conf.external_set_mark_chain, conf.mark_masq_bit) {
        (None, None) => return Ok(Mark::Bit(DEFAULT_BIT)),
        (Some(chain), None) => {
            return Mark::external_chain(chain).ok_or_else(|| {
                let msg = format!("externalSetMarkChain {chain:?} is no name of an iptables chain");
                Fault::new("externalSetMarkChain", msg)
            });
        }
        (None, Some(bit)) => match u8::try_from(bit) {
            Ok(bit @ 0..=31) => return Ok(Mark::Bit(bit)),
            _ => (
                "MasqMarkBit must be between 0 and 31",
                format!("markMasqBit is {bit}"),
            ),
        },
        (Some(chain), Some(bit)) => (
            "Cannot specify externalSetMarkChain and markMasqBit",
            format!("externalSetMarkChain is {chain:?}, markMasqBit is {bit}"),
        ),
    };
    let error = Code::InvalidConfig.err(msg).details(details);
    Err(Fault::at("markMasqBit", error))
}

fn mappings(entries: &[PortMapping], checks: &mut Checks) -> Vec<Mapping> {
    let mut used = HashSet::new();
    let mut mappings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(mapping) = checks.take(mapping(index, entry)) else {
            continue;
        };
        let (port, protocol) = (mapping.host_port, mapping.protocol);
        // The port of a single address may lead elsewhere than that of all addresses.
        let mut host_ips = mapping.host_ips().into_iter();
        if !host_ips.all(|ip| used.insert((ip, protocol, port))) {
            let mut msg = format!("duplicate mapping in portMappings: hostPort {port}/{protocol}");
            if let Some(ip) = mapping.host_ip {
                msg += &format!(" of hostIP {ip}");
            }
            checks.add(Fault::new(key(index, "hostPort"), msg));
        }
        mappings.push(mapping);
    }
    mappings
}

fn mapping(index: usize, entry: &PortMapping) -> Result<Mapping, Faults> {
    let fault = |member, msg: String| Fault::new(key(index, member), msg);
    let mut checks = Checks::default();
    let host_ip = match entry.host_ip.as_str() {
        "" => None,
        text => {
            let ip = parse_ip(text);
            checks.take(ip.map_err(|error| fault("hostIP", format!("hostIP: {error}"))))
        }
    };
    let mut port = |member, whose, number: i64| {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        let msg = || format!("Invalid {whose} port number: {number}");
        checks.take(port.ok_or_else(|| fault(member, msg())))
    };
    // The Go plugin checks the container's port first.
    let container_port = port("containerPort", "container", entry.container_port);
    let host_port = port("hostPort", "host", entry.host_port);
    let protocol = checks.take(Protocol::parse(&entry.protocol).ok_or_else(|| {
        let text = &entry.protocol;
        let msg = format!("invalid protocol {text:?}: must be tcp, udp or sctp");
        fault("protocol", msg)
    }));
    checks.finish(|| {
        Some(Mapping {
            host_ip,
            container_port: container_port?,
            host_port: host_port?,
            protocol: protocol?,
        })
    })
}

#[cfg(test)]
mod tests;
