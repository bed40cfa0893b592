//! IP addresses of a link.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
    },
};

use crate::{Error, Link, Netlink, request::unless_absent};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `ip`.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(crate) fn of_code(code: AddressFamily) -> Option<Self> {
        match code {
            AddressFamily::Inet => Some(Self::V4),
            AddressFamily::Inet6 => Some(Self::V6),
            _ => None,
        }
    }

    pub(crate) fn code(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// An address to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpec {
    /// The address with the length of its prefix.
    pub address: IpNetwork,
    /// IPv6: use it at once, without duplicate address detection, which takes one to two seconds.
    pub nodad: bool,
    /// Add no route to the prefix.
    pub no_prefix_route: bool,
}

impl From<IpNetwork> for AddressSpec {
    /// The address with all options off, as `ip address add ADDRESS`.
    fn from(address: IpNetwork) -> Self {
        Self {
            address,
            nodad: false,
            no_prefix_route: false,
        }
    }
}

/// An address that a link has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The index of its link.
    pub index: u32,
    /// The address with the length of its prefix.
    pub address: IpNetwork,
    /// Whether it is not usable yet: duplicate detection is running.
    pub tentative: bool,
    /// Whether it is not usable because another host has it.
    pub dad_failed: bool,
    /// Whether its scope is not global but this link (fe80::/10, 169.254.0.0/16) or this host
    /// (127.0.0.1).
    pub local_scope: bool,
}

impl Netlink {
    /// Adds an address: `ip address add ADDRESS dev LINK [nodad]`, for IPv4 with
    /// the broadcast address that `brd +` gives (prefixes shorter than /31).
    ///
    /// # Errors
    /// `EEXIST` when the link has it; `EACCES` when IPv6 is disabled on the link.
    pub fn add_address(&self, index: u32, spec: &AddressSpec) -> Result<(), Error> {
        let mut message = address_message(index, spec.address);
        let broadcast = broadcast(spec.address).map(AddressAttribute::Broadcast);
        message.attributes.extend(broadcast);
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, spec.nodad);
        flags.set(AddressFlags::Noprefixroute, spec.no_prefix_route);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add address {} to {}", spec.address, self.name_of(index))
        })
    }

    /// The same for a known link. The error mentions that IPv6 is disabled, if it is.
    ///
    /// # Errors
    /// As [`Netlink::add_address`].
    pub fn add_address_to(&self, link: &Link, spec: &AddressSpec) -> Result<(), Error> {
        let name = &link.name;
        self.add_address(link.index, spec).map_err(|error| {
            let mut op = format!("add address {} to {name:?}", spec.address);
            if error.errno() == Errno::EACCES && spec.address.is_ipv6() {
                op.push_str(&format!(", where net.ipv6.conf.{name}.disable_ipv6 is 1"));
            }
            error.about(op)
        })
    }

    /// Removes an address, which may be absent: `ip address del ADDRESS dev LINK`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_address(&self, index: u32, address: IpNetwork) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelAddress(address_message(index, address));
        let deleted = self.change(request, 0, || {
            format!("delete address {address} of {}", self.name_of(index))
        });
        unless_absent(deleted)
    }

    /// The addresses of a link, of one family or of both (IPv4 first):
    /// `ip [-4|-6] address show dev LINK`.
    ///
    /// # Errors
    /// When the kernel cannot be queried; a link that is gone has no addresses.
    pub fn list_addresses(
        &self,
        index: u32,
        family: Option<Family>,
    ) -> Result<Vec<Address>, Error> {
        let families = match family {
            None => vec![Family::V4, Family::V6],
            Some(family) => vec![family],
        };
        let mut addresses = Vec::new();
        // A kernel before 4.20 does not filter.
        let address = |message| read_address(message).filter(|it| it.index == index);
        for family in families {
            match self.dump(addresses_of(family, index), address, || {
                format!("list addresses of {}", self.name_of(index))
            }) {
                Err(error) if error.is_not_found() => {}
                listed => addresses.extend(listed?),
            }
        }
        Ok(addresses)
    }

    /// The global addresses of a family with the indexes of their links, of all links in one
    /// request: `ip -4|-6 address show scope global`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_all_addresses(&self, family: Family) -> Result<Vec<(u32, IpNetwork)>, Error> {
        let address = |message| {
            let address = read_address(message).filter(|it| !it.local_scope)?;
            Some((address.index, address.address))
        };
        self.dump(addresses_of(family, 0), address, || "list addresses".into())
    }

    /// The addresses of all links, whatever their scope, IPv4 first: `ip address show`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_every_address(&self) -> Result<Vec<Address>, Error> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let op = || "list addresses".into();
            all.extend(self.dump(addresses_of(family, 0), read_address, op)?);
        }
        Ok(all)
    }
}

/// A request for the addresses of the link with `index`, or of all links if that is 0.
pub(crate) fn addresses_of(family: Family, index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family.code();
    message.header.index = index;
    RouteNetlinkMessage::GetAddress(message)
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::of(address.ip()).code();
    message.header.prefix_len = address.prefix();
    message.header.index = index;
    let attributes = [AddressAttribute::Local, AddressAttribute::Address];
    message.attributes = attributes.map(|it| it(address.ip())).into();
    message
}

/// The broadcast address of a network, which the kernel does not set by itself. /31 (a link between
/// two hosts, RFC 3021) and /32 have none.
fn broadcast(address: IpNetwork) -> Option<Ipv4Addr> {
    match address {
        IpNetwork::V4(v4) if v4.prefix() < 31 => Some(v4.broadcast()),
        _ => None,
    }
}

pub(crate) fn read_address(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let (mut ip, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => ip = Some(address),
            AddressAttribute::Address(address) => peer = Some(address),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer's on a point-to-point link; IPv6 has no other.
    let address = IpNetwork::new(ip.or(peer)?, message.header.prefix_len).ok()?;
    Some(Address {
        index: message.header.index,
        address,
        tentative: flags.contains(AddressFlags::Tentative),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
        local_scope: u8::from(message.header.scope) != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_with_room_have_a_broadcast_address() {
        let of = |text: &str| broadcast(text.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(of("10.1.2.3/24").as_deref(), Some("10.1.2.255"));
        assert_eq!(of("10.1.2.3/30").as_deref(), Some("10.1.2.3"));
        assert_eq!(of("10.1.2.3/0").as_deref(), Some("255.255.255.255"));
        assert_eq!(of("10.1.2.3/31"), None);
        assert_eq!(of("10.1.2.3/32"), None);
    }
}
