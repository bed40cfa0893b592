//! What the resolver has done, for the metrics.

use super::answer::Kind;
use crate::metrics::{Histogram, Page};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    known: u64,
    unknown: u64,
    refused: u64,
    malformed: u64,
    /// Answers of other servers.
    pub forwarded: u64,
    /// Questions that no other server answered.
    pub failed: u64,
    /// Questions that were refused because too many were asked at once.
    pub overloaded: u64,
    /// Records that were read or removed.
    pub changes: u64,
    /// Records whose containers had ended without DEL.
    pub swept: u64,
    /// How long answers out of memory took.
    pub own_time: Histogram,
    /// How long answers of other servers took.
    pub forward_time: Histogram,
}

impl Counters {
    /// Counts an answer of ours.
    pub fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Known => &mut self.known,
            Kind::Unknown => &mut self.unknown,
            Kind::Refused => &mut self.refused,
            Kind::Malformed => &mut self.malformed,
        } += 1;
    }

    /// Writes the metrics.
    pub fn write(&self, page: &mut Page) {
        let name = "podwired_resolver_queries_total";
        page.begin(name, "counter", "Questions by how they were answered.");
        for (result, count) in [
            ("known", self.known),
            ("unknown", self.unknown),
            ("refused", self.refused),
            ("malformed", self.malformed),
            ("forwarded", self.forwarded),
            ("failed", self.failed),
            ("overloaded", self.overloaded),
        ] {
            page.sample(name, &[("result", result)], count);
        }
        let name = "podwired_resolver_duration_seconds";
        page.begin(name, "histogram", "Time until an answer was sent.");
        self.own_time.write(page, name, &[("by", "own")]);
        self.forward_time.write(page, name, &[("by", "forwarded")]);
        let help = "Records that were read or removed.";
        page.single(
            "podwired_resolver_changes_total",
            "counter",
            help,
            self.changes,
        );
        let help = "Records whose containers had ended without DEL.";
        page.single("podwired_resolver_swept_total", "counter", help, self.swept);
    }
}
