//! What another program took from the bridges of pods that live: NetworkManager, for one, sets
//! interfaces down and takes addresses from them that it did not give. Each ADD puts the
//! gateway's addresses there; between two ADDs `podwire resync` does.

use anyhow::{Context, Result};
use bridge::plan::Vlans;
use bridge::vlan;
use cni::AddResult;
use cni::conf::NetConf;
use cni::env::IfName;
use cni::json::Json;
use cni::version::Version;
use ipnetwork::IpNetwork;
use netlink::{Link, Netlink};
use packet_filter::node::Report;
use serde::Deserialize;
use wiring::{Addressing, Gateway, gateway};

use crate::arguments::Arguments;
use crate::cache::CachedAttachment;
use crate::outside;

/// What was put back, or would be.
#[derive(Debug, Default)]
pub struct Restored {
    done: Vec<String>,
    left: Vec<String>,
    commands: Vec<String>,
}

/// What an attachment wants of its bridge.
#[derive(Debug)]
struct Wanted {
    bridge: String,
    /// The gateway's interface, and the VLANs, of a port in a VLAN.
    in_vlan: Option<(IfName, Vlans)>,
    addresses: Vec<IpNetwork>,
}

/// Sets bridges up and gives them the gateway's addresses, as the attachments in the cache want
/// it. `dry`: only tells.
///
/// # Errors
/// The kernel cannot be asked, or refuses.
pub fn resync(arguments: &Arguments, network: Option<&str>, dry: bool) -> Result<Restored> {
    let mut attachments = arguments.cache().oldest_first()?.attachments;
    attachments.retain(|it| network.is_none_or(|name| name == it.network_name));
    attachments.retain(|it| !outside::is_gone(&it.netns));
    let host = Netlink::open()?;
    let mut restored = Restored::default();
    // Where two differ, the newest ADD counts, as it did when it was made.
    for cached in attachments.iter().rev() {
        // What cannot be read is told with the packet filter's part.
        for wanted in wanted(arguments, cached).unwrap_or_default() {
            restored.settle(&host, &wanted, dry)?;
        }
    }
    Ok(restored)
}

impl Restored {
    /// Adds it to what is told of the packet filter.
    pub fn add_to(self, report: &mut Report, dry: bool) {
        report.done.extend(self.done);
        report.left.extend(self.left);
        if dry {
            report.transactions.extend(self.commands);
        }
    }

    fn settle(&mut self, host: &Netlink, wanted: &Wanted, dry: bool) -> Result<()> {
        let name = &wanted.bridge;
        let Some(bridge) = host.find_link(name)? else {
            self.leave(format!(
                "{name} is not there: its pods have to be made anew"
            ));
            return Ok(());
        };
        let Some((name, vlans)) = &wanted.in_vlan else {
            return self.restore(host, &bridge, &wanted.addresses, dry);
        };
        self.restore(host, &bridge, &[], dry)?;
        let interface = match host.find_link(name.as_str())? {
            Some(interface) => interface,
            None if dry => {
                self.does(name.to_string(), format!("# make {name} anew"));
                return Ok(());
            }
            None => {
                let made = vlan::ensure_gateway_interface(host, &bridge, name, vlans)?;
                self.does(name.to_string(), String::new());
                made
            }
        };
        self.restore(host, &interface, &wanted.addresses, dry)
    }

    fn restore(
        &mut self,
        host: &Netlink,
        link: &Link,
        addresses: &[IpNetwork],
        dry: bool,
    ) -> Result<()> {
        let missing = gateway::missing(host, link, addresses)?;
        let name = &link.name;
        if missing.down {
            self.does(
                format!("{name}, which was down"),
                format!("ip link set {name} up"),
            );
            if !dry {
                host.set_up(link.index)?;
            }
        }
        for address in missing.addresses {
            if let Some(other) = gateway::obstacle(host, link, address)? {
                self.leave(format!("{address} of {name}: {other} is in its place"));
                continue;
            }
            self.does(
                format!("{address} of {name}"),
                format!("ip address add {address} dev {name}"),
            );
            if !dry {
                gateway::ensure_address(host, link, address, false)
                    .context("put an address back")?;
            }
        }
        Ok(())
    }

    /// Pods share a bridge: each thing is told once.
    fn does(&mut self, what: String, command: String) {
        if !self.done.contains(&what) {
            self.done.push(what);
            self.commands.push(command);
        }
    }

    fn leave(&mut self, what: String) {
        if !self.left.contains(&what) {
            self.left.push(what);
        }
    }
}

/// What the plugins of the ADD made sure of.
fn wanted(arguments: &Arguments, cached: &CachedAttachment) -> Result<Vec<Wanted>> {
    let list = outside::network_list(arguments, cached)?;
    let result = cached.result.as_ref().context("no result in the cache")?;
    let result = AddResult::decode_any(&Json::deserialize(result)?, Version::V0_1_0)?;
    let mut all = Vec::new();
    for plugin in &list.plugins {
        let document = outside::document(cached, &list, plugin)?;
        let has_ipam = !document.decode::<NetConf>()?.ipam.plugin.is_empty();
        let addresses = |gateway: Gateway| match has_ipam {
            true => Addressing::gateways_in(&result, gateway, &cached.ifname),
            false => Vec::new(),
        };
        match plugin.plugin.as_str() {
            "bridge" => {
                let plan = bridge::plan::Plan::new(&document.decode()?, has_ipam, None)?;
                let addresses = addresses(plan.gateway);
                let in_vlan = plan.vlan_gateway.filter(|_| !addresses.is_empty());
                all.push(Wanted {
                    bridge: plan.bridge.to_string(),
                    in_vlan: in_vlan.map(|name| (name, plan.vlans)),
                    addresses,
                });
            }
            "vxlan" => {
                let keys = document.decode()?;
                let plan = vxlan::plan::Plan::new(&keys, &list.name, has_ipam, None)?;
                all.push(Wanted {
                    bridge: plan.network.bridge.to_string(),
                    in_vlan: None,
                    addresses: addresses(plan.gateway),
                });
            }
            _ => {}
        }
    }
    Ok(all)
}
