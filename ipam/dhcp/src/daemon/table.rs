//! The leases that the daemon holds, found by key, by owner and by due time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use anyhow::Result;

use crate::lease::{Lease, Millis};
use crate::pod;
use crate::rpc::Header;
use crate::socket::PacketSocket;
use crate::store::{Owner, Place};
use crate::terms::Terms;

/// A lease and the pod that it is for.
pub struct Entry {
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
    /// Open while an answer is expected.
    pub socket: Option<PacketSocket>,
    /// The connections of plugins that wait for the lease, and their calls.
    pub waiting: Vec<(u32, Header)>,
}

impl Entry {
    /// A new lease, for a plugin that is about to wait for it.
    pub fn new(owner: Owner, place: Place, priority: u32, lease: Lease) -> Self {
        Self {
            owner,
            place,
            priority,
            lease,
            server_mac: [0; 6],
            applied: None,
            delivered: false,
            socket: None,
            waiting: Vec::new(),
        }
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
            let applied = pod::reopen(&self.place, &self.owner.ifname).and_then(|interface| {
                interface.map_or(Ok(()), |interface| {
                    interface.replace(self.applied.as_ref(), terms, self.priority)
                })
            });
            self.log_failure("apply the lease to the pod", applied);
        }
        self.applied = Some(terms.clone());
    }

    /// Removes the address and routes from the pod.
    pub fn withdraw(&mut self) {
        let Some(terms) = self.applied.take() else {
            return;
        };
        let withdrawn = pod::reopen(&self.place, &self.owner.ifname).and_then(|interface| {
            interface.map_or(Ok(()), |interface| {
                interface.withdraw(&terms, self.priority)
            })
        });
        self.log_failure("remove the address from the pod", withdrawn);
    }
}

/// All leases.
#[derive(Default)]
pub struct Table {
    entries: HashMap<u32, Entry>,
    keys: HashMap<Owner, u32>,
    /// Each lease at its due time. An entry whose lease is due at another time by now
    /// is passed over.
    timers: BinaryHeap<Reverse<(Millis, u32)>>,
    last_key: u32,
}

impl Table {
    /// Adds a lease and schedules it; returns its key.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let key = unused_key(&mut self.last_key, &self.entries);
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

    pub fn get(&self, key: u32) -> Option<&Entry> {
        self.entries.get(&key)
    }

    pub fn get_mut(&mut self, key: u32) -> Option<&mut Entry> {
        self.entries.get_mut(&key)
    }

    pub fn key_of(&self, owner: &Owner) -> Option<u32> {
        self.keys.get(owner).copied()
    }

    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.keys.keys()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Schedules the lease for its due time.
    pub fn schedule(&mut self, key: u32) {
        if let Some(entry) = self.entries.get(&key) {
            self.timers.push(Reverse((entry.lease.due(), key)));
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
            let entry = self.entries.get(&key);
            if entry.is_some_and(|entry| entry.lease.due() == due) {
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
