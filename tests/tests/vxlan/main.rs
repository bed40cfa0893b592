//! vxlan: networks that span hosts, in both modes, over both families.

mod access;
mod examples;
mod faults;
mod flannel;
mod fleet;
mod life;
mod mtu;
mod peers;
mod traffic;
