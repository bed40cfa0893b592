//! Permanent neighbour entries.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use crate::{Family, Mac};

/// A request to add `IP lladdr MAC dev DEVICE nud permanent`.
pub(crate) fn entry(device: u32, ip: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = key(device, ip);
    message.header.state = NeighbourState::Permanent;
    let mac = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
    message.attributes.push(mac);
    message
}

/// A request to delete `IP dev DEVICE`.
pub(crate) fn key(device: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::of(ip).code();
    message.header.ifindex = device;
    message
        .attributes
        .push(NeighbourAttribute::Destination(ip.into()));
    message
}

/// A request for the neighbours of one device: `ip neighbour show dev DEVICE`.
pub(crate) fn request(device: u32, family: Family) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family.code();
    // The kernel ignores the index in the header (neigh_valid_dump_req).
    message.attributes.push(NeighbourAttribute::IfIndex(device));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// A permanent neighbour of `device`. Those that the kernel resolved itself are left out.
pub(crate) fn read(message: RouteNetlinkMessage, device: u32) -> Option<(IpAddr, Mac)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let header = &message.header;
    // A kernel before 4.20 does not filter.
    if header.ifindex != device || header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => mac = Mac::from_slice(&octets),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(v6.into()),
            _ => {}
        }
    }
    Some((ip?, mac?))
}
