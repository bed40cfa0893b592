//! Gives the kernel exactly the wanted entries for the peers of an overlay: compares them with the
//! existing ones, changes the difference at once, and reads the result.
//!
//! Nothing is remembered between two calls, so changes by an administrator, a crash or another
//! program in between do not matter.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{RouteNetlinkMessage, route::RouteProtocol},
};

use transport::Refusal;

use crate::{
    Error, Mac, Netlink, Present, RouteSpec,
    fdb::{self, FLOOD},
    neighbour,
    present::{OURS, present},
    request::Change,
    route::route_message,
};

/// One entry of the kernel for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// The hardware address of an IP address:
    /// `ip neighbour replace IP lladdr MAC dev … nud permanent`.
    Neighbour {
        /// The IP address.
        ip: IpAddr,
        /// Its hardware address.
        mac: Mac,
    },
    /// The VTEP of a hardware address; [`FLOOD`] stands for all unknown ones:
    /// `bridge fdb append MAC dev … dst VTEP self permanent`.
    Forward {
        /// The hardware address, or [`FLOOD`].
        mac: Mac,
        /// The peer's address in the underlay.
        vtep: IpAddr,
    },
    /// A hardware address behind the device, not behind another port of its bridge:
    /// `bridge fdb replace MAC dev … master static`.
    Behind {
        /// The hardware address.
        mac: Mac,
    },
    /// The route to a subnet: `ip route add DST via GW dev … onlink`.
    Route {
        /// The subnet.
        dst: IpNetwork,
        /// The peer's address inside the overlay.
        gw: IpAddr,
    },
    /// The route to a peer's address inside the overlay: `ip -6 route add IP dev …`. Callers do not
    /// request it: it is added for an IPv6 [`Entry::Route`] if the kernel needs it.
    OnLink {
        /// The peer's address.
        ip: IpAddr,
    },
    /// The route to a subnet behind a host of the same segment, past the overlay:
    /// `ip route add DST via GW dev SEGMENT proto 112`.
    Direct {
        /// The subnet.
        dst: IpNetwork,
        /// The host.
        gw: IpAddr,
    },
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Neighbour { ip, mac } => write!(f, "neighbour {ip} lladdr {mac}"),
            Self::Forward { mac, vtep } => write!(f, "fdb {mac} dst {vtep}"),
            Self::Behind { mac } => write!(f, "fdb {mac} master"),
            Self::Route { dst, gw } => write!(f, "route {dst} via {gw}"),
            Self::OnLink { ip } => write!(f, "route {ip}"),
            Self::Direct { dst, gw } => write!(f, "route {dst} via {gw}, direct"),
        }
    }
}

/// The interface below an overlay. Our routes on it to the overlay's subnets are those of
/// [`Entry::Direct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The index of the interface.
    pub device: u32,
    /// The network that contains the overlay's subnets: other overlays may use the same interface.
    pub network: IpNetwork,
}

/// The devices of an overlay. Entries of other devices are never touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The index of the VXLAN device; 0 without one, where all routes are direct.
    pub device: u32,
    /// The index of the device with the neighbours: the VXLAN device, or the bridge of which that
    /// is a port.
    pub neighbours_on: u32,
    /// Whether peers are also learned from their packets: then learned entries stay, whatever
    /// VTEP they lead to.
    pub learns_peers: bool,
    /// Where direct routes are, if there are any.
    pub segment: Option<Segment>,
}

/// The result of a reconciliation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// How many entries existed already.
    pub kept: usize,
    /// How many were added or changed.
    pub added: usize,
    /// How many were removed.
    pub removed: usize,
    /// The entries that could not be added or removed, and why.
    pub failed: Vec<(Entry, Error)>,
}

/// An overlay, and the entries that its devices are to have.
#[derive(Clone, Copy, Debug)]
pub struct Desired<'a> {
    /// Its devices.
    pub overlay: Overlay,
    /// All of its entries.
    pub entries: &'a [Entry],
    /// Whether the VXLAN device was just made, and has no entries yet.
    pub is_new: bool,
}

/// Reads and changes the entries of overlays in one network namespace.
pub struct Peers {
    netlink: Netlink,
}

impl Peers {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open()?,
        })
    }

    /// The existing entries: `bridge fdb show brport …`, `ip neighbour show dev … nud permanent`,
    /// `ip route show dev …`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn present(&self, overlay: Overlay) -> Result<Present, Error> {
        let all = present(&self.netlink, &[overlay])?;
        Ok(all.into_iter().next().unwrap_or_default())
    }

    /// Adds the entries of `wanted` that are missing on the devices of `overlay`, and removes those
    /// that are not wanted. Entries that are right are not touched, and so traffic to such peers
    /// is not interrupted.
    ///
    /// # Errors
    /// When the kernel cannot be queried. Entries that it refuses are in [`Reconciled::failed`].
    pub fn reconcile(&self, overlay: Overlay, wanted: &[Entry]) -> Result<Reconciled, Error> {
        let desired = Desired {
            overlay,
            entries: wanted,
            is_new: false,
        };
        let all = self.reconcile_all(&[desired])?;
        Ok(all.into_iter().next().unwrap_or_default())
    }

    /// The same for several overlays: what exists is read once for all of them, before the changes
    /// and after.
    ///
    /// # Errors
    /// As [`Peers::reconcile`].
    pub fn reconcile_all(&self, all: &[Desired<'_>]) -> Result<Vec<Reconciled>, Error> {
        let overlays: Vec<Overlay> = all.iter().map(Desired::with_entries).collect();
        let before = present(&self.netlink, &overlays)?;
        let plan = |(it, before): (&Desired<'_>, Present)| {
            Difference::between(&before, it.entries, it.overlay)
        };
        let plans: Vec<Difference> = all.iter().zip(before).map(plan).collect();
        let mut results = Vec::new();
        let mut doubtful = Vec::new();
        for (place, (desired, plan)) in all.iter().zip(&plans).enumerate() {
            let mut errors = HashMap::new();
            self.remove(desired.overlay, &plan.stale, &mut errors)?;
            self.add(desired.overlay, &plan.missing, &mut errors)?;
            let is_certain = plan.is_empty() || desired.is_new && errors.is_empty();
            if !is_certain {
                doubtful.push((place, errors));
            }
            results.push(Reconciled {
                kept: plan.kept,
                added: plan.missing.len(),
                removed: plan.stale.len(),
                failed: Vec::new(),
            });
        }
        let overlays: Vec<Overlay> = doubtful.iter().map(|it| all[it.0].overlay).collect();
        let after = present(&self.netlink, &overlays)?;
        for ((place, errors), after) in doubtful.iter().zip(after) {
            verify(&plans[*place], &after, errors, &mut results[*place]);
        }
        Ok(results)
    }

    /// Changes the entries `before`, which exist, to `after`, without reading the kernel's entries.
    /// The next [`Peers::reconcile`] corrects changes of other programs.
    ///
    /// The cost depends on the number of changes, not on the number of other peers.
    ///
    /// # Errors
    /// The socket fails. Entries that the kernel refuses are in [`Reconciled::failed`].
    pub fn change(
        &self,
        overlay: Overlay,
        before: &[Entry],
        after: &[Entry],
    ) -> Result<Reconciled, Error> {
        let present = Present {
            written: before.iter().copied().collect(),
            ..Present::default()
        };
        let plan = Difference::between(&present, after, overlay);
        let (mut gone, mut failed) = (HashMap::new(), HashMap::new());
        self.remove(overlay, &plan.stale, &mut gone)?;
        self.add(overlay, &plan.missing, &mut failed)?;
        gone.retain(|_, refusal| !matches!(refusal.errno, Errno::ENOENT | Errno::ESRCH));
        let refused = |action: &'static str| {
            move |(entry, refusal): (Entry, Refusal)| {
                (entry, Error::refused(format!("{action} {entry}"), refusal))
            }
        };
        Ok(Reconciled {
            kept: plan.kept,
            added: plan.missing.len() - failed.len(),
            removed: plan.stale.len() - gone.len(),
            failed: gone
                .into_iter()
                .map(refused("remove"))
                .chain(failed.into_iter().map(refused("add")))
                .collect(),
        })
    }

    fn remove(
        &self,
        overlay: Overlay,
        stale: &[Entry],
        errors: &mut HashMap<Entry, Refusal>,
    ) -> Result<(), Error> {
        let changes: Vec<_> = stale.iter().map(|it| removal(overlay, it)).collect();
        let refused = self.netlink.change_all(&changes)?;
        errors.extend(
            refused
                .into_iter()
                .map(|(at, refusal)| (stale[at], refusal)),
        );
        Ok(())
    }

    fn add(
        &self,
        overlay: Overlay,
        missing: &[Entry],
        errors: &mut HashMap<Entry, Refusal>,
    ) -> Result<(), Error> {
        let changes: Vec<_> = missing.iter().map(|it| addition(overlay, it)).collect();
        let mut covered = Vec::new();
        for (index, refusal) in self.netlink.change_all(&changes)? {
            let entry = missing[index];
            match on_link(&entry) {
                Some(on_link) if refusal.errno == Errno::EINVAL => covered.push((on_link, entry)),
                _ => drop(errors.insert(entry, refusal)),
            }
        }
        self.add_covered(overlay, &covered, errors)
    }

    /// Adds routes again, after routes to their next hops: the kernel refuses an IPv6 next hop,
    /// even with `onlink`, if a route other than the default route leads it to another device
    /// (`ip6_route_check_nh_onlink` in net/ipv6/route.c).
    fn add_covered(
        &self,
        overlay: Overlay,
        covered: &[(Entry, Entry)],
        errors: &mut HashMap<Entry, Refusal>,
    ) -> Result<(), Error> {
        let entries: Vec<_> = covered
            .iter()
            .flat_map(|(first, then)| [first, then])
            .collect();
        let changes: Vec<_> = entries.iter().map(|it| addition(overlay, it)).collect();
        let refused = self.netlink.change_all(&changes)?;
        errors.extend(
            refused
                .into_iter()
                .map(|(at, refusal)| (*entries[at], refusal)),
        );
        Ok(())
    }
}

impl Desired<'_> {
    /// The devices that may have entries already.
    fn with_entries(&self) -> Overlay {
        if self.is_new {
            Overlay {
                device: 0,
                neighbours_on: 0,
                ..self.overlay
            }
        } else {
            self.overlay
        }
    }
}

/// The result is what exists now: an addition of an entry that another program has added
/// meanwhile, or a removal of one that was gone, has not failed.
fn verify(
    plan: &Difference,
    after: &Present,
    errors: &HashMap<Entry, Refusal>,
    done: &mut Reconciled,
) {
    let mut fail = |entry: &Entry, action: &str, otherwise: Errno| {
        let refusal = errors.get(entry).cloned().unwrap_or(otherwise.into());
        let error = Error::refused(format!("{action} {entry}"), refusal);
        done.failed.push((*entry, error));
    };
    let is_there = |it: &&Entry| after.written.contains(it) || after.others.contains(it);
    let (added, lacking): (Vec<&Entry>, Vec<&Entry>) = plan.missing.iter().partition(is_there);
    let is_left = |it: &&Entry| after.written.contains(it);
    let (left, removed): (Vec<&Entry>, Vec<&Entry>) = plan.stale.iter().partition(is_left);
    lacking.iter().for_each(|it| fail(it, "add", Errno::ENOENT));
    left.iter().for_each(|it| fail(it, "remove", Errno::EEXIST));
    (done.added, done.removed) = (added.len(), removed.len());
}

/// The entries to change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    missing: Vec<Entry>,
    stale: Vec<Entry>,
    kept: usize,
}

impl Difference {
    fn between(present: &Present, wanted: &[Entry], overlay: Overlay) -> Self {
        let wanted_set: HashSet<&Entry> = wanted.iter().collect();
        let mut missing: Vec<Entry> = wanted_set
            .iter()
            .filter(|entry| !present.written.contains(entry) && !present.others.contains(entry))
            .map(|entry| **entry)
            .collect();
        // Neighbours first and routes last: no packet is sent to a peer whose entries are
        // incomplete.
        missing.sort_unstable();
        // An entry that only changes is replaced, so that it is never absent.
        let replaced: HashSet<Key> = missing.iter().filter_map(Key::of).collect();
        let next_hops: HashSet<Entry> = wanted.iter().filter_map(on_link).collect();
        let mut stale: Vec<Entry> = present
            .written
            .iter()
            .filter(|entry| !wanted_set.contains(entry) && !next_hops.contains(entry))
            .filter(|entry| Key::of(entry).is_none_or(|key| !replaced.contains(&key)))
            .copied()
            .collect();
        if !overlay.learns_peers {
            stale.extend(learned_from_others(present, wanted));
        }
        // In reverse order.
        stale.sort_unstable_by(|one, other| other.cmp(one));
        Self {
            kept: wanted_set.len() - missing.len(),
            missing,
            stale,
        }
    }

    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.stale.is_empty()
    }
}

/// Learned entries that lead to a VTEP that is not a peer any more: until they expire (five
/// minutes), frames would be sent there.
fn learned_from_others<'a>(
    present: &'a Present,
    wanted: &'a [Entry],
) -> impl Iterator<Item = Entry> + 'a {
    let vteps: HashSet<IpAddr> = wanted
        .iter()
        .filter_map(|entry| match entry {
            Entry::Forward { vtep, .. } => Some(*vtep),
            _ => None,
        })
        .collect();
    let learned = present.learned.iter().copied();
    learned.filter(move |entry| match entry {
        Entry::Forward { vtep, .. } => !vteps.contains(vtep),
        _ => false,
    })
}

/// A key for which only one entry can exist, so that a new entry replaces the old one.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Neighbour(IpAddr),
    Forward(Mac),
}

impl Key {
    fn of(entry: &Entry) -> Option<Self> {
        match entry {
            Entry::Neighbour { ip, .. } => Some(Self::Neighbour(*ip)),
            Entry::Forward { mac: FLOOD, .. } => None,
            Entry::Forward { mac, .. } => Some(Self::Forward(*mac)),
            // A foreign route to the same subnet must not be replaced.
            Entry::Behind { .. }
            | Entry::Route { .. }
            | Entry::OnLink { .. }
            | Entry::Direct { .. } => None,
        }
    }
}

fn addition(overlay: Overlay, entry: &Entry) -> Change {
    let device = overlay.device;
    let neighbour = RouteNetlinkMessage::NewNeighbour;
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    match *entry {
        Entry::Neighbour { ip, mac } => (
            neighbour(neighbour::entry(overlay.neighbours_on, ip, mac)),
            replace,
        ),
        // There is one for each peer.
        Entry::Forward { mac: FLOOD, vtep } => (
            neighbour(fdb::device_entry(device, FLOOD, vtep)),
            NLM_F_CREATE | NLM_F_APPEND,
        ),
        Entry::Forward { mac, vtep } => (neighbour(fdb::device_entry(device, mac, vtep)), replace),
        Entry::Behind { mac } => (neighbour(fdb::bridge_entry(device, mac)), replace),
        Entry::Route { dst, gw } => (
            RouteNetlinkMessage::NewRoute(route_message(device, &route(dst, gw))),
            // A foreign route to the same subnet stays.
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Entry::OnLink { ip } => (
            RouteNetlinkMessage::NewRoute(route_message(device, &RouteSpec::to(ip.into()))),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Entry::Direct { dst, gw } => {
            let mut message = route_message(segment(overlay), &direct(dst, gw));
            message.header.protocol = RouteProtocol::from(OURS);
            let message = RouteNetlinkMessage::NewRoute(message);
            (message, NLM_F_CREATE | NLM_F_EXCL)
        }
    }
}

/// The interface of direct routes. The kernel refuses the index 0.
fn segment(overlay: Overlay) -> u32 {
    overlay.segment.map_or(0, |it| it.device)
}

fn direct(dst: IpNetwork, gw: IpAddr) -> RouteSpec {
    RouteSpec {
        gw: Some(gw),
        ..RouteSpec::to(dst)
    }
}

fn removal(overlay: Overlay, entry: &Entry) -> Change {
    let device = overlay.device;
    let neighbour = RouteNetlinkMessage::DelNeighbour;
    let message = match *entry {
        Entry::Neighbour { ip, .. } => neighbour(neighbour::key(overlay.neighbours_on, ip)),
        Entry::Forward { mac, vtep } => neighbour(fdb::device_entry(device, mac, vtep)),
        Entry::Behind { mac } => neighbour(fdb::bridge_entry(device, mac)),
        Entry::Route { dst, gw } => route_removal(device, &route(dst, gw)),
        Entry::OnLink { ip } => route_removal(device, &RouteSpec::to(ip.into())),
        Entry::Direct { dst, gw } => route_removal(segment(overlay), &direct(dst, gw)),
    };
    (message, 0)
}

fn route_removal(device: u32, route: &RouteSpec) -> RouteNetlinkMessage {
    let mut message = route_message(device, route);
    // Whatever its origin.
    message.header.protocol = RouteProtocol::Unspec;
    RouteNetlinkMessage::DelRoute(message)
}

/// The entry that an IPv6 route may need first.
fn on_link(entry: &Entry) -> Option<Entry> {
    match *entry {
        Entry::Route { gw, .. } if gw.is_ipv6() => Some(Entry::OnLink { ip: gw }),
        _ => None,
    }
}

fn route(dst: IpNetwork, gw: IpAddr) -> RouteSpec {
    RouteSpec {
        gw: Some(gw),
        onlink: true,
        ..RouteSpec::to(dst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLAY: Overlay = Overlay {
        device: 7,
        neighbours_on: 7,
        learns_peers: false,
        segment: None,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn peer(number: u8, mac: Mac) -> [Entry; 3] {
        let base = ip(&format!("10.5.{number}.0"));
        let vtep = ip(&format!("192.0.2.{number}"));
        let dst = IpNetwork::new(base, 24).unwrap();
        [
            Entry::Neighbour { ip: base, mac },
            Entry::Forward { mac, vtep },
            Entry::Route { dst, gw: base },
        ]
    }

    fn difference(written: &[Entry], wanted: &[Entry]) -> Difference {
        let present = Present {
            written: written.iter().copied().collect(),
            ..Present::default()
        };
        Difference::between(&present, wanted, OVERLAY)
    }

    #[test]
    fn equal_entries_need_no_change() {
        let all = [peer(1, mac(1)), peer(2, mac(2))].concat();
        let same = difference(&all, &all);
        assert!(same.is_empty());
        assert_eq!(same.kept, 6);
    }

    #[test]
    fn neighbours_are_added_first_and_removed_last() {
        let all = [peer(2, mac(2)), peer(1, mac(1))].concat();
        let added = difference(&[], &all).missing;
        assert!(matches!(added[0], Entry::Neighbour { .. }));
        assert!(matches!(added[5], Entry::Route { .. }));
        let removed = difference(&all, &[]).stale;
        assert!(matches!(removed[0], Entry::Route { .. }));
        assert!(matches!(removed[5], Entry::Neighbour { .. }));
    }

    #[test]
    fn another_mac_replaces_the_neighbour_and_removes_the_old_entry() {
        let (before, after) = (peer(1, mac(1)), peer(1, mac(9)));
        let change = difference(&before, &after);
        assert_eq!(change.missing, after[..2]);
        // The neighbour is replaced; the route is as it was.
        assert_eq!(change.stale, before[1..2]);
        assert_eq!(change.kept, 1);
    }

    #[test]
    fn each_peer_has_a_flood_entry() {
        let flood = |vtep| Entry::Forward {
            mac: FLOOD,
            vtep: ip(vtep),
        };
        let change = difference(
            &[flood("192.0.2.1"), flood("192.0.2.2")],
            &[flood("192.0.2.2"), flood("192.0.2.3")],
        );
        assert_eq!(change.missing, [flood("192.0.2.3")]);
        assert_eq!(change.stale, [flood("192.0.2.1")]);
    }

    #[test]
    fn a_direct_route_of_another_program_is_enough() {
        let entry = |last: u8| Entry::Direct {
            dst: IpNetwork::new(ip(&format!("10.5.{last}.0")), 24).unwrap(),
            gw: ip("192.0.2.2"),
        };
        let present = Present {
            written: [entry(1)].into(),
            others: [entry(2), entry(3)].into(),
            ..Present::default()
        };
        let change = Difference::between(&present, &[entry(2), entry(4)], OVERLAY);
        assert_eq!(
            (change.missing, change.stale),
            (vec![entry(4)], vec![entry(1)])
        );
    }

    #[test]
    fn entries_learned_from_a_peer_go_with_it() {
        let learned = |vtep| Entry::Forward {
            mac: mac(7),
            vtep: ip(vtep),
        };
        let present = Present {
            learned: [learned("192.0.2.1"), learned("192.0.2.2")].into(),
            ..Present::default()
        };
        let wanted = [Entry::Forward {
            mac: FLOOD,
            vtep: ip("192.0.2.2"),
        }];
        let change = Difference::between(&present, &wanted, OVERLAY);
        assert_eq!(change.stale, [learned("192.0.2.1")]);
        let learning = Overlay {
            learns_peers: true,
            ..OVERLAY
        };
        assert!(
            Difference::between(&present, &wanted, learning)
                .stale
                .is_empty()
        );
    }
}
