//! Owners of published ports that are not in the cache: pods that another suite's DEL has
//! deleted without podwire's rules, or pods of a runtime whose cache is elsewhere.
//!
//! A port of a deleted pod leads nowhere, and hides the port of the next pod. Such ports are
//! removed. Those of pods that may live stay, and are reported.

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
use networks::{CachedAttachment, Contents};
use packet_filter::{Nftables, PortOwner, local_addresses};

/// Owners that are not in the cache.
#[derive(Debug, Default)]
pub struct UnknownOwners {
    /// Those whose pod is gone.
    pub gone: Vec<PortOwner>,
    /// Those whose pod may live, and why.
    pub alive: Vec<(PortOwner, String)>,
}

impl UnknownOwners {
    /// Finds the owners of ports in `network`, or in all networks, that are not among the
    /// `known` attachments of `contents`.
    ///
    /// # Errors
    /// A netlink request fails.
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
        let known = cached.iter().filter_map(|it| it.attachment().ok());
        let known: HashSet<_> = known.map(|it| PortOwner::name_of(&it)).collect();
        let mut owners = nftables.port_owners()?;
        owners.retain(|it| network.is_none_or(|network| it.is_of(network)));
        owners.retain(|it| !known.contains(&it.name));
        if owners.is_empty() {
            return Ok(found);
        }
        let mut signs = Signs {
            host: Netlink::open()?,
            contents,
            reused: cached.iter().flat_map(|it| addresses(it)).collect(),
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

    /// Removes the ports of pods that are gone.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn remove_gone(&self) -> Result<()> {
        if self.gone.is_empty() {
            return Ok(());
        }
        Nftables::open()?.remove_ports(&self.gone)
    }
}

/// Attachments to `network` that have a veth pair on this node, by its alias.
///
/// # Errors
/// A netlink request fails.
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

/// The addresses in the result of an ADD; none if it cannot be read.
fn addresses(cached: &CachedAttachment) -> Vec<IpAddr> {
    let result = cached.add_result().ok().flatten().unwrap_or_default();
    result.ips.iter().map(|it| it.address.ip()).collect()
}

/// Where signs that a pod lives are looked for.
struct Signs<'a> {
    host: Netlink,
    contents: &'a Contents,
    /// The addresses of known pods: they are no sign of another pod.
    reused: HashSet<IpAddr>,
    /// The addresses in all network namespaces, once they have been read.
    namespaces: Option<Result<HashSet<IpAddr>>>,
}

impl Signs<'_> {
    /// Why the pod of `owner` may live; `None` without a sign. It may live if a sign cannot
    /// be read.
    fn of(&mut self, owner: &PortOwner) -> Option<String> {
        if let Some(file) = self
            .contents
            .unidentified
            .iter()
            .find(|it| owner.attachment().is_none_or(|owner| it.may_be(&owner)))
        {
            return Some(format!("{} cannot be read", file.path.display()));
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

/// The addresses in all named network namespaces: runtimes name theirs.
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
