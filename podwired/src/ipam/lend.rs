//! What this node gives the others: an idle block, or a single address.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;

use pools::{Block, Claim, Free, Span, Time, Wish};
use store::{Expected, Transactions, Write};

use super::Role;
use super::view::{Seen, Want};

/// What a node gives another one.
enum Gift {
    Block(Block),
    Single(IpAddr),
    Refused(String),
    Nothing,
}

impl<S: Transactions + 'static> Role<S> {
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
        self.settle_block(pool, block);
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
        self.settle_block(pool, block);
    }
}
