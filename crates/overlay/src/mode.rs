//! The key `mode`.

use cni::faults::Fault;

use crate::fault::fault;

/// How the pods of two hosts are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One segment: the hosts bridge frames.
    L2,
    /// A subnet on each host: the hosts route packets.
    L3,
}

impl Mode {
    /// Reads the key.
    ///
    /// # Errors
    /// `mode: "l4" is neither l2 nor l3`
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "l2" | "L2" => Ok(Self::L2),
            "l3" | "L3" => Ok(Self::L3),
            other => Err(fault("mode", format!("{other:?} is neither l2 nor l3"))),
        }
    }
}
