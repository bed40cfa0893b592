//! CHECK: whether an attachment is as its result says, and its network as its
//! configuration says.

use anyhow::{Context, Result, bail};
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
    let previous = request
        .call
        .prev_result()?
        .context("Required prevResult missing")?;
    let (host, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    let bridge = check_bridge(&host, plan, &previous)?;
    let wanted = check::Container {
        pod: &pod,
        ifname: request.attachment.ifname.as_str(),
        netns: &request.netns,
        kind: "veth",
    };
    let container = check::container(wanted, &previous)?;
    check::host_veth(&host, &previous, &bridge, &container)?;
    check::layer_3(&pod, &container.name, &previous)?;

    let found = Device::find(&host, &plan.network)?;
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

fn check_bridge(host: &Netlink, plan: &Plan, previous: &AddResult) -> Result<Link> {
    let name = plan.network.bridge.as_str();
    let recorded = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == name && interface.sandbox.is_empty())
        .with_context(|| format!("CNI created bridge {name} was not found"))?;
    let bridge = check::find(host, name)?;
    if !bridge.is_kind("bridge") {
        bail!("Interface {name} does not have link type of bridge");
    }
    if bridge.pinned() == Some(true) {
        check::mac(recorded, &bridge)?;
    }
    Ok(bridge)
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
