//! The parent: which interface it is, and whether it can be one.

use anyhow::{Context, Result, anyhow, bail};
use cni::Code;
use netlink::{Netlink, Parent};
use netns::NetNs;

use crate::pattern::Patterns;
use crate::plan::{Master, Plan};

/// A socket where the parent is: on the host, or in the pod.
pub fn socket(plan: &Plan, netns: &NetNs) -> Result<Netlink> {
    match plan.link_in_container {
        true => Netlink::open_in(netns),
        false => Ok(Netlink::open()?),
    }
}

/// The parent that `master` means, if macvlans can be made on it.
///
/// # Errors
/// `Link not found`, `no default route interface found`; that it is down, a
/// macvlan itself, or has no hardware addresses.
pub fn find(socket: &Netlink, master: &Master) -> Result<Parent> {
    let parent = match master {
        Master::Named(name) => named(socket, name)?,
        Master::DefaultRoute => of_default_route(socket)?,
        Master::Like(patterns) => matching(socket, patterns)?,
    };
    refuse_unfit(socket, &parent)?;
    Ok(parent)
}

fn named(socket: &Netlink, name: &str) -> Result<Parent> {
    if let Some(parent) = socket.find_parent(name)? {
        return Ok(parent);
    }
    let details = format!("master {name:?}: there are {}", names(socket)?);
    Err(Code::Internal.err("Link not found").details(details).into())
}

fn of_default_route(socket: &Netlink) -> Result<Parent> {
    let missing = "no default route interface found";
    let link = socket.default_route_link()?.context(missing)?;
    socket.find_parent(&link.name)?.context(missing)
}

/// The one that matches. Of several, that with the default route; but nothing is
/// guessed, because pods on the wrong wire are found much later.
fn matching(socket: &Netlink, patterns: &Patterns) -> Result<Parent> {
    let mut fit = socket.list_parents()?;
    fit.retain(|it| it.ethernet && !is_macvlan(it) && it.link.master.is_none());
    let found = patterns.select(&fit, |it| &it.link.name);
    let ready: Vec<_> = found.iter().copied().filter(|it| !is_down(it)).collect();
    let found = if ready.is_empty() { found } else { ready };
    match found[..] {
        [] => bail!(
            "master {:?} matches no interface: there are {}",
            patterns.to_string(),
            names(socket)?
        ),
        [one] => Ok(one.clone()),
        _ => {
            let default = socket.default_route_link()?.map(|link| link.index);
            let with_default = found.iter().find(|it| Some(it.link.index) == default);
            let parent = with_default.copied().cloned();
            parent.with_context(|| ambiguous(patterns, &found))
        }
    }
}

fn ambiguous(patterns: &Patterns, found: &[&Parent]) -> String {
    let names: Vec<_> = found.iter().map(|it| it.link.name.as_str()).collect();
    format!(
        "master {:?} matches {}, and none of them has the default route: name one",
        patterns.to_string(),
        names.join(", ")
    )
}

fn names(socket: &Netlink) -> Result<String> {
    let mut names: Vec<_> = socket.list_links()?.into_iter().map(|it| it.name).collect();
    names.sort();
    Ok(names.join(", "))
}

fn refuse_unfit(socket: &Netlink, parent: &Parent) -> Result<()> {
    let name = &parent.link.name;
    if is_macvlan(parent) {
        // The kernel takes its parent then, and nobody has said which that is.
        let own = parent
            .link
            .link
            .filter(|_| parent.link.link_netnsid.is_none());
        let own = own
            .map(|index| socket.find_link_by_index(index))
            .transpose()?;
        let remedy = match own.flatten() {
            Some(own) => format!(": use its parent {:?}", own.name),
            None => String::new(),
        };
        bail!("master {name:?} is a macvlan itself{remedy}");
    }
    if !parent.ethernet {
        bail!("master {name:?} is no Ethernet interface: it has no room for other MACs");
    }
    if is_down(parent) {
        bail!("master {name:?} is down: nothing would reach the pod (ip link set {name} up)");
    }
    Ok(())
}

fn is_macvlan(parent: &Parent) -> bool {
    parent.link.is_kind("macvlan") || parent.link.is_kind("macvtap")
}

/// Down, with a wire that is cut by it. What has no wire (a dummy, a bridge) may
/// be set up later.
fn is_down(parent: &Parent) -> bool {
    !parent.link.up && !parent.carrier
}

/// STATUS: whether an ADD would find its parent, and can make a macvlan on it. A parent
/// without a carrier is as good for that as any: its cable may be plugged in later.
///
/// Returns the parent; `None` where it is in a container.
///
/// # Errors
/// Code 50, with the reason.
pub fn status(plan: &Plan) -> Result<Option<Parent>> {
    if plan.link_in_container {
        // Which container is not known yet.
        return Ok(None);
    }
    let not_available = |error: anyhow::Error| {
        let error = cni::Error::from_chain(&error);
        let reason = Code::NotAvailable.err(error.msg);
        anyhow!(reason.details(error.details))
    };
    let host = Netlink::open()?;
    let parent = find(&host, &plan.master).map_err(not_available)?;
    refuse_port(&host, &parent).map_err(not_available)?;
    if plan.detect_conflicts && !parent.carrier {
        let name = &parent.link.name;
        let reason = format!("master {name:?} has no carrier: nobody can be asked for an address");
        return Err(Code::NotAvailable.err(reason).into());
    }
    plan.mtu_on(parent.link.mtu)?;
    Ok(Some(parent))
}

/// The kernel refuses macvlans on what hands all its frames to another link. A vrf has its
/// ports for routing alone.
fn refuse_port(host: &Netlink, parent: &Parent) -> Result<()> {
    let Some(master) = parent.link.master else {
        return Ok(());
    };
    match host.find_link_by_index(master)? {
        Some(master) if !master.is_kind("vrf") => {
            bail!("{}", why_not(&parent.link.name, IS_A_PORT))
        }
        _ => Ok(()),
    }
}

/// Why the kernel says that a parent is busy.
pub const IS_A_PORT: &str =
    "it is a port of a bridge or bond, or has ipvlans: use that bridge or bond as master";

/// That no macvlan can be made on the parent called `name`.
pub fn why_not(name: &str, why: &str) -> String {
    format!("failed to create macvlan on {name:?}: {why}")
}
