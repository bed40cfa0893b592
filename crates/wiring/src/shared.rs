//! Rules that serve all attachments of a network: for a subnet, one that masquerades it and one
//! that keeps isolated pods from each other. They come with the first attachment that needs
//! them and go with the last.
//!
//! Who needs them is in [`Users`]. That may be incomplete, so before a rule goes the kernel is asked
//! for attachments that are not in there, and where there is one, the rule stays.

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;
use cni::request::alias_prefix;
use ipnetwork::IpNetwork;
use netlink::Netlink;
use packet_filter::{Isolation, Masquerade, Nftables, Place};

use crate::port::alias_of;
use crate::users::{Left, NoPlace, Users};

/// The use of a masquerade rule for a subnet begins so.
const MASQUERADE: &str = "masquerade-";

/// The use of a rule that isolates the pods of a subnet begins so.
const ISOLATION: &str = "isolation-";

/// An attachment that uses nothing that is shared, but is known. Its addresses are written
/// there where iptables has rules for them.
const OWN: &str = "own";

/// Writes down, before the rules are made, which subnets' rules `wanted`'s attachment uses.
/// Whether it is the first that uses one of them. Where nothing can be written, the rules stay
/// until GC.
///
/// # Errors
/// Code 11: rules are being taken away for too long.
pub fn use_subnets(wanted: &Masquerade) -> Result<bool> {
    let mut uses: Vec<_> = wanted.subnets().iter().map(use_of_subnet).collect();
    if uses.is_empty() {
        uses.push(OWN.to_owned());
    }
    let uses: Vec<_> = uses.iter().map(|it| (it.as_str(), "")).collect();
    note(&wanted.owner, &uses)
}

/// The same for rules that isolate the attachment's pod.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_isolation(owner: &Attachment, wanted: &Isolation) -> Result<()> {
    let uses: Vec<_> = wanted.places().iter().map(use_of_place).collect();
    let uses: Vec<_> = uses.iter().map(|it| (it.as_str(), "")).collect();
    note(owner, &uses)?;
    Ok(())
}

/// Writes down an attachment whose rules are its own, for these addresses.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_own(wanted: &Masquerade) -> Result<()> {
    let addresses = wanted.addresses.iter().map(|it| format!("{}\n", it.ip()));
    let content: String = addresses.collect();
    note(&wanted.owner, &[(OWN, &content)])?;
    Ok(())
}

/// Writes down an attachment without masquerade, where others of the network are masqueraded, or
/// were. Whether it is the first of these.
///
/// # Errors
/// As [`use_subnets`].
pub fn use_nothing(owner: &Attachment) -> Result<bool> {
    match Users::find(&owner.network) {
        Ok(None) => Ok(false),
        _ => note(owner, &[(OWN, "")]),
    }
}

fn note(owner: &Attachment, uses: &[(&str, &str)]) -> Result<bool> {
    let users = match Users::join(&owner.network) {
        Ok(users) => users,
        Err(error) if error.downcast_ref::<cni::Error>().is_some() => return Err(error),
        Err(_) => return Ok(false),
    };
    let mut is_first = false;
    for (what, content) in uses {
        // Without a file it counts as unknown, for which every rule stays.
        is_first |= users.note(what, owner, content).unwrap_or(false);
    }
    Ok(is_first)
}

/// Forgets attachments whose rules were given to the Go plugins, and takes away what is left of
/// them, unless others use it.
///
/// # Errors
/// What the kernel refuses.
pub fn give_away(network: &str, these: &[&Attachment]) -> Result<()> {
    if let Ok(Some(users)) = Users::find(network) {
        for attachment in these {
            let _ = users.forget(attachment);
        }
    }
    let aliases: Vec<_> = these.iter().map(|it| it.alias()).collect();
    reconcile(network, |users| {
        has_unknown(network, None, |alias| {
            aliases.iter().any(|it| it == alias) || users.knows(alias)
        })
    })
}

/// Whether attachments to `network` other than these use its rules, or may.
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

/// Whether the network had something shared, or an attachment with rules of its own, since its
/// directory was last empty: then DEL looks for it, whatever the configuration says now.
pub fn may_have_rules(network: &str) -> bool {
    !matches!(Users::find(network), Ok(None))
}

/// The addresses that iptables was told at ADD; `None` if nothing is known of them.
pub fn noted_addresses(owner: &Attachment) -> Option<Vec<std::net::IpAddr>> {
    let users = Users::find(&owner.network).ok()??;
    let content = users.content(OWN, owner)?;
    let addresses: Option<Vec<_>> = content.lines().map(|line| line.parse().ok()).collect();
    addresses.filter(|all| !all.is_empty())
}

/// DEL: forgets the attachment, and takes away what it was the last to use. `bridge` is where
/// attachments may be that are not known. `configured` says whether the configuration as it is
/// now masquerades.
///
/// # Errors
/// What the kernel refuses; a file of the attachment's that cannot be removed; code 11, as
/// [`use_subnets`].
pub fn leave(owner: &Attachment, bridge: Option<&str>, configured: bool) -> Result<()> {
    match Users::find(&owner.network) {
        Ok(None) if !configured => return Ok(()),
        Ok(None) => {
            // Of an earlier release, or a second DEL.
            if !has_rules(&owner.network)? {
                return Ok(());
            }
        }
        Ok(Some(users)) => {
            if users.forget(owner)? == Left::Users {
                return Ok(());
            }
        }
        Err(error) => tolerate_no_place(error)?,
    }
    let gone = owner.alias();
    reconcile(&owner.network, |users| {
        has_unknown(&owner.network, bridge, |alias| {
            alias == gone || users.knows(alias)
        })
    })
}

/// ADD: takes away rules for subnets that the network does not have any more.
///
/// # Errors
/// What the kernel refuses.
pub fn drop_unused(network: &str, bridge: Option<&str>) -> Result<()> {
    reconcile(network, |users| {
        has_unknown(network, bridge, |alias| users.knows(alias))
    })
}

/// GC: forgets the attachments that are not `valid`, and takes away what none of these uses.
///
/// # Errors
/// What the kernel refuses.
pub fn collect(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let aliases: Vec<_> = valid
        .iter()
        .filter_map(|it| alias_of(network, it))
        .collect();
    match Users::find(network) {
        Ok(Some(users)) => users.retain(&aliases)?,
        Ok(None) => {
            if !has_rules(network)? {
                return Ok(());
            }
        }
        Err(error) => tolerate_no_place(error)?,
    }
    reconcile(network, |users| {
        Ok(aliases.iter().any(|alias| !users.knows(alias)))
    })
}

/// Takes away the rules of `network` that nothing needs. Where `has_unknown`, all stay, and so
/// does the directory, which has the next DEL look again.
fn reconcile(network: &str, has_unknown: impl FnOnce(&Users) -> Result<bool>) -> Result<()> {
    // Without the lock, an ADD may be counting on a rule that is there now.
    let users = match Users::alone(network) {
        Ok(users) => users,
        Err(error) => return tolerate_no_place(error),
    };
    let used = users.used()?;
    if let Some(nftables) = Nftables::find()?.map(Nftables::closed_later) {
        let subnets: Vec<_> = used.iter().filter_map(|it| subnet_of_use(it)).collect();
        let places: Vec<_> = used.iter().filter_map(|it| place_of_use(it)).collect();
        let masquerades = nftables.has_stale_masquerade(network, &subnets)?;
        let isolates = nftables.has_stale_isolation(network, &places)?;
        if (masquerades || isolates) && has_unknown(&users)? {
            return Ok(());
        }
        if masquerades {
            nftables.remove_stale_masquerade(network, &subnets)?;
        }
        if isolates {
            nftables.remove_stale_isolation(network, &places)?;
        }
    }
    users.tidy();
    Ok(())
}

/// Where no file of ours can be, none is left, and the rules stay. Any other failure is
/// told: the runtime calls again.
///
/// # Errors
/// `error`, if it is another.
pub fn tolerate_no_place(error: anyhow::Error) -> Result<()> {
    match error.downcast_ref::<NoPlace>() {
        Some(_) => Ok(()),
        None => Err(error),
    }
}

/// Whether there is any rule that attachments to the network share.
fn has_rules(network: &str) -> Result<bool> {
    let Some(nftables) = Nftables::find()?.map(Nftables::closed_later) else {
        return Ok(false);
    };
    Ok(nftables.has_stale_masquerade(network, &[])?
        || nftables.has_stale_isolation(network, &[])?)
}

/// Whether attachments to the network are there that are not known: those of earlier releases
/// by their alias, those of the Go plugins, which have none, by being on the `bridge`.
fn has_unknown(
    network: &str,
    bridge: Option<&str>,
    is_known: impl Fn(&str) -> bool,
) -> Result<bool> {
    let links = Netlink::open()?.list_links()?;
    let bridge = links.iter().find(|it| Some(it.name.as_str()) == bridge);
    let bridge = bridge.map(|it| it.index);
    let prefix = alias_prefix(network);
    let unknown = |alias: &str| match alias {
        it if it.starts_with(&prefix) => !is_known(it),
        it => !it.starts_with("podwire:"),
    };
    Ok(links.iter().filter(|it| it.is_kind("veth")).any(|it| {
        let alias = it.alias.as_deref().unwrap_or_default();
        let of_network = alias.starts_with(&prefix);
        (of_network || bridge.is_some() && it.master == bridge) && unknown(alias)
    }))
}

fn use_of_subnet(subnet: &IpNetwork) -> String {
    format!("{MASQUERADE}{}", written(subnet))
}

fn subnet_of_use(what: &str) -> Option<IpNetwork> {
    read(what.strip_prefix(MASQUERADE)?)
}

/// The name of an interface has no slash, and may have any other letter.
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
