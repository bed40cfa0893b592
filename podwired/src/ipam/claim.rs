//! Blocks that no node has: this node claims one when it runs out, or is about to.

use std::rc::Rc;
use std::time::Duration;

use pools::{Block, Criteria, Set, Span, Time, candidates, usual_prefix};
use store::{Expected, Transactions, Write};
use tokio::task::spawn_local;

use super::Role;
use super::supply::Shortage;
use super::transaction::Change;

impl<S: Transactions + 'static> Role<S> {
    /// The length of the prefix of a pool's blocks. The first ADD of a pool decides it.
    pub(super) async fn length(&self, pool: &str, set: &Set) -> Result<u8, Shortage> {
        let Some(Span(first, _)) = set.spans.first() else {
            return Err(Shortage::Never("no address is left in the ranges".into()));
        };
        let is_ipv4 = first.is_ipv4();
        let key = (pool.to_owned(), is_ipv4);
        let found = |view: &super::View| view.lengths.get(&key).copied();
        let mut length = found(&self.view.borrow());
        if length.is_none() {
            let wanted = set.block.unwrap_or_else(|| usual_prefix(&set.spans));
            let name = self.view.borrow().length_key(pool, is_ipv4);
            let value = wanted.to_string();
            let put = [Write::Put(&name, value.as_bytes(), None)];
            self.commit(&[(&name, Expected::Absent)], &put).await?;
            let deadline = Time::now().after(Duration::from_secs(2));
            length = self.wait_for(deadline, || found(&self.view.borrow())).await;
        }
        let length = length.ok_or_else(|| Shortage::Now("the store is slow".into()))?;
        match set.block.filter(|it| *it != length) {
            Some(wanted) => Err(Shortage::Never(format!(
                "blockSize: /{wanted}, but pool {pool} has blocks of /{length} in the store"
            ))),
            None => Ok(length),
        }
    }

    /// A block with addresses of `spans` that no node has.
    pub(super) fn unclaimed(&self, pool: &str, spans: &[Span], length: u8) -> Option<Block> {
        let view = self.view.borrow();
        let name = self.settings.node.bytes();
        let seed = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut blocks = candidates(spans, length, seed);
        blocks.find(|it| view.is_unclaimed(pool, *it))
    }

    /// Claims a block, and waits until it is this node's. False if another node was faster.
    pub(super) async fn claim_block(
        &self,
        pool: &str,
        block: Block,
        deadline: Time,
    ) -> Result<bool, Shortage> {
        let claim = Change {
            pool,
            block,
            seen: None,
            claim: Some(self.new_claim(None)),
        };
        let is_claimed = self.change(&claim, None, None).await?.is_some();
        // Ours, or that of the faster node.
        let appeared = || self.view.borrow().claim(pool, block).map(drop);
        if self.session.get().is_none() || self.wait_for(deadline, appeared).await.is_none() {
            return Err(Shortage::Now(format!(
                "block {block} of the store is not seen in time"
            )));
        }
        if is_claimed {
            self.counters.claimed.set(self.counters.claimed.get() + 1);
        }
        Ok(is_claimed)
    }

    /// Claims another block where an ADD leaves few addresses, and others leave enough blocks.
    pub(super) fn keep_reserve(self: &Rc<Self>, pool: &str, set: &Set, length: u8) {
        let is_scarce = {
            let (view, mut node) = (self.view.borrow(), self.node.borrow_mut());
            let nothing = Rc::default();
            let criteria = Criteria {
                spans: &set.spans,
                kept: view.kept.get(pool).unwrap_or(&nothing),
                cool_down: self.cool_down(pool),
            };
            let half = Block::of(set.spans[0].0, length).addresses().count() / 2;
            let enough = half.max(1);
            node.book(pool).count(&criteria, Time::now(), enough) < enough
        };
        if !is_scarce {
            return;
        }
        let (role, pool, set) = (Rc::clone(self), pool.to_owned(), set.clone());
        spawn_local(async move {
            let lock = role.obtaining(&pool);
            let Ok(_one) = lock.try_lock() else { return };
            if let Some(block) = role.spare_block(&pool, &set.spans, length) {
                let deadline = Time::now().after(Duration::from_secs(5));
                // The next ADD tries again.
                let _ = role.claim_block(&pool, block, deadline).await;
            }
        });
    }

    /// A block that no node has, if one is left for each other node, too.
    fn spare_block(&self, pool: &str, spans: &[Span], length: u8) -> Option<Block> {
        let block = self.unclaimed(pool, spans, length)?;
        let view = self.view.borrow();
        let left = candidates(spans, length, 0).filter(|it| view.is_unclaimed(pool, *it));
        let nodes = view.nodes.len();
        (left.take(nodes + 1).count() > nodes).then_some(block)
    }
}
