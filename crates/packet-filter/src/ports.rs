//! Published ports: ports of the node that lead to ports of a pod.

mod admission;
pub(crate) mod conditional;
mod displaced;
mod go;
pub(crate) mod iptables;
pub(crate) mod layout;
pub(crate) mod nftables;
mod owner;
mod udp;

use std::net::IpAddr;

pub use ::nftables::Protocol;
use cni::Attachment;
use ipnetwork::{Ipv4Network, Ipv6Network};

pub use self::admission::ReservedPorts;
pub(crate) use self::go::Rules as GoRules;
pub use self::owner::{PortOwner, PublishedPort};
pub use self::udp::local_addresses;
pub(crate) use self::udp::{Connections, UdpPort, delete_connections};

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mapping {
    /// The address of the node. `None` is all addresses of both families, an unspecified one
    /// (0.0.0.0, ::) all of its family.
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

    /// The port of the node with its protocol: `8080/tcp`.
    pub fn published_port(&self) -> String {
        format!("{}/{}", self.host_port, self.protocol)
    }

    /// The address to compare destinations with, where there is one.
    pub fn specific_host_ip(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

/// Which connections get the node's address on the way to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snat {
    /// No connections.
    Off,
    /// Connections of the pod to itself, of pods on its bridge, and from 127.0.0.1.
    Hairpin,
    /// All connections.
    All,
}

/// How iptables marks connections to masquerade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// By a bit of the packet's mark, 0 to 31, in a chain of podwire.
    Bit(u8),
    /// By a chain of another program, such as KUBE-MARK-MASQ.
    ExternalChain(String),
}

impl Mark {
    /// A bit of the packet's mark, which has 32.
    pub fn bit(number: i64) -> Option<Self> {
        let number = u8::try_from(number).ok();
        number.filter(|number| *number < 32).map(Self::Bit)
    }

    /// A chain of another program; `None` if iptables has no chain of this name. It becomes one
    /// word of a rule, of at most 28 bytes (`XT_EXTENSION_MAXNAMELEN`).
    pub fn external_chain(name: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=28).contains(&name.len()) && !name.starts_with('-');
        (fits && name.bytes().all(plain)).then(|| Self::ExternalChain(name.to_owned()))
    }
}

/// The published ports that an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// The attachment.
    pub owner: Attachment,
    /// Its IPv4 address with the prefix of its subnet.
    pub pod_v4: Option<Ipv4Network>,
    /// Its IPv6 address with the prefix of its subnet.
    pub pod_v6: Option<Ipv6Network>,
    /// In the order of the configuration.
    pub mappings: Vec<Mapping>,
    /// Which connections get the node's address.
    pub snat: Snat,
    /// How iptables marks them.
    pub mark: Mark,
    /// Further conditions for IPv4, in the back end's own syntax, one word each.
    pub conditions_v4: Vec<String>,
    /// The same for IPv6.
    pub conditions_v6: Vec<String>,
}

impl HostPorts {
    /// Whether connections from 127.0.0.1 are let through to the pod.
    pub fn opens_localhost(&self) -> bool {
        self.snat != Snat::Off
            && self.pod_v4.is_some()
            && self.mappings.iter().any(|it| it.applies_to(true))
    }

    /// Whether there are conditions in any family.
    pub(crate) fn has_conditions(&self) -> bool {
        !(self.conditions_v4.is_empty() && self.conditions_v6.is_empty())
    }
}

/// A mapping that another owner had and lost: the newest ADD wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The mapping.
    pub mapping: Mapping,
    /// The former owner: the comment of the entry.
    pub from: String,
}
