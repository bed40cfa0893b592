//! The leases that the daemon holds, found by key, by owner and by due time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use anyhow::Result;

use crate::lease::{Lease, Millis};
use crate::pod::{self, Interface};
use crate::rpc::Header;
use crate::socket::Socket;
use crate::store::{Owner, Place};
use crate::terms::Terms;

/// A lease and the pod that it is for.
pub struct Entry {
    /// Its key in the table.
    pub key: u32,
    pub owner: Owner,
    pub place: Place,
    pub priority: u32,
    pub lease: Lease,
    pub server_mac: [u8; 6],
    /// What the pod has of the lease. The plugin configures the pod at ADD, the daemon
    /// after each change from then on.
    pub applied: Option<Terms>,
    /// Whether an ADD has got the lease.
    pub delivered: bool,
    /// Whether no server has granted an address in time, and no pod has had one before.
    pub failed: bool,
    /// Open while an answer is expected.
    pub socket: Option<Socket>,
    /// The connections of plugins that wait for the lease, and their calls.
    pub waiting: Vec<(u32, Header)>,
    /// The time of its timer.
    scheduled: Option<Millis>,
}

impl Entry {
    /// A new lease, for a plugin that is about to wait for it.
    pub fn new(owner: Owner, place: Place, priority: u32, lease: Lease) -> Self {
        Self {
            key: 0,
            owner,
            place,
            priority,
            lease,
            server_mac: [0; 6],
            applied: None,
            delivered: false,
            failed: false,
            socket: None,
            waiting: Vec::new(),
            scheduled: None,
        }
    }

    /// Whether nothing is left to do: it was not granted, or the pod is gone and its lease has
    /// ended.
    pub fn is_over(&self) -> bool {
        self.failed || (self.lease.is_suspended() && self.lease.held().is_none())
    }

    pub fn log(&self, what: std::fmt::Arguments<'_>) {
        cni::log(format_args!("{}: {what}", self.owner.client_id()));
    }

    pub fn log_failure(&self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            self.log(format_args!("failed to {what}: {error:#}"));
        }
    }

    /// Whether the pod has all of `terms`.
    pub fn has_applied(&self, terms: &Terms) -> bool {
        self.applied.as_ref().is_some_and(|old| {
            (old.address, &old.routes, old.mtu) == (terms.address, &terms.routes, terms.mtu)
        })
    }

    /// Gives the pod `terms` in place of what it has.
    pub fn apply(&mut self, terms: &Terms) {
        if !self.has_applied(terms) {
            self.in_pod("apply the lease to the pod", |interface| {
                interface.replace(self.applied.as_ref(), terms, self.priority)
            });
        }
        self.applied = Some(terms.clone());
    }

    /// Removes the address and routes from the pod.
    pub fn withdraw(&mut self) {
        if let Some(terms) = self.applied.take() {
            self.in_pod("remove the address from the pod", |interface| {
                interface.withdraw(&terms, self.priority)
            });
        }
    }

    /// Calls `change` with the pod's interface, unless that is gone. A failure is logged.
    fn in_pod(&self, what: &str, change: impl FnOnce(&Interface) -> Result<()>) {
        let interface = pod::reopen(&self.place, &self.owner.ifname);
        let done = interface.and_then(|it| it.as_ref().map_or(Ok(()), change));
        self.log_failure(what, done);
    }
}

/// All leases.
#[derive(Default)]
pub struct Table {
    entries: HashMap<u32, Entry>,
    keys: HashMap<Owner, u32>,
    /// Each lease at its due time. A timer whose lease is due at another time by now is passed
    /// over.
    timers: BinaryHeap<Reverse<(Millis, u32)>>,
    last_key: u32,
}

impl Table {
    /// Adds a lease and schedules it; returns its key.
    pub fn insert(&mut self, mut entry: Entry) -> u32 {
        let key = unused_key(&mut self.last_key, &self.entries);
        entry.key = key;
        self.keys.insert(entry.owner.clone(), key);
        self.entries.insert(key, entry);
        self.schedule(key);
        key
    }

    pub fn remove(&mut self, key: u32) -> Option<Entry> {
        let entry = self.entries.remove(&key)?;
        self.keys.remove(&entry.owner);
        Some(entry)
    }

    pub fn get_mut(&mut self, key: u32) -> Option<&mut Entry> {
        self.entries.get_mut(&key)
    }

    pub fn key_of(&self, owner: &Owner) -> Option<u32> {
        self.keys.get(owner).copied()
    }

    pub fn find(&self, owner: &Owner) -> Option<&Entry> {
        self.entries.get(&self.key_of(owner)?)
    }

    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.keys.keys()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Sets the timer of a lease to its due time.
    pub fn schedule(&mut self, key: u32) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let due = entry.lease.due();
        if entry.scheduled.replace(due) != Some(due) {
            self.timers.push(Reverse((due, key)));
        }
    }

    /// When the next lease is due, at the earliest.
    pub fn next_due(&self) -> Option<Millis> {
        self.timers.peek().map(|next| next.0.0)
    }

    /// The next lease that is due at `now`.
    pub fn take_due(&mut self, now: Millis) -> Option<u32> {
        while self.next_due()? <= now {
            let Reverse((due, key)) = self.timers.pop()?;
            if let Some(entry) = self.entries.get_mut(&key)
                && entry.lease.due() == due
            {
                entry.scheduled = None;
                return Some(key);
            }
        }
        None
    }
}

/// The key after `last` that `taken` does not have.
pub fn unused_key<T>(last: &mut u32, taken: &HashMap<u32, T>) -> u32 {
    loop {
        *last = last.wrapping_add(1);
        if !taken.contains_key(last) {
            return *last;
        }
    }
}
