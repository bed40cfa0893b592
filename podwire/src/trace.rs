//! `podwire trace`: sends one packet from a pod, and shows what the kernel decides about it.
//!
//! The packet is real: a connection that is closed at once, a datagram without content, or an echo
//! request. Before it is sent, the kernel is asked to report what each rule does with it
//! (`packet_filter::trace`); what it decides about routes, neighbours and ports of bridges is asked
//! for. Nothing of that stays behind, also when podwire is killed.

mod bridge;
mod follow;
mod hop;
mod legacy;
mod probe;
mod target;
mod walk;

pub use hop::{Hop, Passage, Traced};
pub use target::{Origin, Target};
pub use walk::trace;
