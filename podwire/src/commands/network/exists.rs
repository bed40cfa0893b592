//! `podwire network exists`

use anyhow::Result;
use clap::Args;
use networks::named::Catalogue;

use crate::commands::Verdict;
use crate::options::ConfDir;

/// Tell by the exit status whether a network exists: 0 if it does, 1 if not.
#[derive(Debug, Args)]
pub struct Exists {
    /// The network
    network: String,
    #[command(flatten)]
    conf: ConfDir,
}

impl Exists {
    pub fn run(&self) -> Result<Verdict> {
        let catalogue = Catalogue::read(&self.conf.conf_dir)?;
        Ok(Verdict::good_if(catalogue.find(&self.network).is_ok()))
    }
}
