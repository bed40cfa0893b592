//! What stands between the pod and the outside: masquerade and spoof check.

use std::net::IpAddr;

use anyhow::{Context, Result};
use cni::request::{Check, Del, Gc};
use cni::result::{AddResult, IpConfig};
use cni::{Attachment, Undo};
use nat::nftables::{Nftables, SpoofCheck};
use nat::{Kind, Leftovers, Masquerade};
use netlink::{Mac, Netlink, VethPair};
use netns::NetNs;

use crate::conf::Conf;
use crate::plan::{Addressing, CONTAINER, Masquerading, Plan};

/// Masquerades what leaves the pod's subnets.
pub fn masquerade(
    owner: &Attachment,
    addressing: &Addressing,
    how: Masquerading,
    undo: &mut Undo,
) -> Result<()> {
    let backend = nat::open(how.backend)?;
    let wanted = wanted(owner, &addressing.ips, how);
    if backend.kind() == Kind::Iptables {
        // Theirs is a chain for each pod. With nftables there is one rule for
        // the subnet, which other pods use.
        let owner = owner.clone();
        let addresses: Vec<_> = wanted.addresses.iter().map(|it| it.ip()).collect();
        undo.push("remove masquerade", move || {
            Leftovers::remove_masquerade(&owner, || addresses)
        });
    }
    backend.masquerade(&wanted)
}

fn wanted(owner: &Attachment, ips: &[IpConfig], how: Masquerading) -> Masquerade {
    Masquerade {
        owner: owner.clone(),
        addresses: ips.iter().map(|ip| ip.address.0).collect(),
        random_fully: how.random_fully,
    }
}

/// Removes what is there for this pod alone, whoever made it.
pub fn remove_masquerade(request: &Del<Conf>) -> Result<()> {
    Leftovers::remove_masquerade(&request.attachment, || {
        in_the_pod(request)
            .or_else(|| in_the_result(request))
            .unwrap_or_default()
    })
}

/// The addresses of the interface as it is now, if it still is.
fn in_the_pod(request: &Del<Conf>) -> Option<Vec<IpAddr>> {
    let netns = NetNs::open(request.netns.as_ref()?.as_path()).ok()?;
    let pod = Netlink::open_in(&netns).ok()?;
    let link = pod.find_link(request.attachment.ifname.as_str()).ok()??;
    let addresses = pod.list_addresses(link.index, None).ok()?;
    let global = addresses.iter().filter(|it| !it.local_scope);
    Some(global.map(|it| it.address.ip()).collect())
}

/// Its addresses as ADD reported them.
fn in_the_result(request: &Del<Conf>) -> Option<Vec<IpAddr>> {
    let previous = request.call.prev_result().ok()??;
    Some(previous.ips.iter().map(|ip| ip.address.ip()).collect())
}

/// Drops what the pod sends with another MAC than its own.
pub fn check_spoofing(owner: &Attachment, pair: &VethPair, undo: &mut Undo) -> Result<()> {
    let nftables = Nftables::open()?;
    let owner_to_undo = owner.clone();
    undo.push("remove spoof check", move || {
        Nftables::open()?.remove_spoof_check(&owner_to_undo)
    });
    nftables.ensure_spoof_check(&SpoofCheck {
        owner: owner.clone(),
        host_veth: pair.host.name.clone(),
        mac: pair.container.mac.0,
    })
}

/// A check of an interface that is gone does no harm: to remove it is no reason to fail.
pub fn remove_spoof_check(owner: &Attachment) {
    let removed = Nftables::open().and_then(|nftables| nftables.remove_spoof_check(owner));
    if let Err(error) = removed {
        eprintln!("remove spoof check: {error:#}");
    }
}

/// GC: a port that went with its namespace has left its check.
pub fn collect_spoof_checks(request: &Gc<Conf>) -> Result<()> {
    Nftables::open()?.collect_spoof_checks(&request.call.network, &request.valid)
}

/// CHECK: whether masquerade and spoof check are there, in whichever back end.
pub fn check(request: &Check<Conf>, plan: &Plan, previous: &AddResult) -> Result<()> {
    let owner = &request.attachment;
    if let (Some(how), true) = (plan.masquerade, request.call.has_ipam()) {
        nat::check_masquerade(&wanted(owner, &previous.ips, how), how.backend)?;
    }
    if plan.spoof_check {
        let container = CONTAINER as usize;
        let [host, container] = previous
            .interfaces
            .get(container - 1..=container)
            .and_then(|pair| pair.first_chunk())
            .context("interfaces missing in prevResult")?;
        let mac: Mac = container.mac.parse().context("MAC in prevResult")?;
        Nftables::open()?.check_spoof_check(&SpoofCheck {
            owner: owner.clone(),
            host_veth: host.name.clone(),
            mac: mac.0,
        })?;
    }
    Ok(())
}
