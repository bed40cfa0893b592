//! The kernel's entries for the peers of overlays. For one overlay, only the entries of its device
//! are requested. For several, all entries are read once: the kernel goes through all of them in
//! either case.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::{
    Entry, Error, Family, Mac, Netlink, Overlay, Route, RouteFilter, Segment,
    fdb::{self, Listed, Table},
    neighbour,
};

/// The entries on an overlay's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Entries that a program wrote.
    pub written: HashSet<Entry>,
    /// Forwarding entries that the device has learned from received packets.
    pub learned: HashSet<Entry>,
    /// Direct routes of other programs, such as flanneld, which have the same effect as ours.
    pub others: HashSet<Entry>,
}

/// The origin of our routes on an interface that is not ours. No program in /etc/iproute2/rt_protos has
/// it.
pub(crate) const OURS: u8 = 112;
/// `RTPROT_BOOT` and `RTPROT_STATIC` (linux/rtnetlink.h): the origins that programs set, among them
/// ours and flannel.
const BY_PROGRAMS: [u8; 2] = [3, 4];
/// The prefix length of an IPv6 host.
const ALL_BITS: u8 = 128;

/// The entries of each of `overlays`: `bridge fdb show brport …`, `ip neighbour show dev … nud
/// permanent`, `ip route show dev …`.
///
/// # Errors
/// When the kernel cannot be queried.
pub(crate) fn present(netlink: &Netlink, overlays: &[Overlay]) -> Result<Vec<Present>, Error> {
    let mut all = vec![Present::default(); overlays.len()];
    read_direct(netlink, overlays, &mut all)?;
    let devices = Places::new(overlays.iter().map(|it| it.device));
    if devices.0.is_empty() {
        return Ok(all);
    }
    let with_neighbours = Places::new(overlays.iter().map(|it| it.neighbours_on));
    for listed in list_forwarding(netlink, devices.only())? {
        for place in devices.of(listed.device) {
            note_forwarding(&mut all[*place], &listed);
        }
    }
    for family in [Family::V4, Family::V6] {
        for (device, ip, mac) in list_neighbours(netlink, with_neighbours.only(), family)? {
            for place in with_neighbours.of(device) {
                all[*place].written.insert(Entry::Neighbour { ip, mac });
            }
        }
        let routes = netlink.list_routes(RouteFilter {
            oif: Some(devices.only()).filter(|it| *it != 0),
            ..RouteFilter::main(family)
        })?;
        for route in routes {
            for place in devices.of(route.oif.unwrap_or_default()) {
                all[*place].written.extend(entry_of(&route));
            }
        }
    }
    Ok(all)
}

/// The overlays by the index of their device. 0 is no device.
struct Places(HashMap<u32, Vec<usize>>);

impl Places {
    fn new(devices: impl Iterator<Item = u32>) -> Self {
        let mut places: HashMap<u32, Vec<usize>> = HashMap::new();
        for (place, device) in devices.enumerate().filter(|(_, it)| *it != 0) {
            places.entry(device).or_default().push(place);
        }
        Self(places)
    }

    /// The only device; 0 if there are others.
    fn only(&self) -> u32 {
        let mut devices = self.0.keys();
        match (devices.next(), devices.next()) {
            (Some(only), None) => *only,
            _ => 0,
        }
    }

    fn of(&self, device: u32) -> &[usize] {
        self.0.get(&device).map(Vec::as_slice).unwrap_or_default()
    }
}

fn list_forwarding(netlink: &Netlink, device: u32) -> Result<Vec<Listed>, Error> {
    let read = |message| fdb::read(message, device);
    let listed = netlink.dump(fdb::request(device), read, || {
        format!("list forwarding entries of {}", on(netlink, device))
    });
    match listed {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => other,
    }
}

fn note_forwarding(present: &mut Present, listed: &Listed) {
    let mac = listed.mac;
    let entry = match (listed.table, listed.vtep) {
        (Table::Bridge, _) => Entry::Behind { mac },
        // The multicast group that the device itself uses.
        (Table::Device, Some(vtep)) if vtep.is_multicast() => return,
        (Table::Device, Some(vtep)) => Entry::Forward { mac, vtep },
        (Table::Device, None) => return,
    };
    match (listed.written, listed.table) {
        (true, _) => present.written.insert(entry),
        (false, Table::Device) => present.learned.insert(entry),
        (false, Table::Bridge) => return,
    };
}

fn list_neighbours(
    netlink: &Netlink,
    device: u32,
    family: Family,
) -> Result<Vec<(u32, IpAddr, Mac)>, Error> {
    let read = |message| neighbour::read(message, device);
    netlink.dump(neighbour::request(device, family), read, || {
        format!("list neighbours of {}", on(netlink, device))
    })
}

fn on(netlink: &Netlink, device: u32) -> String {
    match device {
        0 => "all links".to_owned(),
        device => netlink.name_of(device),
    }
}

/// Reads the routes to subnets of the overlays through hosts of their segments.
fn read_direct(netlink: &Netlink, overlays: &[Overlay], all: &mut [Present]) -> Result<(), Error> {
    let family = |it: &Segment| Family::of(it.network.ip());
    let segments = overlays.iter().filter_map(|it| it.segment);
    let segments: HashSet<_> = segments.map(|it| (it.device, family(&it))).collect();
    for (device, of_family) in segments {
        let routes = netlink.list_routes(RouteFilter {
            oif: Some(device),
            ..RouteFilter::main(of_family)
        })?;
        for (overlay, present) in overlays.iter().zip(&mut *all) {
            let is_here = |it: &Segment| (it.device, family(it)) == (device, of_family);
            if let Some(segment) = overlay.segment.filter(is_here) {
                note_direct(present, segment, &routes);
            }
        }
    }
    Ok(())
}

fn note_direct(present: &mut Present, segment: Segment, routes: &[Route]) {
    for route in routes {
        let Some(gw) = route
            .gw
            .filter(|_| segment.network.contains(route.dst.ip()))
        else {
            continue;
        };
        let entry = Entry::Direct { dst: route.dst, gw };
        if route.protocol == OURS {
            present.written.insert(entry)
        } else {
            present.others.insert(entry)
        };
    }
}

/// A route through a next hop, or to one, that a program has added; not one that the kernel adds for
/// the device's addresses.
fn entry_of(route: &Route) -> Option<Entry> {
    if !BY_PROGRAMS.contains(&route.protocol) {
        return None;
    }
    let dst = route.dst;
    match route.gw {
        Some(gw) => Some(Entry::Route { dst, gw }),
        None => (dst.prefix() == ALL_BITS).then(|| Entry::OnLink { ip: dst.ip() }),
    }
}
