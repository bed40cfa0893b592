//! The key `mtu`.

use std::ops::RangeInclusive;

use anyhow::{Result, anyhow};
use cni::faults::Fault;
use cni::json::Json;
use netlink::Netlink;
use serde::de::{Error, Unexpected};
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

impl Mtu {
    /// The same, if an interface can have it.
    ///
    /// # Errors
    /// Code 7: a number out of [`RANGE`].
    pub fn checked(self) -> Result<Self, Fault> {
        match self {
            Self::Bytes(bytes) if !RANGE.contains(&bytes) => {
                let (low, high) = (RANGE.start(), RANGE.end());
                let msg = format!("invalid MTU {bytes}, must be [{low}, {high}]");
                Err(Fault::new("mtu", msg))
            }
            mtu => Ok(mtu),
        }
    }

    /// The number to set; `None` leaves it to the kernel.
    ///
    /// # Errors
    /// `"auto"` without a default route; what the kernel refuses.
    pub fn bytes(self, host: &Netlink) -> Result<Option<u32>> {
        match self {
            Self::Unset => Ok(None),
            Self::Bytes(bytes) => Ok(Some(u32::try_from(bytes)?)),
            Self::Auto => {
                let mtu = host.default_route_mtu()?;
                mtu.map(Some).ok_or_else(|| {
                    anyhow!("mtu \"auto\": no default route to take it from; set it to a number")
                })
            }
        }
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = &"an integer or \"auto\"";
        match &Json::deserialize(deserializer)? {
            Json::Number(number) if !number.is_f64() => Ok(match number.as_i64() {
                Some(0) => Self::Unset,
                bytes => Self::Bytes(bytes.unwrap_or(i64::MAX)),
            }),
            Json::String(text) if text == "auto" => Ok(Self::Auto),
            Json::String(text) => Err(D::Error::invalid_value(Unexpected::Str(text), expected)),
            other => Err(D::Error::invalid_type(other.unexpected(), expected)),
        }
    }
}
