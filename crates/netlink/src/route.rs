//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
            RouteProtocol, RouteType,
        },
    },
};

use transport::{Attributes, Message, Protocol, Request, Route as Rtnetlink, attributes};

use crate::{
    Error, Family, Link, Netlink,
    request::{decode, unless_absent},
};

/// The number of the main table.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The number of the local table, which is the kernel's own.
pub(crate) const LOCAL_TABLE: u32 = 255;

/// A route to add. The kernel chooses what is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// The destination; 0.0.0.0/0 and ::/0 are the default routes.
    pub dst: IpNetwork,
    /// The next hop; without one, the destination is on the link.
    pub gw: Option<IpAddr>,
    /// The metric: of two routes to the same destination, the lower is used.
    pub priority: Option<u32>,
    /// The table; `None` is the main table.
    pub table: Option<u32>,
    /// The scope: 0 is global, 253 this link, 254 this host.
    pub scope: Option<u8>,
    /// The largest packet to send on this route, in bytes.
    pub mtu: Option<u32>,
    /// The largest TCP segment to announce on this route, in bytes.
    pub advmss: Option<u32>,
    /// The source address of packets.
    pub src: Option<IpAddr>,
    /// Treat the next hop as on the link, even if no address of the link covers it.
    pub onlink: bool,
}

impl RouteSpec {
    /// A route to `dst`, with nothing else set.
    pub fn to(dst: IpNetwork) -> Self {
        Self {
            dst,
            gw: None,
            priority: None,
            table: None,
            scope: None,
            mtu: None,
            advmss: None,
            src: None,
            onlink: false,
        }
    }

    /// The default route of the family of `gw` through it.
    pub fn default_via(gw: IpAddr) -> Self {
        let any = match gw {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        Self {
            gw: Some(gw),
            // A prefix of no bits is valid in both families.
            ..Self::to(IpNetwork::new(any, 0).unwrap_or(any.into()))
        }
    }

    /// Whether it is a default route: its prefix has no bits.
    pub fn is_default(&self) -> bool {
        self.dst.prefix() == 0
    }

    /// The table it is in.
    pub fn table(&self) -> u32 {
        self.table.unwrap_or(MAIN_TABLE)
    }
}

/// A unicast route of the kernel. One with several next hops is listed once for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub dst: IpNetwork,
    /// The next hop, if the destination is not on the link.
    pub gw: Option<IpAddr>,
    /// The index of the outgoing link.
    pub oif: Option<u32>,
    /// The table it is in.
    pub table: u32,
    /// The metric.
    pub priority: Option<u32>,
    /// Its origin, as in /etc/iproute2/rt_protos: 2 the kernel, 9 a router advertisement.
    pub protocol: u8,
    /// Whether it has a limited lifetime.
    pub expires: bool,
    /// The largest packet, in bytes, if the route limits it.
    pub mtu: Option<u32>,
    /// The id of the next hop object (`ip nexthop`), if it has one.
    pub next_hop: Option<u32>,
}

/// Which routes to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteFilter {
    /// The family.
    pub family: Family,
    /// Only those with this outgoing link.
    pub oif: Option<u32>,
    /// Only those of this table; all tables if `None`.
    pub table: Option<u32>,
}

impl RouteFilter {
    /// The main table's routes of `family`.
    pub fn main(family: Family) -> Self {
        Self {
            family,
            oif: None,
            table: Some(MAIN_TABLE),
        }
    }
}

/// How long to wait for the kernel's worker. With ten times the load that the machine can carry, it
/// took some 20 ms; longer while others hold the routing lock. If we do not wait for it, the pod's
/// first packets are lost.
const LOCAL: Duration = Duration::from_secs(1);

impl Netlink {
    /// Adds a route through link `oif`, beside others to the same destination: `ip route prepend
    /// DST via GW dev LINK …`.
    ///
    /// # Errors
    /// `EEXIST` when it exists; `ENETUNREACH` when the next hop is not on the link; `EINVAL` when
    /// an IPv4 destination has bits outside its prefix.
    pub fn add_route(&self, oif: u32, route: &RouteSpec) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewRoute(route_message(oif, route));
        self.change(request, NLM_F_CREATE, || {
            format!("add route to {}", route.dst)
        })
    }

    /// Adds a route through link `oif`, in place of one to the same destination with the same
    /// metric: `ip route replace DST via GW dev LINK …`.
    ///
    /// # Errors
    /// As [`Netlink::add_route`], but for `EEXIST`.
    pub fn replace_route(&self, oif: u32, route: &RouteSpec) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewRoute(route_message(oif, route));
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add route to {}", route.dst)
        })
    }

    /// Removes a route, which may be absent: `ip route del DST via GW dev LINK …`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_route(&self, oif: u32, route: &RouteSpec) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelRoute(route_message(oif, route));
        unless_absent(self.change(request, 0, || format!("delete route to {}", route.dst)))
    }

    /// The unicast routes that match: `ip route show table T dev LINK`.
    ///
    /// # Errors
    /// When the kernel cannot be queried; a table that does not exist has no routes.
    pub fn list_routes(&self, filter: RouteFilter) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = filter.family.code();
        message.header.kind = RouteType::Unicast;
        let attributes = &mut message.attributes;
        attributes.extend(filter.table.map(RouteAttribute::Table));
        attributes.extend(filter.oif.map(RouteAttribute::Oif));
        let request = RouteNetlinkMessage::GetRoute(message);
        let routes = |message| {
            let mut routes = read_route(message);
            // A kernel before 4.20 does not filter.
            routes.retain(|it| filter.table.is_none_or(|table| it.table == table));
            routes.retain(|it| filter.oif.is_none_or(|oif| it.oif == Some(oif)));
            routes
        };
        match self.dump(request, routes, || "list routes".into()) {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }

    /// The outgoing link of packets to `ip`: `ip route get IP`.
    ///
    /// # Errors
    /// When there is no route (`ENETUNREACH`).
    pub fn route_link(&self, ip: IpAddr) -> Result<Link, Error> {
        let op = || format!("find the way to {ip}");
        let route = self.way_to(ip, None)?;
        let oif = route.attributes.iter().find_map(|it| match it {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let oif = oif.ok_or_else(|| Error::new(op(), Errno::ENETUNREACH))?;
        self.find_link_by_index(oif)?
            .ok_or_else(|| Error::no_link(op()))
    }

    /// Waits a moment until the host accepts packets and solicitations for `ip`, an IPv6 address
    /// that was just added. The kernel's worker sees to both, whatever the flags of the address
    /// (`addrconf_dad_work` in net/ipv6/addrconf.c): on a busy node, milliseconds after the
    /// request for the address was acknowledged. A neighbour that solicits in between repeats
    /// it after a second.
    pub fn await_local(&self, ip: IpAddr) {
        self.await_local_way(ip, None);
    }

    /// The same for an address that other links may have, too: waits until the host accepts
    /// packets and solicitations for it on the link with `index`.
    pub fn await_local_on(&self, ip: IpAddr, index: u32) {
        self.await_local_way(ip, Some(index));
    }

    fn await_local_way(&self, ip: IpAddr, oif: Option<u32>) {
        let until = Instant::now() + LOCAL;
        while self.is_local_way(ip, oif).is_ok_and(|local| !local) && Instant::now() < until {
            sleep(Duration::from_micros(500));
        }
    }

    /// Whether the kernel takes `ip` for an address of this host: `ip route get IP` begins with
    /// `local`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn is_local(&self, ip: IpAddr) -> Result<bool, Error> {
        self.is_local_way(ip, None)
    }

    fn is_local_way(&self, ip: IpAddr, oif: Option<u32>) -> Result<bool, Error> {
        match self.way_to(ip, oif) {
            Err(error) if error.is_unreachable() => Ok(false),
            way => Ok(way?.header.kind == RouteType::Local),
        }
    }

    /// What the kernel does with a packet to `to`: `ip route get TO`; with `from`, a packet of that
    /// source that comes in by the link with that index: `ip route get TO from SOURCE iif LINK`.
    ///
    /// # Errors
    /// There is no way (`ENETUNREACH`; `EHOSTUNREACH` also where the namespace does not forward), a
    /// route forbids it (`EACCES`), the source must not come in there (`EXDEV`: rp_filter).
    pub fn decide(&self, to: IpAddr, from: Option<(IpAddr, u32)>) -> Result<Decision, Error> {
        let op = || format!("find the way to {to}");
        let mut message = route_message(0, &RouteSpec::to(to.into()));
        message.attributes = vec![RouteAttribute::Destination(to.into())];
        if let Some((source, input)) = from {
            message.header.source_prefix_length = if source.is_ipv4() { 32 } else { 128 };
            message
                .attributes
                .push(RouteAttribute::Source(source.into()));
            message.attributes.push(RouteAttribute::Iif(input));
        }
        message.header.protocol = RouteProtocol::Unspec;
        message.header.kind = RouteType::Unspec;
        // Otherwise the kernel says "main", whatever table it was.
        message.header.flags = RouteFlags::LookupTable;
        let answer = self.get(RouteNetlinkMessage::GetRoute(message), decode, op)?;
        let Some(RouteNetlinkMessage::NewRoute(route)) = answer else {
            return Err(Error::new(op(), Errno::EBADMSG));
        };
        let mut decision = Decision {
            local: route.header.kind == RouteType::Local,
            ..Decision::default()
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => decision.output = Some(*index),
                RouteAttribute::Gateway(ip) => decision.gateway = address(ip),
                RouteAttribute::PrefSource(ip) => decision.source = address(ip),
                RouteAttribute::Table(table) => decision.table = *table,
                _ => {}
            }
        }
        Ok(decision)
    }

    /// `ip route get IP [oif LINK]`
    fn way_to(&self, ip: IpAddr, oif: Option<u32>) -> Result<RouteMessage, Error> {
        let op = || format!("find the way to {ip}");
        let host = IpNetwork::from(ip);
        let mut message = route_message(0, &RouteSpec::to(host));
        message.attributes = vec![RouteAttribute::Destination(ip.into())];
        message.attributes.extend(oif.map(RouteAttribute::Oif));
        message.header.protocol = RouteProtocol::Unspec;
        message.header.kind = RouteType::Unspec;
        match self.get(RouteNetlinkMessage::GetRoute(message), decode, op)? {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            _ => Err(Error::new(op(), Errno::EBADMSG)),
        }
    }

    /// The next hops of the default routes of a family with the lowest metric: `ip route show
    /// default`, `ip nexthop show`.
    ///
    /// # Errors
    /// When the kernel cannot be queried; an absent default route is no error.
    pub fn ways_out(&self, family: Family) -> Result<Vec<WayOut>, Error> {
        let mut routes = self.list_routes(RouteFilter::main(family))?;
        routes.retain(|route| route.dst.prefix() == 0);
        let metric = |route: &Route| route.priority.unwrap_or_default();
        let lowest = routes.iter().map(metric).min();
        routes.retain(|route| Some(metric(route)) == lowest);
        let mut ways = Vec::new();
        for route in routes {
            let links = match (route.oif, route.next_hop) {
                (Some(oif), _) => vec![oif],
                (None, Some(id)) => self.next_hop_links(id)?,
                (None, None) => Vec::new(),
            };
            for index in links {
                let Some(link) = self.find_link_by_index(index)? else {
                    continue;
                };
                let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
                ways.push(WayOut { link, mtu });
            }
        }
        Ok(ways)
    }

    /// The links of a next hop object, or of a group of them: `ip nexthop show id ID`. A route may
    /// not list them (`net.ipv4.nexthop_compat_mode`).
    fn next_hop_links(&self, id: u32) -> Result<Vec<u32>, Error> {
        let Some(found) = self.next_hop(id)? else {
            return Ok(Vec::new());
        };
        let mut links: Vec<u32> = found.link.into_iter().collect();
        for member in found.members {
            let member = self.next_hop(member)?;
            links.extend(member.and_then(|it| it.link));
        }
        Ok(links)
    }

    fn next_hop(&self, id: u32) -> Result<Option<NextHop>, Error> {
        let attributes = Attributes::<Rtnetlink>::new().u32(NHA_ID, id);
        let body = [&[0; NHMSG], attributes.as_bytes()].concat();
        let request = Request::new(RTM_GETNEXTHOP, 0, body);
        match self.socket.get(&request, NextHop::read) {
            Ok(found) => Ok(found),
            Err(refusal) if refusal.errno == Errno::ENOENT => Ok(None),
            Err(refusal) => Err(Error::refused(format!("find next hop {id}"), refusal)),
        }
    }

    /// The outgoing link of the first default route, IPv4 before IPv6: `ip route show default`.
    ///
    /// # Errors
    /// When the kernel cannot be queried; an absent default route is no error.
    pub fn default_route_link(&self) -> Result<Option<Link>, Error> {
        for family in [Family::V4, Family::V6] {
            if let Some(first) = self.ways_out(family)?.into_iter().next() {
                return Ok(Some(first.link));
            }
        }
        Ok(None)
    }

    /// The largest packet, in bytes, that all default routes of both families carry: the MTU with
    /// which a pod loses no packets on the way.
    ///
    /// # Errors
    /// As [`Netlink::ways_out`].
    pub fn default_route_mtu(&self) -> Result<Option<u32>, Error> {
        let mut ways = self.ways_out(Family::V4)?;
        ways.extend(self.ways_out(Family::V6)?);
        Ok(ways.iter().map(|way| way.mtu).min())
    }
}

/// What the kernel does with a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is for this namespace.
    pub local: bool,
    /// The index of the outgoing link.
    pub output: Option<u32>,
    /// The next hop, if the destination is not on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that the namespace's own packets have.
    pub source: Option<IpAddr>,
    /// The table that decided.
    pub table: u32,
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A next hop of a default route.
#[derive(Clone, Debug, PartialEq)]
pub struct WayOut {
    /// The outgoing link.
    pub link: Link,
    /// The largest packet, in bytes, that the link and the route carry.
    pub mtu: u32,
}

/// linux/rtnetlink.h and linux/nexthop.h; libc lacks them.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
/// Bytes of `struct nhmsg`.
const NHMSG: usize = 8;

/// A next hop, or a group of them.
#[derive(Debug, Default, PartialEq)]
struct NextHop {
    link: Option<u32>,
    members: Vec<u32>,
}

impl NextHop {
    fn read(message: Message<'_>) -> Option<Self> {
        let (_, rest) = message.parts::<NHMSG>(RTM_NEWNEXTHOP)?;
        let mut found = Self::default();
        for (attribute, value) in attributes(rest) {
            match attribute {
                NHA_OIF => found.link = Rtnetlink::u32(value),
                // struct nexthop_grp: the id, then weight and padding, in eight bytes.
                NHA_GROUP => {
                    let ids = value.chunks_exact(8).map(|it| &it[..4]);
                    found.members = ids.filter_map(Rtnetlink::u32).collect();
                }
                _ => {}
            }
        }
        Some(found)
    }
}

pub(crate) fn route_message(oif: u32, route: &RouteSpec) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = Family::of(route.dst.ip()).code();
    header.destination_prefix_length = route.dst.prefix();
    // "boot" is the origin that `ip route` and the Go plugins set.
    header.protocol = RouteProtocol::Boot;
    header.kind = RouteType::Unicast;
    header.scope = route.scope.unwrap_or_default().into();
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if !route.is_default() {
        // Bits outside the prefix are kept: the kernel refuses them for IPv4.
        attributes.push(RouteAttribute::Destination(route.dst.ip().into()));
    }
    attributes.push(RouteAttribute::Oif(oif));
    attributes.push(RouteAttribute::Table(route.table()));
    attributes.extend(route.gw.map(|gw| RouteAttribute::Gateway(gw.into())));
    attributes.extend(route.priority.map(RouteAttribute::Priority));
    attributes.extend(route.src.map(|ip| RouteAttribute::PrefSource(ip.into())));
    let mut metrics = Vec::new();
    metrics.extend(route.mtu.map(RouteMetric::Mtu));
    metrics.extend(route.advmss.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

pub(crate) fn read_route(message: RouteNetlinkMessage) -> Vec<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return Vec::new();
    };
    // A kernel before 4.20 does not filter.
    if message.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut dst = match Family::of_code(message.header.address_family) {
        Some(Family::V4) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Some(Family::V6) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        None => return Vec::new(),
    };
    let (mut gw, mut oif, mut priority) = (None, None, None);
    let mut table = u32::from(message.header.table);
    let (mut next_hops, mut expires) = (Vec::new(), false);
    let (mut mtu, mut next_hop) = (None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address).unwrap_or(dst),
            RouteAttribute::Gateway(address) => gw = ip(address),
            RouteAttribute::Oif(index) => oif = Some(index),
            RouteAttribute::Priority(metric) => priority = Some(metric),
            RouteAttribute::Table(number) => table = number,
            RouteAttribute::MultiPath(hops) => next_hops = hops,
            RouteAttribute::CacheInfo(info) => expires = info.expires != 0,
            RouteAttribute::NhId(id) => next_hop = Some(id),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(bytes) => Some(*bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let Ok(dst) = IpNetwork::new(dst, message.header.destination_prefix_length) else {
        return Vec::new();
    };
    let route = Route {
        dst,
        gw,
        oif,
        table,
        priority,
        protocol: message.header.protocol.into(),
        expires,
        mtu,
        next_hop,
    };
    if next_hops.is_empty() {
        return vec![route];
    }
    next_hops
        .into_iter()
        .map(|hop| Route {
            oif: Some(hop.interface_index),
            gw: hop.attributes.into_iter().find_map(|it| match it {
                RouteAttribute::Gateway(address) => ip(address),
                _ => None,
            }),
            ..route.clone()
        })
        .collect()
}

pub(crate) fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(v4.into()),
        RouteAddress::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}
