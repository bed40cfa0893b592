//! The addresses of one pool on one node: which are free, which are in use, and by which attachment.
//! Nothing here reads a clock or a disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use names::Namespace;
use serde::{Deserialize, Serialize};

use crate::block::Block;
use crate::span::Span;
use crate::time::Time;

/// The attachment that has an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container: String,
    /// The interface in the container.
    pub ifname: String,
}

impl From<&cni::Attachment> for Owner {
    fn from(attachment: &cni::Attachment) -> Self {
        Self {
            network: attachment.network.clone(),
            container: attachment.container_id.to_string(),
            ifname: attachment.ifname.to_string(),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container, self.ifname)
    }
}

/// An address in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// The address.
    pub ip: IpAddr,
    /// The attachment that has it.
    pub owner: Owner,
    /// The number of this allocation on the node: a release of an earlier one has another.
    pub sequence: u64,
    /// When it was handed out.
    pub at: Time,
    /// The pod's namespace; `None` if it could not be examined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The name that the address follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What an ADD wants of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Criteria<'a> {
    /// The addresses that it may get.
    pub spans: &'a [Span],
    /// Addresses that follow names: none of them is for this ADD.
    pub kept: &'a HashSet<IpAddr>,
    /// How long an address rests after its release.
    pub cool_down: Duration,
}

impl Criteria<'_> {
    /// Whether an address that has been free since `at` is not to be handed out yet. Zero: it was never
    /// in use.
    fn rests(&self, at: Time, now: Time) -> bool {
        at.0 > 0 && at.after(self.cool_down) > now
    }
}

/// Whether an address meets the criteria.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// This one.
    Now(IpAddr),
    /// All that are free rest: the first one until then.
    Resting(Time),
    /// None is free.
    Nothing,
}

/// A block that the node holds.
#[derive(Clone, Debug, Default)]
struct Held {
    epoch: u64,
    /// Released addresses in the order of their release, after those that were never in use, with
    /// the time of the release.
    free: VecDeque<(IpAddr, Time)>,
    /// The time of the first of them, by which [`Book::open`] has this block.
    first: Option<Time>,
    used: usize,
    /// Addresses that other nodes have, or that are blocks of their own here. A lease of one of them is of
    /// a time before that.
    lent: BTreeSet<IpAddr>,
}

/// The addresses of one pool on this node.
#[derive(Clone, Debug, Default)]
pub struct Book {
    held: BTreeMap<Block, Held>,
    /// Blocks with a free address, by the time since which their first one is free: the address that
    /// has been free longest is found without looking at all of them.
    open: BTreeSet<(Time, Block)>,
    /// The lengths of prefixes that occur.
    lengths: BTreeSet<Reverse<u8>>,
    leases: HashMap<IpAddr, Lease>,
    /// When addresses of blocks that are not held, or not yet, were released.
    released: HashMap<IpAddr, Time>,
}

impl Book {
    /// The address for the criteria: of those that meet them and do not rest, the one that has been free longest.
    pub fn find(&self, criteria: &Criteria, now: Time) -> Free {
        let mut oldest: Option<(Time, IpAddr)> = None;
        for (first, block) in &self.open {
            // What the blocks from here on have is not older.
            if oldest.is_some_and(|(at, _)| at <= *first) {
                break;
            }
            let span = block.span();
            if !criteria.spans.iter().any(|it| it.overlaps(&span)) {
                continue;
            }
            let fits = |(ip, _): &&(IpAddr, Time)| {
                criteria.spans.iter().any(|it| it.contains(*ip)) && !criteria.kept.contains(ip)
            };
            if let Some((ip, at)) = self.held[block].free.iter().find(fits)
                && oldest.is_none_or(|(before, _)| *at < before)
            {
                oldest = Some((*at, *ip));
            }
        }
        match oldest {
            Some((at, _)) if criteria.rests(at, now) => Free::Resting(at.after(criteria.cool_down)),
            Some((_, ip)) => Free::Now(ip),
            None => Free::Nothing,
        }
    }

    /// How many addresses meet the criteria and do not rest, at most `enough`.
    pub fn count(&self, criteria: &Criteria, now: Time, enough: usize) -> usize {
        let mut count = 0;
        for (first, block) in &self.open {
            // So do all that follow.
            if criteria.rests(*first, now) {
                break;
            }
            for (ip, at) in &self.held[block].free {
                let fits = criteria.spans.iter().any(|it| it.contains(*ip));
                count +=
                    usize::from(fits && !criteria.rests(*at, now) && !criteria.kept.contains(ip));
                if count >= enough {
                    return count;
                }
            }
        }
        count
    }

    /// The block of this node that has `ip`: a single address before the block around it.
    pub fn block_of(&self, ip: IpAddr) -> Option<Block> {
        let of = |Reverse(prefix): &Reverse<u8>| Block::of(ip, *prefix);
        let mut blocks = self.lengths.iter().map(of);
        blocks.find(|it| it.contains(ip) && self.held.contains_key(it))
    }

    /// Whether `ip` is free, in a block of this node.
    pub fn is_free(&self, ip: IpAddr) -> bool {
        let held = self.block_of(ip).and_then(|it| self.held.get(&it));
        held.is_some_and(|it| it.free.iter().any(|(free, _)| *free == ip))
    }

    /// The lease of `ip`.
    pub fn lease(&self, ip: IpAddr) -> Option<&Lease> {
        self.leases.get(&ip)
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The blocks of this node with their epochs.
    pub fn blocks(&self) -> impl Iterator<Item = (Block, u64)> {
        self.held.iter().map(|(block, held)| (*block, held.epoch))
    }

    /// Whether a block is held.
    pub fn holds(&self, block: Block) -> bool {
        self.held.contains_key(&block)
    }

    /// Whether a block is held with this epoch.
    pub fn blocks_contain(&self, block: Block, epoch: u64) -> bool {
        self.held.get(&block).is_some_and(|it| it.epoch == epoch)
    }

    /// The addresses of a block that are lent.
    pub fn lent(&self, block: Block) -> impl Iterator<Item = IpAddr> {
        let held = self.held.get(&block);
        held.into_iter().flat_map(|it| it.lent.iter().copied())
    }

    /// How many addresses of a block are in use here.
    pub fn used(&self, block: Block) -> usize {
        self.held.get(&block).map_or(0, |it| it.used)
    }

    /// How many addresses of a block are free here; addresses that are lent are neither.
    pub fn free(&self, block: Block) -> usize {
        self.held.get(&block).map_or(0, |it| it.free.len())
    }

    /// Whether nothing of a block is in use or rests, for a node that gives it away.
    pub fn is_idle(&self, block: Block, cool_down: Duration, now: Time) -> bool {
        // The last one was released last.
        let rests = |(_, at): &(IpAddr, Time)| at.0 > 0 && at.after(cool_down) > now;
        self.held
            .get(&block)
            .is_some_and(|it| it.used == 0 && !it.free.back().is_some_and(rests))
    }

    /// The blocks without a lease, longest free first as far as a book knows.
    pub fn empty_blocks(&self) -> impl Iterator<Item = Block> {
        let empty = |(block, held): (&Block, &Held)| (held.used == 0).then_some(*block);
        self.held.iter().filter_map(empty)
    }

    /// Begins to allocate from a block, anew if it is held. Addresses that have a lease from before keep it.
    pub fn hold(&mut self, block: Block, epoch: u64, lent: &[IpAddr]) {
        self.lose(block);
        let mut held = Held {
            epoch,
            lent: lent.iter().copied().collect(),
            ..Held::default()
        };
        for ip in block.addresses().filter(|it| !lent.contains(it)) {
            if self.leases.contains_key(&ip) {
                held.used += 1
            } else {
                let at = self.released.remove(&ip).unwrap_or_default();
                held.free.push_back((ip, at));
            }
        }
        held.free.make_contiguous().sort_by_key(|(_, at)| *at);
        self.lengths.insert(Reverse(block.prefix()));
        self.held.insert(block, held);
        self.note_open(block);
    }

    /// The leases of addresses of `block` for which no block of this node answers.
    pub fn orphans(&self, block: Block) -> Vec<Lease> {
        let leases = block.addresses().filter_map(|ip| self.leases.get(&ip));
        leases.filter(|it| !self.is_here(it.ip)).cloned().collect()
    }

    /// Whether `ip` is this node's to hand out: in a block of it, and not lent.
    fn is_here(&self, ip: IpAddr) -> bool {
        let held = self.block_of(ip).and_then(|it| self.held.get(&it));
        held.is_some_and(|it| !it.lent.contains(&ip))
    }

    /// Stops to allocate from a block. Its leases stay.
    pub fn lose(&mut self, block: Block) {
        let Some(held) = self.held.remove(&block) else {
            return;
        };
        if let Some(first) = held.first {
            self.open.remove(&(first, block));
        }
        for (ip, at) in held.free {
            if at.0 > 0 {
                self.released.insert(ip, at);
            }
        }
    }

    /// Takes an address out of a block: it is lent, or about to be. Returns since when it was free.
    pub fn withdraw(&mut self, block: Block, ip: IpAddr) -> Option<Time> {
        let at = self.take_free(block, ip);
        let held = self.held.get_mut(&block)?;
        if held.lent.insert(ip) && at.is_none() && self.leases.contains_key(&ip) {
            held.used = held.used.saturating_sub(1);
        }
        at
    }

    /// Gives a lent address back to its block, as free since `at` or as in use.
    pub fn restore(&mut self, block: Block, ip: IpAddr, at: Time) {
        let Some(held) = self.held.get_mut(&block) else {
            return;
        };
        if !held.lent.remove(&ip) {
            return;
        }
        self.released.remove(&ip);
        if self.leases.contains_key(&ip) {
            held.used += 1;
        } else {
            let place = held.free.partition_point(|(_, it)| *it <= at);
            held.free.insert(place, (ip, at));
        }
        self.note_open(block);
    }

    fn take_free(&mut self, block: Block, ip: IpAddr) -> Option<Time> {
        let held = self.held.get_mut(&block)?;
        let index = held.free.iter().position(|(free, _)| *free == ip)?;
        let (_, at) = held.free.remove(index)?;
        self.note_open(block);
        Some(at)
    }

    /// Notes that an address is in use.
    pub fn lend_to_pod(&mut self, lease: Lease) {
        if let Some(block) = self.block_of(lease.ip)
            && self.take_free(block, lease.ip).is_some()
            && let Some(held) = self.held.get_mut(&block)
        {
            held.used += 1;
        }
        self.leases.insert(lease.ip, lease);
    }

    /// Ends the lease of `ip` if it has this number: another one is that of a successor.
    pub fn release(&mut self, ip: IpAddr, sequence: u64, now: Time) -> Option<Lease> {
        if self.leases.get(&ip)?.sequence != sequence {
            return None;
        }
        let lease = self.leases.remove(&ip);
        // The block around an address that another node has by now does not get it back.
        match self.block_of(ip).filter(|_| self.is_here(ip)) {
            Some(block) => {
                if let Some(held) = self.held.get_mut(&block) {
                    held.used = held.used.saturating_sub(1);
                    held.free.push_back((ip, now));
                }
                self.note_open(block);
            }
            None => drop(self.released.insert(ip, now)),
        }
        lease
    }

    /// Notes when an address of a block that is not held was released.
    pub fn note_rest(&mut self, ip: IpAddr, at: Time) {
        if !self.leases.contains_key(&ip) && self.block_of(ip).is_none() {
            self.released.insert(ip, at);
        }
    }

    /// The addresses that were released, and when.
    pub fn resting(&self) -> impl Iterator<Item = (IpAddr, Time)> {
        let free = self.held.values().flat_map(|it| &it.free);
        let free = free.filter(|(_, at)| at.0 > 0).copied();
        free.chain(self.released.iter().map(|(ip, at)| (*ip, *at)))
    }

    /// Notes which address of a block is the first one that is free.
    fn note_open(&mut self, block: Block) {
        let Some(held) = self.held.get_mut(&block) else {
            return;
        };
        let first = held.free.front().map(|(_, at)| *at);
        let before = std::mem::replace(&mut held.first, first);
        if before == first {
            return;
        }
        if let Some(before) = before {
            self.open.remove(&(before, block));
        }
        if let Some(first) = first {
            self.open.insert((first, block));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOL: Duration = Duration::from_secs(10);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn owner(id: &str) -> Owner {
        Owner {
            network: "n".into(),
            container: id.into(),
            ifname: "eth0".into(),
        }
    }

    struct Pool {
        book: Book,
        sequence: u64,
        kept: HashSet<IpAddr>,
        spans: Vec<Span>,
    }

    impl Pool {
        fn new() -> Self {
            Self {
                book: Book::default(),
                sequence: 0,
                kept: HashSet::new(),
                spans: vec![Span(ip(1), ip(254))],
            }
        }

        fn find(&self, seconds: u64) -> Free {
            let criteria = Criteria {
                spans: &self.spans,
                kept: &self.kept,
                cool_down: COOL,
            };
            self.book.find(&criteria, at(seconds))
        }

        fn add(&mut self, seconds: u64) -> IpAddr {
            let Free::Now(ip) = self.find(seconds) else {
                panic!("{:?}", self.find(seconds));
            };
            self.take(ip, seconds);
            ip
        }

        fn take(&mut self, ip: IpAddr, seconds: u64) {
            self.sequence += 1;
            self.book.lend_to_pod(Lease {
                ip,
                owner: owner("a"),
                sequence: self.sequence,
                at: at(seconds),
                namespace: None,
                name: None,
            });
        }

        fn release(&mut self, ip: IpAddr, seconds: u64) {
            let sequence = self.book.lease(ip).unwrap().sequence;
            self.book.release(ip, sequence, at(seconds)).unwrap();
        }
    }

    fn at(seconds: u64) -> Time {
        Time::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn addresses_are_reused_in_the_order_of_their_release_after_a_rest() {
        let mut pool = Pool::new();
        pool.book.hold("10.0.0.4/30".parse().unwrap(), 1, &[ip(6)]);
        assert_eq!(
            [pool.add(100), pool.add(100), pool.add(100)],
            [4, 5, 7].map(ip)
        );
        assert_eq!(pool.find(100), Free::Nothing);
        pool.release(ip(7), 101);
        pool.release(ip(4), 102);
        assert_eq!(pool.find(105), Free::Resting(at(111)));
        assert_eq!([pool.add(120), pool.add(120)], [7, 4].map(ip));
    }

    #[test]
    fn an_address_that_follows_a_name_is_for_that_name_alone() {
        let mut pool = Pool::new();
        pool.book.hold("10.0.0.4/31".parse().unwrap(), 1, &[]);
        pool.kept.insert(ip(4));
        assert_eq!(pool.add(1), ip(5));
        assert_eq!(pool.find(1), Free::Nothing);
        assert!(pool.book.is_free(ip(4)));
    }

    #[test]
    fn a_late_release_does_not_free_a_successor() {
        let mut pool = Pool::new();
        pool.book.hold("10.0.0.4/32".parse().unwrap(), 1, &[]);
        pool.add(1);
        pool.release(ip(4), 2);
        pool.add(20);
        assert!(pool.book.release(ip(4), 1, at(21)).is_none());
        assert!(pool.book.lease(ip(4)).is_some());
    }

    #[test]
    fn pods_keep_their_addresses_when_a_block_is_lost_and_comes_back() {
        let mut pool = Pool::new();
        let block: Block = "10.0.0.4/31".parse().unwrap();
        pool.book.hold(block, 1, &[]);
        pool.add(1);
        pool.add(1);
        pool.release(ip(5), 2);
        pool.book.lose(block);
        assert_eq!(pool.find(100), Free::Nothing);
        assert!(pool.book.lease(ip(4)).is_some() && !pool.book.is_free(ip(5)));
        pool.book.hold(block, 3, &[]);
        assert_eq!(pool.find(3), Free::Resting(at(12)));
        assert_eq!(pool.add(100), ip(5));
        pool.release(ip(4), 101);
        assert_eq!(pool.add(200), ip(4));
        assert_eq!((pool.book.used(block), pool.book.free(block)), (2, 0));
    }

    #[test]
    fn a_single_address_may_come_from_a_block_that_is_taken_over_later() {
        let mut pool = Pool::new();
        pool.book.hold("10.0.0.6/32".parse().unwrap(), 1, &[]);
        assert_eq!(pool.add(1), ip(6));
        pool.book.hold("10.0.0.4/30".parse().unwrap(), 1, &[ip(6)]);
        assert_eq!([pool.add(1), pool.add(1), pool.add(1)], [4, 5, 7].map(ip));
        pool.release(ip(6), 2);
        assert_eq!(pool.book.block_of(ip(6)), Some(Block::single(ip(6))));
        assert_eq!(pool.add(20), ip(6));
    }

    #[test]
    fn a_late_release_does_not_give_an_address_to_its_block_that_another_node_has_by_now() {
        let mut pool = Pool::new();
        let block: Block = "10.0.0.4/30".parse().unwrap();
        let single = Block::single(ip(6));
        pool.book.hold(single, 1, &[]);
        assert_eq!(pool.add(1), ip(6));
        pool.book.hold(block, 1, &[ip(6)]);
        // Another node takes the single address over, and the pod of this one ends after that.
        pool.book.lose(single);
        assert_eq!(pool.book.orphans(single).len(), 1);
        pool.release(ip(6), 2);
        assert_eq!(pool.book.used(block), 0);
        assert_eq!(
            [pool.add(20), pool.add(20), pool.add(20)],
            [4, 5, 7].map(ip)
        );
        assert_eq!(pool.find(100), Free::Nothing);
        // The other node gives it back.
        pool.book.restore(block, ip(6), at(30));
        assert_eq!(pool.add(50), ip(6));
        assert_eq!(pool.book.used(block), 4);
        // An address that is lent under a pod is in use again when it comes back.
        pool.book.withdraw(block, ip(6));
        assert_eq!(pool.book.used(block), 3);
        pool.book.restore(block, ip(6), at(60));
        assert_eq!((pool.book.used(block), pool.find(100)), (4, Free::Nothing));
    }

    #[test]
    fn of_several_blocks_the_address_that_has_been_free_longest_is_next() {
        let mut pool = Pool::new();
        for block in ["10.0.0.4/31", "10.0.0.8/31", "10.0.0.12/31"] {
            pool.book.hold(block.parse().unwrap(), 1, &[]);
        }
        let all: Vec<IpAddr> = (0..6).map(|_| pool.add(1)).collect();
        assert_eq!(all, [4, 5, 8, 9, 12, 13].map(ip));
        for (last, seconds) in [(12, 2), (4, 3), (13, 4), (9, 5), (5, 6)] {
            pool.release(ip(last), seconds);
        }
        // What could not be lent is where it was.
        let block = pool.book.block_of(ip(4)).expect("a block");
        assert_eq!(pool.book.withdraw(block, ip(4)), Some(at(3)));
        pool.book.restore(block, ip(4), at(3));
        pool.kept.insert(ip(13));
        let order: Vec<IpAddr> = (0..4).map(|_| pool.add(100)).collect();
        assert_eq!(order, [12, 4, 9, 5].map(ip));
        pool.kept.clear();
        assert_eq!(pool.add(100), ip(13));
        assert_eq!(pool.find(100), Free::Nothing);
    }

    #[test]
    fn ranges_may_change_under_pods() {
        let mut pool = Pool::new();
        pool.book.hold("10.0.0.0/28".parse().unwrap(), 1, &[]);
        assert_eq!(pool.add(1), ip(1));
        pool.spans = vec![Span(ip(8), ip(9))];
        assert_eq!([pool.add(1), pool.add(1)], [8, 9].map(ip));
        assert_eq!(pool.find(1), Free::Nothing);
        pool.release(ip(1), 1);
        assert_eq!(pool.find(100), Free::Nothing);
    }
}
