//! Limits log lines that others cause: a neighbour that sends malformed offers by the
//! thousand must not fill the node's disk.

use std::collections::HashMap;

use crate::lease::Millis;

/// Lines of one cause in one window; further ones are only counted.
const MAX_LINES: u32 = 10;
const WINDOW: Millis = 10_000;

/// What lines are about, as the line about those that were left out has it.
pub type Cause = &'static str;
/// Packets that are not valid DHCP messages.
pub const MALFORMED: Cause = "malformed answers";
/// Valid messages with an offer or a grant that cannot be used.
pub const UNUSABLE: Cause = "unusable answers";
/// Plugins whose connection was closed at once.
pub const REJECTED: Cause = "rejected plugins";

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
        let written = (0..95_000).filter(|now| journal.admits(MALFORMED, *now / 100));
        assert_eq!(written.count(), 10);
        assert!(journal.admits(REJECTED, 900));
        assert_eq!(journal.due(), Some(WINDOW));
        assert!(journal.end_windows(WINDOW - 1).is_empty());
        assert_eq!(
            journal.end_windows(WINDOW),
            ["94990 more malformed answers were left out of this log"]
        );
        assert!(journal.admits(MALFORMED, WINDOW));
        assert!(journal.end_windows(2 * WINDOW).is_empty());
        assert_eq!(journal.due(), None);
    }
}
