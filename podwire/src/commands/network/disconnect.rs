//! `podwire network disconnect`: detach a running container from a network.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;
use containers::{Attacher, Container, Record};
use networks::CachedAttachment;
use networks::named::Catalogue;

use super::connect::must_have_networks;
use crate::commands::{Verdict, sweep};
use crate::options::{Directories, derived_id};
use crate::output::Output;
use crate::run::{files, resolver};

/// Disconnect a container from a network.
///
/// CONTAINER is what podwire network connect takes. The network may be one that its runtime has
/// connected it to; its configuration may be gone.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Disconnect {
    /// Succeed if it is not connected
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    dirs: Directories,
    /// Name or id of the network
    network: String,
    /// The container
    container: String,
}

const OUTCOME: &str = "\
Exit status: 0 when disconnected, 1 when not, 2 for a wrong command line.

Examples:
  podwire network disconnect mynet web
";

impl Disconnect {
    pub fn run(&self, _: &Output) -> Result<Verdict> {
        sweep(&self.dirs.cache);
        let conf_dir = &self.dirs.conf.conf_dir;
        let attacher = Attacher::new(self.dirs.cache.dir(), conf_dir, self.dirs.plugins.all());
        let container = match Container::find(&self.container, &attacher.cache, derived_id) {
            Err(_) if self.force => return Ok(Verdict::Good),
            found => found?,
        };
        container
            .record
            .as_ref()
            .map_or(Ok(()), must_have_networks)?;
        // An attachment names its network, also after the configuration is gone.
        let network = match Catalogue::read(conf_dir)?.find(&self.network) {
            Ok(network) => network.name.clone(),
            Err(error) => {
                let known = |it: &CachedAttachment| it.network_name == self.network;
                if !container.attachments.iter().any(known) && !self.force {
                    return Err(error.into());
                }
                self.network.clone()
            }
        };
        let attachments = container.attachments.iter();
        let mut connected = attachments
            .filter(|it| it.network_name == network)
            .peekable();
        if connected.peek().is_none() && !self.force {
            let shown = container.shown();
            bail!("container {shown} is not connected to the network {network}");
        }
        for attachment in connected {
            let recorded = attacher.journal.of_container(&container.id)?;
            let what = || format!("disconnect {} from network {network}", container.shown());
            attacher.detach(attachment).with_context(what)?;
            if let Some(record) = &container.record {
                let mut recorded = recorded.into_iter();
                let entry = recorded.find(|it| it.attachment.ifname == attachment.ifname);
                let linked = entry.map(|it| it.hosts).unwrap_or_default();
                remove_hosts(record, attachment, linked)?;
                resolver::renew(record, &attacher.cache)?;
            }
        }
        if container.must_run().is_ok() {
            let (cache, journal) = (&attacher.cache, &attacher.journal);
            containers::choose_gateway(&container.netns, &container.id, cache, journal)?;
        }
        Ok(Verdict::Good)
    }
}

/// Removes the addresses of an attachment from the container's /etc/hosts, and those of the
/// containers that it was `linked` to.
fn remove_hosts(record: &Record, attachment: &CachedAttachment, linked: Vec<String>) -> Result<()> {
    let result = attachment.add_result().ok().flatten().unwrap_or_default();
    let own = files::addresses(&[result]);
    let own = own.iter().map(|it| files::own_line(*it, &record.hostname));
    let lines: Vec<_> = own.chain(linked).collect();
    let file = record.dir().join("hosts");
    let text = fs::read_to_string(&file).unwrap_or_default();
    let kept = text
        .split_inclusive('\n')
        .filter(|it| !lines.iter().any(|line| line == it));
    // In place: the container has the file itself mounted.
    let written = fs::write(&file, kept.collect::<String>());
    written.with_context(|| format!("write {}", file.display()))
}
