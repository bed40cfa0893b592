//! `podwire check`: check whether an attachment is as ADD left it.

use anyhow::{Result, bail};
use clap::Args;
use networks::{Chain, NetworkList};

use super::Verdict;
use crate::options::Existing;
use crate::output::Output;

/// Check whether an attachment is as add left it.
///
/// Runs the plugins of NETWORK in order with the verb CHECK and the result of the ADD, up to the
/// first that finds a difference. NETWORK needs cniVersion 0.4.0 or newer. With disableCheck in
/// its configuration nothing is run.
///
/// CNI_ARGS and CAP_ARGS that are not set are taken from the cache.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Check {
    #[command(flatten)]
    existing: Existing,
}

const OUTCOME: &str = "\
Exit status: 0 when nothing differs, 1 when something does or a plugin failed, 2
for a wrong command line.

Examples:
  podwire check mynet /run/netns/blue
  podwire check mynet /run/netns/blue || podwire del mynet /run/netns/blue
";

impl Check {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let (network, options) = (&self.existing.network, &self.existing.options);
        let mut attachment = self.existing.attachment()?;
        let list = NetworkList::load(&options.dirs.conf.conf_dir, network)?;
        let cache = options.dirs.cache.open();
        // An unreadable file is an error of the CHECK itself, with libcni's text.
        let cached = cache.get(&attachment.owner).unwrap_or_default();
        attachment.complete(cached.as_ref());
        let (ifname, id) = (&attachment.owner.ifname, &attachment.owner.container_id);
        if attachment.netns.is_empty() && !list.disable_check {
            bail!(
                "check {ifname} of {id} on {network}: the cache has no such attachment: name its NETNS"
            );
        }
        let chain = Chain::new(&list, options.dirs.plugins.all());
        let checked = chain.check(&attachment, &cache)?;
        output.remark(&if checked {
            format!("{ifname} of {id} on {network} is as add left it")
        } else {
            format!("{network} has disableCheck: nothing was checked")
        })?;
        Ok(Verdict::Good)
    }
}
