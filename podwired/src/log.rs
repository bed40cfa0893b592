//! What the agent says, on standard error: what has changed, and what failed.
//!
//! Where standard error is systemd's journal, each line has its priority (sd-daemon(3)).

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, bail};

/// How much is logged: each level has what precedes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What does not work.
    Error,
    /// What works, but not as it should.
    Warn,
    /// What has changed.
    Info,
    /// What was done.
    Debug,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static JOURNAL: OnceLock<bool> = OnceLock::new();

impl std::str::FromStr for Level {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => bail!("{text:?} is none of error, warn, info, debug"),
        })
    }
}

impl Level {
    /// The word at the head of a line, and the priority of syslog(3).
    fn words(self) -> (&'static str, u8) {
        match self {
            Self::Error => ("error", 3),
            Self::Warn => ("warning", 4),
            Self::Info => ("info", 6),
            Self::Debug => ("debug", 7),
        }
    }
}

/// Chooses what is logged from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Whether lines of this level are logged: for lines that are costly to make.
pub fn logs(level: Level) -> bool {
    level as u8 <= LEVEL.load(Ordering::Relaxed)
}

/// Logs what does not work.
pub fn error(line: fmt::Arguments<'_>) {
    write(Level::Error, line);
}

/// Logs what does not work as it should.
pub fn warn(line: fmt::Arguments<'_>) {
    write(Level::Warn, line);
}

/// Logs what has changed.
pub fn info(line: fmt::Arguments<'_>) {
    write(Level::Info, line);
}

/// Logs what was done.
pub fn debug(line: fmt::Arguments<'_>) {
    write(Level::Debug, line);
}

fn write(level: Level, line: fmt::Arguments<'_>) {
    if !logs(level) {
        return;
    }
    let (word, priority) = level.words();
    if *JOURNAL.get_or_init(|| std::env::var_os("JOURNAL_STREAM").is_some()) {
        cni::log(format_args!("<{priority}>{line}"))
    } else {
        cni::log(format_args!("podwired: {word}: {line}"))
    }
}
