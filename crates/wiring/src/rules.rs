//! The packet filter rules of an attachment: masquerade, isolation, separation, access, spoof check.
//!
//! A plugin computes what an attachment wants from its plan and the result of ADD, as one
//! [`Pod`]. ADD makes it, CHECK compares it, `podwire resync` restores it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use cni::address::network_of;
use cni::conf::ValidAttachment;
use cni::result::{AddResult, IpConfig};
use cni::{Attachment, Call, Code, Undo, WithLabel};
use netlink::{Link, Mac, Netlink, VethPair};
use packet_filter::node::{Pod, Wanted};
use packet_filter::{
    Access, Isolation, Kind, Leftovers, Masquerade, Nftables, OpenPorts, Separation, SpoofCheck,
};

use crate::{Masquerading, shared};

/// ADD: adds the rules that are `wanted`, except for the spoof check and the access to the network,
/// which must exist before the pod's interface is up. Ports of `bridge` may be pods of the Go
/// plugins that use the same rules.
///
/// # Errors
/// No back end works; what the kernel or iptables refuses.
pub fn add(wanted: &Pod, bridge: Option<&str>, undo: &mut Undo) -> Result<()> {
    if let Some(separation) = &wanted.separation {
        add_separation(separation)?;
    }
    if let Some(isolation) = &wanted.isolation {
        add_isolation(&wanted.owner, isolation, bridge, undo)?;
    }
    if let Some(ports) = &wanted.open_ports {
        open_ports(ports, undo)?;
    }
    if let Some(links) = &wanted.links {
        crate::links::add(links, undo)?;
    }
    match &wanted.masquerade {
        Some(masquerade) => add_masquerade(masquerade, bridge, undo),
        None => without_masquerade(&wanted.owner, bridge, undo),
    }
}

/// CHECK: whether the rules that are `wanted` exist, in either back end. Links are not compared: a
/// link ends when the pod at its other end is deleted.
///
/// # Errors
/// What is missing.
pub fn check(wanted: &Pod) -> Result<()> {
    if let Some(masquerade) = &wanted.masquerade {
        packet_filter::check_masquerade(&masquerade.rules, masquerade.backend)?;
    }
    if (wanted.separation.is_some() || wanted.isolation.is_some())
        && let Some(nftables) = Nftables::find()?
    {
        if let Some(separation) = &wanted.separation {
            nftables.check_separation(separation)?;
        }
        if let Some(isolation) = &wanted.isolation {
            nftables.check_isolation(isolation)?;
        }
    }
    if let Some(access) = &wanted.access {
        Nftables::open()?.check_access(access)?;
    }
    if let Some(ports) = &wanted.open_ports {
        Nftables::open()?.check_open_ports(ports)?;
    }
    match &wanted.spoof_check {
        Some(spoof_check) => Nftables::open()?.check_spoof_check(spoof_check),
        None => Ok(()),
    }
}

fn add_masquerade(
    masquerade: &Wanted<Masquerade>,
    bridge: Option<&str>,
    undo: &mut Undo,
) -> Result<()> {
    let wanted = &masquerade.rules;
    let owner = &wanted.owner;
    let backend = packet_filter::open(masquerade.backend)?;
    undo_use(owner, bridge, undo);
    let is_first = match backend.kind() {
        Kind::Nftables => shared::use_subnets(wanted)?,
        Kind::Iptables => {
            let owner = owner.clone();
            let addresses: Vec<_> = wanted.addresses.iter().map(|it| it.ip()).collect();
            undo.push("remove masquerade", move || {
                Leftovers::remove_masquerade(&owner, || Ok(Some(addresses)))
            });
            shared::use_own_rules(wanted)?;
            false
        }
    };
    let has_others = backend.masquerade(wanted)?;
    if has_others && is_first {
        // The network's subnet has changed.
        shared::drop_unused(&owner.network, bridge)?;
    }
    Ok(())
}

/// Other pods of the network may be masqueraded, by an earlier configuration.
fn without_masquerade(owner: &Attachment, bridge: Option<&str>, undo: &mut Undo) -> Result<()> {
    if !shared::may_have_rules(&owner.network) {
        return Ok(());
    }
    undo_use(owner, bridge, undo);
    if shared::use_no_rules(owner)? {
        shared::drop_unused(&owner.network, bridge)?;
    }
    Ok(())
}

fn undo_use(owner: &Attachment, bridge: Option<&str>, undo: &mut Undo) {
    let (owner, bridge) = (owner.clone(), bridge.map(str::to_owned));
    undo.push("remove the network's rules", move || {
        shared::leave(&owner, bridge.as_deref(), true)
    });
}

/// DEL: removes the masquerade rules of this pod alone, from both back ends and of both suites.
///
/// # Errors
/// What the kernel or iptables refuses.
pub(crate) fn remove_masquerade(owner: &Attachment, call: &Call) -> Result<()> {
    Leftovers::remove_masquerade(owner, || {
        // The addresses in the pod are not used: the pod may have changed them.
        let known = reported_addresses(call).or_else(|| shared::noted_addresses(owner));
        match known {
            None if !has_sibling(owner)? => Ok(Some(Vec::new())),
            known => Ok(known),
        }
    })
}

/// Whether the container has another interface on the network, by the alias of its host veth. Host
/// veths of the Go plugins have no alias.
fn has_sibling(owner: &Attachment) -> Result<bool> {
    let (own, ifname) = (owner.alias(), owner.ifname.as_str());
    let Some(container) = own.strip_suffix(ifname) else {
        // The alias is a hash, because the names are long: there may be such an interface.
        return Ok(true);
    };
    let links = Netlink::open()?.list_links()?;
    Ok(links.iter().any(|link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        alias.starts_with(container) && alias != own
    }))
}

/// The addresses that ADD reported.
fn reported_addresses(call: &Call) -> Option<Vec<IpAddr>> {
    let previous = call.prev_result_hint()?;
    let addresses = previous.ips.iter().map(|ip| ip.address.ip()).collect();
    Some(addresses).filter(|all: &Vec<_>| !all.is_empty())
}

/// The rules that isolate pods with the addresses `ips` from each other, where the node forwards
/// for them through `gateway`. `None` if they have no subnet there.
pub fn isolation(network: &str, gateway: &Link, ips: &[IpConfig]) -> Option<Isolation> {
    let mut subnets = Vec::new();
    for address in ips.iter().map(|ip| ip.address.0) {
        let subnet = network_of(address);
        if !subnets.contains(&subnet) {
            subnets.push(subnet);
        }
    }
    let isolation = Isolation {
        network: network.to_owned(),
        gateway: gateway.name.clone(),
        mac: gateway.mac?.0,
        subnets,
    };
    (!isolation.subnets.is_empty()).then_some(isolation)
}

fn add_isolation(
    owner: &Attachment,
    wanted: &Isolation,
    bridge: Option<&str>,
    undo: &mut Undo,
) -> Result<()> {
    let Some(nftables) = Nftables::find()? else {
        lacks_nftables(&format!(
            "isolate the pods of {} behind their gateway",
            wanted.network
        ));
        return Ok(());
    };
    undo_use(owner, bridge, undo);
    shared::use_isolation(owner, wanted)?;
    nftables
        .ensure_isolation(wanted)
        .context("isolate the pod behind its gateway")
}

/// ADD: restricts the access to the network of `owner`. `bridge` as in [`add`].
///
/// # Errors
/// The kernel lacks nf_tables; what it refuses.
pub fn add_access(
    owner: &Attachment,
    access: &Access,
    bridge: Option<&str>,
    undo: &mut Undo,
) -> Result<()> {
    let nftables = Nftables::find()?.context(NO_NFTABLES)?;
    undo_use(owner, bridge, undo);
    let is_first = shared::use_access(owner)?;
    let restricted = nftables.ensure_access(access);
    restricted.context("restrict the access to the network")?;
    nftables.accept_forwarded(access, is_first)
}

fn open_ports(ports: &OpenPorts, undo: &mut Undo) -> Result<()> {
    let owner = ports.owner.clone();
    undo.push("close the pod's ports", move || close_ports(&owner));
    shared::use_open_ports(&ports.owner)?;
    Nftables::open()?
        .open_ports(ports)
        .context("open the pod's ports")
}

/// DEL: closes the ports that were opened for the pod.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn close_ports(owner: &Attachment) -> Result<()> {
    match Nftables::find()?.map(Nftables::closed_later) {
        Some(nftables) => nftables.close_ports(owner),
        None => Ok(()),
    }
}

/// GC: closes the ports of attachments that are not `valid`.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn collect_open_ports(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    match Nftables::find()? {
        Some(nftables) => nftables.collect_open_ports(network, valid),
        None => Ok(()),
    }
}

/// Without nf_tables the networks reach each other through the node, as with any other plugin.
fn add_separation(wanted: &Separation) -> Result<()> {
    let Some(nftables) = Nftables::find()? else {
        lacks_nftables(&format!("separate {} from other networks", wanted.network));
        return Ok(());
    };
    nftables
        .ensure_separation(wanted)
        .context("separate the network from others")
}

fn lacks_nftables(action: &str) {
    cni::log(format_args!("{action}: the kernel lacks nf_tables"));
}

/// ADD: drops frames that the pod sends with another source MAC than its own.
///
/// # Errors
/// What the kernel refuses.
pub fn add_spoof_check(owner: &Attachment, pair: &VethPair, undo: &mut Undo) -> Result<()> {
    let nftables = Nftables::open()?;
    let owner_to_undo = owner.clone();
    undo.push("remove spoof check", move || {
        Nftables::open()?.remove_spoof_check(&owner_to_undo, &|veth| {
            belongs_to_another(&owner_to_undo, veth)
        })
    });
    let wanted = SpoofCheck {
        owner: owner.clone(),
        host_veth: pair.host.name.clone(),
        mac: pair.container.mac.0,
    };
    nftables.ensure_spoof_check(&wanted, &|veth| belongs_to_another(owner, veth))
}

/// The spoof check of the attachment whose ADD returned `result`. The host end of its pair is the
/// interface before the pod's.
///
/// # Errors
/// The result has no such interfaces.
pub fn spoof_check(owner: &Attachment, result: &AddResult) -> Result<SpoofCheck> {
    let pair = result.interfaces.windows(2).find(|pair| {
        let [host, container] = [&pair[0], &pair[1]];
        host.is_on_host() && !container.is_on_host() && container.name == owner.ifname.as_str()
    });
    let pair = pair.context("no interface of the pod in the result of ADD")?;
    let mac: Mac = pair[1].mac.parse().context("MAC in the result of ADD")?;
    Ok(SpoofCheck {
        owner: owner.clone(),
        host_veth: pair[0].name.clone(),
        mac: mac.0,
    })
}

/// Whether the alias of a host veth names another attachment. If that is unknown, the veth is
/// treated as another's.
fn belongs_to_another(owner: &Attachment, veth: &str) -> bool {
    match Netlink::open().and_then(|host| host.find_link(veth)) {
        Ok(None) => false,
        Ok(Some(link)) => link
            .alias
            .is_some_and(|alias| alias.starts_with("podwire:") && alias != owner.alias()),
        Err(_) => true,
    }
}

/// DEL: removes the spoof check. A check whose veth is gone drops nothing, but would stay forever.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn remove_spoof_check(owner: &Attachment) -> Result<()> {
    Leftovers::remove_spoof_check(owner, &|veth| belongs_to_another(owner, veth))
}

/// GC: removes the spoof checks of attachments that are not `valid`. A port that was deleted
/// with its namespace leaves one.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn collect_spoof_checks(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    match Nftables::find()? {
        Some(nftables) => nftables.collect_spoof_checks(network, valid),
        None => Ok(()),
    }
}

const NO_NFTABLES: &str =
    "gatewayModeIPv4, gatewayModeIPv6, internal, icc: the kernel lacks nf_tables";

/// STATUS: whether the kernel has what the rules need. `needs_nftables`: whether the access to the
/// network is restricted.
///
/// # Errors
/// Code 50: `ipMasq: …`, `macspoofchk: the kernel lacks nf_tables`, the same for the keys of access.
pub fn status(
    masquerade: Option<&Masquerading>,
    spoof_check: bool,
    needs_nftables: bool,
) -> Result<()> {
    if (spoof_check || needs_nftables) && Nftables::find()?.is_none() {
        let text = if needs_nftables {
            NO_NFTABLES
        } else {
            "macspoofchk: the kernel lacks nf_tables"
        };
        return Err(Code::NotAvailable.err(text).into());
    }
    if let Some(how) = masquerade {
        let opened = packet_filter::open(how.backend);
        opened.context("ipMasq").code(Code::NotAvailable)?;
    }
    Ok(())
}
