//! The commands of podwire: one file each, with its options and its manual.

mod add;
mod adopt;
mod check;
mod del;
mod gc;
mod network;
mod node;
mod peers;
mod release;
mod resync;
mod status;
mod validate;
mod version;

use anyhow::Result;
use clap::Subcommand;

use crate::output::Output;

/// The outcome of a command without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exit status 0.
    Good,
    /// It has reported what failed: exit status 1.
    Bad,
}

impl Verdict {
    fn good_if(condition: bool) -> Self {
        if condition { Self::Good } else { Self::Bad }
    }
}

/// A command.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "the documentation is that of the commands")]
pub enum Command {
    Add(add::Add),
    Del(del::Del),
    Check(check::Check),
    Gc(gc::Gc),
    Status(status::Status),
    Peers(peers::Peers),
    Network(network::Network),
    Resync(resync::Resync),
    Adopt(adopt::Adopt),
    Release(release::Release),
    Validate(validate::Validate),
    Version(version::Version),
}

impl Command {
    /// Does it.
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        match self {
            Self::Add(it) => it.run(output),
            Self::Del(it) => it.run(output),
            Self::Check(it) => it.run(output),
            Self::Gc(it) => it.run(output),
            Self::Status(it) => it.run(output),
            Self::Peers(it) => it.run(output),
            Self::Network(it) => it.run(output),
            Self::Resync(it) => it.run(output),
            Self::Adopt(it) => it.run(output),
            Self::Release(it) => it.run(output),
            Self::Validate(it) => it.run(output),
            Self::Version(it) => it.run(output),
        }
    }
}
