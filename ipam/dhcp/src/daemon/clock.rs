//! The daemon's clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::lease::Millis;

/// Milliseconds since boot, including time asleep: a lease runs on while a machine
/// sleeps.
pub fn now() -> Millis {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    time.unwrap_or_default().as_millis() as Millis
}

/// Seconds since 1970, which survive a reboot.
pub fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
