//! The hosts and interfaces that the network's packets may come from. The packet filter drops
//! all others (`packet_filter::VxlanGuard`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink::{Family, Link, Netlink, Peers, RouteFilter};
use packet_filter::{Nftables, VxlanGuard};

use crate::device::{self, Device};
use crate::mode::Mode;
use crate::network::Network;
use crate::peer::{self, Peer};

/// The guard for `peers`, which are all peers that the kernel has.
fn wanted(
    host: &Netlink,
    network: &Network,
    device: &Device,
    peers: &[Peer],
) -> Result<VxlanGuard> {
    // A multicast group has members that are in no list. Without a peer, another program may write
    // the device's entries.
    let known = network.group.is_none() && !peers.is_empty();
    let hosts: BTreeSet<IpAddr> = peers.iter().map(|peer| peer.vtep).collect();
    Ok(VxlanGuard {
        network: network.name.clone(),
        local: device.local,
        port: network.port,
        vni: network.vni,
        uplinks: uplinks(host, device)?,
        peers: known.then(|| hosts.into_iter().collect()),
    })
}

/// The guard for the peers that the kernel has now; `None` without a device.
///
/// # Errors
/// As [`Device::find`]; what the kernel refuses.
pub fn present(host: &Netlink, network: &Network) -> Result<Option<VxlanGuard>> {
    let device = Device::find(host, network)?;
    let Some(link) = &device.link else {
        return Ok(None);
    };
    let bridge = match network.mode {
        Mode::L2 => host.find_link(network.bridge.as_str())?,
        Mode::L3 => None,
    };
    let peers = known_peers(network, link, bridge.as_ref())?;
    wanted(host, network, &device, &peers).map(Some)
}

/// The peers that the kernel has.
pub(crate) fn known_peers(
    network: &Network,
    link: &Link,
    bridge: Option<&Link>,
) -> Result<Vec<Peer>> {
    let present = Peers::open()?.present(device::overlay(network, link, bridge))?;
    Ok(peer::peers(network.mode, &present))
}

/// Drops packets that are not from `peers`. If the kernel has no nf_tables, logs that.
///
/// # Errors
/// What nf_tables refuses.
pub fn ensure(host: &Netlink, network: &Network, device: &Device, peers: &[Peer]) -> Result<()> {
    install(&[wanted(host, network, device, peers)?])
}

/// Drops packets that arrive on other interfaces than the devices' uplinks, for the networks that have
/// no such rules yet.
///
/// # Errors
/// As [`ensure`]; then nothing has changed.
pub fn ensure_all(host: &Netlink, all: &[(&Network, &Device)]) -> Result<()> {
    let mut lacking = Vec::new();
    for (network, device) in all {
        if device.is_to_be_made() || !exists(network, device.local)? {
            // A node behind NAT may send from another address than it has published.
            lacking.push(wanted(host, network, device, &[])?);
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    install(&lacking)
}

fn install(guards: &[VxlanGuard]) -> Result<()> {
    let Some(nftables) = Nftables::find()? else {
        log_lack(guards);
        return Ok(());
    };
    match nftables.ensure_vxlan_guards(guards) {
        Err(error) if is_absent(&error) => {
            log_lack(guards);
            Ok(())
        }
        done => done.context("guard the network's VXLAN port"),
    }
}

/// Whether the network has a guard, by a single request; true without nf_tables.
///
/// # Errors
/// What nf_tables refuses.
pub(crate) fn exists(network: &Network, local: IpAddr) -> Result<bool> {
    let guard = VxlanGuard {
        network: network.name.clone(),
        local,
        port: network.port,
        vni: network.vni,
        uplinks: Vec::new(),
        peers: None,
    };
    let Some(nftables) = Nftables::find()? else {
        log_lack(&[guard]);
        return Ok(true);
    };
    nftables.has_vxlan_guard(&guard)
}

/// CHECK: whether the guard agrees with the peers that the kernel has.
///
/// # Errors
/// What is missing.
pub fn check(host: &Netlink, network: &Network) -> Result<()> {
    let Some(nftables) = Nftables::find()? else {
        return Ok(());
    };
    match present(host, network)? {
        Some(wanted) => nftables.check_vxlan_guard(&wanted),
        None => Ok(()),
    }
}

/// The names of the interfaces that packets arrive on.
fn uplinks(host: &Netlink, device: &Device) -> Result<Vec<String>> {
    let mut names = BTreeSet::from([device.uplink.name.clone()]);
    // Packets that arrive on a member of a vrf pass the hook again on the vrf.
    if let Some(master) = device.uplink.master
        && let Some(master) = host.find_link_by_index(master)?
        && master.is_kind("vrf")
    {
        names.insert(master.name);
    }
    if device.spec.vxlan.link.is_none() {
        names.extend(routers(host, Family::of(device.local))?);
    }
    Ok(names.into_iter().collect())
}

/// The interfaces that lead to routers: packets arrive there if the device is bound to no
/// interface. Routes through VXLAN devices lead to pods.
fn routers(host: &Netlink, family: Family) -> Result<BTreeSet<String>> {
    let routes = host.list_routes(RouteFilter::main(family))?;
    let routed = routes.iter().filter(|it| it.gw.is_some());
    let links: BTreeSet<u32> = routed.filter_map(|it| it.oif).collect();
    let mut names = BTreeSet::new();
    for index in links {
        if let Some(link) = host.find_link_by_index(index)?
            && !link.is_kind("vxlan")
        {
            names.insert(link.name);
        }
    }
    Ok(names)
}

fn is_absent(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<packet_filter::Error>();
    cause.is_some_and(packet_filter::is_absent)
}

fn log_lack(guards: &[VxlanGuard]) {
    for guard in guards {
        cni::log(format_args!(
            "guard the VXLAN port of {}: the kernel lacks nf_tables",
            guard.network
        ));
    }
}
