//! A VXLAN network on this node, apart from its pods: what its configuration
//! says ([`Conf`], [`Network`]), which of the node's addresses it uses
//! ([`Underlay`]), its device ([`device`]) and its peers ([`Peer`]).
//!
//! No CNI verb lives here. The plugin `vxlan` uses it for a pod's ADD, `podwire
//! peers` when somebody changes peers by hand, and whoever learns peers from
//! elsewhere will use the same.

mod conf;
pub mod device;
pub mod guard;
mod network;
mod peer;
mod underlay;

pub use conf::Conf;
pub use device::Device;
pub use network::{Mode, Network, gateway_mac};
pub use peer::{Peer, PeerKeys, entries, peers, unreached};
pub use underlay::Underlay;
