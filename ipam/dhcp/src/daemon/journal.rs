//! Limits log lines that others cause: a neighbour that sends malformed offers by the
//! thousand must not fill the node's disk.

use std::collections::HashMap;
use std::fmt;

use crate::lease::Millis;

/// Lines of one cause in one window; further ones are only counted.
const MAX_LINES: u32 = 10;
const WINDOW: Millis = 10_000;

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A packet that is not a valid DHCP message.
    Malformed,
    /// A valid message with an offer or a grant that cannot be used.
    Unusable,
    /// A plugin whose connection was closed at once.
    Rejected,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed answers",
            Self::Unusable => "unusable answers",
            Self::Rejected => "rejected plugins",
        })
    }
}

/// The current window of each cause.
#[derive(Debug, Default)]
pub struct Journal(HashMap<Cause, Window>);

#[derive(Debug)]
struct Window {
    since: Millis,
    lines: u32,
}

impl Journal {
    /// Counts a line of this cause, and says whether to write it.
    pub fn admits(&mut self, cause: Cause, now: Millis) -> bool {
        let window = self.0.entry(cause).or_insert(Window {
            since: now,
            lines: 0,
        });
        window.lines = window.lines.saturating_add(1);
        window.lines <= MAX_LINES
    }

    /// Ends the windows that are over, and returns a line about each that left out some.
    pub fn end_windows(&mut self, now: Millis) -> Vec<String> {
        let mut lines = Vec::new();
        self.0.retain(|cause, window| {
            let is_over = now >= window.since + WINDOW;
            let left_out = window.lines.saturating_sub(MAX_LINES);
            if is_over && left_out > 0 {
                lines.push(format!("{left_out} more {cause} were left out of this log"));
            }
            !is_over
        });
        lines
    }

    /// When the next window ends.
    pub fn due(&self) -> Option<Millis> {
        self.0.values().map(|window| window.since + WINDOW).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_of_a_cause_are_written_and_the_others_counted() {
        let mut journal = Journal::default();
        let written = (0..95_000).filter(|now| journal.admits(Cause::Malformed, *now / 100));
        assert_eq!(written.count(), 10);
        assert!(journal.admits(Cause::Rejected, 900));
        assert_eq!(journal.due(), Some(WINDOW));
        assert!(journal.end_windows(WINDOW - 1).is_empty());
        assert_eq!(
            journal.end_windows(WINDOW),
            ["94990 more malformed answers were left out of this log"]
        );
        assert!(journal.admits(Cause::Malformed, WINDOW));
        assert!(journal.end_windows(2 * WINDOW).is_empty());
        assert_eq!(journal.due(), None);
    }
}
