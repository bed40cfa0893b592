//! `podwire gc`: remove leftovers of attachments that are not in use.

use anyhow::{Result, bail};
use clap::Args;
use cni::conf::ValidAttachment;
use cni::{BestEffort, Error};
use networks::{Attachment, Cache, CachedAttachment, Chain, NetworkList, Unidentified};
use packet_filter::{Leftovers, Nftables};

use super::Verdict;
use crate::options::{Directories, Unread};
use crate::output::{Output, counted};
use crate::progress::Progress;
use crate::unknown_owners::{self, UnknownOwners};

/// Remove leftovers of attachments that are not in use.
///
/// Without --keep-cached, nothing is in use: as with cnitool, every attachment of NETWORK in the
/// cache is detached, then (cniVersion 1.1.0 or newer) the plugins are run with the verb GC and
/// an empty list. This takes the network from every container on the node that is attached to it,
/// also from those whose runtime keeps its cache elsewhere.
///
/// With --keep-cached nothing is detached, and the plugins get the attachments in the cache as
/// those in use. They remove leftovers of other attachments, such as addresses reserved before a
/// reboot. A file of the cache that is truncated or cannot be read counts as in use, by its name;
/// it is reported, and the exit status is 1. Remove it when its container is gone. Without a
/// cache nothing is removed.
///
/// Afterwards, for any version of NETWORK and any suite's plugins, the command removes the rules
/// of podwire's plugins for pods that are gone. With --keep-cached, running pods keep their rules
/// even if they are not in the cache.
///
/// With disableGC in the configuration of NETWORK nothing is done.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Gc {
    /// Name of the network
    network: String,
    /// Keep the attachments that are in the cache
    #[arg(long)]
    keep_cached: bool,
    #[command(flatten)]
    dirs: Directories,
    #[command(flatten)]
    unread: Unread,
}

const OUTCOME: &str = "\
Exit status: 0 when all was done, 1 when a part failed (the rest is done), 2 for
a wrong command line.

Examples:
  podwire gc --keep-cached mynet
  podwire gc mynet
";

impl Gc {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let (network, keeps) = (&self.network, self.keep_cached);
        let list = NetworkList::load(&self.dirs.conf.conf_dir, network)?;
        if list.disable_gc {
            output.remark(&format!("{network} has disableGC: nothing was done"))?;
            return Ok(Verdict::Good);
        }
        let chain = Chain::new(&list, self.dirs.plugins.all());
        let cache = self.dirs.cache.open();
        if keeps {
            cache.must_exist()?;
        }
        let cached = cache.of_network(network)?;
        let mut all = BestEffort::new();
        for file in &cached.unidentified {
            report(file, keeps, &mut all);
        }
        let valid = if keeps {
            cached.in_use(network)
        } else {
            let progress = Progress::of("attachments", cached.attachments.len());
            for attachment in &cached.attachments {
                progress.step();
                detach(&chain, &cache, attachment, &mut all);
            }
            let detached = counted(cached.attachments.len(), "attachment");
            output.remark(&format!("{detached} detached"))?;
            Vec::new()
        };
        if let Some(false) = all.step("gc", || chain.gc(&valid)) {
            let version = &list.cni_version;
            output.remark(&format!("{network} has cniVersion {version:?}, without GC"))?;
        }
        all.step("collect what no plugin looks for", || {
            if keeps {
                collect_gone(&cache, network, valid, output)
            } else {
                Leftovers::collect_published(network, &valid)?;
                collect_shared(network, &valid)
            }
        });
        all.finish()?;
        Ok(Verdict::Good)
    }
}

/// Removes podwire's packet filter rules for pods that are gone: plugins of an older version or
/// of another suite do not. Rules of running pods stay even if they are not in the cache.
fn collect_gone(
    cache: &Cache,
    network: &str,
    mut valid: Vec<ValidAttachment>,
    output: &Output,
) -> Result<()> {
    let contents = cache.of_network(network)?;
    let unknown = UnknownOwners::find(&contents, Some(network), |_| true)?;
    for owner in &unknown.gone {
        output.remark(&format!("removed: ports of {}, which is gone", owner.name))?;
    }
    for (owner, why) in &unknown.alive {
        let name = &owner.name;
        cni::log(format_args!(
            "podwire: left as it is: ports of {name}: {why}"
        ));
    }
    unknown.remove_gone()?;
    valid.extend(unknown_owners::with_veth(network)?);
    collect_shared(network, &valid)
}

/// Removes the rules of attachments that are not among `valid`.
fn collect_shared(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    if let Some(nftables) = Nftables::find()? {
        nftables.collect_spoof_checks(network, valid)?;
    }
    firewall::node::collect(network, valid)?;
    wiring::shared::collect(network, valid)
}

/// What a file that is not clear means for the command.
fn report(file: &Unidentified, keeps: bool, all: &mut BestEffort) {
    let name = file.path.display();
    let fault = file.fault.as_deref();
    let fault = fault.unwrap_or("a result of an old libcni, which does not name its attachment");
    let consequence = if keeps {
        "its attachment counts as in use"
    } else {
        "its attachment was not detached"
    };
    let line = format!("{name}: {fault}: {consequence}");
    if keeps && file.fault.is_none() {
        // Nothing is wrong: old versions of libcni wrote no more.
        cni::log(format_args!("podwire: {line}"));
    } else {
        let _ = all.step("read the cache", || -> Result<()> { bail!(line) });
    }
}

fn detach(chain: &Chain<'_>, cache: &Cache, cached: &CachedAttachment, all: &mut BestEffort) {
    let (id, ifname) = (&cached.container_id, &cached.ifname);
    let what = format!("detach {id} {ifname}");
    all.step(&what, || {
        let done = Attachment::from_cached(cached).and_then(|it| chain.del(&it, cache));
        done.map_err(|error| {
            let mut error = Error::from_chain(&error);
            let msg = error.msg;
            error.msg = format!("failed to delete stale attachment {id} {ifname}: {msg}");
            error.into()
        })
    });
}
