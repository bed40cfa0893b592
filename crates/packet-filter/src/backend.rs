//! The back ends, and which of them is chosen: the one that the configuration names,
//! otherwise nftables where the kernel has it, otherwise iptables.

mod iptables;
mod nftables;

use std::fmt;
use std::net::IpAddr;

use ::nftables::Family;
use ::nftables::conntrack::Which;
use anyhow::{Context, Result, bail};
use cni::Attachment;
use cni::conf::ValidAttachment;

pub use self::iptables::{Families, Iptables};
pub use self::nftables::{Nftables, PortOwner, probe, usable};
use crate::masquerade::Masquerade;
use crate::ports::nftables::published as udp_ports;
use crate::ports::{HostPorts, Notice};

/// Which back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nf_tables, over netlink, without a program.
    Nftables,
    /// iptables and ip6tables, legacy or nft, through `iptables-restore`.
    Iptables,
}

/// Carries rules to the kernel. Every method is one transaction per table, and
/// knows what the Go plugins leave as well as its own.
pub trait Backend {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// Masquerades; once more does no harm. Whether there are rules for other subnets of the
    /// network, which may be left over.
    fn masquerade(&self, wanted: &Masquerade) -> Result<bool>;
    /// Removes what is there for this pod alone, found by owner.
    ///
    /// `addresses` are those of this interface where they are known. In
    /// iptables two interfaces of a container on one network share a chain that
    /// does not name them: with addresses only this interface's jumps to it go,
    /// and the chain with the last jump; without any, all of the container's on
    /// this network.
    fn remove_masquerade(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<()>;
    /// Fails with what is missing.
    fn check_masquerade(&self, wanted: &Masquerade) -> Result<()>;
    /// Removes what is there for pods of `network` that are not `valid`; and, if
    /// none is valid, what is there for the network itself.
    fn collect_masquerade(&self, network: &str, valid: &[ValidAttachment]) -> Result<()>;

    /// Publishes ports; the newest mapping of a port wins, and what it took from
    /// others is returned.
    fn publish(&self, wanted: &HostPorts) -> Result<Vec<Notice>>;
    /// Removes the mappings of this owner, and no other's.
    fn unpublish(&self, owner: &Attachment) -> Result<()>;
    /// Fails with what is missing.
    fn check_published(&self, wanted: &HostPorts) -> Result<()>;
    /// Removes the mappings of owners in `network` that are not `valid`.
    fn collect_published(&self, network: &str, valid: &[ValidAttachment]) -> Result<()>;
}

impl Kind {
    /// The back end that a configuration calls `text`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "nftables" => Some(Self::Nftables),
            "iptables" => Some(Self::Iptables),
            _ => None,
        }
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

/// The back end to write with: the one that is `forced`, else nftables where
/// the kernel has it, else iptables.
///
/// # Errors
/// When the one that is forced, or both, cannot be used here.
pub fn open(forced: Option<Kind>) -> Result<Box<dyn Backend>> {
    if forced != Some(Kind::Iptables) {
        // Found usable and used over one socket.
        let found = Nftables::find_usable(Family::Ip).context("nftables is not usable")?;
        if let Some(nftables) = found {
            return Ok(Box::new(nftables));
        }
        if forced == Some(Kind::Nftables) {
            bail!("nftables is not usable: the kernel lacks nf_tables")
        }
    }
    let iptables = Iptables::new();
    let Err(why) = iptables.try_out() else {
        return Ok(Box::new(iptables));
    };
    Err(why.context(match forced {
        Some(_) => "iptables is not usable",
        None => "neither nftables nor iptables is usable: the kernel lacks nf_tables",
    }))
}

/// What publishing has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// By which back end.
    pub by: Kind,
    /// What others had.
    pub taken: Vec<Notice>,
}

/// Publishes ports with the back end that is `forced` or found.
///
/// # Errors
/// As [`open`]; what the back end refuses.
pub fn publish(wanted: &HostPorts, forced: Option<Kind>) -> Result<Published> {
    let backend = open(forced)?;
    let (by, taken) = (backend.kind(), backend.publish(wanted)?);
    if by == Kind::Iptables {
        forget_connections(wanted);
    }
    Ok(Published { by, taken })
}

/// Drops what others send to 127.0.0.0/8 of the node, before `route_localnet`
/// opens it to them (CVE-2020-8558). nftables has that in the table of the
/// published ports already; where the ports are iptables' own, which are laid
/// out as the Go plugins do it, this stands beside them: in nf_tables where the
/// kernel has it, else in the table raw. It stays, as `route_localnet` does.
///
/// # Errors
/// What the kernel or iptables refuses: then the interface should stay closed.
pub fn close_localhost() -> Result<()> {
    if usable(Family::Ip)? {
        return Nftables::open()?.close_localhost();
    }
    Iptables::new().close_localhost()
}

/// Forgets connections of UDP to the published ports that lead elsewhere: a client that
/// goes on sending would otherwise never reach the pod.
pub fn forget_connections(published: &HostPorts) {
    let ports = udp_ports(published);
    if ports.is_empty() {
        return;
    }
    // Connections are not kept in nf_tables, but asked for over the same socket.
    if let Ok(nfnetlink) = Nftables::open() {
        nfnetlink.forget_connections(&ports, Which::NotTo);
    }
}
