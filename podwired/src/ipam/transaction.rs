//! Transactions of this node: each one requires that its own key in the store is as it made it.

use std::time::Duration;

use pools::{Block, Claim, Time};
use store::{Error, Expected, Revision, Transactions, Write};

use super::Role;
use super::view::Seen;

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

    /// Writes a claim of a block that was seen as `seen`. Returns whether it was still so.
    pub(super) async fn put_claim(
        &self,
        pool: &str,
        block: Block,
        seen: Option<Revision>,
        claim: &Claim,
    ) -> Result<bool, Error> {
        let key = self.view.borrow().block_key(pool, block);
        let value = serde_json::to_vec(claim).unwrap_or_default();
        let expected = seen.map_or(Expected::Absent, Expected::At);
        let put = [Write::Put(&key, &value, None)];
        let done = self.commit(&[(&key, expected)], &put).await?;
        Ok(done.is_some())
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
            // If it was changed already, the view shows it soon.
            let _ = self
                .put_claim(pool, block, Some(seen.revision), &again)
                .await;
        }
    }
}
