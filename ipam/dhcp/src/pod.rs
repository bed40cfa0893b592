//! The pod's interface: opened, sent on, and configured after a renewal.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use ipnetwork::{IpNetwork, Ipv4Network};
use netlink::{AddressSpec, Link, Mac, Netlink, RouteSpec, sysctl};
use netns::NetNs;

use crate::frame;
use crate::lease::Step;
use crate::socket::Socket;
use crate::store::Place;
use crate::terms::{Hop, LINK_SCOPE, Terms};

/// A pod's interface, with what is needed to use it.
pub struct Interface {
    pub netns: NetNs,
    /// A netlink socket in the namespace.
    netlink: Netlink,
    /// The interface, which is up.
    pub link: Link,
    pub mac: Mac,
}

/// Device and inode of a namespace, which identify it.
pub fn inode(netns: &Path) -> Result<(u64, u64)> {
    let file = fs::metadata(netns)
        .map_err(|error| anyhow!("examine {netns:?}: {}", cni::reason(&error)))?;
    Ok((file.dev(), file.ino()))
}

/// Opens the interface `ifname` in the namespace at `netns`, and sets it up: main
/// plugins do so only after IPAM.
///
/// # Errors
/// With the Go daemon's text when the namespace or the interface is absent.
pub fn open(netns: &Path, ifname: &str) -> Result<Interface> {
    let found = Interface::find(NetNs::open(netns)?, ifname)?;
    found.ok_or_else(|| anyhow!("error looking up {ifname:?}: Link not found"))
}

/// Opens the interface of a lease again; `None` when it is gone, or when its path leads
/// to another namespace by now.
///
/// # Errors
/// When a netlink request fails.
pub fn reopen(place: &Place, ifname: &str) -> Result<Option<Interface>> {
    match inode(&place.netns) {
        Ok(inode) if inode == place.inode => {}
        _ => return Ok(None),
    }
    let netns = match NetNs::open(&place.netns) {
        Ok(netns) => netns,
        Err(error) if netns::is_gone(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Interface::find(netns, ifname)
}

/// Sends `step`, if it has a message. The frame goes to the hardware address that the
/// server's grant came from: the server's or its relay's. So it needs neither routes nor
/// ARP in the pod, which the pod may have changed.
///
/// # Errors
/// When the kernel refuses the packet.
pub fn send(socket: &Socket, step: &Step, pod: Mac, server: Option<Mac>) -> Result<()> {
    let Step::Send { to, message } = step else {
        return Ok(());
    };
    let (ip, mac) = match to {
        None => (Ipv4Addr::BROADCAST, None),
        Some(ip) => (*ip, server),
    };
    let mut message = message.clone();
    message.mac = pod;
    let packet = frame::write(message.address, ip, &message.write());
    socket
        .send(&packet, pod, mac)
        .map_err(|error| anyhow!("send to {ip}: {}", error.reason()))
}

impl Interface {
    fn find(netns: NetNs, ifname: &str) -> Result<Option<Self>> {
        let netlink = Netlink::open_in(&netns)?;
        let Some(link) = netlink.find_link(ifname)? else {
            return Ok(None);
        };
        let Some(mac) = link.mac else {
            bail!("interface {ifname} has no hardware address of six bytes: DHCP needs one");
        };
        if !link.up {
            // ip link set eth0 up
            netlink.set_up(link.index)?;
        }
        Ok(Some(Self {
            netns,
            netlink,
            link,
            mac,
        }))
    }

    /// Replaces the address and routes of `old` by those of `new`; others in the pod stay.
    ///
    /// # Errors
    /// When the kernel refuses a change; the changes before it stay.
    pub fn replace(&self, old: Option<&Terms>, new: &Terms, priority: u32) -> Result<()> {
        let index = self.link.index;
        let address = IpNetwork::V4(new.address);
        if old.is_none_or(|old| old.address != new.address) {
            if old.is_some() {
                self.keep_secondaries();
            }
            // ip address add ADDRESS dev eth0
            match self.netlink.add_address(index, &AddressSpec::from(address)) {
                Err(error) if !error.is_exists() => return Err(error.into()),
                _ => {}
            }
        }
        let kept: HashSet<Hop> = new.routes.iter().copied().collect();
        let known: HashSet<Hop> = old.into_iter().flat_map(|old| old.routes.clone()).collect();
        let mtu_differs = old.is_none_or(|old| old.mtu != new.mtu);
        // Before the new ones: the kernel refuses a second route to the same destination.
        for hop in &known {
            if !kept.contains(hop) || mtu_differs {
                // ip route del DST via GW dev eth0
                self.netlink
                    .delete_route(index, &route(hop, None, priority))?;
            }
        }
        for hop in &new.routes {
            if !known.contains(hop) || mtu_differs {
                let spec = route(hop, new.mtu, priority);
                // ip route add DST via GW dev eth0 [mtu MTU] [metric PRIORITY]
                match self.netlink.add_route(index, &spec) {
                    Err(error) if !error.is_exists() => return Err(error.into()),
                    _ => {}
                }
            }
        }
        if let Some(old) = old.filter(|old| old.address != new.address) {
            self.delete_address(old.address)?;
        }
        // Neighbours may have another hardware address for this IP in their ARP caches.
        self.netlink.announce(&self.link)?;
        Ok(())
    }

    /// Removes the address and routes of `old` from the pod.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn withdraw(&self, old: &Terms, priority: u32) -> Result<()> {
        for hop in &old.routes {
            self.netlink
                .delete_route(self.link.index, &route(hop, None, priority))?;
        }
        self.delete_address(old.address)
    }

    fn delete_address(&self, address: Ipv4Network) -> Result<()> {
        // ip address del ADDRESS dev eth0
        let address = IpNetwork::V4(address);
        Ok(self.netlink.delete_address(self.link.index, address)?)
    }

    /// Deleting an address deletes all later ones of its subnet as well, and deleting the last
    /// one deletes all routes, unless promote_secondaries is set.
    fn keep_secondaries(&self) {
        let key = sysctl::interface_key("ipv4", &self.link.name, "promote_secondaries");
        // With a read-only /proc/sys the pod has no address for a moment.
        let _ = self.netns.enter(|| sysctl::write_if_different(&key, "1"));
    }
}

fn route(hop: &Hop, mtu: Option<u16>, priority: u32) -> RouteSpec {
    RouteSpec {
        gw: (!hop.on_link()).then_some(IpAddr::V4(hop.via)),
        scope: hop.on_link().then_some(LINK_SCOPE),
        mtu: mtu.map(u32::from),
        priority: (priority != 0).then_some(priority),
        ..RouteSpec::to(IpNetwork::V4(hop.to))
    }
}
