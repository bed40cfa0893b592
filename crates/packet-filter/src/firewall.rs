//! The firewall of pods: that the node forwards their packets where another program's policy is to
//! drop, and which other pods of the node may reach them.
//!
//! In iptables these are the chains of the Go plugin. In nftables only the second part exists: a
//! rule that accepts ends no chain of another table, so there is nothing to write for the first.

pub(crate) mod firewalld;
pub(crate) mod iptables;
mod nftables;

use std::net::IpAddr;

/// What an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// All addresses of the result.
    pub addresses: Vec<IpAddr>,
    /// The chain of iptables for the administrator's own rules, which come first.
    pub admin_chain: String,
    /// Which pods may reach it; `None` for all.
    pub ingress: Option<Ingress>,
}

/// That pods behind a bridge cannot be reached from behind other such bridges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// The bridge.
    pub bridge: String,
    /// Neither can pods behind the same bridge, as far as the node forwards between them.
    pub isolated: bool,
    /// Whether published ports can be reached nevertheless: they are published for everybody.
    pub published: bool,
}
