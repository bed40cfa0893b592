//! The back ends, and which of them is chosen: the one that the configuration names, otherwise
//! nftables where the kernel has it, otherwise iptables.

pub(crate) mod iptables;
mod nftables;

use std::fmt;
use std::net::IpAddr;

use ::nftables::Family;
use anyhow::{Context, Result, bail};
use cni::Attachment;
use cni::conf::ValidAttachment;
use cni::faults::Fault;

pub use self::iptables::{Families, Iptables};
pub use self::nftables::Nftables;
pub(crate) use self::nftables::{complete, network_comment};
use crate::masquerade::Masquerade;
use crate::ports::{Connections, HostPorts, Notice, UdpPort};

/// Which back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nf_tables, over netlink: no program is executed.
    Nftables,
    /// iptables and ip6tables, legacy or nft, by `iptables-restore`.
    Iptables,
}

impl Kind {
    /// The back end that a key names; `None` if the key is absent or empty.
    ///
    /// # Errors
    /// The unknown name.
    pub fn of_key(text: Option<&str>) -> Result<Option<Self>, &str> {
        match text.unwrap_or_default() {
            "" => Ok(None),
            "nftables" => Ok(Some(Self::Nftables)),
            "iptables" => Ok(Some(Self::Iptables)),
            unknown => Err(unknown),
        }
    }

    /// The back end that the key `backend` names, or the one that other `keys` need: the name of
    /// each, and its back end if the configuration has it.
    ///
    /// # Errors
    /// An unknown name; keys for two back ends, in the Go plugin's words.
    pub fn of_keys(
        named: Option<&str>,
        keys: &[(&str, Option<Self>)],
    ) -> Result<Option<Self>, Fault> {
        let fault = |msg: String| Fault::new("backend", msg);
        let named = Self::of_key(named);
        let named = named.map_err(|name| fault(format!("unrecognized backend {name:?}")))?;
        let options_of = |kind| {
            let keys = keys.iter().filter(|(_, of)| *of == Some(kind));
            let keys: Vec<_> = keys.map(|(key, _)| *key).collect();
            (!keys.is_empty()).then(|| format!("{kind}-specific options [{}]", keys.join(" ")))
        };
        let (iptables, nftables) = (options_of(Self::Iptables), options_of(Self::Nftables));
        match (named, iptables, nftables) {
            (Some(name @ Self::Nftables), Some(other), _)
            | (Some(name @ Self::Iptables), _, Some(other)) => Err(fault(format!(
                "{name} backend was requested but configuration contains {other}"
            ))),
            (None, Some(iptables), Some(nftables)) => {
                let msg = format!("configuration contains both {iptables} and {nftables}");
                Err(Fault::new("", msg))
            }
            _ => Ok(named.or_else(|| keys.iter().find_map(|(_, kind)| *kind))),
        }
    }

    /// The back end whose syntax the words of a condition have: only conditions of iptables start
    /// with an option or a negation.
    pub fn of_conditions(words: &[String]) -> Option<Self> {
        words.first().map(|word| match word.as_bytes().first() {
            Some(b'-' | b'!') => Self::Iptables,
            _ => Self::Nftables,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// The operations of a back end. Every method is one transaction for each table, and handles the
/// rules of the Go plugins as well as ours. It fails if the back end refuses; `check_*` also if
/// something is missing.
pub trait Backend {
    /// Which back end it is.
    fn kind(&self) -> Kind;

    /// Masquerades. It can be repeated. Returns whether there are rules for other subnets of the
    /// network, which may be stale.
    fn masquerade(&self, wanted: &Masquerade) -> Result<bool>;

    /// Removes the masquerade of this pod alone, found by owner.
    ///
    /// `addresses` are those of this interface where they are known. In iptables, two interfaces of
    /// a container on one network share a chain that does not name them. With addresses, only the
    /// jumps of this interface are removed, and the chain with the last jump; without any, all
    /// jumps of the container on this network.
    fn remove_masquerade(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<()>;

    /// Fails unless the pod is masqueraded.
    fn check_masquerade(&self, wanted: &Masquerade) -> Result<()>;

    /// Removes the masquerade of pods of `network` that are not `valid`; if none is valid, also the
    /// masquerade of the network itself.
    fn collect_masquerade(&self, network: &str, valid: &[ValidAttachment]) -> Result<()>;

    /// Publishes ports; the newest mapping of a port wins. Returns the mappings that others have
    /// lost.
    fn publish(&self, wanted: &HostPorts) -> Result<Vec<Notice>>;

    /// Removes the mappings of this owner, and no other's.
    fn unpublish(&self, owner: &Attachment) -> Result<()>;

    /// Fails unless the ports are published.
    fn check_published(&self, wanted: &HostPorts) -> Result<()>;

    /// Removes the mappings of attachments to `network` that are not `valid`.
    fn collect_published(&self, network: &str, valid: &[ValidAttachment]) -> Result<()>;
}

/// The back end to write with: the one that is `forced`, otherwise nftables where the kernel has it,
/// otherwise iptables.
///
/// # Errors
/// The back end that is forced, or both, cannot be used here.
pub fn open(forced: Option<Kind>) -> Result<Box<dyn Backend>> {
    if forced != Some(Kind::Iptables) {
        let found = Nftables::find_usable(Family::Ip).context("nftables is not usable")?;
        if let Some(nftables) = found {
            return Ok(Box::new(nftables));
        }
        if forced == Some(Kind::Nftables) {
            bail!("nftables is not usable: the kernel lacks nf_tables")
        }
    }
    let iptables = Iptables::new();
    iptables.try_out().context(match forced {
        Some(_) => "iptables is not usable",
        None => "neither nftables nor iptables is usable: the kernel lacks nf_tables",
    })?;
    Ok(Box::new(iptables))
}

/// The result of [`publish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The back end that has the rules.
    pub by: Kind,
    /// The mappings that others have lost.
    pub taken: Vec<Notice>,
}

/// Publishes ports with the back end that is `forced` or chosen.
///
/// # Errors
/// As [`open`]; what the back end refuses.
pub fn publish(wanted: &HostPorts, forced: Option<Kind>) -> Result<Published> {
    let backend = open(forced)?;
    let (by, taken) = (backend.kind(), backend.publish(wanted)?);
    if by == Kind::Iptables {
        delete_stray_connections(wanted);
    }
    Ok(Published { by, taken })
}

/// Drops packets from outside to 127.0.0.0/8 of the node, before `route_localnet` lets them in
/// (CVE-2020-8558). In nftables the table of the published ports does that already. The rules of
/// iptables are those of the Go plugins, so there this is added: in nf_tables where the kernel has
/// it, otherwise in the table raw. It stays, as `route_localnet` does.
///
/// # Errors
/// What the kernel or iptables refuses: then the interface should stay closed.
pub fn close_localhost() -> Result<()> {
    match Nftables::find_usable(Family::Ip)? {
        Some(nftables) => nftables.close_localhost(),
        None => Iptables::new().close_localhost(),
    }
}

/// Deletes tracked UDP connections to the published ports that lead elsewhere: a client that goes on
/// sending would otherwise never reach the pod.
pub(crate) fn delete_stray_connections(published: &HostPorts) {
    let ports = UdpPort::all(published);
    // Tracked connections are not part of nf_tables, but use the same socket.
    if !ports.is_empty()
        && let Ok(nfnetlink) = Nftables::open()
    {
        nfnetlink.delete_connections(&ports, Connections::Elsewhere);
    }
}
