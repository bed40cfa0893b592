//! Turning the host into a router.
//!
//! These settings are the calling thread's namespace's, which must be the one
//! that the socket is of.

use std::collections::BTreeSet;

use nix::libc;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol},
};

use transport::{Attributes, Message, Request, Route, find};

use crate::{Error, Family, Netlink, RouteFilter, sysctl};

const IPV4: &str = "net/ipv4/ip_forward";
const IPV6: &str = "net/ipv6/conf/all/forwarding";
/// `RTPROT_RA` (linux/rtnetlink.h): the route was learned from an advertisement.
const FROM_ROUTER: u8 = 9;
/// `RTPROT_KERNEL`.
const FROM_KERNEL: u8 = 2;
/// linux/netconf.h; the index stands for the setting of all interfaces.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
/// Bytes of `struct netconfmsg`, filled up.
const NETCONF: usize = 4;

impl Netlink {
    /// Lets the host forward packets of `family`, unless it does.
    ///
    /// A host that forwards IPv6 ignores router advertisements, unless accept_ra
    /// is 2, and drops the default route that it has from one; other routes, and
    /// addresses, expire. The node would lose IPv6 when its first IPv6 pod starts.
    /// So, before the switch and only then, accept_ra is raised from 1 to 2 on the
    /// interfaces that have anything from a router.
    ///
    /// # Errors
    /// When a setting cannot be read or written.
    pub fn enable_forwarding(&self, family: Family) -> Result<(), Error> {
        if self.forwards(family) == Some(true) {
            return Ok(());
        }
        match family {
            Family::V4 => sysctl::write_if_different(IPV4, "1").map(drop),
            Family::V6 if sysctl::read(IPV6)? == "1" => Ok(()),
            Family::V6 => {
                self.keep_router_advertisements()?;
                sysctl::write(IPV6, "1")
            }
        }
    }

    /// Whether [`Netlink::enable_forwarding`] would succeed; nothing is changed.
    ///
    /// # Errors
    /// As that.
    pub fn may_enable_forwarding(&self, family: Family) -> Result<(), Error> {
        if self.forwards(family) == Some(true) {
            return Ok(());
        }
        sysctl::may_write(match family {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        })
    }

    /// Whether the host forwards, where the kernel tells: `ip netconf show dev all`. To open
    /// the setting's file takes the longer the more namespaces there are.
    fn forwards(&self, family: Family) -> Option<bool> {
        let family = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let all = Attributes::<Route>::new().u32(NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL);
        let body = [&[family as u8, 0, 0, 0], all.as_bytes()].concat();
        let request = Request::new(libc::RTM_GETNETCONF, 0, body);
        let read = |message: Message<'_>| {
            let (_, rest) = message.parts::<NETCONF>(libc::RTM_NEWNETCONF)?;
            Some(
                find(rest, NETCONFA_FORWARDING)?
                    .iter()
                    .any(|byte| *byte != 0),
            )
        };
        self.socket.get(&request, read).ok().flatten()
    }

    fn keep_router_advertisements(&self) -> Result<(), Error> {
        let learned = self.learned_from_routers()?;
        for link in self.list_links()? {
            let heeds = link.accept_ra == Some(1);
            if heeds && (link.heard_router || learned.contains(&link.index)) {
                let accept_ra = sysctl::interface_key("ipv6", &link.name, "accept_ra");
                match sysctl::write(&accept_ra, "2") {
                    // The link has gone since; then it has nothing to lose.
                    Err(error) if error.is_not_found() => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// The links with routes or addresses from router advertisements. A router need not be
    /// a default router: where its lifetime is 0, it tells prefixes and routes only.
    fn learned_from_routers(&self) -> Result<BTreeSet<u32>, Error> {
        let routes = self.list_routes(RouteFilter {
            family: Family::V6,
            oif: None,
            // Such a route may be in the table of a vrf.
            table: None,
        })?;
        let learned = routes.iter().filter(|it| match it.protocol {
            FROM_ROUTER => true,
            // To a prefix that is on the link.
            FROM_KERNEL => it.expires,
            _ => false,
        });
        let mut links: BTreeSet<u32> = learned.filter_map(|it| it.oif).collect();
        let mut message = AddressMessage::default();
        message.header.family = Family::V6.code();
        let request = RouteNetlinkMessage::GetAddress(message);
        links.extend(self.dump(request, made_from_prefix, || "list addresses".into())?);
        Ok(links)
    }
}

/// The link of an address that the kernel made from the prefix of a router advertisement.
fn made_from_prefix(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let made = message.attributes.iter().any(|it| match it {
        // Others are made from it (RFC 8981), or it is made from another.
        AddressAttribute::Flags(flags) => {
            flags.intersects(AddressFlags::Managetempaddr | AddressFlags::Secondary)
        }
        // Since Linux 5.18.
        AddressAttribute::Protocol(protocol) => *protocol == AddressProtocol::RouterAnnouncement,
        _ => false,
    });
    made.then_some(message.header.index)
}
