//! The commands of podwire: one file each, with its options and its manual.

mod add;
mod adopt;
mod agent;
mod check;
mod completion;
mod del;
mod doctor;
mod exec;
mod gc;
mod graph;
mod inspect;
mod install;
mod ipam;
mod names;
mod network;
mod node;
mod peers;
mod ps;
mod release;
mod resync;
mod run;
mod status;
mod stop;
mod top;
mod trace;
mod uninstall;
mod validate;
mod version;

pub(crate) use agent::{SOCKET as AGENT_SOCKET, ask as agent_status};
pub(crate) use node::record_users;
pub(crate) use peers::Node as PeerNode;
pub(crate) use ps::rows as containers;

use anyhow::Result;
use clap::Subcommand;

use crate::options::CacheDir;
use crate::output::Output;

/// The outcome of a command without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Exit status 0.
    Good,
    /// It has reported what failed: exit status 1.
    Bad,
    /// The exit status of a command that it has run.
    Status(u8),
}

impl Verdict {
    fn good_if(condition: bool) -> Self {
        if condition { Self::Good } else { Self::Bad }
    }
}

/// Removes what is left of containers that are gone. What cannot be removed is reported, and does not
/// keep a command from its work.
fn sweep(cache: &CacheDir) {
    if let Err(error) = containers::sweep(cache.dir()) {
        cni::log(format_args!("podwire: {error:#}"));
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
    Graph(graph::Draw),
    Trace(trace::Trace),
    Top(top::Top),
    Run(Box<run::Run>),
    Exec(exec::Exec),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Stop(stop::Stop),
    Peers(peers::Peers),
    Network(network::Network),
    Names(names::Names),
    Ipam(ipam::Ipam),
    Doctor(doctor::Doctor),
    Resync(resync::Resync),
    Adopt(adopt::Adopt),
    Release(release::Release),
    Validate(validate::Validate),
    Install(install::Install),
    Uninstall(uninstall::Uninstall),
    Completion(completion::Completion),
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
            Self::Graph(it) => it.run(output),
            Self::Trace(it) => it.run(output),
            Self::Top(it) => it.run(output),
            Self::Run(it) => it.run(output),
            Self::Exec(it) => it.run(output),
            Self::Ps(it) => it.run(output),
            Self::Inspect(it) => it.run(output),
            Self::Stop(it) => it.run(output),
            Self::Peers(it) => it.run(output),
            Self::Network(it) => it.run(output),
            Self::Names(it) => it.run(output),
            Self::Ipam(it) => it.run(output),
            Self::Doctor(it) => it.run(output),
            Self::Resync(it) => it.run(output),
            Self::Adopt(it) => it.run(output),
            Self::Release(it) => it.run(output),
            Self::Validate(it) => it.run(output),
            Self::Install(it) => it.run(output),
            Self::Uninstall(it) => it.run(output),
            Self::Completion(it) => it.run(output),
            Self::Version(it) => it.run(output),
        }
    }
}
