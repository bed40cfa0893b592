//! From keys to what is to be done, without touching anything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use cni::conf::DnsKeys;
use cni::env::IfName;
use cni::result::{AddResult, Dns, Interface, IpConfig, Route};
use cni::{Cidr, Code};
use ipnetwork::IpNetwork;
use netlink::{Mac, RouteSpec};

use crate::conf::{Conf, Mtu, TrunkItem};

/// Index of the container's end in the interfaces of a result: bandwidth,
/// portmap and firewall look there, so the order is part of the contract.
pub const CONTAINER: i64 = 2;

/// The largest VLAN id; 4095 is reserved by IEEE 802.1Q.
const VLAN_MAX: i64 = 4094;

/// A configuration in which nothing contradicts anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The bridge on the host.
    pub bridge: IfName,
    /// MTU of the pair, and of a bridge that is created.
    pub mtu: Mtu,
    /// Whether the bridge is to be promiscuous.
    pub promisc: bool,
    /// Whether the port may send frames back where they came from.
    pub hairpin: bool,
    /// Whether the port talks to ports that are not isolated only.
    pub isolated: bool,
    /// Whether duplicate IPv6 addresses are looked for.
    pub detect_duplicates: bool,
    /// Whether the container's end is brought up.
    pub bring_up: bool,
    /// The MAC that somebody asked for.
    pub mac: Option<Mac>,
    /// The VLANs of the port.
    pub vlans: Vlans,
    /// What the bridge is for the pods.
    pub gateway: Gateway,
    /// Whether, and how, what leaves the pods' subnets is masqueraded.
    pub masquerade: Option<Masquerading>,
    /// Whether frames with another MAC than the pod's are dropped.
    pub spoof_check: bool,
}

/// How what leaves the pods' subnets is masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerading {
    /// The back end that the configuration forces.
    pub backend: Option<nat::Kind>,
    /// Whether source ports are drawn at random.
    pub random_fully: bool,
}

/// The VLANs of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// Untagged frames belong to it.
    pub access: Option<u16>,
    /// Carried tagged, in ascending order; `None` without the key.
    pub trunk: Option<Vec<u16>>,
    /// Whether the port stays in the bridge's default VLAN.
    pub keep_default: bool,
}

impl Vlans {
    /// Whether the bridge has to tell VLANs apart.
    pub fn filtering(&self) -> bool {
        self.access.is_some() || self.trunk.is_some()
    }

    /// Whether the port is given VLANs of its own.
    pub fn any(&self) -> bool {
        self.access.is_some() || self.trunk.as_ref().is_some_and(|trunk| !trunk.is_empty())
    }
}

/// What the bridge is for the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// A switch only.
    None,
    /// Their gateway.
    Gateway {
        /// Whether it is also their default route.
        default_route: bool,
        /// Whether its address replaces another one on the bridge.
        force: bool,
    },
}

impl Plan {
    /// Checks everything that can be checked without the kernel. `has_ipam`
    /// tells whether the pod gets addresses, `args_mac` is `MAC` of CNI_ARGS.
    pub fn new(conf: &Conf, has_ipam: bool, args_mac: Option<String>) -> Result<Self> {
        if conf.hairpin_mode && conf.promisc_mode {
            return Err(invalid(
                "cannot set hairpin mode and promiscuous mode at the same time",
            ));
        }
        if conf.disable_container_interface && has_ipam {
            return Err(invalid(
                "cannot use IPAM when DisableContainerInterface flag is set",
            ));
        }
        let gateway = match conf.is_gateway || conf.is_default_gateway {
            false => Gateway::None,
            true => Gateway::Gateway {
                default_route: conf.is_default_gateway,
                force: conf.force_address,
            },
        };
        let plan = Self {
            bridge: bridge_name(&conf.bridge)?,
            mtu: mtu(conf.mtu)?,
            promisc: conf.promisc_mode,
            hairpin: conf.hairpin_mode,
            isolated: conf.port_isolation,
            detect_duplicates: conf.enabledad,
            bring_up: !conf.disable_container_interface,
            mac: container_mac(conf, args_mac)?,
            vlans: vlans(conf)?,
            gateway,
            masquerade: masquerade(conf)?,
            spoof_check: conf.macspoofchk,
        };
        if plan.has_vlan_gateway() && has_ipam {
            plan.vlan_gateway_name()?;
        }
        Ok(plan)
    }

    /// The interface that carries the gateway of an access VLAN: the bridge
    /// itself is in no VLAN but its own.
    pub fn vlan_gateway_name(&self) -> Result<IfName> {
        let vlan = self.vlans.access.unwrap_or_default();
        let name = format!("{}.{vlan}", self.bridge);
        IfName::parse(&name).map_err(|error| {
            invalid(&format!(
                "name of the VLAN's gateway interface {name:?}: {error}"
            ))
        })
    }

    /// Whether the gateway of the pods is in an access VLAN.
    pub fn has_vlan_gateway(&self) -> bool {
        self.gateway != Gateway::None && self.vlans.access.is_some()
    }
}

/// What the pod gets, once IPAM has answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Addressing {
    /// The pod's addresses, with their gateways.
    pub ips: Vec<IpConfig>,
    /// The pod's routes.
    pub routes: Vec<Route>,
    /// What the bridge has to have.
    pub gateways: Vec<IpNetwork>,
    /// What IPAM says about names.
    pub dns: Dns,
}

impl Addressing {
    /// Decides gateways and default routes from what IPAM answered.
    pub fn new(lease: AddResult, gateway: Gateway) -> Self {
        let mut addressing = Self {
            ips: lease.ips,
            routes: lease.routes,
            gateways: Vec::new(),
            dns: lease.dns,
        };
        for ip in &mut addressing.ips {
            ip.interface = Some(CONTAINER);
        }
        if let Gateway::Gateway { default_route, .. } = gateway {
            addressing.ensure_gateways();
            if default_route {
                addressing.ensure_default_route(IpAddr::is_ipv4);
                addressing.ensure_default_route(IpAddr::is_ipv6);
            }
        }
        addressing
    }

    fn ensure_gateways(&mut self) {
        for ip in &mut self.ips {
            let gateway = *ip.gateway.get_or_insert_with(|| first_host(ip.address));
            if let Ok(network) = IpNetwork::new(gateway, ip.address.prefix()) {
                self.gateways.push(network);
            }
        }
    }

    /// A default route of the family's first gateway, unless IPAM gave one. One
    /// without a next hop gets that same gateway when it is laid, and to lay it
    /// twice fails (reference 8 #8).
    fn ensure_default_route(&mut self, of_family: fn(&IpAddr) -> bool) {
        let mut ips = self.ips.iter();
        let first = ips.find(|ip| of_family(&ip.address.ip()));
        let Some((first, gateway)) = first.and_then(|ip| Some((ip, ip.gateway?))) else {
            return;
        };
        let given = |route: &Route| route.dst.is_default() && of_family(&route.dst.ip());
        if !self.routes.iter().any(given) {
            let dst = match first.address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            if let Ok(default) = IpNetwork::new(dst, 0) {
                self.routes.push(Route::via(Cidr(default), gateway));
            }
        }
    }
}

/// What is answered; a pod without addresses has `addressing` `None`.
pub fn result(
    interfaces: Vec<Interface>,
    addressing: Option<Addressing>,
    dns: &DnsKeys,
) -> AddResult {
    let (ips, routes, ipam_dns) = match addressing {
        Some(addressing) => (addressing.ips, addressing.routes, addressing.dns),
        None => Default::default(),
    };
    let dns = if dns.is_set() { dns.to_dns() } else { ipam_dns };
    AddResult {
        interfaces,
        ips,
        routes,
        dns,
    }
}

/// A route as the kernel is told it: 0 and unset are left to it.
pub fn route_spec(route: &Route) -> RouteSpec {
    let told = |value: u32| Some(value).filter(|value| *value != 0);
    RouteSpec {
        gw: route.gw,
        priority: told(route.priority),
        table: route.table,
        scope: route.scope,
        mtu: told(route.mtu),
        advmss: told(route.advmss),
        ..RouteSpec::to(route.dst.0)
    }
}

/// The first address of a subnet after its own.
fn first_host(address: Cidr) -> IpAddr {
    match address.0.network() {
        IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().wrapping_add(1))),
        IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(network.to_bits().wrapping_add(1))),
    }
}

fn invalid(msg: &str) -> anyhow::Error {
    Code::InvalidConfig.err(msg).into()
}

/// What a key that names no back end is answered; the Go plugin says it after
/// everything else was set up.
fn masquerade(conf: &Conf) -> Result<Option<Masquerading>> {
    let named = conf
        .ip_masq_backend
        .as_deref()
        .filter(|text| !text.is_empty());
    let backend = named
        .map(|text| {
            nat::Kind::parse(text)
                .ok_or_else(|| invalid(&format!("unknown ipmasq backend {text:?}")))
        })
        .transpose()?;
    Ok(conf.ip_masq.then_some(Masquerading {
        backend,
        random_fully: conf.ip_masq_random_fully,
    }))
}

fn bridge_name(name: &str) -> Result<IfName> {
    if name.is_empty() {
        return Err(invalid(
            "failed to create bridge \"\": could not add \"\": LinkAttrs.Name cannot be empty",
        ));
    }
    IfName::parse(name).map_err(|error| invalid(&format!("bridge {name:?}: {error}")))
}

/// What the kernel takes for a veth: ETH_MIN_MTU to ETH_MAX_MTU (if_ether.h).
fn mtu(mtu: Mtu) -> Result<Mtu> {
    match mtu {
        Mtu::Bytes(bytes) if !(68..=65535).contains(&bytes) => Err(invalid(&format!(
            "invalid MTU {bytes}, must be [68, 65535]"
        ))),
        mtu => Ok(mtu),
    }
}

/// The runtime knows best, then the author of the configuration, then CNI_ARGS.
fn container_mac(conf: &Conf, args_mac: Option<String>) -> Result<Option<Mac>> {
    let in_conf = [&conf.runtime_config.mac, &conf.args.cni.mac]
        .into_iter()
        .find(|mac| !mac.is_empty());
    let (text, code) = match (in_conf, args_mac) {
        (Some(text), _) => (text.clone(), Code::InvalidConfig),
        (None, Some(text)) if !text.is_empty() => (text, Code::InvalidEnvironment),
        _ => return Ok(None),
    };
    let fault = |why: &str| code.err(format!("failed to make veth pair: address {text}: {why}"));
    let mac: Mac = text.parse().map_err(|_| fault("invalid MAC address"))?;
    if mac.is_multicast() || mac.is_zero() {
        return Err(fault("an interface cannot have this MAC address").into());
    }
    Ok(Some(mac))
}

fn vlans(conf: &Conf) -> Result<Vlans> {
    if !(0..=VLAN_MAX).contains(&conf.vlan) {
        return Err(invalid(&format!(
            "invalid VLAN ID {} (must be between 0 and {VLAN_MAX})",
            conf.vlan
        )));
    }
    let trunk = conf.vlan_trunk.as_deref().map(trunk_ids).transpose()?;
    Ok(Vlans {
        access: u16::try_from(conf.vlan).ok().filter(|vlan| *vlan != 0),
        trunk,
        keep_default: conf.preserve_default_vlan,
    })
}

/// The union of all entries.
fn trunk_ids(items: &[TrunkItem]) -> Result<Vec<u16>> {
    let mut ids = BTreeSet::new();
    for item in items {
        match (item.min_id, item.max_id) {
            (None, None) => {}
            (Some(min), Some(max)) => {
                let min = trunk_id(min, "incorrect trunk minID parameter")?;
                let max = trunk_id(max, "incorrect trunk maxID parameter")?;
                if min > max {
                    return Err(invalid("minID is greater than maxID in trunk parameter"));
                }
                ids.extend(min..=max);
            }
            (min, _) => {
                let absent = if min.is_none() { "minID" } else { "maxID" };
                return Err(invalid(&format!(
                    "minID and maxID should be configured simultaneously, {absent} is missing"
                )));
            }
        }
        if let Some(id) = item.id {
            ids.insert(trunk_id(id, "incorrect trunk id parameter")?);
        }
    }
    Ok(ids.into_iter().collect())
}

fn trunk_id(id: i64, fault: &str) -> Result<u16> {
    u16::try_from(id)
        .ok()
        .filter(|id| (1..=VLAN_MAX).contains(&i64::from(*id)))
        .with_context(|| fault.to_owned())
        .map_err(|_| invalid(fault))
}

#[cfg(test)]
mod tests;
