//! What a server grants: the options of an answer as checked types. An invalid
//! address, mask, router or route makes the whole answer invalid; other invalid options
//! are left out.
//! Source: RFC 2132, RFC 3397 (search), RFC 3442 (classless routes), MS-DHCPE (option 249).

use std::net::{IpAddr, Ipv4Addr};

use cni::result::{Dns, IpConfig, Route};
use cni::{AddResult, Cidr};
use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use crate::message::{Reply, option};

/// The lease time in seconds if the server names none, as in the Go client.
const DEFAULT_LEASE: u32 = 3600;
/// A lease of this many seconds never ends (RFC 2131, section 3.3).
pub const FOREVER: u32 = u32::MAX;
/// The packet size that every IPv4 host must accept (RFC 791).
const MIN_MTU: u16 = 576;
/// `RT_SCOPE_LINK` of rtnetlink(7): the destination is on the link.
pub(crate) const LINK_SCOPE: u8 = 253;

const NO_SERVER: &str = "DHCP option server identifier not found or malformed";
/// The Go daemon's text, to the letter.
const NO_MASK: &str = "DHCP option Subnet Mask not found in DHCPACK";

/// What a lease grants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// The address with the prefix of its subnet.
    pub address: Ipv4Network,
    /// The first router.
    pub gateway: Option<Ipv4Addr>,
    /// The routes.
    pub routes: Vec<Hop>,
    /// Name servers, domain, search list.
    pub dns: Dns,
    /// The MTU of the segment, in bytes.
    pub mtu: Option<u16>,
    /// Time servers.
    pub ntp: Vec<Ipv4Addr>,
    /// The server that granted it.
    pub server: Ipv4Addr,
    /// The lease time in seconds, or [`FOREVER`].
    pub lease: u32,
    /// T1 in seconds: when that server gets a request to renew it.
    pub renew: u32,
    /// T2 in seconds: when any server gets one.
    pub rebind: u32,
}

/// A route of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hop {
    /// The destination, without host bits.
    pub to: Ipv4Network,
    /// The next router; 0.0.0.0 when the destination is on the link.
    pub via: Ipv4Addr,
}

impl Hop {
    /// Whether the destination is on the link.
    pub fn on_link(&self) -> bool {
        self.via.is_unspecified()
    }
}

/// Why an answer cannot be used.
pub type Fault = String;

/// An option has a wrong length or value.
fn malformed(option: u8) -> Fault {
    format!("DHCP option {option} is malformed")
}

impl Terms {
    /// Reads an offer or an acknowledgement.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn read(reply: &Reply) -> Result<Self, Fault> {
        let server = reply.server().filter(|ip| is_host(*ip));
        let server = server.ok_or(NO_SERVER)?;
        let address = address(reply)?;
        let lease = seconds(reply, option::LEASE_TIME)?.unwrap_or(DEFAULT_LEASE);
        if lease == 0 {
            return Err("the lease time is zero".into());
        }
        let (renew, rebind) = times(reply, lease);
        let gateway = routers(reply)?.into_iter().next();
        Ok(Self {
            address,
            gateway,
            routes: routes(reply, address, gateway)?,
            dns: dns(reply),
            mtu: mtu(reply),
            ntp: addresses(reply, option::NTP_SERVERS).unwrap_or_default(),
            server,
            lease,
            renew,
            rebind,
        })
    }

    /// Removes the gateway and every default route.
    pub fn remove_router(&mut self) {
        self.gateway = None;
        self.routes.retain(|hop| hop.to != DEFAULT);
    }

    /// The result of ADD; `priority` is the metric of its routes, 0 for none.
    pub fn to_result(&self, priority: u32) -> AddResult {
        let mtu = self.mtu.map_or(0, u32::from);
        let route = |hop: &Hop| Route {
            mtu,
            priority,
            scope: hop.on_link().then_some(LINK_SCOPE),
            ..Route::via(Cidr(IpNetwork::V4(hop.to)), IpAddr::V4(hop.via))
        };
        AddResult {
            interfaces: Vec::new(),
            ips: vec![IpConfig {
                interface: None,
                address: Cidr(IpNetwork::V4(self.address)),
                gateway: self.gateway.map(IpAddr::V4),
            }],
            routes: self.routes.iter().map(route).collect(),
            dns: self.dns.clone(),
        }
    }
}

/// Whether a host can have `ip`.
fn is_host(ip: Ipv4Addr) -> bool {
    let first = ip.octets()[0];
    // 0.0.0.0/8 is "this network", 127.0.0.0/8 this host, from 224 on multicast,
    // reserved and broadcast (RFC 1122, section 3.2.1.3).
    !matches!(first, 0 | 127 | 224..)
}

/// The address, which must be neither the network's nor the broadcast address.
fn address(reply: &Reply) -> Result<Ipv4Network, Fault> {
    let ip = reply.address;
    let mask = reply.option(option::SUBNET_MASK).ok_or(NO_MASK)?;
    let mask: [u8; 4] = mask
        .try_into()
        .map_err(|_| malformed(option::SUBNET_MASK))?;
    let mask = Ipv4Addr::from(mask);
    let network = Ipv4Network::with_netmask(ip, mask)
        .ok()
        .filter(|network| network.prefix() != 0)
        .ok_or_else(|| malformed(option::SUBNET_MASK))?;
    // /31 is a link between two, /32 a single host (RFC 3021).
    let ends = network.prefix() < 31 && (ip == network.network() || ip == network.broadcast());
    if !is_host(ip) || ends {
        return Err(format!("a host cannot have the address {ip}"));
    }
    Ok(network)
}

fn seconds(reply: &Reply, kind: u8) -> Result<Option<u32>, Fault> {
    let number = |data: &[u8]| {
        let bytes = data.try_into().map_err(|_| malformed(kind))?;
        Ok(u32::from_be_bytes(bytes))
    };
    reply.option(kind).map(number).transpose()
}

/// T1 and T2. If they are missing or out of order, the defaults of RFC 2131, section
/// 4.4.5.
fn times(reply: &Reply, lease: u32) -> (u32, u32) {
    let named = |kind| seconds(reply, kind).ok().flatten().filter(|time| *time > 0);
    let part = |percent: u64| ((u64::from(lease) * percent / 100) as u32).max(1);
    let rebind = named(option::REBINDING_TIME).filter(|time| *time < lease);
    let rebind = rebind.unwrap_or_else(|| part(85));
    let renew = named(option::RENEWAL_TIME).filter(|time| *time < rebind);
    (renew.unwrap_or_else(|| part(50)).min(rebind), rebind)
}

/// A list of addresses of hosts; `None` when it is malformed.
fn addresses(reply: &Reply, kind: u8) -> Option<Vec<Ipv4Addr>> {
    let data = reply.option(kind).unwrap_or_default();
    let (groups, rest) = data.as_chunks::<4>();
    let all = groups.iter().map(|octets| Ipv4Addr::from(*octets));
    rest.is_empty()
        .then(|| all.filter(|ip| is_host(*ip)).collect())
}

fn routers(reply: &Reply) -> Result<Vec<Ipv4Addr>, Fault> {
    addresses(reply, option::ROUTER).ok_or_else(|| malformed(option::ROUTER))
}

/// Option 121, or 249, and without them option 33 and a default route through the router
/// (RFC 3442: a client that knows the former ignores the latter two).
fn routes(
    reply: &Reply,
    address: Ipv4Network,
    gateway: Option<Ipv4Addr>,
) -> Result<Vec<Hop>, Fault> {
    let classless = [
        option::CLASSLESS_STATIC_ROUTE,
        option::MICROSOFT_CLASSLESS_STATIC_ROUTE,
    ];
    let classless = classless
        .into_iter()
        .find_map(|kind| Some((kind, reply.option(kind)?)));
    let mut routes = match classless {
        Some((kind, data)) => classless_routes(data).ok_or_else(|| malformed(kind))?,
        None => Vec::new(),
    };
    if routes.is_empty() {
        routes = classful_routes(reply.option(option::STATIC_ROUTE).unwrap_or_default())
            .ok_or_else(|| malformed(option::STATIC_ROUTE))?;
        routes.extend(gateway.map(|via| Hop { to: DEFAULT, via }));
    }
    let mut known = Vec::new();
    for route in routes {
        let reached = route.on_link()
            || address.contains(route.via)
            || known
                .iter()
                .any(|hop: &Hop| hop.on_link() && hop.to.contains(route.via));
        if !reached {
            // Clouds with /32 masks have a router outside the subnet. The kernel refuses a
            // route through it without a route to it on the link.
            known.push(Hop {
                to: Ipv4Network::from(route.via),
                via: Ipv4Addr::UNSPECIFIED,
            });
        }
        if !known.iter().any(|hop| hop.to == route.to) {
            known.push(route);
        }
    }
    Ok(known)
}

const DEFAULT: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(network) => network,
    None => panic!("0.0.0.0/0 is a network"),
};

/// RFC 3442: the prefix length, the significant octets of the destination, the router.
fn classless_routes(mut data: &[u8]) -> Option<Vec<Hop>> {
    let mut routes = Vec::new();
    while let Some((&prefix, rest)) = data.split_first() {
        let (significant, rest) = rest.split_at_checked(usize::from(prefix).div_ceil(8))?;
        let (via, rest) = rest.split_first_chunk::<4>()?;
        let mut octets = [0; 4];
        octets
            .get_mut(..significant.len())?
            .copy_from_slice(significant);
        let to = Ipv4Network::new(octets.into(), prefix).ok()?;
        let via = Ipv4Addr::from(*via);
        if !via.is_unspecified() && !is_host(via) {
            return None;
        }
        routes.push(Hop {
            to: without_host_bits(to)?,
            via,
        });
        data = rest;
    }
    Some(routes)
}

/// RFC 2132, section 5.8: pairs of a destination and a router. A default route is illegal
/// here, and left out.
fn classful_routes(data: &[u8]) -> Option<Vec<Hop>> {
    let (pairs, rest) = data.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let mut routes = Vec::new();
    for [a, b, c, d, via @ ..] in pairs {
        let prefix = match a {
            0 => continue,
            ..128 => 8,
            ..192 => 16,
            ..224 => 24,
            _ => return None,
        };
        let to = Ipv4Network::new(Ipv4Addr::new(*a, *b, *c, *d), prefix).ok()?;
        let via = Ipv4Addr::from(*via);
        if !is_host(via) {
            return None;
        }
        routes.push(Hop {
            to: without_host_bits(to)?,
            via,
        });
    }
    Some(routes)
}

fn without_host_bits(network: Ipv4Network) -> Option<Ipv4Network> {
    Ipv4Network::new(network.network(), network.prefix()).ok()
}

fn mtu(reply: &Reply) -> Option<u16> {
    let bytes = reply.option(option::INTERFACE_MTU)?.try_into().ok()?;
    Some(u16::from_be_bytes(bytes)).filter(|mtu| *mtu >= MIN_MTU)
}

fn dns(reply: &Reply) -> Dns {
    let servers = addresses(reply, option::DOMAIN_NAME_SERVER).unwrap_or_default();
    let domain = reply.option(option::DOMAIN_NAME).and_then(domain);
    let search = reply.option(option::DOMAIN_SEARCH).and_then(search_list);
    Dns {
        nameservers: servers.iter().map(Ipv4Addr::to_string).collect(),
        domain: domain.unwrap_or_default(),
        search: search.unwrap_or_default(),
        options: Vec::new(),
    }
}

/// A name as text. Some servers end it with a zero byte.
fn domain(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?;
    let text = text.trim_end_matches('\0').trim_end_matches('.');
    is_name(text).then(|| text.to_owned())
}

/// Whether `text` is safe in a resolv.conf: with a line break, any DHCP server could add
/// lines of its own.
fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(legal);
    text.len() <= 253 && text.split('.').all(label)
}

/// Names in DNS compression (RFC 1035, section 4.1.4): a pointer refers to earlier
/// labels.
fn search_list(data: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let (name, next) = packed_name(data, start)?;
        if !is_name(&name) {
            return None;
        }
        names.push(name);
        start = next;
    }
    Some(names)
}

/// The name at `start`, and where the next begins.
fn packed_name(data: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let (mut position, mut next) = (start, None);
    loop {
        let length = usize::from(*data.get(position)?);
        if length == 0 {
            return Some((name, next.unwrap_or(position + 1)));
        }
        if length >= 0xc0 {
            let target = (length & 0x3f) << 8 | usize::from(*data.get(position + 1)?);
            // Only backwards, so that the loop ends.
            if target >= position {
                return None;
            }
            next = next.or(Some(position + 2));
            position = target;
            continue;
        }
        let label = data.get(position + 1..position + 1 + length)?;
        if length > 63 || name.len() + length > 253 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(label).ok()?);
        position += 1 + length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::reply;

    const MASK: (u8, &[u8]) = (1, &[255, 255, 255, 0]);
    const SERVER: (u8, &[u8]) = (54, &[10, 0, 0, 1]);
    const LEASE: (u8, &[u8]) = (51, &[0, 0, 0, 100]);

    fn read(address: [u8; 4], options: &[(u8, &[u8])]) -> Result<Terms, Fault> {
        Terms::read(&Reply::read(&reply(5, address, options)).unwrap())
    }

    fn with(options: &[(u8, &[u8])]) -> Result<Terms, Fault> {
        read([10, 0, 0, 5], &[&[MASK, SERVER, LEASE], options].concat())
    }

    fn hops(terms: &Terms) -> Vec<String> {
        let text = |hop: &Hop| format!("{} via {}", hop.to, hop.via);
        terms.routes.iter().map(text).collect()
    }

    #[test]
    fn an_address_comes_with_its_subnet_router_and_times() {
        let terms = with(&[(3, &[10, 0, 0, 1, 10, 0, 0, 2])]).unwrap();
        assert_eq!(terms.address.to_string(), "10.0.0.5/24");
        assert_eq!(terms.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(hops(&terms), ["0.0.0.0/0 via 10.0.0.1"]);
        assert_eq!((terms.lease, terms.renew, terms.rebind), (100, 50, 85));
    }

    #[test]
    fn classless_routes_replace_all_others() {
        // 0.0.0.0/0, 10.17.0.0/16, 10.27.129.0/24 of RFC 3442, one on the link.
        let classless = [
            0, 10, 0, 0, 1, 16, 10, 17, 10, 0, 0, 2, 24, 10, 27, 129, 10, 0, 0, 3, 25, 10, 229, 0,
            255, 0, 0, 0, 0,
        ];
        let terms = with(&[(3, &[10, 0, 0, 9]), (121, &classless), (33, &[9; 8])]).unwrap();
        assert_eq!(
            hops(&terms),
            [
                "0.0.0.0/0 via 10.0.0.1",
                "10.17.0.0/16 via 10.0.0.2",
                "10.27.129.0/24 via 10.0.0.3",
                "10.229.0.128/25 via 0.0.0.0",
            ]
        );
        assert_eq!(terms.gateway, Some(Ipv4Addr::new(10, 0, 0, 9)));
        let result = terms.to_result(7);
        assert_eq!(result.routes[3].scope, Some(253));
        assert!(result.routes.iter().all(|route| route.priority == 7));
    }

    #[test]
    fn classful_routes_have_the_masks_of_their_classes() {
        let routes = [
            10, 1, 2, 3, 10, 0, 0, 2, 172, 16, 9, 9, 10, 0, 0, 2, 192, 168, 7, 7, 10, 0, 0, 2, 0,
            0, 0, 0, 10, 0, 0, 2,
        ];
        let terms = with(&[(3, &[10, 0, 0, 1]), (33, &routes)]).unwrap();
        assert_eq!(
            hops(&terms),
            [
                "10.0.0.0/8 via 10.0.0.2",
                "172.16.0.0/16 via 10.0.0.2",
                "192.168.7.0/24 via 10.0.0.2",
                "0.0.0.0/0 via 10.0.0.1",
            ]
        );
    }

    #[test]
    fn a_router_outside_the_subnet_is_reached_over_the_link() {
        let options = [(1, &[255; 4][..]), SERVER, (3, &[10, 0, 0, 1])];
        let terms = read([10, 9, 0, 5], &options).unwrap();
        assert_eq!(
            hops(&terms),
            ["10.0.0.1/32 via 0.0.0.0", "0.0.0.0/0 via 10.0.0.1"]
        );
        assert_eq!(terms.lease, DEFAULT_LEASE);
    }

    #[test]
    fn names_and_mtu_find_their_places() {
        let search = b"\x03eng\x05apple\x03com\0\x09marketing\xc0\x04";
        let options: [(u8, &[u8]); 5] = [
            (6, &[10, 0, 0, 53, 10, 0, 0, 54]),
            (15, b"example.org\0"),
            (26, &[5, 120]),
            (119, search),
            (3, &[10, 0, 0, 1]),
        ];
        let result = with(&options).unwrap().to_result(0);
        assert_eq!(result.dns.nameservers, ["10.0.0.53", "10.0.0.54"]);
        assert_eq!(result.dns.domain, "example.org");
        assert_eq!(result.dns.search, ["eng.apple.com", "marketing.apple.com"]);
        assert_eq!(result.routes[0].mtu, 1400);
    }

    #[test]
    fn invalid_optional_values_are_left_out() {
        let loops = [0xc0, 0x00];
        let options: [(u8, &[u8]); 5] = [
            (6, &[10, 0, 0]),
            (15, b"evil\nnameserver 6.6.6.6"),
            (26, &[0, 1]),
            (42, &[1]),
            (119, &loops),
        ];
        let terms = with(&options).unwrap();
        assert!(terms.dns.is_empty() && terms.mtu.is_none() && terms.ntp.is_empty());
        for search in [
            &b"\x3f"[..],
            b"\x01a",
            b"\x01a\xc0\x00",
            b"\x01\n\0",
            b"\x41",
            b"\0",
        ] {
            let terms = with(&[(119, search)]).unwrap();
            assert!(terms.dns.search.is_empty(), "{search:?}");
        }
    }

    #[test]
    fn an_address_that_no_host_can_have_is_refused() {
        let options = [MASK, SERVER, LEASE];
        for address in [
            [0, 0, 0, 0],
            [0, 0, 0, 5],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
            [10, 0, 0, 0],
            [10, 0, 0, 255],
        ] {
            let fault = read(address, &options).unwrap_err();
            assert!(fault.starts_with("a host cannot have"), "{fault}");
        }
    }

    #[test]
    fn an_option_of_the_wrong_shape_is_refused() {
        for (kind, data) in [
            (3, &[10, 0, 0][..]),
            (51, &[1]),
            (33, &[10, 0, 0, 0, 10, 0, 0]),
            (33, &[224, 0, 0, 1, 10, 0, 0, 1]),
            (121, &[33, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (121, &[24, 10, 0, 0, 10, 0, 0]),
            (121, &[255]),
            (121, &[0, 224, 0, 0, 1]),
        ] {
            let options = match kind {
                51 => vec![MASK, SERVER, (kind, data)],
                _ => vec![MASK, SERVER, LEASE, (kind, data)],
            };
            assert_eq!(
                read([10, 0, 0, 5], &options).unwrap_err(),
                malformed(kind),
                "{kind} {data:?}"
            );
        }
        for mask in [&[255, 255, 255][..], &[255, 0, 255, 0], &[0; 4], &[255; 5]] {
            let fault = read([10, 0, 0, 5], &[(1, mask), SERVER]).unwrap_err();
            assert_eq!(fault, malformed(1));
        }
    }

    #[test]
    fn a_lease_without_mask_server_or_time_is_refused() {
        let address = [10, 0, 0, 5];
        let zero = (51, &[0; 4][..]);
        for (options, fault) in [
            (
                &[SERVER, LEASE][..],
                "DHCP option Subnet Mask not found in DHCPACK",
            ),
            (&[MASK, LEASE], NO_SERVER),
            (&[MASK, SERVER, zero], "the lease time is zero"),
        ] {
            assert_eq!(read(address, options).unwrap_err(), fault);
        }
    }

    #[test]
    fn times_out_of_order_are_replaced_by_defaults() {
        let times = |renew: &[u8], rebind: &[u8]| {
            let terms = with(&[(58, renew), (59, rebind)]).unwrap();
            (terms.renew, terms.rebind)
        };
        assert_eq!(times(&[0, 0, 0, 20], &[0, 0, 0, 60]), (20, 60));
        assert_eq!(times(&[0, 0, 0, 90], &[0, 0, 0, 60]), (50, 60));
        assert_eq!(times(&[255; 4], &[255; 4]), (50, 85));
        assert_eq!(times(&[0; 4], &[0; 4]), (50, 85));
        assert_eq!(times(&[1], &[2, 3]), (50, 85));
        let tiny = read([10, 0, 0, 5], &[MASK, SERVER, (51, &[0, 0, 0, 1])]).unwrap();
        assert_eq!((tiny.renew, tiny.rebind), (1, 1));
        let forever = read([10, 0, 0, 5], &[MASK, SERVER, (51, &[255; 4])]).unwrap();
        assert_eq!(forever.lease, FOREVER);
    }
}
