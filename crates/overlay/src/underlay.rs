//! Which of the node's interfaces and addresses packets to other hosts leave by.

use std::net::IpAddr;

use anyhow::Result;
use ipnetwork::IpNetwork;
use netlink::{Family, Link, Netlink, OperState};

use crate::fault::fault;
use crate::network::{Network, told};

/// The node's end of the underlay.
#[derive(Clone, Debug, PartialEq)]
pub struct Underlay {
    /// The address that packets are sent from.
    pub local: IpAddr,
    /// The interface that they leave by, or the one to the world where the address is on
    /// none in particular (`lo`, as where hosts announce their addresses to routers).
    pub link: Link,
    /// Whether the device is to be bound to that interface.
    pub bound: bool,
}

impl Underlay {
    /// Looks for what the configuration names, and for the rest where it is usual: the
    /// interface with the default route, and its first address.
    ///
    /// # Errors
    /// Code 7, with the key at fault; when the kernel cannot be asked.
    pub fn find(host: &Netlink, network: &Network) -> Result<Self> {
        match (&network.dev, network.local) {
            (Some(dev), local) => Self::on(host, network, dev.as_str(), local),
            (None, Some(local)) => Self::with_address(host, local),
            (None, None) => Self::to_the_world(host, network),
        }
    }

    fn on(host: &Netlink, network: &Network, dev: &str, local: Option<IpAddr>) -> Result<Self> {
        let Some(link) = host.find_link(dev)? else {
            return Err(fault("dev", &format!("there is no interface {dev}")).into());
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
        // The ways out decide how much fits.
        let ways = host.ways_out(Family::of(local))?;
        let narrowest = ways.into_iter().map(|it| it.link).min_by_key(|it| it.mtu);
        Ok(Self {
            local,
            link: narrowest.unwrap_or(link),
            bound: false,
        })
    }

    fn to_the_world(host: &Netlink, network: &Network) -> Result<Self> {
        let families = match network.family {
            Some(family) => vec![family],
            None => vec![Family::V4, Family::V6],
        };
        for family in &families {
            if let Some(link) = way_out(host, *family)? {
                let local = Self::first_address(host, network, &link)?;
                let bound = true;
                return Ok(Self { local, link, bound });
            }
        }
        let family = network.family.map_or("", told);
        let space = if family.is_empty() { "" } else { " " };
        Err(fault(
            "dev",
            &format!("missing, and there is no{space}{family} default route to take it from"),
        )
        .into())
    }

    fn first_address(host: &Netlink, network: &Network, link: &Link) -> Result<IpAddr> {
        let families = match network.family {
            Some(family) => vec![family],
            None => vec![Family::V4, Family::V6],
        };
        for family in families {
            let addresses = host.list_addresses(link.index, Some(family))?;
            let mut usable = addresses.iter().filter(|it| !it.local_scope);
            if let Some(first) = usable.next() {
                return Ok(first.address.ip());
            }
        }
        let family = network.family.map_or("global", told);
        let key = match (network.family, &network.dev) {
            (Some(_), _) => "underlay",
            (None, _) => "dev",
        };
        Err(fault(key, &format!("{} has no {family} address", link.name)).into())
    }

    /// What a packet inside may have at most: the underlay's less what VXLAN puts around it,
    /// 50 bytes over IPv4 (20 IP, 8 UDP, 8 VXLAN, 14 Ethernet), 70 over IPv6 (40 IP).
    pub fn room(&self) -> u32 {
        room(&self.link, self.local)
    }
}

/// Why nothing can be sent by `link`, if so.
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

/// What VXLAN over `local`'s family leaves of the MTU of `link`.
pub(crate) fn room(link: &Link, local: IpAddr) -> u32 {
    link.mtu.saturating_sub(overhead(local))
}

pub(crate) fn overhead(local: IpAddr) -> u32 {
    if local.is_ipv4() { 50 } else { 70 }
}

/// The index of the link that has the address, if any has.
pub(crate) fn owner(host: &Netlink, ip: IpAddr) -> Result<Option<u32>> {
    let all = host.list_all_addresses(Family::of(ip))?;
    let found = all
        .iter()
        .find(|(_, address): &&(u32, IpNetwork)| address.ip() == ip);
    Ok(found.map(|(index, _)| *index))
}

fn not_ours(local: IpAddr) -> anyhow::Error {
    fault("local", &format!("{local} is no address of this node")).into()
}

fn is_loopback(link: &Link) -> bool {
    link.name == "lo"
}

/// The first of the ways to the world.
fn way_out(host: &Netlink, family: Family) -> Result<Option<Link>> {
    Ok(host.ways_out(family)?.into_iter().next().map(|it| it.link))
}
