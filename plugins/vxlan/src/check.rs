//! CHECK: compares the kernel with the result of ADD and with the network's configuration.

use anyhow::{Result, bail};
use cni::request::Check;
use cni::result::AddResult;
use netlink::{Link, Netlink};
use netns::NetNs;
use overlay::{Conf, Device, Mode, device};
use wiring::{Addressing, check, gateway};

use crate::plan::Plan;

/// Compares the attachment with `prevResult`, and returns that.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<AddResult> {
    let previous = request.prev_result()?;
    let check::Port { bridge, container } =
        check::port(request, plan.network.bridge.as_str(), netns, &previous)?;
    let host = Netlink::open()?;
    let found = Device::find(&host, &plan.network)?;
    // In mode l2 the device is a port of the bridge.
    let segment = (plan.network.mode == Mode::L2).then_some(&bridge);
    found.check(segment)?;
    if request.call.has_ipam() {
        let ifname = request.attachment.ifname.as_str();
        let addresses = Addressing::gateways_in(&previous, plan.gateway, ifname);
        gateway::check(&host, &bridge, &addresses)?;
    }
    let mtu = found.spec.mtu;
    if container.mtu > mtu {
        bail!(
            "Interface {} has MTU {}, more than the {mtu} that fit",
            container.name,
            container.mtu
        );
    }
    peers(plan, &found, segment)?;
    Ok(previous)
}

/// Whether the kernel has the entries of the configuration's peers.
fn peers(plan: &Plan, found: &Device, segment: Option<&Link>) -> Result<()> {
    let missing = device::missing_entries(&plan.network, found, segment)?;
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let more = match missing.len() - 1 {
        0 => String::new(),
        count => format!(", and {count} more"),
    };
    bail!("peers: {} has no {first}{more}", plan.network.device())
}
