//! Links between pods of a network that keeps its pods apart (`links` beside `icc` false).
//!
//! The ports of such pods are isolated on the bridge, so a linked pod reaches the other one only
//! through the node, which forwards the packet back to the bridge. The node answers ARP requests
//! and neighbour solicitations for the other pod's address. Nothing is changed in the pods, which
//! could undo it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use cni::conf::ValidAttachment;
use cni::{Attachment, Undo};
use netlink::{Link, Netlink, sysctl};
use packet_filter::{Links, Nftables, OldLinks};

use crate::shared;

/// ADD: links the pod.
///
/// # Errors
/// The node has no route to one of the pods; what the kernel refuses.
pub(crate) fn add(wanted: &Links, undo: &mut Undo) -> Result<()> {
    let owner = wanted.owner.clone();
    undo.push("remove the pod's links", move || remove(&owner));
    let linked = wanted.to.iter().map(|it| &it.owner);
    for end in linked.chain([&wanted.owner]) {
        shared::use_links(end)?;
    }
    let _alone = shared::alone(&wanted.owner.network)?;
    // The elements come first: DEL finds the rest by them.
    Nftables::open()?.link(wanted).context("link the pod")?;
    let host = Netlink::open()?;
    let linked = wanted.to.iter().flat_map(|it| &it.addresses);
    for ip in linked.chain(&wanted.addresses) {
        answer_for(&host, *ip).context("link the pod")?;
    }
    Ok(())
}

/// Has the node answer ARP requests and neighbour solicitations for `ip` on the segment of its
/// gateway.
fn answer_for(host: &Netlink, ip: IpAddr) -> Result<()> {
    let gateway = host.route_link(ip)?;
    let name = &gateway.name;
    let (family, setting) = match ip {
        // For every address that is on the segment itself (RFC 3069).
        IpAddr::V4(_) => ("ipv4", "proxy_arp_pvlan"),
        IpAddr::V6(_) => ("ipv6", "proxy_ndp"),
    };
    let key = sysctl::interface_key(family, name, setting);
    sysctl::write_if_different(&key, "1")?;
    // The kernel's default is a random delay of up to 0.8 s before the answer.
    sysctl::write_if_different(&format!("net/{family}/neigh/{name}/proxy_delay"), "0")?;
    if ip.is_ipv6() {
        host.add_proxy(gateway.index, ip)?;
    }
    Ok(())
}

/// DEL: removes the links that begin or end at the pod.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn remove(owner: &Attachment) -> Result<()> {
    match Nftables::find()?.map(Nftables::closed_later) {
        Some(nftables) => remove_old(&nftables, &owner.network, || nftables.links_of(owner)),
        None => Ok(()),
    }
}

/// GC: removes the links of attachments that are not `valid`.
///
/// # Errors
/// What the kernel refuses.
pub fn collect(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    match Nftables::find()? {
        Some(nftables) => remove_old(&nftables, network, || nftables.stale_links(network, valid)),
        None => Ok(()),
    }
}

fn remove_old(
    nftables: &Nftables,
    network: &str,
    old: impl Fn() -> Result<OldLinks>,
) -> Result<()> {
    if old()?.is_empty() {
        return Ok(());
    }
    // A concurrent ADD may need such an answer again, so look once more under the lock.
    let _alone = shared::alone(network)?;
    let old = old()?;
    let host = Netlink::open()?;
    for ip in old.addresses.iter().filter(|it| it.is_ipv6()) {
        // Without a route, the gateway and its proxy entries are gone.
        if let Ok(Link { index, .. }) = host.route_link(*ip) {
            host.delete_proxy(index, *ip)?;
        }
    }
    nftables.remove_links(&old)
}
