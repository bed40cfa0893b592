//! The session: this node's key in the store lives as long as its lease, and the fence ends before it.
//!
//! A block of a node is taken over only in a transaction that finds that node's key absent. So blocks
//! that were seen as this node's *after* its key was made are its own as long as the key lives. The
//! fence is a time on this node's clock before the store can end the lease: it is counted from the
//! moment *before* the request that renewed it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use pools::Time;
use store::{Expected, LeaseId, Transactions, Watch};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Role;
use super::view::Alive;
use crate::log;
use crate::roles::Readiness;

/// Between attempts.
const PAUSE: Duration = Duration::from_millis(200);

impl<S: Transactions + 'static> Role<S> {
    /// Has a session as long as the store grants one.
    pub(super) async fn keep_session(self: Rc<Self>, readiness: watch::Sender<Readiness>) {
        let mut said = String::new();
        loop {
            let ended = self.session(&readiness).await;
            self.fence.set(Time(0));
            self.session.set(None);
            self.note_change();
            let why = match ended {
                Ok(why) => why.to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if why != said {
                log::warn(format_args!("ipam: no addresses: {why}"));
                said.clone_from(&why);
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
        let mut watch = self.look().await?;
        self.adopt().await?;
        // What was adopted is seen by the watch, and held then.
        self.settle_all();
        self.move_fence(begin);
        drop(readiness.send_replace(Ok(())));
        log::info(format_args!("ipam: ready as node {}", self.settings.node));
        tokio::select! {
            ended = self.renew(lease) => ended,
            ended = self.follow(&mut watch, revision) => ended,
        }
    }

    /// Makes this node's key. A key of this journal is that of the agent before this one.
    async fn announce(&self, lease: LeaseId) -> Result<i64> {
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

    /// Takes the blocks of this node's earlier boots: its pods have ended.
    async fn adopt(&self) -> Result<(), store::Error> {
        let earlier: Vec<_> = {
            let (view, node) = (self.view.borrow(), self.node.borrow());
            let boot = node.journal().boot();
            let pools = view.blocks.iter();
            let all = pools.flat_map(|(pool, blocks)| blocks.iter().map(move |it| (pool, it)));
            all.filter(|(_, (_, seen))| {
                seen.value.node == self.settings.node && seen.value.boot != boot
            })
            .map(|(pool, (block, seen))| (pool.clone(), *block, seen.clone()))
            .collect()
        };
        for (pool, block, seen) in earlier {
            let claim = self.new_claim(Some(&seen.value));
            self.put_claim(&pool, block, Some(seen.revision), &claim)
                .await?;
        }
        Ok(())
    }

    fn move_fence(&self, from: Time) {
        // A tenth for clocks that differ in speed, far more than any does.
        self.fence.set(from.after(self.settings.lease / 10 * 9));
        self.note_change();
    }

    async fn renew(&self, lease: LeaseId) -> Result<&'static str> {
        loop {
            sleep(self.settings.lease / 3).await;
            loop {
                let begin = Time::now();
                match self.store.renew(lease).await {
                    Ok(Some(left)) if left >= self.settings.lease => self.move_fence(begin),
                    Ok(Some(_)) => return Ok("the store has shortened this node's lease"),
                    Ok(None) => return Ok("this node's lease has ended"),
                    Err(error) if Time::now() >= self.fence.get() => return Err(error.into()),
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
    async fn follow(&self, watch: &mut S::Watch, revision: i64) -> Result<&'static str> {
        loop {
            let own = self.view.borrow().nodes.get(&self.settings.node).cloned();
            if own.is_none_or(|it| it.revision != revision) {
                return Ok("this node's key in the store is gone, or another's");
            }
            match watch.next().await {
                Ok(changes) => {
                    let mut view = self.view.borrow_mut();
                    let touched = view.apply(changes.events, Time::now());
                    drop(view);
                    self.settle(&touched);
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
}
