//! What every plugin that wires a pod does the same way, whatever the link
//! between the pod and the world is. No CNI verb lives here: a plugin's `main.rs`
//! says in which order these are done.
//!
//! - [`Addressing`]: what the pod gets, decided from what IPAM answered;
//! - [`pod`]: its interface: configured, announced, described in the result,
//!   deleted;
//! - [`port`]: the veth pair that makes a pod a port of a bridge;
//! - [`gateway`]: the pods' gateway on an interface of the host;
//! - [`outside`]: masquerade and spoof check;
//! - [`shared`]: rules that serve all attachments of a network, and how long they stay;
//! - [`users`]: who uses what the attachments of a network share;
//! - [`lease`]: addresses that nobody else on the segment has;
//! - [`check`]: whether all of that is as the result says;
//! - [`mac`]: the MAC that was asked for; [`requested`]: what may be asked for;
//! - [`mtu`]: the key `mtu`.

mod addressing;
pub mod check;
pub mod gateway;
pub mod lease;
pub mod mac;
pub mod mtu;
pub mod outside;
pub mod pod;
pub mod port;
pub mod requested;
pub mod shared;
pub mod users;

pub use addressing::{Addressing, Gateway};
pub use outside::{MasqueradeKeys, Masquerading};
