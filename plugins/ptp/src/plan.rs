//! Decides from the keys and the addresses that IPAM assigned which kernel objects a pod gets. Pure: no
//! system calls.

use std::net::IpAddr;

use anyhow::Result;
use cni::address::{is_single, network_of};
use cni::faults::{Checks, Fault, Faults};
use cni::result::IpConfig;
use cni::{Attachment, Code};
use ipnetwork::IpNetwork;
use netlink::{Mac, RouteSpec};
use packet_filter::node::Pod;
use wiring::mtu::Mtu;
use wiring::{Addressing, MasqueradeKeys, Masquerading, mac, pod};

use crate::conf::Conf;

/// Scopes of routes (linux/rtnetlink.h).
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// MTU of the pair.
    pub mtu: Mtu,
    /// The requested MAC.
    pub mac: Option<Mac>,
    /// How packets that leave the pods' subnets are masqueraded.
    pub masquerade: Option<Masquerading>,
}

impl Plan {
    /// Checks all keys. `has_ipam`: whether the pod gets addresses.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf, has_ipam: bool) -> Result<Self, Faults> {
        let mut checks = Checks::default();
        if !has_ipam {
            // The text of the Go plugin.
            checks.add(Fault::new("ipam", "no plugin name provided"));
        }
        let action = |_: &str| "failed to make veth pair".to_owned();
        let mac = mac::requested(&conf.runtime_config, &conf.args, None, "", action);
        let (mac, mtu) = (checks.take(mac), checks.take(conf.mtu.checked()));
        let masquerade = checks.take(Masquerading::parse(&MasqueradeKeys {
            wanted: conf.ip_masq,
            backend: conf.ip_masq_backend.as_deref(),
            random_fully: conf.ip_masq_random_fully,
            except: &conf.ip_masq_except,
            families: conf.ip_masq_families.as_deref(),
        }));
        checks.finish(|| {
            Some(Self {
                mtu: mtu?,
                mac: mac?,
                masquerade: masquerade?,
            })
        })
    }

    /// The packet filter rules of an attachment with the addresses `ips`.
    pub fn rules(&self, owner: &Attachment, ips: &[IpConfig]) -> Pod {
        Pod {
            masquerade: self.masquerade.as_ref().map(|how| how.of(owner, ips)),
            ..Pod::new(owner.clone())
        }
    }
}

/// The addresses and routes of both ends of the link, for the addresses of a pod.
///
/// The pod's addresses have the prefix of their subnet, but no neighbour of it is on the link:
/// all packets go through the gateway, which is the host end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The addresses of the host end: each gateway once. Every pod of the network has the same.
    pub gateways: Vec<IpNetwork>,
    /// The host's routes to the pod.
    pub host_routes: Vec<RouteSpec>,
    /// The pod's routes to its gateways, and through them to its subnets.
    pub pod_routes: Vec<RouteSpec>,
}

impl Ends {
    /// # Errors
    /// Code 7: an address without a gateway.
    pub fn new(ips: &[IpConfig]) -> Result<Self> {
        let mut ends = Self {
            gateways: Vec::new(),
            host_routes: Vec::new(),
            pod_routes: Vec::new(),
        };
        for ip in ips {
            let gateway = ip.gateway.ok_or_else(|| no_gateway(ip))?;
            ends.add(ip.address.0, gateway);
        }
        Ok(ends)
    }

    /// Two addresses of one subnet share the routes of the first.
    fn add(&mut self, address: IpNetwork, gateway: IpAddr) {
        let host = RouteSpec {
            scope: Some(SCOPE_HOST),
            ..RouteSpec::to(address.ip().into())
        };
        self.host_routes.push(host);
        if !self.gateways.contains(&gateway.into()) {
            self.gateways.push(gateway.into());
            self.pod_routes.push(RouteSpec {
                scope: Some(SCOPE_LINK),
                src: Some(address.ip()),
                ..RouteSpec::to(gateway.into())
            });
        }
        let subnet = network_of(address);
        if !is_single(address) && !self.pod_routes.iter().any(|it| it.dst == subnet) {
            self.pod_routes.push(RouteSpec {
                gw: Some(gateway),
                src: Some(address.ip()),
                ..RouteSpec::to(subnet)
            });
        }
    }

    /// The addresses and routes of the pod's end: `addressing` without routes of IPAM that exist
    /// already, which the kernel would refuse.
    pub fn without_own_routes(&self, mut addressing: Addressing) -> Addressing {
        let gateways = &self.gateways;
        addressing.routes.retain(|route| {
            let wanted = pod::route_spec(route);
            let is_own = self.pod_routes.iter().any(|own| {
                let through_gateway = wanted.gw.is_none_or(|gw| gateways.contains(&gw.into()));
                own.dst == wanted.dst && own.table() == wanted.table() && through_gateway
            });
            !is_own || wanted.priority.is_some()
        });
        addressing
    }
}

fn no_gateway(ip: &IpConfig) -> cni::Error {
    let address = ip.address;
    Code::InvalidConfig.err(format!(
        "IPAM plugin returned no gateway for {address}: it is the node's end of the link"
    ))
}

#[cfg(test)]
mod tests;
