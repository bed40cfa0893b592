//! `podwire exec`: run a further command in a container.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result, bail};
use clap::Args;
use containers::place;
use containers::processes;
use nix::sched::CloneFlags;

use super::Verdict;
use crate::output::Output;
use crate::run::{self, plan};

/// Run a further command in a container of podwire run.
///
/// COMMAND has the container's network, processes, host name and files, and ends with the container
/// at the latest. CONTAINER is a name, an id, or the first digits of an id.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Exec {
    /// Accepted as in docker exec: the command has podwire's input
    #[arg(short, long)]
    interactive: bool,
    /// Accepted as in docker exec: the command has podwire's terminal
    #[arg(short, long)]
    tty: bool,
    /// A variable of its environment, beside those of podwire
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// The container
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

const OUTCOME: &str = "\
Exit status: that of COMMAND, 128+n if signal n has ended it; 1 without such a
container, 126 when COMMAND cannot be executed, 127 when it is not found.

Examples:
  podwire exec web ip addr
  podwire exec web sh -c 'ss -ltn | grep :80'
";

impl Exec {
    pub fn run(&self, _: &Output) -> Result<Verdict> {
        let word = &self.container;
        let Some(record) = place::find(word)? else {
            bail!("No such container: {word}");
        };
        let Some(process) = record.process() else {
            bail!("Container {} is not running", record.name);
        };
        let words = self.command.iter();
        let command = words.map(|it| CString::new(it.clone().into_vec()));
        let command = command
            .collect::<Result<Vec<_>, _>>()
            .context("a NUL in the command")?;
        let environment = run::environment(&record.hostname, &plan::environment(&self.env)?);
        let here = std::env::current_dir();
        let joined = netns::join_process(process.as_fd());
        joined.with_context(|| format!("enter the namespaces of {}", record.name))?;
        if let Ok(here) = here {
            // The root of the container, where there is no such directory.
            let _ = std::env::set_current_dir(here);
        }
        run::pass_signals(|| {
            let child = processes::fork(CloneFlags::empty(), || {
                let errno = processes::execute(&command, &environment);
                let (status, text) = containers::not_executed(&command, errno);
                cni::log(format_args!("podwire: {text}"));
                status
            });
            child.context("start the command")
        })
        .map(Verdict::Status)
    }
}
