//! The rules of a chain as nft prints them: for people, where nft is installed.

use std::collections::HashMap;

use crate::ports::conditional::printed;

/// The rules of a chain by their handles: `nft -a list chain FAMILY TABLE CHAIN`. Nothing where nft is
/// not installed, or cannot read the chain.
pub fn rule_texts(family: &str, table: &str, chain: &str) -> HashMap<u64, String> {
    let words = [family, table, chain];
    // nft reads its arguments as a script.
    let plain = |it: char| it.is_ascii_alphanumeric() || "_-./\\".contains(it);
    if !words
        .iter()
        .all(|it| !it.is_empty() && it.chars().all(plain))
    {
        return HashMap::new();
    }
    let text = printed(&["-a", "list", "chain", family, table, chain]).unwrap_or_default();
    let rules = text.lines().filter_map(|line| {
        let (rule, handle) = line.trim().rsplit_once(" # handle ")?;
        Some((handle.trim().parse().ok()?, rule.to_owned()))
    });
    rules.collect()
}
