//! The addresses and routes that a link loses when it joins or leaves a VRF, and how it gets them
//! back.
//!
//! The kernel then takes the link down and up. It removes the link's routes from all tables, and
//! its IPv6 addresses unless `keep_addr_on_down` is set (`cycle_netdev` in drivers/net/vrf.c;
//! `NETDEV_CHANGEUPPER` in net/ipv4/fib_frontend.c and net/ipv6/addrconf.c). It restores the routes
//! that it derives from the addresses and from router advertisements.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cni::address::is_link_local_v6;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        route::RouteProtocol,
    },
};

use crate::{
    Error, Family, Link, MAIN_TABLE, Netlink, WholeRoute,
    address::{addresses_of, read_address},
    apply::has_carrier,
    route::LOCAL_TABLE,
};

/// How long to wait for the IPv6 addresses that routes need. Duplicate address detection takes one to
/// two seconds.
const SETTLE: Duration = Duration::from_secs(3);

/// IPv6 addresses and routes of a link, as the kernel described them.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    addresses: Vec<AddressMessage>,
    /// Routes on the link come first: they lead to the next hops of the others.
    routes: Vec<WholeRoute>,
}

impl Netlink {
    /// The addresses and routes that the link with `index` would lose: `ip -6 address show dev
    /// LINK`, `ip route show table all dev LINK`, `ip -6 route show table all dev LINK`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn keep(&self, index: u32) -> Result<Kept, Error> {
        let op = || format!("list addresses of {}", self.name_of(index));
        let address = |message| address_of(message, index);
        let addresses = self.dump(addresses_of(Family::V6, index), address, op)?;
        let mut routes = self.whole_routes(Family::V4, Some(index))?;
        routes.extend(self.whole_routes(Family::V6, Some(index))?);
        let mut routes: Vec<_> = routes
            .into_iter()
            .flat_map(|route| lost(route, index))
            .collect();
        routes.sort_by_key(|route| (route.has_next_hop(), Reverse(route.scope())));
        Ok(Kept { addresses, routes })
    }

    /// Restores the part of `kept` that `link` has lost. Its routes of the main table are added to
    /// the table `main`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn restore(&self, link: &Link, kept: &Kept, main: u32) -> Result<(), Error> {
        for address in &kept.addresses {
            let request = RouteNetlinkMessage::NewAddress(address.clone());
            let op = || format!("restore an address of {}", link.name);
            match self.change(request, NLM_F_CREATE | NLM_F_EXCL, op) {
                Err(error) if error.is_exists() => {}
                other => other?,
            }
        }
        if link.up && has_carrier(&self.await_carrier(link.index)?) {
            self.settle_on(link.index, kept.awaited())?;
        }
        for route in &kept.routes {
            self.append_whole_route(&moved(route, main))?;
        }
        Ok(())
    }

    /// Waits until the addresses are usable.
    fn settle_on(&self, index: u32, mut awaited: Vec<IpAddr>) -> Result<(), Error> {
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

impl Kept {
    /// The addresses to wait for: those that a route has as its source, which must be usable
    /// before, and those that become usable in a moment, without detection of duplicates. The
    /// kernel repeats the detection for link-local addresses, which takes more than a second, so
    /// these are not awaited unless a route has them.
    fn awaited(&self) -> Vec<IpAddr> {
        let is_source = |ip: &IpAddr| self.routes.iter().any(|it| it.src == Some(*ip));
        let addresses = self.addresses.iter();
        let awaited = addresses.filter_map(|it| {
            let ip = ip(it)?;
            let is_quick = has_no_dad(it) && !is_link_local_v6(ip);
            (is_quick || is_source(&ip)).then_some(ip)
        });
        awaited.collect()
    }
}

fn has_no_dad(address: &AddressMessage) -> bool {
    let mut attributes = address.attributes.iter();
    attributes
        .any(|it| matches!(it, AddressAttribute::Flags(all) if all.contains(AddressFlags::Nodad)))
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
    // The kernel has checked the address for duplicates before.
    flags.set(AddressFlags::Nodad, !read.tentative && !read.dad_failed);
    flags.remove(AddressFlags::Tentative | AddressFlags::Dadfailed);
    message.attributes.push(AddressAttribute::Flags(flags));
    Some(message)
}

fn ip(message: &AddressMessage) -> Option<IpAddr> {
    read_address(RouteNetlinkMessage::NewAddress(message.clone())).map(|it| it.address.ip())
}

/// The part of a route that is lost: all of it, or only the next hops on the link with `index`, if
/// the kernel has joined it with routes of other links.
fn lost(route: WholeRoute, index: u32) -> Vec<WholeRoute> {
    let is_joined = route.links().any(|link| link != index);
    let mut parts = if is_joined {
        route.split()
    } else {
        vec![route]
    };
    parts.retain(|it| is_kept(it, index));
    parts
}

/// Whether a route is lost and must be restored: the kernel itself restores its own routes and
/// those that it learns from routers. `index` is that of the link.
fn is_kept(route: &WholeRoute, index: u32) -> bool {
    let adds_itself = [RouteProtocol::Kernel, RouteProtocol::Ra].map(u8::from);
    route.is_lasting()
        && !adds_itself.contains(&route.protocol())
        && route.table() != LOCAL_TABLE
        && route.links().all(|link| link == index)
        && route.links().next().is_some()
}

/// `route` in the table `main` if it is in the main table.
fn moved(route: &WholeRoute, main: u32) -> WholeRoute {
    match route.table() {
        MAIN_TABLE => route.in_table(main),
        _ => route.clone(),
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteType,
    };

    use super::*;

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = Family::V4.code();
        route.header.kind = RouteType::Unicast;
        route.header.protocol = RouteProtocol::Static;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.flags = RouteFlags::Onlink | RouteFlags::Linkdown;
        route.attributes = attributes;
        route
    }

    fn kept(route: RouteMessage) -> Option<WholeRoute> {
        let read = WholeRoute::read(RouteNetlinkMessage::NewRoute(route));
        read.filter(|it| is_kept(it, 7))
    }

    #[test]
    fn only_the_main_table_becomes_that_of_the_vrf() {
        let main = kept(route(vec![RouteAttribute::Oif(7)])).unwrap();
        assert_eq!(moved(&main, 10).table(), 10);
        assert_eq!(moved(&main, MAIN_TABLE).table(), MAIN_TABLE);
        let other = route(vec![RouteAttribute::Oif(7), RouteAttribute::Table(1000)]);
        assert_eq!(moved(&kept(other).unwrap(), 10).table(), 1000);
    }

    #[test]
    fn of_an_ipv6_route_that_is_joined_with_one_of_another_link_its_own_next_hop_is_kept() {
        let default = |family: Family, links: [u32; 2]| {
            let hops = links.map(|link| {
                let mut hop = RouteNextHop::default();
                hop.interface_index = link;
                hop
            });
            let mut default = route(vec![RouteAttribute::MultiPath(hops.to_vec())]);
            default.header.address_family = family.code();
            let read = WholeRoute::read(RouteNetlinkMessage::NewRoute(default)).unwrap();
            let lost = lost(read, 7);
            lost.iter()
                .map(|it| it.links().collect())
                .collect::<Vec<Vec<u32>>>()
        };
        assert_eq!(default(Family::V6, [8, 7]), [[7]]);
        assert_eq!(default(Family::V6, [7, 7]), [[7, 7]]);
        assert!(default(Family::V6, [8, 9]).is_empty());
        assert!(default(Family::V4, [8, 7]).is_empty());
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
