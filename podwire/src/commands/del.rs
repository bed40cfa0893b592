//! `podwire del`: detach a container, of which any part may be gone.

use anyhow::{Context, Result};

use super::{Command, Opt, Verdict, complete};
use crate::arguments::{Arguments, Flag};
use crate::attach::Chain;
use crate::cache::CachedAttachment;
use crate::network_list::{NetworkList, check_name};

pub const COMMAND: Command = Command {
    name: "del",
    summary: "detach a network namespace from a network",
    about: ABOUT,
    options: &[
        Opt::IFNAME,
        Opt::CONTAINER_ID,
        Opt::CONF_DIR,
        Opt::PLUGIN_DIR,
        Opt::CACHE_DIR,
        Opt::JSON_ERROR,
        Opt::new(Flag::Text, "print a line about what was done"),
    ],
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire del [OPTION]... NETWORK NETNS
       podwire del [OPTION]... --container-id ID NETWORK [NETNS]

Runs the plugins of NETWORK in reverse order with the verb DEL, then removes the
attachment from the cache. NETNS need not exist any more. Detaching succeeds
when nothing is attached.

Every plugin is run, even after one has failed: the container's address is
released even if a firewall rule cannot be removed. The first error is reported
with the others as details, and the attachment stays in the cache, so that the
command can be repeated.

CNI_ARGS and CAP_ARGS that are not set are taken from the cache, and so is the
configuration when no file has NETWORK any more.
";

const OUTCOME: &str = "\
Exit status: 0 when detached, 1 when a plugin failed, 2 for a wrong command
line.

Examples:
  podwire del mynet /run/netns/blue
  podwire del --container-id pod1 -i net1 mynet
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let words = arguments.words(&["NETWORK", "[NETNS]"])?;
    let network = &words[0];
    check_name(network)?;
    let mut attachment = arguments.attachment(words.get(1).map(String::as_str))?;
    let (path, cache) = (arguments.plugin_dirs(), arguments.cache());
    // A file that cannot be read must not keep the container attached.
    let cached = cache.get(attachment.key(network)).unwrap_or_else(|error| {
        cni::log(format_args!(
            "podwire: {error:#}; deleting without the cached attachment"
        ));
        None
    });
    complete(&mut attachment, cached.as_ref());
    let list = NetworkList::load(&arguments.conf_dir(), network)
        .or_else(|error| cached_list(cached.as_ref(), error))?;
    Chain::new(&list, &path, &cache).del(&attachment)?;
    let (ifname, id) = (&attachment.ifname, &attachment.container_id);
    let output = arguments.output();
    output.remark(&format!("{ifname} of {id} is detached from {network}"))?;
    Ok(Verdict::Good)
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
