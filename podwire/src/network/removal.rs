//! `podwire network rm`: the configuration is hidden from runtimes first and removed last, so that
//! a removal that was interrupted is completed by the next command that changes networks.

use std::path::Path;

use anyhow::{Result, bail};
use cni::BestEffort;
use cni::json::Json;
use netlink::Netlink;
use networks::named::{Listed, Network, Origin, Store};
use networks::{Attachment, Cache, Chain, request};
use packet_filter::{Leftovers, Nftables};
use serde::Deserialize;
use serde_json::Value;
use wiring::neighbours;

use super::attached::Attached;
use super::document::with_host_local;
use crate::unknown_owners;

/// Removes networks.
#[derive(Debug)]
pub struct Removal<'a> {
    /// The configurations.
    pub store: &'a Store,
    /// The attachments.
    pub cache: &'a Cache,
    /// Where the plugins are.
    pub plugin_dirs: Vec<std::path::PathBuf>,
}

impl Removal<'_> {
    /// Removes a network, and what it has on the node. Containers whose namespace is gone are
    /// detached before.
    ///
    /// # Errors
    /// It is predefined, another program's, or in use.
    pub fn remove(&self, network: &Network) -> Result<()> {
        let name = &network.name;
        if network.is_predefined() {
            bail!("{name} is a pre-defined network and cannot be removed");
        }
        let Some(listed) = network.listed() else {
            bail!("network {name} not found");
        };
        if listed.origin != Origin::Podwire {
            let (file, origin) = (listed.file.display(), listed.origin);
            let whose = match origin {
                Origin::Podman => "podman made it: podman network rm removes it",
                Origin::Nerdctl => "nerdctl made it: nerdctl network rm removes it",
                Origin::Podwire | Origin::Other => "podwire has not made it",
            };
            bail!("network {name} is not removed: {whose}; its configuration is {file}");
        }
        let attached = self.unused(network)?;
        let chain = Chain::new(&listed.list, self.plugin_dirs.clone());
        for gone in &attached.gone {
            chain.del(&Attachment::from_cached(gone)?, self.cache)?;
        }
        let hidden = self.store.hide(network, &listed.file)?;
        // An ADD may have read the configuration before.
        if let Err(error) = self.unused(network) {
            self.store.show(&hidden, &listed.file)?;
            return Err(error);
        }
        finish(self.store, network, listed, &hidden)
    }

    fn unused(&self, network: &Network) -> Result<Attached> {
        let attached = Attached::to(&network.name, self.cache)?;
        let users = attached.users();
        if !users.is_empty() {
            // The text is Docker's.
            let (name, users) = (&network.name, users.join(", "));
            bail!("error while removing network: network {name} has active endpoints ({users})");
        }
        Ok(attached)
    }
}

/// Completes removals that were interrupted.
///
/// # Errors
/// What the kernel or the disk refuses.
pub fn complete(store: &Store) -> Result<()> {
    let mut all = BestEffort::new();
    for network in store.being_removed()? {
        if let Some(listed) = network.listed() {
            all.step(&network.name, || {
                finish(store, &network, listed, &listed.file)
            });
        }
    }
    all.finish()
}

fn finish(store: &Store, network: &Network, listed: &Listed, hidden: &Path) -> Result<()> {
    let name = &network.name;
    let mut all = BestEffort::new();
    all.step("remove rules", || remove_rules(name));
    all.step("remove reservations", || {
        for document in with_host_local(listed) {
            host_local::forget(&document, name)?;
        }
        cni::foreign::forget(name)
    });
    all.step("remove names", || super::resolver::forget(name));
    all.step("remove interfaces", || remove_interfaces(listed));
    all.finish()?;
    store.remove(hidden)
}

/// Removes the rules that all attachments share, and what killed calls have left of others.
fn remove_rules(network: &str) -> Result<()> {
    let valid = unknown_owners::with_veth(network)?;
    if let Some(nftables) = Nftables::find()? {
        nftables.collect_spoof_checks(network, &valid)?;
        nftables.collect_open_ports(network, &valid)?;
    }
    wiring::links::collect(network, &valid)?;
    Leftovers::collect_published(network, &valid)?;
    wiring::shared::collect(network, &valid)
}

/// Deletes the network's bridge, unless it was there before or has ports, and its VXLAN device.
fn remove_interfaces(listed: &Listed) -> Result<()> {
    let host = Netlink::open()?;
    for plugin in &listed.list.plugins {
        let document = Value::Object(request::base(&listed.list, plugin));
        match plugin.plugin.as_str() {
            "bridge" if !listed.record.keeps_bridge => {
                let conf: bridge::Conf = Json::deserialize(&document)?.decode()?;
                remove_bridge(&host, &conf.bridge)?;
            }
            "vxlan" => {
                let conf = Json::deserialize(&document)?.decode()?;
                let network = overlay::Network::new(&conf, &listed.list.name)?;
                if let Some(link) = overlay::Device::find(&host, &network)?.link {
                    host.delete_link(&link.name)?;
                }
                if network.mode == overlay::Mode::L2
                    || host.find_link(network.bridge.as_str())?.is_some()
                {
                    remove_bridge(&host, network.bridge.as_str())?;
                }
                // What guards its port, and separates it from the node's other networks.
                if let Some(nftables) = Nftables::find()? {
                    nftables.delete_network(&network.name)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn remove_bridge(host: &Netlink, name: &str) -> Result<()> {
    if let Some(bridge) = host.find_link(name)? {
        if !bridge.is_kind("bridge") || !host.list_ports(bridge.index)?.is_empty() {
            return Ok(());
        }
        host.delete_link(name)?;
    }
    // Also if an interrupted removal has deleted the bridge.
    neighbours::remove(name);
    Ok(())
}
