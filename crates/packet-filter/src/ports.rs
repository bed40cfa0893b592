//! What is wanted of published ports.

use std::net::IpAddr;

pub mod conditional;
pub mod displaced;
pub mod go;
pub mod iptables;
pub mod layout;
pub mod nftables;

pub use ::nftables::Protocol;
use cni::Attachment;
use ipnetwork::{Ipv4Network, Ipv6Network};

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mapping {
    /// The address of the node; `None` for all of both families, unspecified
    /// (0.0.0.0, ::) for all of its own.
    pub host_ip: Option<IpAddr>,
    /// The port of the node.
    pub host_port: u16,
    /// The port of the pod.
    pub container_port: u16,
    /// The protocol of both.
    pub protocol: Protocol,
}

impl Mapping {
    /// Whether the mapping is for IPv4 or (`false`) IPv6 destinations.
    pub fn applies_to(&self, ipv4: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == ipv4)
    }

    /// The address to compare destinations with, where there is one.
    pub fn specific_host_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

/// Whose connections get the node's address on the way to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snat {
    /// Nobody's.
    Off,
    /// The pod's own to itself, and those from 127.0.0.1.
    Hairpin,
    /// Everybody's.
    All,
}

/// How iptables marks what is to be masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// With a bit of the packet's mark, 0 to 31, by a chain of ours.
    Bit(u8),
    /// With a chain that somebody else made, such as KUBE-MARK-MASQ.
    ExternalChain(String),
}

/// The published ports of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// Whose pod it is.
    pub owner: Attachment,
    /// Its IPv4 address with the prefix of its subnet.
    pub pod_v4: Option<Ipv4Network>,
    /// Its IPv6 address with the prefix of its subnet.
    pub pod_v6: Option<Ipv6Network>,
    /// In the order of the configuration.
    pub mappings: Vec<Mapping>,
    /// Whose connections get the node's address.
    pub snat: Snat,
    /// How iptables marks them.
    pub mark: Mark,
    /// Further conditions for IPv4, in the back end's own syntax, one word each.
    pub conditions_v4: Vec<String>,
    /// The same for IPv6.
    pub conditions_v6: Vec<String>,
}

/// A mapping that somebody else had and has no more: the newest ADD wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What was taken over.
    pub mapping: Mapping,
    /// Who had it: the comment on the entry.
    pub from: String,
}
