//! All pools of a node, in memory and in its journal: each change is in the journal before it holds.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use names::Namespace;

use crate::block::Block;
use crate::book::{Book, Criteria, Free, Lease, Owner};
use crate::journal::{Change, Journal};
use crate::time::Time;

/// What an address is allocated for.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipient {
    /// The attachment.
    pub owner: Owner,
    /// The pod's namespace.
    pub namespace: Option<Namespace>,
    /// The name that the address follows.
    pub name: Option<String>,
}

/// The pools of this node.
#[derive(Debug)]
pub struct Node {
    journal: Journal,
    books: BTreeMap<String, Book>,
    owners: HashMap<Owner, Vec<(String, IpAddr)>>,
    sequence: u64,
}

impl Node {
    /// Reads the journal in `dir`. No block is held yet.
    ///
    /// # Errors
    /// Those of [`Journal::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        let (journal, changes) = Journal::open(dir)?;
        let mut node = Self {
            journal,
            books: BTreeMap::new(),
            owners: HashMap::new(),
            sequence: 0,
        };
        for change in changes {
            node.replay(change);
        }
        Ok(node)
    }

    fn replay(&mut self, change: Change) {
        match change {
            Change::Lease { pool, lease } => {
                self.sequence = self.sequence.max(lease.sequence);
                self.note(pool, lease);
            }
            Change::Release {
                pool,
                ip,
                sequence,
                at,
            } => {
                self.forget(&pool, ip, sequence, at);
                self.book(&pool).note_rest(ip, at);
            }
        }
    }

    fn note(&mut self, pool: String, lease: Lease) {
        let place = (pool.clone(), lease.ip);
        let held = self.owners.entry(lease.owner.clone()).or_default();
        held.push(place);
        self.books.entry(pool).or_default().lend_to_pod(lease);
    }

    fn forget(&mut self, pool: &str, ip: IpAddr, sequence: u64, at: Time) {
        let book = self.books.get_mut(pool);
        let Some(lease) = book.and_then(|it| it.release(ip, sequence, at)) else {
            return;
        };
        if let Some(held) = self.owners.get_mut(&lease.owner) {
            held.retain(|(at, its)| (at.as_str(), *its) != (pool, ip));
            if held.is_empty() {
                self.owners.remove(&lease.owner);
            }
        }
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The book of a pool.
    pub fn book(&mut self, pool: &str) -> &mut Book {
        if !self.books.contains_key(pool) {
            self.books.insert(pool.to_owned(), Book::default());
        }
        self.books.entry(pool.to_owned()).or_default()
    }

    /// Whether this node allocates from a block.
    pub fn holds(&self, pool: &str, block: Block) -> bool {
        let book = self.books.get(pool);
        book.is_some_and(|it| it.holds(block))
    }

    /// All books.
    pub fn books(&self) -> impl Iterator<Item = (&str, &Book)> {
        self.books.iter().map(|(pool, book)| (pool.as_str(), book))
    }

    /// Hands out an address, if one is free for the criteria.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn allocate(
        &mut self,
        pool: &str,
        criteria: &Criteria,
        recipient: &Recipient,
        now: Time,
    ) -> Result<Found> {
        match self.book(pool).find(criteria, now) {
            Free::Now(ip) => Ok(Found::Lease(self.take(pool, ip, recipient, now)?)),
            Free::Resting(until) => Ok(Found::Resting(until)),
            Free::Nothing => Ok(Found::Nothing),
        }
    }

    /// Hands out this address, which is free.
    ///
    /// # Errors
    /// Those of the journal.
    pub fn take(
        &mut self,
        pool: &str,
        ip: IpAddr,
        recipient: &Recipient,
        now: Time,
    ) -> Result<Lease> {
        let lease = Lease {
            ip,
            owner: recipient.owner.clone(),
            sequence: self.sequence + 1,
            at: now,
            namespace: recipient.namespace.clone(),
            name: recipient.name.clone(),
        };
        self.journal.append(&Change::Lease {
            pool: pool.to_owned(),
            lease: lease.clone(),
        })?;
        self.sequence += 1;
        self.note(pool.to_owned(), lease.clone());
        Ok(lease)
    }

    /// The leases of an attachment, with their pools.
    pub fn held_by(&self, owner: &Owner) -> Vec<(String, Lease)> {
        let held = self.owners.get(owner).into_iter().flatten();
        held.filter_map(|(pool, ip)| {
            let lease = self.books.get(pool)?.lease(*ip)?;
            Some((pool.clone(), lease.clone()))
        })
        .collect()
    }

    /// Releases an address if its lease has this number. Returns whether it had.
    ///
    /// # Errors
    /// Those of the journal; the address is in use still.
    pub fn release(&mut self, pool: &str, ip: IpAddr, sequence: u64, now: Time) -> Result<bool> {
        let lease = self.books.get(pool).and_then(|it| it.lease(ip));
        if lease.is_none_or(|it| it.sequence != sequence) {
            return Ok(false);
        }
        self.journal.append(&Change::Release {
            pool: pool.to_owned(),
            ip,
            sequence,
            at: now,
        })?;
        self.forget(pool, ip, sequence, now);
        self.shorten();
        Ok(true)
    }

    /// Releases what DELs have left for this agent.
    ///
    /// # Errors
    /// The files cannot be read or written.
    pub fn release_late(&mut self) -> Result<usize> {
        let mut count = 0;
        let Some(late_releases) = self.journal.late()? else {
            return Ok(0);
        };
        for late in &late_releases.all {
            for (pool, lease) in self.held_by(&late.owner) {
                if lease.at <= late.at {
                    self.release(&pool, lease.ip, lease.sequence, Time::now())?;
                    count += 1;
                }
            }
        }
        late_releases.finish()?;
        Ok(count)
    }

    /// Writes the journal anew when most of it is history. If that fails, it grows.
    fn shorten(&mut self) {
        if !self.journal.is_long() {
            return;
        }
        let leases = self.books.iter().flat_map(|(pool, book)| {
            let pool = pool.clone();
            let lease = move |lease: &Lease| Change::Lease {
                pool: pool.clone(),
                lease: lease.clone(),
            };
            book.leases().map(lease)
        });
        let resting = self.books.iter().flat_map(|(pool, book)| {
            let pool = pool.clone();
            book.resting().map(move |(ip, at)| {
                let (pool, sequence) = (pool.clone(), 0);
                Change::Release {
                    pool,
                    ip,
                    sequence,
                    at,
                }
            })
        });
        let state: Vec<Change> = leases.chain(resting).collect();
        if let Err(error) = self.journal.replace(&state) {
            cni::log(format_args!("{error:#}"));
        }
    }
}

/// What [`Node::allocate`] found.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// An address, which is in use now.
    Lease(Lease),
    /// All free ones rest: the first one until then.
    Resting(Time),
    /// None is free.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;
    use std::collections::HashSet;
    use std::time::Duration;

    fn recipient(id: &str) -> Recipient {
        Recipient {
            owner: Owner {
                network: "n".into(),
                container: id.into(),
                ifname: "eth0".into(),
            },
            namespace: None,
            name: None,
        }
    }

    fn allocate(node: &mut Node, id: &str) -> Option<IpAddr> {
        let spans = [Span(
            "10.0.0.1".parse().unwrap(),
            "10.0.0.254".parse().unwrap(),
        )];
        let criteria = Criteria {
            spans: &spans,
            kept: &HashSet::new(),
            cool_down: Duration::ZERO,
        };
        match node
            .allocate("p", &criteria, &recipient(id), Time::now())
            .unwrap()
        {
            Found::Lease(lease) => Some(lease.ip),
            _ => None,
        }
    }

    #[test]
    fn a_restarted_node_has_its_leases_but_no_block_until_the_store_confirms_it() {
        let dir = tempfile::tempdir().unwrap();
        let block = "10.0.0.8/30".parse().unwrap();
        let mut node = Node::open(dir.path()).unwrap();
        node.book("p").hold(block, 4, &[]);
        let first = allocate(&mut node, "a").unwrap();
        allocate(&mut node, "b").unwrap();
        let (_, lease) = node.held_by(&recipient("b").owner).remove(0);
        assert!(
            !node
                .release("p", lease.ip, lease.sequence + 1, Time::now())
                .unwrap()
        );
        assert!(
            node.release("p", lease.ip, lease.sequence, Time::now())
                .unwrap()
        );
        drop(node);
        let mut node = Node::open(dir.path()).unwrap();
        assert_eq!(allocate(&mut node, "c"), None);
        node.book("p").hold(block, 4, &[]);
        assert_eq!(node.held_by(&recipient("a").owner)[0].1.ip, first);
        assert_ne!(allocate(&mut node, "c").unwrap(), first);
    }

    #[test]
    fn a_late_release_leaves_later_leases_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::open(dir.path()).unwrap();
        node.book("p").hold("10.0.0.8/30".parse().unwrap(), 1, &[]);
        allocate(&mut node, "a");
        crate::journal::leave_release(dir.path(), &recipient("a").owner).unwrap();
        allocate(&mut node, "a");
        assert_eq!(node.release_late().unwrap(), 1);
        assert_eq!(node.held_by(&recipient("a").owner).len(), 1);
    }

    #[test]
    fn the_journal_does_not_grow_with_history() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::open(dir.path()).unwrap();
        node.book("p").hold("10.0.0.8/30".parse().unwrap(), 1, &[]);
        allocate(&mut node, "stays");
        for _ in 0..6_000 {
            allocate(&mut node, "a").unwrap();
            let (_, lease) = node.held_by(&recipient("a").owner).remove(0);
            node.release("p", lease.ip, lease.sequence, Time::now())
                .unwrap();
        }
        let length = std::fs::metadata(dir.path().join("journal")).unwrap().len();
        assert!(length < 1_000_000, "{length}");
        drop(node);
        let node = Node::open(dir.path()).unwrap();
        assert_eq!(node.held_by(&recipient("stays").owner).len(), 1);
        assert!(node.held_by(&recipient("a").owner).is_empty());
    }
}
