//! `podwire uninstall`: take back what `podwire install` has placed.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::Verdict;
use crate::install::Places;
use crate::output::{Output, counted};

/// Take back what podwire install has placed.
///
/// Files that were there before are restored, the others are removed: first the configuration,
/// then the programs. Files that another program has replaced since stay. The directories are
/// those of podwire install.
///
/// Without plugins a runtime cannot delete its pods. If no others were there before, remove the
/// pods first. Before plugins of the Go suite come back, run podwire release.
///
/// --json prints an object with removed, restored and others (what stays): lists of paths.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Uninstall {
    #[command(flatten)]
    places: Places,
}

const OUTCOME: &str = "\
Exit status: 0 also when nothing was installed, 1 after a failure, 2 for a
wrong command line.

Examples:
  podwire uninstall
  podwire uninstall --sbin-dir /usr/local/sbin
";

#[derive(Serialize)]
struct Answer<'a> {
    removed: &'a [PathBuf],
    restored: &'a [PathBuf],
    others: &'a [PathBuf],
}

impl Uninstall {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let done = self.places.withdraw()?;
        if output.is_json() {
            output.print_json(&Answer {
                removed: &done.removed,
                restored: &done.restored,
                others: &done.others,
            })?;
            return Ok(Verdict::Good);
        }
        let removed = counted(done.removed.len(), "file");
        let mut text = format!("removed {removed}, restored {}", done.restored.len());
        for other in &done.others {
            text += &format!("\nnot podwire's any more: {}", other.display());
        }
        output.remark(&text)?;
        Ok(Verdict::Good)
    }
}
