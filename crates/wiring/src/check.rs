//! CHECK: compares the parts of an attachment with the result of ADD.

use anyhow::{Context, Result, bail};
use cni::request::Check;
use cni::result::{AddResult, Interface};
use netlink::{Link, Netlink};
use netns::NetNs;

use crate::{pod, port};

/// A port of a bridge, as the kernel has it.
#[derive(Clone, Debug)]
pub struct Port {
    /// The bridge.
    pub bridge: Link,
    /// The pod's interface.
    pub container: Link,
}

/// Whether the attachment is a port of the bridge `name`, and has the interfaces, addresses and
/// routes of `previous`.
///
/// # Errors
/// The first difference.
pub fn port<C>(
    request: &Check<C>,
    name: &str,
    netns: &NetNs,
    previous: &AddResult,
) -> Result<Port> {
    let (host, pod) = (Netlink::open()?, Netlink::open_in(netns)?);
    let bridge = bridge(&host, name, previous)?;
    let recorded = container(request, previous)?;
    let expected = Expected {
        missing: Some(not_found(&recorded.name)),
        ..Expected::of("veth")
    };
    let container = expected.find(&pod, recorded)?;
    let alias = request.attachment.alias();
    let is_ours = |link: &Link| {
        let marked = link.alias.as_ref().is_none_or(|of| *of == alias);
        Ok(marked && port::is_peer(&host, link, &container, netns)?)
    };
    host_veth(&host, previous, &bridge, is_ours)?;
    layer_3(&pod, &container.name, previous)?;
    Ok(Port { bridge, container })
}

/// The pod's interface in `previous`: the last of that name in that sandbox.
///
/// # Errors
/// `Sandbox in prevResult  doesn't match configured netns: …`
pub fn container<'a, C>(request: &Check<C>, previous: &'a AddResult) -> Result<&'a Interface> {
    let (ifname, netns) = (request.attachment.ifname.as_str(), request.netns.as_str());
    let mut interfaces = previous.interfaces.iter();
    interfaces
        .rfind(|interface| interface.name == ifname && interface.sandbox == netns)
        .with_context(|| format!("Sandbox in prevResult  doesn't match configured netns: {netns}"))
}

fn not_found(name: &str) -> String {
    format!("Interface name {name} not found")
}

/// The MAC is only compared if it is pinned, as podwire does: another bridge's MAC changes with its
/// ports.
fn bridge(host: &Netlink, name: &str, previous: &AddResult) -> Result<Link> {
    let recorded = previous
        .on_host()
        .find(|interface| interface.name == name)
        .with_context(|| format!("CNI created bridge {name} was not found"))?;
    let bridge = host.find_link(name)?;
    let bridge = bridge.with_context(|| not_found(name))?;
    if !bridge.is_kind("bridge") {
        bail!("Interface {name} does not have link type of bridge");
    }
    if bridge.pinned() == Some(true) {
        check_mac(&bridge, recorded, "", "")?;
    }
    Ok(bridge)
}

/// The link that CHECK expects in the pod, with parts of the Go plugin's error texts.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The word of `ip link … type`.
    pub kind: &'a str,
    /// The kind as the error about a wrong kind shows it.
    pub shown_kind: &'a str,
    /// The beginning of the errors about a wrong MAC and a missing link.
    pub prefix: &'a str,
    /// The error if there is no link, if it is not the usual one.
    pub missing: Option<String>,
}

impl<'a> Expected<'a> {
    /// A link of `kind`, with the usual errors: `Container Interface name in prevResult: …`.
    pub fn of(kind: &'a str) -> Self {
        Self {
            kind,
            shown_kind: kind,
            prefix: "",
            missing: None,
        }
    }

    /// The link that `recorded` of the result describes.
    ///
    /// # Errors
    /// It is missing, of another kind, or has another MAC.
    pub fn find(self, pod: &Netlink, recorded: &Interface) -> Result<Link> {
        let (name, prefix) = (&recorded.name, self.prefix);
        let missing = self.missing.unwrap_or_else(|| {
            format!("{prefix}Container Interface name in prevResult: {name} not found")
        });
        let link = pod.find_link(name)?.context(missing)?;
        if link.name != *name {
            // An alternative name (altname): a pod can give one to any link.
            let is = link.name;
            bail!("Interface name {name} not found: it is another name of {is}");
        }
        if !link.is_kind(self.kind) {
            let kind = self.shown_kind;
            bail!("Error: Container interface {name} not of type {kind}");
        }
        check_mac(&link, recorded, prefix, " container Mac")?;
        Ok(link)
    }
}

/// Whether `container`, a link in `netns`, is the other end of the attachment's host veth in
/// `previous`. Returns the host end.
///
/// # Errors
/// There is no such veth; what the kernel refuses.
pub fn host_end<C>(
    request: &Check<C>,
    host: &Netlink,
    previous: &AddResult,
    container: &Link,
    netns: &NetNs,
) -> Result<Link> {
    let alias = request.attachment.alias();
    for candidate in previous.on_host() {
        if let Some(link) = host.find_link(&candidate.name)?
            && link.alias.as_ref().is_none_or(|of| *of == alias)
            && port::is_peer(host, &link, container, netns)?
        {
            return Ok(link);
        }
    }
    bail!("host end of {} not found", container.name)
}

/// Whether an interface of the host in `previous` is a port of `bridge` and `is_ours`. Its MAC is
/// not compared: udev changes it after ADD on some systems.
fn host_veth(
    host: &Netlink,
    previous: &AddResult,
    bridge: &Link,
    is_ours: impl Fn(&Link) -> Result<bool>,
) -> Result<()> {
    for candidate in previous.on_host().filter(|it| it.name != bridge.name) {
        if let Some(link) = host.find_link(&candidate.name)?
            && link.master == Some(bridge.index)
            && is_ours(&link)?
        {
            return Ok(());
        }
    }
    bail!("CNI veth created for bridge {} was not found", bridge.name)
}

/// Whether the pod's interface `ifname` has the addresses of `previous`, and the pod its routes.
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

/// Compares the MAC, if the result has one. `prefix` and `what` are parts of the Go plugins' error
/// texts.
fn check_mac(link: &Link, recorded: &Interface, prefix: &str, what: &str) -> Result<()> {
    let (name, wanted) = (&link.name, &recorded.mac);
    if wanted.is_empty() || link.mac.is_some() && link.mac == wanted.parse().ok() {
        return Ok(());
    }
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    bail!("{prefix}Interface {name} Mac {wanted} doesn't match{what}: {mac}")
}
