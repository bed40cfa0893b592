//! Routes with all their attributes, to copy them into another table and to remove exactly these
//! routes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::{
    packet_core::{NLM_F_APPEND, NLM_F_CREATE},
    packet_route::{
        RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop,
            RouteNextHopFlags, RouteProtocol, RouteType, RouteVia,
        },
    },
};

use crate::{
    Error, Family, Netlink, RouteSpec,
    request::unless_absent,
    route::{ip, route_message},
};

/// How many of the kernel's ticks, in which it shows lifetimes, are a second (USER_HZ).
const TICKS: u32 = 100;

/// A route of any type and in any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeRoute {
    /// The destination.
    pub dst: IpNetwork,
    /// The next hop, if the destination is not on the link; that of an IPv4 route may be an IPv6
    /// address.
    pub gw: Option<IpAddr>,
    /// The source address of packets, if the route has one.
    pub src: Option<IpAddr>,
    /// The index of the outgoing link; `None` for a route with several.
    pub oif: Option<u32>,
    /// The metric.
    pub priority: Option<u32>,
    table: u32,
    protocol: u8,
    /// Whether its next hops are an object of their own (`ip nexthop`), which other routes may use.
    by_object: bool,
    message: RouteMessage,
}

impl WholeRoute {
    /// The route that `spec` describes, through the link with index `oif`, with the origin
    /// `protocol`.
    pub fn new(oif: u32, spec: &RouteSpec, protocol: u8) -> Self {
        let mut message = route_message(oif, spec);
        message.header.protocol = RouteProtocol::from(protocol);
        Self {
            dst: spec.dst,
            gw: spec.gw,
            src: spec.src,
            oif: Some(oif),
            priority: spec.priority,
            table: spec.table(),
            protocol,
            by_object: false,
            message,
        }
    }

    /// The table it is in.
    pub fn table(&self) -> u32 {
        self.table
    }

    /// Its origin, as in /etc/iproute2/rt_protos.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Whether it is a default route: its prefix has no bits.
    pub fn is_default(&self) -> bool {
        self.dst.prefix() == 0
    }

    /// The same route in another table.
    #[must_use]
    pub fn in_table(&self, table: u32) -> Self {
        let mut route = self.clone();
        route.table = table;
        let attributes = &mut route.message.attributes;
        attributes.retain(|it| !matches!(it, RouteAttribute::Table(_)));
        attributes.push(RouteAttribute::Table(table));
        route.message.header.table = u8::try_from(table).unwrap_or_default();
        route
    }

    /// The same route, with a source address for packets that have none.
    #[must_use]
    pub fn with_src(&self, src: IpAddr) -> Self {
        let mut route = self.clone();
        route.src = Some(src);
        let attributes = &mut route.message.attributes;
        attributes.retain(|it| !matches!(it, RouteAttribute::PrefSource(_)));
        attributes.push(RouteAttribute::PrefSource(src.into()));
        route
    }

    /// The same route with another origin.
    #[must_use]
    pub fn with_protocol(&self, protocol: u8) -> Self {
        let mut route = self.clone();
        route.protocol = protocol;
        route.message.header.protocol = RouteProtocol::from(protocol);
        route
    }

    /// Whether it is a unicast route that does not expire: neither local, nor unreachable, nor from
    /// a router advertisement.
    pub(crate) fn is_lasting(&self) -> bool {
        let expires = |it: &RouteAttribute| matches!(it, RouteAttribute::Expires(_));
        self.message.header.kind == RouteType::Unicast
            && !self.message.attributes.iter().any(expires)
    }

    /// Whether other routes, those on the link, lead to its next hop.
    pub(crate) fn has_next_hop(&self) -> bool {
        self.message.attributes.iter().any(|it| {
            let via = matches!(it, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
            via || matches!(it, RouteAttribute::MultiPath(_))
        })
    }

    /// Its scope, as in /etc/iproute2/rt_scopes: that of destinations on the link has a higher
    /// number.
    pub(crate) fn scope(&self) -> u8 {
        self.message.header.scope.into()
    }

    /// The indexes of its outgoing links: one for each next hop.
    pub(crate) fn links(&self) -> impl Iterator<Item = u32> {
        self.message.attributes.iter().flat_map(|it| match it {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        })
    }

    pub(crate) fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(mut message) = message else {
            return None;
        };
        let unspecified = match Family::of_code(message.header.address_family)? {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0; 16]),
        };
        let (mut dst, mut gw, mut src) = (unspecified, None, None);
        let (mut oif, mut priority, mut expires) = (None, None, None);
        let mut table = u32::from(message.header.table);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => dst = address_of(address)?,
                RouteAttribute::Gateway(address) => gw = address_of(address),
                RouteAttribute::Via(RouteVia::Inet6(address)) => gw = Some((*address).into()),
                RouteAttribute::PrefSource(address) => src = address_of(address),
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Priority(metric) => priority = Some(*metric),
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::CacheInfo(info) if info.expires != 0 => {
                    expires = Some(RouteAttribute::Expires(info.expires.div_ceil(TICKS)));
                }
                _ => {}
            }
        }
        let is_object = |it: &RouteAttribute| matches!(it, RouteAttribute::NhId(_));
        let by_object = message.attributes.iter().any(is_object);
        keep_what_can_be_set(&mut message);
        message.attributes.extend(expires);
        Some(Self {
            dst: IpNetwork::new(dst, message.header.destination_prefix_length).ok()?,
            gw,
            src,
            oif,
            priority,
            table,
            protocol: message.header.protocol.into(),
            by_object,
            message,
        })
    }

    /// The next hops of an IPv6 route as routes of their own. The kernel joins routes to one destination
    /// with one metric, such as the default routes of two interfaces, into a single one, but adds and
    /// removes each next hop alone (rt6_qualify_for_ecmp, ip6_route_del in net/ipv6/route.c).
    pub(crate) fn split(self) -> Vec<Self> {
        let several = |it: &RouteAttribute| matches!(it, RouteAttribute::MultiPath(_));
        let at = self.message.attributes.iter().position(several);
        let Some(at) = at.filter(|_| self.dst.is_ipv6() && !self.by_object) else {
            return vec![self];
        };
        let mut common = self;
        let RouteAttribute::MultiPath(hops) = common.message.attributes.remove(at) else {
            return vec![common];
        };
        hops.into_iter().map(|hop| common.through(hop)).collect()
    }

    /// This route, which has no next hop, through `hop`.
    fn through(&self, hop: RouteNextHop) -> Self {
        let mut route = self.clone();
        route.oif = Some(hop.interface_index);
        route.gw = hop.attributes.iter().find_map(|it| match it {
            RouteAttribute::Gateway(address) => address_of(address),
            _ => None,
        });
        if hop.flags.contains(RouteNextHopFlags::Onlink) {
            route.message.header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut route.message.attributes;
        attributes.push(RouteAttribute::Oif(hop.interface_index));
        attributes.extend(hop.attributes);
        route
    }
}

/// Removes what the kernel shows but does not accept: its present state, and the id of a next hop
/// object whose next hop it also shows.
fn keep_what_can_be_set(message: &mut RouteMessage) {
    message.header.flags &= RouteFlags::Onlink;
    message.attributes.retain(|it| {
        let shown = matches!(it, RouteAttribute::CacheInfo(_) | RouteAttribute::NhId(_));
        !shown
    });
    for attribute in &mut message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            for hop in hops {
                hop.flags &= RouteNextHopFlags::Onlink;
            }
        }
    }
}

impl Netlink {
    /// All routes of a family, of all tables: `ip -4|-6 route show table all`. An IPv6 route with
    /// several next hops is listed once for each ([`WholeRoute::split`]).
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_whole_routes(&self, family: Family) -> Result<Vec<WholeRoute>, Error> {
        let routes = self.whole_routes(family, None)?;
        Ok(routes.into_iter().flat_map(WholeRoute::split).collect())
    }

    /// The same, with all next hops of a route in one; with `link`, only those that the kernel finds
    /// by it.
    pub(crate) fn whole_routes(
        &self,
        family: Family,
        link: Option<u32>,
    ) -> Result<Vec<WholeRoute>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family.code();
        message.header.kind = RouteType::Unspec;
        message.attributes.extend(link.map(RouteAttribute::Oif));
        let request = RouteNetlinkMessage::GetRoute(message);
        // A kernel without IPv6 lists the routes of IPv4 instead.
        let of_family = |it: &WholeRoute| Family::of(it.dst.ip()) == family;
        let read = |message| WholeRoute::read(message).filter(of_family);
        self.dump(request, read, || "list routes".into())
    }

    /// Adds a route after others to the same destination with the same metric: `ip route append …
    /// table TABLE`. Returns whether it was added: one with the same next hop may exist.
    ///
    /// # Errors
    /// `ENETUNREACH` when the next hop is not on the link; `ENETDOWN` when the link is down.
    pub fn append_whole_route(&self, route: &WholeRoute) -> Result<bool, Error> {
        let request = RouteNetlinkMessage::NewRoute(route.message.clone());
        let op = || format!("add route to {} in table {}", route.dst, route.table);
        match self.change(request, NLM_F_CREATE | NLM_F_APPEND, op) {
            Err(error) if error.is_exists() => Ok(false),
            added => added.map(|()| true),
        }
    }

    /// Removes a route, which may be absent: `ip route del … table TABLE`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_whole_route(&self, route: &WholeRoute) -> Result<(), Error> {
        let mut message = route.message.clone();
        if route.dst.is_ipv6() {
            // The kernel shows joined next hops with the origin of the first one.
            message.header.protocol = RouteProtocol::Unspec;
        }
        let request = RouteNetlinkMessage::DelRoute(message);
        let op = || format!("delete route to {} in table {}", route.dst, route.table);
        unless_absent(self.change(request, 0, op))
    }
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    ip(address.clone())
}
