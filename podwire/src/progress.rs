//! A progress bar of long work: on a terminal, on standard error, and only where there is much to do.
//! A pipe or a file gets nothing.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Less work is done before a bar can be read.
const MANY: usize = 50;

/// The bar of one loop. It vanishes when it is dropped.
pub struct Progress(Option<ProgressBar>);

impl Progress {
    /// For `count` steps of `what`: `attachments`.
    pub fn of(what: &'static str, count: usize) -> Self {
        if count < MANY || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new(count as u64);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self(Some(bar))
    }

    /// One more step is done.
    pub fn step(&self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
