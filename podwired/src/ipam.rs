//! The role `ipam`: addresses that are unique in a cluster, for the plugin `cluster`.
//!
//! | question | answer |
//! |---|---|
//! | which addresses of a block are free; what is on disk | `crates/pools` |
//! | what the store says, and what its keys mean | [`view`] |
//! | when this node may allocate at all: lease and fence | [`session`] |
//! | how a node gets addresses: which steps there are | [`supply`] |
//! | a block that no node has; one of a node that is lost | [`claim`], [`takeover`] |
//! | what a node wants of others; what it gives them | [`borrow`], [`lend`] |
//! | what it does not need | [`give_back`] |
//! | how all of that is written to the store | [`transaction`] |
//! | which blocks are allocated from, as the store says | [`holdings`] |
//! | what plugins and `podwire ipam` ask | [`calls`] |
//!
//! Why no address gets two owners: `docs/cluster-addresses.md`.

mod borrow;
mod calls;
mod claim;
mod conf;
mod give_back;
mod holdings;
mod lend;
mod session;
mod status;
mod supply;
mod takeover;
mod transaction;
mod view;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use pools::{Block, Node, Owner, Time};
use store::{Etcd, File, LeaseId, Place, Records, Revision, Transactions};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_local;

use crate::roles::{Channels, Query};

pub use conf::{Conf, DATA_DIR, Settings, Source};
use view::View;

/// How often what is idle is given back, and what DELs have left is released.
const SWEEP: Duration = Duration::from_secs(1);

/// The role, as all its tasks share it.
struct Role<S> {
    settings: Settings,
    store: S,
    node: RefCell<Node>,
    view: RefCell<View>,
    /// Until when this node may allocate; zero before its blocks are confirmed.
    fence: Cell<Time>,
    /// The revision of this node's key and its lease, while it has a session.
    session: Cell<Option<(Revision, LeaseId)>>,
    /// Incremented with each change of the view or the fence.
    changed: watch::Sender<u64>,
    /// Blocks and addresses that are about to be another node's.
    leaving: RefCell<HashSet<(String, Block)>>,
    lending: RefCell<HashSet<(String, IpAddr)>>,
    /// One at a time gets more addresses for a pool.
    obtaining: RefCell<HashMap<String, Rc<Mutex<()>>>>,
    /// The attachments for which an ADD is on its way; true: their DEL has come.
    adding: RefCell<HashMap<Owner, bool>>,
    /// How long addresses of a pool rest, as its last ADD requested.
    cool_downs: RefCell<HashMap<String, Duration>>,
    /// What is wrong, by subject.
    faults: RefCell<status::Faults>,
    counters: status::Counters,
    wants: Cell<u64>,
}

/// Serves until the channel of its queries ends. All leases stay.
///
/// # Errors
/// The journal cannot be read, or another agent has it.
pub async fn serve(settings: Settings, channels: Channels) -> Result<()> {
    let node = Node::open(&settings.data_dir)?;
    match settings.source.clone() {
        Source::Etcd(access) => run(settings, Etcd::new(access)?, node, channels).await,
        Source::File(path) => run(settings, File::new(path), node, channels).await,
        Source::Kubernetes(access, namespace) => {
            let journal = node.journal();
            let place = Place {
                prefix: settings.prefix.clone(),
                namespace,
                node: settings.node.clone(),
                key: View::new(&settings.prefix).node_key(&settings.node),
                identity: format!("{}/{}", journal.name(), journal.boot()),
            };
            run(settings, Records::new(access, place)?, node, channels).await
        }
    }
}

async fn run<S: Transactions + 'static>(
    settings: Settings,
    store: S,
    mut node: Node,
    mut channels: Channels,
) -> Result<()> {
    node.release_late()?;
    let role = Rc::new(Role {
        view: RefCell::new(View::new(&settings.prefix)),
        settings,
        store,
        node: RefCell::new(node),
        fence: Cell::default(),
        session: Cell::default(),
        changed: watch::channel(0).0,
        leaving: RefCell::default(),
        lending: RefCell::default(),
        obtaining: RefCell::default(),
        adding: RefCell::default(),
        cool_downs: RefCell::default(),
        faults: RefCell::default(),
        counters: status::Counters::default(),
        wants: Cell::default(),
    });
    let tasks = [
        spawn_local(Rc::clone(&role).keep_session(channels.readiness.clone())),
        spawn_local(Rc::clone(&role).sweep()),
        spawn_local(Rc::clone(&role).serve_wants()),
        spawn_local(Rc::clone(&role).look_after_others()),
    ];
    channels.started();
    channels.idle.send_replace(false);
    while let Some(ask) = channels.queries.recv().await {
        match ask {
            Query::Request(request, reply) => {
                let role = Rc::clone(&role);
                spawn_local(async move {
                    if let Err(unread) = reply.send(role.answer(request).await) {
                        role.take_back(unread);
                    }
                });
            }
            Query::Status(reply) => drop(reply.send(role.status())),
            Query::Metrics(reply) => drop(reply.send(role.metrics())),
            Query::IsIdle(reply) => drop(reply.send(false)),
        }
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

impl<S: Transactions + 'static> Role<S> {
    /// Until when this node may allocate, and vouches for what it has handed out.
    fn fence(&self) -> Time {
        // The fault that the model check has to find (`tests/faults/src/cluster.rs`).
        if cfg!(feature = "unfenced") {
            Time(u64::MAX / 4)
        } else {
            self.fence.get()
        }
    }

    /// Whether this node may allocate now.
    fn is_fenced_in(&self) -> bool {
        Time::now() < self.fence()
    }

    /// Wakes all tasks that wait for a change.
    fn note_change(&self) {
        self.changed.send_modify(|it| *it += 1);
    }

    /// Waits until `done` returns something, or until `deadline`.
    async fn wait_for<T>(&self, deadline: Time, mut done: impl FnMut() -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = done() {
                return Some(found);
            }
            let left = deadline.since(Time::now());
            if left.is_zero() {
                return None;
            }
            let _ = tokio::time::timeout(left, changed.changed()).await;
        }
    }
}
