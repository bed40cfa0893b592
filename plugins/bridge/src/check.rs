//! CHECK: compares the kernel with the result of ADD.

use anyhow::{Result, bail};
use cni::request::Check;
use cni::result::AddResult;
use netlink::{Link, Netlink};
use netns::NetNs;
use wiring::{Addressing, check, gateway};

use crate::conf::Conf;
use crate::plan::Plan;

/// Compares the attachment with `prevResult`, and returns that.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<AddResult> {
    let previous = request.prev_result()?;
    let port = check::port(request, plan.bridge.as_str(), netns, &previous)?;
    if plan.promisc && !port.bridge.promisc {
        bail!(
            "Bridge interface {} configured Promisc Mode true, current state false",
            port.bridge.name
        );
    }
    gateway(request, plan, &port.bridge, &previous)?;
    Ok(previous)
}

/// Whether the bridge is up, and whether the gateway's interface has its addresses.
fn gateway(request: &Check<Conf>, plan: &Plan, bridge: &Link, previous: &AddResult) -> Result<()> {
    let host = Netlink::open()?;
    let addresses = if request.call.has_ipam() {
        Addressing::gateways_in(previous, plan.gateway, request.attachment.ifname.as_str())
    } else {
        Vec::new()
    };
    let Some(name) = plan.vlan_gateway.as_ref().filter(|_| !addresses.is_empty()) else {
        return gateway::check(&host, bridge, &addresses);
    };
    gateway::check(&host, bridge, &[])?;
    let Some(interface) = host.find_link(name.as_str())? else {
        bail!("Interface {name} not found, which is the gateway of the pods' VLAN");
    };
    gateway::check(&host, &interface, &addresses)
}
