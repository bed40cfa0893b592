//! What all plugins that attach a pod do the same way, for any kind of link. This crate has no
//! CNI verbs: a plugin's `lib.rs` calls these functions in order.
//!
//! - [`lease`]: addresses from IPAM, probed for conflicts on the segment;
//! - [`Addressing`]: the pod's addresses and routes, decided from the lease;
//! - [`mod@alias`]: which attachment a link belongs to;
//! - [`pod`]: its namespace and interface: configure, announce, delete;
//! - [`port`]: a veth pair that makes the pod a port of a bridge;
//! - [`parent`]: the interface that a pod's link is made on; [`remains`]: DEL and GC of such links;
//!   [`shim`]: the node's own link beside them;
//! - [`neighbours`]: what the neighbours of a bridge's pods may remember, and when a pod is
//!   announced;
//! - [`gateway`]: the pods' gateway on an interface of the host;
//! - [`localhost`]: connections from 127.0.0.1 to published ports;
//! - [`rules`]: masquerade, isolation, separation, access, spoof check; [`masquerade`], [`access`]:
//!   their keys;
//! - [`shared`]: rules that all attachments of a network share, and when they are removed;
//!   [`users`]: which attachments use them;
//! - [`notes`]: what a chained plugin notes about an attachment for its DEL and GC;
//! - [`device`]: a device of the node that a pod has for a while;
//! - [`result`]: the result of ADD; [`check`]: compares the kernel with it;
//! - [`mac`], [`mtu`]: keys; [`requested`]: refuses requested addresses and MACs that would take
//!   traffic from the node or from another pod.

pub mod access;
mod addressing;
pub mod alias;
pub mod check;
pub mod device;
pub mod gateway;
pub mod lease;
pub mod links;
pub mod localhost;
pub mod mac;
pub mod masquerade;
pub mod mtu;
pub mod neighbours;
pub mod notes;
pub mod parent;
pub mod pod;
pub mod port;
pub mod remains;
pub mod requested;
pub mod result;
pub mod rules;
pub mod shared;
pub mod shim;
pub mod users;

pub use access::{AccessKeys, Reachability};
pub use addressing::{Addressing, Gateway};
pub use masquerade::{MasqueradeKeys, Masquerading};
