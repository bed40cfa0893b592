//! The parent of a pod's link: the interface of the node, or of the pod, that a macvlan or vlan is
//! made on.

mod pattern;

use std::fmt;

use anyhow::{Context, Result, anyhow, bail};
use cni::faults::Fault;
use cni::result::Interface;
use cni::{Code, WithLabel};
use netlink::{Link, Netlink, Parent};
use netns::NetNs;
use nix::errno::Errno;

use pattern::Patterns;

/// The keys `master` and `linkInContainer`: which interface is the parent.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentSpec {
    /// The interface.
    pub master: Master,
    /// Whether it is in the pod's namespace rather than the node's.
    pub in_container: bool,
}

/// The key `master`.
#[derive(Clone, Debug, PartialEq)]
pub enum Master {
    /// The interface with the default route.
    DefaultRoute,
    /// The interface with this name.
    Named(String),
    /// An interface whose name matches.
    Matching(Patterns),
}

impl Master {
    /// An empty text is the interface with the default route.
    pub fn new(text: &str) -> Self {
        match Patterns::parse(text) {
            _ if text.is_empty() => Self::DefaultRoute,
            Some(patterns) => Self::Matching(patterns),
            None => Self::Named(text.to_owned()),
        }
    }
}

impl fmt::Display for Master {
    /// As the configuration has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute => Ok(()),
            Self::Named(name) => f.write_str(name),
            Self::Matching(patterns) => patterns.fmt(f),
        }
    }
}

impl ParentSpec {
    /// The parent that these two keys select.
    pub fn new(master: &str, in_container: bool) -> Self {
        Self {
            master: Master::new(master),
            in_container,
        }
    }

    /// A socket in the namespace of the parent.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn socket(&self, netns: &NetNs) -> Result<Netlink> {
        if self.in_container {
            Netlink::open_in(netns)
        } else {
            Ok(Netlink::open()?)
        }
    }

    /// Finds the parent for a link of `kind`.
    ///
    /// # Errors
    /// `Link not found`, `no default route interface found`; the parent is down, is not an Ethernet
    /// interface, or is of `kind` itself.
    pub fn find(&self, socket: &Netlink, kind: &str) -> Result<Parent> {
        let no_default = "no default route interface found";
        let parent = match &self.master {
            Master::Named(name) => socket.find_parent(name)?.ok_or_else(|| {
                let details = format!("master {name:?}: there are {}", names(socket));
                Code::Internal.err("Link not found").details(details)
            })?,
            Master::DefaultRoute => {
                let link = socket.default_route_link()?.context(no_default)?;
                socket.find_parent(&link.name)?.context(no_default)?
            }
            Master::Matching(patterns) => matching(socket, patterns, kind)?,
        };
        refuse_unfit(socket, &parent, kind)?;
        Ok(parent)
    }

    /// Looks the parent up on the node; `None` if it is in a container.
    ///
    /// # Errors
    /// There is none, or it cannot be the parent of links of `kind`.
    pub fn on_node(&self, kind: &str) -> Result<Option<Parent>> {
        if self.in_container {
            return Ok(None);
        }
        self.find(&Netlink::open()?, kind).map(Some)
    }

    /// STATUS: whether an ADD would find its parent, and could make a link of `kind` on it. A
    /// parent without a carrier is fine, as its cable may be plugged in later, unless
    /// `detect_conflicts` probes the segment.
    ///
    /// Returns the parent; `None` if it is in a container, as STATUS does not know which.
    ///
    /// # Errors
    /// Code 50, with the reason.
    pub fn status(&self, kind: &str, detect_conflicts: bool) -> Result<Option<Parent>> {
        if self.in_container {
            return Ok(None);
        }
        let host = Netlink::open()?;
        let find = || -> Result<Parent> {
            let parent = self.find(&host, kind)?;
            if takes_all_frames(kind) {
                refuse_port(&host, &parent, kind)?;
            }
            Ok(parent)
        };
        let parent = find().code(Code::NotAvailable)?;
        if detect_conflicts && !parent.carrier {
            let name = &parent.link.name;
            let why = format!("master {name:?} has no carrier: conflicts cannot be detected");
            return Err(Code::NotAvailable.err(why).into());
        }
        Ok(Some(parent))
    }

    /// CHECK: whether the pod's `link` is on the parent that the configuration selects. If it names
    /// none, the default route may have moved since the ADD.
    ///
    /// Returns the parent.
    ///
    /// # Errors
    /// `parent of eth0 is "eth2", not "eth1"`; the parent is gone.
    pub fn check(&self, link: &Link, netns: &NetNs) -> Result<Link> {
        let socket = self.socket(netns)?;
        let missing = || format!("parent of {} not found", link.name);
        let elsewhere = self.in_container && link.link_netnsid.is_some();
        let index = link.link.filter(|_| !elsewhere).with_context(missing)?;
        let parent = socket.find_link_by_index(index)?.with_context(missing)?;
        let is_meant = match &self.master {
            Master::DefaultRoute => true,
            // The name may be an alternative one (altname).
            Master::Named(name) => socket
                .find_link(name)?
                .is_some_and(|meant| meant.index == parent.index),
            Master::Matching(patterns) => patterns.match_name(&parent.name),
        };
        if !is_meant {
            let (name, is, wanted) = (&link.name, &parent.name, self.master.to_string());
            bail!("parent of {name} is {is:?}, not {wanted:?}");
        }
        Ok(parent)
    }
}

/// The interface that matches; of several, the one with the default route. Nothing is guessed,
/// because pods on the wrong network are noticed much later.
fn matching(socket: &Netlink, patterns: &Patterns, kind: &str) -> Result<Parent> {
    let mut candidates = socket.list_parents()?;
    candidates.retain(|it| it.ethernet && !is_of_kind(&it.link, kind) && it.link.master.is_none());
    let mut found = patterns.select(&candidates, |it| &it.link.name);
    if !found.iter().all(|it| is_down(it)) {
        found.retain(|it| !is_down(it));
    }
    let text = patterns.to_string();
    match found[..] {
        [] => bail!(
            "master {text:?} matches no interface: there are {}",
            names(socket)
        ),
        [one] => Ok(one.clone()),
        _ => {
            let default = socket.default_route_link()?.map(|link| link.index);
            let names: Vec<_> = found.iter().map(|it| it.link.name.as_str()).collect();
            let mut found = found.iter().copied();
            let parent = found.find(|it| Some(it.link.index) == default).cloned();
            parent.with_context(|| {
                let names = names.join(", ");
                format!("master {text:?} matches {names}, and none of them has the default route: name one")
            })
        }
    }
}

/// The names of all interfaces, for an error.
fn names(socket: &Netlink) -> String {
    let links = socket.list_links().unwrap_or_default();
    let mut names: Vec<_> = links.into_iter().map(|it| it.name).collect();
    names.sort();
    names.join(", ")
}

fn refuse_unfit(socket: &Netlink, parent: &Parent, kind: &str) -> Result<()> {
    let link = &parent.link;
    let name = &link.name;
    if takes_all_frames(kind) && is_of_kind(link, kind) {
        // The kernel would silently use the parent of that link instead.
        let index = link.link.filter(|_| link.link_netnsid.is_none());
        let own = index.map(|index| socket.find_link_by_index(index));
        let own = own.transpose()?.flatten();
        let remedy = own.map(|own| format!(": use its parent {:?}", own.name));
        let remedy = remedy.unwrap_or_default();
        bail!("master {name:?} is itself of type {kind}{remedy}");
    }
    if !parent.ethernet {
        bail!("master {name:?} is not an Ethernet interface, so it cannot carry {kind}s");
    }
    // The kernel sets no vlan up whose parent is down (ENETDOWN).
    if is_down(parent) || !takes_all_frames(kind) && !link.up {
        bail!("master {name:?} is down: the pod would receive nothing (ip link set {name} up)");
    }
    Ok(())
}

/// Whether the links of `kind` share all frames that their parent receives. A vlan gets those with
/// its id, before a bridge or bond that the parent is a port of, and can be a parent of others.
fn takes_all_frames(kind: &str) -> bool {
    kind != "vlan"
}

/// Whether `link` is of `kind`, or is the tap device that shares a parent in the same way.
pub(crate) fn is_of_kind(link: &Link, kind: &str) -> bool {
    let tap = match kind {
        "macvlan" => "macvtap",
        "ipvlan" => "ipvtap",
        other => other,
    };
    link.is_kind(kind) || link.is_kind(tap)
}

/// Whether it is down, and has no carrier for that reason. An interface without a wire (a dummy, a
/// bridge) may be set up later.
fn is_down(parent: &Parent) -> bool {
    !parent.link.up && !parent.carrier
}

/// An interface whose frames all go to a bridge or bond cannot carry other links. The ports of a
/// vrf can, as a vrf affects routes only.
fn refuse_port(host: &Netlink, parent: &Parent, kind: &str) -> Result<()> {
    let Some(master) = parent.link.master else {
        return Ok(());
    };
    match host.find_link_by_index(master)? {
        Some(master) if !master.is_kind("vrf") => {
            bail!(create_failed(kind, &parent.link.name, &is_a_port(kind)))
        }
        _ => Ok(()),
    }
}

/// What EBUSY means for a parent.
fn is_a_port(kind: &str) -> String {
    let others = match kind {
        "ipvlan" => "macvlans",
        _ => "ipvlans",
    };
    format!("it is a port of a bridge or bond, or has {others}: use that bridge or bond as master")
}

fn create_failed(kind: &str, parent: &str, why: &str) -> String {
    format!("failed to create {kind} on {parent:?}: {why}")
}

/// Words the kernel's refusal to create a link of `kind` on `parent`. `invalid` is the only
/// remaining reason for EINVAL.
pub fn create_refused(
    error: anyhow::Error,
    kind: &str,
    parent: &Parent,
    invalid: &str,
) -> anyhow::Error {
    let why = match errno(&error) {
        Some(Errno::EINVAL) => invalid.to_owned(),
        Some(Errno::EBUSY) => is_a_port(kind),
        _ => return error,
    };
    anyhow!(create_failed(kind, &parent.link.name, &why))
}

/// Words the kernel's refusal to set a link on `parent` up: two with one MAC cannot be up.
pub fn set_up_refused(error: anyhow::Error, parent: &Parent) -> anyhow::Error {
    let name = &parent.link.name;
    match errno(&error) {
        Some(Errno::EADDRINUSE) => anyhow!("another interface on {name:?} has this MAC: {error:#}"),
        _ => error,
    }
}

fn errno(error: &anyhow::Error) -> Option<Errno> {
    let error = error.downcast_ref::<netlink::Error>();
    error.map(netlink::Error::errno)
}

/// The MTU of a link on a parent with `parent_mtu`, by the key `mtu`; `None`, for 0, leaves it to
/// the kernel, which takes that of the parent.
///
/// # Errors
/// Code 7: it is negative, or larger than the parent's.
pub fn mtu_on(mtu: i64, parent_mtu: u32) -> Result<Option<u32>, Fault> {
    match u32::try_from(mtu) {
        Ok(0) => Ok(None),
        Ok(mtu) if mtu <= parent_mtu => Ok(Some(mtu)),
        _ => {
            let msg = format!("invalid MTU {mtu}, must be [0, master MTU({parent_mtu})]");
            Err(Fault::new("mtu", msg))
        }
    }
}

/// CHECK: the MTU of `link`. Without the key `mtu` it is that of the result, or the current one of
/// the parent: the kernel lowers the MTU of the links on a parent together with the parent's.
///
/// # Errors
/// `MTU of eth0 is 1400, not 1500`
pub fn check_mtu(link: &Link, mtu: i64, recorded: &Interface, parent: &Link) -> Result<()> {
    let wanted = mtu_on(mtu, parent.mtu)?.unwrap_or(recorded.mtu);
    let follows = mtu == 0 && link.mtu == parent.mtu;
    if wanted != 0 && link.mtu != wanted && !follows {
        bail!("MTU of {} is {}, not {wanted}", link.name, link.mtu);
    }
    Ok(())
}
