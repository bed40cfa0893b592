//! A VXLAN network on this node, without its pods: its keys ([`Conf`]), what they mean
//! ([`Network`]), the node's address and interface for it ([`Underlay`]), its device
//! ([`device`]), its peers ([`Peer`]) and which hosts may send its packets ([`guard`]).
//!
//! There are no CNI verbs here. The plugin `vxlan` uses this crate for a pod's ADD, and `podwire
//! peers` for changes by hand.

mod conf;
pub mod device;
mod fault;
pub mod guard;
mod mac;
mod mode;
mod network;
mod peer;
mod peer_checks;
mod underlay;

pub use conf::{Conf, PeerKeys};
pub use device::Device;
pub use mac::{gateway_mac, subnet_mac};
pub use mode::Mode;
pub use network::Network;
pub use peer::{Peer, entries, peers, unreached};
pub use underlay::{Underlay, Underlays};
