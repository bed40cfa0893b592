//! Turning the host into a router.
//!
//! These settings are the calling thread's namespace's, which must be the one
//! that the socket is of.

use std::collections::BTreeSet;

use nix::libc;

use crate::{
    Error, Family, Netlink, RouteFilter,
    answer::{Answer, Message, attributes},
    sysctl,
};

const IPV4: &str = "net/ipv4/ip_forward";
const IPV6: &str = "net/ipv6/conf/all/forwarding";
/// `RTPROT_RA` (linux/rtnetlink.h): the route was learned from an advertisement.
const FROM_ROUTER: u8 = 9;
/// linux/netconf.h; the index stands for the setting of all interfaces.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// Bytes of `struct netconfmsg`, filled up.
const NETCONF: usize = 4;

impl Netlink {
    /// Lets the host forward packets of `family`, unless it does.
    ///
    /// A host that forwards IPv6 ignores router advertisements, unless accept_ra
    /// is 2, and drops the default route that it has from one: the node would
    /// lose IPv6 when its first IPv6 pod starts. So, before the switch and only
    /// then, accept_ra is raised from 1 to 2 on the interfaces that such a
    /// route leaves by.
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

    /// Whether the host forwards, where the kernel tells: `ip netconf show dev all`. To open
    /// the setting's file takes the longer the more namespaces there are.
    fn forwards(&self, family: Family) -> Option<bool> {
        let family = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        let mut request = vec![family as u8, 0, 0, 0];
        // An attribute: its length, its type, its value.
        request.extend(8u16.to_ne_bytes());
        request.extend(NETCONFA_IFINDEX.to_ne_bytes());
        request.extend(NETCONFA_IFINDEX_ALL.to_ne_bytes());
        let request = Message::Answer(Answer::new(libc::RTM_GETNETCONF, &request));
        let answer = self.ask(request).ok()?;
        let (_, rest) = answer.parts::<NETCONF>(libc::RTM_NEWNETCONF)?;
        let mut all = attributes(rest);
        let (_, value) = all.find(|(attribute, _)| *attribute == NETCONFA_FORWARDING)?;
        Some(value.iter().any(|byte| *byte != 0))
    }

    fn keep_router_advertisements(&self) -> Result<(), Error> {
        let learned = self
            .list_routes(RouteFilter {
                family: Family::V6,
                oif: None,
                // Such a route may be in the table of a vrf.
                table: None,
            })?
            .into_iter()
            .filter(|route| route.dst.prefix() == 0 && route.protocol == FROM_ROUTER)
            .filter_map(|route| route.oif);
        for index in learned.collect::<BTreeSet<u32>>() {
            // It may have gone since; then it has no route to lose.
            let Some(link) = self.find_link_by_index(index)? else {
                continue;
            };
            let accept_ra = sysctl::interface_key("ipv6", &link.name, "accept_ra");
            if sysctl::read(&accept_ra)? == "1" {
                sysctl::write(&accept_ra, "2")?;
            }
        }
        Ok(())
    }
}
