//! Blocks: what a node claims of a pool, and what the store says of them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use cni::address::{number, numbered, width};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::span::Span;

/// The largest block by default: 64 addresses.
const USUAL_BITS: u32 = 6;

/// A pool with fewer addresses than sixteen such blocks has smaller ones: sixteen nodes can share
/// any pool by blocks alone.
const SHARES_BITS: u32 = 4;

/// How many blocks of a pool are considered. More than any cluster has; an IPv6 subnet has 2^58.
const CONSIDERED: u128 = 1 << 20;

/// The addresses with a common prefix. Those of one pool and family have all the same length,
/// except single addresses that were lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    base: IpAddr,
    prefix: u8,
}

impl Block {
    /// The block of length `prefix` that has `ip`.
    pub fn of(ip: IpAddr, prefix: u8) -> Self {
        // Longer ones occur in a pool of both families.
        let prefix = prefix.min(width(ip) as u8);
        let host = width(ip) - u32::from(prefix);
        let base = match host {
            128 => 0,
            host => number(ip) >> host << host,
        };
        Self {
            base: numbered(base, ip),
            prefix,
        }
    }

    /// A block of one address.
    pub fn single(ip: IpAddr) -> Self {
        Self::of(ip, width(ip) as u8)
    }

    /// Whether it is one address.
    pub fn is_single(self) -> bool {
        u32::from(self.prefix) == width(self.base)
    }

    /// The length of its prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its addresses.
    pub fn span(self) -> Span {
        let host = width(self.base) - u32::from(self.prefix);
        let last = number(self.base) | 1u128.checked_shl(host).map_or(u128::MAX, |it| it - 1);
        Span(self.base, numbered(last, self.base))
    }

    /// Its addresses one by one.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let Span(first, last) = self.span();
        (number(first)..=number(last)).map(move |it| numbered(it, first))
    }

    /// Whether it has `ip`.
    pub fn contains(self, ip: IpAddr) -> bool {
        self.span().contains(ip)
    }
}

impl fmt::Display for Block {
    /// As CIDR.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cidr: cni::Cidr = text.parse()?;
        let block = Self::of(cidr.ip(), cidr.prefix());
        if block.base == cidr.ip() {
            Ok(block)
        } else {
            Err(format!("{text} has host bits"))
        }
    }
}

impl Serialize for Block {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// The length of the prefix of blocks, for a pool with these addresses: /26 and /122, longer for a
/// small pool.
pub fn usual_prefix(spans: &[Span]) -> u8 {
    let Some(first) = spans.first() else {
        return 32;
    };
    let total = spans.iter().map(Span::count).fold(0, u128::saturating_add);
    // A subnet of 256 addresses has 253 for pods: it counts as 256.
    let bits = 128 - total.saturating_sub(1).leading_zeros();
    let bits = bits.saturating_sub(SHARES_BITS).min(USUAL_BITS);
    (width(first.0) - bits) as u8
}

/// The blocks that have addresses of `spans`, each once, in an order that depends on `seed`: so
/// nodes with other seeds begin elsewhere, and seldom want the same block.
pub fn candidates(spans: &[Span], prefix: u8, seed: u64) -> impl Iterator<Item = Block> {
    let parts: Vec<(u128, u128, IpAddr)> = runs(spans, prefix);
    let total: u128 = parts.iter().map(|(_, count, _)| count).sum();
    let total = total.min(CONSIDERED);
    let start = u128::from(seed) % total.max(1);
    (0..total).filter_map(move |turn| {
        let mut index = (start + turn) % total;
        for (first, count, like) in &parts {
            if index < *count {
                let host = width(*like) - u32::from(prefix);
                let base = (first + index).checked_shl(host).unwrap_or(0);
                return Some(Block::of(numbered(base, *like), prefix));
            }
            index -= count;
        }
        None
    })
}

/// Runs of consecutive blocks: number of the first, how many, an address of the family.
fn runs(spans: &[Span], prefix: u8) -> Vec<(u128, u128, IpAddr)> {
    let block = |ip: IpAddr| {
        let host = width(ip).saturating_sub(u32::from(prefix));
        number(ip).checked_shr(host).unwrap_or(0)
    };
    let mut sorted = spans.to_vec();
    sorted.sort_by_key(|it| it.0);
    let mut runs: Vec<(u128, u128, IpAddr)> = Vec::new();
    for Span(start, end) in sorted {
        let (mut first, last) = (block(start), block(end));
        // Two spans may meet within a block.
        if let Some((before, count, like)) = runs.last()
            && like.is_ipv4() == start.is_ipv4()
        {
            first = first.max(before + count);
        }
        if first <= last {
            runs.push((first, (last - first).saturating_add(1), start));
        }
    }
    runs
}

/// What the store says of a block: the value of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The node that may allocate from it.
    pub node: String,
    /// That node's [`Journal`](crate::Journal): another one has begun since if it differs.
    pub journal: String,
    /// The boot of that node.
    pub boot: String,
    /// One more each time that the block gets another owner or journal.
    pub epoch: u64,
    /// Single addresses that belong to other nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lent: Vec<Lent>,
    /// For people: how many addresses were in use a while ago.
    #[serde(default)]
    pub used: usize,
}

/// A single address that another node has. It is in the value of the block around it, so that one change of
/// one key decides which node has which address of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// The address.
    pub ip: IpAddr,
    /// The node that may hand it out.
    pub node: String,
    /// That node's journal.
    pub journal: String,
    /// Its boot.
    pub boot: String,
    /// One more each time that the address gets another owner or journal.
    pub epoch: u64,
}

impl Claim {
    /// The addresses of the block that other nodes have.
    pub fn lent_addresses(&self) -> Vec<IpAddr> {
        self.lent.iter().map(|it| it.ip).collect()
    }

    /// The same claim with a single address as `claim` says; without `claim` it is of the block again.
    #[must_use]
    pub fn with_single(&self, ip: IpAddr, claim: Option<&Self>) -> Self {
        let mut whole = self.clone();
        whole.lent.retain(|it| it.ip != ip);
        whole.lent.extend(claim.map(|it| Lent {
            ip,
            node: it.node.clone(),
            journal: it.journal.clone(),
            boot: it.boot.clone(),
            epoch: it.epoch,
        }));
        whole
    }
}

impl From<&Lent> for Claim {
    /// The claim of the single address.
    fn from(lent: &Lent) -> Self {
        Self {
            node: lent.node.clone(),
            journal: lent.journal.clone(),
            boot: lent.boot.clone(),
            epoch: lent.epoch,
            lent: Vec::new(),
            // Nothing else is known of it.
            used: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: &str, end: &str) -> Span {
        Span(start.parse().unwrap(), end.parse().unwrap())
    }

    fn all(spans: &[Span], prefix: u8, seed: u64) -> Vec<String> {
        let blocks = candidates(spans, prefix, seed);
        blocks.map(|it| it.to_string()).collect()
    }

    #[test]
    fn small_pools_have_small_blocks() {
        for (start, end, prefix) in [
            ("10.0.0.2", "10.0.255.254", 26),
            ("10.0.0.2", "10.0.3.254", 26),
            ("10.0.0.2", "10.0.0.254", 28),
            ("10.0.0.2", "10.0.0.6", 32),
            ("fd00::2", "fd00::ffff:ffff:ffff:ffff", 122),
            ("fd00::2", "fd00::ff", 124),
        ] {
            assert_eq!(usual_prefix(&[span(start, end)]), prefix, "{start}-{end}");
        }
        let everything = span("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(usual_prefix(&[everything]), 122);
        assert!(candidates(&[everything], 122, 5).next().is_some());
    }

    #[test]
    fn candidates_are_each_block_once() {
        let spans = [
            span("10.0.0.20", "10.0.0.40"),
            span("10.0.0.2", "10.0.0.17"),
        ];
        let expected = ["10.0.0.0/28", "10.0.0.16/28", "10.0.0.32/28"];
        assert_eq!(all(&spans, 28, 0), expected);
        let mut other = all(&spans, 28, 7);
        assert_ne!(other, expected);
        other.sort();
        assert_eq!(other, expected);
        assert!(all(&[], 28, 3).is_empty());
    }

    #[test]
    fn a_block_is_its_text() {
        for text in ["10.0.0.64/26", "fd00::40/122", "10.0.0.7/32"] {
            let block: Block = text.parse().unwrap();
            assert_eq!(block.to_string(), text);
            assert_eq!(block.is_single(), text.ends_with("/32"));
        }
        let single = Block::of("10.0.0.7".parse().unwrap(), 122);
        assert_eq!(single.span().to_string(), "10.0.0.7-10.0.0.7");
        assert!("10.0.0.65/26".parse::<Block>().is_err());
        let block: Block = "10.0.0.64/26".parse().unwrap();
        assert_eq!(block.addresses().count(), 64);
        assert_eq!(block.span().to_string(), "10.0.0.64-10.0.0.127");
    }
}
