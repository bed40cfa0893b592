//! A pod as a port of a bridge, or alone, by a veth pair. The name and the alias of the host end
//! are derived from the attachment.

use anyhow::{Context, Result, bail};
use cni::conf::ValidAttachment;
use cni::env::NetnsPath;
use cni::request::{Add, Del, Gc};
use cni::result::{AddResult, Interface};
use cni::{Attachment, BestEffort, Call, Code, Undo, WithLabel, delegate};
use netlink::{Link, Mac, Netlink, PortSpec, VethPair, VethSpec, sysctl};
use netns::NetNs;

use crate::{alias, links, neighbours, pod, rules, shared};

/// How many names are tried for the host end. Two attachments of a node get the same name once
/// in four billion.
const NAMES: u32 = 10;

/// Adds the veth pair of `request`, with the host end as a port of `bridge`, if there is one, from
/// the start. Without an MTU the kernel chooses 1500 bytes; without a MAC it is random.
///
/// # Errors
/// Code 11: the bridge is full; what the kernel refuses, as [`Netlink::add_veth`].
pub fn add_veth<C>(
    host: &Netlink,
    bridge: Option<&Link>,
    request: &Add<C>,
    netns: &NetNs,
    (mac, mtu): (Option<Mac>, Option<u32>),
    undo: &mut Undo,
) -> Result<VethPair> {
    let attachment = &request.attachment;
    let [host_mac, random] = Mac::random_pair()?;
    let mut spec = VethSpec {
        host_name: attachment.host_veth(0),
        host_mac,
        container_name: attachment.ifname.to_string(),
        container_mac: mac.unwrap_or(random),
        mtu,
        master: bridge.map(|it| it.index),
    };
    let mut attempt = 0;
    loop {
        match host.add_veth(&spec, netns, undo) {
            Err(error) if attempt + 1 < NAMES && refused(&error, netlink::Error::is_exists) => {
                attempt += 1;
                spec.host_name = attachment.host_veth(attempt);
            }
            done => return done.map_err(|error| add_refused(error, bridge)),
        }
    }
}

/// The kernel's text does not mention the bridge.
fn add_refused(error: anyhow::Error, bridge: Option<&Link>) -> anyhow::Error {
    match bridge.filter(|_| refused(&error, netlink::Error::is_full)) {
        Some(bridge) => {
            let full = Code::TryAgain.err(full(bridge));
            full.details(format!("{error:#}")).into()
        }
        None => error,
    }
}

fn refused(error: &anyhow::Error, why: fn(&netlink::Error) -> bool) -> bool {
    error.downcast_ref::<netlink::Error>().is_some_and(why)
}

/// How many ports a Linux bridge can have: port numbers have ten bits and start at 1
/// (`BR_MAX_PORTS`, net/bridge/br_private.h).
const MOST_PORTS: usize = 1023;

fn full(bridge: &Link) -> String {
    let name = &bridge.name;
    format!("bridge {name:?} is full: a Linux bridge takes {MOST_PORTS} ports")
}

/// STATUS: whether the bridge `name`, if it exists, can take one more port.
///
/// # Errors
/// Code 50: `"cni0" already exists but is not a bridge`, `bridge "cni0" is full: a Linux bridge
/// takes 1023 ports`.
pub fn status(host: &Netlink, name: &str) -> Result<()> {
    let Some(bridge) = host.find_bridge(name).code(Code::NotAvailable)? else {
        return Ok(());
    };
    if host.list_ports(bridge.index)?.len() >= MOST_PORTS {
        return Err(Code::NotAvailable.err(full(&bridge)).into());
    }
    Ok(())
}

/// Configures the host end as a port, and sets its alias.
///
/// # Errors
/// What the kernel refuses, as [`Netlink::attach_port`].
pub fn attach(host: &Netlink, veth: &Link, port: PortSpec, attachment: &Attachment) -> Result<()> {
    ignore_router_advertisements(veth);
    let alias = Some(attachment.alias());
    host.attach_port(veth, &PortSpec { alias, ..port })?;
    Ok(())
}

/// Brings up a host end that joins its bridge later ([`join`]), and sets its alias.
///
/// When the pod's end comes up, its kernel sends router solicitations and multicast reports, which
/// a bridge copies to every port, while all other changes of links wait: 4 ms of an ADD beside 900
/// pods. A port that joins its bridge after that saves this time.
///
/// # Errors
/// What the kernel refuses, as [`Netlink::prepare_port`].
pub fn prepare(host: &Netlink, veth: &Link, attachment: &Attachment) -> Result<()> {
    ignore_router_advertisements(veth);
    Ok(host.prepare_port(veth, &attachment.alias())?)
}

/// Makes a host end that was prepared ([`prepare`]) a port of `bridge`, which forwards at once.
///
/// # Errors
/// Code 11: the bridge is full; what the kernel refuses, as [`Netlink::join_bridge`].
pub fn join(host: &Netlink, veth: &Link, bridge: &Link, hairpin: bool) -> Result<()> {
    // A worker of the kernel on this processor sends the pod's first reports and solicitations
    // (`addrconf_dad_work`, net/ipv6/addrconf.c). If it runs before the port joins, the bridge does not
    // copy them to the other pods.
    std::thread::yield_now();
    host.join_bridge(veth, bridge.index, hairpin)
        .map_err(|error| add_refused(error.into(), Some(bridge)))
}

/// Waits until its bridge forwards for the port `veth`, and returns it as it is then. The port has no
/// IPv6 route of its own from then on: see [`Netlink::delete_multicast_route`].
///
/// # Errors
/// As [`Netlink::wait_for_port`].
pub fn wait_until_forwarding(host: &Netlink, veth: &Link) -> Result<Link> {
    let port = host.wait_for_port(veth.index)?;
    // Optional: the pod works with it.
    let _ = host.delete_multicast_route(&port);
    Ok(port)
}

/// Brings up a host end that is a port of no bridge, and sets its alias. With `ipv6`, its
/// link-local address is usable at once: to forward a packet, the host solicits the pod's MAC
/// from that address, and would not during duplicate address detection.
///
/// # Errors
/// What the kernel refuses.
pub fn set_up(host: &Netlink, veth: &Link, attachment: &Attachment, ipv6: bool) -> Result<()> {
    ignore_router_advertisements(veth);
    if ipv6 {
        let accept_dad = sysctl::interface_key("ipv6", &veth.name, "accept_dad");
        let _ = sysctl::write(&accept_dad, "0");
    }
    Ok(host.set_up_with_alias(veth.index, Some(&attachment.alias()))?)
}

/// The host must not take addresses or routes from a pod's router advertisements. They reach a port
/// of a bridge, too, in a frame to 01:80:c2:00:00:03, which the bridge leaves to the port's own
/// stack (`br_handle_frame`, net/bridge/br_input.c). Netlink has no attribute for the setting.
fn ignore_router_advertisements(veth: &Link) {
    let accept_ra = sysctl::interface_key("ipv6", &veth.name, "accept_ra");
    let _ = sysctl::write(&accept_ra, "0");
}

/// Gives the pod's end `mac`, when it is brought up.
pub fn set_mac(pod: &mut netlink::Pod, pair: &mut VethPair, mac: Option<Mac>) {
    if let Some(mac) = mac.filter(|mac| *mac != pair.container.mac) {
        pod.set_mac(mac);
        pair.container.mac = mac;
    }
}

/// The pod's end as a result shows it, without its sandbox.
pub fn container_interface(pair: &VethPair) -> Interface {
    Interface {
        name: pair.container.name.clone(),
        mac: pair.container.mac.to_string(),
        mtu: pair.container.mtu,
        ..Interface::default()
    }
}

/// The packet filter rules that a port may have, by the keys of its configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfiguredRules<'a> {
    /// Masquerade (`ipMasq`).
    pub masquerade: bool,
    /// Isolation (`portIsolation`), or rules about the access to the network.
    pub isolation: bool,
    /// Opened ports.
    pub open_ports: bool,
    /// Links to other pods.
    pub links: bool,
    /// The bridge, whose ports may be pods of the Go plugins on the same network.
    pub bridge: Option<&'a str>,
    /// A spoof check (`macspoofchk`).
    pub spoof_check: bool,
}

/// DEL: deletes the veth pair and the rules of the port, and releases its addresses.
pub fn delete<C>(request: &Del<C>, configured: ConfiguredRules<'_>, all: &mut BestEffort) {
    let (call, attachment) = (&request.call, &request.attachment);
    let masquerade = configured.masquerade && call.has_ipam();
    // The configuration may have changed since the ADD.
    if masquerade || shared::may_have_rules(&call.network) {
        all.step("remove masquerade", || {
            rules::remove_masquerade(attachment, call)
        });
    }
    let mut gone = None;
    pod::delete_and_release(call, all, |all| {
        gone = all.step("delete the veth pair", || delete_pair(request));
        if configured.spoof_check {
            all.step("remove spoof check", || {
                rules::remove_spoof_check(attachment)
            });
        }
        // The configuration may have changed since the ADD.
        if configured.open_ports || shared::has_open_ports(attachment) {
            all.step("close the pod's ports", || rules::close_ports(attachment));
        }
        if configured.links || shared::has_links(attachment) {
            all.step("remove the pod's links", || links::remove(attachment));
        }
        gone
    });
    // The rules stay as long as the pod can send.
    if gone.is_some() {
        all.step("remove the network's rules", || {
            let configured_rules = masquerade || configured.isolation;
            shared::leave(attachment, configured.bridge, configured_rules)
        });
    }
}

/// GC: deletes what the ports of attachments that are not valid have left, and forwards GC to
/// the IPAM plugin.
pub fn collect<C>(request: &Gc<C>, all: &mut BestEffort) {
    let (network, valid) = (&request.call.network, &request.valid);
    all.step("delete host veths", || delete_stale_veths(network, valid));
    // Regardless of the configuration, which may have changed since an ADD.
    all.step("collect spoof checks", || {
        rules::collect_spoof_checks(network, valid)
    });
    all.step("collect opened ports", || {
        rules::collect_open_ports(network, valid)
    });
    all.step("collect links", || links::collect(network, valid));
    all.step("collect masquerade", || {
        packet_filter::Leftovers::collect_masquerade(network, valid)
    });
    all.step("collect the network's rules", || {
        shared::collect(network, valid)
    });
    all.step("collect addresses", || delegate::ipam_gc(&request.call));
}

/// Deletes the host end of the pair. The kernel deletes the pod's end with it, even if the pod
/// renamed it or moved it to another namespace. Nothing is deleted by a name or an index in the
/// pod: the pod chooses those.
fn delete_pair<C>(request: &Del<C>) -> Result<()> {
    let (attachment, netns) = (&request.attachment, request.netns.as_ref());
    let host = Netlink::open()?;
    let found = match find_host_veth(&host, attachment)? {
        None => find_unmarked_veth(&host, &request.call, attachment, netns)?,
        found => found,
    };
    neighbours::detach(&host, request, found.as_ref());
    if let Some(link) = found {
        host.remove(&link)?;
    }
    Ok(())
}

/// Whether podwire's veth pair of the attachment exists.
///
/// # Errors
/// What the kernel refuses.
pub fn has_host_veth(host: &Netlink, attachment: &Attachment) -> Result<bool> {
    Ok(find_host_veth(host, attachment)?.is_some())
}

/// Finds the host end by its derived name and its alias. The kernel sets no alias when it creates
/// a link: a veth without one that was never up is from an ADD that was killed in between. Any
/// other link with such a name belongs to another program.
fn find_host_veth(host: &Netlink, attachment: &Attachment) -> Result<Option<Link>> {
    let alias = attachment.alias();
    for attempt in 0..NAMES {
        let Some(link) = host.find_link(&attachment.host_veth(attempt))? else {
            return Ok(None);
        };
        let is_ours = match &link.alias {
            Some(of) => *of == alias,
            None => link.is_kind("veth") && !link.up,
        };
        if is_ours {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Finds the host end of a pair that the Go plugins made: it has a random name and no alias.
/// Either the result of ADD names it, or its other end is the pod's interface.
fn find_unmarked_veth(
    host: &Netlink,
    call: &Call,
    attachment: &Attachment,
    netns: Option<&NetnsPath>,
) -> Result<Option<Link>> {
    let previous = call.prev_result_hint().unwrap_or_default();
    let netns = pod::find_netns(netns)?;
    for recorded in previous.on_host() {
        let Some(link) = host.find_link(&recorded.name)?.filter(is_unmarked_veth) else {
            continue;
        };
        let same_mac = link.mac.is_some() && link.mac == recorded.mac.parse().ok();
        if same_mac || ends_in(host, &link, netns.as_ref())? {
            return Ok(Some(link));
        }
    }
    let Some(netns) = netns else {
        return Ok(None);
    };
    if let Some(container) = Netlink::open_in(&netns)?.find_link(attachment.ifname.as_str())?
        && let Some(index) = container.link.filter(|_| container.is_kind("veth"))
        && let Some(link) = host.find_link_by_index(index)?
        && is_unmarked_veth(&link)
        && is_peer(host, &link, &container, &netns)?
    {
        return Ok(Some(link));
    }
    Ok(None)
}

fn is_unmarked_veth(link: &Link) -> bool {
    link.is_kind("veth") && link.alias.is_none()
}

/// Whether `container`, a link in `netns`, is the other end of the host's `link`. Only the host
/// end is evidence: a pod can create links with any index and any peer index.
pub(crate) fn is_peer(
    host: &Netlink,
    link: &Link,
    container: &Link,
    netns: &NetNs,
) -> Result<bool> {
    Ok(link.link == Some(container.index) && ends_in(host, link, Some(netns))?)
}

/// The host end of the pod's interface `ifname`, which `previous` has. For chained plugins, whose
/// texts are those of the Go plugins.
///
/// # Errors
/// `container interface eth0 has no veth peer: …`, `veth peer with index 7 is not in host ns`, `no
/// veth peer of container interface found in host ns`.
pub fn host_end(host: &Netlink, ifname: &str, netns: &NetNs, previous: &AddResult) -> Result<Link> {
    if previous.interfaces.is_empty() {
        bail!("no interfaces provided");
    }
    let no_peer = || format!("container interface {ifname} has no veth peer");
    let container = Netlink::open_in(netns)?
        .get_link(ifname)
        .with_context(no_peer)?;
    if !container.is_kind("veth") {
        let kind = container.kind.as_deref().unwrap_or("physical device");
        bail!("{}: it is no veth but a {kind}", no_peer());
    }
    let index = container.link.unwrap_or_default();
    let link = host.find_link_by_index(index)?;
    let link = link.with_context(|| format!("veth peer with index {index} is not in host ns"))?;
    let listed = previous.on_host().any(|it| it.name == link.name);
    if !listed || !is_peer(host, &link, &container, netns)? {
        bail!("no veth peer of container interface found in host ns");
    }
    Ok(link)
}

/// Whether the other end of the host's `link` is in `netns`.
fn ends_in(host: &Netlink, link: &Link, netns: Option<&NetNs>) -> Result<bool> {
    let (Some(id), Some(netns)) = (link.link_netnsid, netns) else {
        return Ok(false);
    };
    Ok(host.id_of(netns)? == Some(id))
}

/// Deletes each host veth of `network` whose attachment is not in `valid`.
fn delete_stale_veths(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let is_stale = alias::stale(network, valid);
    let host = Netlink::open()?;
    let mut all = BestEffort::new();
    for link in host.list_links()? {
        if link.is_kind("veth") && is_stale(&link) {
            neighbours::collect(&host, network, &link);
            let alias = link.alias.as_deref().unwrap_or_default();
            all.step(alias, || Ok(host.remove(&link)?));
        }
    }
    all.finish()
}
