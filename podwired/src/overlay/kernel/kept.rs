//! One network of one family: what the kernel is to have for it, and what it has.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use flannel::Subnet;
use ipnetwork::IpNetwork;
use netlink::{
    Desired, Entry, Event, Family, Link, Mac, Netlink, Overlay, Peers, Reconciled, RouteFilter,
    Segment,
};
use overlay::{Device, Mode, Peer, device};
use tokio::sync::mpsc;

use super::{Direct, Id, PERIOD, RETRY, Removed, Report, SPACING, State, Wanted};

/// A network that is kept.
pub struct Kept {
    pub wanted: Wanted,
    /// Changes of peers that have not been made.
    changes: BTreeMap<Subnet, Option<Peer>>,
    /// When everything is compared next.
    pub due: Instant,
    reports: mpsc::UnboundedSender<Report>,
    /// How many peers want each entry: two leases of one node have some in common.
    uses: HashMap<Entry, u32>,
    /// The subnets of the segment, if nodes there are reached directly.
    near: Vec<IpNetwork>,
    /// Where each MAC is.
    vteps: HashMap<Mac, IpAddr>,
    /// The device and its uplink, if the last look at it was a success.
    device: Option<(Overlay, u32)>,
    /// The last report.
    state: Option<State>,
    /// From when on reports of the kernel lead to a look: not sooner after the last one than that
    /// took.
    rested: Instant,
}

/// A device that is there, and the entries that it is to have.
pub struct Ready {
    overlay: Overlay,
    entries: Vec<Entry>,
    /// Whether the device was just made.
    is_new: bool,
    uplink: u32,
    refused: Refused,
}

impl Ready {
    /// What the kernel is to have.
    pub fn desired(&self) -> Desired<'_> {
        Desired {
            overlay: self.overlay,
            entries: &self.entries,
            is_new: self.is_new,
        }
    }
}

/// Entries that are refused, and why.
type Refused = Vec<(Entry, String)>;

impl Kept {
    /// It is due at once.
    pub fn new(wanted: Wanted, reports: mpsc::UnboundedSender<Report>) -> Self {
        let now = Instant::now();
        Self {
            wanted,
            changes: BTreeMap::new(),
            due: now,
            reports,
            uses: HashMap::new(),
            near: Vec::new(),
            vteps: HashMap::new(),
            device: None,
            state: None,
            rested: now,
        }
    }

    /// Takes note of what the kernel reports.
    pub fn hear(&mut self, event: Event) {
        if self.concerns(event) {
            self.due = self.due.min(self.rested);
        }
    }

    fn concerns(&self, event: Event) -> bool {
        let Some((overlay, uplink)) = self.device else {
            // An interface or an address is missing: this may be it.
            return !matches!(event, Event::EntryGone(_) | Event::RouteGone(_));
        };
        match event {
            Event::Link(index) | Event::Address(index) => {
                index == overlay.device || index == uplink
            }
            Event::EntryGone(index) => index == overlay.device,
            Event::RouteGone(index) => {
                let is_direct = self.wanted.direct != Direct::Never;
                index == overlay.device || (index == uplink && is_direct)
            }
            Event::Overrun => true,
        }
    }

    /// Takes note of changes. In mode `l2` they concern the packet filter, too: all is looked at.
    pub fn expect(&mut self, changes: Vec<(Subnet, Option<Peer>)>) {
        self.changes.extend(changes);
        if self.wanted.network.mode == Mode::L2 {
            self.due = Instant::now();
        }
    }

    /// Takes the changes over without making them.
    pub fn take_changes(&mut self) {
        for (subnet, peer) in std::mem::take(&mut self.changes) {
            match peer {
                Some(peer) => self.wanted.peers.insert(subnet, peer),
                None => self.wanted.peers.remove(&subnet),
            };
        }
    }

    /// Makes the device as it is wanted, and finds out which entries it is to have.
    pub fn ensure_device(&mut self, host: &Netlink, device: &Device) -> Result<Ready> {
        let network = &self.wanted.network;
        let uplink = device.uplink.index;
        let mut overlay = match self.wanted.direct {
            Direct::Always => Overlay {
                device: 0,
                neighbours_on: 0,
                learns_peers: false,
                segment: None,
            },
            Direct::Near | Direct::Never => {
                let bridge = match network.mode {
                    // The plugin makes it for the first pod, and attaches the device.
                    Mode::L2 => host.find_link(network.bridge.as_str())?,
                    Mode::L3 => None,
                };
                let link = device.ensure_link(host, network, bridge.as_ref())?;
                match network.mode {
                    Mode::L2 => device.keep_from_plugin(host, &link)?,
                    Mode::L3 => ensure_address(host, &link, self.wanted.address)?,
                }
                // Neighbours on the bridge are not the agent's.
                device::overlay(network, &link, None)
            }
        };
        // Always: there may be routes of an earlier configuration.
        overlay.segment = Some(Segment {
            device: uplink,
            network: self.wanted.subnets,
        });
        self.near = match self.wanted.direct {
            Direct::Near => on_link(host, uplink, Family::of(device.local))?,
            Direct::Always | Direct::Never => Vec::new(),
        };
        let (peers, refused, vteps) = distinct(self.wanted.peers.values());
        let mut uses = HashMap::new();
        for entry in peers.iter().flat_map(|it| self.entries(it)) {
            *uses.entry(entry).or_default() += 1;
        }
        (self.uses, self.vteps) = (uses, vteps);
        Ok(Ready {
            overlay,
            entries: self.uses.keys().copied().collect(),
            is_new: device.is_to_be_made() && self.wanted.direct != Direct::Always,
            uplink,
            refused,
        })
    }

    /// Takes note of what the kernel has now.
    pub fn note(&mut self, device: &Device, ready: Ready, done: Reconciled) -> State {
        self.device = Some((ready.overlay, ready.uplink));
        let mut failed = ready.refused;
        failed.extend(texts(done.failed));
        State {
            local: device.local,
            mtu: match self.wanted.direct {
                Direct::Always => device.uplink.mtu,
                Direct::Near | Direct::Never => device.spec.mtu,
            },
            peers: self.wanted.peers.len(),
            changed: (done.added, done.removed),
            failed,
            took: Duration::ZERO,
        }
    }

    /// Reports the end of a look that began at `start`.
    pub fn looked(&mut self, id: Id, start: Instant, state: Result<State>, removed: &mut Removed) {
        let now = Instant::now();
        self.rested = now + SPACING.max(now - start);
        let is_good = state.as_ref().is_ok_and(|it| it.failed.is_empty());
        self.due = now + if is_good { PERIOD } else { RETRY };
        self.report(id, start, state, removed);
    }

    /// Reports what was done since `start`.
    pub fn report(&mut self, id: Id, start: Instant, state: Result<State>, removed: &mut Removed) {
        let took = start.elapsed();
        let state = state.map(|it| State { took, ..it });
        if state.is_err() {
            self.device = None;
        }
        self.state = state.as_ref().ok().cloned();
        if let (Some((overlay, _)), Some(state)) = (self.device, &self.state) {
            *removed.entry(overlay.device).or_default() += state.changed.1;
        }
        let state = state.map_err(|error| format!("{error:#}"));
        let _ = self.reports.send(Report { id, state });
    }

    /// The kernel's entries for a node.
    fn entries(&self, peer: &Peer) -> Vec<Entry> {
        let is_direct = match self.wanted.direct {
            Direct::Never => false,
            Direct::Near => self.near.iter().any(|it| it.contains(peer.vtep)),
            Direct::Always => true,
        };
        if !is_direct {
            return self.wanted.network.entries_of(std::slice::from_ref(peer));
        }
        let gw = peer.vtep;
        let subnets = peer.subnets.iter();
        subnets.map(|it| Entry::Direct { dst: *it, gw }).collect()
    }

    /// Makes the changes alone; `None` if there is none, or nothing to change.
    pub fn apply_changes(&mut self, kernel: &Peers) -> Option<Result<State>> {
        if self.changes.is_empty() {
            return None;
        }
        let (overlay, _) = self.device?;
        let state = self.state.clone()?;
        let (gone, new, moved) = self.difference();
        Some(self.change(kernel, overlay, state, (&gone, &new), moved))
    }

    /// Takes the changes over. Returns the entries that go and those that come, and whether a MAC
    /// has moved to another node.
    fn difference(&mut self) -> (Vec<Entry>, Vec<Entry>, bool) {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        let mut moved = false;
        for (subnet, peer) in std::mem::take(&mut self.changes) {
            if let Some(peer) = &peer
                && let Some(mac) = peer.mac
            {
                let before = self.vteps.insert(mac, peer.vtep);
                moved |= before.is_some_and(|it| it != peer.vtep);
            }
            let now = peer.as_ref().map(|it| self.entries(it));
            let old = match peer {
                Some(peer) => self.wanted.peers.insert(subnet, peer),
                None => self.wanted.peers.remove(&subnet),
            };
            let old = old.map(|it| self.entries(&it));
            for entry in now.unwrap_or_default() {
                let uses = self.uses.entry(entry).or_default();
                *uses += 1;
                if *uses == 1 {
                    new.push(entry);
                }
            }
            for entry in old.unwrap_or_default() {
                let uses = self.uses.entry(entry).or_insert(1);
                *uses -= 1;
                if *uses == 0 {
                    self.uses.remove(&entry);
                    gone.push(entry);
                }
            }
        }
        // What one lease had may be in the next.
        gone.retain(|it| !self.uses.contains_key(it));
        new.retain(|it| self.uses.contains_key(it));
        (gone, new, moved)
    }

    fn change(
        &mut self,
        kernel: &Peers,
        overlay: Overlay,
        state: State,
        (gone, new): (&[Entry], &[Entry]),
        moved: bool,
    ) -> Result<State> {
        let done = kernel.change(overlay, gone, new)?;
        if moved || !done.failed.is_empty() {
            // Another peer may have the MAC; or the kernel does not have what was thought.
            self.due = Instant::now();
        }
        let mut failed = state.failed;
        failed.extend(texts(done.failed));
        Ok(State {
            peers: self.wanted.peers.len(),
            changed: (done.added, done.removed),
            failed,
            ..state
        })
    }
}

/// The peers, but for those whose MAC another peer has at another address, as machines that were
/// copied have: the kernel has one place for each.
fn distinct<'a>(all: impl Iterator<Item = &'a Peer>) -> (Vec<Peer>, Refused, HashMap<Mac, IpAddr>) {
    let (mut peers, mut refused) = (Vec::new(), Vec::new());
    let mut vteps = HashMap::new();
    for peer in all {
        let Some(mac) = peer.mac else {
            peers.push(peer.clone());
            continue;
        };
        let vtep = *vteps.entry(mac).or_insert(peer.vtep);
        if vtep == peer.vtep {
            peers.push(peer.clone());
            continue;
        }
        let entry = Entry::Forward {
            mac,
            vtep: peer.vtep,
        };
        refused.push((entry, format!("add {entry}: {vtep} has this MAC, too")));
    }
    (peers, refused, vteps)
}

/// The subnets on the link of an interface: `ip route show dev LINK scope link`.
fn on_link(host: &Netlink, index: u32, family: Family) -> Result<Vec<IpNetwork>> {
    let routes = host.list_routes(RouteFilter {
        oif: Some(index),
        ..RouteFilter::main(family)
    })?;
    let here = routes.into_iter().filter(|it| it.gw.is_none());
    Ok(here.map(|it| it.dst).collect())
}

/// Gives the device its address, and no other of that family:
/// `ip address add ADDRESS dev DEVICE`.
fn ensure_address(host: &Netlink, link: &Link, address: IpNetwork) -> Result<()> {
    let present = host.list_addresses(link.index, Some(Family::of(address.ip())))?;
    for other in present.iter().filter(|it| !it.local_scope) {
        if other.address != address {
            host.delete_address(link.index, other.address)?;
        }
    }
    device::ensure_address(host, link, &present, address)
}

fn texts(failed: Vec<(Entry, netlink::Error)>) -> Refused {
    let text = |(entry, error): (Entry, netlink::Error)| (entry, error.to_string());
    failed.into_iter().map(text).collect()
}
