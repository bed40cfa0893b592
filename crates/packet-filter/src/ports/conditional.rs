//! Published ports with conditions: matches in nft's own language. Only nft can read them, so this
//! is the one place that executes it.
//!
//! Such an attachment has a chain of its own, which is entered before the maps are looked up, with
//! the conditions on each of its rules.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cni::execute::{self, Limits};
use cni::names;
use nftables::listing::{self, in_chain};
use nftables::{Family, Socket, Table, Transaction};

use super::layout::{conditions, mappings, owner, pod};
use crate::ports::HostPorts;

const ENTRIES: [&str; 2] = ["prerouting", "output"];

/// The table of `family`.
pub fn table(family: Family) -> Table {
    Table::new(family, "podwire_hostports_conditional")
}

/// The name of an owner's chain.
fn chain(owner: &str) -> String {
    names::prefixed(34, "c-", owner)
}

/// Publishes what has conditions in `family`; nothing without any.
pub fn publish(socket: &Socket, family: Family, wanted: &HostPorts) -> Result<()> {
    let script = script(socket, family, wanted)?;
    script.map_or(Ok(()), |script| {
        nft(&script).with_context(|| format!("publish ports of {} with conditions", wanted.owner))
    })
}

/// The script for nft that does that.
pub fn script(socket: &Socket, family: Family, wanted: &HostPorts) -> Result<Option<String>> {
    let conditions = conditions(wanted, family);
    if conditions.is_empty() || pod(wanted, family).is_none() {
        return Ok(None);
    }
    // A line break or a semicolon would begin another command.
    if let Some(word) = conditions.iter().find(|it| it.contains(['\n', ';'])) {
        let version = if family == Family::Ip { 4 } else { 6 };
        let text = format!("conditionsV{version}: {word:?} is more than a condition");
        return Err(cni::Code::InvalidConfig.err(text).into());
    }
    let owner = owner(&wanted.owner);
    let found = listing::rules(socket, table(family))?;
    let entered = ENTRIES.map(|entry| in_chain(&found, entry).any(|it| it.comment == owner));
    Ok(Some(lines(family, wanted, entered)))
}

fn lines(family: Family, wanted: &HostPorts, entered: [bool; 2]) -> String {
    let (owner, table) = (owner(&wanted.owner), table(family));
    let own = chain(&owner);
    let mut lines = vec![
        format!("add table {table}"),
        format!("add chain {table} {own}"),
        format!("flush chain {table} {own}"),
    ];
    let conditions = conditions(wanted, family).join(" ");
    for mapping in mappings(wanted, family) {
        let ip = mapping.specific_host_ip();
        let host_ip = ip.map_or_else(String::new, |ip| format!("{family} daddr {ip} "));
        let pod = pod(wanted, family);
        let to = pod.map_or_else(String::new, |pod| {
            SocketAddr::new(pod, mapping.container_port).to_string()
        });
        lines.push(format!(
            "add rule {table} {own} {conditions} {host_ip}{} dport {} dnat to {to} comment \"{owner}\"",
            mapping.protocol, mapping.host_port
        ));
    }
    for (entry, is_entered) in ENTRIES.into_iter().zip(entered) {
        // Just before the maps of those without conditions.
        lines.push(format!(
            "add chain {table} {entry} {{ type nat hook {entry} priority -101 ; policy accept ; }}"
        ));
        if !is_entered {
            // The newest comes first: it wins.
            let target = enters(family, entry);
            lines.push(format!(
                "insert rule {table} {entry} {target} jump {own} comment \"{owner}\""
            ));
        }
    }
    lines.join("\n") + "\n"
}

/// The condition of an entry: see `layout` for why the node's own connections to ::1 do not enter.
fn enters(family: Family, entry: &str) -> &'static str {
    match (family, entry) {
        (Family::Ip6, "output") => "ip6 daddr != ::1 fib daddr type local",
        _ => "fib daddr type local",
    }
}

/// Changes that remove the chains of owners that are `gone`.
pub fn removal(
    socket: &Socket,
    family: Family,
    gone: &dyn Fn(&str) -> bool,
) -> Result<Transaction> {
    let (mut changes, mut owners) = (Transaction::new(), Vec::new());
    for rule in listing::rules(socket, table(family))? {
        if gone(&rule.comment) {
            if ENTRIES.contains(&rule.chain.as_str()) {
                changes.delete_rule(&rule);
            }
            owners.push(rule.comment);
        }
    }
    owners.sort_unstable();
    owners.dedup();
    for owner in owners {
        changes.delete_chain(table(family), chain(&owner));
    }
    Ok(changes)
}

/// Fails with what is missing.
pub fn check(socket: &Socket, family: Family, wanted: &HostPorts) -> Result<()> {
    if conditions(wanted, family).is_empty() {
        return Ok(());
    }
    let owner = owner(&wanted.owner);
    let (table, own) = (table(family), chain(&owner));
    let rules = listing::rules(socket, table)?;
    let count = |chain| {
        let rules = in_chain(&rules, chain);
        rules.filter(|it| it.comment == owner).count()
    };
    let (found, expected) = (count(&own), mappings(wanted, family).count());
    if found != expected {
        bail!("chain {table} {own} has {found} rules, not {expected}");
    }
    for entry in ENTRIES {
        if count(entry) == 0 {
            bail!("chain {table} {entry} does not lead to {own}");
        }
    }
    Ok(())
}

/// Makes nft carry out a script, as one transaction.
pub fn nft(script: &str) -> Result<()> {
    run(&["-f", "-"], script).map(drop)
}

/// What nft prints.
pub fn printed(arguments: &[&str]) -> Result<String> {
    run(arguments, "")
}

#[expect(
    clippy::disallowed_methods,
    reason = "conditions are in nft's language, which only nft reads and writes"
)]
fn run(arguments: &[&str], script: &str) -> Result<String> {
    let nft = execute::start(Command::new("nft").args(arguments))
        .context("execute nft, which conditions need")?;
    let output = execute::finish(nft, script.as_bytes(), Limits::PLUGIN)
        .map_err(|error| execute::failure(Path::new("nft"), error))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("nft: {}", text.trim().replace('\n', "; "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
