//! The log of what others cause: a neighbour that sends malformed offers by the thousand
//! must not fill the disk of the node.

use std::collections::HashMap;
use std::fmt;

use crate::lease::Millis;

/// Lines of one cause in one window; what is beyond is counted.
const MOST: u32 = 10;
const WINDOW: Millis = 10_000;

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A message that is none of DHCP.
    Malformed,
    /// A message that is well-formed, and is not believed.
    NotBelieved,
    /// A plugin that was turned away.
    TurnedAway,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed answers",
            Self::NotBelieved => "answers that are not believed",
            Self::TurnedAway => "plugins turned away",
        })
    }
}

/// How much was said lately of each cause.
#[derive(Debug, Default)]
pub struct Journal(HashMap<Cause, Window>);

#[derive(Debug)]
struct Window {
    since: Millis,
    lines: u32,
}

impl Journal {
    /// Whether a line of this cause is to be written now.
    pub fn admits(&mut self, cause: Cause, now: Millis) -> bool {
        let window = self.0.entry(cause).or_insert(Window {
            since: now,
            lines: 0,
        });
        window.lines = window.lines.saturating_add(1);
        window.lines <= MOST
    }

    /// Ends the windows that are over; what was left out in them is to be told.
    pub fn end_windows(&mut self, now: Millis) -> Vec<String> {
        let mut told = Vec::new();
        self.0.retain(|cause, window| {
            let is_over = now >= window.since + WINDOW;
            let left_out = window.lines.saturating_sub(MOST);
            if is_over && left_out > 0 {
                told.push(format!("{left_out} more {cause} were left out of this log"));
            }
            !is_over
        });
        told
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
        assert!(journal.admits(Cause::TurnedAway, 900));
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
