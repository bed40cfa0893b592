//! CHECK: whether an attachment is as its result says, and its network as its
//! configuration says.

use anyhow::{Result, bail};
use cni::request::Check;
use cni::result::AddResult;
use nat::nftables::{Apart, Nftables};
use netlink::{Link, Netlink, Peers};
use netns::NetNs;
use overlay::{Device, Mode, device};
use wiring::check;

use crate::conf::Conf;
use crate::plan::Plan;

/// Compares the kernel with `prevResult`, and returns it.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<AddResult> {
    let previous = check::previous(request)?;
    let check::Port { bridge, container } =
        check::port(request, plan.network.bridge.as_str(), netns, &previous)?;
    let found = Device::find(&Netlink::open()?, &plan.network)?;
    found.check(segment(plan, &bridge))?;
    let mtu = found.spec.mtu;
    if container.mtu > mtu {
        bail!(
            "Interface {} has MTU {}, more than the {mtu} that fit",
            container.name,
            container.mtu
        );
    }
    peers(plan, &found, Some(&bridge))?;
    Ok(previous)
}

/// Whether the kernel knows the peers that the configuration lists. A device that is not
/// there yet will be made with them.
pub fn peers(plan: &Plan, found: &Device, bridge: Option<&Link>) -> Result<()> {
    let network = &plan.network;
    let Some(link) = &found.link else {
        return Ok(());
    };
    let wanted = network.entries();
    if wanted.is_empty() {
        return Ok(());
    }
    let bridge = bridge.and_then(|bridge| segment(plan, bridge));
    let overlay = device::overlay(network, link, bridge);
    let present = Peers::open()?.present(overlay)?;
    let mut missing = wanted
        .iter()
        .filter(|entry| !present.written.contains(entry));
    let Some(first) = missing.next() else {
        return Ok(());
    };
    let more = match missing.count() {
        0 => String::new(),
        count => format!(", and {count} more"),
    };
    bail!("peers: {} has no {first}{more}", link.name)
}

/// Whether the network is kept apart from others, as far as the kernel can do it.
pub fn apart(wanted: &Apart) -> Result<()> {
    match Nftables::find()? {
        Some(nftables) => nftables.check_apart(wanted),
        None => Ok(()),
    }
}

/// The bridge, where the device is a port of it.
fn segment<'a>(plan: &Plan, bridge: &'a Link) -> Option<&'a Link> {
    (plan.network.mode == Mode::L2).then_some(bridge)
}
