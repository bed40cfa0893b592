//! `podwire check`: check whether an attachment is as ADD left it.

use anyhow::{Result, bail};

use super::{Command, Opt, Verdict, complete};
use crate::arguments::{Arguments, Flag};
use crate::attach::Chain;
use crate::network_list::NetworkList;

pub const COMMAND: Command = Command {
    name: "check",
    summary: "check whether an attachment is as add left it",
    about: ABOUT,
    options: &[
        Opt::IFNAME,
        Opt::CONTAINER_ID,
        Opt::CONF_DIR,
        Opt::PLUGIN_DIR,
        Opt::CACHE_DIR,
        Opt::JSON_ERROR,
        Opt::new(Flag::Text, "print a line when nothing differs"),
    ],
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire check [OPTION]... NETWORK NETNS
       podwire check [OPTION]... --container-id ID NETWORK [NETNS]

Runs the plugins of NETWORK in order with the verb CHECK and the result of the
ADD, up to the first that finds a difference. NETWORK needs cniVersion 0.4.0 or
newer. With disableCheck in its configuration nothing is run.

CNI_ARGS and CAP_ARGS that are not set are taken from the cache.
";

const OUTCOME: &str = "\
Exit status: 0 when nothing differs, 1 when something does or a plugin failed, 2
for a wrong command line.

Examples:
  podwire check mynet /run/netns/blue
  podwire check mynet /run/netns/blue || podwire del mynet /run/netns/blue
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let words = arguments.words(&["NETWORK", "[NETNS]"])?;
    let network = &words[0];
    let mut attachment = arguments.attachment(words.get(1).map(String::as_str))?;
    let list = NetworkList::load(&arguments.conf_dir(), network)?;
    let (path, cache) = (arguments.plugin_dirs(), arguments.cache());
    // An unreadable file is an error of the CHECK itself, with libcni's text.
    let cached = cache.get(attachment.key(network)).unwrap_or_default();
    complete(&mut attachment, cached.as_ref());
    let (ifname, id) = (&attachment.ifname, &attachment.container_id);
    if attachment.netns.is_empty() && !list.disable_check {
        bail!(
            "check {ifname} of {id} on {network}: the cache has no such attachment: name its NETNS"
        );
    }
    let checked = Chain::new(&list, &path, &cache).check(&attachment)?;
    let remark = if checked {
        format!("{ifname} of {id} on {network} is as add left it")
    } else {
        format!("{network} has disableCheck: nothing was checked")
    };
    arguments.output().remark(&remark)?;
    Ok(Verdict::Good)
}
