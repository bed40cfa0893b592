//! The interface and address of the node for packets to other hosts.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;
use cni::env::IfName;
use ipnetwork::IpNetwork;
use netlink::{Family, Link, Netlink, OperState};

use crate::fault::fault;
use crate::network::{Network, text};

/// The node's end of the underlay.
#[derive(Clone, Debug, PartialEq)]
pub struct Underlay {
    /// The source address of packets.
    pub local: IpAddr,
    /// The interface through which they leave. If the address is on `lo`, because the hosts announce
    /// their addresses to routers, the interface of a default route.
    pub link: Link,
    /// Whether the device is bound to that interface.
    pub bound: bool,
}

impl Underlay {
    /// Looks up the interface and address that the configuration names. The defaults are the interface
    /// with the default route and its first address.
    ///
    /// # Errors
    /// Code 7, with the key at fault; what the kernel refuses.
    pub fn find(host: &Netlink, network: &Network) -> Result<Self> {
        match (&network.dev, network.local) {
            (Some(dev), local) => Self::on(host, network, dev.as_str(), local),
            (None, Some(local)) => Self::with_address(host, local),
            (None, None) => Self::of_default_route(host, network),
        }
    }

    fn on(host: &Netlink, network: &Network, dev: &str, local: Option<IpAddr>) -> Result<Self> {
        let Some(link) = host.find_link(dev)? else {
            return Err(fault("dev", format!("there is no interface {dev}")).into());
        };
        let local = match local {
            Some(local) if owner(host, local)?.is_some() => local,
            Some(local) => return Err(not_ours(local)),
            None => Self::first_address(host, network, &link)?,
        };
        let bound = !is_loopback(&link);
        Ok(Self { local, link, bound })
    }

    fn with_address(host: &Netlink, local: IpAddr) -> Result<Self> {
        let index = owner(host, local)?.ok_or_else(|| not_ours(local))?;
        let link = host
            .find_link_by_index(index)?
            .ok_or_else(|| not_ours(local))?;
        if !is_loopback(&link) {
            let bound = true;
            return Ok(Self { local, link, bound });
        }
        // The narrowest route decides how much fits.
        let ways = host.ways_out(Family::of(local))?;
        let narrowest = ways.into_iter().map(|it| it.link).min_by_key(|it| it.mtu);
        Ok(Self {
            local,
            link: narrowest.unwrap_or(link),
            bound: false,
        })
    }

    /// Takes the interface with the default route.
    fn of_default_route(host: &Netlink, network: &Network) -> Result<Self> {
        for family in families(network) {
            // The first of the routes.
            if let Some(way) = host.ways_out(family)?.into_iter().next() {
                let (link, bound) = (way.link, true);
                let local = Self::first_address(host, network, &link)?;
                return Ok(Self { local, link, bound });
            }
        }
        let family = network
            .family
            .map_or(String::new(), |it| format!(" {}", text(it)));
        let why = format!("missing, and there is no{family} default route to take it from");
        Err(fault("dev", why).into())
    }

    fn first_address(host: &Netlink, network: &Network, link: &Link) -> Result<IpAddr> {
        for family in families(network) {
            let addresses = host.list_addresses(link.index, Some(family))?;
            if let Some(first) = addresses.iter().find(|it| !it.local_scope) {
                return Ok(first.address.ip());
            }
        }
        let (key, family) = match network.family {
            Some(family) => ("underlay", text(family)),
            None => ("dev", "global"),
        };
        Err(fault(key, format!("{} has no {family} address", link.name)).into())
    }

    /// The largest packet of a pod: the underlay's MTU without the VXLAN header.
    pub fn room(&self) -> u32 {
        self.link.mtu.saturating_sub(overhead(self.local))
    }
}

/// Underlays that were looked up for the networks of a node. A thousand networks may have the same
/// keys, and each look-up reads all routes.
#[derive(Debug, Default)]
pub struct Underlays(HashMap<Keys, Underlay>);

/// The keys that determine an underlay.
type Keys = (Option<IfName>, Option<IpAddr>, Option<Family>);

impl Underlays {
    /// As [`Underlay::find`], but looks up the same keys once.
    ///
    /// # Errors
    /// As [`Underlay::find`].
    pub(crate) fn find(&mut self, host: &Netlink, network: &Network) -> Result<Underlay> {
        let keys = (network.dev.clone(), network.local, network.family);
        if let Some(found) = self.0.get(&keys) {
            return Ok(found.clone());
        }
        let found = Underlay::find(host, network)?;
        self.0.insert(keys, found.clone());
        Ok(found)
    }
}

fn families(network: &Network) -> Vec<Family> {
    match network.family {
        Some(family) => vec![family],
        None => vec![Family::V4, Family::V6],
    }
}

/// The size of the VXLAN header: 50 bytes over IPv4 (20 IP, 8 UDP, 8 VXLAN, 14 Ethernet), 70 over
/// IPv6 (40 IP).
pub(crate) fn overhead(local: IpAddr) -> u32 {
    if local.is_ipv4() { 50 } else { 70 }
}

/// The reason why no packet can leave through `link`, if there is one.
pub(crate) fn trouble(link: &Link) -> Option<String> {
    let name = &link.name;
    if !link.up {
        return Some(format!("underlay: {name} is down"));
    }
    match link.operstate {
        OperState::Down | OperState::LowerLayerDown | OperState::NotPresent => {
            let state = link.operstate;
            Some(format!("underlay: {name} has no carrier: {state}"))
        }
        _ => None,
    }
}

/// The index of the link with the address, if there is one.
pub(crate) fn owner(host: &Netlink, ip: IpAddr) -> Result<Option<u32>> {
    let all = host.list_all_addresses(Family::of(ip))?;
    let found = all
        .iter()
        .find(|(_, address): &&(u32, IpNetwork)| address.ip() == ip);
    Ok(found.map(|(index, _)| *index))
}

fn not_ours(local: IpAddr) -> anyhow::Error {
    fault("local", format!("{local} is no address of this node")).into()
}

fn is_loopback(link: &Link) -> bool {
    link.name == "lo"
}
