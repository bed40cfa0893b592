//! CHECK: whether an attachment is as its result says, and its network as its
//! configuration says.

use anyhow::{Result, bail};
use cni::request::Check;
use cni::result::AddResult;
use netlink::{Link, Netlink};
use netns::NetNs;
use overlay::{Device, Mode, device};
use packet_filter::{Nftables, Separation};
use wiring::{Addressing, check, gateway};

use crate::conf::Conf;
use crate::plan::Plan;

/// Compares the kernel with `prevResult`, and returns it.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<AddResult> {
    let previous = request.prev_result()?;
    let check::Port { bridge, container } =
        check::port(request, plan.network.bridge.as_str(), netns, &previous)?;
    let found = Device::find(&Netlink::open()?, &plan.network)?;
    found.check(segment(plan, &bridge))?;
    if request.call.has_ipam() {
        let ifname = request.attachment.ifname.as_str();
        let addresses = Addressing::gateways_in(&previous, plan.gateway, ifname);
        gateway::check(&Netlink::open()?, &bridge, &addresses)?;
    }
    let mtu = found.spec.mtu;
    if container.mtu > mtu {
        bail!(
            "Interface {} has MTU {}, more than the {mtu} that fit",
            container.name,
            container.mtu
        );
    }
    peers(plan, &found, &bridge)?;
    Ok(previous)
}

/// Whether the kernel knows the peers that the configuration lists.
fn peers(plan: &Plan, found: &Device, bridge: &Link) -> Result<()> {
    let missing = device::missing_entries(&plan.network, found, segment(plan, bridge))?;
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let more = match missing.len() - 1 {
        0 => String::new(),
        count => format!(", and {count} more"),
    };
    bail!("peers: {} has no {first}{more}", plan.network.device())
}

/// Whether the network is kept apart from others, as far as the kernel can do it.
pub fn apart(wanted: &Separation) -> Result<()> {
    match Nftables::find()? {
        Some(nftables) => nftables.check_separation(wanted),
        None => Ok(()),
    }
}

/// The bridge, where the device is a port of it.
fn segment<'a>(plan: &Plan, bridge: &'a Link) -> Option<&'a Link> {
    (plan.network.mode == Mode::L2).then_some(bridge)
}
