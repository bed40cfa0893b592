//! Owners of published ports that the cache does not know: what a suite that does not look
//! into podwire's tables has left of its pods, or pods of a runtime whose cache is elsewhere.
//!
//! A port of a pod that is gone leads nowhere, and whoever gets that port next is not reached:
//! such ports are removed. What may be of a living pod stays and is told.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cni::conf::ValidAttachment;
use cni::request::alias_prefix;
use netlink::Netlink;
use netns::NetNs;
use packet_filter::{Nftables, PortOwner, local_addresses};

use crate::cache::{CachedAttachment, Contents};

/// The owners that the cache does not know.
#[derive(Debug, Default)]
pub struct Strangers {
    /// Those whose pod is gone.
    pub gone: Vec<PortOwner>,
    /// Those that may live, each with what says so.
    pub alive: Vec<(PortOwner, String)>,
}

impl Strangers {
    /// Owners of ports, in `network` or in all, that are not among the attachments of `contents`
    /// that are `known`.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn find(
        contents: &Contents,
        network: Option<&str>,
        known: impl Fn(&CachedAttachment) -> bool,
    ) -> Result<Self> {
        let mut found = Self::default();
        let Some(nftables) = Nftables::find()? else {
            return Ok(found);
        };
        let cached: Vec<_> = contents.attachments.iter().filter(|it| known(it)).collect();
        let known: Vec<_> = cached
            .iter()
            .filter_map(|it| it.attachment().ok())
            .collect();
        let mut owners = nftables.port_owners()?;
        owners.retain(|it| network.is_none_or(|network| it.is_of(network)));
        owners.retain(|it| !known.iter().any(|known| it.is(known)));
        if owners.is_empty() {
            return Ok(found);
        }
        let mut signs = Signs {
            host: Netlink::open()?,
            contents,
            reused: cached.iter().flat_map(|it| it.addresses()).collect(),
            namespaces: None,
        };
        for owner in owners {
            match signs.of(&owner) {
                Some(why) => found.alive.push((owner, why)),
                None => found.gone.push(owner),
            }
        }
        Ok(found)
    }

    /// Removes the ports of those that are gone.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove_gone(&self) -> Result<()> {
        match self.gone.is_empty() {
            true => Ok(()),
            false => Nftables::open()?.remove_ports(&self.gone),
        }
    }
}

/// Attachments to `network` that have a veth pair on this node, as far as its alias spells
/// them out.
///
/// # Errors
/// The kernel cannot be asked.
pub fn with_veth(network: &str) -> Result<Vec<ValidAttachment>> {
    let prefix = alias_prefix(network);
    let links = Netlink::open()?.list_links()?;
    let aliases = links.iter().filter_map(|link| link.alias.as_deref());
    let attachments = aliases.filter_map(|alias| alias.strip_prefix(&prefix)?.split_once('/'));
    let attachments = attachments.map(|(id, ifname)| ValidAttachment {
        container_id: id.to_owned(),
        ifname: ifname.to_owned(),
    });
    Ok(attachments.collect())
}

/// Where signs of life are looked for.
struct Signs<'a> {
    host: Netlink,
    contents: &'a Contents,
    /// The addresses of pods that are known: of another one they say nothing.
    reused: HashSet<IpAddr>,
    /// Those of all network namespaces, once they have been looked for.
    namespaces: Option<Result<HashSet<IpAddr>>>,
}

impl Signs<'_> {
    /// Why the pod of `owner` may live; `None` if nothing says so. What cannot be looked
    /// at may.
    fn of(&mut self, owner: &PortOwner) -> Option<String> {
        if let Some(file) = self.contents.unclear.iter().find(|it| it.may_be(owner)) {
            return Some(format!("{} cannot be read", file.file.display()));
        }
        if let Some(attachment) = owner.attachment() {
            match wiring::port::has_host_veth(&self.host, &attachment) {
                Ok(true) => return Some("its veth pair is there".into()),
                Ok(false) => {}
                Err(error) => return Some(format!("{error:#}")),
            }
        }
        let namespaces = self.namespaces.get_or_insert_with(addresses_in_namespaces);
        match namespaces {
            Ok(addresses) => {
                let reused = &self.reused;
                let mut own = owner.pod.iter().filter(|it| !reused.contains(it));
                own.find(|it| addresses.contains(it))
                    .map(|it| format!("a network namespace of this node has {it}"))
            }
            Err(error) => Some(format!("{error:#}")),
        }
    }
}

/// The addresses in all network namespaces that have a name, as runtimes give them.
fn addresses_in_namespaces() -> Result<HashSet<IpAddr>> {
    let mut addresses = HashSet::new();
    for path in entries(Path::new("/run/netns"))? {
        match NetNs::open(&path) {
            Err(error) if netns::is_gone(&error) => {}
            opened => addresses.extend(opened?.enter(local_addresses)??),
        }
    }
    Ok(addresses)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> io::Result<_> { fs::read_dir(dir)?.map(|it| Ok(it?.path())).collect() };
    match read() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        files => files.with_context(|| format!("read {}", dir.display())),
    }
}
