//! The kernel's side of the networks, on a thread of its own: devices and peers are made as they are
//! wanted, and made so again when something else changes them.
//!
//! A change of peers costs what changes ([`netlink::Peers::change`]). Everything is compared with the
//! kernel ([`netlink::Peers::reconcile`]) when a network is new, when the kernel reports that
//! something was removed, after a failure, and every ten seconds.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel::{Backend, BackendType, Subnet};
use ipnetwork::IpNetwork;
use netlink::{
    AddressSpec, Entry, Family, Link, Mac, Monitor, Netlink, Overlay, Peers, RouteFilter, Seen,
    Segment,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use overlay::{Device, Network, Peer, device};
use tokio::sync::{mpsc, oneshot};

/// How often everything is compared, in case a change was not reported.
const PERIOD: Duration = Duration::from_secs(10);
/// When a failure is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two comparisons, if changes are reported all the time.
const SPACING: Duration = Duration::from_millis(100);

/// A network of one family on this node.
pub type Id = (usize, Family);

/// What the kernel is to have for a network of one family.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The network, with the name of its device.
    pub network: Network,
    /// Which nodes are reached without the device.
    pub direct: Direct,
    /// What the subnets of all nodes are in.
    pub subnets: IpNetwork,
    /// The device's address, which stands for this node.
    pub address: IpNetwork,
    /// The other nodes.
    pub peers: BTreeMap<Subnet, Peer>,
}

/// Which nodes are reached by a route past the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// None.
    Never,
    /// Those on the node's own segment.
    Near,
    /// All: there is no device.
    Always,
}

impl Direct {
    /// What a configuration says.
    pub fn of(backend: &Backend) -> Self {
        match backend.kind {
            BackendType::HostGw => Self::Always,
            BackendType::Vxlan if backend.direct_routing => Self::Near,
            BackendType::Vxlan => Self::Never,
        }
    }
}

/// The name of the device of a family: flanneld's, so that a node can change from one to the other
/// under running pods.
pub fn device_name(family: Family, vni: u32) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

/// What has become of it.
#[derive(Debug)]
pub struct Report {
    /// Which network.
    pub id: Id,
    /// How it is; an error if nothing could be done.
    pub state: Result<State, String>,
}

/// How a network of one family is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The address in the underlay.
    pub local: IpAddr,
    /// The largest packet of a pod.
    pub mtu: u32,
    /// The number of peers, those of `failed` included.
    pub peers: usize,
    /// How many entries were added or changed, and removed.
    pub changed: (usize, usize),
    /// The entries that the kernel refuses, and why.
    pub failed: Vec<(Entry, String)>,
    /// How long it took.
    pub took: Duration,
}

enum Order {
    Find(Box<Network>, oneshot::Sender<Result<Found>>),
    Keep(Id, Box<Wanted>, mpsc::UnboundedSender<Report>),
    Change(Id, Vec<(Subnet, Option<Peer>)>),
}

/// The node's end of an underlay, before the device exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The address.
    pub local: IpAddr,
    /// Whether there is a device already, and whether podwire made it.
    pub owned: Option<bool>,
}

/// The thread.
#[derive(Clone, Debug)]
pub struct Kernel {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
}

impl Kernel {
    /// Starts the thread, in the caller's network namespace. It ends with its last handle.
    ///
    /// # Errors
    /// When the kernel refuses its sockets.
    pub fn start() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags).context("create an eventfd")?);
        let (orders, received) = channel();
        let (opened, result) = channel();
        let woken = Arc::clone(&wake);
        let body = move || match Thread::open(woken) {
            Ok(mut thread) => {
                let _ = opened.send(Ok(()));
                thread.run(&received);
            }
            Err(error) => drop(opened.send(Err(error))),
        };
        std::thread::Builder::new()
            .name("overlay-kernel".into())
            .spawn(body)
            .context("start the thread overlay-kernel")?;
        result.recv().context("start the thread overlay-kernel")??;
        Ok(Self { orders, wake })
    }

    /// Looks up the address and the interface for a network. Changes nothing.
    ///
    /// # Errors
    /// There is none.
    pub async fn find(&self, network: Network) -> Result<Found> {
        let (reply, answer) = oneshot::channel();
        self.order(Order::Find(Box::new(network), reply));
        answer
            .await
            .context("the thread overlay-kernel has ended")?
    }

    /// Keeps the kernel as `wanted` from now on, and reports after each look at it.
    pub fn keep(&self, id: Id, wanted: Wanted, reports: &mpsc::UnboundedSender<Report>) {
        self.order(Order::Keep(id, Box::new(wanted), reports.clone()));
    }

    /// Changes some peers of a network that is kept.
    pub fn change(&self, id: Id, peers: Vec<(Subnet, Option<Peer>)>) {
        self.order(Order::Change(id, peers));
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        let _ = self.wake.write(1);
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.wake.write(1);
    }
}

struct Thread {
    wake: Arc<EventFd>,
    host: Netlink,
    peers: Peers,
    monitor: Monitor,
    kept: BTreeMap<Id, Kept>,
}

/// A network that is kept.
struct Kept {
    wanted: Wanted,
    reports: mpsc::UnboundedSender<Report>,
    /// Changes of peers that have not been made.
    changes: BTreeMap<Subnet, Option<Peer>>,
    /// How many peers want each entry: two leases of one node have some in common.
    uses: HashMap<Entry, u32>,
    /// The subnets of the segment, if nodes there are reached directly.
    near: Vec<IpNetwork>,
    /// Where each MAC is.
    vteps: HashMap<Mac, IpAddr>,
    /// The device, if the last look at it was a success.
    device: Option<(Overlay, u32)>,
    /// The last report.
    state: Option<State>,
    /// When everything is compared next, and when it was last.
    due: Instant,
    looked: Instant,
}

impl Thread {
    fn open(wake: Arc<EventFd>) -> Result<Self> {
        Ok(Self {
            wake,
            host: Netlink::open()?,
            peers: Peers::open()?,
            // First of all: what changes after a look is reported.
            monitor: Monitor::open()?,
            kept: BTreeMap::new(),
        })
    }

    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            let next = self.kept.values().map(|it| it.due).min();
            let until = next.unwrap_or_else(|| Instant::now() + PERIOD);
            self.monitor.wait(self.wake.as_fd(), until);
            let _ = self.wake.read();
            loop {
                match orders.try_recv() {
                    Ok(order) => self.take(order),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.hear(None);
            let ids: Vec<Id> = self.kept.keys().copied().collect();
            for id in ids {
                let own = match self.kept.get_mut(&id) {
                    Some(kept) => kept.work(id, &self.host, &self.peers),
                    None => None,
                };
                if own.is_some() {
                    self.hear(own);
                }
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Find(network, reply) => drop(reply.send(find(&self.host, &network))),
            Order::Keep(id, wanted, reports) => {
                let now = Instant::now();
                remove_others(&self.host, &wanted);
                let kept = Kept {
                    wanted: *wanted,
                    reports,
                    changes: BTreeMap::new(),
                    uses: HashMap::new(),
                    near: Vec::new(),
                    vteps: HashMap::new(),
                    device: None,
                    state: None,
                    due: now,
                    looked: now - SPACING,
                };
                self.kept.insert(id, kept);
            }
            Order::Change(id, changes) => {
                if let Some(kept) = self.kept.get_mut(&id) {
                    kept.changes.extend(changes);
                }
            }
        }
    }

    /// Reads what the kernel has reported, but for the entries that were just removed from here.
    fn hear(&mut self, own: Option<Removed>) {
        let Removed {
            device,
            mut entries,
        } = own.unwrap_or_default();
        let kept = &mut self.kept;
        self.monitor.read(|seen| {
            let is_own = matches!(seen, Seen::EntryGone(it) | Seen::RouteGone(it) if it == device);
            if entries > 0 && is_own {
                entries -= 1;
                return;
            }
            for kept in kept.values_mut().filter(|it| it.concerns(seen)) {
                kept.due = kept.due.min(kept.looked + SPACING);
            }
        });
    }
}

/// How many entries were removed from a device.
#[derive(Clone, Copy, Debug, Default)]
struct Removed {
    device: u32,
    entries: usize,
}

impl Kept {
    fn concerns(&self, seen: Seen) -> bool {
        let Some((overlay, uplink)) = self.device else {
            // An interface or an address is missing: this may be it.
            return !matches!(seen, Seen::EntryGone(_) | Seen::RouteGone(_));
        };
        match seen {
            Seen::Link(index) | Seen::Address(index) => index == overlay.device || index == uplink,
            Seen::EntryGone(index) => index == overlay.device,
            Seen::RouteGone(index) => {
                let is_direct = self.wanted.direct != Direct::Never;
                index == overlay.device || (index == uplink && is_direct)
            }
            Seen::Overrun => true,
        }
    }

    /// Does what is due, and reports it.
    fn work(&mut self, id: Id, host: &Netlink, peers: &Peers) -> Option<Removed> {
        let start = Instant::now();
        let state = if start >= self.due {
            self.take_changes();
            let looked = self.look(host, peers);
            self.looked = Instant::now();
            let is_good = looked.as_ref().is_ok_and(|it| it.failed.is_empty());
            self.due = self.looked + if is_good { PERIOD } else { RETRY };
            looked
        } else if !self.changes.is_empty() && self.device.is_some() {
            self.apply_changes(peers)
        } else {
            return None;
        };
        let state = state.map(|it| State {
            took: start.elapsed(),
            ..it
        });
        if state.is_err() {
            self.device = None;
        }
        self.state = state.as_ref().ok().cloned();
        let removed = self
            .device
            .zip(self.state.as_ref())
            .map(|(device, state)| Removed {
                device: device.0.device,
                entries: state.changed.1,
            });
        let state = state.map_err(|error| format!("{error:#}"));
        let _ = self.reports.send(Report { id, state });
        removed
    }

    /// Takes the changes over without making them.
    fn take_changes(&mut self) {
        for (subnet, peer) in std::mem::take(&mut self.changes) {
            match peer {
                Some(peer) => self.wanted.peers.insert(subnet, peer),
                None => self.wanted.peers.remove(&subnet),
            };
        }
    }

    /// Makes the device and all entries as they are wanted.
    fn look(&mut self, host: &Netlink, kernel: &Peers) -> Result<State> {
        let network = &self.wanted.network;
        let device = Device::find(host, network)?;
        let uplink = device.uplink.index;
        let mut overlay = match self.wanted.direct {
            Direct::Always => Overlay {
                device: 0,
                neighbours_on: 0,
                learns_peers: false,
                segment: None,
            },
            Direct::Near | Direct::Never => {
                let link = device.ensure(host, network, None)?;
                ensure_address(host, &link, self.wanted.address)?;
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
        let (peers, mut refused, vteps) = distinct(self.wanted.peers.values());
        let mut uses = HashMap::new();
        for entry in peers.iter().flat_map(|it| self.entries(it)) {
            *uses.entry(entry).or_default() += 1;
        }
        self.uses = uses;
        let wanted: Vec<Entry> = self.uses.keys().copied().collect();
        let done = kernel.reconcile(overlay, &wanted)?;
        self.vteps = vteps;
        refused.extend(texts(done.failed));
        self.device = Some((overlay, uplink));
        Ok(State {
            local: device.local,
            mtu: match self.wanted.direct {
                Direct::Always => device.uplink.mtu,
                Direct::Near | Direct::Never => device.spec.mtu,
            },
            peers: self.wanted.peers.len(),
            changed: (done.added, done.removed),
            failed: refused,
            took: Duration::ZERO,
        })
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

    /// Makes the changes alone.
    fn apply_changes(&mut self, kernel: &Peers) -> Result<State> {
        let (Some((overlay, _)), Some(state)) = (self.device, self.state.clone()) else {
            anyhow::bail!("there is no device yet");
        };
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
        let done = kernel.change(overlay, &gone, &new)?;
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

/// Entries that are refused, and why.
type Refused = Vec<(Entry, String)>;

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

/// Deletes the devices that the network had with other VNIs, or another backend: their routes would be
/// in the way.
fn remove_others(host: &Netlink, wanted: &Wanted) {
    let network = &wanted.network;
    let wanted = match wanted.direct {
        Direct::Always => Vec::new(),
        Direct::Near | Direct::Never => [Family::V4, Family::V6]
            .map(|it| device_name(it, network.vni))
            .into(),
    };
    for link in host.list_links().unwrap_or_default() {
        let is_agents = link.is_kind("vxlan") && link.name.starts_with("flannel");
        if is_agents && device::is_of(&link, network) && !wanted.contains(&link.name) {
            let _ = host.delete_link(&link.name);
        }
    }
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

fn find(host: &Netlink, network: &Network) -> Result<Found> {
    let device = Device::find(host, network)?;
    Ok(Found {
        local: device.local,
        owned: device.link.map(|it| device::is_of(&it, network)),
    })
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
    if present.iter().any(|it| it.address == address) {
        return Ok(());
    }
    let spec = AddressSpec {
        // No other host is on this link.
        nodad: address.is_ipv6(),
        ..address.into()
    };
    match host.add_address_to(link, &spec) {
        Err(error) if error.is_exists() => Ok(()),
        other => Ok(other?),
    }
}

fn texts(failed: Vec<(Entry, netlink::Error)>) -> Refused {
    let text = |(entry, error): (Entry, netlink::Error)| (entry, error.to_string());
    failed.into_iter().map(text).collect()
}
