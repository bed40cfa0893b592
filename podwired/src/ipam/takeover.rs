//! Blocks of nodes that are lost: their keys are gone, and the grace is over.

use std::time::Duration;

use pools::{Block, Claim, Span, Time};
use store::{Expected, Transactions};

use super::Role;
use super::supply::Shortage;
use super::transaction::Change;
use super::view::Seen;
use crate::log;

impl<S: Transactions + 'static> Role<S> {
    /// Whether the node of a block is lost.
    pub(super) fn is_lost(&self, claim: &Claim) -> bool {
        let (view, now) = (self.view.borrow(), Time::now());
        view.is_lost(&claim.node, self.settings.grace, now)
    }

    /// A block of a node that is lost; empty ones first, as its node last wrote.
    pub(super) fn lost_block(&self, pool: &str, spans: &[Span]) -> Option<(Block, Seen<Claim>)> {
        let (view, now) = (self.view.borrow(), Time::now());
        let blocks = view.blocks.get(pool)?;
        let fits = |(block, seen): &(&Block, &Seen<Claim>)| {
            let span = block.span();
            spans.iter().any(|it| it.overlaps(&span))
                && view.is_lost(&seen.value.node, self.settings.grace, now)
        };
        let lost = blocks.iter().filter(fits);
        let (block, seen) = lost.min_by_key(|(_, seen)| seen.value.used)?;
        Some((*block, seen.clone()))
    }

    /// Takes a block of a node that has no lease: the transaction finds its key absent.
    pub(super) async fn take_over(
        &self,
        pool: &str,
        block: Block,
        seen: &Seen<Claim>,
        deadline: Time,
    ) -> Result<bool, Shortage> {
        let claim = self.new_claim(Some(&seen.value));
        let epoch = claim.epoch;
        let theirs = self.view.borrow().node_key(&seen.value.node);
        let change = Change {
            pool,
            block,
            seen: Some(seen),
            claim: Some(claim),
        };
        let absent = (theirs.as_str(), Expected::Absent);
        let done = self.change(&change, Some(absent), None).await?;
        if done.is_none() {
            return Ok(false);
        }
        self.counters
            .taken_over
            .set(self.counters.taken_over.get() + 1);
        let (node, pool_name) = (&seen.value.node, pool);
        log::warn(format_args!(
            "ipam: block {block} of {pool_name} taken over from {node}, which has no lease"
        ));
        let appeared = || {
            self.node
                .borrow_mut()
                .book(pool)
                .blocks_contain(block, epoch)
                .then_some(())
        };
        self.wait_for(deadline, appeared).await;
        Ok(true)
    }

    /// Takes all blocks of a node that is gone for good. Returns how many.
    pub(super) async fn forget(&self, gone: &str) -> Result<usize, Shortage> {
        if self.view.borrow().nodes.contains_key(gone) {
            let more = if S::IS_ATOMIC {
                ""
            } else {
                "; the others end it when the cluster has no such Node any more"
            };
            let why = format!("node {gone} lives: it has a lease{more}");
            return Err(Shortage::Never(why));
        }
        let blocks: Vec<_> = {
            let view = self.view.borrow();
            let pools = view.blocks.iter();
            let all = pools.flat_map(|(pool, blocks)| blocks.iter().map(move |it| (pool, it)));
            all.filter(|(_, (_, seen))| seen.value.node == gone)
                .map(|(pool, (block, seen))| (pool.clone(), *block, seen.clone()))
                .collect()
        };
        let (mut count, deadline) = (0, Time::now().after(Duration::from_secs(4)));
        for (pool, block, seen) in blocks {
            count += usize::from(self.take_over(&pool, block, &seen, deadline).await?);
        }
        Ok(count)
    }
}
