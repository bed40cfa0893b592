//! The key `mtu`.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// The MTU of an interface in bytes: from the smallest packet that IPv4 hosts must accept (RFC 791;
/// the kernel's `ETH_MIN_MTU`) to the largest IP packet (`ETH_MAX_MTU`, `if_ether.h`).
pub const RANGE: RangeInclusive<i64> = 68..=65535;

/// The key `mtu`, as it is written: a number, or `"auto"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// Absent, or 0.
    #[default]
    Unset,
    /// `"auto"`: the MTU of the interface that packets leave by.
    Auto,
    /// A number of bytes, possibly out of [`RANGE`].
    Bytes(i64),
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MtuVisitor)
    }
}

struct MtuVisitor;

impl Visitor<'_> for MtuVisitor {
    type Value = Mtu;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer or \"auto\"")
    }

    fn visit_i64<E>(self, bytes: i64) -> Result<Mtu, E> {
        Ok(match bytes {
            0 => Mtu::Unset,
            bytes => Mtu::Bytes(bytes),
        })
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<Mtu, E> {
        self.visit_i64(i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Mtu, E> {
        match text {
            "auto" => Ok(Mtu::Auto),
            other => Err(E::invalid_value(Unexpected::Str(other), &self)),
        }
    }
}
