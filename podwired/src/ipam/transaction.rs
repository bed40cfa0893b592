//! Transactions of this node: each one requires that its own key in the store is as it made it. All that is
//! decided of a block's addresses is in the value of one key, so one change decides it in every store.

use std::time::Duration;

use pools::{Block, Claim, Time};
use store::{Error, Expected, Revision, Transactions, Write};

use super::Role;
use super::view::Seen;

/// A change of the node that has a block or a single address.
pub(super) struct Change<'a> {
    pub pool: &'a str,
    pub block: Block,
    /// How it was seen; `None`: no node had it.
    pub seen: Option<&'a Seen<Claim>>,
    /// What it becomes; `None`: no node has it. A single address is of the block around it then.
    pub claim: Option<Claim>,
}

impl<S: Transactions + 'static> Role<S> {
    /// The value of this node's next claim of a block that had `before`.
    pub(super) fn new_claim(&self, before: Option<&Claim>) -> Claim {
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
    pub(super) async fn commit(
        &self,
        expected: &[(&str, Expected)],
        writes: &[Write<'_>],
    ) -> Result<Option<Revision>, Error> {
        let Some((session, _)) = self.session.get() else {
            return Ok(None);
        };
        let own = self.view.borrow().node_key(&self.settings.node);
        let mut all = vec![(own.as_str(), Expected::At(session))];
        all.extend_from_slice(expected);
        self.store.commit(&all, writes).await
    }

    /// Changes the node that has a block, if its key still is as it was seen; a change of a want that belongs to it is made
    /// with it. Returns whether it was.
    ///
    /// # Errors
    /// Those of [`Self::commit`].
    pub(super) async fn change(
        &self,
        change: &Change<'_>,
        required: Option<(&str, Expected)>,
        want: Option<(&str, Revision)>,
    ) -> Result<Option<Revision>, Error> {
        let Some((key, claim)) = self.key_of(change) else {
            return Ok(None);
        };
        let value = claim.map(|it| serde_json::to_vec(&it).unwrap_or_default());
        let expected = change.seen.map(|it| Expected::At(it.revision));
        let mut all = vec![(key.as_str(), expected.unwrap_or(Expected::Absent))];
        all.extend(required);
        let mut writes = vec![match &value {
            Some(value) => Write::Put(&key, value, None),
            None => Write::Delete(&key),
        }];
        if let Some((want, revision)) = want {
            all.push((want, Expected::At(revision)));
            writes.push(Write::Delete(want));
        }
        self.commit(&all, &writes).await
    }

    /// The key that a change writes, with its new value. Of a single address that is the block around it;
    /// `None` if that has changed since.
    fn key_of(&self, change: &Change<'_>) -> Option<(String, Option<Claim>)> {
        let (view, block) = (self.view.borrow(), change.block);
        let Some(around) = view.around(change.pool, block) else {
            return Some((view.block_key(change.pool, block), change.claim.clone()));
        };
        let whole = view.claim(change.pool, around)?;
        if Some(whole.revision) != change.seen.map(|it| it.revision) {
            return None;
        }
        let whole = whole
            .value
            .with_single(block.span().0, change.claim.as_ref());
        Some((view.block_key(change.pool, around), Some(whole)))
    }

    /// The claim of a block that is this node's.
    pub(super) fn own_claim(&self, pool: &str, block: Block) -> Option<Seen<Claim>> {
        let view = self.view.borrow();
        let seen = view.claim(pool, block)?;
        let journal = self.node.borrow().journal().name().to_owned();
        let is_own = seen.value.node == self.settings.node && seen.value.journal == journal;
        is_own.then(|| seen.clone())
    }

    /// Waits until it is certain what has become of a transaction that would have changed a block from
    /// what was `seen`, and until the view shows it. After an error the transaction may still happen:
    /// writing the block anew prevents that.
    pub(super) async fn resolve(
        &self,
        pool: &str,
        block: Block,
        seen: &Seen<Claim>,
        done: Result<Option<Revision>, Error>,
    ) {
        let differs = || {
            let view = self.view.borrow();
            let now = view.claim(pool, block);
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
            let again = Change {
                pool,
                block,
                seen: Some(seen),
                claim: Some(again),
            };
            // If it was changed already, the view shows it soon.
            let _ = self.change(&again, None, None).await;
        }
    }
}
