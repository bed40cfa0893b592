//! What a back end does. Nothing here is particular to one.

use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;

use crate::hostport::{HostPorts, Notice};
use crate::masquerade::Masquerade;

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
