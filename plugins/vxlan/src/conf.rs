//! The keys of vxlan. They are read in crates/overlay, because `podwire peers` and
//! whoever else makes peers known read the same configuration.

pub use overlay::Conf;
