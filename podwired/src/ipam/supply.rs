//! Where an ADD gets an address that this node does not have: a block that no node has, one of a node
//! that is lost, or what another node gives.
//!
//! A single address is an entry in the value of the block around it: its steps are changes of that block.
//!
//! | step | transaction, always with this node's key as it is | where |
//! |---|---|---|
//! | claim | the block's key is absent → this node's | [`claim`](super::claim) |
//! | take over | the block as seen, its node's key absent → this node's, the next epoch | [`takeover`](super::takeover) |
//! | want | → a want, as long as this node's lease lives | [`borrow`](super::borrow) |
//! | lend | the block as seen, the want as seen → the address is the other node's | [`lend`](super::lend) |
//! | hand over | the block as seen, the want as seen → the other node's, the next epoch | [`lend`](super::lend) |
//! | give back | the block as seen, nothing lent → absent; a single address → off the list of its block | [`give_back`](super::give_back) |

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use pools::{Block, Criteria, Time};
use store::{Error, Transactions};

use super::Role;
use super::borrow::Wanted;

/// Why there is no address.
#[derive(Clone, Debug)]
pub(super) enum Shortage {
    /// It may pass.
    Now(String),
    /// The request is wrong.
    Never(String),
}

impl From<Error> for Shortage {
    fn from(error: Error) -> Self {
        Self::Now(error.to_string())
    }
}

/// How long addresses rest in pools that no ADD has mentioned yet.
const COOL_DOWN: Duration = Duration::from_secs(30);

impl<S: Transactions + 'static> Role<S> {
    /// Gets at least one more address for `criteria` from the store.
    pub(super) async fn obtain(
        &self,
        pool: &str,
        criteria: &Criteria<'_>,
        length: u8,
        deadline: Time,
    ) -> Result<(), Shortage> {
        while let Some(block) = self.unclaimed(pool, criteria.spans, length) {
            if self.claim_block(pool, block, deadline).await? {
                return Ok(());
            }
        }
        if let Some((block, seen)) = self.lost_block(pool, criteria.spans) {
            self.take_over(pool, block, &seen, deadline).await?;
            return Ok(());
        }
        self.borrow_address(pool, Wanted::Any(criteria), deadline)
            .await
    }

    /// Makes this address one of this node's.
    pub(super) async fn obtain_ip(
        &self,
        pool: &str,
        ip: IpAddr,
        length: u8,
        deadline: Time,
    ) -> Result<(), Shortage> {
        let found = {
            let view = self.view.borrow();
            let found = view.block_of(pool, ip);
            found.map(|(block, seen)| (block, seen.clone()))
        };
        match found {
            None => {
                let block = Block::of(ip, length);
                self.claim_block(pool, block, deadline).await?;
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

    /// The lock of the tasks that get more addresses for a pool.
    pub(super) fn obtaining(&self, pool: &str) -> Rc<tokio::sync::Mutex<()>> {
        let mut all = self.obtaining.borrow_mut();
        Rc::clone(all.entry(pool.to_owned()).or_default())
    }

    /// How long the addresses of a pool rest.
    pub(super) fn cool_down(&self, pool: &str) -> Duration {
        let known = self.cool_downs.borrow();
        known.get(pool).copied().unwrap_or(COOL_DOWN)
    }
}
