//! `removeWhenEmpty`: device and bridge go with the last pod.
//!
//! An ADD that has just found them and a DEL that has just found nobody on them must not
//! meet: both lock the node's namespace, as a file, which leaves nothing behind.

use std::fs::File;

use anyhow::{Context, Result};
use cni::request::alias_prefix;
use netlink::{Link, Netlink};
use nix::fcntl::{Flock, FlockArg};
use overlay::{Network, device};
use packet_filter::Nftables;

use crate::conf::Conf;

/// Keeps device and bridge while it lives.
pub struct Stays {
    _lock: Flock<File>,
}

/// To be held from before device and bridge are looked for until the pod is on them.
pub fn join(remove_when_empty: bool) -> Result<Option<Stays>> {
    let lock = || {
        Ok(Stays {
            _lock: lock(FlockArg::LockShared)?,
        })
    };
    remove_when_empty.then(lock).transpose()
}

/// Removes the network's device and bridge if no pod is on them.
pub fn remove_if_empty(conf: &Conf, network: &str) -> Result<()> {
    // With a configuration that ADD refuses there never was a pod.
    let Ok(network) = Network::new(conf, network) else {
        return Ok(());
    };
    let host = Netlink::open()?;
    let _alone = lock(FlockArg::LockExclusive)?;
    let name = network.bridge.as_str();
    let bridge = host.find_link(name)?.filter(|link| link.is_kind("bridge"));
    let own = network.device();
    let links = host.list_links()?;
    let pod = |link: &&Link| is_a_pods(link, &network.name);
    if links.iter().filter(pod).count() > 0 {
        return Ok(());
    }
    if let Some(bridge) = bridge {
        let others = links
            .iter()
            .any(|it| it.master == Some(bridge.index) && it.name != own);
        // Somebody put an interface of their own on the bridge.
        if others {
            return Ok(());
        }
        host.delete_link(name)?;
    }
    let made_by_us = |link: &Link| device::is_of(link, &network);
    if host.find_link(&own)?.as_ref().is_some_and(made_by_us) {
        host.delete_link(&own)?;
    }
    match Nftables::find()? {
        Some(nftables) => nftables.forget_network(&network.name),
        None => Ok(()),
    }
}

fn is_a_pods(link: &Link, network: &str) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.is_kind("veth") && alias.starts_with(&alias_prefix(network))
}

fn lock(how: FlockArg) -> Result<Flock<File>> {
    let path = "/proc/thread-self/ns/net";
    let file = File::open(path).with_context(|| format!("open {path}"))?;
    Flock::lock(file, how)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {path}"))
}
