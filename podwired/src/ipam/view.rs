//! What the store says: nodes, blocks, wants and names. It changes by the watch alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use pools::{Block, Claim, Span, Time};
use serde::{Deserialize, Serialize};
use store::{Entry, Event, Listing, Revision};

/// A node that lives: its key is there as long as its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// The name of its journal.
    pub journal: String,
    /// Its boot.
    pub boot: String,
}

/// A node wants an address of blocks that others have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Want {
    /// The node, which gets what it wants by a change of owner.
    pub node: String,
    /// Its journal.
    pub journal: String,
    /// Its boot.
    pub boot: String,
    /// Any of these.
    pub spans: Vec<Span>,
    /// This one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Why the owner does not give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The node that is about to give something: the others leave it to that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub giver: Option<String>,
}

/// A value with the revision of its last change.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen<T> {
    /// The value.
    pub value: T,
    /// The revision.
    pub revision: Revision,
}

/// The keys of all pools.
#[derive(Debug, Default)]
pub struct View {
    prefix: String,
    /// The nodes that live.
    pub nodes: HashMap<String, Seen<Alive>>,
    /// The length of prefixes of blocks, of each pool and family.
    pub lengths: HashMap<(String, bool), u8>,
    /// Which node has which block, and which single address of another node's block.
    pub blocks: HashMap<String, BTreeMap<Block, Seen<Claim>>>,
    /// What nodes want, by key.
    pub wants: BTreeMap<String, (String, Seen<Want>)>,
    /// Addresses that follow names, by pool, number of the set, name.
    pub names: HashMap<(String, usize, String), Seen<IpAddr>>,
    /// The same addresses, by pool.
    pub kept: HashMap<String, Rc<HashSet<IpAddr>>>,
    /// How many blocks each node has.
    shares: HashMap<String, usize>,
    /// Since when this node has seen, without a gap, that a node with blocks has no lease.
    absent: HashMap<String, Time>,
}

/// A pool and a block of it, whose key has changed.
pub type Touched = (String, Block);

impl View {
    /// An empty one, of the keys that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            ..Self::default()
        }
    }

    /// The key of a node.
    pub fn node_key(&self, node: &str) -> String {
        format!("{}/nodes/{node}", self.prefix)
    }

    /// The key of a block.
    pub fn block_key(&self, pool: &str, block: Block) -> String {
        let block = block.to_string().replace('/', "-");
        format!("{}/blocks/{pool}/{block}", self.prefix)
    }

    /// The key of a pool's lengths in a family.
    pub fn length_key(&self, pool: &str, is_ipv4: bool) -> String {
        let family = if is_ipv4 { 4 } else { 6 };
        format!("{}/pools/{pool}/{family}", self.prefix)
    }

    /// The key of a want.
    pub fn want_key(&self, pool: &str, node: &str, number: u64) -> String {
        format!("{}/wants/{pool}/{node}.{number}", self.prefix)
    }

    /// The key of a name.
    pub fn name_key(&self, pool: &str, set: usize, name: &str) -> String {
        format!("{}/names/{pool}/{set}/{name}", self.prefix)
    }

    /// Begins anew with a list. What was absent is absent from now on: it may have been there in
    /// between.
    pub fn reset(&mut self, listing: Listing, now: Time) {
        *self = Self::new(&self.prefix);
        for entry in listing.entries {
            self.put(entry, now);
        }
    }

    /// Takes changes. Returns the blocks among them: a caller looks at these, not at all there are.
    pub fn apply(&mut self, events: Vec<Event>, now: Time) -> Vec<Touched> {
        let touched = events.into_iter().map(|event| match event {
            Event::Put(entry) => self.put(entry, now),
            Event::Delete { key } => self.delete(&key, now),
        });
        touched.flatten().flatten().collect()
    }

    /// Notes whether a node that has blocks has no lease.
    fn note_absent(&mut self, node: &str, now: Time) {
        if self.shares.contains_key(node) && !self.nodes.contains_key(node) {
            self.absent.entry(node.to_owned()).or_insert(now);
        } else {
            self.absent.remove(node);
        }
    }

    /// A block has another owner.
    fn note_owner(&mut self, before: Option<Seen<Claim>>, after: Option<String>, now: Time) {
        let before = before.map(|it| it.value.node);
        if before == after {
            return;
        }
        if let Some(node) = after {
            *self.shares.entry(node.clone()).or_default() += 1;
            self.note_absent(&node, now);
        }
        if let Some(node) = before {
            let share = self.shares.entry(node.clone()).or_default();
            *share = share.saturating_sub(1);
            if *share == 0 {
                self.shares.remove(&node);
            }
            self.note_absent(&node, now);
        }
    }

    /// A block has another value, or none. Single addresses that it lends are blocks of their own, with its
    /// revision.
    fn set_block(
        &mut self,
        pool: &str,
        block: Block,
        after: Option<Seen<Claim>>,
        now: Time,
    ) -> Vec<Touched> {
        let before = self.claim(pool, block).cloned();
        let singles = |seen: &Option<Seen<Claim>>| {
            let lent = seen.iter().flat_map(|it| &it.value.lent);
            let all = lent.filter(|it| Block::single(it.ip) != block && block.contains(it.ip));
            let all = all.map(|it| (Block::single(it.ip), Claim::from(it)));
            all.collect::<BTreeMap<_, _>>()
        };
        let (gone, lent) = (singles(&before), singles(&after));
        let mut changes = vec![(block, after.clone())];
        let gone = gone.into_keys().filter(|it| !lent.contains_key(it));
        changes.extend(gone.map(|it| (it, None)));
        let revision = after.map_or(0, |it| it.revision);
        let lent = lent.iter().map(|(block, value)| {
            let value = value.clone();
            (*block, Some(Seen { value, revision }))
        });
        changes.extend(lent);
        let mut touched = Vec::new();
        for (block, after) in changes {
            let owner = after.as_ref().map(|it| it.value.node.clone());
            let blocks = self.blocks.entry(pool.to_owned()).or_default();
            let before = match after {
                Some(seen) => blocks.insert(block, seen),
                None => blocks.remove(&block),
            };
            self.note_owner(before, owner, now);
            touched.push((pool.to_owned(), block));
        }
        touched
    }

    /// The block whose value has this single address; `None` for a block that has a key itself.
    pub fn around(&self, pool: &str, block: Block) -> Option<Block> {
        let ip = block.span().0;
        let length = self.lengths.get(&(pool.to_owned(), ip.is_ipv4()))?;
        Some(Block::of(ip, *length)).filter(|it| *it != block)
    }

    /// The blocks in which this node has a part: the block, or a single address of it.
    pub fn parts_of(&self, node: &str) -> Vec<(String, Block, Seen<Claim>)> {
        let mut all = Vec::new();
        for (pool, blocks) in &self.blocks {
            for (block, seen) in blocks {
                let claim = &seen.value;
                let has_part = claim.node == node || claim.lent.iter().any(|it| it.node == node);
                if has_part && self.around(pool, *block).is_none() {
                    all.push((pool.clone(), *block, seen.clone()));
                }
            }
        }
        all
    }

    /// Whether a block or a single address of this node was last changed before a revision.
    pub fn has_older(&self, node: &str, than: Revision) -> bool {
        let mut all = self.blocks.values().flat_map(BTreeMap::values);
        all.any(|it| it.value.node == node && it.revision < than)
    }

    /// The keys of wants of nodes that do not live, for which `node` is responsible: it is before them in
    /// the ring.
    pub fn left_wants(&self, node: &str) -> Vec<(String, Revision)> {
        let is_left = |want: &Want| {
            !self.nodes.contains_key(&want.node) && self.ring(&want.node).last() == Some(&node)
        };
        self.wants_if(is_left)
    }

    /// The keys of wants of this node.
    pub fn own_wants(&self, node: &str) -> Vec<(String, Revision)> {
        self.wants_if(|it| it.node == node)
    }

    fn wants_if(&self, is_meant: impl Fn(&Want) -> bool) -> Vec<(String, Revision)> {
        let all = self.wants.iter();
        let meant = all.filter(|(_, (_, seen))| is_meant(&seen.value));
        meant
            .map(|(key, (_, seen))| (key.clone(), seen.revision))
            .collect()
    }

    /// The names of nodes that live, after `node`, as if they stood in a ring.
    pub fn ring(&self, node: &str) -> Vec<&str> {
        let mut all: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        all.retain(|it| *it != node);
        all.sort_unstable_by_key(|it| (*it < node, *it));
        all
    }

    /// The node that has this block.
    pub fn claim(&self, pool: &str, block: Block) -> Option<&Seen<Claim>> {
        self.blocks.get(pool)?.get(&block)
    }

    /// Whether a node has been without a lease for this time.
    pub fn is_lost(&self, node: &str, grace: Duration, now: Time) -> bool {
        let absent = self.absent.get(node);
        absent.is_some_and(|since| now.since(*since) >= grace)
    }

    /// The block that has `ip` in the store: a single address before the block around it.
    pub fn block_of(&self, pool: &str, ip: IpAddr) -> Option<(Block, &Seen<Claim>)> {
        let blocks = self.blocks.get(pool)?;
        let length = self.lengths.get(&(pool.to_owned(), ip.is_ipv4()));
        let around = length.map(|length| Block::of(ip, *length));
        let mut both = [Some(Block::single(ip)), around].into_iter().flatten();
        both.find_map(|block| Some((block, blocks.get(&block)?)))
    }

    /// Whether neither a block nor a single address of it has an owner.
    pub fn is_unclaimed(&self, pool: &str, block: Block) -> bool {
        let Some(blocks) = self.blocks.get(pool) else {
            return true;
        };
        let next = blocks.range(block..).next();
        // Singles of a block without a key: an operator has removed it.
        next.is_none_or(|(next, _)| *next != block && !block.contains(next.span().0))
    }

    fn put(&mut self, entry: Entry, now: Time) -> Option<Vec<Touched>> {
        let revision = entry.revision;
        let parts = parts(&self.prefix, &entry.key);
        // A value that is none of ours is as if it were not there, except that its key is taken.
        match parts.as_deref() {
            Some(["nodes", node]) => {
                if let Some(value) = parse(&entry.value) {
                    let seen = Seen { value, revision };
                    self.nodes.insert((*node).to_owned(), seen);
                    self.note_absent(node, now);
                }
            }
            Some(["pools", pool, family]) => {
                if let Some(length) = parse(&entry.value) {
                    let key = ((*pool).to_owned(), *family == "4");
                    self.lengths.insert(key, length);
                }
            }
            Some(["blocks", pool, block]) => {
                let block: Block = block.replace('-', "/").parse().ok()?;
                let value: Claim = parse(&entry.value)?;
                let seen = Some(Seen { value, revision });
                let pool = (*pool).to_owned();
                return Some(self.set_block(&pool, block, seen, now));
            }
            Some(["wants", pool, _]) => {
                if let Some(value) = parse(&entry.value) {
                    let seen = Seen { value, revision };
                    let pool = (*pool).to_owned();
                    self.wants.insert(entry.key, (pool, seen));
                }
            }
            Some(["names", pool, set, name]) => {
                if let (Ok(set), Some(value)) = (set.parse(), parse(&entry.value)) {
                    let key = ((*pool).to_owned(), set, (*name).to_owned());
                    let kept = Rc::make_mut(self.kept.entry(key.0.clone()).or_default());
                    kept.insert(value);
                    if let Some(old) = self.names.insert(key, Seen { value, revision })
                        && old.value != value
                    {
                        kept.remove(&old.value);
                    }
                }
            }
            _ => {}
        }
        None
    }

    fn delete(&mut self, key: &str, now: Time) -> Option<Vec<Touched>> {
        match parts(&self.prefix, key).as_deref() {
            Some(["nodes", node]) => {
                self.nodes.remove(*node);
                self.note_absent(node, now);
            }
            Some(["pools", pool, family]) => {
                self.lengths.remove(&((*pool).to_owned(), *family == "4"));
            }
            Some(["blocks", pool, block]) => {
                let block: Block = block.replace('-', "/").parse().ok()?;
                return Some(self.set_block(pool, block, None, now));
            }
            Some(["wants", ..]) => drop(self.wants.remove(key)),
            Some(["names", pool, set, name]) => {
                let set = set.parse().ok()?;
                let key = ((*pool).to_owned(), set, (*name).to_owned());
                if let Some(old) = self.names.remove(&key)
                    && let Some(kept) = self.kept.get_mut(*pool)
                {
                    Rc::make_mut(kept).remove(&old.value);
                }
            }
            _ => {}
        }
        None
    }
}

/// The parts of a key; a name, the last one of four, may have slashes.
fn parts<'a>(prefix: &str, key: &'a str) -> Option<Vec<&'a str>> {
    let rest = key.strip_prefix(prefix)?.strip_prefix('/')?;
    Some(rest.splitn(4, '/').collect())
}

fn parse<T: serde::de::DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put(key: &str, value: &str) -> Event {
        Event::Put(Entry {
            key: key.into(),
            value: value.into(),
            revision: 7,
            lease: None,
        })
    }

    fn delete(key: &str) -> Event {
        Event::Delete { key: key.into() }
    }

    const CLAIM: &str = r#"{"node": "a", "journal": "j", "boot": "b", "epoch": 1}"#;
    const ALIVE: &str = r#"{"journal": "j", "boot": "b"}"#;

    #[test]
    fn a_node_is_lost_after_an_absence_without_a_gap() {
        let (grace, mut view) = (Duration::from_secs(10), View::new("/p"));
        let at = |seconds| Time(0).after(Duration::from_secs(seconds));
        view.apply(vec![put("/p/blocks/web/10.0.0.0-28", CLAIM)], at(1));
        assert!(!view.is_lost("a", grace, at(10)) && view.is_lost("a", grace, at(11)));
        view.apply(vec![put("/p/nodes/a", ALIVE)], at(12));
        view.apply(vec![delete("/p/nodes/a")], at(20));
        assert!(!view.is_lost("a", grace, at(29)) && view.is_lost("a", grace, at(30)));
        assert!(!view.is_lost("other", grace, at(99)));
        // Between a list and the next, it may have been there.
        view.reset(Listing::default(), at(40));
        view.apply(vec![put("/p/blocks/web/10.0.0.0-28", CLAIM)], at(41));
        assert!(!view.is_lost("a", grace, at(50)));
    }

    #[test]
    fn names_keep_their_addresses() {
        let mut view = View::new("/p");
        view.apply(
            vec![put("/p/names/web/0/default/db-0", "\"10.0.0.5\"")],
            Time(1),
        );
        let ip: IpAddr = "10.0.0.5".parse().unwrap();
        let key = ("web".to_owned(), 0, "default/db-0".to_owned());
        assert_eq!(view.names[&key].value, ip);
        assert!(view.kept["web"].contains(&ip));
        view.apply(vec![delete("/p/names/web/0/default/db-0")], Time(1));
        assert!(view.kept["web"].is_empty() && view.names.is_empty());
    }

    #[test]
    fn a_single_address_is_found_before_its_block() {
        let mut view = View::new("/p");
        let key = "/p/blocks/web/10.0.0.0-28";
        let around = json!({"node": "a", "journal": "j", "boot": "b", "epoch": 1, "lent": [
            {"ip": "10.0.0.5", "node": "other", "journal": "k", "boot": "c", "epoch": 1},
        ]});
        let events = vec![put(key, &around.to_string()), put("/p/pools/web/4", "28")];
        let touched = view.apply(events, Time(1));
        assert_eq!(touched.len(), 2);
        let (single, seen) = view.block_of("web", "10.0.0.5".parse().unwrap()).unwrap();
        assert_eq!((seen.value.node.as_str(), seen.revision), ("other", 7));
        let whole: Block = "10.0.0.0/28".parse().unwrap();
        assert_eq!(view.around("web", single), Some(whole));
        assert_eq!(view.around("web", whole), None);
        let grace = Duration::from_secs(1);
        let late = Time(1).after(grace);
        assert!(view.is_lost("other", grace, late));
        let block = |view: &View, ip: &str| {
            let found = view.block_of("web", ip.parse().unwrap());
            found.map(|(block, _)| block.to_string())
        };
        assert_eq!(block(&view, "10.0.0.5").as_deref(), Some("10.0.0.5/32"));
        assert_eq!(block(&view, "10.0.0.6").as_deref(), Some("10.0.0.0/28"));
        assert_eq!(block(&view, "10.0.1.6"), None);
        view.apply(vec![put(key, CLAIM)], Time(1));
        assert_eq!(block(&view, "10.0.0.5").as_deref(), Some("10.0.0.0/28"));
        assert!(!view.is_lost("other", grace, late));
        // What is no claim of ours does not disturb.
        view.apply(
            vec![put("/p/blocks/web/x", "5"), put("/p/y", "{}")],
            Time(1),
        );
    }

    #[test]
    fn the_ring_begins_after_a_node() {
        let mut view = View::new("/p");
        let keys = ["d", "a", "c", "b"].map(|it| format!("/p/nodes/{it}"));
        view.apply(keys.iter().map(|it| put(it, ALIVE)).collect(), Time(1));
        assert_eq!(view.ring("b"), ["c", "d", "a"]);
        // A node that is not there.
        assert_eq!(view.ring("bb"), ["c", "d", "a", "b"]);
    }
}
