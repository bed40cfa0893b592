//! The role `ipam`: addresses that are unique in a cluster, for the plugin `cluster`.
//!
//! | question | answer |
//! |---|---|
//! | which addresses of a block are free; what is on disk | `crates/pools` |
//! | what the store says, and what its keys mean | [`view`] |
//! | when this node may allocate at all: lease and fence | [`session`] |
//! | how a node gets blocks and addresses, and gives them away | [`supply`] |
//! | what plugins and `podwire ipam` ask | [`desk`] |
//!
//! Why no address gets two owners: `docs/cluster-addresses.md`.

mod conf;
mod desk;
mod session;
mod status;
mod supply;
mod view;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use pools::{Block, Claim, Node, Owner, Time};
use store::{Etcd, Expected, File, LeaseId, Revision, Transactions, Write};
use tokio::sync::{Mutex, watch};
use tokio::task::spawn_local;

use crate::log;
use crate::overlay::Source;
use crate::roles::{Ask, Desk};

pub use conf::{Conf, DATA_DIR, Settings};
use view::{Seen, View};

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
    /// How long addresses of a pool rest, as its last ADD said.
    cool_downs: RefCell<HashMap<String, Duration>>,
    /// What is wrong, by subject.
    faults: RefCell<status::Faults>,
    counters: status::Counters,
    wants: Cell<u64>,
}

/// Serves until the desk's asks end. All leases stay.
///
/// # Errors
/// The journal cannot be read, or another agent has it.
pub async fn serve(settings: Settings, desk: Desk) -> Result<()> {
    match settings.source.clone() {
        Source::Etcd(access) => run(settings, Etcd::new(access)?, desk).await,
        Source::File(path) => run(settings, File::new(path), desk).await,
        // No key of this role names it.
        Source::Kubernetes(..) => bail!("nodes of Kubernetes cannot hold blocks of addresses"),
    }
}

async fn run<S: Transactions + 'static>(
    settings: Settings,
    store: S,
    mut desk: Desk,
) -> Result<()> {
    let mut node = Node::open(&settings.data_dir)?;
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
        spawn_local(Rc::clone(&role).keep_session(desk.readiness.clone())),
        spawn_local(Rc::clone(&role).sweep()),
        spawn_local(Rc::clone(&role).serve_wants()),
    ];
    desk.started();
    desk.idle.send_replace(false);
    while let Some(ask) = desk.asks.recv().await {
        match ask {
            Ask::Request(request, reply) => {
                let role = Rc::clone(&role);
                spawn_local(async move {
                    if let Err(unread) = reply.send(role.answer(request).await) {
                        role.take_back(unread);
                    }
                });
            }
            Ask::Status(reply) => drop(reply.send(role.status())),
            Ask::Metrics(reply) => drop(reply.send(role.metrics())),
            Ask::IsIdle(reply) => drop(reply.send(false)),
        }
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

impl<S: Transactions + 'static> Role<S> {
    /// Until when this node may allocate, and vouches for what it has handed out.
    fn fence(&self) -> Time {
        // The fault that the model check has to find (`tests/tests/cluster/model.rs`).
        match cfg!(feature = "unfenced") {
            true => Time(u64::MAX / 4),
            false => self.fence.get(),
        }
    }

    /// Whether this node may allocate now.
    fn is_fenced_in(&self) -> bool {
        Time::now() < self.fence()
    }

    /// Tells all who wait that something has changed.
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

    /// The value of this node's next claim of a block that had `before`.
    fn claim(&self, before: Option<&Claim>) -> Claim {
        let node = self.node.borrow();
        Claim {
            node: self.settings.node.clone(),
            journal: node.journal().name().to_owned(),
            boot: node.journal().boot().to_owned(),
            epoch: before.map_or(0, |it| it.epoch) + 1,
            lent: before.map(|it| it.lent.clone()).unwrap_or_default(),
            used: 0,
        }
    }

    /// Makes changes in the store, if all keys are as expected and this node's lease lives.
    ///
    /// # Errors
    /// The store fails. The changes may have happened, or may still happen.
    async fn commit(
        &self,
        expected: &[(&str, Expected)],
        writes: &[Write<'_>],
    ) -> Result<Option<Revision>, store::Error> {
        let Some((session, _)) = self.session.get() else {
            return Ok(None);
        };
        let own = self.view.borrow().node_key(&self.settings.node);
        let mut all = vec![(own.as_str(), Expected::At(session))];
        all.extend_from_slice(expected);
        self.store.commit(&all, writes).await
    }

    /// Writes a claim of a block that was seen as `seen`. Returns whether it was still so.
    async fn put_claim(
        &self,
        pool: &str,
        block: Block,
        seen: Option<Revision>,
        claim: &Claim,
    ) -> Result<bool, store::Error> {
        let key = self.view.borrow().block_key(pool, block);
        let value = serde_json::to_vec(claim).unwrap_or_default();
        let expected = seen.map_or(Expected::Absent, Expected::At);
        let put = [Write::Put(&key, &value, None)];
        let done = self.commit(&[(&key, expected)], &put).await?;
        Ok(done.is_some())
    }

    /// Brings the books in line with the store: blocks that it says are this node's are held, others
    /// are not.
    fn settle(&self) {
        let (view, mut node) = (self.view.borrow(), self.node.borrow_mut());
        let journal = node.journal().name().to_owned();
        let is_own = |it: &Claim| it.node == self.settings.node && it.journal == journal;
        let leaving = self.leaving.borrow();
        for (pool, blocks) in &view.blocks {
            for (block, seen) in blocks {
                if is_own(&seen.value) && !leaving.contains(&(pool.clone(), *block)) {
                    self.settle_own(&mut node, pool, *block, &seen.value);
                }
            }
        }
        let mut lost = Vec::new();
        for (pool, book) in node.books() {
            let claims = view.blocks.get(pool);
            for (block, epoch) in book.blocks() {
                let claim = claims.and_then(|it| it.get(&block));
                let is_same = |it: &&Seen<Claim>| is_own(&it.value) && it.value.epoch == epoch;
                if claim.filter(is_same).is_none() {
                    lost.push((
                        pool.to_owned(),
                        block,
                        claim.map(|it| it.value.node.clone()),
                    ));
                }
            }
        }
        for (pool, block, by) in lost {
            let book = node.book(&pool);
            book.lose(block);
            self.note_lost(&pool, block, by, &book.orphans(block));
        }
        self.faults
            .borrow_mut()
            .note_doubtful(&view, &node, &self.settings.node);
    }

    fn settle_own(&self, node: &mut Node, pool: &str, block: Block, claim: &Claim) {
        let book = node.book(pool);
        if !book.blocks_contain(block, claim.epoch) {
            book.lose(block);
            book.hold(block, claim.epoch, &claim.lent);
            self.faults.borrow_mut().held(pool, block);
            return;
        }
        // A lent address comes back when the node that had it takes it off the list.
        let lending = self.lending.borrow();
        for ip in &claim.lent {
            if Block::single(*ip) != block && book.block_of(*ip) == Some(block) {
                book.withdraw(*ip);
            }
        }
        if book.withdrawn(block) == claim.lent.len() {
            return;
        }
        for ip in block.addresses() {
            let is_lent = claim.lent.contains(&ip) || lending.contains(&(pool.to_owned(), ip));
            if !is_lent && book.block_of(ip) == Some(block) && book.is_withdrawn(ip) {
                book.restore(ip, Time::now());
            }
        }
    }

    /// Says that pods of this node have addresses of a block that is another node's now.
    fn note_lost(&self, pool: &str, block: Block, by: Option<String>, clashes: &[pools::Lease]) {
        let by = by.unwrap_or_else(|| "no node".into());
        let count = clashes.len();
        log::warn(format_args!(
            "ipam: block {block} of {pool} belongs to {by} now; {count} addresses of pods here are in it"
        ));
        if count > 0 {
            let mut faults = self.faults.borrow_mut();
            faults.clash(pool, block, &by, clashes);
        }
    }
}
