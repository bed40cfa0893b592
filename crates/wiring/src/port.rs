//! A pod as a port of a bridge, by a veth pair whose host end carries a name
//! and an alias that follow from the attachment.

use anyhow::Result;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName, NetnsPath};
use cni::request::alias_prefix;
use cni::result::Interface;
use cni::{Attachment, BestEffort, Call, Undo, delegate};
use netlink::{Link, Mac, Netlink, PortSpec, VethPair, VethSpec};
use netns::NetNs;

use crate::{outside, pod};

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
            other => return other,
        }
    }
    host.add_veth(&spec, wiring.netns, undo)
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
pub struct Extras {
    /// Masquerade (`ipMasq`).
    pub masquerade: bool,
    /// A spoof check (`macspoofchk`).
    pub spoof_check: bool,
}

/// DEL: takes away all that the port has, and releases its addresses.
pub fn detach(
    call: &Call,
    attachment: &Attachment,
    netns: Option<&NetnsPath>,
    extras: Extras,
    all: &mut BestEffort,
) {
    if extras.masquerade && call.has_ipam() {
        // First: whose addresses they were is still to be seen.
        all.step("remove masquerade", || {
            outside::remove_masquerade(attachment, netns, call)
        });
    }
    pod::delete_and_release(call, all, |all| {
        delete_pair(attachment, netns, all);
        if extras.spoof_check {
            all.step("remove spoof check", || {
                outside::remove_spoof_check(attachment)
            });
        }
    });
}

/// GC: takes away what the ports of attachments that are not in `valid` have left,
/// and has IPAM do the same.
pub fn collect(call: &Call, valid: &[ValidAttachment], extras: Extras, all: &mut BestEffort) {
    let network = &call.network;
    all.step("delete host veths", || delete_stale_veths(network, valid));
    if extras.spoof_check {
        all.step("collect spoof checks", || {
            outside::collect_spoof_checks(network, valid)
        });
    }
    if extras.masquerade {
        all.step("collect masquerade", || {
            nat::Leftovers::collect_masquerade(network, valid)
        });
    }
    if call.has_ipam() {
        all.step("collect addresses", || delegate::ipam_gc(call));
    }
}

/// Deletes both ends, from whichever side there still is one.
fn delete_pair(attachment: &Attachment, netns: Option<&NetnsPath>, all: &mut BestEffort) {
    // Looked for first: after a deletion, whoever asks for a link waits until the kernel
    // has let go of the routing lock.
    let host = all
        .step("find the host veth", || find_host_veth(attachment))
        .flatten();
    let gone = all
        .step("delete the interface", || {
            pod::delete_interface(netns, &attachment.ifname)
        })
        .flatten();
    let Some(host) = host else {
        return;
    };
    let went_along = |pod: Link| pod.is_kind("veth") && pod.link == Some(host.index);
    if !gone.is_some_and(went_along) {
        all.step("delete the host veth", || {
            Ok(Netlink::open()?.delete_link(&host.name)?)
        });
    }
}

/// The host's end: the name follows from the attachment, and the alias says
/// whether it is ours. The kernel takes none at birth: without one, and never set up, it
/// is from an ADD that was killed in between; whoever else has such a name uses it.
fn find_host_veth(attachment: &Attachment) -> Result<Option<Link>> {
    let host = Netlink::open()?;
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
        let Some(alias) = link.alias.filter(|alias| alias.starts_with(&prefix)) else {
            continue;
        };
        if link.kind.as_deref() == Some("veth") && !used.contains(&alias) {
            all.step(&alias, || Ok(host.delete_link(&link.name)?));
        }
    }
    all.finish()
}

fn alias_of(network: &str, valid: &ValidAttachment) -> Option<String> {
    let attachment = Attachment {
        network: network.to_owned(),
        container_id: ContainerId::parse(&valid.container_id).ok()?,
        ifname: IfName::parse(&valid.ifname).ok()?,
    };
    Some(attachment.alias())
}
