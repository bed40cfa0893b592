//! One network of this node, from the store to the kernel.
//!
//! A session begins with a list of everything and a lease, and goes on with news. It ends when
//! something fails that it cannot repair, and begins anew; the kernel keeps what it has meanwhile.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use cni::env::IfName;
use flannel::{BackendType, Config, Lease, Subnet};
use ipnetwork::IpNetwork;
use netlink::Family;
use overlay::{Mode, Network};
use store::{Entry, Event, Listing, Store};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, spawn_local};

use super::conf::Membership;
use super::feed::{self, News, Pause};
use super::kernel::{Direct, Id, Kernel, Report, Wanted, device_name};
use super::lease::{self, Held, Node, Wish};
use super::status::Status;
use super::{files, peers};
use crate::log;

/// Attempts to get a lease before the list of networks is read anew with a pause.
const ATTEMPTS: usize = 50;

/// A network, and what it needs to run.
pub struct Runner<S> {
    /// Its place among the networks.
    pub index: usize,
    /// Its keys.
    pub network: Membership,
    /// The store.
    pub store: Rc<S>,
    /// The kernel.
    pub kernel: Kernel,
    /// How it is.
    pub status: Rc<RefCell<Status>>,
    /// Notified after each change of `status`.
    pub noted: Rc<Notify>,
}

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
    news: UnboundedSender<News>,
    _follower: Task,
    keeper: Option<Task>,
}

impl<S: Store + 'static> Runner<S> {
    /// Runs for ever.
    pub async fn run(self) {
        let mut pause = Pause::new();
        loop {
            let before = self.status.borrow().passes;
            let name = &self.network.name;
            let error = match self.session().await {
                Ok(end) => {
                    log::info(format_args!("network {name}: {end}"));
                    continue;
                }
                Err(error) => format!("{error:#}"),
            };
            log::warn(format_args!("network {name}: {error}"));
            self.note(|status| {
                if status.waits.is_some() || status.subnet.is_none() {
                    status.waits = Some(error.clone());
                }
            });
            if self.status.borrow().passes > before {
                pause = Pause::new();
            }
            pause.wait().await;
        }
    }

    fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.borrow_mut());
        self.noted.notify_one();
    }

    /// Returns why it has ended.
    async fn session(&self) -> Result<String> {
        let prefix = format!("{}/", self.network.prefix);
        let listing = self.list(&prefix).await?;
        let config = self.config(&listing)?;
        if !config.backend.kind.has_subnets() && self.network.ipam.is_none() {
            bail!(
                "addresses of a network {}: podwired lacks the role ipam, or the network the key ipam",
                config.backend.kind.name()
            );
        }
        let node = self.node(&config).await?;
        let before = files::own_subnet(&self.network, &config);
        let before = self.status.borrow().subnet.or(before);
        let (held, listing) = self.hold(&config, &node, before, listing).await?;
        let (news, mut inbox) = unbounded_channel();
        let (reports, mut reported) = unbounded_channel();
        let from = listing.revision + 1;
        let follower = feed::follow(Rc::clone(&self.store), prefix, from, news.clone());
        let mut session = Session {
            runner: self,
            config,
            node,
            held,
            leases: BTreeMap::new(),
            reports,
            news,
            _follower: Task(spawn_local(follower)),
            keeper: None,
        };
        session.keep_lease();
        session.set(&listing);
        session.go_on(&mut inbox, &mut reported).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let listing = self.store.list(prefix).await;
        self.note(|status| status.store = listing.as_ref().err().map(ToString::to_string));
        Ok(listing?)
    }

    fn config(&self, listing: &Listing) -> Result<Config> {
        let key = flannel::config_key(&self.network.prefix);
        let entry = listing.entries.iter().find(|it| it.key == key);
        let Some(entry) = entry else {
            bail!("{key} is missing in the store: the network has no configuration yet");
        };
        let config = self.parse(&entry.value);
        config.map_err(|fault| anyhow::anyhow!("{key}: {fault}"))
    }

    fn parse(&self, config: &[u8]) -> Result<Config, String> {
        match self.network.assigned {
            true => Config::parse_assigned(config),
            false => Config::parse(config),
        }
    }

    /// What this node is: its addresses in the underlay.
    async fn node(&self, config: &Config) -> Result<Node> {
        let v4 = self
            .kernel
            .find(self.device(config, Family::V4, None)?)
            .await?;
        let is_routed = config.backend.kind == BackendType::HostGw;
        if (is_routed || v4.owned == Some(false))
            && let Some(pid) = flanneld()
        {
            bail!("flanneld runs on this node (process {pid})");
        }
        let IpAddr::V4(local) = v4.local else {
            bail!("the underlay has no IPv4 address");
        };
        let mut local6 = None;
        if config.v6.is_some() && config.backend.kind.has_subnets() {
            let found = self
                .kernel
                .find(self.device(config, Family::V6, None)?)
                .await?;
            local6 = match found.local {
                IpAddr::V6(local) => Some(local),
                IpAddr::V4(_) => None,
            };
        }
        Ok(self.node_at(local, local6))
    }

    fn node_at(&self, local: Ipv4Addr, local6: Option<Ipv6Addr>) -> Node {
        Node {
            public_ip: self.network.public_ip.unwrap_or(local),
            public_ipv6: local6.map(|local| self.network.public_ipv6.unwrap_or(local)),
            owner: lease::owner(),
        }
    }

    /// Gets a subnet, and the list that has its key's neighbours.
    async fn hold(
        &self,
        config: &Config,
        node: &Node,
        before: Option<Subnet>,
        mut listing: Listing,
    ) -> Result<(Held, Listing)> {
        let wish = Wish {
            store: &*self.store,
            prefix: &self.network.prefix,
            config,
            node,
            ttl: self.network.ttl,
            before,
        };
        for _ in 0..ATTEMPTS {
            if let Some(held) = wish.take(&listing).await? {
                return Ok((held, listing));
            }
            listing = self.list(&format!("{}/", self.network.prefix)).await?;
        }
        bail!("other nodes are faster: no subnet after {ATTEMPTS} attempts")
    }

    /// The VXLAN device of a family.
    fn device(&self, config: &Config, family: Family, held: Option<&Held>) -> Result<Network> {
        let backend = &config.backend;
        let vni = backend.vni;
        let (mode, name) = match backend.kind.has_subnets() {
            true => (Mode::L3, device_name(family, vni)),
            // That of the plugin vxlan, which attaches the pods.
            false => (Mode::L2, format!("vxlan.{vni}")),
        };
        let overhead = if family == Family::V4 { 50 } else { 70 };
        let name = IfName::parse(&name).with_context(|| format!("device {name}"))?;
        let backing = held.and_then(|it| match family {
            Family::V4 => it.value.v4,
            Family::V6 => it.value.v6,
        });
        Ok(Network {
            name: self.network.name.clone(),
            mode,
            vni,
            port: backend.port,
            dev: self.network.dev.clone(),
            local: None,
            family: Some(family),
            group: None,
            ttl: 0,
            learning: mode == Mode::L2,
            mtu: backend.mtu.map(|outer| outer.saturating_sub(overhead)),
            gbp: backend.gbp,
            udp_checksum: true,
            mac: backing.map(|it| it.mac),
            bridge: self.network.bridge.clone(),
            peers: Vec::new(),
            kept_as: Some(name),
        })
    }
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
            let keep = feed::keep(store, lease, runner.network.ttl, self.news.clone());
            Task(spawn_local(keep))
        });
        let subnet = held.subnet;
        let (name, public_ip) = (&runner.network.name, self.node.public_ip);
        let is_segment = !self.config.backend.kind.has_subnets();
        match is_segment {
            false => log::info(format_args!(
                "network {name}: the subnet of this node is {subnet}, for {public_ip}"
            )),
            true => log::info(format_args!("network {name}: this node is {public_ip}")),
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
            let host = if subnet.is_ipv4() { 32 } else { 128 };
            let address = IpNetwork::new(subnet.network(), host).unwrap_or(subnet);
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
        inbox: &mut UnboundedReceiver<News>,
        reported: &mut UnboundedReceiver<Report>,
    ) -> Result<String> {
        loop {
            tokio::select! {
                Some(news) = inbox.recv() => {
                    if let Some(end) = self.hear(news)? {
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

    fn hear(&mut self, news: News) -> Result<Option<String>> {
        match news {
            News::Changes(events) => {
                self.runner.note(|status| status.store = None);
                self.change(events)
            }
            News::Listing(listing) => {
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
            News::Answers => {
                self.runner.note(|status| status.store = None);
                Ok(None)
            }
            News::Away(error) => {
                let text = error.to_string();
                let is_new = self.runner.status.borrow().store.is_none();
                if is_new {
                    let name = &self.runner.network.name;
                    log::warn(format_args!("network {name}: {text}"));
                }
                self.runner.note(|status| status.store = Some(text));
                Ok(None)
            }
            News::LeaseEnded => Ok(Some(lost())),
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

/// A flanneld in this network namespace.
fn flanneld() -> Option<i32> {
    let own = std::fs::read_link("/proc/self/ns/net").ok()?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|it| it.file_name().to_str()?.parse().ok())
        .find(|pid: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            let netns = std::fs::read_link(format!("/proc/{pid}/ns/net"));
            comm.is_ok_and(|it| it.trim() == "flanneld") && netns.is_ok_and(|it| it == own)
        })
}
