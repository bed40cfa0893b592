//! What the resolver knows, in memory: records, and the networks that they are of.
//!
//! A change is one record's: its cost does not grow with the others. Questions read the index between
//! two changes, so no answer mixes an old and a new record.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use cni::Cidr;
use names::{Elsewhere, Entry, Name, Namespace, Network, Record, Static, StaticData};

/// A network's place in the index.
pub type NetId = usize;
/// A record's place in the index.
pub type Id = u32;

/// The records of one name: nearly always one.
#[derive(Clone, Debug)]
enum Ids {
    One([Id; 1]),
    Many(Vec<Id>),
}

impl Ids {
    fn all(&self) -> &[Id] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }

    fn add(&mut self, id: Id) {
        let mut all = self.all().to_vec();
        if !all.contains(&id) {
            all.push(id);
        }
        *self = Self::Many(all);
    }
}

/// A record in memory.
#[derive(Debug)]
pub struct Held {
    net: NetId,
    file: Box<str>,
    container: Rc<str>,
    names: Box<[Name]>,
    /// The container's addresses in this network.
    pub addresses: Box<[IpAddr]>,
    servers: Box<[SocketAddr]>,
    namespace: Option<Box<Namespace>>,
}

/// A network in memory.
#[derive(Debug)]
pub struct Net {
    directory: Box<str>,
    /// What its newest record says about it.
    pub about: Network,
    /// Its name in lower case: `<name>.<suffix>` is a name of a container.
    pub suffix: Box<str>,
    files: HashMap<Box<str>, Id>,
    names: HashMap<Box<str>, Ids>,
    /// What follows `*.` in names of containers.
    wild: HashMap<Box<str>, Ids>,
    statics: HashMap<Box<str>, Vec<StaticData>>,
    wildcards: HashMap<Box<str>, Vec<StaticData>>,
    /// Whether containers ask at the spare address.
    uses_spare: bool,
    /// How many records are of this node.
    local: usize,
}

/// Another address of a network, for where a server of the node has port 53 of its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spare {
    /// The gateway.
    pub gateway: IpAddr,
    /// The lowest address of the gateway's subnet: no IPAM plugin gives it to a container.
    pub address: Cidr,
    /// The bridge that has the gateway's address.
    pub bridge: String,
    /// Whether containers have it in their resolv.conf.
    pub is_used: bool,
}

/// A name that is known.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// The network in which it is known.
    pub net: &'a Net,
    ids: &'a [Id],
    /// What the network's configuration says about it.
    pub data: &'a [StaticData],
}

/// The client that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A container of networks.
    Member,
    /// The node itself.
    Node,
    /// Another: it gets no answer.
    Stranger,
}

/// The records and networks.
#[derive(Debug, Default)]
pub struct Index {
    records: Vec<Option<Held>>,
    /// How many of them are of this node.
    local: usize,
    unused: Vec<Id>,
    nets: Vec<Option<Net>>,
    directories: HashMap<Box<str>, NetId>,
    containers: HashMap<Rc<str>, Ids>,
    addresses: HashMap<IpAddr, Ids>,
    /// The networks that each address serves.
    listening: HashMap<IpAddr, Vec<NetId>>,
    suffixes: HashMap<Box<str>, usize>,
    /// The host names of other nodes, by what the names of their records begin with.
    hosts: HashMap<Box<str>, Box<str>>,
    /// Counts changes of [`Index::listening`].
    pub version: u64,
}

impl Index {
    /// How many records of this node there are.
    pub fn len(&self) -> usize {
        self.local
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many names are answered: those of containers and of networks.
    pub fn names(&self) -> usize {
        self.networks().map(Net::names).sum()
    }

    /// The places of all networks.
    pub fn ids(&self) -> impl Iterator<Item = NetId> + '_ {
        (0..self.nets.len()).filter(|it| self.net(*it).is_some())
    }

    /// The networks that have records.
    pub fn networks(&self) -> impl Iterator<Item = &Net> {
        self.nets.iter().flatten()
    }

    /// The addresses to answer at.
    pub fn listening(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.listening.keys().copied()
    }

    /// The spare addresses of all networks that can have one: of a bridge, and of IPv4. In IPv6 the
    /// lowest address is that of all routers.
    pub fn spares(&self) -> impl Iterator<Item = Spare> + '_ {
        let on_bridges = self.networks().filter(|it| !it.about.bridge.is_empty());
        on_bridges.flat_map(|net| {
            let gateways = net.about.listen.iter().filter(|it| it.is_ipv4());
            gateways.filter_map(|gateway| {
                let mut subnets = net.about.subnets.iter();
                let subnet = subnets.find(|it| it.0.contains(*gateway) && it.prefix() <= 30)?;
                Some(Spare {
                    gateway: *gateway,
                    address: subnet.network(),
                    bridge: net.about.bridge.clone(),
                    is_used: net.uses_spare,
                })
            })
        })
    }

    /// The interfaces of the node from which networks ask.
    pub fn bridges(&self) -> HashSet<String> {
        let bridges = self.networks().filter(|it| !it.about.listen.is_empty());
        let bridges = bridges.map(|it| it.about.bridge.clone());
        bridges.filter(|it| !it.is_empty()).collect()
    }

    /// The network with this directory.
    pub fn network(&self, directory: &str) -> Option<&Net> {
        self.net(*self.directories.get(directory)?)
    }

    fn net(&self, id: NetId) -> Option<&Net> {
        self.nets.get(id)?.as_ref()
    }

    fn held(&self, id: Id) -> Option<&Held> {
        self.records.get(id as usize)?.as_ref()
    }

    /// Adds a record, in the place of an earlier one. What it says about its network holds.
    pub fn put(&mut self, entry: &Entry, mut record: Record) {
        let net = self.ensure_net(entry.network(), std::mem::take(&mut record.network));
        self.insert(net, entry.file(), record);
    }

    /// Adds a record of another node, whose name is `<node>/<file>`. How this node serves the network is
    /// not that one's to say. `host` is the host name of that node.
    pub fn put_remote(&mut self, directory: &str, file: &str, host: &str, record: Record) {
        let (node, _) = file.split_once('/').unwrap_or_default();
        if self.hosts.get(node).is_none_or(|it| **it != *host) {
            self.hosts.insert(node.into(), host.into());
        }
        let net = match self.directories.get(directory) {
            Some(net) => *net,
            None => self.ensure_net(directory, record.network.clone()),
        };
        self.insert(net, file, record);
    }

    /// The names of the records of other nodes.
    pub fn remote(&self, directory: &str) -> Vec<String> {
        let files = self.network(directory).into_iter();
        let files = files.flat_map(|it| it.files.keys());
        let remote = files.filter(|it| !is_local(it));
        remote.map(|it| it.to_string()).collect()
    }

    /// The pods of other nodes, by network, node and container.
    pub fn elsewhere(&self) -> Vec<Elsewhere> {
        let held = self.records.iter().flatten();
        let elsewhere = held.filter_map(|it| {
            let (node, _) = it.file.split_once('/')?;
            let host = self.hosts.get(node).filter(|it| !it.is_empty());
            Some(Elsewhere {
                network: self.net(it.net)?.about.name.clone(),
                node: host.map_or(node, |it| it).to_owned(),
                container: it.container.to_string(),
                names: it.names.to_vec(),
                addresses: it.addresses.to_vec(),
            })
        });
        let mut all: Vec<_> = elsewhere.collect();
        let key = |it: &Elsewhere| [&it.network, &it.node, &it.container].map(Clone::clone);
        all.sort_by_cached_key(key);
        all
    }

    fn insert(&mut self, net: NetId, file: &str, record: Record) {
        self.forget(net, file);
        let container = match self.containers.get_key_value(record.container.as_str()) {
            Some((container, _)) => Rc::clone(container),
            None => Rc::from(record.container),
        };
        let held = Held {
            net,
            file: file.into(),
            container,
            names: record.names.into(),
            addresses: record.addresses.into(),
            servers: record.servers.iter().map(|it| it.0).collect(),
            namespace: record.namespace.map(Box::new),
        };
        let id = self.unused.pop().unwrap_or_else(|| {
            self.records.push(None);
            (self.records.len() - 1) as Id
        });
        add(&mut self.containers, Rc::clone(&held.container), id);
        for address in &held.addresses {
            add(&mut self.addresses, *address, id);
        }
        if let Some(net) = self.nets.get_mut(net).and_then(Option::as_mut) {
            net.uses_spare |= !record.asks.is_empty();
            net.files.insert(file.into(), id);
            net.local += usize::from(is_local(file));
            self.local += usize::from(is_local(file));
            for name in &held.names {
                let (map, key) = net.place(name);
                add(map, key.into(), id);
            }
        }
        if let Some(place) = self.records.get_mut(id as usize) {
            *place = Some(held);
        }
    }

    /// Removes a record, and its network with the last one. Whether it was there.
    pub fn remove(&mut self, entry: &Entry) -> bool {
        self.remove_file(entry.network(), entry.file())
    }

    /// Removes a record of another node.
    pub fn remove_remote(&mut self, directory: &str, file: &str) -> bool {
        self.remove_file(directory, file)
    }

    fn remove_file(&mut self, directory: &str, file: &str) -> bool {
        let Some(id) = self.directories.get(directory).copied() else {
            return false;
        };
        let was_there = self.forget(id, file);
        let Some(place) = self.nets.get_mut(id) else {
            return was_there;
        };
        match place {
            Some(net) if net.files.is_empty() => {
                *place = None;
                self.directories.remove(directory);
                self.renew_listening();
            }
            // Nothing on this node asks any longer.
            Some(net) if net.local == 0 && !net.about.listen.is_empty() => {
                let name = std::mem::take(&mut net.about.name);
                net.uses_spare = false;
                net.change(Network {
                    name,
                    ..Network::default()
                });
                self.renew_listening();
            }
            _ => {}
        }
        was_there
    }

    fn forget(&mut self, net: NetId, file: &str) -> bool {
        let Some(net) = self.nets.get_mut(net).and_then(Option::as_mut) else {
            return false;
        };
        let Some(id) = net.files.remove(file) else {
            return false;
        };
        net.local -= usize::from(is_local(file));
        self.local -= usize::from(is_local(file));
        let Some(held) = self.records.get_mut(id as usize).and_then(Option::take) else {
            return false;
        };
        for name in &held.names {
            let (map, key) = net.place(name);
            drop_id(map, key, id);
        }
        for address in &held.addresses {
            drop_id(&mut self.addresses, address, id);
        }
        drop_id(&mut self.containers, &held.container, id);
        self.unused.push(id);
        true
    }

    /// The network with this directory, of which a record says `about`.
    fn ensure_net(&mut self, directory: &str, about: Network) -> NetId {
        let id = match self.directories.get(directory) {
            Some(id) => *id,
            None => {
                let free = self.nets.iter().position(Option::is_none);
                let id = free.unwrap_or(self.nets.len());
                if id == self.nets.len() {
                    self.nets.push(None);
                }
                self.directories.insert(directory.into(), id);
                id
            }
        };
        let Some(place) = self.nets.get_mut(id) else {
            return id;
        };
        match place {
            Some(net) if net.about == about => return id,
            Some(net) => net.change(about),
            None => {
                let mut net = Net {
                    directory: directory.into(),
                    about: Network::default(),
                    suffix: "".into(),
                    files: HashMap::new(),
                    names: HashMap::new(),
                    wild: HashMap::new(),
                    statics: HashMap::new(),
                    wildcards: HashMap::new(),
                    uses_spare: false,
                    local: 0,
                };
                net.change(about);
                *place = Some(net);
            }
        }
        self.renew_listening();
        id
    }

    fn renew_listening(&mut self) {
        self.version += 1;
        self.listening.clear();
        self.suffixes.clear();
        for (id, net) in self.nets.iter().enumerate() {
            let Some(net) = net else { continue };
            for address in &net.about.listen {
                self.listening.entry(*address).or_default().push(id);
            }
            for suffix in net.suffixes().filter(|it| is_private(it, net)) {
                *self.suffixes.entry(suffix.into()).or_default() += 1;
            }
        }
    }

    /// The client that sends from `source` to the address `local`. `nets` becomes the networks whose names it
    /// sees: those that are served at `local` come first.
    pub fn client(&self, local: IpAddr, source: IpAddr, nets: &mut Vec<NetId>) -> Client {
        nets.clear();
        let Some(here) = self.listening.get(&local) else {
            return Client::Stranger;
        };
        // Networks with the same gateway are one segment, as after a change of its name.
        let of_subnet = |id: &&NetId| {
            let subnets = self.net(**id).map(|it| &*it.about.subnets);
            let mut subnets = subnets.unwrap_or_default().iter();
            subnets.any(|it| it.0.contains(source))
        };
        if let Some(ids) = self.addresses.get(&source) {
            let records = || ids.all().iter().filter_map(|it| self.held(*it));
            // The same address may be of other containers in networks that are not served here.
            let is_here = |it: &&Held| here.contains(&it.net);
            let held = records().find(is_here).or_else(|| records().next());
            let all = held.and_then(|it| self.containers.get(&it.container));
            let all = all.into_iter().flat_map(|it| it.all());
            let own = all.filter_map(|it| Some(self.held(*it)?.net));
            for id in own.chain(here.iter().filter(of_subnet).copied()) {
                if !nets.contains(&id) {
                    nets.push(id);
                }
            }
            nets.sort_by_key(|it| !here.contains(it));
            return Client::Member;
        }
        if self.listening.contains_key(&source) {
            nets.extend(here);
            nets.extend(self.ids().filter(|it| !here.contains(it)));
            return Client::Node;
        }
        // A container whose record is not written yet, or that has none.
        nets.extend(here.iter().filter(of_subnet));
        if nets.is_empty() {
            Client::Stranger
        } else {
            Client::Member
        }
    }

    /// The record of a client, for its own servers: that of the first of its networks which has some.
    pub fn servers(&self, source: IpAddr, nets: &[NetId]) -> Vec<SocketAddr> {
        let ids = self.addresses.get(&source).into_iter();
        let mut own = ids.flat_map(|it| it.all()).filter_map(|it| self.held(*it));
        if let Some(held) = own.find(|it| !it.servers.is_empty() && nets.contains(&it.net)) {
            return held.servers.to_vec();
        }
        let mut all = nets.iter().filter_map(|it| self.net(*it));
        let servers = all.find(|it| !it.about.servers.is_empty());
        let servers = servers.map(|it| &*it.about.servers).unwrap_or_default();
        servers.iter().map(|it| it.0).collect()
    }

    /// Whether nothing of these networks is asked for outside.
    pub fn are_internal(&self, nets: &[NetId]) -> bool {
        let mut all = nets.iter().filter_map(|it| self.net(*it));
        all.all(|it| it.about.internal)
    }

    /// Looks a name in lower case up: in each network the whole name, then the name within a network
    /// or its domain.
    pub fn find(&self, nets: &[NetId], name: &str) -> Option<Hit<'_>> {
        let all = || nets.iter().filter_map(|it| self.net(*it));
        if let Some(hit) = all().find_map(|it| it.find(name)) {
            return Some(hit);
        }
        for (dot, _) in name.match_indices('.') {
            let (head, tail) = (&name[..dot], &name[dot + 1..]);
            let of_tail = |net: &&Net| net.suffixes().any(|it| it == tail);
            if let Some(hit) = all().filter(of_tail).find_map(|it| it.find(head)) {
                return Some(hit);
            }
        }
        None
    }

    /// The addresses of a name.
    pub fn addresses<'a>(&'a self, hit: Hit<'a>) -> impl Iterator<Item = IpAddr> + 'a {
        let of_containers = hit.ids.iter().filter_map(move |it| self.held(*it));
        let written = hit.data.iter().filter_map(|it| match it {
            StaticData::Addresses(addresses) => Some(addresses),
            _ => None,
        });
        let of_containers = of_containers.flat_map(|it| it.addresses.iter().copied());
        of_containers.chain(written.flatten().copied())
    }

    /// The name of an address, as clients of these networks see it.
    pub fn name_of(&self, nets: &[NetId], address: IpAddr) -> Option<(&Net, String)> {
        let ids = self.addresses.get(&address)?.all().iter();
        let visible = |it: &&Held| nets.contains(&it.net) && !it.names.is_empty();
        let held = ids.filter_map(|it| self.held(*it)).find(visible)?;
        let net = self.net(held.net)?;
        let domain = net.about.domain.as_ref().map_or(&*net.suffix, Name::as_str);
        Some((net, format!("{}.{domain}", held.names.first()?)))
    }

    /// Whether the address is in a subnet of a network of this node.
    pub fn has_subnet_of(&self, address: IpAddr) -> bool {
        let mut subnets = self.networks().flat_map(|it| &it.about.subnets);
        subnets.any(|it| it.0.contains(address))
    }

    /// The zone of ours in which the name is: the longest name or domain of a network.
    pub fn zone<'a>(&self, name: &'a str) -> Option<&'a str> {
        let mut rest = name;
        loop {
            if self.suffixes.contains_key(rest) {
                return Some(rest);
            }
            rest = rest.split_once('.')?.1;
        }
    }

    /// Up to `count` records from place `from` on whose namespaces are known, and the place to go on
    /// at; 0 after the last.
    pub fn namespaces(&self, from: usize, count: usize) -> (Vec<(Entry, Namespace)>, usize) {
        let mut found = Vec::new();
        let records = self.records.iter().skip(from).take(count).flatten();
        for held in records {
            let net = self
                .net(held.net)
                .map(|it| format!("{}/{}", it.directory, held.file));
            let entry = net.and_then(|it| it.parse::<Entry>().ok());
            if let (Some(entry), Some(namespace)) = (entry, &held.namespace) {
                found.push((entry, (**namespace).clone()));
            }
        }
        let next = from + count;
        (found, if next < self.records.len() { next } else { 0 })
    }

    /// All records.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |held: &Held| {
            let directory = &self.net(held.net)?.directory;
            format!("{directory}/{}", held.file).parse().ok()
        };
        self.records.iter().flatten().filter_map(entry).collect()
    }
}

impl Net {
    /// The name of its directory.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// How many records it has.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// How many names it has: those of containers and its own.
    pub fn names(&self) -> usize {
        let maps = [self.names.len(), self.wild.len()];
        maps.iter().sum::<usize>() + self.statics.len() + self.wildcards.len()
    }

    /// Where a container's name is kept, and by which key.
    fn place<'a>(&mut self, name: &'a Name) -> (&mut HashMap<Box<str>, Ids>, &'a str) {
        match name.wildcard() {
            Some(rest) => (&mut self.wild, rest),
            None => (&mut self.names, name.as_str()),
        }
    }

    fn change(&mut self, about: Network) {
        self.suffix = about.name.to_ascii_lowercase().into();
        self.statics.clear();
        self.wildcards.clear();
        for Static { name, data } in &about.records {
            let (map, key) = match name.wildcard() {
                Some(rest) => (&mut self.wildcards, rest),
                None => (&mut self.statics, name.as_str()),
            };
            map.entry(key.into()).or_default().push(data.clone());
        }
        self.about = about;
    }

    /// What may follow the name of a container.
    fn suffixes(&self) -> impl Iterator<Item = &str> {
        let domain = self.about.domain.as_ref().map(Name::as_str);
        std::iter::once(&*self.suffix).chain(domain)
    }

    fn find(&self, name: &str) -> Option<Hit<'_>> {
        let data = self.statics.get(name).map(Vec::as_slice);
        let ids = self.names.get(name).map(Ids::all);
        if ids.is_some() || data.is_some() {
            return Some(Hit {
                net: self,
                ids: ids.unwrap_or_default(),
                data: data.unwrap_or_default(),
            });
        }
        if self.wildcards.is_empty() && self.wild.is_empty() {
            return None;
        }
        let mut tails = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        tails.find_map(|tail| {
            let data = self.wildcards.get(tail).map(Vec::as_slice);
            let ids = self.wild.get(tail).map(Ids::all);
            let hit = Hit {
                net: self,
                ids: ids.unwrap_or_default(),
                data: data.unwrap_or_default(),
            };
            (ids.is_some() || data.is_some()).then_some(hit)
        })
    }
}

/// Whether a record is of this node. Those of others have the node before them, so they are no entries.
fn is_local(file: &str) -> bool {
    !file.contains('/')
}

/// Whether no name of the suffix leaves the node. A domain was chosen for that. A network may have a
/// name that is a top-level domain, too: then `<name>.<network>` may be a name of others, and is
/// forwarded if it is unknown here.
fn is_private(suffix: &str, net: &Net) -> bool {
    let is_domain = net
        .about
        .domain
        .as_ref()
        .is_some_and(|it| it.as_str() == suffix);
    let is_country = suffix.len() == 2 && suffix.bytes().all(|it| it.is_ascii_alphabetic());
    is_domain || !(is_country || PUBLIC.contains(&suffix))
}

/// Top-level domains that are likely names of networks.
const PUBLIC: [&str; 40] = [
    "academy", "agency", "app", "art", "bank", "biz", "blog", "box", "build", "cloud", "codes",
    "com", "data", "dev", "edu", "gov", "group", "host", "info", "int", "link", "live", "mil",
    "mobi", "name", "net", "network", "one", "online", "org", "page", "post", "pro", "run", "shop",
    "site", "store", "studio", "team", "tools",
];

fn add<K: std::hash::Hash + Eq>(map: &mut HashMap<K, Ids>, key: K, id: Id) {
    map.entry(key)
        .and_modify(|it| it.add(id))
        .or_insert(Ids::One([id]));
}

fn drop_id<K, Q>(map: &mut HashMap<K, Ids>, key: &Q, id: Id)
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    let Some(ids) = map.get_mut(key) else { return };
    let left: Vec<Id> = ids.all().iter().copied().filter(|it| *it != id).collect();
    match left[..] {
        [] => drop(map.remove(key)),
        [one] => *ids = Ids::One([one]),
        _ => *ids = Ids::Many(left),
    }
}
