//! Links, addresses and routes of one network namespace, over rtnetlink.
//!
//! Everything is synchronous: values in, values out, and no type of rtnetlink
//! in between. [`Netlink`] is a socket; its methods are spread over one file
//! per subject. The verbs have fixed meanings:
//!
//! - `add_*` makes something private; it fails if it is there, and takes the
//!   undo stack where leaving it behind would hurt;
//! - `ensure_*` makes something shared, or finds it as it should be;
//! - `delete_*` is content when there is nothing to delete;
//! - `find_*` returns an option, `get_*` fails when it is absent.

mod address;
mod announce;
mod apply;
mod bridge;
mod bridge_vlan;
mod creation;
mod deletion;
mod fdb;
mod forwarding;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod link;
mod mac;
mod macvlan;
mod neighbour;
mod packet;
mod parent;
mod probe;
mod reconcile;
mod request;
mod route;
pub mod sysctl;
mod veth;
mod vxlan;

pub use address::{Address, AddressSpec, Family};
pub use apply::{AcceptRa, Configured, Dad, Interface, InterfaceAddress, Layer3, Pod, enter};
pub use bridge::{BridgeSpec, PortSpec};
pub use bridge_vlan::PortVlan;
pub use creation::{LinkKind, LinkSpec};
pub use fdb::{FLOOD, FdbEntry};
pub use link::{Link, OperState, Port};
pub use mac::{InvalidMac, Mac};
pub use macvlan::{Macvlan, MacvlanMode};
pub use parent::Parent;
pub use probe::{Conflict, find_conflict};
pub use reconcile::{Entry, Overlay, Peers, Present, Reconciled};
pub use request::Netlink;
pub use route::{MAIN_TABLE, Route, RouteFilter, RouteSpec, WayOut};
pub use transport::Error;
pub use veth::{ContainerVeth, VethPair, VethSpec};
pub use vxlan::{MAX_VNI, Receiving, Vxlan, VxlanDevice, VxlanPort, VxlanSpec, is_port_taken};
