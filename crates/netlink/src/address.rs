//! IP addresses of a link.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family that `ip` is of.
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
    /// IPv6: use it at once, without asking the link whether somebody else does
    /// (duplicate address detection takes one to two seconds).
    pub nodad: bool,
    /// Add no route to the prefix along with it.
    pub no_prefix_route: bool,
}

impl From<IpNetwork> for AddressSpec {
    /// The address with all options off, as `ip address add ADDRESS` has it.
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
    /// Whether it is not usable yet: detection of duplicates is still running.
    pub tentative: bool,
    /// Whether somebody else has the address, so that it is not usable.
    pub dad_failed: bool,
    /// Whether it is valid on this link only (fe80::/10, 169.254.0.0/16) or in
    /// this host only (127.0.0.1): its scope is not global.
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
        message.attributes.extend(broadcast(spec.address));
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

    /// The same for a link that is known. IPv6 may be disabled there, which is told.
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

    /// Removes an address: `ip address del ADDRESS dev LINK`. That it is absent
    /// is fine.
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
    /// When the kernel cannot be asked; a link that is gone has no addresses.
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
        for family in families {
            addresses.extend(self.dump_addresses(index, family)?);
        }
        Ok(addresses)
    }

    fn dump_addresses(&self, index: u32, family: Family) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.family = family.code();
        message.header.index = index;
        let request = RouteNetlinkMessage::GetAddress(message);
        let address = |message| {
            // A kernel before 4.20 does not filter.
            read_address(message).filter(|it| it.index == index)
        };
        match self.dump(request, address, || {
            format!("list addresses of {}", self.name_of(index))
        }) {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other,
        }
    }
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = Family::of(address.ip()).code();
    message.header.prefix_len = address.prefix();
    message.header.index = index;
    message
        .attributes
        .push(AddressAttribute::Local(address.ip()));
    message
        .attributes
        .push(AddressAttribute::Address(address.ip()));
    message
}

/// The kernel sets no broadcast address by itself for one that a program adds.
fn broadcast(address: IpNetwork) -> Option<AddressAttribute> {
    let IpNetwork::V4(v4) = address else {
        return None;
    };
    broadcast_of(v4).map(AddressAttribute::Broadcast)
}

fn broadcast_of(network: Ipv4Network) -> Option<Ipv4Addr> {
    // /31 is a link between two, /32 a single host: nobody else to reach (RFC 3021).
    (network.prefix() < 31).then(|| network.broadcast())
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
    // IFA_ADDRESS is the peer's on a point-to-point link, and the only one of IPv6.
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
        let of = |text: &str| broadcast_of(text.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(of("10.1.2.3/24").as_deref(), Some("10.1.2.255"));
        assert_eq!(of("10.1.2.3/30").as_deref(), Some("10.1.2.3"));
        assert_eq!(of("10.1.2.3/0").as_deref(), Some("255.255.255.255"));
        assert_eq!(of("10.1.2.3/31"), None);
        assert_eq!(of("10.1.2.3/32"), None);
    }
}
