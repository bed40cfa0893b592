//! The peers of a network, and the kernel's entries for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::address::{is_link_local_v6, is_single, network_of};
use cni::faults::{Checks, Faults};
use ipnetwork::IpNetwork;
use netlink::{Entry, FLOOD, Mac, Present};

use crate::conf::PeerKeys;
use crate::fault::fault;
use crate::mac::vtep_mac;
use crate::mode::Mode;

/// Another host of the network (`l3`), or a pod on another host (`l2`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its address in the underlay.
    pub vtep: IpAddr,
    /// In mode `l3` the MAC of its VXLAN device, `None` if it is derived from the address. In mode
    /// `l2` the MAC of the pod, `None` without a pod.
    pub mac: Option<Mac>,
    /// In mode `l3` the subnets of its pods, in mode `l2` the addresses of the pod.
    pub subnets: Vec<IpNetwork>,
}

impl Peer {
    /// Checks the keys of one peer. `place` is its key: `peers[0]`.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(keys: &PeerKeys, mode: Mode, place: &str) -> Result<Self, Faults> {
        let fault = |key: &str, why: String| fault(&format!("{place}.{key}"), why);
        let mut checks = Checks::default();
        let vtep = keys.vtep;
        let vtep = checks.take(vtep.ok_or_else(|| fault("vtep", "missing".to_owned())));
        if let Some(vtep) = vtep.filter(|vtep| !is_of_host(*vtep)) {
            let why = format!("{vtep} cannot be the address of a host");
            checks.add(fault("vtep", why));
        }
        let mac = checks.take(mac(&keys.mac).map_err(|why| fault("mac", why)));
        let subnets: Vec<IpNetwork> = keys.subnet.0.iter().map(|it| network_of(it.0)).collect();
        match mode {
            Mode::L3 if subnets.is_empty() => {
                let why = "missing: in mode l3 a peer is where a subnet is".to_owned();
                checks.add(fault("subnet", why));
            }
            Mode::L3 => {
                for odd in subnets.iter().filter(|it| !is_routed(it.network())) {
                    let why = format!("{odd}: nothing is routed to {}", odd.network());
                    checks.add(fault("subnet", why));
                }
            }
            Mode::L2 => {
                for wide in subnets.iter().filter(|it| !is_single(**it)) {
                    let why = format!("{wide} is no single address: in mode l2 nothing is routed");
                    checks.add(fault("subnet", why));
                }
                if !subnets.is_empty() && mac == Some(None) {
                    let why = "missing: in mode l2 an address needs the MAC of its pod".to_owned();
                    checks.add(fault("mac", why));
                }
            }
        }
        checks.finish(|| {
            Some(Self {
                vtep: vtep?,
                mac: mac?,
                subnets,
            })
        })
    }

    /// Whether this peer has all that `other` specifies.
    pub fn is_meant_by(&self, other: &Self) -> bool {
        self.vtep == other.vtep
            && (other.mac.is_none() || self.mac == other.mac)
            && other.subnets.iter().all(|it| self.subnets.contains(it))
    }
}

/// A MAC that a device can have; `None` for an empty text.
pub(crate) fn mac(text: &str) -> Result<Option<Mac>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    wiring::mac::parse(text).map(Some)
}

/// Whether the address can be the next hop of a route. A subnet's first address stands for the peer.
/// The kernel refuses other addresses, or does not treat them as a next hop.
fn is_routed(ip: IpAddr) -> bool {
    is_of_host(ip) && !is_link_local_v6(ip)
}

/// Whether a host can have the address and be reached there.
pub(crate) fn is_of_host(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || is_broadcast)
}

/// The kernel's entries to reach all of `peers`. With `floods`, each peer receives the frames with
/// an unknown destination, because there is no multicast group.
///
/// - `l3`, as flannel does: a neighbour (the subnet's first address, which stands for the peer), a
///   forwarding entry, and a route for each subnet.
/// - `l2`: a flooding entry for the peer; for a known pod, its host and its addresses.
pub fn entries(mode: Mode, vni: u32, peers: &[Peer], floods: bool) -> Vec<Entry> {
    let mut all = BTreeSet::new();
    for peer in peers {
        let vtep = peer.vtep;
        match mode {
            Mode::L3 => {
                let mac = peer.mac.unwrap_or_else(|| vtep_mac(vni, vtep));
                all.insert(Entry::Forward { mac, vtep });
                for dst in peer.subnets.iter().copied() {
                    let gw = dst.network();
                    all.insert(Entry::Neighbour { ip: gw, mac });
                    all.insert(Entry::Route { dst, gw });
                }
            }
            Mode::L2 => {
                if floods {
                    all.insert(Entry::Forward { mac: FLOOD, vtep });
                }
                let Some(mac) = peer.mac else { continue };
                all.insert(Entry::Forward { mac, vtep });
                all.insert(Entry::Behind { mac });
                let addresses = peer.subnets.iter().map(|it| it.ip());
                all.extend(addresses.map(|ip| Entry::Neighbour { ip, mac }));
            }
        }
    }
    all.into_iter().collect()
}

/// The error that makes all peers of one family unreachable, if the kernel refused all entries of
/// `wanted` that lead to them.
pub fn unreached<'a>(
    wanted: &[Entry],
    failed: &'a [(Entry, netlink::Error)],
) -> Option<&'a netlink::Error> {
    /// Selects entries without which a peer is not reachable, in mode `l3` and `l2`.
    type Way = fn(&Entry) -> bool;
    let ways: [Way; 3] = [
        |it| matches!(it, Entry::Route { dst, .. } if dst.is_ipv4()),
        |it| matches!(it, Entry::Route { dst, .. } if dst.is_ipv6()),
        |it| matches!(it, Entry::Forward { .. }),
    ];
    ways.iter().find_map(|is| {
        let mut refused = failed.iter().filter(|(entry, _)| is(entry));
        let wanted = wanted.iter().filter(|it| is(it)).count();
        let (_, first) = refused.next()?;
        (refused.count() + 1 == wanted).then_some(first)
    })
}

/// The peers that the kernel's entries describe: the inverse of [`entries`]. An incomplete peer is
/// returned as far as it is there.
pub fn peers(mode: Mode, present: &Present) -> Vec<Peer> {
    let mut by_mac: BTreeMap<Mac, Vec<IpNetwork>> = BTreeMap::new();
    let mac_of: BTreeMap<IpAddr, Mac> = present
        .written
        .iter()
        .filter_map(|entry| match entry {
            Entry::Neighbour { ip, mac } => Some((*ip, *mac)),
            _ => None,
        })
        .collect();
    match mode {
        Mode::L3 => {
            for entry in &present.written {
                if let Entry::Route { dst, gw } = entry
                    && let Some(mac) = mac_of.get(gw)
                {
                    by_mac.entry(*mac).or_default().push(*dst);
                }
            }
        }
        Mode::L2 => {
            for (ip, mac) in mac_of {
                by_mac.entry(mac).or_default().push(IpNetwork::from(ip));
            }
        }
    }
    let mut all = BTreeSet::new();
    for entry in &present.written {
        let Entry::Forward { mac, vtep } = *entry else {
            continue;
        };
        let mut subnets = by_mac.get(&mac).cloned().unwrap_or_default();
        subnets.sort_unstable();
        all.insert(Peer {
            vtep,
            mac: Some(mac).filter(|mac| *mac != FLOOD),
            subnets,
        });
    }
    // A flooding entry is not a peer of its own if the host has known pods.
    let named: BTreeSet<IpAddr> = all
        .iter()
        .filter(|it| it.mac.is_some())
        .map(|it| it.vtep)
        .collect();
    all.retain(|it| it.mac.is_some() || !named.contains(&it.vtep));
    all.into_iter().collect()
}

impl fmt::Display for Peer {
    /// `192.0.2.2 02:00:00:00:00:02 10.5.2.0/24`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vtep)?;
        if let Some(mac) = self.mac {
            write!(f, " {mac}")?;
        }
        for subnet in &self.subnets {
            write!(f, " {subnet}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::json;
    use nix::errno::Errno::EINVAL;

    fn peer(mode: Mode, text: &str) -> Result<Peer, String> {
        let keys: PeerKeys = json::read(text).unwrap();
        Peer::new(&keys, mode, "peers[3]").map_err(|faults| faults.first().error.msg.clone())
    }

    fn present(entries: Vec<Entry>) -> Present {
        Present {
            written: entries.into_iter().collect(),
            ..Present::default()
        }
    }

    /// Each line is a mode, a peer, and the fault that it has.
    const FAULTS: &str = r#"
l3 {"mac": ""} => peers[3].vtep: missing
l2 {"vtep": "224.0.0.1"} => peers[3].vtep: 224.0.0.1 cannot be the address of a host
l2 {"vtep": "192.0.2.2", "mac": "z"} => peers[3].mac: address z: invalid MAC address
l2 {"vtep": "192.0.2.2", "mac": "01:00:00:00:00:01"} => peers[3].mac: address 01:00:00:00:00:01: an interface cannot have this MAC address
l3 {"vtep": "192.0.2.2"} => peers[3].subnet: missing: in mode l3 a peer is where a subnet is
l2 {"vtep": "192.0.2.2", "subnet": "10.5.2.0/24"} => peers[3].subnet: 10.5.2.0/24 is no single address: in mode l2 nothing is routed
l2 {"vtep": "192.0.2.2", "subnet": "10.5.2.1/32"} => peers[3].mac: missing: in mode l2 an address needs the MAC of its pod
"#;

    #[test]
    fn faults_name_the_key() {
        for line in FAULTS.trim().lines() {
            let (text, fault) = line.split_once(" => ").unwrap();
            let (mode, text) = text.split_once(' ').unwrap();
            let mode = Mode::parse(mode).unwrap();
            assert_eq!(peer(mode, text).unwrap_err(), fault);
        }
    }

    #[test]
    fn a_routed_peer_is_three_entries_as_flannel_has_them() {
        let text = r#"{"vtep": "192.0.2.2", "mac": "02:00:00:00:00:02", "subnet": "10.5.2.0/24"}"#;
        let peer = peer(Mode::L3, text).unwrap();
        let all = entries(Mode::L3, 1, std::slice::from_ref(&peer), true);
        let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "neighbour 10.5.2.0 lladdr 02:00:00:00:00:02",
                "fdb 02:00:00:00:00:02 dst 192.0.2.2",
                "route 10.5.2.0/24 via 10.5.2.0",
            ]
        );
        assert_eq!(peers(Mode::L3, &present(all)), [peer]);
    }

    #[test]
    fn a_family_in_which_every_peer_failed_is_an_error() {
        let text = r#"{"vtep": "192.0.2.2", "subnet": ["10.5.2.0/24", "fd00:5:2::/64"]}"#;
        let one = peer(Mode::L3, text).unwrap();
        let text = r#"{"vtep": "192.0.2.3", "subnet": ["10.5.3.0/24"]}"#;
        let other = peer(Mode::L3, text).unwrap();
        let all = entries(Mode::L3, 1, &[one, other], true);
        let failing = |text: &str| -> Vec<_> {
            let failed = all.iter().filter(|it| it.to_string().starts_with(text));
            let error =
                |entry: &Entry| (*entry, netlink::Error::new(format!("add {entry}"), EINVAL));
            failed.map(error).collect()
        };
        assert_eq!(unreached(&all, &[]), None);
        assert_eq!(unreached(&all, &failing("route 10.5.2.0/24")), None);
        assert!(unreached(&all, &failing("route fd00:5:2::/64")).is_some());
        assert!(unreached(&all, &failing("route 10")).is_some());
    }

    #[test]
    fn a_peer_of_two_families_has_one_forwarding_entry() {
        let text = r#"{"vtep": "192.0.2.2", "subnet": ["10.5.2.0/24", "fd00:5:2::/64"]}"#;
        let peer = peer(Mode::L3, text).unwrap();
        let all = entries(Mode::L3, 1, std::slice::from_ref(&peer), true);
        assert_eq!(all.len(), 5);
        let shown = &peers(Mode::L3, &present(all))[0];
        assert_eq!(shown.subnets, peer.subnets);
        assert_eq!(shown.mac, Some(vtep_mac(1, peer.vtep)));
    }

    #[test]
    fn a_known_pod_is_where_it_is_and_a_host_without_one_is_flooded_to() {
        let host = peer(Mode::L2, r#"{"vtep": "192.0.2.3"}"#).unwrap();
        let pod = peer(
            Mode::L2,
            r#"{"vtep": "192.0.2.2", "mac": "02:00:00:00:00:07", "subnet": "10.5.0.7/32"}"#,
        )
        .unwrap();
        let all = entries(Mode::L2, 1, &[host.clone(), pod.clone()], true);
        assert_eq!(all.len(), 5);
        assert_eq!(peers(Mode::L2, &present(all)), [pod.clone(), host]);
        let grouped = entries(Mode::L2, 1, &[pod], false);
        let floods = |it: &&Entry| matches!(it, Entry::Forward { mac, .. } if *mac == FLOOD);
        assert_eq!(grouped.iter().filter(floods).count(), 0);
    }
}
