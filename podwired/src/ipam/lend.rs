//! What this node gives the others: an idle block, or a single address.

use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;

use pools::{Block, Claim, Criteria, Free, Span, Time};
use store::{Expected, Transactions, Write};

use super::Role;
use super::transaction::Change;
use super::view::{Seen, Want};

/// What a node gives another one.
enum Loan {
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
                    let want = &seen.value;
                    let is_open = want.refused.is_none() && want.giver.is_none();
                    // One that has been left over is of no use to a node that is away.
                    is_open
                        && want.node != self.settings.node
                        && view.nodes.contains_key(&want.node)
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
        let loan = self.loan(pool, &want.value);
        if S::IS_ATOMIC || want.value.ip.is_some() || matches!(loan, Loan::Nothing) {
            return self.give(loan, key, pool, want).await;
        }
        // All nodes with a spare address would give one: the first that says so does.
        let giver = Some(self.settings.node.clone());
        let Some(want) = self.answer_want(key, want, |it| it.giver = giver).await else {
            return;
        };
        let loan = self.loan(pool, &want.value);
        self.give(loan, key, pool, &want).await;
        // It is gone, unless nothing was given: then it is for others.
        let _ = self.answer_want(key, &want, |it| it.giver = None).await;
    }

    fn loan(&self, pool: &str, want: &Want) -> Loan {
        match want.ip {
            Some(ip) => self.loan_of(pool, ip),
            None => self.any_loan(pool, &want.spans),
        }
    }

    async fn give(&self, loan: Loan, key: &str, pool: &str, want: &Seen<Want>) {
        match loan {
            Loan::Block(block) => self.hand_over(key, pool, block, want).await,
            Loan::Single(ip) => self.lend(key, pool, ip, want).await,
            Loan::Refused(why) => {
                let refused = |it: &mut Want| it.refused = Some(why);
                // It may be gone.
                let _ = self.answer_want(key, want, refused).await;
            }
            Loan::Nothing => {}
        }
    }

    /// Changes a want that is as it was seen. Returns it as it is then.
    async fn answer_want(
        &self,
        key: &str,
        want: &Seen<Want>,
        change: impl FnOnce(&mut Want),
    ) -> Option<Seen<Want>> {
        let mut value = want.value.clone();
        change(&mut value);
        let bytes = serde_json::to_vec(&value).unwrap_or_default();
        let expected = [(key, Expected::At(want.revision))];
        let put = [Write::Put(key, &bytes, None)];
        let revision = self.commit(&expected, &put).await.ok()??;
        Some(Seen { value, revision })
    }

    /// What this node can give so that another one gets `ip`.
    fn loan_of(&self, pool: &str, ip: IpAddr) -> Loan {
        let mut node = self.node.borrow_mut();
        let book = node.book(pool);
        match book.block_of(ip) {
            None => Loan::Nothing,
            Some(block) if book.is_free(ip) && block.is_single() => Loan::Block(block),
            Some(_) if book.is_free(ip) => Loan::Single(ip),
            Some(_) => match book.lease(ip) {
                Some(lease) => {
                    let node = &self.settings.node;
                    Loan::Refused(format!("{ip} is in use by {} on {node}", lease.owner))
                }
                None => Loan::Nothing,
            },
        }
    }

    /// What this node can give of its own addresses: a block that is idle, or a single one.
    fn any_loan(&self, pool: &str, spans: &[Span]) -> Loan {
        let (view, mut node) = (self.view.borrow(), self.node.borrow_mut());
        let (cool_down, now) = (self.cool_down(pool), Time::now());
        let nothing = Rc::default();
        let kept: &Rc<HashSet<IpAddr>> = view.kept.get(pool).unwrap_or(&nothing);
        let criteria = Criteria {
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
                && book.lent(*block).next().is_none()
        };
        let idle = book.empty_blocks().find(is_gift);
        if let Some(block) = idle {
            return Loan::Block(block);
        }
        match book.find(&criteria, now) {
            Free::Now(ip) => match book.block_of(ip) {
                Some(block) if block.is_single() => Loan::Block(block),
                _ => Loan::Single(ip),
            },
            _ => Loan::Nothing,
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
        let change = Change {
            pool,
            block,
            seen: Some(&seen),
            claim: Some(claim),
        };
        let want = Some((want_key, want.revision));
        let done = self.change(&change, None, want).await;
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
        let free_since = self.node.borrow_mut().book(pool).withdraw(block, ip);
        let single = Claim {
            node: want.value.node.clone(),
            journal: want.value.journal.clone(),
            boot: want.value.boot.clone(),
            epoch: 1,
            lent: Vec::new(),
            used: 0,
        };
        let change = Change {
            pool,
            block,
            seen: Some(&seen),
            claim: Some(seen.value.with_single(ip, Some(&single))),
        };
        let want = Some((want_key, want.revision));
        let done = self.change(&change, None, want).await;
        self.resolve(pool, block, &seen, done).await;
        self.lending.borrow_mut().remove(&mark);
        let is_lent = self
            .own_claim(pool, block)
            .is_none_or(|it| it.value.lent_addresses().contains(&ip));
        if let Some(at) = free_since.filter(|_| !is_lent) {
            self.node.borrow_mut().book(pool).restore(block, ip, at);
        }
        self.settle_block(pool, block);
    }
}
