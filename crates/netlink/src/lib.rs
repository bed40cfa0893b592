//! Links, addresses and routes of one network namespace, over rtnetlink.
//!
//! All calls are synchronous, and rtnetlink's types are not part of the interface. [`Netlink`] is a
//! socket; its methods are in one file per subject. The verbs have fixed meanings:
//!
//! - `add_*` creates a private object; it fails if that exists, and takes the undo stack where a
//!   leftover would do harm;
//! - `ensure_*` creates a shared object unless it exists as it should be;
//! - `delete_*` succeeds if there is nothing to delete;
//! - `find_*` returns an option, `get_*` fails when the object is absent.

mod address;
mod announce;
mod apply;
mod bridge;
mod bridge_vlan;
mod counters;
mod creation;
mod deletion;
mod device;
mod fdb;
mod filter;
mod forwarding;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod ifb;
mod ipvlan;
mod kept;
mod link;
mod mac;
mod macvlan;
mod monitor;
mod neighbour;
mod packet;
mod parent;
pub mod ports;
mod present;
mod probe;
mod qdisc;
mod reconcile;
mod request;
mod route;
mod rule;
pub mod sysctl;
mod tap;
mod veth;
mod vrf;
mod vxlan;
mod whole_route;

pub use address::{Address, AddressSpec, Family};
pub use apply::{AcceptRa, Configured, Dad, Interface, InterfaceAddress, Layer3, Pod, enter};
pub use bridge::{BridgeSpec, PortSpec};
pub use bridge_vlan::PortVlan;
pub use counters::Counters;
pub use creation::{LinkKind, LinkSpec};
pub use device::Device;
pub use fdb::{FLOOD, FdbEntry, Vtep};
pub use filter::Side;
pub use ipvlan::IpvlanMode;
pub use kept::Kept;
pub use link::{Link, OperState, Port};
pub use mac::{HardwareAddress, InvalidMac, Mac};
pub use macvlan::{Macvlan, MacvlanMode};
pub use monitor::{Event, Monitor};
pub use neighbour::Neighbour;
pub use packet::PacketSocket;
pub use parent::Parent;
pub use present::Present;
pub use probe::{Conflict, find_conflict};
pub use qdisc::{Queue, Rate, Shaped};
pub use reconcile::{Desired, Entry, Overlay, Peers, Reconciled, Segment};
pub use request::Netlink;
pub use route::{Decision, MAIN_TABLE, Route, RouteFilter, RouteSpec, WayOut};
pub use rule::Rule;
pub use tap::{Tap, TapSpec, may_create_taps};
pub use transport::Error;
pub use veth::{ContainerVeth, VethPair, VethSpec};
pub use vxlan::{MAX_VNI, Receiving, Vxlan, VxlanDevice, VxlanPort, VxlanSpec, is_port_taken};
pub use whole_route::WholeRoute;
