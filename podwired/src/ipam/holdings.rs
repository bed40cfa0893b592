//! The books follow the store: a block that it says is this node's is held, another one is not.

use pools::{Block, Claim, Node, Time};
use store::Transactions;

use super::Role;
use super::view::Touched;
use crate::log;

impl<S: Transactions + 'static> Role<S> {
    /// Brings the books in line with the whole store: after a list.
    pub(super) fn settle_all(&self) {
        let mut all: Vec<Touched> = Vec::new();
        for (pool, blocks) in &self.view.borrow().blocks {
            all.extend(blocks.keys().map(|block| (pool.clone(), *block)));
        }
        for (pool, book) in self.node.borrow().books() {
            all.extend(book.blocks().map(|(block, _)| (pool.to_owned(), block)));
        }
        self.faults.borrow_mut().forget_doubts();
        self.settle(&all);
    }

    /// Brings the books in line with what the store says of these blocks.
    pub(super) fn settle(&self, touched: &[Touched]) {
        // Single addresses first: one that has come back is restored to the block around it.
        let (singles, others): (Vec<_>, Vec<_>) = touched.iter().partition(|it| it.1.is_single());
        for (pool, block) in singles.into_iter().chain(others) {
            self.settle_block(pool, *block);
        }
    }

    /// The same for one block.
    pub(super) fn settle_block(&self, pool: &str, block: Block) {
        let (view, mut node) = (self.view.borrow(), self.node.borrow_mut());
        let claim = view.claim(pool, block).map(|it| &it.value);
        let journal = node.journal();
        let is_ours = claim.is_some_and(|it| it.node == self.settings.node);
        let is_own = is_ours && claim.is_some_and(|it| it.journal == journal.name());
        let is_doubtful = is_ours && !is_own && claim.is_some_and(|it| it.boot == journal.boot());
        self.faults.borrow_mut().doubt(pool, block, is_doubtful);
        // What is about to be another node's is not held any more.
        let is_leaving = self.leaving.borrow().contains(&(pool.to_owned(), block));
        match claim.filter(|_| is_own) {
            Some(claim) if !is_leaving => self.settle_own(&mut node, pool, block, claim),
            None if node.holds(pool, block) => {
                let book = node.book(pool);
                book.lose(block);
                let by = claim.map_or("no node", |it| &it.node);
                self.note_lost(pool, block, by, &book.orphans(block));
            }
            _ => {}
        }
    }

    /// Holds a block that is this node's, without what is lent.
    fn settle_own(&self, node: &mut Node, pool: &str, block: Block, claim: &Claim) {
        let (book, lent) = (node.book(pool), claim.lent_addresses());
        if !book.blocks_contain(block, claim.epoch) {
            book.hold(block, claim.epoch, &lent);
            self.faults.borrow_mut().held(pool, block);
            return;
        }
        for ip in &lent {
            book.withdraw(block, *ip);
        }
        // A lent address comes back when the node that had it takes it off the list.
        let lending = self.lending.borrow();
        let back: Vec<_> = book
            .lent(block)
            .filter(|ip| !lent.contains(ip) && !lending.contains(&(pool.to_owned(), *ip)))
            .collect();
        for ip in back {
            book.restore(block, ip, Time::now());
        }
    }

    /// Says that pods of this node have addresses of a block that is another node's now.
    fn note_lost(&self, pool: &str, block: Block, by: &str, clashes: &[pools::Lease]) {
        let count = clashes.len();
        log::warn(format_args!(
            "ipam: block {block} of {pool} belongs to {by} now; {count} addresses of pods here are in it"
        ));
        if count > 0 {
            let mut faults = self.faults.borrow_mut();
            faults.clash(pool, block, by, clashes);
        }
    }
}
