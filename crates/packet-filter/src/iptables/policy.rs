//! The policy of a base chain of iptables' table filter: whether packets are dropped that no rule
//! accepts.

use std::fs;

use anyhow::Result;
use nftables::{Socket, listing};

use super::table::{FILTER, Family};

/// Each family as nf_tables and as iptables name it.
pub const FAMILIES: [(nftables::Family, Family); 2] = [
    (nftables::Family::Ip, Family::V4),
    (nftables::Family::Ip6, Family::V6),
];

/// Whether the policy of `chain` in the nft variant is to drop.
///
/// # Errors
/// As [`listing::chain_drops`].
pub fn drops_in_nft(socket: &Socket, family: nftables::Family, chain: &str) -> Result<bool> {
    Ok(listing::chain_drops(socket, family, FILTER, chain)?)
}

/// Whether the legacy variant has a table filter. Its policies are visible only to its program.
pub fn is_legacy_in_use(family: Family) -> bool {
    let list = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = fs::read_to_string(list).unwrap_or_default();
    names.lines().any(|name| name == FILTER)
}
