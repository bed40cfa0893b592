//! What a link loses when it comes into a VRF or leaves one, and gets back.
//!
//! The kernel takes the link down and up then. It removes the link's routes from all tables, and
//! its IPv6 addresses unless `keep_addr_on_down` is set (`cycle_netdev` in drivers/net/vrf.c;
//! `NETDEV_CHANGEUPPER` in net/ipv4/fib_frontend.c and net/ipv6/addrconf.c). What follows from the
//! addresses, and from router advertisements, it adds again itself.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rtnetlink::{
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        route::{
            RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags,
            RouteProtocol, RouteType,
        },
    },
};

use crate::{
    Error, Family, Link, MAIN_TABLE, Netlink,
    address::{addresses_of, read_address},
    apply::has_carrier,
};

/// How long to wait for the IPv6 addresses. If duplicate address detection is on, it takes one to
/// two seconds.
const SETTLE: Duration = Duration::from_secs(3);

/// The local table, which is the kernel's own.
const LOCAL_TABLE: u32 = 255;

/// IPv6 addresses and routes of a link, as the kernel described them.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    addresses: Vec<AddressMessage>,
    /// Those on the link first: they lead to the next hops of the others.
    routes: Vec<RouteMessage>,
}

impl Netlink {
    /// What the link with `index` would lose: `ip -6 address show dev LINK`, `ip route show table
    /// all dev LINK`, `ip -6 route show table all dev LINK`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn keep(&self, index: u32) -> Result<Kept, Error> {
        let op = || format!("list addresses of {}", self.name_of(index));
        let address = |message| address_of(message, index);
        let addresses = self.dump(addresses_of(Family::V6, index), address, op)?;
        let mut routes = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family.code();
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Oif(index));
            let request = RouteNetlinkMessage::GetRoute(message);
            let route = |message| route_of(message, index);
            routes.extend(self.dump(request, route, || "list routes".into())?);
        }
        routes.sort_by_key(|route| {
            let scope = u8::from(route.header.scope);
            (has_next_hop(route), Reverse(scope))
        });
        Ok(Kept { addresses, routes })
    }

    /// Gives `link` back what it has lost of `kept`. Its routes of the main table come into the
    /// table `main`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn restore(&self, link: &Link, kept: &Kept, main: u32) -> Result<(), Error> {
        for address in &kept.addresses {
            let request = RouteNetlinkMessage::NewAddress(address.clone());
            let op = || format!("restore an address of {}", link.name);
            unless_present(self.change(request, NLM_F_CREATE | NLM_F_EXCL, op))?;
        }
        if link.up && has_carrier(&self.await_carrier(link.index)?) {
            self.settle_on(link.index, &kept.addresses)?;
        }
        for route in &kept.routes {
            let request = RouteNetlinkMessage::NewRoute(in_table(route.clone(), main));
            let op = || format!("restore a route of {}", link.name);
            unless_present(self.change(request, NLM_F_CREATE | NLM_F_APPEND, op))?;
        }
        Ok(())
    }

    /// Waits until the addresses are usable: before that, a route cannot have one as its source.
    fn settle_on(&self, index: u32, addresses: &[AddressMessage]) -> Result<(), Error> {
        let mut awaited: Vec<IpAddr> = addresses.iter().filter_map(ip).collect();
        let until = Instant::now() + SETTLE;
        loop {
            let present = self.list_addresses(index, Some(Family::V6))?;
            let is_tentative = |ip: &IpAddr| {
                let mut present = present.iter();
                present.any(|it| it.tentative && !it.dad_failed && it.address.ip() == *ip)
            };
            awaited.retain(is_tentative);
            if awaited.is_empty() || Instant::now() >= until {
                return Ok(());
            }
            sleep(Duration::from_millis(1));
        }
    }
}

fn unless_present(added: Result<(), Error>) -> Result<(), Error> {
    match added {
        Err(error) if error.is_exists() => Ok(()),
        other => other,
    }
}

/// An address of the link with `index`, as the kernel accepts it. Temporary addresses (RFC 8981)
/// follow from others.
pub(crate) fn address_of(message: RouteNetlinkMessage, index: u32) -> Option<AddressMessage> {
    let read = read_address(message.clone())?;
    let RouteNetlinkMessage::NewAddress(mut message) = message else {
        return None;
    };
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    message.attributes.retain(|it| match it {
        AddressAttribute::Flags(all) => {
            flags = *all;
            false
        }
        _ => true,
    });
    if read.index != index || flags.contains(AddressFlags::Secondary) {
        return None;
    }
    // It has been checked already.
    flags.set(AddressFlags::Nodad, !read.tentative && !read.dad_failed);
    flags.remove(AddressFlags::Tentative | AddressFlags::Dadfailed);
    message.attributes.push(AddressAttribute::Flags(flags));
    Some(message)
}

fn ip(message: &AddressMessage) -> Option<IpAddr> {
    read_address(RouteNetlinkMessage::NewAddress(message.clone())).map(|it| it.address.ip())
}

/// A route through the link with `index` and no other, as the kernel accepts it. Those that the
/// kernel adds by itself, or that expire, are left out.
pub(crate) fn route_of(message: RouteNetlinkMessage, index: u32) -> Option<RouteMessage> {
    let RouteNetlinkMessage::NewRoute(mut route) = message else {
        return None;
    };
    let is_kept = route.header.kind == RouteType::Unicast
        && !matches!(
            route.header.protocol,
            RouteProtocol::Kernel | RouteProtocol::Ra
        )
        && table_of(&route) != LOCAL_TABLE
        && !route.attributes.iter().any(expires)
        && links_of(&route).all(|link| link == index)
        && links_of(&route).next().is_some();
    if !is_kept {
        return None;
    }
    // What the kernel shows about the moment, and what cannot be set.
    route.header.flags &= RouteFlags::Onlink;
    route.attributes.retain(|it| {
        let shown = matches!(it, RouteAttribute::CacheInfo(_) | RouteAttribute::NhId(_));
        !shown
    });
    for attribute in &mut route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            for hop in hops {
                hop.flags &= RouteNextHopFlags::Onlink;
            }
        }
    }
    Some(route)
}

fn expires(attribute: &RouteAttribute) -> bool {
    match attribute {
        RouteAttribute::Expires(_) => true,
        RouteAttribute::CacheInfo(info) => info.expires != 0,
        _ => false,
    }
}

/// The outgoing links of a route: one for each of its next hops.
fn links_of(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route.attributes.iter().flat_map(|it| match it {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    })
}

fn has_next_hop(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|it| {
        matches!(
            it,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_)
        )
    })
}

fn table_of(route: &RouteMessage) -> u32 {
    let mut attributes = route.attributes.iter();
    let number = attributes.find_map(|it| match it {
        RouteAttribute::Table(number) => Some(*number),
        _ => None,
    });
    number.unwrap_or(route.header.table.into())
}

/// `route` in the table `main` if it is in the main table.
fn in_table(mut route: RouteMessage, main: u32) -> RouteMessage {
    let table = match table_of(&route) {
        MAIN_TABLE => main,
        other => other,
    };
    let is_table = |it: &RouteAttribute| matches!(it, RouteAttribute::Table(_));
    route.attributes.retain(|it| !is_table(it));
    route.attributes.push(RouteAttribute::Table(table));
    // The attribute has room for all of it.
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.header.protocol = RouteProtocol::Static;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
        route.attributes = attributes;
        route
    }

    fn kept(route: RouteMessage) -> Option<RouteMessage> {
        route_of(RouteNetlinkMessage::NewRoute(route), 7)
    }

    #[test]
    fn only_the_main_table_becomes_that_of_the_vrf() {
        let main = kept(route(vec![RouteAttribute::Oif(7)])).unwrap();
        assert_eq!(main.header.flags, RouteFlags::Onlink);
        assert_eq!(table_of(&in_table(main.clone(), 10)), 10);
        assert_eq!(table_of(&in_table(main, MAIN_TABLE)), MAIN_TABLE);
        let other = route(vec![RouteAttribute::Oif(7), RouteAttribute::Table(1000)]);
        assert_eq!(table_of(&in_table(kept(other).unwrap(), 10)), 1000);
    }

    #[test]
    fn routes_of_the_kernel_and_of_other_links_are_not_kept() {
        assert_eq!(kept(route(vec![RouteAttribute::Oif(8)])), None);
        assert_eq!(kept(route(Vec::new())), None);
        let local = vec![RouteAttribute::Oif(7), RouteAttribute::Table(LOCAL_TABLE)];
        assert_eq!(kept(route(local)), None);
        for protocol in [RouteProtocol::Kernel, RouteProtocol::Ra] {
            let mut own = route(vec![RouteAttribute::Oif(7)]);
            own.header.protocol = protocol;
            assert_eq!(kept(own), None);
        }
    }
}
