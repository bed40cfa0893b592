//! A pod as a port of a bridge, by a veth pair whose host end carries a name
//! and an alias that follow from the attachment.

use anyhow::Result;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName, NetnsPath};
use cni::request::alias_prefix;
use cni::result::Interface;
use cni::{Attachment, BestEffort, Call, Code, Undo, delegate};
use netlink::{Link, Mac, Netlink, PortSpec, VethPair, VethSpec};
use netns::NetNs;

use crate::{outside, pod, shared};

/// What a pair is made from.
#[derive(Clone, Copy, Debug)]
pub struct Wiring<'a> {
    /// Whose it is.
    pub attachment: &'a Attachment,
    /// Where its other end goes.
    pub netns: &'a NetNs,
    /// The MAC of the other end; `None` for a random one.
    pub mac: Option<Mac>,
    /// The largest packet in bytes; `None` for the kernel's 1500.
    pub mtu: Option<u32>,
}

/// How many names are tried for the host end. Two attachments of a node share a
/// name once in four thousand million; ten of them never.
const NAMES: u32 = 10;

/// Makes the pair, its host end a port of `bridge` from birth.
///
/// # Errors
/// What the kernel refuses, as [`Netlink::add_veth`] says it.
pub fn add_veth(
    host: &Netlink,
    bridge: &Link,
    wiring: &Wiring<'_>,
    undo: &mut Undo,
) -> Result<VethPair> {
    let attachment = wiring.attachment;
    let [host_mac, random] = Mac::random_pair()?;
    let mut spec = VethSpec {
        host_name: attachment.host_veth(0),
        host_mac,
        container_name: attachment.ifname.to_string(),
        container_mac: wiring.mac.unwrap_or(random),
        mtu: wiring.mtu,
        master: Some(bridge.index),
    };
    for attempt in 1..NAMES {
        match host.add_veth(&spec, wiring.netns, undo) {
            Err(error) if is_name_taken(&error) => spec.host_name = attachment.host_veth(attempt),
            other => return other.map_err(|error| why_not(error, bridge)),
        }
    }
    let made = host.add_veth(&spec, wiring.netns, undo);
    made.map_err(|error| why_not(error, bridge))
}

/// How many ports a bridge of Linux can have: they are numbered by ten bits, from 1
/// (`BR_MAX_PORTS`, net/bridge/br_private.h).
const MOST_PORTS: usize = 1023;

/// The kernel's text for a bridge that has no room says nothing of bridges.
fn why_not(error: anyhow::Error, bridge: &Link) -> anyhow::Error {
    let kernel = error.downcast_ref::<netlink::Error>();
    if !kernel.is_some_and(netlink::Error::is_full) {
        return error;
    }
    let full = Code::TryAgain.err(full(bridge));
    full.details(format!("{error:#}")).into()
}

fn full(bridge: &Link) -> String {
    let name = &bridge.name;
    format!("bridge {name:?} is full: a Linux bridge takes {MOST_PORTS} ports")
}

/// STATUS: whether `bridge` has room for one more port.
///
/// # Errors
/// Code 50: `bridge "cni0" is full: a Linux bridge takes 1023 ports`.
pub fn refuse_full(host: &Netlink, bridge: &Link) -> Result<()> {
    if host.list_ports(bridge.index)?.len() >= MOST_PORTS {
        return Err(Code::NotAvailable.err(full(bridge)).into());
    }
    Ok(())
}

fn is_name_taken(error: &anyhow::Error) -> bool {
    let kernel = error.downcast_ref::<netlink::Error>();
    kernel.is_some_and(netlink::Error::is_exists)
}

/// Sets up the host end as a port, and says whose it is.
///
/// # Errors
/// What the kernel refuses, as [`Netlink::attach_port`] says it.
pub fn attach(host: &Netlink, veth: &Link, port: PortSpec, attachment: &Attachment) -> Result<()> {
    // The host must not take its own addresses or routes from what a pod says.
    let accept_ra = netlink::sysctl::interface_key("ipv6", &veth.name, "accept_ra");
    let _ = netlink::sysctl::write(&accept_ra, "0");
    let alias = Some(attachment.alias());
    host.attach_port(veth, &PortSpec { alias, ..port })?;
    Ok(())
}

/// The pod's end, as the result shows it.
pub fn container_interface(pair: &VethPair, netns: &NetnsPath) -> Interface {
    Interface {
        name: pair.container.name.clone(),
        mac: pair.container.mac.to_string(),
        mtu: pair.container.mtu,
        sandbox: netns.as_str().to_owned(),
        ..Interface::default()
    }
}

/// What a port may have besides its veth pair, by the keys of its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Extras<'a> {
    /// Masquerade (`ipMasq`).
    pub masquerade: bool,
    /// Isolation (`portIsolation`).
    pub isolation: bool,
    /// Where pods of the Go plugins may be that use the same network.
    pub bridge: Option<&'a str>,
    /// A spoof check (`macspoofchk`).
    pub spoof_check: bool,
}

/// DEL: takes away all that the port has, and releases its addresses.
pub fn detach(
    call: &Call,
    attachment: &Attachment,
    netns: Option<&NetnsPath>,
    extras: Extras<'_>,
    all: &mut BestEffort,
) {
    let masquerade = extras.masquerade && call.has_ipam();
    // The configuration may have been changed since the ADD.
    if masquerade || shared::may_have_rules(&call.network) {
        all.step("remove masquerade", || {
            outside::remove_masquerade(attachment, call)
        });
    }
    let mut gone = None;
    pod::delete_and_release(call, all, |all| {
        gone = all.step("delete the veth pair", || {
            delete_pair(call, attachment, netns)
        });
        if extras.spoof_check {
            all.step("remove spoof check", || {
                outside::remove_spoof_check(attachment)
            });
        }
        gone
    });
    // As long as the pod can send, it is masqueraded and isolated.
    if gone.is_some() {
        all.step("remove the network's rules", || {
            shared::leave(attachment, extras.bridge, masquerade || extras.isolation)
        });
    }
}

/// GC: takes away what the ports of attachments that are not in `valid` have left,
/// and has IPAM do the same.
pub fn collect(call: &Call, valid: &[ValidAttachment], all: &mut BestEffort) {
    let network = &call.network;
    all.step("delete host veths", || delete_stale_veths(network, valid));
    // Whatever the configuration says now: it may have been changed since an ADD.
    all.step("collect spoof checks", || {
        outside::collect_spoof_checks(network, valid)
    });
    all.step("collect masquerade", || {
        packet_filter::Leftovers::collect_masquerade(network, valid)
    });
    all.step("collect the network's rules", || {
        shared::collect(network, valid)
    });
    all.step("collect addresses", || delegate::ipam_gc(call));
}

/// Deletes the host's end of the pair, and with it the pod's end: the kernel deletes both,
/// whatever name the pod gave to its end and whatever namespace it moved it to. Names and
/// indexes in the pod are the pod's to choose, so nothing is deleted by them.
fn delete_pair(call: &Call, attachment: &Attachment, netns: Option<&NetnsPath>) -> Result<()> {
    let host = Netlink::open()?;
    let found = match find_host_veth(&host, attachment)? {
        None => find_unmarked_veth(&host, call, attachment, netns)?,
        found => found,
    };
    if let Some(link) = found {
        host.remove(&link)?;
    }
    Ok(())
}

/// Whether there is a veth pair of ours for the attachment.
///
/// # Errors
/// The kernel cannot be asked.
pub fn has_host_veth(host: &Netlink, attachment: &Attachment) -> Result<bool> {
    Ok(find_host_veth(host, attachment)?.is_some())
}

/// The host's end: the name follows from the attachment, and the alias says
/// whether it is ours. The kernel takes none at birth: without one, and never set up, it
/// is from an ADD that was killed in between; whatever else has such a name is another's.
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

/// The host's end of a pair that the Go plugins made: its name is random, and it has no
/// alias. Either the result of ADD names it, or its other end is the interface of the pod.
fn find_unmarked_veth(
    host: &Netlink,
    call: &Call,
    attachment: &Attachment,
    netns: Option<&NetnsPath>,
) -> Result<Option<Link>> {
    let previous = call.prev_result_hint().unwrap_or_default();
    let netns = pod::find_netns(netns)?;
    for recorded in previous
        .interfaces
        .iter()
        .filter(|it| it.sandbox.is_empty())
    {
        let Some(link) = host.find_link(&recorded.name)? else {
            continue;
        };
        if !is_unmarked_veth(&link) {
            continue;
        }
        let same_mac = link.mac.is_some() && link.mac == recorded.mac.parse().ok();
        if same_mac || ends_in(host, &link, netns.as_ref())? {
            return Ok(Some(link));
        }
    }
    let Some(netns) = netns else {
        return Ok(None);
    };
    let pod = Netlink::open_in(&netns)?;
    let Some(container) = pod.find_link(attachment.ifname.as_str())? else {
        return Ok(None);
    };
    let Some(index) = container.link.filter(|_| container.is_kind("veth")) else {
        return Ok(None);
    };
    let Some(link) = host.find_link_by_index(index)? else {
        return Ok(None);
    };
    let is_ours = is_unmarked_veth(&link) && is_peer(host, &link, &container, &netns)?;
    Ok(Some(link).filter(|_| is_ours))
}

fn is_unmarked_veth(link: &Link) -> bool {
    link.is_kind("veth") && link.alias.is_none()
}

/// Whether `container`, a link in `netns`, is the other end of the host's `link`. The host's
/// end tells it: the pod can have a link of any index, whose peer has any index too.
pub(crate) fn is_peer(
    host: &Netlink,
    link: &Link,
    container: &Link,
    netns: &NetNs,
) -> Result<bool> {
    Ok(link.link == Some(container.index) && ends_in(host, link, Some(netns))?)
}

/// Whether the other end of the host's `link` is in `netns`.
fn ends_in(host: &Netlink, link: &Link, netns: Option<&NetNs>) -> Result<bool> {
    let (Some(id), Some(netns)) = (link.link_netnsid, netns) else {
        return Ok(false);
    };
    Ok(host.id_of(netns)? == Some(id))
}

/// Deletes every host veth of `network` whose attachment is not in `valid`.
fn delete_stale_veths(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let prefix = alias_prefix(network);
    let used: Vec<_> = valid
        .iter()
        .filter_map(|valid| alias_of(network, valid))
        .collect();
    let host = Netlink::open()?;
    let mut all = BestEffort::new();
    for link in host.list_links()? {
        let of_network = |alias: &&String| alias.starts_with(&prefix);
        let Some(alias) = link.alias.as_ref().filter(of_network) else {
            continue;
        };
        if link.kind.as_deref() == Some("veth") && !used.contains(alias) {
            all.step(alias, || Ok(host.remove(&link)?));
        }
    }
    all.finish()
}

/// The alias of an attachment that is still valid; `None` where it is malformed.
pub fn alias_of(network: &str, valid: &ValidAttachment) -> Option<String> {
    let attachment = Attachment {
        network: network.to_owned(),
        container_id: ContainerId::parse(&valid.container_id).ok()?,
        ifname: IfName::parse(&valid.ifname).ok()?,
    };
    Some(attachment.alias())
}
