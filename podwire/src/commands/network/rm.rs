//! `podwire network rm`

use anyhow::Result;
use clap::Args;
use networks::named::{LookupError, Store};

use crate::commands::{Verdict, sweep};
use crate::network::{Removal, complete};
use crate::options::Directories;
use crate::output::{Output, print};

/// Remove networks: their configurations, bridges, rules and reservations.
///
/// A network with containers is not removed; containers whose network namespace is gone do not
/// count, and are detached. Networks that another program made, and none, host and bridge, are
/// not removed. After an error the others are removed, and the exit status is 1.
#[derive(Debug, Args)]
pub struct Rm {
    /// The networks
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
    /// A network that does not exist is no error
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    dirs: Directories,
}

impl Rm {
    pub fn run(&self, _: &Output) -> Result<Verdict> {
        sweep(&self.dirs.cache);
        let store = Store::open(&self.dirs.conf.conf_dir)?;
        complete(&store)?;
        let removal = Removal {
            store: &store,
            cache: &self.dirs.cache.open(),
            plugin_dirs: self.dirs.plugins.all(),
        };
        let mut all_removed = true;
        for word in &self.networks {
            let catalogue = store.catalogue()?;
            let removed = match catalogue.find(word) {
                Err(LookupError::Missing(_)) if self.force => continue,
                found => found.map_err(Into::into).and_then(|it| removal.remove(it)),
            };
            match removed {
                Ok(()) => print(word)?,
                Err(error) => {
                    cni::log(format_args!("podwire: {:#}", error));
                    all_removed = false;
                }
            }
        }
        Ok(Verdict::good_if(all_removed))
    }
}
