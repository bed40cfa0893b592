//! Restores bridges that another program has changed: NetworkManager, for example, sets
//! interfaces down and removes addresses that it did not add. Each ADD restores the gateway's
//! addresses; between two ADDs `podwire resync` does.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bridge::plan::Vlans;
use bridge::vlan;
use cni::env::IfName;
use ipnetwork::IpNetwork;
use netlink::{Link, Netlink};
use packet_filter::node::Report;
use wiring::{Addressing, Gateway, gateway};

use crate::pods::{Attached, Plan, Planned};

/// What was restored, or would be.
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

/// Sets the bridges of these attachments up, and adds the gateway's addresses to them. `dry`
/// only reports.
///
/// # Errors
/// A netlink request fails.
pub fn resync(attached: &[Attached], dry: bool) -> Result<Restored> {
    let host = Netlink::open()?;
    let mut restored = Restored::default();
    // Where two differ, the newest ADD counts, as at the time of the ADD.
    let all: Vec<_> = attached.iter().rev().flat_map(wanted).collect();
    let mut bridges = BTreeMap::<_, Vec<_>>::new();
    for wanted in &all {
        let known = bridges.entry(&wanted.bridge).or_default();
        for address in &wanted.addresses {
            if !known.contains(address) {
                known.push(*address);
            }
        }
    }
    for wanted in &all {
        restored.settle(&host, wanted, &bridges[&wanted.bridge], dry)?;
    }
    Ok(restored)
}

impl Restored {
    /// Adds it to the report about the packet filter.
    pub fn add_to(self, report: &mut Report, dry: bool) {
        report.done.extend(self.done);
        report.left.extend(self.left);
        if dry {
            report.transactions.extend(self.commands);
        }
    }

    /// `bridges`: the addresses that all pods of the bridge want of it.
    fn settle(
        &mut self,
        host: &Netlink,
        wanted: &Wanted,
        bridges: &[IpNetwork],
        dry: bool,
    ) -> Result<()> {
        let name = &wanted.bridge;
        let Some(bridge) = host.find_link(name)? else {
            self.leave(format!(
                "{name} is missing: its pods have to be created again"
            ));
            return Ok(());
        };
        let Some((name, vlans)) = &wanted.in_vlan else {
            return self.restore(host, &bridge, [&wanted.addresses, bridges], dry);
        };
        self.restore(host, &bridge, [&[], &[]], dry)?;
        let interface = match host.find_link(name.as_str())? {
            Some(interface) => interface,
            None if dry => {
                self.does(name.to_string(), format!("# create {name}"));
                return Ok(());
            }
            None => {
                let made = vlan::ensure_gateway_interface(host, &bridge, name, vlans)?;
                self.does(name.to_string(), String::new());
                made
            }
        };
        self.restore(host, &interface, [&wanted.addresses, bridges], dry)
    }

    fn restore(
        &mut self,
        host: &Netlink,
        link: &Link,
        [addresses, bridges]: [&[IpNetwork]; 2],
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
            if let Some(other) = gateway::obstacle(host, link, address, bridges)? {
                self.leave(format!("{address} of {name}: {other} is in its place"));
                continue;
            }
            self.does(
                format!("{address} of {name}"),
                format!("ip address add {address} dev {name}"),
            );
            if !dry {
                gateway::ensure_address(host, link, address, false, || bridges.to_vec())
                    .context("put an address back")?;
            }
        }
        Ok(())
    }

    /// Pods share a bridge: each change is reported once.
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

/// What the plugins of an attachment want of its bridges.
fn wanted(attached: &Attached) -> Vec<Wanted> {
    let wanted = |plugin: &Planned| {
        let addresses = |gateway: Gateway| {
            if !plugin.has_ipam {
                return Vec::new();
            }
            Addressing::gateways_in(&attached.result, gateway, attached.owner.ifname.as_str())
        };
        match &plugin.plan {
            Plan::Bridge(plan) => {
                let addresses = addresses(plan.gateway);
                let in_vlan = plan.vlan_gateway.clone().filter(|_| !addresses.is_empty());
                Some(Wanted {
                    bridge: plan.bridge.to_string(),
                    in_vlan: in_vlan.map(|name| (name, plan.vlans.clone())),
                    addresses,
                })
            }
            Plan::Vxlan(plan) => Some(Wanted {
                bridge: plan.network.bridge.to_string(),
                in_vlan: None,
                addresses: addresses(plan.gateway),
            }),
            Plan::Ptp(_) | Plan::Portmap(_) | Plan::Firewall(_) => None,
        }
    };
    attached.plugins.iter().filter_map(wanted).collect()
}
