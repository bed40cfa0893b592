//! What the role says of itself: in a status, to `podwire ipam`, and as metrics.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use pools::{Block, Lease, Time};
use serde_json::{Value, json};
use store::Transactions;

use super::Role;
use crate::metrics::Page;

/// What has happened since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub claimed: Cell<u64>,
    pub taken_over: Cell<u64>,
    pub borrowed: Cell<u64>,
    pub refused: Cell<u64>,
}

/// What is wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Blocks of other nodes in which pods here have addresses.
    clashes: BTreeMap<(String, Block), (String, Vec<Lease>)>,
    /// Blocks that this machine has claimed since it was started, with a journal that is gone. Pods
    /// may have their addresses.
    doubtful: BTreeSet<(String, Block)>,
}

impl Faults {
    /// A block is this node's.
    pub fn held(&mut self, pool: &str, block: Block) {
        self.clashes.remove(&(pool.to_owned(), block));
    }

    /// Pods here have addresses of a block of the node `by`.
    pub fn clash(&mut self, pool: &str, block: Block, by: &str, leases: &[Lease]) {
        let value = (by.to_owned(), leases.to_vec());
        self.clashes.insert((pool.to_owned(), block), value);
    }

    /// A block is one of a journal that is gone, or not.
    pub fn doubt(&mut self, pool: &str, block: Block, is_doubtful: bool) {
        let key = (pool.to_owned(), block);
        if is_doubtful {
            self.doubtful.insert(key);
        } else {
            self.doubtful.remove(&key);
        }
    }

    /// What is doubtful is found anew.
    pub fn forget_doubts(&mut self) {
        self.doubtful.clear();
    }
}

impl<S: Transactions + 'static> Role<S> {
    /// All pools, blocks, owners, and what is wrong.
    pub(super) fn status(&self) -> Value {
        let (view, node, now) = (self.view.borrow(), self.node.borrow(), Time::now());
        let mut pools: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        let books: BTreeMap<&str, &pools::Book> = node.books().collect();
        for (pool, blocks) in &view.blocks {
            let book = books.get(pool.as_str());
            let all = blocks.iter().map(|(block, seen)| {
                let claim = &seen.value;
                let held = book.filter(|it| it.blocks_contain(*block, claim.epoch));
                json!({
                    "block": block,
                    "node": claim.node,
                    "epoch": claim.epoch,
                    "lent": claim.lent_addresses(),
                    "used": held.map_or(claim.used, |it| it.used(*block)),
                    "free": held.map(|it| it.free(*block)),
                    "held": held.is_some(),
                    "lives": view.nodes.contains_key(&claim.node),
                })
            });
            pools.insert(pool, all.collect());
        }
        let faults = self.faults.borrow();
        json!({
            "node": self.settings.node,
            "fenceSecondsLeft": self.fence.get().since(now).as_secs_f64(),
            "nodes": view.nodes.keys().collect::<BTreeSet<_>>(),
            "pools": pools,
            "use": self.use_of_networks(),
            "names": view.names.len(),
            "clashes": self.clashes(&faults, &books),
            "doubtful": faults.doubtful.iter().map(|(pool, block)| {
                json!({"pool": pool, "block": block})
            }).collect::<Vec<_>>(),
        })
    }

    fn use_of_networks(&self) -> BTreeMap<String, usize> {
        let (node, mut count) = (self.node.borrow(), BTreeMap::new());
        for (_, book) in node.books() {
            for lease in book.leases() {
                *count.entry(lease.owner.network.clone()).or_default() += 1;
            }
        }
        count
    }

    fn clashes(&self, faults: &Faults, books: &BTreeMap<&str, &pools::Book>) -> Vec<Value> {
        let mut all = Vec::new();
        for ((pool, block), (by, leases)) in &faults.clashes {
            for lease in leases {
                let book = books.get(pool.as_str());
                let lives = book.and_then(|it| it.lease(lease.ip));
                if lives.is_some_and(|it| it.sequence == lease.sequence) {
                    all.push(json!({
                        "pool": pool, "block": block, "address": lease.ip,
                        "owner": lease.owner.to_string(), "blockOf": by,
                    }));
                }
            }
        }
        all
    }

    /// The metrics.
    pub(super) fn metrics(&self) -> Page {
        let (node, now) = (self.node.borrow(), Time::now());
        let faults = self.faults.borrow();
        let books: BTreeMap<&str, &pools::Book> = node.books().collect();
        let clashes = self.clashes(&faults, &books).len() as u64;
        let mut page = Page::default();
        let left = self.fence.get().since(now).as_secs_f64();
        let name = "podwired_ipam_fence_seconds_left";
        page.single(
            name,
            "gauge",
            "Recipient how long this node may allocate unless its lease is renewed.",
            left,
        );
        let counters = &self.counters;
        for (name, kind, help, value) in [
            (
                "clashes",
                "gauge",
                "Addresses of pods here in blocks of other nodes.",
                clashes,
            ),
            (
                "blocks_doubtful",
                "gauge",
                "Blocks whose journal is gone.",
                faults.doubtful.len() as u64,
            ),
            (
                "blocks_claimed_total",
                "counter",
                "Blocks that this node has claimed.",
                counters.claimed.get(),
            ),
            (
                "blocks_taken_over_total",
                "counter",
                "Blocks taken from lost nodes.",
                counters.taken_over.get(),
            ),
            (
                "borrowed_total",
                "counter",
                "Addresses and blocks that other nodes gave.",
                counters.borrowed.get(),
            ),
            (
                "refused_total",
                "counter",
                "ADDs that got no address.",
                counters.refused.get(),
            ),
        ] {
            page.single(&format!("podwired_ipam_{name}"), kind, help, value);
        }
        type Count = fn(&pools::Book) -> usize;
        let used: Count = |book| book.leases().count();
        let free: Count = |book| book.blocks().map(|(it, _)| book.free(it)).sum();
        let blocks: Count = |book| book.blocks().count();
        for (name, help, count) in [
            ("addresses_used", "Addresses of pods here.", used),
            (
                "addresses_free",
                "Addresses of this node's blocks that no pod has.",
                free,
            ),
            ("blocks_held", "Blocks of this node.", blocks),
        ] {
            let name = format!("podwired_ipam_{name}");
            page.begin(&name, "gauge", help);
            for (pool, book) in &books {
                page.sample(&name, &[("pool", pool)], count(book));
            }
        }
        page
    }
}
