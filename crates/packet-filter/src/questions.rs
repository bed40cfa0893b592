//! Questions for names, on a node where the policy of iptables' chain INPUT is to drop.
//!
//! A rule of nf_tables that accepts does not end the chains of other tables, so iptables accepts what
//! pods of a network ask the node: two rules for each device and family, with the last pod removed.

use std::fs;

use anyhow::{Context, Result};
use nftables::{Family, listing};

use crate::backend::iptables::settle;
use crate::backend::{Iptables, Nftables};
use crate::iptables::table::{self as tables, FILTER, word};

const INPUT: &str = "INPUT";

/// Each family as nf_tables and as iptables name it, and where the kernel lists the tables of the
/// legacy variant.
const FAMILIES: [(Family, tables::Family, &str); 2] = [
    (
        Family::Ip,
        tables::Family::V4,
        "/proc/thread-self/net/ip_tables_names",
    ),
    (
        Family::Ip6,
        tables::Family::V6,
        "/proc/thread-self/net/ip6_tables_names",
    ),
];

/// Has iptables accept questions for names from a device of the node, where its policy is to drop; to
/// repeat it does no harm. Whether there are rules now.
///
/// # Errors
/// What iptables refuses.
pub fn accept_questions(device: &str) -> Result<bool> {
    let mut accepted = false;
    for (family, of, legacy) in FAMILIES {
        if !may_drop(family, legacy)? {
            continue;
        }
        let Some(program) = Iptables::new().programs.installed(of)? else {
            continue;
        };
        if !program.table(FILTER)?.drops(INPUT) {
            continue;
        }
        let rules = rules(device)?;
        let _lock = program.lock()?;
        settle(&program, || {
            let found = program.chain(FILTER, INPUT)?.unwrap_or_default();
            let mut missing = tables::Transaction::new(FILTER);
            for rule in rules.iter().filter(|it| !found.rules(INPUT).contains(it)) {
                missing.insert(INPUT, rule);
            }
            Ok(missing)
        })
        .context("accept questions for names")?;
        accepted = true;
    }
    Ok(accepted)
}

/// Removes the rules of a device.
///
/// # Errors
/// What iptables refuses.
pub fn forget_questions(device: &str) -> Result<()> {
    let rules = rules(device)?;
    for (family, of, legacy) in FAMILIES {
        if !may_drop(family, legacy)? {
            continue;
        }
        let Some(program) = Iptables::new().programs.installed(of)? else {
            continue;
        };
        let _lock = program.lock()?;
        settle(&program, || {
            let found = program.chain(FILTER, INPUT)?.unwrap_or_default();
            let mut removal = tables::Transaction::new(FILTER);
            let own = found.rules(INPUT).iter().filter(|it| rules.contains(it));
            own.for_each(|rule| removal.delete(INPUT, rule));
            Ok(removal)
        })
        .context("remove the rules for questions")?;
    }
    Ok(())
}

/// Whether iptables may drop what no rule accepts: the nft variant's chain says so, or the legacy
/// variant has a table.
fn may_drop(family: Family, legacy: &str) -> Result<bool> {
    // To try the family out would be a transaction, for which every other one waits.
    if let Some(nftables) = Nftables::find()?
        && listing::chain_drops(&nftables.socket, family, FILTER, INPUT)?
    {
        return Ok(true);
    }
    let names = fs::read_to_string(legacy).unwrap_or_default();
    Ok(names.lines().any(|name| name == FILTER))
}

fn rules(device: &str) -> Result<[String; 2]> {
    let device = word(device)?;
    Ok(["udp", "tcp"].map(|protocol| {
        format!(
            "-i {device} -p {protocol} -m {protocol} --dport 53 -m comment --comment \"podwire: names\" -j ACCEPT"
        )
    }))
}
