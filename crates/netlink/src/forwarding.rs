//! Makes the host forward packets.
//!
//! The settings are those of the calling thread's namespace, which must be the one of the socket.

use std::collections::BTreeSet;

use nix::libc;
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressProtocol},
};

use transport::{Attributes, Message, Request, Route, find};

use crate::{Error, Family, Netlink, RouteFilter, address::addresses_of, sysctl};

const IPV4: &str = "net/ipv4/ip_forward";
const IPV6: &str = "net/ipv6/conf/all/forwarding";
/// `RTPROT_RA` (linux/rtnetlink.h): the route comes from a router advertisement.
const FROM_ROUTER: u8 = 9;
/// `RTPROT_KERNEL`.
const FROM_KERNEL: u8 = 2;
/// linux/netconf.h; this index stands for the setting of all interfaces.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: u32 = u32::MAX;
/// Bytes of `struct netconfmsg`, padded.
const NETCONF: usize = 4;

impl Netlink {
    /// Makes the host forward packets of `family`, unless it does.
    ///
    /// A host that forwards IPv6 ignores router advertisements, unless accept_ra is 2, and drops
    /// the default route that it has from one; other routes, and addresses, expire. The node
    /// would lose IPv6 when its first IPv6 pod starts. So, before forwarding is switched on,
    /// accept_ra is raised from 1 to 2 on the interfaces that have routes or addresses from a
    /// router.
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

    /// Checks whether [`Netlink::enable_forwarding`] would succeed, and changes nothing.
    ///
    /// # Errors
    /// As [`Netlink::enable_forwarding`].
    pub fn may_enable_forwarding(&self, family: Family) -> Result<(), Error> {
        if self.forwards(family) == Some(true) {
            return Ok(());
        }
        sysctl::may_write(match family {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        })
    }

    /// Whether the host forwards, if the kernel reports it: `ip netconf show dev all`. To open the
    /// file of the setting takes longer the more namespaces there are.
    fn forwards(&self, family: Family) -> Option<bool> {
        let family = u8::from(family.code());
        let all = Attributes::<Route>::new().u32(NETCONFA_IFINDEX, NETCONFA_IFINDEX_ALL);
        let body = [&[family, 0, 0, 0], all.as_bytes()].concat();
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
            let accepts = link.accept_ra == Some(1);
            if accepts && (link.heard_router || learned.contains(&link.index)) {
                let accept_ra = sysctl::interface_key("ipv6", &link.name, "accept_ra");
                match sysctl::write(&accept_ra, "2") {
                    // The link was deleted meanwhile.
                    Err(error) if error.is_not_found() => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// The links with routes or addresses from router advertisements. Not every router is a default
    /// router: if its lifetime is 0, it announces prefixes and routes only.
    fn learned_from_routers(&self) -> Result<BTreeSet<u32>, Error> {
        let routes = self.list_routes(RouteFilter {
            family: Family::V6,
            oif: None,
            // The route may be in the table of a vrf.
            table: None,
        })?;
        let learned = routes.iter().filter(|it| match it.protocol {
            FROM_ROUTER => true,
            // The route to a prefix on the link.
            FROM_KERNEL => it.expires,
            _ => false,
        });
        let mut links: BTreeSet<u32> = learned.filter_map(|it| it.oif).collect();
        let request = addresses_of(Family::V6, 0);
        links.extend(self.dump(request, made_from_prefix, || "list addresses".into())?);
        Ok(links)
    }
}

/// The link of an address that the kernel derived from the prefix of a router advertisement.
fn made_from_prefix(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let made = message.attributes.iter().any(|it| match it {
        // Temporary addresses are derived from it (RFC 8981), or it is one.
        AddressAttribute::Flags(flags) => {
            flags.intersects(AddressFlags::Managetempaddr | AddressFlags::Secondary)
        }
        // Since Linux 5.18.
        AddressAttribute::Protocol(protocol) => *protocol == AddressProtocol::RouterAnnouncement,
        _ => false,
    });
    made.then_some(message.header.index)
}
