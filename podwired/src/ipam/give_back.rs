//! Now and then: blocks that are idle go back, and the store gets to know how full the others are.

use std::rc::Rc;

use pools::{Block, Claim, Time};
use store::Transactions;
use tokio::time::sleep;

use super::transaction::Change;
use super::{Role, SWEEP};
use crate::log;

/// For how many idle blocks of a pool one sweep asks the store.
const GIVEN_BACK_AT_ONCE: usize = 64;
/// How often the number of used addresses is written to the store, for people: in seconds.
const SUMMARY: u32 = 10;
/// The same for an API server, which other programs use, too: each write is an event for each node.
const SUMMARY_OF_RECORDS: u32 = 60;

impl<S: Transactions + 'static> Role<S> {
    /// Now and then: what is idle goes back, what DELs have left is released.
    pub(super) async fn sweep(self: Rc<Self>) {
        let mut turn = 0_u32;
        let summary = if S::IS_ATOMIC {
            SUMMARY
        } else {
            SUMMARY_OF_RECORDS
        };
        loop {
            sleep(SWEEP).await;
            turn = turn.wrapping_add(1);
            if let Err(error) = self.node.borrow_mut().release_late() {
                log::warn(format_args!(
                    "ipam: releases of DELs without an agent: {error:#}"
                ));
            }
            if !self.is_fenced_in() {
                continue;
            }
            for (pool, block) in self.idle_blocks() {
                self.give_back(&pool, block).await;
            }
            if turn.is_multiple_of(summary) {
                self.write_summaries().await;
            }
        }
    }

    /// Blocks that this node does not need. One stays in reserve.
    fn idle_blocks(&self) -> Vec<(String, Block)> {
        let (view, node, now) = (self.view.borrow(), self.node.borrow(), Time::now());
        let mut all = Vec::new();
        for (pool, book) in node.books() {
            let cool_down = self.cool_down(pool).max(SWEEP);
            let (kept, mut reserve) = (view.kept.get(pool), [1, 1]);
            let idle = book.empty_blocks().filter(|block| {
                book.is_idle(*block, cool_down, now)
                    && !kept.is_some_and(|it| it.iter().any(|ip| block.contains(*ip)))
            });
            for block in idle {
                let reserve = &mut reserve[usize::from(block.span().0.is_ipv4())];
                if !block.is_single() && *reserve > 0 {
                    *reserve -= 1;
                } else if let Some(seen) = view.claim(pool, block)
                    && seen.value.lent.is_empty()
                {
                    all.push((pool.to_owned(), block));
                }
            }
        }
        all.truncate(GIVEN_BACK_AT_ONCE);
        all
    }

    /// Gives a block back, unless it has been used since.
    async fn give_back(&self, pool: &str, block: Block) {
        // The one before may have changed it: single addresses of one block share a key.
        let Some(seen) = self.own_claim(pool, block) else {
            return;
        };
        let mark = (pool.to_owned(), block);
        {
            let mut node = self.node.borrow_mut();
            if node.book(pool).used(block) > 0 {
                return;
            }
            node.book(pool).lose(block);
        }
        self.leaving.borrow_mut().insert(mark.clone());
        let change = Change {
            pool,
            block,
            seen: Some(&seen),
            claim: None,
        };
        let done = self.change(&change, None, None).await;
        self.resolve(pool, block, &seen, done).await;
        self.leaving.borrow_mut().remove(&mark);
        self.settle_block(pool, block);
    }

    /// Writes how many addresses of each block are in use.
    async fn write_summaries(&self) {
        let differing: Vec<_> = {
            let (view, node) = (self.view.borrow(), self.node.borrow());
            let books = node.books();
            let all = books.flat_map(|(pool, book)| book.blocks().map(move |it| (pool, book, it)));
            all.filter_map(|(pool, book, (block, _))| {
                let seen = view.claim(pool, block)?;
                let used = book.used(block);
                if view.around(pool, block).is_some() {
                    return None;
                }
                (seen.value.used != used).then(|| (pool.to_owned(), block, seen.clone(), used))
            })
            .take(GIVEN_BACK_AT_ONCE)
            .collect()
        };
        for (pool, block, seen, used) in differing {
            let change = Change {
                pool: &pool,
                block,
                seen: Some(&seen),
                claim: Some(Claim {
                    used,
                    ..seen.value.clone()
                }),
            };
            // It is only for people.
            let _ = self.change(&change, None, None).await;
        }
    }
}
