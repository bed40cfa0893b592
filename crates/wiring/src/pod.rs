//! The pod's namespace and its interface.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use cni::address::network_of;
use cni::env::NetnsPath;
use cni::lock::{self, Lock};
use cni::request::Add;
use cni::result::{IpConfig, Route};
use cni::{BestEffort, Call, delegate};
use ipnetwork::IpNetwork;
use netlink::sysctl::{self, OwnProc};
use netlink::{Configured, Dad, InterfaceAddress, Layer3, Netlink, RouteSpec};
use netns::NetNs;

use crate::Addressing;

/// Opens the pod's namespace.
///
/// # Errors
/// `failed to open netns "…"`: it does not exist, or is a plain file.
pub fn open_netns(path: &NetnsPath) -> Result<NetNs> {
    NetNs::open(path.as_path()).with_context(|| format!("failed to open netns {:?}", path.as_str()))
}

/// Prepares for a node with this number of pods. Call it before the pod's settings are written, and
/// keep the value until they are.
pub fn expect(pods: usize) -> Option<OwnProc> {
    if pods < sysctl::MANY_PODS {
        return None;
    }
    OwnProc::new()
}

/// Locks the pod's namespace, for a plugin that chooses what is free in it. The lock is on the
/// namespace itself, as that of the Go plugin sbr: it is the same for all paths, and leaves no file.
///
/// # Errors
/// Code 11 if another process holds the lock too long. Processes of the pod can hold it, so a DEL
/// goes on without.
pub fn lock(netns: &NetNs) -> Result<Lock> {
    let file = File::from(netns.as_fd().try_clone_to_owned()?);
    lock::exclusive(file, netns.path())
}

/// Enters the pod's namespace, to prepare its existing interface. `enabledad` as in [`interface`].
///
/// # Errors
/// As [`netlink::enter`].
pub fn enter<C>(request: &Add<C>, netns: &NetNs, enabledad: bool) -> Result<netlink::Pod> {
    netlink::enter(netns, interface(request, enabledad))
}

/// The settings of a link in the pod that has no end on the node: its alias names the attachment, for
/// DEL and GC.
pub fn marked<C>(request: &Add<C>) -> netlink::Interface {
    netlink::Interface {
        alias: Some(request.attachment.alias()),
        ..interface(request, false)
    }
}

/// The settings of the pod's interface that most plugins use. Without `enabledad` its IPv6
/// addresses are usable at once: duplicate address detection would delay each ADD by one to two
/// seconds.
pub fn interface<C>(request: &Add<C>, enabledad: bool) -> netlink::Interface {
    let addresses = request.call.has_ipam();
    netlink::Interface {
        name: request.attachment.ifname.to_string(),
        dad: match (addresses, enabledad) {
            (false, _) => Dad::Kernel,
            (true, false) => Dad::Off,
            (true, true) => Dad::On,
        },
        notify: addresses,
        alias: None,
        accept_ra: None,
    }
}

/// Brings the pod's interface up, and adds its addresses and routes if it has any.
///
/// # Errors
/// As [`netlink::Pod::configure`].
pub fn configure(pod: netlink::Pod, addressing: Option<&Addressing>) -> Result<Configured> {
    configure_with(pod, addressing, None)
}

/// The same, with `prefix_routes` instead of routes to the networks of the addresses.
///
/// # Errors
/// As [`netlink::Pod::configure`].
pub fn configure_with(
    pod: netlink::Pod,
    addressing: Option<&Addressing>,
    prefix_routes: Option<Vec<RouteSpec>>,
) -> Result<Configured> {
    let layer3 = addressing.map(|it| Layer3 {
        addresses: it.ips.iter().map(interface_address).collect(),
        routes: it.routes.iter().map(route_spec).collect(),
        prefix_routes,
    });
    pod.configure(&layer3.unwrap_or_default())
}

/// Announces the pod's addresses to its neighbours. Without an announcement they learn of the pod
/// a little later, so a failure is only logged. Returns whether it succeeded.
pub fn announce(configured: &Configured) -> bool {
    let announced = configured.announce();
    if let Err(error) = &announced {
        cni::log(format_args!("announce the pod's addresses: {error:#}"));
    }
    announced.is_ok()
}

/// An address of a result as netlink has it.
pub(crate) fn interface_address(ip: &IpConfig) -> InterfaceAddress {
    InterfaceAddress {
        address: ip.address.0,
        gateway: ip.gateway,
    }
}

/// A route of a result as netlink has it. The kernel chooses what is 0 or absent. It masks the
/// destinations of IPv6 (`rtm_to_fib6_config` and `ipv6_addr_prefix`, net/ipv6/route.c), and refuses
/// those of IPv4 that have host bits.
pub fn route_spec(route: &Route) -> RouteSpec {
    let set = |value: u32| Some(value).filter(|value| *value != 0);
    let dst = match route.dst.0 {
        IpNetwork::V6(_) => network_of(route.dst.0),
        IpNetwork::V4(_) => route.dst.0,
    };
    RouteSpec {
        gw: route.gw,
        priority: set(route.priority),
        table: route.table,
        scope: route.scope,
        mtu: set(route.mtu),
        advmss: set(route.advmss),
        ..RouteSpec::to(dst)
    }
}

/// DEL: calls `delete` to delete the link, and releases the addresses, if the pod has any.
///
/// The addresses are released after the link is gone, so that no other pod gets them while this
/// one still answers to them. If `delete` returns `None`, the pod may still use them: they stay
/// reserved, and the runtime calls DEL again. DHCP releases first: a server accepts a DHCPRELEASE
/// only from the address itself (RFC 2131, section 4.4.6).
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

/// Calls `act` with a socket in the pod's namespace. Returns the default, without calling `act`,
/// if the namespace is gone.
///
/// # Errors
/// As `act`; the namespace exists and cannot be opened.
pub fn in_netns<T: Default>(
    netns: Option<&NetnsPath>,
    act: impl FnOnce(&Netlink) -> Result<T>,
) -> Result<T> {
    match find_netns(netns)? {
        Some(netns) => act(&Netlink::open_in(&netns)?),
        None => Ok(T::default()),
    }
}

/// Opens the namespace that the runtime names; `None` if it is gone.
///
/// # Errors
/// It exists and cannot be opened.
pub fn find_netns(path: Option<&NetnsPath>) -> Result<Option<NetNs>> {
    let Some(path) = path else {
        return Ok(None);
    };
    match NetNs::open(path.as_path()) {
        // A plain file remains of a namespace whose mount was lost.
        Err(error) if netns::is_gone(&error) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(netns) => Ok(Some(netns)),
    }
}
