//! CHECK: whether an attachment is as its result says.

use anyhow::{Result, bail};
use cni::Call;
use cni::request::Check;
use cni::result::AddResult;
use netlink::{Link, Netlink};
use netns::NetNs;
use wiring::{Addressing, check, gateway, outside};

use crate::conf::Conf;
use crate::plan::Plan;

/// Whether isolated pods are kept from each other behind their gateway.
pub fn isolation(plan: &Plan, call: &Call, previous: &AddResult) -> Result<()> {
    let Some(name) = plan.isolated_gateway()? else {
        return Ok(());
    };
    let gateway = Netlink::open()?.find_link(name.as_str())?;
    match plan.isolation(&call.network, gateway.as_ref(), &previous.ips) {
        Some(isolation) => outside::check_isolation(&isolation),
        None => Ok(()),
    }
}

/// Compares the kernel with `prevResult`, and returns it.
pub fn attachment(request: &Check<Conf>, plan: &Plan, netns: &NetNs) -> Result<AddResult> {
    let previous = request.prev_result()?;
    let port = check::port(request, &request.conf.bridge, netns, &previous)?;
    if request.conf.promisc_mode && !port.bridge.promisc {
        bail!(
            "Bridge interface {} configured Promisc Mode true, current state false",
            port.bridge.name
        );
    }
    gateway(request, plan, &port.bridge, &previous)?;
    Ok(previous)
}

/// Whether the bridge is up and, where it is the pods' gateway, it or the interface of their
/// VLAN has the gateway's addresses.
fn gateway(request: &Check<Conf>, plan: &Plan, bridge: &Link, previous: &AddResult) -> Result<()> {
    let host = Netlink::open()?;
    let ifname = request.attachment.ifname.as_str();
    let addresses = match request.call.has_ipam() {
        true => Addressing::gateways_in(previous, plan.gateway, ifname),
        false => Vec::new(),
    };
    if !plan.has_vlan_gateway() || addresses.is_empty() {
        return gateway::check(&host, bridge, &addresses);
    }
    gateway::check(&host, bridge, &[])?;
    let name = plan.vlan_gateway_name()?;
    let Some(interface) = host.find_link(name.as_str())? else {
        bail!("Interface {name} not found, which is the gateway of the pods' VLAN");
    };
    gateway::check(&host, &interface, &addresses)
}
