//! DNS queries of pods, on a node where the policy of iptables' chain INPUT is to drop.
//!
//! A rule of nf_tables that accepts does not end the chains of other tables, so iptables accepts
//! the DNS queries of a network's pods to the node: two rules for each device and family, which are
//! removed with the last pod.

use anyhow::{Context, Result};
use nftables::Family;

use crate::backend::iptables::{delete_rules, settle};
use crate::backend::{Iptables, Nftables};
use crate::iptables::policy::{self, FAMILIES};
use crate::iptables::table::{self as tables, FILTER, word};

const INPUT: &str = "INPUT";

/// Makes iptables accept DNS queries from a device of the node, if its policy is to drop. It can be
/// repeated. Returns whether there are rules now.
///
/// # Errors
/// What iptables refuses.
pub fn accept_questions(device: &str) -> Result<bool> {
    let mut accepted = false;
    for (family, of) in FAMILIES {
        if !may_drop(family, of)? {
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
    for (family, of) in FAMILIES {
        if !may_drop(family, of)? {
            continue;
        }
        let Some(program) = Iptables::new().programs.installed(of)? else {
            continue;
        };
        let _lock = program.lock()?;
        delete_rules(&program, INPUT, |it| rules.contains(it))
            .context("remove the rules for questions")?;
    }
    Ok(())
}

/// Whether iptables may drop what no rule accepts: by the policy of the nft variant, or in the legacy
/// variant.
fn may_drop(family: Family, of: tables::Family) -> Result<bool> {
    // To try the family out would be a transaction, for which every other one waits.
    Ok(match Nftables::find()? {
        Some(nftables) if policy::drops_in_nft(&nftables.socket, family, INPUT)? => true,
        _ => policy::is_legacy_in_use(of),
    })
}

fn rules(device: &str) -> Result<[String; 2]> {
    let device = word(device)?;
    Ok(["udp", "tcp"].map(|protocol| {
        format!(
            "-i {device} -p {protocol} -m {protocol} --dport 53 -m comment --comment \"podwire: names\" -j ACCEPT"
        )
    }))
}
