//! How pods get out and how the outside gets in: masquerade, published ports,
//! the MAC spoof check.
//!
//! Rules are data. [`Masquerade`] and [`HostPorts`] say what is wanted; a
//! [`Backend`] turns that into its own rules, also as data, and carries them to
//! the kernel in one transaction. Everything that a back end writes names its
//! owner, so that it is found again with nothing else known.

mod backend;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod iptables;
mod isolation;
mod leftovers;
mod masquerade;
pub mod node;
mod ports;
mod separation;
mod spoof_check;
mod vxlan_guard;

pub use backend::{
    Backend, Families, Iptables, Kind, Nftables, PortOwner, Published, close_localhost, open,
    probe, publish, usable,
};
pub use isolation::{Isolation, Place};
pub use leftovers::{Leftovers, check_masquerade, check_published};
pub use masquerade::Masquerade;
pub use nftables::conntrack::local_addresses;
pub use nftables::{Error, Family};
pub use ports::{HostPorts, Mapping, Mark, Notice, Protocol, Snat};
pub use separation::Separation;
pub use spoof_check::SpoofCheck;
pub use vxlan_guard::VxlanGuard;
