//! Nodes and pods for tests, benches and fault sweeps. Products never depend on this crate.
//!
//! Two ways to a node, both private network and mount namespaces:
//! - [`Sandbox`] keeps them on a thread of its own and runs programs there: for tests of the
//!   built plugins. [`Sandbox::cni`] calls a plugin; [`Snapshot`]s show what it left behind.
//!   Benches use its [`Worker`] alone.
//! - [`here`] moves the calling thread into them: for tests that call our code directly.
//!
//! Tests read the kernel with other people's tools (`ip -j`, `nft -j`, `ping`), so this crate
//! does not depend on our own netlink code. There are no skipped tests: where a sandbox cannot
//! be made, the test fails and names the setting that forbids it.

mod backend;
mod cni;
mod dnsmasq;
mod docker;
mod fake;
mod netns;
mod plugins;
mod process;
mod runtime_node;
mod sandbox;
mod segment;
mod snapshot;
mod suite;
mod traffic;
mod worker;

pub mod cluster;
pub mod conf;
pub mod containerd;
pub mod etcd;
pub mod here;
pub mod image;
pub mod kubernetes;
pub mod namespaces;
pub mod normal;
pub mod underlay;

pub use backend::{BackEnd, FilterNode};
pub use cni::{Cni, Failure, Outcome, container_id};
pub use docker::Docker;
pub use fake::{Call, FakePlugin};
pub use netns::{Netns, Running};
pub use plugins::{Plugin, conf_of, each_plugin, plugins, row, table, versions_of};
pub use process::{Finished, Stdout, TIME_LIMIT, in_time};
pub use runtime_node::{Before, RuntimeNode, eventually};
pub use sandbox::Sandbox;
pub use segment::{MACHINE, Segment};
pub use snapshot::Snapshot;
pub use suite::{Suite, beyond_peer, newest, supports, testing_the_peer};
pub use traffic::{NO_ANSWER, NODE, OUTSIDE};
pub use worker::Worker;
