//! Boots of the kernel, and times of files. Clocks are not compared with each other: a node may
//! have a wrong time until it reaches its time server.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// Digits of a boot.
const DIGITS: usize = 16;

const SECOND: i128 = 1_000_000_000;

/// One run of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot(String);

impl Boot {
    /// The current boot; `random(4)`.
    pub fn current() -> Self {
        // One read(2) returns its 37 bytes.
        let mut id = [0; 64];
        let read =
            File::open("/proc/sys/kernel/random/boot_id").and_then(|mut it| it.read(&mut id));
        Self::new(&String::from_utf8_lossy(&id[..read.unwrap_or(0)]))
    }

    /// Keeps the first half of the id: it is unique enough, and the files stay short.
    pub fn new(id: &str) -> Self {
        let digits = id.chars().filter(char::is_ascii_hexdigit);
        let id: String = digits.take(DIGITS).collect();
        Self(if id.is_empty() { "unknown".into() } else { id })
    }

    /// Whether this is certainly another boot than `now`.
    pub fn is_before(&self, now: &Self) -> bool {
        self != now && self.0 != "unknown" && now.0 != "unknown"
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A time of a file, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(i128);

impl Time {
    /// When the file was created or last changed (its ctime). It cannot be set.
    pub fn changed(file: &Metadata) -> Self {
        Self(i128::from(file.ctime()) * SECOND + i128::from(file.ctime_nsec()))
    }

    /// When its content was last changed (its mtime); for a directory, when a name was added
    /// or removed.
    pub fn modified(file: &Metadata) -> Self {
        Self(i128::from(file.mtime()) * SECOND + i128::from(file.mtime_nsec()))
    }

    /// When the kernel was started, by the clock of today. A clock that was set since then makes
    /// it wrong.
    pub fn of_boot() -> Self {
        let nanoseconds = |clock| {
            let time = clock_gettime(clock).unwrap_or(TimeSpec::new(0, 0));
            i128::from(time.tv_sec()) * SECOND + i128::from(time.tv_nsec())
        };
        Self(nanoseconds(ClockId::CLOCK_REALTIME) - nanoseconds(ClockId::CLOCK_BOOTTIME))
    }

    /// Two units before a time that the kernel has given to a file: it gives that to no file
    /// any more. Its clock for files may stand still for 10 ms, so the time itself may be given
    /// again. podwire up to 2.0 set the time of a directory one unit back, so two are distinct.
    /// The unit is a nanosecond, or a second on a file system that stores only seconds.
    pub fn unused(self) -> Self {
        let has_seconds_only = self.0 % SECOND == 0;
        Self(self.0 - 2 * if has_seconds_only { SECOND } else { 1 })
    }

    /// For system calls.
    pub fn to_timespec(self) -> TimeSpec {
        // Both fit: they come from a file.
        TimeSpec::new(
            self.0.div_euclid(SECOND) as i64,
            self.0.rem_euclid(SECOND) as i64,
        )
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Time {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(Self).map_err(drop)
    }
}
