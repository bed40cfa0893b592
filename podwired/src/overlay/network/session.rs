//! A network while its store and the kernel are followed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use anyhow::{Result, bail};
use flannel::{Config, Lease, Subnet};
use ipnetwork::IpNetwork;
use netlink::Family;
use store::{Entry, Event, Listing, Store};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, spawn_local};

use super::Runner;
use crate::log;
use crate::overlay::feed::{self, FeedEvent};
use crate::overlay::kernel::{Direct, Id, Report, Wanted};
use crate::overlay::lease::{self, Held, Node};
use crate::overlay::{files, peers};

/// A task that ends when this is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a session knows.
struct Session<'a, S> {
    runner: &'a Runner<S>,
    config: Config,
    node: Node,
    held: Held,
    /// The keys of all leases as they are in the store, but for this node's.
    leases: BTreeMap<Subnet, Lease>,
    reports: UnboundedSender<Report>,
    events: UnboundedSender<FeedEvent>,
    _follower: Task,
    keeper: Option<Task>,
}

/// Begins with the list that the subnet was taken by, and goes on with what changes after it. Returns
/// why the session has ended.
///
/// # Errors
/// What it cannot repair.
pub async fn follow<S: Store + 'static>(
    runner: &Runner<S>,
    config: Config,
    node: Node,
    held: Held,
    listing: &Listing,
) -> Result<String> {
    let (events, mut inbox) = unbounded_channel();
    let (reports, mut reported) = unbounded_channel();
    let prefix = format!("{}/", runner.network.prefix);
    let from = listing.revision + 1;
    let follower = feed::follow(Rc::clone(&runner.store), prefix, from, events.clone());
    let mut session = Session {
        runner,
        config,
        node,
        held,
        leases: BTreeMap::new(),
        reports,
        events,
        _follower: Task(spawn_local(follower)),
        keeper: None,
    };
    session.keep_lease();
    session.set(listing);
    session.go_on(&mut inbox, &mut reported).await
}

impl<S: Store + 'static> Session<'_, S> {
    fn families(&self) -> impl Iterator<Item = (Id, Family, IpNetwork)> {
        let index = self.runner.index;
        self.held.subnet.all().map(move |subnet| {
            let family = Family::of(subnet.ip());
            ((index, family), family, subnet)
        })
    }

    /// Renews the lease from now on.
    fn keep_lease(&mut self) {
        let runner = self.runner;
        let held = &self.held;
        self.keeper = held.lease.map(|lease| {
            let store = Rc::clone(&runner.store);
            let keep = feed::keep(store, lease, runner.network.ttl, self.events.clone());
            Task(spawn_local(keep))
        });
        let subnet = held.subnet;
        let (name, public_ip) = (&runner.network.name, self.node.public_ip);
        let is_segment = !self.config.backend.kind.has_subnets();
        if is_segment {
            log::info(format_args!("network {name}: this node is {public_ip}"))
        } else {
            log::info(format_args!(
                "network {name}: the subnet of this node is {subnet}, for {public_ip}"
            ))
        }
        let node = &self.node;
        let v6 = node.public_ipv6.map(|it| it.to_string());
        let public = [node.public_ip.to_string()].into_iter().chain(v6);
        runner.note(|status| {
            status.subnet = Some(subnet);
            status.is_segment = is_segment;
            status.public = public.collect();
            status.contested = None;
            status
                .waits
                .get_or_insert_with(|| "the first comparison with the kernel".into());
        });
    }

    /// Has the kernel have exactly what the list says.
    fn set(&mut self, listing: &Listing) {
        self.leases.clear();
        self.runner.note(|status| status.refused.clear());
        for entry in &listing.entries {
            self.take(entry);
        }
        for (id, family, subnet) in self.families() {
            let network = self.runner.device(&self.config, family, Some(&self.held));
            let Ok(network) = network else { continue };
            let peers = self.leases.iter();
            let peers = peers.filter_map(|(subnet, lease)| {
                let peer = self.peer(subnet, lease, family)?;
                Some((*subnet, peer))
            });
            let address = IpNetwork::from(subnet.network());
            let all = self
                .config
                .networks()
                .find(|it| Family::of(it.ip()) == family);
            let wanted = Wanted {
                network,
                direct: Direct::of(&self.config.backend),
                subnets: all.unwrap_or(subnet),
                address,
                peers: peers.collect(),
            };
            self.runner.kernel.keep(id, wanted, &self.reports);
        }
        self.count();
    }

    fn own_key(&self) -> String {
        let kind = self.config.backend.kind;
        lease::key(&self.runner.network.prefix, kind, &self.held.subnet)
    }

    /// The subnet that a key is about.
    fn subnet_of(&self, key: &str) -> Option<Subnet> {
        let kind = self.config.backend.kind;
        lease::subnet(&self.runner.network.prefix, kind, key)
    }

    /// Notes the lease of another node. Returns its subnet.
    fn take(&mut self, entry: &Entry) -> Option<Subnet> {
        let subnet = self.subnet_of(&entry.key)?;
        if subnet == self.held.subnet {
            return None;
        }
        match peers::lease(entry) {
            Ok(lease) => {
                self.refuse(&subnet, None);
                self.leases.insert(subnet, lease);
            }
            Err(why) => {
                self.leases.remove(&subnet);
                self.refuse(&subnet, Some(why));
            }
        }
        Some(subnet)
    }

    /// The peer that a lease stands for. Notes why, if it is none.
    fn peer(&self, subnet: &Subnet, lease: &Lease, family: Family) -> Option<overlay::Peer> {
        let (own, backing) = match family {
            Family::V4 => (Some(IpAddr::V4(self.node.public_ip)), self.held.value.v4),
            Family::V6 => (self.node.public_ipv6.map(IpAddr::V6), self.held.value.v6),
        };
        let own_mac = backing.map(|it| it.mac);
        let peer = if subnet.overlaps(&self.held.subnet) {
            Err(format!(
                "it overlaps {}, the subnet of this node",
                self.held.subnet
            ))
        } else {
            match peers::peer(self.config.backend.kind, subnet, lease, family) {
                Ok(Some(peer)) if Some(peer.vtep) == own => {
                    Err(format!("{} is the address of this node", peer.vtep))
                }
                Ok(Some(peer)) if own_mac.is_some() && peer.mac == own_mac => {
                    Err("its VtepMAC is that of this node".to_owned())
                }
                peer => peer,
            }
        };
        match peer {
            Ok(peer) => peer,
            Err(why) => {
                self.refuse(subnet, Some(why));
                None
            }
        }
    }

    fn refuse(&self, subnet: &Subnet, why: Option<String>) {
        let key = subnet.to_string();
        let mut status = self.runner.status.borrow_mut();
        match why {
            Some(why) => {
                if status.refused.get(&key) != Some(&why) {
                    let name = &self.runner.network.name;
                    log::warn(format_args!(
                        "network {name}: the lease of {key} is of no use: {why}"
                    ));
                }
                status.refused.insert(key, why);
            }
            None => drop(status.refused.remove(&key)),
        }
    }

    fn count(&self) {
        let nodes = self.leases.len();
        self.runner.note(|status| status.nodes = nodes);
    }

    /// Works until something fails. Returns what the next session is for.
    async fn go_on(
        &mut self,
        inbox: &mut UnboundedReceiver<FeedEvent>,
        reported: &mut UnboundedReceiver<Report>,
    ) -> Result<String> {
        loop {
            tokio::select! {
                Some(event) = inbox.recv() => {
                    if let Some(end) = self.hear(event)? {
                        return Ok(end);
                    }
                }
                Some(report) = reported.recv() => {
                    if let Some(end) = self.note_report(report)? {
                        return Ok(end);
                    }
                }
                else => bail!("the thread overlay-kernel has ended"),
            }
        }
    }

    fn hear(&mut self, event: FeedEvent) -> Result<Option<String>> {
        match event {
            FeedEvent::Changes(events) => {
                self.runner.note(|status| status.store = None);
                self.change(events)
            }
            FeedEvent::Listing(listing) => {
                let name = &self.runner.network.name;
                log::info(format_args!("network {name}: the store has been read anew"));
                let key = self.own_key();
                let Some(own) = listing.entries.iter().find(|it| it.key == key) else {
                    return Ok(Some(lost()));
                };
                self.look_at_own(own);
                if self.runner.config(&listing)? != self.config {
                    return Ok(Some(reconfigured()));
                }
                self.set(&listing);
                Ok(None)
            }
            FeedEvent::Answers => {
                self.runner.note(|status| status.store = None);
                Ok(None)
            }
            FeedEvent::Away(error) => {
                let text = error.to_string();
                let is_new = self.runner.status.borrow().store.is_none();
                if is_new {
                    let name = &self.runner.network.name;
                    log::warn(format_args!("network {name}: {text}"));
                }
                self.runner.note(|status| status.store = Some(text));
                Ok(None)
            }
            FeedEvent::LeaseEnded => Ok(Some(lost())),
        }
    }

    /// Makes changes of other nodes. Returns why the session ends, if one is about this node.
    fn change(&mut self, events: Vec<Event>) -> Result<Option<String>> {
        let prefix = &self.runner.network.prefix;
        let config_key = flannel::config_key(prefix);
        let own_key = self.own_key();
        let mut changed = BTreeMap::new();
        for event in events {
            match event {
                Event::Put(entry) if entry.key == config_key => {
                    if self.runner.parse(&entry.value).as_ref() != Ok(&self.config) {
                        return Ok(Some(reconfigured()));
                    }
                }
                Event::Delete { key } if key == own_key => return Ok(Some(lost())),
                Event::Put(entry) if entry.key == own_key => self.look_at_own(&entry),
                Event::Put(entry) => {
                    if let Some(subnet) = self.take(&entry) {
                        changed.insert(subnet, ());
                    }
                }
                Event::Delete { key } => {
                    if let Some(subnet) = self.subnet_of(&key) {
                        self.leases.remove(&subnet);
                        self.refuse(&subnet, None);
                        changed.insert(subnet, ());
                    }
                }
            }
        }
        for (id, family, _) in self.families() {
            let peers = changed.keys().map(|subnet| {
                let lease = self.leases.get(subnet);
                let peer = lease.and_then(|lease| self.peer(subnet, lease, family));
                self.log_peer(subnet, family, peer.as_ref());
                (*subnet, peer)
            });
            let peers: Vec<_> = peers.collect();
            if !peers.is_empty() {
                self.runner.kernel.change(id, peers);
            }
        }
        self.count();
        Ok(None)
    }

    fn log_peer(&self, subnet: &Subnet, family: Family, peer: Option<&overlay::Peer>) {
        if family == Family::V6 || !log::logs(log::Level::Info) {
            return;
        }
        let name = &self.runner.network.name;
        if !self.config.backend.kind.has_subnets() {
            let (node, verb) = (
                subnet.v4.ip(),
                if peer.is_some() {
                    "is there"
                } else {
                    "is gone"
                },
            );
            return log::info(format_args!("network {name}: node {node} {verb}"));
        }
        match peer {
            Some(peer) => log::info(format_args!("network {name}: {subnet} is at {}", peer.vtep)),
            None => log::info(format_args!("network {name}: {subnet} is gone")),
        }
    }

    /// Notes that another program has written this node's key. Both would go on for ever if this one
    /// wrote it again.
    fn look_at_own(&mut self, entry: &Entry) {
        if entry.revision <= self.held.revision {
            return;
        }
        self.held.revision = entry.revision;
        let found = Lease::parse(&entry.value);
        let contested = match found {
            Ok(found) if found == self.held.value => None,
            Ok(found) => {
                let by = found.owner.unwrap_or_else(|| "flanneld, or by hand".into());
                Some(format!(
                    "the key of {} was written by {by}",
                    self.held.subnet
                ))
            }
            Err(why) => Some(format!("the key of {} is damaged: {why}", self.held.subnet)),
        };
        if let Some(why) = &contested {
            let name = &self.runner.network.name;
            log::error(format_args!("network {name}: {why}"));
        }
        self.runner.note(|status| status.contested = contested);
    }

    /// Notes how the kernel is: after the first complete look the node is ready. Returns why the
    /// session ends, if a new address is to be published.
    fn note_report(&mut self, report: Report) -> Result<Option<String>> {
        let Report { id, state } = report;
        let name = &self.runner.network.name;
        if let Err(error) = &state {
            let same = self.runner.status.borrow().families.get(&id) == Some(&Err(error.clone()));
            if !same {
                log::warn(format_args!("network {name}: {error}"));
            }
        }
        self.runner.note(|status| status.note(id, state));
        let (mut mtu, mut locals) = (u32::MAX, Vec::new());
        for (id, _, _) in self.families() {
            let status = self.runner.status.borrow();
            let Some(Ok(state)) = status.families.get(&id) else {
                if let Some(Err(error)) = status.families.get(&id) {
                    let error = error.clone();
                    drop(status);
                    self.runner.note(|it| {
                        if it.waits.is_some() {
                            it.waits = Some(error);
                        }
                    });
                }
                return Ok(None);
            };
            mtu = mtu.min(state.mtu);
            locals.push(state.local);
        }
        if let Some(moved) = self.has_moved(&locals) {
            // Connections from the old address are dead, and would be for many seconds.
            self.runner.store.reconnect();
            return Ok(Some(moved));
        }
        files::write(&self.runner.network, &self.config, self.held.subnet, mtu)?;
        if self.runner.status.borrow().waits.is_some() {
            let nodes = self.leases.len();
            log::info(format_args!(
                "network {name}: ready, with {nodes} other nodes"
            ));
            self.runner.note(|status| status.waits = None);
        }
        Ok(None)
    }

    /// Why this session ends, if the node is at other addresses than it has published.
    fn has_moved(&self, locals: &[IpAddr]) -> Option<String> {
        let v4 = locals.iter().find_map(|it| match it {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let v6 = locals.iter().find_map(|it| match it {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        });
        let node = self.runner.node_at(v4?, v6);
        (node != self.node).then(|| format!("this node is at {} now", node.public_ip))
    }
}

fn lost() -> String {
    "the lease of this node has ended, or its key is gone".to_owned()
}

fn reconfigured() -> String {
    "the configuration of the network has changed".to_owned()
}
