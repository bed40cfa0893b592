//! vxlan: networks that span hosts, in both modes, over both families.

mod fleet;
mod traffic;
