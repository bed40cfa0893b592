//! The rules by which podwire filters and translates packets on a node: masquerade, published
//! ports, the MAC spoof check, separation of networks, isolation of pods, access to networks, the
//! firewall of pods, the VXLAN guard. One module for each.
//!
//! Rules are data. [`Masquerade`], [`HostPorts`] and the others describe the rules that an
//! attachment wants; a [`Backend`] derives its rules from them, also as data, and writes them in
//! one transaction. Every rule names its owner, so that it can be found by the owner alone.

mod access;
mod backend;
#[cfg(any(test, feature = "fuzzing"))]
mod example;
mod firewall;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod inventory;
mod iptables;
mod isolation;
mod leftovers;
mod masquerade;
pub mod node;
mod ports;
mod questions;
mod rule_text;
mod separation;
mod spoof_check;
mod vxlan_guard;

pub use access::{Access, GatewayMode, Linked, Links, OldLinks, OpenPorts};
pub use backend::{
    Backend, Families, Iptables, Kind, Nftables, Published, close_localhost, open, publish,
};
pub use firewall::iptables::chain_name;
pub use firewall::{Firewall, FirewallBackend, Ingress, drop_ingress};
pub use inventory::{Applied, Subject};
pub use isolation::{Isolation, Place};
pub use leftovers::{Leftovers, check_masquerade, check_published};
pub use masquerade::Masquerade;
pub use nftables::{Error, Family, Point, Socket, conntrack, is_absent, packet_log, trace};
pub use ports::{
    HostPorts, Mapping, Mark, Notice, PortOwner, Protocol, PublishedPort, ReservedPorts, Snat,
    local_addresses,
};
pub use questions::{accept_questions, forget_questions};
pub use rule_text::{rule_texts, table_text};
pub use separation::Separation;
pub use spoof_check::SpoofCheck;
pub use vxlan_guard::VxlanGuard;
