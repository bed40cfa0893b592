//! How pods get out and how the outside gets in: masquerade, published ports,
//! the MAC spoof check.
//!
//! Rules are data. [`Masquerade`] and [`HostPorts`] say what is wanted; a
//! [`Backend`] turns that into its own rules, also as data, and carries them to
//! the kernel in one transaction. Everything that a back end writes names its
//! owner, so that it is found again with nothing else known.

mod backend;
mod choice;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod hostport;
mod iptables;
mod masquerade;
pub mod nftables;
pub mod node;

pub use backend::{Backend, Kind};
pub use choice::{
    Leftovers, Published, check_masquerade, check_published, close_localhost, open, publish,
};
pub use hostport::{HostPorts, Mapping, Mark, Notice, Protocol, Snat};
pub use iptables::{Families, Iptables};
pub use masquerade::Masquerade;
