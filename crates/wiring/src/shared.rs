//! Rules that all attachments of a network share: for each subnet one that masquerades it and one
//! that isolates its pods from each other, and the rules about the access to the network. The first
//! attachment that needs a rule adds it, and the last one removes it.
//!
//! [`Users`] has the attachments that need a rule. As it may be incomplete, a rule is only removed
//! if the kernel has no attachment that is not in it.

use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;
use ipnetwork::IpNetwork;
use netlink::Netlink;
use packet_filter::{Isolation, Masquerade, Nftables, Place};

use crate::users::{Unavailable, Users};
use crate::{alias, links, rules};

/// Prefix of the use of a rule that masquerades a subnet.
const MASQUERADE: &str = "masquerade-";

/// Prefix of the use of a rule that isolates the pods of a subnet.
const ISOLATION: &str = "isolation-";

/// The use of the rules about the access to a network.
const ACCESS: &str = "access";

/// The use of an attachment with opened ports, which it does not share.
const OPENED: &str = "opened-ports";

/// The use of an attachment at an end of a link.
const LINKED: &str = "links";

/// The use of an attachment that shares no rule. Where iptables has rules for it, the file
/// contains its addresses.
const OWN: &str = "own";

/// ADD: notes the subnets of `wanted`, before the rules are added. Returns whether the attachment
/// is the first user of one of them. If nothing can be written, the rules stay until GC.
///
/// # Errors
/// Code 11: another call removes rules for too long.
pub fn use_subnets(wanted: &Masquerade) -> Result<bool> {
    let mut uses: Vec<_> = wanted.subnets().iter().map(use_of_subnet).collect();
    if uses.is_empty() {
        uses.push(OWN.to_owned());
    }
    note(&wanted.owner, &uses, "")
}

/// ADD: notes the rules that isolate the attachment's pod.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_isolation(owner: &Attachment, wanted: &Isolation) -> Result<()> {
    let uses: Vec<_> = wanted.places().iter().map(use_of_place).collect();
    note(owner, &uses, "").map(drop)
}

/// ADD: notes that the attachment uses the rules about the access to its network. Returns whether
/// it is the first one.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_access(owner: &Attachment) -> Result<bool> {
    note(owner, &[ACCESS.to_owned()], "")
}

/// ADD: notes that the attachment has opened ports.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_open_ports(owner: &Attachment) -> Result<()> {
    note(owner, &[OPENED.to_owned()], "").map(drop)
}

/// DEL: whether the attachment has opened ports, as far as it is noted.
pub fn has_open_ports(owner: &Attachment) -> bool {
    has_noted(OPENED, owner)
}

/// ADD: notes that a link begins or ends at the attachment.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_links(owner: &Attachment) -> Result<()> {
    note(owner, &[LINKED.to_owned()], "").map(drop)
}

/// DEL: whether a link begins or ends at the attachment, as far as it is noted.
pub fn has_links(owner: &Attachment) -> bool {
    has_noted(LINKED, owner)
}

/// Keeps out all other calls that add or remove rules of the network, until it is dropped.
///
/// # Errors
/// Code 11: another call takes too long.
pub(crate) fn alone(network: &str) -> Result<Option<Users>> {
    match Users::open_exclusive(network) {
        Ok(users) => Ok(Some(users)),
        Err(error) => ignore_unavailable(error).map(|()| None),
    }
}

fn has_noted(what: &str, owner: &Attachment) -> bool {
    let users = Users::find(&owner.network);
    users.is_ok_and(|it| it.is_some_and(|it| it.content(what, owner).is_some()))
}

/// ADD: notes an attachment with rules of its own, and their addresses.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_own_rules(wanted: &Masquerade) -> Result<()> {
    let addresses = wanted.addresses.iter().map(|it| format!("{}\n", it.ip()));
    let content: String = addresses.collect();
    note(&wanted.owner, &[OWN.to_owned()], &content).map(drop)
}

/// ADD: notes an attachment without masquerade, if others of the network are or were masqueraded.
/// Returns whether it is the first one without.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_no_rules(owner: &Attachment) -> Result<bool> {
    match Users::find(&owner.network) {
        Ok(None) => Ok(false),
        _ => note(owner, &[OWN.to_owned()], ""),
    }
}

fn note(owner: &Attachment, uses: &[String], content: &str) -> Result<bool> {
    let users = match Users::open_shared(&owner.network) {
        Ok(users) => users,
        Err(error) if error.downcast_ref::<cni::Error>().is_some() => return Err(error),
        Err(_) => return Ok(false),
    };
    let mut is_first = false;
    for what in uses {
        // An attachment without a file counts as unknown, which keeps all rules.
        is_first |= users.note(what, owner, content).unwrap_or(false);
    }
    Ok(is_first)
}

/// Forgets attachments whose rules were handed over to the Go plugins, and removes the rules that
/// no others use.
///
/// # Errors
/// What the kernel refuses.
pub fn hand_over(network: &str, these: &[&Attachment]) -> Result<()> {
    // DEL of the Go plugins would not remove them.
    for attachment in these.iter().filter(|it| has_open_ports(it)) {
        rules::close_ports(attachment)?;
    }
    for attachment in these.iter().filter(|it| has_links(it)) {
        links::remove(attachment)?;
    }
    if let Ok(Some(users)) = Users::find(network) {
        for attachment in these {
            let _ = users.forget(attachment);
        }
    }
    let aliases: Vec<_> = these.iter().map(|it| it.alias()).collect();
    remove_unused(network, |users| {
        has_unknown(network, None, |alias| {
            aliases.iter().any(|it| it == alias) || users.knows(alias)
        })
    })
}

/// Whether attachments to `network` other than these use its rules, or may do so.
pub fn has_other_users(network: &str, these: &[&Attachment]) -> bool {
    let aliases: Vec<_> = these.iter().map(|it| it.alias()).collect();
    let noted = match Users::find(network) {
        Ok(None) => false,
        Ok(Some(users)) => users.has_others(&aliases).unwrap_or(true),
        Err(_) => true,
    };
    let is_these = |alias: &str| aliases.iter().any(|it| it == alias);
    noted || has_unknown(network, None, is_these).unwrap_or(true)
}

/// Whether DEL must look for rules, whatever the configuration is now: the network's directory
/// exists, so attachments are or were noted.
pub fn may_have_rules(network: &str) -> bool {
    !matches!(Users::find(network), Ok(None))
}

/// The addresses that iptables has rules for since ADD; `None` if they are unknown.
pub fn noted_addresses(owner: &Attachment) -> Option<Vec<IpAddr>> {
    let users = Users::find(&owner.network).ok()??;
    let content = users.content(OWN, owner)?;
    let addresses: Option<Vec<_>> = content.lines().map(|line| line.parse().ok()).collect();
    addresses.filter(|all| !all.is_empty())
}

/// DEL: forgets the attachment, and removes the rules that it was the last to use. `bridge` may
/// have ports that are not noted. `configured`: whether the configuration has shared rules now.
///
/// # Errors
/// What the kernel refuses; the attachment's file cannot be removed; code 11, as [`use_subnets`].
pub fn leave(owner: &Attachment, bridge: Option<&str>, configured: bool) -> Result<()> {
    match Users::find(&owner.network) {
        Ok(None) if !configured => return Ok(()),
        // An attachment of an earlier release, or a second DEL.
        Ok(None) if !has_rules(&owner.network)? => return Ok(()),
        Ok(Some(users)) if users.forget(owner)? => return Ok(()),
        Ok(_) => {}
        Err(error) => ignore_unavailable(error)?,
    }
    let gone = owner.alias();
    remove_unused(&owner.network, |users| {
        has_unknown(&owner.network, bridge, |alias| {
            alias == gone || users.knows(alias)
        })
    })
}

/// ADD: removes rules for subnets that the network no longer has.
///
/// # Errors
/// What the kernel refuses.
pub fn drop_unused(network: &str, bridge: Option<&str>) -> Result<()> {
    remove_unused(network, |users| {
        has_unknown(network, bridge, |alias| users.knows(alias))
    })
}

/// GC: forgets the attachments that are not `valid`, and removes the rules that no valid one uses.
///
/// # Errors
/// What the kernel refuses.
pub fn collect(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let aliases = alias::of_valid(network, valid);
    match Users::find(network) {
        Ok(Some(users)) => users.retain(&aliases)?,
        Ok(None) if !has_rules(network)? => {
            Users::tidy_above();
            return Ok(());
        }
        Ok(None) => {}
        Err(error) => ignore_unavailable(error)?,
    }
    remove_unused(network, |users| {
        Ok(aliases.iter().any(|alias| !users.knows(alias)))
    })
}

/// The network is not masqueraded any more, whatever its attachments were added with.
///
/// # Errors
/// What the kernel refuses.
pub fn end_masquerade(network: &str) -> Result<()> {
    end(network, MASQUERADE)
}

/// The pods of the network are not isolated from each other any more.
///
/// # Errors
/// As [`end_masquerade`].
pub fn end_isolation(network: &str) -> Result<()> {
    end(network, ISOLATION)
}

fn end(network: &str, prefix: &str) -> Result<()> {
    match Users::find(network) {
        Ok(None) => {}
        Ok(Some(users)) => users.end(prefix)?,
        Err(error) => ignore_unavailable(error)?,
    }
    remove_unused(network, |_| Ok(false))
}

/// Removes the rules of `network` without a user. If there are attachments that are not noted
/// (`has_unknown`), all rules stay, and so does the directory, which makes the next DEL look again.
fn remove_unused(network: &str, has_unknown: impl FnOnce(&Users) -> Result<bool>) -> Result<()> {
    // Without the lock, a concurrent ADD may rely on a rule that exists now.
    let users = match Users::open_exclusive(network) {
        Ok(users) => users,
        Err(error) => return ignore_unavailable(error),
    };
    let used = users.used()?;
    if let Some(nftables) = Nftables::find()?.map(Nftables::closed_later) {
        let subnets: Vec<_> = used.iter().filter_map(|it| subnet_of_use(it)).collect();
        let places: Vec<_> = used.iter().filter_map(|it| place_of_use(it)).collect();
        let masquerades = nftables.has_stale_masquerade(network, &subnets)?;
        let isolates = nftables.has_stale_isolation(network, &places)?;
        let restricts = !used.iter().any(|it| it == ACCESS) && nftables.has_access(network)?;
        if (masquerades || isolates || restricts) && has_unknown(&users)? {
            return Ok(());
        }
        if masquerades {
            nftables.remove_stale_masquerade(network, &subnets)?;
        }
        if isolates {
            nftables.remove_stale_isolation(network, &places)?;
        }
        if restricts {
            nftables.remove_access(network)?;
        }
    }
    users.tidy();
    Ok(())
}

/// Accepts [`Unavailable`]: where no file of ours can exist, there is none to remove, and the rules
/// stay. Other errors are returned, so that the runtime repeats the call.
///
/// # Errors
/// `error`, if it is another.
pub fn ignore_unavailable(error: anyhow::Error) -> Result<()> {
    match error.downcast_ref::<Unavailable>() {
        Some(_) => Ok(()),
        None => Err(error),
    }
}

/// Whether any rule exists that attachments to the network share.
fn has_rules(network: &str) -> Result<bool> {
    let Some(nftables) = Nftables::find()?.map(Nftables::closed_later) else {
        return Ok(false);
    };
    Ok(nftables.has_stale_masquerade(network, &[])?
        || nftables.has_stale_isolation(network, &[])?
        || nftables.has_access(network)?)
}

/// Whether the network has attachments that are not known: those of earlier releases by their
/// alias, those of the Go plugins, which have no alias, as ports of `bridge`.
fn has_unknown(
    network: &str,
    bridge: Option<&str>,
    is_known: impl Fn(&str) -> bool,
) -> Result<bool> {
    let links = Netlink::open()?.list_links()?;
    let bridge = links.iter().find(|it| Some(it.name.as_str()) == bridge);
    let bridge = bridge.map(|it| it.index);
    Ok(links.iter().filter(|it| it.is_kind("veth")).any(|it| {
        if alias::is_of_network(it, network) {
            return !it.alias.as_deref().is_some_and(&is_known);
        }
        bridge.is_some() && it.master == bridge && !alias::has_mark(it)
    }))
}

fn use_of_subnet(subnet: &IpNetwork) -> String {
    format!("{MASQUERADE}{}", written(subnet))
}

fn subnet_of_use(what: &str) -> Option<IpNetwork> {
    read(what.strip_prefix(MASQUERADE)?)
}

/// An interface name may contain any character but a slash, so it is the last part.
fn use_of_place((gateway, subnet): &Place) -> String {
    format!("{ISOLATION}{}-{gateway}", written(subnet))
}

fn place_of_use(what: &str) -> Option<Place> {
    let (subnet, gateway) = what.strip_prefix(ISOLATION)?.split_once('-')?;
    Some((gateway.to_owned(), read(subnet)?))
}

/// A subnet as a part of a file name.
fn written(subnet: &IpNetwork) -> String {
    format!("{}_{}", subnet.network(), subnet.prefix())
}

fn read(subnet: &str) -> Option<IpNetwork> {
    let (ip, prefix) = subnet.rsplit_once('_')?;
    IpNetwork::new(ip.parse().ok()?, prefix.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_is_read_as_it_was_written() {
        for subnet in ["10.1.0.0/24", "fd01::/64", "0.0.0.0/0"] {
            let subnet = subnet.parse().unwrap();
            assert_eq!(subnet_of_use(&use_of_subnet(&subnet)), Some(subnet));
        }
        let place = ("br-0_1".to_owned(), "fd01::/64".parse().unwrap());
        assert_eq!(place_of_use(&use_of_place(&place)), Some(place));
        assert_eq!(subnet_of_use(OWN), None);
        assert_eq!(subnet_of_use("masquerade-x_24"), None);
    }
}
