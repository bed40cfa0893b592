//! CHECK: whether an attachment is as its result says.

use anyhow::{Context, Result, bail};
use cni::request::Check;
use cni::result::{AddResult, Interface};
use netlink::{InterfaceAddress, Link, Netlink};
use netns::NetNs;

use crate::conf::Conf;
use crate::plan;

/// Compares the kernel with `prevResult`, and returns it.
pub fn attachment(request: &Check<Conf>, netns: &NetNs) -> Result<AddResult> {
    let previous = request
        .call
        .prev_result()?
        .context("Required prevResult missing")?;
    let (host, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    let bridge = check_bridge(&host, &request.conf, &previous)?;
    let container = check_container(&pod, request, &previous)?;
    check_host_veth(&host, &previous, &bridge, &container)?;
    check_layer_3(&pod, &container.name, &previous)?;
    Ok(previous)
}

/// A bridge's MAC that was never pinned may have changed with its ports; the
/// one of a bridge that we created has not.
fn check_bridge(host: &Netlink, conf: &Conf, previous: &AddResult) -> Result<Link> {
    let recorded = previous
        .interfaces
        .iter()
        .find(|interface| interface.name == conf.bridge && interface.sandbox.is_empty())
        .with_context(|| format!("CNI created bridge {} was not found", conf.bridge))?;
    let bridge = find(host, &recorded.name)?;
    if !bridge.is_kind("bridge") {
        bail!(
            "Interface {} does not have link type of bridge",
            bridge.name
        );
    }
    if bridge.is_pinned() {
        check_mac(recorded, &bridge)?;
    }
    if conf.promisc_mode && !bridge.promisc {
        bail!(
            "Bridge interface {} configured Promisc Mode true, current state false",
            bridge.name
        );
    }
    Ok(bridge)
}

/// The last interface of that name in that sandbox is the container's.
fn check_container(pod: &Netlink, request: &Check<Conf>, previous: &AddResult) -> Result<Link> {
    let (ifname, netns) = (request.attachment.ifname.as_str(), request.netns.as_str());
    let recorded = previous
        .interfaces
        .iter()
        .rfind(|interface| interface.name == ifname && interface.sandbox == netns)
        .with_context(|| {
            format!("Sandbox in prevResult  doesn't match configured netns: {netns}")
        })?;
    let link = find(pod, &recorded.name)?;
    if link.kind.as_deref() != Some("veth") {
        bail!("Error: Container interface {} not of type veth", link.name);
    }
    if !recorded.mac.is_empty() && !has_mac(&link, recorded) {
        bail!(
            "Interface {} Mac {} doesn't match container Mac: {}",
            link.name,
            recorded.mac,
            told_mac(&link)
        );
    }
    Ok(link)
}

/// Some interface of the host is the other end, and a port of the bridge. Its
/// MAC is not compared: udev changes it after ADD on some systems.
fn check_host_veth(
    host: &Netlink,
    previous: &AddResult,
    bridge: &Link,
    container: &Link,
) -> Result<()> {
    let candidates = previous
        .interfaces
        .iter()
        .filter(|interface| interface.sandbox.is_empty() && interface.name != bridge.name);
    for candidate in candidates {
        let Some(link) = host.find_link(&candidate.name)? else {
            continue;
        };
        let is_peer = Some(link.index) == container.link && link.link == Some(container.index);
        if is_peer && link.master == Some(bridge.index) {
            return Ok(());
        }
    }
    bail!("CNI veth created for bridge {} was not found", bridge.name)
}

fn check_layer_3(pod: &Netlink, ifname: &str, previous: &AddResult) -> Result<()> {
    let addresses: Vec<_> = previous
        .ips
        .iter()
        .map(|ip| InterfaceAddress {
            address: ip.address.0,
            gateway: ip.gateway,
        })
        .collect();
    pod.check_addresses(ifname, &addresses)?;
    let routes: Vec<_> = previous.routes.iter().map(plan::route_spec).collect();
    pod.check_routes(&routes)
}

fn find(netlink: &Netlink, name: &str) -> Result<Link> {
    netlink
        .find_link(name)?
        .with_context(|| format!("Interface name {name} not found"))
}

fn check_mac(recorded: &Interface, link: &Link) -> Result<()> {
    if !recorded.mac.is_empty() && !has_mac(link, recorded) {
        bail!(
            "Interface {} Mac {} doesn't match: {}",
            link.name,
            recorded.mac,
            told_mac(link)
        );
    }
    Ok(())
}

fn has_mac(link: &Link, recorded: &Interface) -> bool {
    let recorded = recorded.mac.parse().ok();
    recorded.is_some() && link.mac == recorded
}

fn told_mac(link: &Link) -> String {
    link.mac.map(|mac| mac.to_string()).unwrap_or_default()
}
