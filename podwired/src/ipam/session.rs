//! The session: this node's key in the store lives as long as its lease, and the fence ends before it.
//!
//! A block of a node is taken over only if that node's key is absent. So blocks that were seen as this
//! node's *after* its key was made are its own as long as the key lives. Where the store cannot look at
//! two keys at one moment, each block is changed after the key: a take-over that was decided before
//! finds another revision. The fence is a time on this node's clock before the lease can end: it is
//! counted from the moment *before* the request that renewed it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use pools::{Claim, Time};
use store::{Entry, Expected, LeaseId, Member, Revision, Transactions, Watch, Write};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Role;
use super::transaction::Change;
use super::view::{Alive, Touched};
use crate::log;
use crate::roles::Readiness;

/// Between attempts.
const PAUSE: Duration = Duration::from_millis(200);

impl<S: Transactions + 'static> Role<S> {
    /// Has a session as long as the store grants one.
    pub(super) async fn keep_session(self: Rc<Self>, readiness: watch::Sender<Readiness>) {
        let mut reported = String::new();
        loop {
            let ended = self.session(&readiness).await;
            self.fence.set(Time(0));
            self.session.set(None);
            self.note_change();
            let why = match ended {
                Ok(why) => why.to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if why != reported {
                log::warn(format_args!("ipam: no addresses: {why}"));
                reported.clone_from(&why);
            }
            drop(readiness.send_replace(Err(why)));
            sleep(PAUSE).await;
        }
    }

    /// One session. Returns why it has ended.
    async fn session(&self, readiness: &watch::Sender<Readiness>) -> Result<&'static str> {
        let begin = Time::now();
        let lease = self.store.grant(self.settings.lease).await?;
        let revision = self.announce(lease).await?;
        self.session.set(Some((revision, lease)));
        let renewed = Cell::new(begin);
        tokio::select! {
            ended = self.renew(lease, &renewed) => ended,
            ended = self.use_session(revision, &renewed, readiness) => ended,
        }
    }

    /// Allocates, as soon as the blocks are confirmed, until this node's key is gone.
    async fn use_session(
        &self,
        revision: Revision,
        renewed: &Cell<Time>,
        readiness: &watch::Sender<Readiness>,
    ) -> Result<&'static str> {
        let mut watch = self.look().await?;
        let wants = self.view.borrow().own_wants(&self.settings.node);
        self.delete_wants(&wants).await;
        self.confirm(revision).await?;
        self.await_confirmed(&mut watch, revision).await?;
        // What was adopted is seen by the watch, and held then.
        self.settle_all();
        self.move_fence(renewed.get());
        drop(readiness.send_replace(Ok(())));
        log::info(format_args!("ipam: ready as node {}", self.settings.node));
        self.follow(&mut watch, revision).await
    }

    /// Makes this node's key. A key of this journal is that of the agent before this one.
    async fn announce(&self, lease: LeaseId) -> Result<Revision> {
        let key = self.view.borrow().node_key(&self.settings.node);
        let own = {
            let node = self.node.borrow();
            Alive {
                journal: node.journal().name().to_owned(),
                boot: node.journal().boot().to_owned(),
            }
        };
        let expected = match self.store.get(&key).await? {
            None => Expected::Absent,
            // Neither the key nor the lease has ended since: no block was taken over.
            Some(entry) if self.goes_on(&entry, &own, lease) => return Ok(entry.revision),
            // Such a store grants a lease only when the one before has ended.
            Some(entry) if !S::IS_ATOMIC => Expected::At(entry.revision),
            Some(entry) => {
                let found: Alive = serde_json::from_slice(&entry.value)
                    .with_context(|| format!("key {key}: not the key of a node"))?;
                if found.journal != own.journal && found.boot == own.boot {
                    bail!(
                        "another agent of this machine is node {} already",
                        self.settings.node
                    );
                }
                if found != own {
                    bail!(
                        "another machine is node {} already, or this one has just been started again: \
                         waiting for the end of its lease",
                        self.settings.node
                    );
                }
                Expected::At(entry.revision)
            }
        };
        let value = serde_json::to_vec(&own)?;
        let put = self.store.put(&key, &value, expected, Some(lease)).await?;
        put.ok_or_else(|| anyhow!("key {key}: another agent was faster"))
    }

    /// Whether this node's key is that of a session which has not ended.
    fn goes_on(&self, entry: &Entry, own: &Alive, lease: LeaseId) -> bool {
        let found: Option<Alive> = serde_json::from_slice(&entry.value).ok();
        self.store.continued(lease) == Some(entry.revision) && found.as_ref() == Some(own)
    }

    /// Reads all keys, and watches them from then on.
    async fn look(&self) -> Result<S::Watch, store::Error> {
        let prefix = format!("{}/", self.settings.prefix);
        let listing = self.store.list(&prefix).await?;
        let next = listing.revision + 1;
        let watch = self.store.watch(&prefix, next).await?;
        self.view.borrow_mut().reset(listing, Time::now());
        self.note_change();
        Ok(watch)
    }

    /// Takes the blocks and single addresses of this node's earlier boots: its pods have ended. What was last
    /// changed before the revision `than` is written anew, too, where the store is not atomic.
    async fn confirm(&self, than: Revision) -> Result<(), store::Error> {
        let parts = self.view.borrow().parts_of(&self.settings.node);
        for (pool, block, seen) in parts {
            let claim = self.adopted(&seen.value);
            let is_older = !S::IS_ATOMIC && seen.revision < than;
            if !is_older && claim == seen.value {
                continue;
            }
            let change = Change {
                pool: &pool,
                block,
                seen: Some(&seen),
                claim: Some(claim),
            };
            // If another one was faster, the view will show it.
            self.change(&change, None, None).await?;
        }
        Ok(())
    }

    /// A claim in which what was this node's in an earlier boot is that of this one.
    fn adopted(&self, claim: &Claim) -> Claim {
        let boot = self.node.borrow().journal().boot().to_owned();
        let is_earlier = |it: &Claim| it.node == self.settings.node && it.boot != boot;
        let mut adopted = if is_earlier(claim) {
            self.new_claim(Some(claim))
        } else {
            claim.clone()
        };
        for lent in &claim.lent {
            let single = Claim::from(lent);
            if is_earlier(&single) {
                let single = self.new_claim(Some(&single));
                adopted = adopted.with_single(lent.ip, Some(&single));
            }
        }
        adopted
    }

    /// Follows the watch until it has shown all blocks of this node as they were after its key was made.
    async fn await_confirmed(
        &self,
        watch: &mut S::Watch,
        revision: Revision,
    ) -> Result<(), store::Error> {
        let is_old = || {
            let view = self.view.borrow();
            !S::IS_ATOMIC && view.has_older(&self.settings.node, revision)
        };
        while is_old() {
            let changes = watch.next().await?;
            self.view.borrow_mut().apply(changes.events, Time::now());
            self.note_change();
        }
        Ok(())
    }

    /// Has nodes that are lost ended, as long as the role runs, where the store does not do that.
    pub(super) async fn look_after_others(self: Rc<Self>) {
        if S::IS_ATOMIC {
            return;
        }
        loop {
            sleep(self.settings.lease / 3).await;
            if !self.is_fenced_in() {
                continue;
            }
            let (members, wants) = {
                let view = self.view.borrow();
                let ring = view.ring(&self.settings.node).into_iter();
                let member = |name: &str| Member {
                    name: name.to_owned(),
                    key: view.node_key(name),
                    revision: view.nodes[name].revision,
                };
                let wants = view.left_wants(&self.settings.node);
                (ring.map(member).collect::<Vec<_>>(), wants)
            };
            let done = self.store.look_after(&members, self.settings.lease);
            if let Err(error) = done.await {
                log::debug(format_args!("ipam: look after other nodes: {error}"));
            }
            self.delete_wants(&wants).await;
        }
    }

    /// Deletes wants that are still as they were seen.
    async fn delete_wants(&self, wants: &[(String, Revision)]) {
        for (key, revision) in wants {
            let expected = [(key.as_str(), Expected::At(*revision))];
            let _ = self.commit(&expected, &[Write::Delete(key)]).await;
        }
    }

    fn move_fence(&self, from: Time) {
        self.fence.set(self.fence_from(from));
        self.note_change();
    }

    fn fence_from(&self, renewed: Time) -> Time {
        // A tenth for clocks that differ in speed, far more than any does.
        renewed.after(self.settings.lease / 10 * 9)
    }

    /// Renews the lease until it ends. The fence follows as soon as there is one.
    async fn renew(&self, lease: LeaseId, renewed: &Cell<Time>) -> Result<&'static str> {
        loop {
            sleep(self.settings.lease / 3).await;
            loop {
                let begin = Time::now();
                match self.store.renew(lease).await {
                    Ok(Some(left)) if left >= self.settings.lease => {
                        renewed.set(begin);
                        if self.fence.get() > Time(0) {
                            self.move_fence(begin);
                        }
                    }
                    Ok(Some(_)) => return Ok("the store has shortened this node's lease"),
                    Ok(None) => return Ok("this node's lease has ended"),
                    Err(error) if Time::now() >= self.fence_from(renewed.get()) => {
                        return Err(error.into());
                    }
                    Err(error) => {
                        log::debug(format_args!("ipam: renew the lease: {error}"));
                        sleep(PAUSE).await;
                        continue;
                    }
                }
                break;
            }
        }
    }

    /// Takes changes until this node's key is gone.
    async fn follow(&self, watch: &mut S::Watch, revision: Revision) -> Result<&'static str> {
        loop {
            let own = self.view.borrow().nodes.get(&self.settings.node).cloned();
            if own.is_none_or(|it| it.revision != revision) {
                return Ok("this node's key in the store is gone, or another's");
            }
            match watch.next().await {
                Ok(changes) => {
                    let touched = {
                        let mut view = self.view.borrow_mut();
                        view.apply(changes.events, Time::now())
                    };
                    self.settle(&touched);
                    // A claim that was on its way for very long.
                    if !S::IS_ATOMIC && self.is_of_earlier_boot(&touched) {
                        self.confirm(0).await?;
                    }
                }
                Err(error) => {
                    log::debug(format_args!("ipam: watch: {error}"));
                    // Nothing is allocated from other blocks meanwhile, so this may take long.
                    *watch = loop {
                        match self.look().await {
                            Ok(watch) => break watch,
                            Err(_) => sleep(PAUSE).await,
                        }
                    };
                    self.settle_all();
                }
            }
            self.note_change();
        }
    }

    fn is_of_earlier_boot(&self, touched: &[Touched]) -> bool {
        let (view, node) = (self.view.borrow(), self.node.borrow());
        touched.iter().any(|(pool, block)| {
            let claim = view.claim(pool, *block).map(|it| &it.value);
            claim
                .is_some_and(|it| it.node == self.settings.node && it.boot != node.journal().boot())
        })
    }
}
