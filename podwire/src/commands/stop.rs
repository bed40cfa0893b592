//! `podwire stop`: end containers.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use containers::{Record, place};
use nix::poll::PollTimeout;
use nix::sys::signal::Signal;

use super::Verdict;
use crate::options::CacheDir;
use crate::output::{Output, print};

/// How long a supervisor may take to detach a container.
const DETACHING: Duration = Duration::from_secs(300);
/// How often this is looked at: a container is detached in some twenty milliseconds.
const NAP: Duration = Duration::from_millis(1);

/// Stop containers of podwire run.
///
/// Sends SIGTERM to the command and, if it has not ended in time, kills everything in the container.
/// Returns when the container is detached and gone. CONTAINER is a name, an id, or the first digits
/// of an id.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Stop {
    /// Seconds to wait before it is killed; -1 waits without an end
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=86400))]
    time: i64,
    #[command(flatten)]
    cache: CacheDir,
    /// The containers
    #[arg(required = true)]
    containers: Vec<String>,
}

const OUTCOME: &str = "\
Exit status: 0 when all are gone, 1 when one could not be stopped, 2 for a wrong
command line.

Examples:
  podwire stop web
  podwire stop -t 0 $(podwire ps -q)
";

impl Stop {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let mut good = true;
        for word in &self.containers {
            match self.stop(word) {
                Ok(()) => print(word)?,
                Err(error) => {
                    output.report(&error);
                    good = false;
                }
            }
        }
        super::sweep(&self.cache);
        Ok(Verdict::good_if(good))
    }

    fn stop(&self, word: &str) -> Result<()> {
        let Some(record) = place::find(word)? else {
            bail!("No such container: {word}");
        };
        if let Some(process) = record.process() {
            process.signal(Signal::SIGTERM as i32)?;
            let limit = match u16::try_from(self.time.saturating_mul(1000)) {
                _ if self.time < 0 => PollTimeout::NONE,
                Ok(millis) => millis.into(),
                Err(_) => PollTimeout::try_from(Duration::from_secs(self.time as u64))
                    .unwrap_or(PollTimeout::MAX),
            };
            if !process.ends_within(limit) {
                process.signal(Signal::SIGKILL as i32)?;
            }
        }
        await_removal(&record)
    }
}

/// Waits until the supervisor has removed the container, or has ended without that.
fn await_removal(record: &Record) -> Result<()> {
    let deadline = Instant::now() + DETACHING;
    while place::find(&record.id)?.is_some() {
        if Instant::now() > deadline {
            bail!("container {} is not removed yet", record.name);
        }
        std::thread::sleep(NAP);
    }
    Ok(())
}
