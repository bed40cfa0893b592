//! Decides from keys, the runtime's arguments and the previous result which names a pod has. Pure:
//! no system calls.

use std::net::IpAddr;
use std::str::FromStr;

use cni::address::is_link_local_v6;
use cni::faults::{Checks, Fault, Faults};
use cni::result::IpConfig;
use cni::{AddResult, Attachment};
use names::{Name, Namespace, Network, Record, Server};

use crate::conf::Conf;
use crate::records;

/// The first characters of a container's id, by which runtimes show it.
const SHORT_ID: usize = 12;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Whether ADD starts podwired where it does not run.
    pub starts_resolver: bool,
    /// The addresses of the node to which pods send queries; empty: their gateways.
    pub listen: Vec<IpAddr>,
    network: Network,
    aliases: Vec<Name>,
    servers: Vec<Server>,
}

impl Plan {
    /// Checks everything that can be checked without the kernel, for the network `name`.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf, name: &str) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        let domain = Some(conf.domain_name.as_str()).filter(|it| !it.is_empty());
        let domain = domain.map(|text| host_name("domainName", text));
        let domain = checks.take(domain.transpose());
        let servers = checks.each("servers", &conf.servers, item);
        let listen = checks.each("listen", &conf.listen, item);
        let records = checks.each("records", &conf.records, records::read);
        let starts_resolver = checks.take(match conf.resolver.as_str() {
            "" | "on-demand" => Ok(true),
            "service" => Ok(false),
            other => Err(fault(
                "resolver",
                format!("unknown value {other:?}: expected on-demand or service"),
            )),
        });
        let aliases = conf.runtime_config.aliases.get(name);
        let aliases = aliases.map(Vec::as_slice).unwrap_or_default();
        let aliases = checks.each(&format!("runtimeConfig.aliases.{name}"), aliases, item);
        let own = &conf.runtime_config.dns.servers;
        let own = checks.each("runtimeConfig.dns.servers", own, item);
        checks.finish(|| {
            Some(Self {
                starts_resolver: starts_resolver?,
                listen,
                network: Network {
                    name: name.to_owned(),
                    domain: domain?,
                    ttl: conf.ttl,
                    servers,
                    internal: conf.internal,
                    records,
                    ..Network::default()
                },
                aliases,
                servers: own,
            })
        })
    }

    /// The names of a container that its runtime calls `pod`: that name, the aliases, the short id.
    /// A name that is not valid in DNS is left out, as it is valid for the runtime.
    pub fn names(&self, pod: Option<&str>, container_id: &str) -> Vec<Name> {
        let is_digest = container_id.bytes().all(|it| it.is_ascii_hexdigit());
        // Some runtimes let their users choose ids, which are names without a change.
        let short = container_id.get(..SHORT_ID).filter(|_| is_digest);
        let short = short.unwrap_or(container_id);
        let is_host = |name: &Name| name.wildcard().is_none();
        let given = |text: &str| text.parse().ok().filter(is_host);
        let mut names = Vec::new();
        let aliases = self.aliases.iter().cloned();
        for name in pod
            .and_then(given)
            .into_iter()
            .chain(aliases)
            .chain(given(short))
        {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The record of an attachment with `result`, whose pods send queries to `listen`.
    pub fn record(
        &self,
        owner: &Attachment,
        names: Vec<Name>,
        result: &AddResult,
        listen: Vec<IpAddr>,
        namespace: Option<Namespace>,
    ) -> Record {
        let network = Network {
            bridge: node_interface(result).unwrap_or_default(),
            subnets: pod_ips(result).map(|ip| ip.address.network()).collect(),
            listen,
            ..self.network.clone()
        };
        Record {
            network,
            container: owner.container_id.to_string(),
            ifname: owner.ifname.to_string(),
            namespace,
            names,
            addresses: addresses(result),
            servers: self.servers.clone(),
            asks: Vec::new(),
        }
    }

    /// The result of ADD: pods use `servers` first, then the name servers of the previous result.
    pub fn answer(&self, mut result: AddResult, servers: &[IpAddr]) -> AddResult {
        let before = std::mem::take(&mut result.dns.nameservers);
        let ours = servers.iter().map(IpAddr::to_string);
        result.dns.nameservers = ours.chain(before).collect();
        if let Some(domain) = &self.network.domain {
            let domain = domain.to_string();
            if result.dns.domain.is_empty() {
                result.dns.domain.clone_from(&domain);
            }
            if !result.dns.search.contains(&domain) {
                result.dns.search.push(domain);
            }
        }
        result
    }
}

/// The addresses of the pod.
pub fn addresses(result: &AddResult) -> Vec<IpAddr> {
    pod_ips(result).map(|ip| ip.address.ip()).collect()
}

/// The gateways of the pod's addresses, each once. A link-local one does not fit into
/// resolv.conf(5), because it needs an interface.
pub fn gateways(result: &AddResult) -> Vec<IpAddr> {
    let mut gateways = Vec::new();
    for gateway in pod_ips(result).filter_map(|ip| ip.gateway) {
        if !gateways.contains(&gateway) && !is_link_local_v6(gateway) {
            gateways.push(gateway);
        }
    }
    gateways
}

/// Results before 0.3.0 have no interfaces: all their addresses are the pod's.
fn pod_ips(result: &AddResult) -> impl Iterator<Item = &IpConfig> {
    result.ips.iter().filter(|ip| {
        let interface = result.interface_of(ip);
        interface.is_none_or(|it| !it.is_on_host())
    })
}

/// The interface of the node that comes first: the bridge, or the node's end of a veth pair.
fn node_interface(result: &AddResult) -> Option<String> {
    result.on_host().next().map(|it| it.name.clone())
}

/// A fault in the value of a key.
pub fn fault(key: &str, why: impl std::fmt::Display) -> Fault {
    Fault::new(key, format!("{key}: {why}"))
}

/// A name that is no wildcard, as the value of a key.
///
/// # Errors
/// The text is not a name, or it is a wildcard.
pub fn host_name(key: &str, text: &str) -> Result<Name, Fault> {
    let invalid = |why: &dyn std::fmt::Display| fault(key, format!("invalid name {text:?}: {why}"));
    let name: Name = text.parse().map_err(|why: names::Fault| invalid(&why))?;
    match name.wildcard() {
        Some(_) => Err(invalid(&"a wildcard stands for names, it is none")),
        None => Ok(name),
    }
}

/// Reads an item of a list of texts.
fn item<T: FromStr<Err: std::fmt::Display>>(key: &str, text: &String) -> Result<T, Fault> {
    text.parse()
        .map_err(|why| fault(key, format!("{text:?}: {why}")))
}

#[cfg(test)]
mod tests;
