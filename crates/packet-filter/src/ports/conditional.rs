//! Published ports with conditions: matches in nft's own language, whatever
//! they are. Only nft can read them, so this is the one place that executes it.
//!
//! Such an attachment has a chain of its own, entered before the maps are
//! looked at, with the conditions on each of its rules.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cni::execute::{self, Limits};
use cni::names;

use super::layout::{conditions, mappings, owner, pod};
use crate::ports::HostPorts;
use nftables::Socket;
use nftables::listing;
use nftables::{Change, Family, Table, Transaction};

const ENTRIES: [&str; 2] = ["prerouting", "output"];

/// The table of `family`.
pub fn table(family: Family) -> Table {
    Table {
        family,
        name: "podwire_hostports_conditional",
        comment: "",
    }
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

/// What nft has to read for that.
pub fn script(socket: &Socket, family: Family, wanted: &HostPorts) -> Result<Option<String>> {
    let conditions = conditions(wanted, family);
    let Some(pod) = pod(wanted, family).filter(|_| !conditions.is_empty()) else {
        return Ok(None);
    };
    // A line or a semicolon more would be a command more.
    if let Some(word) = conditions.iter().find(|it| it.contains(['\n', ';'])) {
        let key = if family == Family::Ip {
            "conditionsV4"
        } else {
            "conditionsV6"
        };
        let told = format!("{key}: {word:?} is more than a condition");
        return Err(cni::Code::InvalidConfig.err(told).into());
    }
    let owner = owner(&wanted.owner);
    let entered = entries(socket, family, &|comment| comment == owner)?;
    Ok(Some(lines(family, wanted, pod, &entered)))
}

fn lines(family: Family, wanted: &HostPorts, pod: IpAddr, entered: &[String]) -> String {
    let (owner, table) = (owner(&wanted.owner), table(family));
    let (own, mut lines) = (chain(&owner), vec![format!("add table {table}")]);
    lines.push(format!("add chain {table} {own}"));
    lines.push(format!("flush chain {table} {own}"));
    let conditions = conditions(wanted, family).join(" ");
    for mapping in mappings(wanted, family) {
        let ip = mapping.specific_host_ip();
        let host_ip = ip.map_or_else(String::new, |ip| format!("{family} daddr {ip} "));
        let to = match pod {
            IpAddr::V4(ip) => format!("{ip}:{}", mapping.container_port),
            IpAddr::V6(ip) => format!("[{ip}]:{}", mapping.container_port),
        };
        lines.push(format!(
            "add rule {table} {own} {conditions} {host_ip}{} dport {} dnat to {to} comment \"{owner}\"",
            mapping.protocol, mapping.host_port
        ));
    }
    for entry in ENTRIES {
        // Just before the maps of those without conditions.
        lines.push(format!(
            "add chain {table} {entry} {{ type nat hook {entry} priority -101 ; policy accept ; }}"
        ));
        if !entered.iter().any(|it| it == entry) {
            // The newest first: it wins.
            let target = enters(family, entry);
            lines.push(format!(
                "insert rule {table} {entry} {target} jump {own} comment \"{owner}\""
            ));
        }
    }
    lines.join("\n") + "\n"
}

/// Which packets enter: see `layout` for why the node's own connections to ::1 do not.
fn enters(family: Family, entry: &str) -> &'static str {
    match (family, entry) {
        (Family::Ip6, "output") => "ip6 daddr != ::1 fib daddr type local",
        _ => "fib daddr type local",
    }
}

/// The chains from which those of owners that are `wanted` are entered.
fn entries(socket: &Socket, family: Family, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
    let rules = listing::rules(socket, table(family), None)?;
    let enters = |it: &listing::Listed| ENTRIES.contains(&it.chain.as_str()) && wanted(&it.comment);
    let chains = rules.into_iter().filter(enters);
    Ok(chains.map(|it| it.chain).collect())
}

/// Changes that take away the chains of owners that are `doomed`.
pub fn removal(
    socket: &Socket,
    family: Family,
    doomed: &dyn Fn(&str) -> bool,
) -> Result<Transaction> {
    let (mut jumps, mut owners) = (Transaction::new(), Vec::new());
    for rule in listing::rules(socket, table(family), None)? {
        if !doomed(&rule.comment) {
            continue;
        }
        if ENTRIES.contains(&rule.chain.as_str()) {
            jumps.push(rule.deletion(table(family)));
        }
        owners.push(rule.comment);
    }
    owners.sort_unstable();
    owners.dedup();
    for owner in owners {
        jumps.push(Change::DeleteChain(table(family), chain(&owner)));
    }
    Ok(jumps)
}

/// Fails with what is missing.
pub fn check(socket: &Socket, family: Family, wanted: &HostPorts) -> Result<()> {
    if conditions(wanted, family).is_empty() {
        return Ok(());
    }
    let owner = owner(&wanted.owner);
    let (table, own) = (table(family), chain(&owner));
    let rules = listing::rules(socket, table, None)?;
    let count = |chain: &str| {
        let its = |it: &&listing::Listed| it.chain == chain && it.comment == owner;
        rules.iter().filter(its).count()
    };
    let expected = mappings(wanted, family).count();
    if count(&own) != expected {
        bail!(
            "chain {table} {own} has {} rules, not {expected}",
            count(&own)
        );
    }
    for entry in ENTRIES {
        if count(entry) == 0 {
            bail!("chain {table} {entry} does not lead to {own}");
        }
    }
    Ok(())
}

/// Has nft carry a script, as one transaction.
#[expect(
    clippy::disallowed_methods,
    reason = "conditions are in nft's language, which only nft reads"
)]
pub fn nft(script: &str) -> Result<()> {
    let nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("execute nft, which conditions need")?;
    let output = execute::finish(nft, script.as_bytes(), Limits::PLUGIN)
        .map_err(|error| execute::failure(Path::new("nft"), error))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("nft: {}", told.trim().replace('\n', "; "));
    }
    Ok(())
}
