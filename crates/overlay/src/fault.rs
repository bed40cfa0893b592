//! Faults of the keys of vxlan.

use cni::faults::Fault;

/// A fault whose text begins with its key.
pub(crate) fn fault(key: &str, why: impl std::fmt::Display) -> Fault {
    Fault::new(key, format!("{key}: {why}"))
}
