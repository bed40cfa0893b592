//! Neighbour entries: writes permanent ones, and looks up any.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use crate::{Error, Family, Mac, Netlink, request::decode};

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

fn proxy(device: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = key(device, ip);
    message.header.flags = NeighbourFlags::Proxy;
    message
}

/// A request for the neighbours of one device: `ip neighbour show dev DEVICE`; with 0 for those of all
/// devices.
pub(crate) fn request(device: u32, family: Family) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family.code();
    if device != 0 {
        // The kernel ignores the index in the header (neigh_valid_dump_req).
        message.attributes.push(NeighbourAttribute::IfIndex(device));
    }
    RouteNetlinkMessage::GetNeighbour(message)
}

/// A permanent neighbour of `device`, or of any if that is 0, with the index of its device. Entries
/// that the kernel resolved itself are left out.
pub(crate) fn read(message: RouteNetlinkMessage, device: u32) -> Option<(u32, IpAddr, Mac)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let header = &message.header;
    // A kernel before 4.20 does not filter.
    let is_other = device != 0 && header.ifindex != device;
    if is_other || header.state != NeighbourState::Permanent {
        return None;
    }
    let device = header.ifindex;
    let (mut ip, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => mac = Mac::from_slice(&octets),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(v6.into()),
            _ => {}
        }
    }
    Some((device, ip?, mac?))
}

/// A neighbour as a namespace knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its hardware address, if it is known.
    pub mac: Option<Mac>,
    /// The word of ip(8) for its state: `reachable`, `stale`, `failed`, `incomplete` …
    pub state: &'static str,
}

impl Netlink {
    /// Makes this namespace answer solicitations for `ip` on the link with index `device`: `ip
    /// neighbour replace proxy IP dev DEVICE`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_proxy(&self, device: u32, ip: IpAddr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewNeighbour(proxy(device, ip));
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("answer for {ip}")
        })
    }

    /// Ends these answers for `ip`: `ip neighbour del proxy IP dev DEVICE`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_proxy(&self, device: u32, ip: IpAddr) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelNeighbour(proxy(device, ip));
        match self.change(request, 0, || format!("no longer answer for {ip}")) {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        }
    }

    /// The neighbour `ip` on the link with index `device`: `ip neighbour get IP dev DEVICE`.
    /// Kernels before 5.0 report nothing.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn find_neighbour(&self, device: u32, ip: IpAddr) -> Result<Option<Neighbour>, Error> {
        let request = RouteNetlinkMessage::GetNeighbour(key(device, ip));
        let op = || format!("find the neighbour {ip}");
        let answer = match self.get(request, decode, op) {
            Err(error) if error.is_not_found() || error.is_unsupported() => return Ok(None),
            other => other?,
        };
        let Some(RouteNetlinkMessage::NewNeighbour(found)) = answer else {
            return Ok(None);
        };
        let mac = found.attributes.iter().find_map(|it| match it {
            NeighbourAttribute::LinkLayerAddress(octets) => Mac::from_slice(octets),
            _ => None,
        });
        let state = state_name(found.header.state);
        Ok(Some(Neighbour { mac, state }))
    }
}

fn state_name(state: NeighbourState) -> &'static str {
    match state {
        NeighbourState::Incomplete => "incomplete",
        NeighbourState::Reachable => "reachable",
        NeighbourState::Stale => "stale",
        NeighbourState::Delay => "delay",
        NeighbourState::Probe => "probe",
        NeighbourState::Failed => "failed",
        NeighbourState::Noarp => "noarp",
        NeighbourState::Permanent => "permanent",
        _ => "none",
    }
}
