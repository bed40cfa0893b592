//! `podwire network`: networks by name.

pub mod connect;
mod create;
mod disconnect;
mod exists;
mod inspect;
mod ls;
mod prune;
mod rm;
mod update;

use std::path::Path;

use anyhow::Result;
use clap::{Args, Subcommand};
use networks::named::Catalogue;

use super::Verdict;
use crate::output::Output;

/// Create, list, change, connect and remove networks by name.
///
/// A network is a configuration in the directory that runtimes read, with docker network's names
/// and meanings: kubelet, containerd, nerdctl, podman and cnitool use it as it is. Networks that
/// podman, nerdctl or an administrator made are listed and inspected, too.
///
/// A NETWORK is an id, a name, or the first digits of an id, in this order. The networks none,
/// host and bridge are always there.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Network {
    #[command(subcommand)]
    action: Action,
}

const OUTCOME: &str = "\
Exit status: 0 when all was done, 1 when a part failed (the rest is done), 2 for
a wrong command line.

Examples:
  podwire network create mynet
  podwire network create --subnet 10.5.0.0/24 --aux-address dns=10.5.0.53 other
  podwire network ls --filter label=team=blue
  podwire network inspect -f '{{range .IPAM.Config}}{{.Subnet}}{{end}}' mynet
  podwire network update --mtu 1400 --ip-masq=false --dry-run mynet
  podwire network rm mynet other
";

#[derive(Debug, Subcommand)]
enum Action {
    Create(Box<create::Create>),
    #[command(visible_alias = "list")]
    Ls(ls::Ls),
    Inspect(inspect::Inspect),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
    Update(Box<update::Update>),
    Prune(prune::Prune),
    Exists(exists::Exists),
    Connect(connect::Connect),
    Disconnect(disconnect::Disconnect),
}

impl Network {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        match &self.action {
            Action::Create(it) => it.run(output),
            Action::Ls(it) => it.run(output),
            Action::Inspect(it) => it.run(output),
            Action::Rm(it) => it.run(output),
            Action::Update(it) => it.run(output),
            Action::Prune(it) => it.run(output),
            Action::Exists(it) => it.run(),
            Action::Connect(it) => it.run(output),
            Action::Disconnect(it) => it.run(output),
        }
    }
}

/// The networks; files that are none are reported.
fn catalogue(conf_dir: &Path) -> Result<Catalogue> {
    let catalogue = Catalogue::read(conf_dir)?;
    for (file, why) in &catalogue.ignored {
        cni::log(format_args!("podwire: warning: {}: {why}", file.display()));
    }
    Ok(catalogue)
}
