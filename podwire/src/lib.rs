//! podwire: the command line of the suite.
//!
//! `podwire add|check|del|gc|status` replace cnitool: with the same environment, order of
//! arguments and files on disk. `podwire resync|adopt|release` manage the packet filter
//! rules of all pods of the node.

mod arguments;
mod attach;
pub mod cache;
mod commands;
mod gateways;
pub mod network_list;
mod output;
mod pods;
mod probe;
pub mod request_config;
mod unknown_owners;
pub mod validate;

use std::process::ExitCode;

use cni::env::Environment;

use crate::arguments::{Arguments, Misuse};
use crate::output::Output;

/// Exit status of success.
const DONE: u8 = 0;
/// Exit status of a failure.
const FAILED: u8 = 1;
/// Exit status of a wrong command line.
const MISUSED: u8 = 2;

/// The whole `main`: does what the command line says.
pub fn main() -> ExitCode {
    cni::process::start();
    let line = std::env::args_os().skip(1);
    let arguments = match Arguments::parse(line, Environment::of_process()) {
        Ok(arguments) => arguments,
        Err(misuse) => return misused(&misuse, ""),
    };
    run(arguments)
}

fn misused(misuse: &Misuse, command: &str) -> ExitCode {
    let space = if command.is_empty() { "" } else { " " };
    cni::log(format_args!(
        "podwire{space}{command}: {misuse}; see podwire{space}{command} --help"
    ));
    MISUSED.into()
}

fn run(mut arguments: Arguments) -> ExitCode {
    let output = arguments.output();
    let word = arguments.next_word();
    let done = match word.as_deref() {
        None => commands::without_command(&arguments),
        Some(word) => commands::run(word, &mut arguments),
    };
    match done {
        Ok(commands::Verdict::Good) => DONE.into(),
        Ok(commands::Verdict::Bad) => FAILED.into(),
        Err(error) => match error.downcast_ref::<Misuse>() {
            Some(misuse) => misused(misuse, commands::name(word.as_deref())),
            None => reported(output, &error),
        },
    }
}

fn reported(output: Output, error: &anyhow::Error) -> ExitCode {
    output.report(error);
    FAILED.into()
}
