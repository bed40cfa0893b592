//! CHECK: whether the parts of an attachment are as its result says.

use anyhow::{Context, Result, bail};
use cni::env::NetnsPath;
use cni::result::{AddResult, Interface};
use netlink::{Link, Netlink};

use crate::pod;

/// Where an attachment's interface is looked for.
#[derive(Clone, Copy)]
pub struct Container<'a> {
    /// A socket in the pod.
    pub pod: &'a Netlink,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_NETNS`.
    pub netns: &'a NetnsPath,
    /// What it has to be, as the kernel calls it: `veth`, `macvlan`.
    pub kind: &'a str,
}

/// The pod's interface, of the right kind and with the MAC that `previous`
/// promises. The last interface of that name in that sandbox is the pod's.
///
/// # Errors
/// What differs.
pub fn container(wanted: Container<'_>, previous: &AddResult) -> Result<Link> {
    let (ifname, netns) = (wanted.ifname, wanted.netns.as_str());
    let recorded = previous
        .interfaces
        .iter()
        .rfind(|interface| interface.name == ifname && interface.sandbox == netns)
        .with_context(|| {
            format!("Sandbox in prevResult  doesn't match configured netns: {netns}")
        })?;
    let link = find(wanted.pod, &recorded.name)?;
    if !link.is_kind(wanted.kind) {
        bail!(
            "Error: Container interface {} not of type {}",
            link.name,
            wanted.kind
        );
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

/// Whether some interface of the host is the other end of `container`, and a
/// port of `bridge`. Its MAC is not compared: udev changes it after ADD on some
/// systems.
///
/// # Errors
/// `CNI veth created for bridge cni0 was not found`
pub fn host_veth(
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

/// Whether the pod's interface `ifname` has the addresses, and the pod the
/// routes, of `previous`.
///
/// # Errors
/// The first that is missing.
pub fn layer_3(netlink: &Netlink, ifname: &str, previous: &AddResult) -> Result<()> {
    let ips = previous.ips.iter();
    let addresses: Vec<_> = ips.map(pod::interface_address).collect();
    netlink.check_addresses(ifname, &addresses)?;
    let routes: Vec<_> = previous.routes.iter().map(pod::route_spec).collect();
    netlink.check_routes(&routes)
}

/// The link called `name`.
///
/// # Errors
/// `Interface name eth0 not found`
pub fn find(netlink: &Netlink, name: &str) -> Result<Link> {
    netlink
        .find_link(name)?
        .with_context(|| format!("Interface name {name} not found"))
}

/// Whether `link` has the MAC that was recorded, if one was.
///
/// # Errors
/// `Interface cni0 Mac … doesn't match: …`
pub fn mac(recorded: &Interface, link: &Link) -> Result<()> {
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
