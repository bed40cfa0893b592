//! Decides from keys and the previous result what to publish. Pure: no system calls.

use std::collections::HashMap;

use cni::address::parse_ip;
use cni::faults::{Checks, Fault, Faults};
use cni::{AddResult, Attachment, Code};
use ipnetwork::IpNetwork;
use packet_filter::node::Wanted;
use packet_filter::{HostPorts, Kind, Mapping, Mark, Protocol, ReservedPorts, Snat};

use crate::conf::{Conf, PortMapping};

/// The bit that the Go plugin marks with. Kubernetes does not use it.
const DEFAULT_BIT: i64 = 13;

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
            })
        })
    }

    /// ADD: refuses host ports that are `reserved`, and host addresses from which no packet reaches
    /// a pod. CHECK does not: a running pod may be older than the reservation.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn admit(&self, reserved: &[ReservedPorts]) -> Result<(), Faults> {
        let mut checks = Checks::default();
        for (index, mapping) in self.mappings.iter().enumerate() {
            let port = mapping.published_port();
            if reserved.iter().any(|it| it.has(mapping)) {
                let msg = format!("host port {port} is reserved for the node (reservedPorts)");
                checks.add(Fault::new(key(index, "hostPort"), msg));
            }
            if let Some(reason) = mapping.unreachable(self.snat) {
                let msg = format!("host port {port}: {reason}");
                checks.add(Fault::new(key(index, "hostIP"), msg));
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
        let mut ports = HostPorts {
            owner: owner.clone(),
            pod_v4: None,
            pod_v6: None,
            mappings: self.mappings.clone(),
            snat: self.snat,
            mark: self.mark.clone(),
            conditions_v4: self.conditions_v4.clone(),
            conditions_v6: self.conditions_v6.clone(),
        };
        for ip in result.ips_of(owner.ifname.as_str()) {
            match ip.address.0 {
                IpNetwork::V4(address) => _ = ports.pod_v4.get_or_insert(address),
                IpNetwork::V6(address) => _ = ports.pod_v6.get_or_insert(address),
            }
        }
        ports
    }
}

/// The key of a member of a mapping.
fn key(index: usize, member: &str) -> String {
    format!("runtimeConfig.portMappings[{index}].{member}")
}

/// The back end that the configuration names, or the one that its keys are for.
fn backend(conf: &Conf) -> Result<Option<Kind>, Fault> {
    let chain = conf.external_set_mark_chain.as_ref();
    let keys = [
        ("externalSetMarkChain", chain.map(|_| Kind::Iptables)),
        ("conditionsV4", Kind::of_conditions(&conf.conditions_v4)),
        ("conditionsV6", Kind::of_conditions(&conf.conditions_v6)),
    ];
    Kind::of_keys(conf.backend.as_deref(), &keys)
}

fn mark(conf: &Conf) -> Result<Mark, Fault> {
    let fault = |msg, details| {
        let error = Code::InvalidConfig.err(msg).details(details);
        Fault::at("markMasqBit", error)
    };
    match (&conf.external_set_mark_chain, conf.mark_masq_bit) {
        (Some(chain), None) => Mark::external_chain(chain).ok_or_else(|| {
            let msg = format!("externalSetMarkChain {chain:?} is no name of an iptables chain");
            Fault::new("externalSetMarkChain", msg)
        }),
        (None, bit) => {
            let bit = bit.unwrap_or(DEFAULT_BIT);
            let details = || format!("markMasqBit is {bit}");
            Mark::bit(bit).ok_or_else(|| fault("MasqMarkBit must be between 0 and 31", details()))
        }
        (Some(chain), Some(bit)) => Err(fault(
            "Cannot specify externalSetMarkChain and markMasqBit",
            format!("externalSetMarkChain is {chain:?}, markMasqBit is {bit}"),
        )),
    }
}

/// A pod may request the same twice, as two of its containers publish one port; to two ports of the
/// pod, one of them would win silently.
fn mappings(entries: &[PortMapping], checks: &mut Checks) -> Vec<Mapping> {
    let mut used = HashMap::new();
    let mut mappings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(mapping) = checks.take(mapping(index, entry)) else {
            continue;
        };
        let port = mapping.published_port();
        // The port of a single address may lead elsewhere than that of all addresses.
        let mut new = mapping.host_ips();
        let mut others = Vec::new();
        new.retain(|ip| {
            let earlier = used.insert((*ip, port.clone()), mapping.container_port);
            others.extend(earlier);
            earlier.is_none()
        });
        if others.iter().any(|it| *it != mapping.container_port) {
            let of_ip = mapping.host_ip.map(|ip| format!(" of hostIP {ip}"));
            let of_ip = of_ip.unwrap_or_default();
            let msg = format!("duplicate mapping in portMappings: hostPort {port}{of_ip}");
            checks.add(Fault::new(key(index, "hostPort"), msg));
        }
        match new[..] {
            [] => {}
            [ip] => mappings.push(Mapping {
                host_ip: Some(ip),
                ..mapping
            }),
            _ => mappings.push(mapping),
        }
    }
    mappings
}

fn mapping(index: usize, entry: &PortMapping) -> Result<Mapping, Faults> {
    let fault = |member, msg: String| Fault::new(key(index, member), msg);
    let mut checks = Checks::default();
    let host_ip = Some(&entry.host_ip).filter(|text| !text.is_empty());
    let host_ip = host_ip.map(|text| parse_ip(text)).transpose();
    let host_ip = host_ip.map_err(|error| fault("hostIP", format!("hostIP: {error}")));
    let host_ip = checks.take(host_ip);
    let mut port = |member, whose, number: i64| {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        let msg = || format!("Invalid {whose} port number: {number}");
        checks.take(port.ok_or_else(|| fault(member, msg())))
    };
    // The Go plugin checks the container's port first.
    let container_port = port("containerPort", "container", entry.container_port);
    let host_port = port("hostPort", "host", entry.host_port);
    let text = &entry.protocol;
    let msg = || format!("invalid protocol {text:?}: must be tcp, udp or sctp");
    let protocol = Protocol::parse(text).ok_or_else(|| fault("protocol", msg()));
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
