//! A store of keys that many nodes share: one interface, [`Store`], over [`Etcd`], [`Records`] of a
//! Kubernetes cluster, and [`File`]; and the [`Nodes`] of such a cluster, which an implementation of it can
//! be made of.
//!
//! Keys and values are bytes; what they mean is the caller's. A change has a revision, which
//! counts the changes of the whole store, so a list and a watch from the next revision together
//! miss nothing.

mod connection;
mod etcd;
mod file;
mod kubernetes;

use std::fmt;
use std::future::Future;
use std::time::Duration;

pub use etcd::{Access, Etcd};
pub use file::File;
pub use kubernetes::{
    ApiAccess, Merge, Node, NodeEvent, NodeWatch, Nodes, Place, RecordWatch, Records,
};

/// The number of a change, over the whole store.
pub type Revision = i64;

/// A promise of the store to delete keys unless the promise is renewed in time. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseId(pub i64);

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// The revision of its last change.
    pub revision: Revision,
    /// The lease that deletes it; `None` if it stays.
    pub lease: Option<LeaseId>,
}

/// All keys with a prefix, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The keys.
    pub entries: Vec<Entry>,
    /// The store's revision at that moment.
    pub revision: Revision,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was created, or has another value or lease.
    Put(Entry),
    /// It was deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
    },
}

/// What a key must be for a change to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It does not exist.
    Absent,
    /// Its last change had this revision.
    At(Revision),
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No member of the store answers, or the one that does cannot serve. May pass.
    Unavailable(String),
    /// The store no longer has the changes since the wanted revision: list again.
    Compacted,
    /// The store refuses: wrong password, no permission, a lease that has ended.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the store does not answer: {why}"),
            Self::Compacted => f.write_str("the store has compacted the wanted changes"),
            Self::Refused(why) => write!(f, "the store refuses: {why}"),
        }
    }
}

impl std::error::Error for Error {}

/// What podwire needs of a store.
///
/// The futures need not move between threads: the agent drives all of them on one.
pub trait Store {
    /// A stream of changes.
    type Watch: Watch;

    /// All keys that begin with `prefix`, in one request.
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Listing, Error>>;

    /// One key; `None` if it does not exist.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, Error>>;

    /// The changes of keys that begin with `prefix`, from revision `from` on, that one included.
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> impl Future<Output = Result<Self::Watch, Error>>;

    /// Writes a key if it is as expected. Returns the revision of the change; `None` if the key
    /// was not as expected, and nothing has changed. After [`Error::Unavailable`] the change may
    /// have happened.
    fn put(
        &self,
        key: &str,
        value: &[u8],
        expected: Expected,
        lease: Option<LeaseId>,
    ) -> impl Future<Output = Result<Option<Revision>, Error>>;

    /// Deletes a key if it is as expected. Returns whether it was.
    fn delete(&self, key: &str, expected: Revision) -> impl Future<Output = Result<bool, Error>>;

    /// A lease that ends after `ttl` unless it is renewed.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, Error>>;

    /// Renews a lease. Returns how long it lasts now; `None` if it has ended already.
    fn renew(&self, lease: LeaseId) -> impl Future<Output = Result<Option<Duration>, Error>>;

    /// Uses new connections from the next call on: this node's address has changed.
    fn reconnect(&self);

    /// Ends a lease, and deletes its keys. Succeeds if it has ended already.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), Error>>;
}

/// A change of one key, as a part of a transaction.
#[derive(Clone, Copy, Debug)]
pub enum Write<'a> {
    /// The key gets this value, for as long as the lease lives.
    Put(&'a str, &'a [u8], Option<LeaseId>),
    /// The key is deleted.
    Delete(&'a str),
}

/// A node that has a key, for [`Transactions::look_after`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its key, which lives as long as its lease.
    pub key: String,
    /// The revision of the key's last change.
    pub revision: Revision,
}

/// A store that changes several keys at once. Not every store can.
pub trait Transactions: Store {
    /// Whether all keys of a commit change at one moment, and a lease ends by itself, with its keys. If not,
    /// - the first change of a commit is atomic with the condition on its key, and decides. Conditions on
    ///   other keys are looked at before it, and the other changes follow it, as far as possible;
    /// - a lease is granted to one agent of a node at a time; it and its keys stay until other nodes end
    ///   them ([`Self::look_after`]).
    const IS_ATOMIC: bool;

    /// Makes all changes if every key is as expected, and none otherwise. No key is in two of the
    /// changes. Returns the revision of the changes; `None` if a key was not as expected. After
    /// [`Error::Unavailable`] they may have happened.
    fn commit(
        &self,
        expected: &[(&str, Expected)],
        writes: &[Write<'_>],
    ) -> impl Future<Output = Result<Option<Revision>, Error>>;

    /// The revision of the key that a lease just granted goes on with: this process had both, and neither has
    /// ended since. `None` if the key is to be made, or made anew.
    fn continued(&self, lease: LeaseId) -> Option<Revision> {
        let _ = lease;
        None
    }

    /// Ends leases and keys of nodes that have not renewed them for as long as they last, at least `ttl`,
    /// and are no nodes of the cluster any more. To be called several times in a lease: the first of
    /// `members` that lives ends it. Nothing for a store that does this itself.
    fn look_after(
        &self,
        members: &[Member],
        ttl: Duration,
    ) -> impl Future<Output = Result<(), Error>> {
        let _ = (members, ttl);
        async { Ok(()) }
    }
}

/// A stream of changes.
pub trait Watch {
    /// The next changes, in their order. Waits as long as nothing changes.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. [`Error::Unavailable`]: watch again from the revision
    /// after the last one seen.
    fn next(&mut self) -> impl Future<Output = Result<Changes, Error>>;
}

/// Some changes that a watch has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What has changed, in order.
    pub events: Vec<Event>,
    /// All changes up to this revision have been seen.
    pub revision: Revision,
}
