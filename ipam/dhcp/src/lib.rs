//! An address for each pod from the segment's own DHCP server: what the plugin
//! `dhcp` and its daemon are made of.
//!
//! The plugin runs for a moment, a lease has to be renewed for as long as the pod
//! lives: that is the daemon's part. [`client`] and [`daemon`] are the two ends of
//! its socket, [`rpc`] and [`gob`] what is said there. [`lease`] decides, without a
//! clock or a socket; [`message`] and [`terms`] read what servers answer, and
//! believe none of it; [`frame`], the socket and the pod's interface carry it.

pub mod client;
pub mod conf;
pub mod daemon;
pub mod flags;
pub mod frame;
pub mod gob;
pub mod lease;
pub mod message;
pub mod offline;
pub mod plan;
mod pod;
pub mod rpc;
mod socket;
pub mod store;
pub mod terms;
