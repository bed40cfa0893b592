//! The clock of fences and cool-downs.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of this boot, in nanoseconds (CLOCK_BOOTTIME, clock_gettime(2)). An operator or a time
/// server cannot set this clock, and it goes on while the node is suspended.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
        // It has always worked since Linux 2.6.39.
        let now = now.map_or(Duration::ZERO, Duration::from);
        Self(now.as_nanos() as u64)
    }

    /// This moment and `later`.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later.as_nanos() as u64))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The name of this boot; random(4). Without it nothing from before can be trusted.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn boot() -> std::io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}
