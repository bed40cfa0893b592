//! The rules of a chain as nft prints them: for people, where nft is installed.

use std::collections::HashMap;

use anyhow::{Result, bail};

use crate::ports::conditional::printed;

/// The rules of a chain by their handles: `nft -a list chain FAMILY TABLE CHAIN`. Nothing where nft is
/// not installed, or cannot read the chain.
pub fn rule_texts(family: &str, table: &str, chain: &str) -> HashMap<u64, String> {
    if ![family, table, chain].iter().all(|it| is_plain(it)) {
        return HashMap::new();
    }
    let text = printed(&["-a", "list", "chain", family, table, chain]).unwrap_or_default();
    let rules = text.lines().filter_map(|line| {
        let (rule, handle) = line.trim().rsplit_once(" # handle ")?;
        Some((handle.trim().parse().ok()?, rule.to_owned()))
    });
    rules.collect()
}

/// A table as nft prints it, without the elements of its sets: `nft -t list table FAMILY TABLE`.
///
/// # Errors
/// nft is not installed, or cannot read the table; the name is one that it would not read.
pub fn table_text(family: &str, table: &str) -> Result<String> {
    if !is_plain(table) {
        bail!("unusual name of a table: {table:?}");
    }
    printed(&["-t", "list", "table", family, table])
}

/// nft reads its arguments as a script.
fn is_plain(word: &str) -> bool {
    let plain = |it: char| it.is_ascii_alphanumeric() || "_-./\\".contains(it);
    !word.is_empty() && word.chars().all(plain)
}
