//! `removeWhenEmpty`: the last pod's DEL removes device and bridge.
//!
//! An ADD that has found them and a DEL that removes them must exclude each other. Both lock the
//! file of the node's network namespace, so no lock file remains.

use std::fs::File;

use anyhow::{Context, Result};
use cni::own_netns;
use netlink::{Link, Netlink};
use nix::fcntl::{Flock, FlockArg};
use overlay::{Conf, Network, device};
use packet_filter::Nftables;
use wiring::{alias, neighbours};

/// Prevents the removal of device and bridge while it exists. An ADD holds it from before it
/// looks for them until the pod is attached.
pub fn lock_for_add(remove_when_empty: bool) -> Result<Option<Flock<File>>> {
    let shared = || lock(FlockArg::LockShared);
    remove_when_empty.then(shared).transpose()
}

/// Removes the network's device and bridge if no pod is attached.
pub fn remove_if_empty(conf: &Conf, network: &str) -> Result<()> {
    // ADD refuses such a configuration, so it never had a pod.
    let Ok(network) = Network::new(conf, network) else {
        return Ok(());
    };
    let host = Netlink::open()?;
    let _lock = lock(FlockArg::LockExclusive)?;
    let name = network.bridge.as_str();
    let bridge = host.find_link(name)?.filter(|link| link.is_kind("bridge"));
    let own = network.device();
    let links = host.list_links()?;
    if links.iter().any(|link| is_a_pods(link, &network.name)) {
        return Ok(());
    }
    if let Some(bridge) = bridge {
        // An operator may have added interfaces to the bridge.
        let is_other = |it: &Link| it.master == Some(bridge.index) && it.name != own;
        if links.iter().any(is_other) {
            return Ok(());
        }
        host.delete_link(name)?;
        neighbours::remove(name);
    }
    if host
        .find_link(&own)?
        .is_some_and(|link| device::is_of(&link, &network))
    {
        host.delete_link(&own)?;
    }
    match Nftables::find()? {
        Some(nftables) => nftables.delete_network(&network.name),
        None => Ok(()),
    }
}

fn is_a_pods(link: &Link, network: &str) -> bool {
    link.is_kind("veth") && alias::is_of_network(link, network)
}

fn lock(how: FlockArg) -> Result<Flock<File>> {
    let path = own_netns::PATH;
    let netns = own_netns::open().with_context(|| format!("open {path}"))?;
    Flock::lock(File::from(netns), how)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {path}"))
}
