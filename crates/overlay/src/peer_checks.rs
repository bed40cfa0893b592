//! Contradictions among the peers of a network, and between peers and the node.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use cni::address::is_single;
use cni::faults::{Checks, Fault};
use ipnetwork::IpNetwork;
use netlink::Mac;

use crate::fault::fault;
use crate::mac::vtep_mac;
use crate::mode::Mode;
use crate::peer::Peer;

/// Checks that no MAC, VTEP or subnet occurs twice.
pub(crate) fn check_together(mode: Mode, vni: u32, peers: &[Peer], checks: &mut Checks) {
    let place = |index: usize, key: &str| format!("peers[{index}].{key}");
    let mut macs: HashMap<Mac, (usize, IpAddr)> = HashMap::new();
    let mut vteps: HashMap<IpAddr, (usize, Option<Mac>)> = HashMap::new();
    for (index, peer) in peers.iter().enumerate() {
        let mac = match mode {
            Mode::L3 => Some(peer.mac.unwrap_or_else(|| vtep_mac(vni, peer.vtep))),
            Mode::L2 => peer.mac,
        };
        if let Some(mac) = mac
            && let Some((first, vtep)) = macs.insert(mac, (index, peer.vtep))
            && vtep != peer.vtep
        {
            let why = format!("{mac} is that of peers[{first}], too");
            checks.add(fault(&place(index, "mac"), why));
        }
        if let Some((first, other)) = vteps.insert(peer.vtep, (index, mac)) {
            let twice = mode == Mode::L2 && mac.is_none() && other.is_none();
            if twice || mode == Mode::L3 && mac != other {
                let why = format!("{} is that of peers[{first}], too", peer.vtep);
                checks.add(fault(&place(index, "vtep"), why));
            }
        }
    }
    let distinct = checks.take(check_subnets(peers)).is_some();
    // In mode l2 nothing is routed. Captures can only be found among distinct subnets.
    if distinct && mode == Mode::L3 {
        let needed = peers.iter().map(|peer| Needed {
            ip: peer.vtep,
            what: "which is the vtep of a peer",
        });
        checks.take(check_captures(peers, needed));
    }
}

/// An address that the tunnel or the node itself depends on.
pub(crate) struct Needed {
    pub(crate) ip: IpAddr,
    /// What it is, for error texts: `which is this node`.
    pub(crate) what: &'static str,
}

/// Fails if a peer's subnet contains an address that is `needed`: the node would route it through
/// the tunnel, which would break the tunnel itself, even after DEL. The subnets must not overlap.
pub(crate) fn check_captures(
    peers: &[Peer],
    needed: impl Iterator<Item = Needed>,
) -> Result<(), Fault> {
    let mut subnets: BTreeMap<IpAddr, (IpNetwork, usize)> = BTreeMap::new();
    for (index, peer) in peers.iter().enumerate() {
        subnets.extend(peer.subnets.iter().map(|it| (it.network(), (*it, index))));
    }
    for Needed { ip, what } in needed {
        if let Some((_, (subnet, index))) = subnets.range(..=ip).next_back()
            && subnet.contains(ip)
        {
            let why = format!("{subnet} holds {ip}, {what}");
            return Err(fault(&format!("peers[{index}].subnet"), why));
        }
    }
    Ok(())
}

/// Fails for subnets that overlap: sorted by their first address, such subnets are neighbours.
fn check_subnets(peers: &[Peer]) -> Result<(), Fault> {
    let mut all: BTreeMap<(IpAddr, u8), usize> = BTreeMap::new();
    for (index, peer) in peers.iter().enumerate() {
        for subnet in &peer.subnets {
            if let Some(first) = all.insert((subnet.network(), subnet.prefix()), index) {
                return Err(overlapping(index, *subnet, first, *subnet));
            }
        }
    }
    let sorted: Vec<(IpNetwork, usize)> = all
        .into_iter()
        .filter_map(|((ip, prefix), index)| Some((IpNetwork::new(ip, prefix).ok()?, index)))
        .collect();
    for pair in sorted.windows(2) {
        let [(wide, one), (narrow, other)] = pair else {
            continue;
        };
        if overlap(*wide, *narrow) {
            return Err(if one > other {
                overlapping(*one, *wide, *other, *narrow)
            } else {
                overlapping(*other, *narrow, *one, *wide)
            });
        }
    }
    Ok(())
}

fn overlapping(index: usize, subnet: IpNetwork, first: usize, other: IpNetwork) -> Fault {
    let what = if is_single(subnet) { "is" } else { "overlaps" };
    let why = format!("{subnet} {what} {other} of peers[{first}]");
    fault(&format!("peers[{index}].subnet"), why)
}

pub(crate) fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}
