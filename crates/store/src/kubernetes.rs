//! The API of Kubernetes as a store: the nodes of a cluster ([`Nodes`]), and keys in custom resources
//! ([`Records`]).
//!
//! A dozen requests, over the HTTP/2 that etcd needs anyway. The crate `kube` would add 90 crates and
//! more than a minute to a build, and keeps whole objects; here few fields of them are read.

mod access;
mod api;
mod lease;
mod node;
mod nodes;
mod record;
mod records;

pub use self::access::ApiAccess;
pub use self::node::Node;
pub use self::nodes::{Merge, NodeEvent, NodeWatch, Nodes};
pub use self::records::{Place, RecordWatch, Records};
