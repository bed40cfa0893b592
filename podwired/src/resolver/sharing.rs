//! Names across hosts. The records of this node's pods in a network that spans nodes are in the store of
//! that network, and those of its other nodes in the index.
//!
//! A key is `<prefix of the network>/names/<node>/<record>`, its value the record without what concerns
//! one node alone, and the node's host name. All keys of a node have one lease, and end with it. What is known stays as long as the
//! store does not answer.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use names::{Directory, Entry, Network, Record};
use serde::{Deserialize, Serialize};
use store::{Error, Etcd, Event, Expected, File, LeaseId, Listing, Revision, Store};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use super::service::Service;
use crate::log;
use crate::overlay::feed::{FeedEvent, Pause, follow, keep};
use crate::overlay::{self, Source, owner};

/// How long the names of a node that has ended stay. An agent that is replaced is back by then.
const TTL: Duration = Duration::from_secs(30);
/// How long to wait before what has failed is written again.
const RETRY: Duration = Duration::from_millis(500);

/// The networks that span nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Where they are kept.
    pub source: Source,
    /// Of each, its name and what its keys in the store begin with.
    pub networks: Vec<(String, String)>,
}

impl Shared {
    /// Those of the overlay role.
    pub fn of(overlay: &overlay::Settings) -> Self {
        let networks = overlay.networks.iter();
        let networks = networks.map(|it| (it.name.clone(), it.prefix.clone()));
        Self {
            source: overlay.source.clone(),
            networks: networks.collect(),
        }
    }
}

/// Tasks that end with this value.
pub struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Begins to share.
///
/// # Errors
/// Files of the configuration cannot be read.
pub fn start(shared: Option<Shared>, service: &Rc<Service>) -> anyhow::Result<Tasks> {
    let Some(shared) = shared else {
        return Ok(Tasks(Vec::new()));
    };
    let tasks = match &shared.source {
        Source::Etcd(access) => spawn_all(&Rc::new(Etcd::new(access.clone())?), &shared, service),
        Source::File(path) => spawn_all(&Rc::new(File::new(path.clone())), &shared, service),
        Source::Kubernetes(..) => {
            // Nodes have no keys for them, and a cluster has names of its own: those of Services.
            log::info(format_args!(
                "resolver: on Kubernetes, names stay on their node"
            ));
            Vec::new()
        }
    };
    Ok(Tasks(tasks))
}

fn spawn_all<S: Store + 'static>(
    store: &Rc<S>,
    shared: &Shared,
    service: &Rc<Service>,
) -> Vec<JoinHandle<()>> {
    let spawn = |(name, prefix): &(String, String)| {
        let directory = cni::names::short(name);
        let (sender, changed) = unbounded_channel();
        let mut shared = service.shared.borrow_mut();
        shared.insert(directory.clone(), sender);
        let sharing = Sharing {
            store: Rc::clone(store),
            service: Rc::clone(service),
            name: name.clone(),
            directory,
            prefix: format!("{prefix}/names/"),
            node: owner().replace('/', "-"),
            own: BTreeMap::new(),
            pending: BTreeSet::new(),
        };
        spawn_local(sharing.run(changed))
    };
    shared.networks.iter().map(spawn).collect()
}

/// A record in the store.
#[derive(Serialize, Deserialize)]
struct Public {
    /// The host name of its node. A key has what no other node can have, but no person knows.
    #[serde(default)]
    node: String,
    #[serde(flatten)]
    record: Record,
}

/// One network.
struct Sharing<S> {
    store: Rc<S>,
    service: Rc<Service>,
    name: String,
    /// Of its records on disk.
    directory: String,
    prefix: String,
    /// This node, in keys.
    node: String,
    /// The keys of this node by the names of their records, with their last changes.
    own: BTreeMap<String, Revision>,
    /// Records that have changed and are not written yet.
    pending: BTreeSet<String>,
}

impl<S: Store + 'static> Sharing<S> {
    async fn run(mut self, mut changed: UnboundedReceiver<String>) {
        let mut pause = Pause::new();
        let mut reported = String::new();
        loop {
            let why = match self.session(&mut changed).await {
                Ok(()) => {
                    pause = Pause::new();
                    "the lease of this node has ended".to_owned()
                }
                Err(error) => error.to_string(),
            };
            if reported != why {
                log::warn(format_args!("names of {} across hosts: {why}", self.name));
                reported = why;
            }
            pause.wait().await;
        }
    }

    /// Shares until the lease has ended.
    ///
    /// # Errors
    /// The store does not answer at the beginning.
    async fn session(&mut self, changed: &mut UnboundedReceiver<String>) -> Result<(), Error> {
        let listing = self.store.list(&self.prefix).await?;
        self.take_all(&listing);
        let lease = self.store.grant(TTL).await?;
        let entries = Directory::default().entries(&self.directory);
        let files = entries.unwrap_or_default().into_iter();
        self.pending = files.map(|it| it.file().to_owned()).collect();
        self.pending.extend(self.own.keys().cloned());
        let (sender, mut events) = unbounded_channel();
        let (store, prefix) = (Rc::clone(&self.store), self.prefix.clone());
        let from = listing.revision + 1;
        let _tasks = Tasks(vec![
            spawn_local(follow(store, prefix, from, sender.clone())),
            spawn_local(keep(Rc::clone(&self.store), lease, TTL, sender)),
        ]);
        loop {
            // What fails stays pending.
            let _ = self.publish(lease).await;
            tokio::select! {
                file = changed.recv() => self.pending.extend(file),
                item = events.recv() => match item {
                    Some(FeedEvent::Changes(events)) => events.into_iter().for_each(|it| self.take(it)),
                    Some(FeedEvent::Listing(listing)) => self.take_all(&listing),
                    Some(FeedEvent::Answers | FeedEvent::Away(_)) => {}
                    Some(FeedEvent::LeaseEnded) | None => return Ok(()),
                },
                () = sleep(RETRY), if !self.pending.is_empty() => {}
            }
        }
    }

    /// Writes what has changed here.
    async fn publish(&mut self, lease: LeaseId) -> Result<(), Error> {
        while let Some(file) = self.pending.first().cloned() {
            let key = format!("{}{}/{file}", self.prefix, self.node);
            let before = self.own.get(&file).copied();
            let is_done = match (self.value(&file), before) {
                (Some(value), _) => {
                    let expected = before.map_or(Expected::Absent, Expected::At);
                    let put = self.store.put(&key, &value, expected, Some(lease)).await?;
                    put.map(|revision| self.own.insert(file.clone(), revision))
                        .is_some()
                }
                (None, Some(revision)) => {
                    let is_deleted = self.store.delete(&key, revision).await?;
                    is_deleted && self.own.remove(&file).is_some()
                }
                (None, None) => true,
            };
            if is_done {
                self.pending.remove(&file);
                continue;
            }
            // A call has done its work, and its answer was lost.
            match self.store.get(&key).await? {
                Some(found) => self.own.insert(file, found.revision),
                None => self.own.remove(&file),
            };
        }
        Ok(())
    }

    /// What other nodes are to know of a record; `None` if there is none.
    fn value(&self, file: &str) -> Option<Vec<u8>> {
        let entry: Entry = format!("{}/{file}", self.directory).parse().ok()?;
        let record = Directory::default().read(&entry).ok()??;
        let hostname = netlink::sysctl::read("kernel/hostname");
        let public = Public {
            node: hostname.unwrap_or_default(),
            record: self.public(record),
        };
        serde_json::to_vec(&public).ok()
    }

    /// A record without what concerns one node alone.
    fn public(&self, record: Record) -> Record {
        let network = Network {
            name: self.name.clone(),
            ..Network::default()
        };
        Record {
            network,
            namespace: None,
            servers: Vec::new(),
            asks: Vec::new(),
            ..record
        }
    }

    /// The node and the record of a key.
    fn parts<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)> {
        key.strip_prefix(self.prefix.as_str())?.split_once('/')
    }

    /// Takes over what the store has.
    fn take_all(&mut self, listing: &Listing) {
        self.own.clear();
        let mut found = BTreeSet::new();
        for entry in &listing.entries {
            match self.parts(&entry.key) {
                Some((node, file)) if node == self.node => {
                    self.own.insert(file.to_owned(), entry.revision);
                }
                Some((node, file)) => {
                    found.insert(format!("{node}/{file}"));
                    self.learn(node, file, &entry.value);
                }
                None => {}
            }
        }
        let known = self.service.index.borrow().remote(&self.directory);
        for gone in known.iter().filter(|it| !found.contains(*it)) {
            self.forget(gone);
        }
    }

    /// Takes over a change.
    fn take(&mut self, event: Event) {
        let key = match &event {
            Event::Put(entry) => &entry.key,
            Event::Delete { key } => key,
        };
        let Some((node, file)) = self.parts(key) else {
            return;
        };
        match &event {
            Event::Delete { .. } if node == self.node => {
                // Not by this node, if it knows the key.
                if self.own.remove(file).is_some() {
                    self.pending.insert(file.to_owned());
                }
            }
            Event::Put(_) if node == self.node => {}
            Event::Put(entry) => self.learn(node, file, &entry.value),
            Event::Delete { .. } => self.forget(&format!("{node}/{file}")),
        }
    }

    fn learn(&self, node: &str, file: &str, value: &[u8]) {
        match serde_json::from_slice::<Public>(value) {
            Ok(public) => {
                let mut index = self.service.index.borrow_mut();
                let (file, record) = (format!("{node}/{file}"), self.public(public.record));
                index.put_remote(&self.directory, &file, &public.node, record);
            }
            Err(error) => log::warn(format_args!("{}{node}/{file}: {error}", self.prefix)),
        }
    }

    fn forget(&self, file: &str) {
        let mut index = self.service.index.borrow_mut();
        index.remove_remote(&self.directory, file);
    }
}
