//! `podwire status`: say whether a network can take attachments.

use anyhow::Result;

use super::{Command, Opt, Verdict};
use crate::arguments::{Arguments, Flag};
use crate::attach::Chain;
use crate::network_list::NetworkList;

pub const COMMAND: Command = Command {
    name: "status",
    summary: "say whether a network can take attachments",
    about: ABOUT,
    options: &[
        Opt::CONF_DIR,
        Opt::PLUGIN_DIR,
        Opt::IFNAME_UNREAD,
        Opt::JSON_ERROR,
        Opt::new(Flag::Text, "say that all is well"),
    ],
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire status [OPTION]... NETWORK [NETNS]

Runs the plugins of NETWORK in order with the verb STATUS, up to the first that
could not serve an ADD now; its error code is kept (50: not available, 51:
limited connectivity). A NETWORK older than cniVersion 1.1.0 has no STATUS:
nothing is run, and the command succeeds.

NETNS is accepted, because cnitool wants it, and not looked at.
";

const OUTCOME: &str = "\
Exit status: 0 when it can, 1 when it cannot, 2 for a command line that makes no
sense.

Examples:
  podwire status mynet
  podwire status --json mynet | jq .code
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let words = arguments.words(&["NETWORK", "[NETNS]"])?;
    let network = &words[0];
    let list = NetworkList::load(&arguments.conf_dir(), network)?;
    let (path, cache) = (arguments.plugin_dirs(), arguments.cache());
    let version = &list.cni_version;
    let remark = match Chain::new(&list, &path, &cache).status()? {
        true => format!("{network} can take attachments"),
        false => format!("{network} has cniVersion {version:?}, without STATUS"),
    };
    arguments.output().remark(&remark)?;
    Ok(Verdict::Good)
}
