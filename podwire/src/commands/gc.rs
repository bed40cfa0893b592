//! `podwire gc`: remove what belongs to no attachment in use.

use anyhow::Result;
use cni::{BestEffort, Error};

use super::{Command, Opt, Verdict};
use crate::arguments::{Arguments, Flag};
use crate::attach::{Attachment, Chain};
use crate::cache::CachedAttachment;
use crate::network_list::NetworkList;

pub const COMMAND: Command = Command {
    name: "gc",
    summary: "remove what belongs to no attachment in use",
    about: ABOUT,
    options: &[
        Opt::new(
            Flag::KeepCached,
            "keep the attachments that are in the cache",
        ),
        Opt::CONF_DIR,
        Opt::PLUGIN_DIR,
        Opt::CACHE_DIR,
        Opt::IFNAME_UNREAD,
        Opt::JSON_ERROR,
        Opt::new(Flag::Text, "say what was detached"),
    ],
    outcome: OUTCOME,
    run,
};

const ABOUT: &str = "\
Usage: podwire gc [OPTION]... NETWORK [NETNS]

Without --keep-cached, nothing is in use: as with cnitool, every attachment of
NETWORK in the cache is detached, then (cniVersion 1.1.0 or newer) the plugins
are run with the verb GC and an empty list. This takes the network from every
container on the node that is attached to it, also from those whose runtime
keeps its cache elsewhere.

With --keep-cached nothing is detached, and the plugins are told that the
attachments in the cache are in use: what they remove are leftovers of
attachments that nobody remembers, such as addresses reserved before a reboot.

NETNS is accepted, because cnitool wants it, and not looked at. With disableGC
in the configuration of NETWORK nothing is done.
";

const OUTCOME: &str = "\
Exit status: 0 when all was done, 1 when something was not (the rest is done all
the same), 2 for a command line that makes no sense.

Examples:
  podwire gc --keep-cached mynet
  podwire gc mynet
";

fn run(arguments: &Arguments) -> Result<Verdict> {
    let words = arguments.words(&["NETWORK", "[NETNS]"])?;
    let network = &words[0];
    let output = arguments.output();
    let list = NetworkList::load(&arguments.conf_dir(), network)?;
    if list.disable_gc {
        output.remark(&format!("{network} has disableGC: nothing was done"))?;
        return Ok(Verdict::Good);
    }
    let (path, cache) = (arguments.plugin_dirs(), arguments.cache());
    let chain = Chain::new(&list, &path, &cache);
    let cached = cache.of_network(network)?;
    let mut all = BestEffort::new();
    let valid = match arguments.has(Flag::KeepCached) {
        true => cached,
        false => {
            for attachment in &cached {
                detach(&chain, attachment, &mut all);
            }
            output.remark(&format!("{} attachments detached", cached.len()))?;
            Vec::new()
        }
    };
    if let Some(false) = all.step("gc", || chain.gc(&valid)) {
        let version = &list.cni_version;
        output.remark(&format!("{network} has cniVersion {version:?}, without GC"))?;
    }
    all.finish()?;
    Ok(Verdict::Good)
}

fn detach(chain: &Chain<'_>, cached: &CachedAttachment, all: &mut BestEffort) {
    let (id, ifname) = (&cached.container_id, &cached.ifname);
    let what = format!("detach {id} {ifname}");
    all.step(&what, || {
        let done = Attachment::from_cached(cached).and_then(|it| chain.del(&it));
        done.map_err(|error| {
            let mut error = Error::from_chain(&error);
            let msg = error.msg;
            error.msg = format!("failed to delete stale attachment {id} {ifname}: {msg}");
            error.into()
        })
    });
}
