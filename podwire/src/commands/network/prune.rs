//! `podwire network prune`

use std::io::{self, BufRead};

use anyhow::{Result, bail};
use clap::Args;
use networks::named::{Origin, Store};

use crate::commands::{Verdict, sweep};
use crate::network::filter::{Facts, Filter, PRUNE};
use crate::network::{Attached, Removal, complete, created};
use crate::options::Directories;
use crate::output::{Output, print};
use crate::progress::Progress;

/// Remove all networks without containers that podwire network create made.
///
/// Containers whose network namespace is gone are detached, and removals that were interrupted
/// are completed. The keys of --filter are label, label! (not) and until (created before a time,
/// as 2026-01-31T10:00 or 24h).
#[derive(Debug, Args)]
pub struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only networks that meet the condition; several are possible
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    dirs: Directories,
}

impl Prune {
    pub fn run(&self, _: &Output) -> Result<Verdict> {
        let filter = Filter::read(&self.filter, PRUNE)?;
        if !self.force {
            confirm()?;
        }
        sweep(&self.dirs.cache);
        let store = Store::open(&self.dirs.conf.conf_dir)?;
        complete(&store)?;
        let cache = self.dirs.cache.open();
        let removal = Removal {
            store: &store,
            cache: &cache,
            plugin_dirs: self.dirs.plugins.all(),
        };
        let (mut removed, mut failed) = (Vec::new(), false);
        let networks = store.catalogue()?.networks;
        let progress = Progress::of("networks", networks.len());
        for network in &networks {
            progress.step();
            let facts = Facts {
                network,
                created: created(network),
                in_use: false,
            };
            let is_ours = network
                .listed()
                .is_some_and(|it| it.origin == Origin::Podwire);
            if !is_ours || network.is_predefined() || !filter.accepts(facts) {
                continue;
            }
            let attached = Attached::to(&network.name, &cache)?;
            if !attached.users().is_empty() {
                continue;
            }
            match removal.remove(network) {
                Ok(()) => removed.push(network.name.clone()),
                Err(error) => {
                    cni::log(format_args!("podwire: {}: {error:#}", network.name));
                    failed = true;
                }
            }
        }
        drop(progress);
        if !removed.is_empty() {
            print(&format!("Deleted Networks:\n{}\n\n", removed.join("\n")))?;
        }
        Ok(Verdict::good_if(!failed))
    }
}

/// Asks on standard output, as Docker does.
fn confirm() -> Result<()> {
    print("WARNING! This will remove all custom networks not used by at least one container.")?;
    print("Are you sure you want to continue? [y/N]")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y") {
        bail!("network prune has been cancelled");
    }
    Ok(())
}
