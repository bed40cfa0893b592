//! What the black-box tests are written with.
//!
//! A test makes a [`Sandbox`]: a private network and mount namespace that plays
//! the node, with as many pod namespaces as the test asks for. It runs a plugin
//! in it with [`Sandbox::cni`], reads the kernel with other people's tools
//! (`ip -j`, `nft -j`, `ping`), and compares [`Snapshot`]s to see what was left.
//!
//! Nothing here knows our own netlink code, and nothing here skips: if a sandbox
//! cannot be made, the test fails and names the setting that forbids it.

mod backend;
mod cni;
mod dnsmasq;
mod fake;
mod netns;
mod process;
mod roster;
mod sandbox;
mod segment;
mod snapshot;
mod suite;
mod traffic;

pub mod conf;
pub mod normal;

pub use backend::{BackEnd, FilterNode};
pub use cni::{Cni, Failure, Outcome, container_id};
pub use fake::{Call, FakePlugin};
pub use netns::{Netns, Running};
pub use process::{Finished, Stdout, TIME_LIMIT, in_time};
pub use roster::{conf_of, each_plugin, plugins};
pub use sandbox::Sandbox;
pub use segment::{MACHINE, Segment};
pub use snapshot::Snapshot;
pub use suite::{Suite, beyond_peer, newest, supports, testing_the_peer};
pub use traffic::{NOBODY, NODE, OUTSIDE};
