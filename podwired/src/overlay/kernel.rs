//! The kernel's side of the networks, on a thread of its own: devices and peers are made as they are
//! wanted, and made so again when something else changes them.
//!
//! A change of peers costs what changes ([`netlink::Peers::change`]). Everything is compared with the
//! kernel ([`netlink::Peers::reconcile_all`]) when a network is new, when the kernel reports that
//! something was removed, after a failure, and every ten seconds: all networks that are due at once, so
//! that a thousand of them cost about what one of the same size does.

mod kept;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use flannel::{Backend, BackendType, Subnet};
use ipnetwork::IpNetwork;
use netlink::{Desired, Entry, Event, Family, Monitor, Netlink, Peers};
use nix::sys::eventfd::{EfdFlags, EventFd};
use overlay::{Device, Mode, Network, Peer, Underlays, device, guard};
use tokio::sync::{mpsc, oneshot};

use kept::Kept;

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

impl Wanted {
    /// The names of the network's devices.
    fn devices(&self) -> Vec<String> {
        match (self.direct, self.network.mode) {
            (Direct::Always, _) => Vec::new(),
            (_, Mode::L2) => vec![self.network.device()],
            (_, Mode::L3) => [Family::V4, Family::V6]
                .map(|it| device_name(it, self.network.vni))
                .into(),
        }
    }
}

impl Direct {
    /// What a configuration says.
    pub fn of(backend: &Backend) -> Self {
        match backend.kind {
            BackendType::HostGw => Self::Always,
            BackendType::Vxlan if backend.direct_routing => Self::Near,
            BackendType::Vxlan | BackendType::Segment => Self::Never,
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

/// How many entries were removed from each device, by its index.
type Removed = HashMap<u32, usize>;

/// A network that is looked at.
struct Look<'a> {
    id: Id,
    kept: &'a mut Kept,
    device: Device,
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
            if !self.take_all(orders) {
                return;
            }
            self.hear(Removed::new());
            let removed = self.change();
            self.hear(removed);
            let removed = self.look();
            self.hear(removed);
        }
    }

    /// Takes the orders that are there. Returns whether there may be others.
    fn take_all(&mut self, orders: &Receiver<Order>) -> bool {
        let mut new = Vec::new();
        let mut underlays = Underlays::default();
        let goes_on = loop {
            match orders.try_recv() {
                Ok(Order::Find(network, reply)) => {
                    let _ = reply.send(find(&self.host, &network, &mut underlays));
                }
                Ok(Order::Keep(id, wanted, reports)) => {
                    new.push(id);
                    self.kept.insert(id, Kept::new(*wanted, reports));
                }
                Ok(Order::Change(id, changes)) => {
                    if let Some(kept) = self.kept.get_mut(&id) {
                        kept.expect(changes);
                    }
                }
                Err(TryRecvError::Empty) => break true,
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        if !new.is_empty() {
            self.remove_others(&new);
        }
        goes_on
    }

    /// Deletes the devices that new networks had with other VNIs, or another backend: their routes
    /// would be in the way.
    fn remove_others(&self, new: &[Id]) {
        let new: Vec<&Wanted> = new.iter().map(|id| &self.kept[id].wanted).collect();
        for link in self.host.list_links().unwrap_or_default() {
            if !link.is_kind("vxlan") {
                continue;
            }
            let mut owners = new.iter().filter(|it| device::is_of(&link, &it.network));
            let is_left = |it: &&&Wanted| !it.devices().contains(&link.name);
            if owners.next().as_ref().is_some_and(is_left) {
                let _ = self.host.delete_link(&link.name);
            }
        }
    }

    /// Reads what the kernel has reported, but for the entries that were just removed from here.
    fn hear(&mut self, mut own: Removed) {
        let kept = &mut self.kept;
        self.monitor.read(|event| {
            if let Event::EntryGone(device) | Event::RouteGone(device) = event
                && let Some(left) = own.get_mut(&device).filter(|left| **left > 0)
            {
                *left -= 1;
                return;
            }
            kept.values_mut().for_each(|it| it.hear(event));
        });
    }

    /// Makes changes of peers alone, where not everything is looked at.
    fn change(&mut self) -> Removed {
        let mut removed = Removed::new();
        let start = Instant::now();
        for (id, kept) in &mut self.kept {
            if kept.due > start
                && let Some(state) = kept.apply_changes(&self.peers)
            {
                kept.report(*id, start, state, &mut removed);
            }
        }
        removed
    }

    /// Makes the devices and all entries of the networks that are due as they are wanted.
    fn look(&mut self) -> Removed {
        let mut removed = Removed::new();
        let start = Instant::now();
        let due = self.kept.iter_mut().filter(|(_, it)| it.due <= start);
        let mut underlays = Underlays::default();
        let mut looks = Vec::new();
        for (id, kept) in due {
            kept.take_changes();
            let network = &kept.wanted.network;
            let id = *id;
            match Device::find_on(&self.host, network, &mut underlays) {
                Ok(device) => looks.push(Look { id, kept, device }),
                Err(error) => kept.looked(id, start, Err(error), &mut removed),
            }
        }
        if looks.is_empty() {
            return removed;
        }
        let guarded = guard_all(&self.host, &looks);
        let mut ready = Vec::new();
        for (look, guarded) in looks.into_iter().zip(guarded) {
            let made = guarded.and_then(|()| look.kept.ensure_device(&self.host, &look.device));
            match made {
                Ok(it) => ready.push((look, it)),
                Err(error) => look.kept.looked(look.id, start, Err(error), &mut removed),
            }
        }
        let all: Vec<Desired<'_>> = ready.iter().map(|it| it.1.desired()).collect();
        let done = each(self.peers.reconcile_all(&all), ready.len());
        for ((look, ready), done) in ready.into_iter().zip(done) {
            let Look { id, kept, device } = look;
            let state = done.map(|done| kept.note(&device, ready, done));
            kept.looked(id, start, state, &mut removed);
        }
        removed
    }
}

/// Has the packet filter drop packets that come in by other interfaces than the underlay's, for the
/// networks that have a device; in mode `l2`, as the plugin does, also those from other hosts.
fn guard_all(host: &Netlink, looks: &[Look<'_>]) -> Vec<Result<()>> {
    let is_open = |it: &&Look<'_>| {
        it.kept.wanted.direct != Direct::Always && it.kept.wanted.network.mode == Mode::L3
    };
    let open = looks.iter().filter(is_open);
    let all: Vec<_> = open
        .map(|it| (&it.kept.wanted.network, &it.device))
        .collect();
    let opened = guard::ensure_all(host, &all);
    let guarded = |it: &Look<'_>| {
        let network = &it.kept.wanted.network;
        if network.mode == Mode::L2 {
            let peers: Vec<Peer> = it.kept.wanted.peers.values().cloned().collect();
            return guard::ensure(host, network, &it.device, &peers);
        }
        match &opened {
            // One of them may be to blame.
            Err(_) if is_open(&it) => guard::ensure_all(host, &[(network, &it.device)]),
            _ => Ok(()),
        }
    };
    looks.iter().map(guarded).collect()
}

/// The result for each of `count`: what there is for all is the error of each.
fn each<T>(results: Result<Vec<T>, netlink::Error>, count: usize) -> Vec<Result<T>> {
    match results {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(error) => (0..count).map(|_| Err(anyhow!("{error}"))).collect(),
    }
}

fn find(host: &Netlink, network: &Network, underlays: &mut Underlays) -> Result<Found> {
    let device = Device::find_on(host, network, underlays)?;
    Ok(Found {
        local: device.local,
        owned: device.link.map(|it| device::is_of(&it, network)),
    })
}
