//! Forwarding entries of a VXLAN device, and of its bridge.

use std::net::IpAddr;

use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
};

use crate::{Error, Mac, Netlink, request::decode};

/// The hardware address of flood entries: they are for broadcast, multicast and unknown addresses.
pub const FLOOD: Mac = Mac([0; 6]);

/// The table of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// The table of the VXLAN device: which VTEP has the address (`self`).
    Device,
    /// The table of the bridge: which port has the address (`master`).
    Bridge,
}

/// An entry as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The index of the port.
    pub device: u32,
    pub table: Table,
    pub mac: Mac,
    /// The VTEP; only in the table of the device.
    pub vtep: Option<IpAddr>,
    /// Whether a program wrote it. Others were learned, or are a device's own address.
    pub written: bool,
}

/// A request to add or delete `MAC dev DEVICE dst VTEP self permanent`.
pub(crate) fn device_entry(device: u32, mac: Mac, vtep: IpAddr) -> NeighbourMessage {
    let octets = match vtep {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut message = entry(device, mac);
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    let vtep = NeighbourAddress::Other(octets);
    message
        .attributes
        .push(NeighbourAttribute::Destination(vtep));
    message
}

/// A request to add or delete `MAC dev DEVICE master static`.
pub(crate) fn bridge_entry(device: u32, mac: Mac) -> NeighbourMessage {
    let mut message = entry(device, mac);
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message
}

fn entry(device: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    let mac = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
    message.attributes.push(mac);
    message
}

/// The entry of a bridge for a hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The index of the port for frames to it, or that of the bridge itself.
    pub port: u32,
    /// Whether a program wrote it, or it is the port's own address; otherwise it was learned, and
    /// expires.
    pub fixed: bool,
}

/// An entry of a VXLAN device: frames to `mac` go to the VTEP at `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vtep {
    /// The peer's address in the underlay.
    pub address: IpAddr,
    /// The hardware address behind it; [`FLOOD`] stands for all unknown ones.
    pub mac: Mac,
    /// Whether a program wrote it; otherwise it was learned, and expires.
    pub written: bool,
}

impl Netlink {
    /// The entries of a VXLAN device that lead to a peer: `bridge fdb show dev DEVICE`, those with
    /// `dst`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn list_vteps(&self, device: u32) -> Result<Vec<Vtep>, Error> {
        let vtep = |message| {
            let listed = read(message, device).filter(|it| it.table == Table::Device)?;
            Some(Vtep {
                address: listed.vtep?,
                mac: listed.mac,
                written: listed.written,
            })
        };
        let op = || format!("list the peers of link {device}");
        let mut all = self.dump(request(device), vtep, op)?;
        all.sort();
        Ok(all)
    }

    /// The entry of the bridge with index `bridge` for `mac`, if there is one: `bridge fdb get MAC
    /// br BRIDGE`. Kernels before 5.0 report none.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn find_fdb_entry(&self, bridge: u32, mac: Mac) -> Result<Option<FdbEntry>, Error> {
        let mut message = entry(0, mac);
        let master = NeighbourAttribute::Controller(bridge);
        message.attributes.push(master);
        let op = || format!("find {mac} in the table of a bridge");
        let answer = match self.get(RouteNetlinkMessage::GetNeighbour(message), decode, op) {
            Err(error) if error.is_not_found() || error.is_unsupported() => return Ok(None),
            other => other?,
        };
        let Some(RouteNetlinkMessage::NewNeighbour(found)) = answer else {
            return Ok(None);
        };
        let fixed = u16::from(NeighbourState::Permanent) | u16::from(NeighbourState::Noarp);
        Ok(Some(FdbEntry {
            port: found.header.ifindex,
            fixed: u16::from(found.header.state) & fixed != 0,
        }))
    }
}

/// A request for the entries of one port, in both tables: `bridge fdb show brport DEVICE`; with 0 for
/// those of all ports.
pub(crate) fn request(device: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    RouteNetlinkMessage::GetNeighbour(message)
}

pub(crate) fn read(message: RouteNetlinkMessage, device: u32) -> Option<Listed> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    // A kernel before 4.20 does not filter.
    let port = message.header.ifindex;
    if device != 0 && port != device {
        return None;
    }
    let (mut mac, mut vtep, mut in_bridge) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => mac = Mac::from_slice(&octets),
            NeighbourAttribute::Destination(address) => vtep = ip(address),
            NeighbourAttribute::Controller(_) => in_bridge = true,
            _ => {}
        }
    }
    let table = if in_bridge {
        Table::Bridge
    } else {
        Table::Device
    };
    let state = u16::from(message.header.state);
    let permanent = state & u16::from(NeighbourState::Permanent) != 0;
    let written = match table {
        // bridge(8) sets more than one bit.
        Table::Device => permanent,
        // A permanent entry is the address of the port itself.
        Table::Bridge => !permanent && state & u16::from(NeighbourState::Noarp) != 0,
    };
    Some(Listed {
        device: port,
        table,
        mac: mac?,
        vtep,
        written,
    })
}

fn ip(address: NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(ip.into()),
        NeighbourAddress::Inet6(ip) => Some(ip.into()),
        NeighbourAddress::Other(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        },
        _ => None,
    }
}
