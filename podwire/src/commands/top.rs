//! `podwire top`: traffic, losses and connections of pods.

use std::io::IsTerminal;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::Verdict;
use crate::options::SurveyDirs;
use crate::output::{Output, print};
use crate::top::{Activity, Sample, connections};

/// Show the traffic, losses and connections of each pod.
///
/// At a terminal, the busiest pods first, again each second until Ctrl-C; elsewhere, and with --json,
/// once. Losses are packets that the pod's interface dropped since it was made; connections are those
/// that the kernel tracks.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Top {
    /// Seconds between two samples
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Show it once, also at a terminal
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    dirs: SurveyDirs,
}

const OUTCOME: &str = "\
Exit status: 0 when shown, 1 when the node cannot be read, 2 for a wrong command
line.

Examples:
  podwire top
  podwire top --interval 5
  podwire top --json | jq '.interfaces[0]'
";

/// Clears the terminal, and goes to its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// The lines of a terminal whose height is unknown.
const LINES: usize = 24;

impl Top {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        if !(0.01..=3600.0).contains(&self.interval) {
            bail!("--interval {}: 0.01 to 3600 seconds", self.interval);
        }
        let live = std::io::stdout().is_terminal() && !output.is_json() && !self.once;
        let interval = Duration::from_secs_f64(self.interval);
        let mut before = Sample::take(&self.dirs.survey()?)?;
        loop {
            sleep(interval);
            let survey = self.dirs.survey()?;
            let after = Sample::take(&survey)?;
            let activity = Activity::between(&survey, [&before, &after], &connections()?);
            if output.is_json() {
                output.print_json(&activity)?;
            } else if live {
                let lines = terminal_size::terminal_size().map(|(_, height)| usize::from(height.0));
                let table = activity.text(lines.unwrap_or(LINES).saturating_sub(1));
                print(&format!("{CLEAR}{table}"))?;
            } else {
                print(&activity.text(usize::MAX))?;
            }
            if !live {
                return Ok(Verdict::Good);
            }
            before = after;
        }
    }
}
