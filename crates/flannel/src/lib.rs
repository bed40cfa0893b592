//! flannel's documents, as flanneld 0.20 to 0.27 writes and reads them: the configuration of a
//! network ([`Config`]), the leases of its nodes ([`Subnet`] is the key in etcd, [`Lease`] the value;
//! in Kubernetes they are [`Annotations`]), and the file that a node leaves for its plugins ([`subnet_env()`]). Pure: nothing here speaks to a
//! store or to the kernel.
//!
//! Nodes with flanneld and nodes with podwired are peers in one network, so what is written here is
//! written exactly as flanneld writes it, and what is read is read as tolerantly.

mod choice;
mod config;
mod lease;
mod node;
mod subnet;
mod subnet_env;

pub use choice::free_subnets;
pub use config::{Backend, BackendType, Config, Pool};
pub use lease::{Backing, Lease};
pub use node::{ANNOTATIONS, Annotations};
pub use subnet::Subnet;
pub use subnet_env::{SubnetEnv, own_subnet, subnet_env};

/// Where flanneld keeps a network unless its operator chose another prefix.
pub const PREFIX: &str = "/coreos.com/network";

/// The key of a network's configuration.
pub fn config_key(prefix: &str) -> String {
    format!("{prefix}/config")
}

/// What the keys of all leases of a network begin with.
pub fn leases_prefix(prefix: &str) -> String {
    format!("{prefix}/subnets/")
}

/// What the keys of nodes without subnets begin with, in a network that is one segment: podwire's own,
/// as flannel has no such network.
pub fn nodes_prefix(prefix: &str) -> String {
    format!("{prefix}/nodes/")
}
