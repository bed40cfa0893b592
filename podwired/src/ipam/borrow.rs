//! What this node wants of the others, where all blocks are claimed.

use std::net::IpAddr;

use pools::{Criteria, Free, Span, Time};
use store::{Expected, Transactions, Write};

use super::Role;
use super::supply::Shortage;
use super::view::Want;

/// What this node wants.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// Any address.
    Any(&'a Criteria<'a>),
    /// This one.
    This(IpAddr),
}

/// What becomes of a want.
enum Answer {
    /// An address is this node's now.
    Given,
    /// A pod of this node has ended meanwhile.
    Needless,
    /// The owner does not give it.
    Refused(String),
}

impl<S: Transactions + 'static> Role<S> {
    /// Asks the other nodes for an address, and waits.
    pub(super) async fn borrow_address(
        &self,
        pool: &str,
        wanted: Wanted<'_>,
        deadline: Time,
    ) -> Result<(), Shortage> {
        let key = self.post_want(pool, wanted).await?;
        let mut was_seen = false;
        let answer = || self.answer_to(pool, &key, wanted, &mut was_seen);
        let answered = self.wait_for(deadline, answer).await;
        self.withdraw_want(&key).await;
        match answered {
            Some(Answer::Given) => {
                let borrowed = &self.counters.borrowed;
                borrowed.set(borrowed.get() + 1);
                Ok(())
            }
            Some(Answer::Needless) => Ok(()),
            Some(Answer::Refused(why)) => Err(Shortage::Now(why)),
            None => Err(Shortage::Now(
                "all blocks are claimed, and no other node has an address to lend".into(),
            )),
        }
    }

    /// Writes a want, which goes with this node's lease. Returns its key.
    async fn post_want(&self, pool: &str, wanted: Wanted<'_>) -> Result<String, Shortage> {
        let (spans, ip) = match wanted {
            Wanted::Any(criteria) => (criteria.spans.to_vec(), None),
            Wanted::This(ip) => (vec![Span(ip, ip)], Some(ip)),
        };
        let own = self.new_claim(None);
        let want = Want {
            node: own.node,
            journal: own.journal,
            boot: own.boot,
            spans,
            ip,
            refused: None,
            giver: None,
        };
        let number = self.wants.get() + 1;
        self.wants.set(number);
        let node = &self.settings.node;
        let key = self.view.borrow().want_key(pool, node, number);
        let value = serde_json::to_vec(&want).unwrap_or_default();
        let lease = self.session.get().map(|(_, lease)| lease);
        let put = [Write::Put(&key, &value, lease)];
        let posted = self.commit(&[(&key, Expected::Absent)], &put).await?;
        match posted {
            Some(_) => Ok(key),
            None => Err(Shortage::Now("this node's lease has ended".into())),
        }
    }

    /// What has become of a want so far. The node that gives something deletes its key.
    fn answer_to(
        &self,
        pool: &str,
        key: &str,
        wanted: Wanted<'_>,
        was_seen: &mut bool,
    ) -> Option<Answer> {
        if let Wanted::Any(criteria) = wanted
            && let Free::Now(_) = self
                .node
                .borrow_mut()
                .book(pool)
                .find(criteria, Time::now())
        {
            return Some(Answer::Needless);
        }
        match self.view.borrow().wants.get(key) {
            Some((_, seen)) => {
                *was_seen = true;
                seen.value.refused.clone().map(Answer::Refused)
            }
            None => was_seen.then_some(Answer::Given),
        }
    }

    /// Deletes a want that is still there. One that stays goes with this node's lease.
    async fn withdraw_want(&self, key: &str) {
        let revision = {
            let view = self.view.borrow();
            view.wants.get(key).map(|(_, it)| it.revision)
        };
        if let Some(revision) = revision {
            let expected = [(key, Expected::At(revision))];
            let _ = self.commit(&expected, &[Write::Delete(key)]).await;
        }
    }
}
