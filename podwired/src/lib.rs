//! podwired: the agent of a node. It does what needs a process that stays, each subject a role
//! ([`roles`]) that its configuration switches on.
//!
//! The main thread serves the agent's socket ([`control`]), the endpoint ([`endpoint`]) and signals.
//! Each role has a thread of its own, so that none waits for the other.

mod agent;
pub mod arguments;
pub mod conf;
mod control;
mod endpoint;
mod instance;
pub mod ipam;
pub mod log;
pub mod metrics;
pub mod overlay;
mod page;
mod readiness;
pub mod resolver;
pub mod roles;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};

use arguments::Arguments;
use conf::Settings;
use instance::{Instance, Taken};

/// The program.
pub fn main() -> ExitCode {
    cni::process::start();
    let arguments = match Arguments::parse(lexopt::Parser::from_env()) {
        Ok(arguments) => arguments,
        Err(fault) => {
            cni::log(format_args!("podwired: {fault}; see podwired --help"));
            return ExitCode::from(2);
        }
    };
    if let Some(text) = arguments.text() {
        // A pipe that is closed early is no failure.
        let _ = std::io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let settings = Settings::load(arguments)?;
    log::set_level(settings.level);
    if arguments.check {
        return Ok(());
    }
    if arguments.on_demand {
        instance::detach()?;
    }
    let instance = match Instance::take(&settings.socket, arguments.on_demand)? {
        Taken::Here(instance) => instance,
        // The plugin that started this process goes on with the agent that runs.
        Taken::Elsewhere => return Ok(()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(agent::serve(settings, arguments.on_demand, instance));
    // A connection that is being served does not delay the end.
    runtime.shutdown_background();
    ended
}
