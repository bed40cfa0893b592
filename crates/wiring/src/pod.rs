//! The pod's interface.

use anyhow::{Context, Result};
use cni::conf::DnsKeys;
use cni::env::{IfName, NetnsPath};
use cni::result::{AddResult, Interface, IpConfig, Route};
use cni::{BestEffort, Call, delegate};
use netlink::{Configured, Dad, InterfaceAddress, Layer3, Link, Netlink, RouteSpec};
use netns::NetNs;

use crate::Addressing;

/// Opens the pod's namespace.
///
/// # Errors
/// `failed to open netns "…"`: it is not there, or a plain file.
pub fn open_netns(path: &NetnsPath) -> Result<NetNs> {
    NetNs::open(path.as_path()).with_context(|| format!("failed to open netns {:?}", path.as_str()))
}

/// Enters the pod for its interface `ifname`, which is there, while the caller goes on.
/// `dad` is what is done about duplicates of its IPv6 addresses, if it gets `addresses` at
/// all.
///
/// # Errors
/// As [`netlink::enter`].
pub fn enter(netns: &NetNs, ifname: &IfName, dad: Dad, addresses: bool) -> Result<netlink::Pod> {
    netlink::enter(netns, interface(ifname, dad, addresses))
}

/// The pod's interface `ifname`, as most plugins have it.
pub fn interface(ifname: &IfName, dad: Dad, addresses: bool) -> netlink::Interface {
    netlink::Interface {
        name: ifname.to_string(),
        dad: if addresses { dad } else { Dad::Kernel },
        notify: addresses,
        alias: None,
        accept_ra: None,
    }
}

/// Brings the pod's interface up, with its addresses and routes if it has any.
///
/// # Errors
/// As [`netlink::Pod::configure`].
pub fn configure(pod: netlink::Pod, addressing: Option<&Addressing>) -> Result<Configured> {
    let layer3 = addressing.map(|it| Layer3 {
        addresses: it.ips.iter().map(interface_address).collect(),
        routes: it.routes.iter().map(route_spec).collect(),
    });
    pod.configure(&layer3.unwrap_or_default())
}

/// Tells the pod's neighbours where its addresses are now. It works without:
/// they then learn of it a little later.
pub fn announce(configured: &Configured) {
    if let Err(error) = configured.announce() {
        cni::log(format_args!("announce the pod's addresses: {error:#}"));
    }
}

/// An interface of the host, as the result shows it.
pub fn host_interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: link.mtu,
        ..Interface::default()
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

/// An address of a result, as the kernel is told it or asked for it.
pub(crate) fn interface_address(ip: &IpConfig) -> InterfaceAddress {
    InterfaceAddress {
        address: ip.address.0,
        gateway: ip.gateway,
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

/// DEL: does what `delete` does, and has IPAM, if there is one, release the addresses
/// afterwards: no other pod may get them while this one still answers to them. So they are
/// kept if `delete` returns `None`, which says that the pod may still use them; the runtime
/// calls DEL again. DHCP releases before: a server takes a DHCPRELEASE only from the address
/// itself (RFC 2131, section 4.4.6).
pub fn delete_and_release(
    call: &Call,
    all: &mut BestEffort,
    delete: impl FnOnce(&mut BestEffort) -> Option<()>,
) {
    let release = |all: &mut BestEffort| {
        all.step("release the addresses", || delegate::ipam_del(call));
    };
    if delegate::ipam_needs_interface(call) {
        release(all);
        delete(all);
    } else if delete(all).is_some() {
        release(all);
    }
}

/// Does something with the links of the pod, wherever the runtime says that it
/// is. Nothing is done, and nothing returned, where there is no namespace any more.
///
/// # Errors
/// Those of `act`; a namespace that is there and cannot be entered.
pub fn where_it_is<T: Default>(
    netns: Option<&NetnsPath>,
    act: impl FnOnce(&Netlink) -> Result<T>,
) -> Result<T> {
    match find_netns(netns)? {
        Some(netns) => act(&Netlink::open_in(&netns)?),
        None => Ok(T::default()),
    }
}

/// The namespace that the runtime names, if it is still there.
///
/// # Errors
/// It is there and cannot be opened.
pub fn find_netns(path: Option<&NetnsPath>) -> Result<Option<NetNs>> {
    let Some(path) = path else {
        return Ok(None);
    };
    match NetNs::open(path.as_path()) {
        // A plain file is what stays of a namespace whose mount was lost.
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error.into()),
        Ok(netns) => Ok(Some(netns)),
    }
}
