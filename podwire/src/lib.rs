//! podwire: the command line of the suite.
//!
//! `podwire add|check|del|gc|status` replace cnitool: with the same environment, order of
//! arguments and files on disk. `podwire resync|adopt|release` manage the packet filter
//! rules of all pods of the node.

mod command_line;
mod commands;
mod completion;
mod doctor;
mod firewalls;
mod gateways;
pub mod graph;
mod install;
pub mod network;
mod options;
mod output;
pub mod overview;
mod pods;
mod probe;
mod progress;
mod run;
pub mod top;
pub mod trace;
mod unknown_owners;
pub mod validate;

use std::process::ExitCode;

pub use command_line::description;

use crate::command_line::{Words, misuse};
use crate::commands::Verdict;
use crate::output::print;

/// Exit status of success.
const DONE: u8 = 0;
/// Exit status of a failure.
const FAILED: u8 = 1;
/// Exit status of a wrong command line.
const MISUSED: u8 = 2;

/// Exit status of `podwire run` without a command that has run, as in docker run.
const RUN_FAILED: u8 = 125;

/// The whole `main`: runs the command of the command line.
pub fn main() -> ExitCode {
    cni::process::start();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if completion::is_question(&arguments) {
        completion::answer(&arguments);
        return DONE.into();
    }
    let words = Words::new(arguments);
    let name = words.name.clone();
    let line = match words.read() {
        Ok(line) => line,
        Err(error) if error.use_stderr() => return misused(&name, &error),
        Err(manual) => return printed(&manual),
    };
    let output = line.output();
    match line.command.run(&output) {
        Ok(Verdict::Good) => DONE.into(),
        Ok(Verdict::Bad) => FAILED.into(),
        Ok(Verdict::Status(status)) => status.into(),
        Err(error) => match error.downcast_ref() {
            Some(error) => misused(&name, error),
            None => {
                output.report(&error);
                FAILED.into()
            }
        },
    }
}

/// Prints a manual, or the version.
fn printed(manual: &clap::Error) -> ExitCode {
    match print(&manual.render().to_string()) {
        Ok(()) => DONE.into(),
        Err(error) => {
            cni::log(format_args!("podwire: {error:#}"));
            FAILED.into()
        }
    }
}

fn misused(name: &str, error: &clap::Error) -> ExitCode {
    let misuse = misuse(error);
    cni::log(format_args!("{name}: {misuse}; see {name} --help"));
    match name {
        // Other statuses are those of commands.
        "podwire run" => RUN_FAILED.into(),
        _ => MISUSED.into(),
    }
}
