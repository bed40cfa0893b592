//! The pod's end: its interface, what the daemon changes there, and the packet
//! that gives a lease back.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, bail};
use ipnetwork::{IpNetwork, Ipv4Network};
use netlink::{AddressSpec, Link, Mac, Netlink, RouteSpec, sysctl};
use netns::NetNs;

use crate::frame;
use crate::lease::{Destination, Step};
use crate::socket::PacketSocket;
use crate::store::Place;
use crate::terms::{Hop, Terms};

/// An interface of a pod, open.
pub struct Interface {
    /// Its namespace.
    pub netns: NetNs,
    /// A socket in there.
    pub netlink: Netlink,
    /// The interface, which is up.
    pub link: Link,
    /// Its hardware address.
    pub mac: Mac,
}

/// Device and inode of a namespace: what tells it from another.
pub fn inode(netns: &Path) -> Result<(u64, u64)> {
    let file = fs::metadata(netns)
        .map_err(|error| anyhow::anyhow!("examine {netns:?}: {}", cni::reason(&error)))?;
    Ok((file.dev(), file.ino()))
}

/// Opens the interface `ifname` in the namespace at `netns`, and sets it up: main
/// plugins do so only when they have an address.
///
/// # Errors
/// In the words of the Go daemon when the namespace or the interface is absent.
pub fn open(netns: &Path, ifname: &str) -> Result<Interface> {
    let netns = NetNs::open(netns)?;
    let netlink = Netlink::open_in(&netns)?;
    let Some(link) = netlink.find_link(ifname)? else {
        bail!("error looking up {ifname:?}: Link not found");
    };
    let Some(mac) = link.mac else {
        bail!("interface {ifname} has no hardware address of six bytes: DHCP needs one");
    };
    if !link.up {
        // ip link set eth0 up
        netlink.set_up(link.index)?;
    }
    Ok(Interface {
        netns,
        netlink,
        link,
        mac,
    })
}

/// Opens the interface of a lease once more; `None` when it is gone, or when
/// another namespace has the path of its by now.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn reopen(place: &Place, ifname: &str) -> Result<Option<Interface>> {
    match inode(&place.netns) {
        Ok(inode) if inode == place.inode => {}
        _ => return Ok(None),
    }
    let netns = match NetNs::open(&place.netns) {
        Ok(netns) => netns,
        Err(error) if error.is_gone() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let netlink = Netlink::open_in(&netns)?;
    let Some(link) = netlink.find_link(ifname)? else {
        return Ok(None);
    };
    let Some(mac) = link.mac else {
        return Ok(None);
    };
    if !link.up {
        netlink.set_up(link.index)?;
    }
    Ok(Some(Interface {
        netns,
        netlink,
        link,
        mac,
    }))
}

/// Sends `step`, if it is something to send. A server is sent to at the hardware
/// address that its grant came from: its own, or that of the relay before it.
/// That needs neither routes nor ARP in the pod, where anybody may have changed them.
///
/// # Errors
/// When the kernel refuses the packet.
pub fn send(socket: &PacketSocket, step: &Step, pod: Mac, server: Option<Mac>) -> Result<()> {
    let Step::Send { to, from, message } = step else {
        return Ok(());
    };
    let (ip, mac) = match to {
        Destination::Everyone => (std::net::Ipv4Addr::BROADCAST, None),
        Destination::Server(ip) => (*ip, server),
    };
    let mut message = message.clone();
    message.mac = pod;
    let packet = frame::write(*from, ip, &message.write());
    socket
        .send(&packet, mac)
        .map_err(|error| anyhow::anyhow!("send to {ip}: {}", cni::reason(&error)))
}

impl Interface {
    /// Makes the pod have the address and routes of `new`, and no longer those of
    /// `old`; what others have put there stays.
    ///
    /// # Errors
    /// When the kernel refuses; what can be done is done.
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
        // Before the new ones: the kernel takes two routes to one destination for rivals.
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
        // Neighbours may know another hardware address for this one.
        self.netlink.announce(&self.link)?;
        Ok(())
    }

    /// Takes the address and routes of `old` from the pod.
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

    /// The kernel deletes with an address all later ones of its subnet, and with
    /// the last address all routes, unless it is told to keep them.
    fn keep_secondaries(&self) {
        let key = sysctl::interface_key("ipv4", &self.link.name, "promote_secondaries");
        // A read-only /proc/sys costs a moment without an address, no more.
        let _ = self.netns.enter(|| sysctl::write_if_different(&key, "1"));
    }
}

fn route(hop: &Hop, mtu: Option<u16>, priority: u32) -> RouteSpec {
    RouteSpec {
        gw: (!hop.on_link()).then_some(IpAddr::V4(hop.via)),
        scope: hop.on_link().then_some(253),
        mtu: mtu.map(u32::from),
        priority: (priority != 0).then_some(priority),
        ..RouteSpec::to(IpNetwork::V4(hop.to))
    }
}
