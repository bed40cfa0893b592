//! How a node gets blocks and addresses, and gives them away.
//!
//! | step | transaction, always with this node's key as it is |
//! |---|---|
//! | claim | the block's key is absent → this node's |
//! | take over | the block as seen, its node's key absent → this node's, the next epoch |
//! | lend | the block as seen, the single address absent, the want as seen → the address is the other node's |
//! | hand over | the block as seen, the want as seen → the other node's, the next epoch |
//! | give back | the block as seen, nothing lent → absent; a single address: off the list of its block, too |

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use pools::{Block, Claim, Free, Set, Span, Time, Wish, candidates, usual_prefix};
use store::{Error, Expected, Revision, Transactions, Write};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::view::{Seen, Want};
use super::{Role, SWEEP};
use crate::log;

/// Why there is no address.
#[derive(Clone, Debug)]
pub(super) enum Short {
    /// It may pass.
    Now(String),
    /// The request is wrong.
    Never(String),
}

/// For how many idle blocks of a pool one sweep asks the store.
const GIVEN_BACK_AT_ONCE: usize = 64;
/// How often the number of used addresses is written to the store, for people.
const SUMMARY: u32 = 10;
/// How long addresses rest in pools that no ADD has mentioned yet.
const COOL_DOWN: Duration = Duration::from_secs(30);

impl<S: Transactions + 'static> Role<S> {
    /// The length of the prefix of a pool's blocks. The first ADD of a pool decides it.
    pub(super) async fn length(&self, pool: &str, set: &Set) -> Result<u8, Short> {
        let Some(Span(first, _)) = set.spans.first() else {
            return Err(Short::Never("no address is left in the ranges".into()));
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
        let length = length.ok_or_else(|| Short::Now("the store is slow".into()))?;
        match set.block.filter(|it| *it != length) {
            Some(wanted) => Err(Short::Never(format!(
                "blockSize: /{wanted}, but pool {pool} has blocks of /{length} in the store"
            ))),
            None => Ok(length),
        }
    }

    /// Gets at least one more address for `wish` from the store.
    pub(super) async fn obtain(
        &self,
        pool: &str,
        wish: &Wish<'_>,
        length: u8,
        deadline: Time,
    ) -> Result<(), Short> {
        while let Some(block) = self.unclaimed(pool, wish.spans, length) {
            if self.claim_block(pool, block, None, deadline).await? {
                return Ok(());
            }
        }
        if let Some((block, seen)) = self.lost_block(pool, wish.spans) {
            self.take_over(pool, block, &seen, deadline).await?;
            return Ok(());
        }
        self.borrow_address(pool, Wanted::Any(wish), deadline).await
    }

    /// Makes this address one of this node's.
    pub(super) async fn obtain_ip(
        &self,
        pool: &str,
        ip: IpAddr,
        length: u8,
        deadline: Time,
    ) -> Result<(), Short> {
        let found = {
            let view = self.view.borrow();
            let found = view.block_of(pool, ip);
            found.map(|(block, seen)| (block, seen.clone()))
        };
        match found {
            None => {
                let block = Block::of(ip, length);
                self.claim_block(pool, block, None, deadline).await?;
                Ok(())
            }
            Some((_, seen)) if seen.value.node == self.settings.node => Ok(()),
            Some((block, seen)) if self.is_lost(&seen.value) => {
                self.take_over(pool, block, &seen, deadline).await?;
                Ok(())
            }
            Some(_) => self.borrow_address(pool, Wanted::This(ip), deadline).await,
        }
    }

    fn is_lost(&self, claim: &Claim) -> bool {
        let (view, now) = (self.view.borrow(), Time::now());
        view.is_lost(&claim.node, self.settings.grace, now)
    }

    /// A block with addresses of `spans` that no node has.
    fn unclaimed(&self, pool: &str, spans: &[Span], length: u8) -> Option<Block> {
        let view = self.view.borrow();
        let name = self.settings.node.bytes();
        let seed = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut blocks = candidates(spans, length, seed);
        blocks.find(|it| view.is_unclaimed(pool, *it))
    }

    /// A block of a node that is lost; empty ones first, as its node last said.
    fn lost_block(&self, pool: &str, spans: &[Span]) -> Option<(Block, Seen<Claim>)> {
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

    /// Claims a block, and waits until it is this node's. False if another node was faster.
    async fn claim_block(
        &self,
        pool: &str,
        block: Block,
        seen: Option<&Seen<Claim>>,
        deadline: Time,
    ) -> Result<bool, Short> {
        let claim = self.claim(seen.map(|it| &it.value));
        let revision = seen.map(|it| it.revision);
        let is_claimed = self.put_claim(pool, block, revision, &claim).await?;
        // Ours, or that of the faster node.
        let appeared = || {
            let view = self.view.borrow();
            let now = view.blocks.get(pool).and_then(|it| it.get(&block))?;
            (Some(now.revision) != revision).then_some(())
        };
        if self.session.get().is_none() || self.wait_for(deadline, appeared).await.is_none() {
            return Err(Short::Now(format!(
                "block {block} of the store is not seen in time"
            )));
        }
        if is_claimed {
            self.counters.claimed.set(self.counters.claimed.get() + 1);
        }
        Ok(is_claimed)
    }

    /// Takes a block of a node that has no lease: the transaction finds its key absent.
    async fn take_over(
        &self,
        pool: &str,
        block: Block,
        seen: &Seen<Claim>,
        deadline: Time,
    ) -> Result<bool, Short> {
        let claim = self.claim(Some(&seen.value));
        let (key, theirs) = {
            let view = self.view.borrow();
            (view.block_key(pool, block), view.node_key(&seen.value.node))
        };
        let value = serde_json::to_vec(&claim).unwrap_or_default();
        let expected = [
            (key.as_str(), Expected::At(seen.revision)),
            (theirs.as_str(), Expected::Absent),
        ];
        let done = self
            .commit(&expected, &[Write::Put(&key, &value, None)])
            .await?;
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
                .blocks_contain(block, claim.epoch)
                .then_some(())
        };
        self.wait_for(deadline, appeared).await;
        Ok(true)
    }

    /// Asks the other nodes for an address, and waits.
    async fn borrow_address(
        &self,
        pool: &str,
        wanted: Wanted<'_>,
        deadline: Time,
    ) -> Result<(), Short> {
        let (spans, ip) = match wanted {
            Wanted::Any(wish) => (wish.spans.to_vec(), None),
            Wanted::This(ip) => (vec![Span(ip, ip)], Some(ip)),
        };
        let own = self.claim(None);
        let want = Want {
            node: own.node,
            journal: own.journal,
            boot: own.boot,
            spans,
            ip,
            refused: None,
        };
        self.wants.set(self.wants.get() + 1);
        let key = self
            .view
            .borrow()
            .want_key(pool, &self.settings.node, self.wants.get());
        let value = serde_json::to_vec(&want).unwrap_or_default();
        // It goes with this node.
        let lease = self.session.get().map(|(_, lease)| lease);
        let put = [Write::Put(&key, &value, lease)];
        if self
            .commit(&[(&key, Expected::Absent)], &put)
            .await?
            .is_none()
        {
            return Err(Short::Now("this node's lease has ended".into()));
        }
        let mut was_seen = false;
        let answer = || {
            // A pod of this node may have ended.
            if let Wanted::Any(wish) = wanted
                && let Free::Now(_) = self.node.borrow_mut().book(pool).find(wish, Time::now())
            {
                return Some(Ok(false));
            }
            let view = self.view.borrow();
            match view.wants.get(&key) {
                Some((_, seen)) => {
                    was_seen = true;
                    seen.value.refused.clone().map(Err)
                }
                None => was_seen.then_some(Ok(true)),
            }
        };
        let answered = self.wait_for(deadline, answer).await;
        let seen = self
            .view
            .borrow()
            .wants
            .get(&key)
            .map(|(_, it)| it.revision);
        if let Some(revision) = seen {
            let expected = [(key.as_str(), Expected::At(revision))];
            // One that stays goes with the next sweep.
            let _ = self.commit(&expected, &[Write::Delete(&key)]).await;
        }
        match answered {
            Some(Ok(is_gift)) => {
                let borrowed = &self.counters.borrowed;
                borrowed.set(borrowed.get() + u64::from(is_gift));
                Ok(())
            }
            Some(Err(why)) => Err(Short::Now(why)),
            None => Err(Short::Now(
                "all blocks are claimed, and no other node has an address to lend".into(),
            )),
        }
    }

    /// Gives other nodes what they want, as long as the role runs.
    pub(super) async fn serve_wants(self: Rc<Self>) {
        let mut changed = self.changed.subscribe();
        loop {
            let wants: Vec<(String, String, Seen<Want>)> = {
                let view = self.view.borrow();
                let others = view.wants.iter().filter(|(_, (_, seen))| {
                    seen.value.node != self.settings.node && seen.value.refused.is_none()
                });
                others
                    .map(|(key, (pool, seen))| (key.clone(), pool.clone(), seen.clone()))
                    .collect()
            };
            for (key, pool, seen) in wants {
                if self.is_fenced_in() {
                    self.serve_want(&key, &pool, &seen).await;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn serve_want(&self, key: &str, pool: &str, want: &Seen<Want>) {
        let gift = match want.value.ip {
            Some(ip) => self.gift_of(pool, ip),
            None => self.any_gift(pool, &want.value.spans),
        };
        match gift {
            Gift::Block(block) => self.hand_over(key, pool, block, want).await,
            Gift::Single(ip) => self.lend(key, pool, ip, want).await,
            Gift::Refused(why) => {
                let refused = Want {
                    refused: Some(why),
                    ..want.value.clone()
                };
                let value = serde_json::to_vec(&refused).unwrap_or_default();
                let put = [Write::Put(key, &value, None)];
                // It may be gone.
                let _ = self
                    .commit(&[(key, Expected::At(want.revision))], &put)
                    .await;
            }
            Gift::Nothing => {}
        }
    }

    /// What this node can give so that another one gets `ip`.
    fn gift_of(&self, pool: &str, ip: IpAddr) -> Gift {
        let mut node = self.node.borrow_mut();
        let book = node.book(pool);
        match book.block_of(ip) {
            None => Gift::Nothing,
            Some(block) if book.is_free(ip) => match block.is_single() {
                true => Gift::Block(block),
                false => Gift::Single(ip),
            },
            Some(_) => match book.lease(ip) {
                Some(lease) => {
                    let node = &self.settings.node;
                    Gift::Refused(format!("{ip} is in use by {} on {node}", lease.owner))
                }
                None => Gift::Nothing,
            },
        }
    }

    /// What this node can give of its own addresses: a block that is idle, or a single one.
    fn any_gift(&self, pool: &str, spans: &[Span]) -> Gift {
        let (view, mut node) = (self.view.borrow(), self.node.borrow_mut());
        let (cool_down, now) = (self.cool_down(pool), Time::now());
        let nothing = Rc::default();
        let kept: &Rc<HashSet<IpAddr>> = view.kept.get(pool).unwrap_or(&nothing);
        let wish = Wish {
            spans,
            kept,
            cool_down,
        };
        let book = node.book(pool);
        let is_gift = |block: &Block| {
            let span = block.span();
            spans.iter().any(|it| it.overlaps(&span))
                && book.is_idle(*block, cool_down, now)
                && !kept.iter().any(|it| block.contains(*it))
                // A block that lacks what it has lent is given in parts.
                && book.withdrawn(*block) == 0
        };
        let idle = book.empty_blocks().find(is_gift);
        if let Some(block) = idle {
            return Gift::Block(block);
        }
        match book.find(&wish, now) {
            Free::Now(ip) => match book.block_of(ip) {
                Some(block) if block.is_single() => Gift::Block(block),
                _ => Gift::Single(ip),
            },
            _ => Gift::Nothing,
        }
    }

    /// Makes a block another node's.
    async fn hand_over(&self, want_key: &str, pool: &str, block: Block, want: &Seen<Want>) {
        let Some(seen) = self.own_claim(pool, block) else {
            return;
        };
        let mark = (pool.to_owned(), block);
        self.leaving.borrow_mut().insert(mark.clone());
        self.node.borrow_mut().book(pool).lose(block);
        let claim = Claim {
            node: want.value.node.clone(),
            journal: want.value.journal.clone(),
            boot: want.value.boot.clone(),
            epoch: seen.value.epoch + 1,
            ..seen.value.clone()
        };
        let key = self.view.borrow().block_key(pool, block);
        let value = serde_json::to_vec(&claim).unwrap_or_default();
        let expected = [
            (key.as_str(), Expected::At(seen.revision)),
            (want_key, Expected::At(want.revision)),
        ];
        let writes = [Write::Put(&key, &value, None), Write::Delete(want_key)];
        let done = self.commit(&expected, &writes).await;
        self.resolve(pool, block, &seen, done).await;
        self.leaving.borrow_mut().remove(&mark);
        self.settle();
    }

    /// Makes a single address another node's.
    async fn lend(&self, want_key: &str, pool: &str, ip: IpAddr, want: &Seen<Want>) {
        let block = self.node.borrow_mut().book(pool).block_of(ip);
        let Some((block, seen)) = block.and_then(|it| Some((it, self.own_claim(pool, it)?))) else {
            return;
        };
        let mark = (pool.to_owned(), ip);
        self.lending.borrow_mut().insert(mark.clone());
        let free_since = self.node.borrow_mut().book(pool).withdraw(ip);
        let mut around = seen.value.clone();
        around.lent.push(ip);
        let single = Claim {
            node: want.value.node.clone(),
            journal: want.value.journal.clone(),
            boot: want.value.boot.clone(),
            epoch: 1,
            lent: Vec::new(),
            used: 0,
        };
        let (key, single_key) = {
            let view = self.view.borrow();
            let single = view.block_key(pool, Block::single(ip));
            (view.block_key(pool, block), single)
        };
        let around = serde_json::to_vec(&around).unwrap_or_default();
        let single = serde_json::to_vec(&single).unwrap_or_default();
        let expected = [
            (key.as_str(), Expected::At(seen.revision)),
            (single_key.as_str(), Expected::Absent),
            (want_key, Expected::At(want.revision)),
        ];
        let writes = [
            Write::Put(&key, &around, None),
            Write::Put(&single_key, &single, None),
            Write::Delete(want_key),
        ];
        let done = self.commit(&expected, &writes).await;
        self.resolve(pool, block, &seen, done).await;
        self.lending.borrow_mut().remove(&mark);
        let is_lent = self
            .own_claim(pool, block)
            .is_none_or(|it| it.value.lent.contains(&ip));
        if let Some(at) = free_since.filter(|_| !is_lent) {
            self.node.borrow_mut().book(pool).restore(ip, at);
        }
        self.settle();
    }

    /// The claim of a block that is this node's.
    fn own_claim(&self, pool: &str, block: Block) -> Option<Seen<Claim>> {
        let view = self.view.borrow();
        let seen = view.blocks.get(pool)?.get(&block)?;
        let journal = self.node.borrow().journal().name().to_owned();
        let is_own = seen.value.node == self.settings.node && seen.value.journal == journal;
        is_own.then(|| seen.clone())
    }

    /// Waits until it is certain what has become of a transaction that would have changed a block from
    /// what was `seen`, and until the view shows it. After an error the transaction may still happen:
    /// writing the block anew prevents that.
    async fn resolve(
        &self,
        pool: &str,
        block: Block,
        seen: &Seen<Claim>,
        done: Result<Option<Revision>, Error>,
    ) {
        let differs = || {
            let view = self.view.borrow();
            let now = view.blocks.get(pool).and_then(|it| it.get(&block));
            (now.map(|it| it.revision) != Some(seen.revision)).then_some(())
        };
        // Not done, and it never will be.
        if let Ok(None) = done {
            return;
        }
        loop {
            let soon = Time::now().after(Duration::from_secs(1));
            if self.wait_for(soon, differs).await.is_some() {
                return;
            }
            let mut again = seen.value.clone();
            // Another value: the store of a file has no other revision of the same one.
            again.used = again.used.wrapping_add(1);
            // If it was changed already, the view shows it soon.
            let _ = self
                .put_claim(pool, block, Some(seen.revision), &again)
                .await;
        }
    }

    /// How long the addresses of a pool rest.
    pub(super) fn cool_down(&self, pool: &str) -> Duration {
        let known = self.cool_downs.borrow();
        known.get(pool).copied().unwrap_or(COOL_DOWN)
    }

    /// Claims another block where an ADD leaves few addresses, and others leave enough blocks.
    pub(super) fn keep_reserve(self: &Rc<Self>, pool: &str, set: &Set, length: u8) {
        let is_scarce = {
            let (view, mut node) = (self.view.borrow(), self.node.borrow_mut());
            let nothing = Rc::default();
            let wish = Wish {
                spans: &set.spans,
                kept: view.kept.get(pool).unwrap_or(&nothing),
                cool_down: self.cool_down(pool),
            };
            let half = Block::of(set.spans[0].0, length).addresses().count() / 2;
            let enough = half.max(1);
            node.book(pool).count(&wish, Time::now(), enough) < enough
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
                let _ = role.claim_block(&pool, block, None, deadline).await;
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

    /// The lock of those who get more addresses for a pool.
    pub(super) fn obtaining(&self, pool: &str) -> Rc<tokio::sync::Mutex<()>> {
        let mut all = self.obtaining.borrow_mut();
        Rc::clone(all.entry(pool.to_owned()).or_default())
    }

    /// Now and then: what is idle goes back, what DELs have left is released.
    pub(super) async fn sweep(self: Rc<Self>) {
        let mut turn = 0_u32;
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
            for (pool, block, seen) in self.idle_blocks() {
                self.give_back(&pool, block, &seen).await;
            }
            if turn.is_multiple_of(SUMMARY) {
                self.write_summaries().await;
            }
        }
    }

    /// Blocks that this node does not need. One stays in reserve.
    fn idle_blocks(&self) -> Vec<(String, Block, Seen<Claim>)> {
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
                } else if let Some(seen) = view.blocks.get(pool).and_then(|it| it.get(&block))
                    && seen.value.lent.is_empty()
                {
                    all.push((pool.to_owned(), block, seen.clone()));
                }
            }
        }
        all.truncate(GIVEN_BACK_AT_ONCE);
        all
    }

    async fn give_back(&self, pool: &str, block: Block, seen: &Seen<Claim>) {
        let mark = (pool.to_owned(), block);
        {
            let mut node = self.node.borrow_mut();
            // It may have been used since.
            if node.book(pool).used(block) > 0 {
                return;
            }
            node.book(pool).lose(block);
        }
        self.leaving.borrow_mut().insert(mark.clone());
        let done = self.delete_claim(pool, block, seen).await;
        self.resolve(pool, block, seen, done).await;
        self.leaving.borrow_mut().remove(&mark);
        self.settle();
    }

    /// Deletes a claim. That of a single address also leaves the list of the block around it.
    async fn delete_claim(
        &self,
        pool: &str,
        block: Block,
        seen: &Seen<Claim>,
    ) -> Result<Option<Revision>, Error> {
        let (key, around) = {
            let view = self.view.borrow();
            let ip = block.span().0;
            let length = view.lengths.get(&(pool.to_owned(), ip.is_ipv4()));
            let around = length
                .map(|it| Block::of(ip, *it))
                .filter(|it| *it != block);
            let around = around.and_then(|around| {
                let seen = view.blocks.get(pool)?.get(&around)?.clone();
                Some((view.block_key(pool, around), seen))
            });
            (view.block_key(pool, block), around)
        };
        let mut expected = vec![(key.as_str(), Expected::At(seen.revision))];
        let mut writes = vec![Write::Delete(&key)];
        let value;
        if let Some((around_key, around)) = &around {
            let mut claim = around.value.clone();
            claim.lent.retain(|it| *it != block.span().0);
            value = serde_json::to_vec(&claim).unwrap_or_default();
            expected.push((around_key, Expected::At(around.revision)));
            writes.push(Write::Put(around_key, &value, None));
        }
        self.commit(&expected, &writes).await
    }

    /// Writes how many addresses of each block are in use.
    async fn write_summaries(&self) {
        let differing: Vec<_> = {
            let (view, node) = (self.view.borrow(), self.node.borrow());
            let books = node.books();
            let all = books.flat_map(|(pool, book)| book.blocks().map(move |it| (pool, book, it)));
            all.filter_map(|(pool, book, (block, _))| {
                let seen = view.blocks.get(pool)?.get(&block)?;
                let used = book.used(block);
                (seen.value.used != used).then(|| (pool.to_owned(), block, seen.clone(), used))
            })
            .take(GIVEN_BACK_AT_ONCE)
            .collect()
        };
        for (pool, block, seen, used) in differing {
            let claim = Claim { used, ..seen.value };
            // It is only for people.
            let _ = self
                .put_claim(&pool, block, Some(seen.revision), &claim)
                .await;
        }
    }

    /// Takes all blocks of a node that is gone for good. Returns how many.
    pub(super) async fn forget(&self, gone: &str) -> Result<usize, Short> {
        if self.view.borrow().nodes.contains_key(gone) {
            return Err(Short::Never(format!("node {gone} lives: it has a lease")));
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

/// What a node wants of the others.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Any(&'a Wish<'a>),
    This(IpAddr),
}

/// What a node gives another one.
enum Gift {
    Block(Block),
    Single(IpAddr),
    Refused(String),
    Nothing,
}

impl From<Error> for Short {
    fn from(error: Error) -> Self {
        Self::Now(error.to_string())
    }
}
