//! `podwire del`: detach a container, of which any part may be gone.

use anyhow::{Context, Result};
use clap::Args;
use networks::{CachedAttachment, Chain, NetworkList, check_name};

use super::Verdict;
use crate::options::Existing;
use crate::output::Output;

/// Detach a network namespace from a network.
///
/// Runs the plugins of NETWORK in reverse order with the verb DEL, then removes the attachment
/// from the cache. Detaching succeeds when nothing is attached.
///
/// Every plugin is run, even after one has failed: the container's address is released even if a
/// firewall rule cannot be removed. The first error is reported with the others as details, and
/// the attachment stays in the cache, so that the command can be repeated.
///
/// CNI_ARGS and CAP_ARGS that are not set are taken from the cache, and so is the configuration
/// when no file has NETWORK any more.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Del {
    #[command(flatten)]
    existing: Existing,
}

const OUTCOME: &str = "\
Exit status: 0 when detached, 1 when a plugin failed, 2 for a wrong command
line.

Examples:
  podwire del mynet /run/netns/blue
  podwire del --container-id pod1 -i net1 mynet
";

impl Del {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let (network, options) = (&self.existing.network, &self.existing.options);
        check_name(network)?;
        let mut attachment = self.existing.attachment()?;
        let cache = options.dirs.cache.open();
        // A file that cannot be read must not keep the container attached.
        let cached = cache.get(&attachment.owner).unwrap_or_else(|error| {
            cni::log(format_args!(
                "podwire: {error:#}; deleting without the cached attachment"
            ));
            None
        });
        attachment.complete(cached.as_ref());
        let list = NetworkList::load(&options.dirs.conf.conf_dir, network)
            .or_else(|error| cached_list(cached.as_ref(), error))?;
        Chain::new(&list, options.dirs.plugins.all()).del(&attachment, &cache)?;
        let (ifname, id) = (&attachment.owner.ifname, &attachment.owner.container_id);
        output.remark(&format!("{ifname} of {id} is detached from {network}"))?;
        Ok(Verdict::Good)
    }
}

/// The configuration of the ADD, when no file has the network any more.
fn cached_list(cached: Option<&CachedAttachment>, error: anyhow::Error) -> Result<NetworkList> {
    let Some(cached) = cached else {
        return Err(error);
    };
    let list = NetworkList::from_bytes(&cached.config()?)
        .with_context(|| format!("{error:#}; the cached configuration cannot be used"))?;
    if list.plugins.is_empty() {
        return Err(error);
    }
    cni::log(format_args!(
        "podwire: {error:#}; using the configuration of the ADD"
    ));
    Ok(list)
}
