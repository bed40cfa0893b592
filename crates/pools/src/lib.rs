//! Addresses of a whole cluster: one address, one owner.
//!
//! A pool is cut into blocks ([`Block`]). A node claims a block by one transaction in the store
//! ([`Claim`]), then hands out its addresses without the store ([`Book`], [`Node`]), and keeps them in
//! a [`Journal`]. Only the agent does this; plugins ask it ([`Agent`], [`Request`]). Why no
//! address gets two owners is in `docs/cluster-addresses.md`.

mod block;
mod book;
mod fence;
mod journal;
mod node;
mod protocol;
mod span;
mod time;

pub use block::{Block, Claim, Lent, candidates, usual_prefix};
pub use book::{Book, Criteria, Free, Lease, Owner};
pub use fence::die_at;
pub use journal::{Journal, is_journal, leases_on_disk, leave_release};
pub use node::{Found, Node, Recipient};
pub use protocol::{Add, Agent, PoolLease, Release, Reply, Request, Set};
pub use span::Span;
pub use time::{Time, boot};

/// Where the journal is, unless a configuration says otherwise. Not below /run: what removes it while
/// pods run makes the node forget their addresses.
pub const DATA_DIR: &str = "/var/lib/podwire/ipam";
