//! A container's /etc/resolv.conf, which depends on its networks: when it starts, and when they change.

use std::fs;

use anyhow::{Context, Result};
use cni::AddResult;
use containers::{Record, Resolver};
use networks::{Cache, NetworkList};

use super::files;

/// The text for a container that is attached to these networks with these results.
pub fn text(requested: &Resolver, networks: &[&NetworkList], results: &[AddResult]) -> String {
    let requested = beside_networks(requested, networks, results);
    files::resolv_conf(&requested, results, &resolv_conf_of_node())
}

/// Writes the file again after `podwire network connect` or `disconnect`.
///
/// # Errors
/// The cache cannot be read; the file cannot be written.
pub fn renew(record: &Record, cache: &Cache) -> Result<()> {
    let (mut lists, mut results) = (Vec::new(), Vec::new());
    for attachment in cache.of_container(&record.id)? {
        lists.push(NetworkList::from_bytes(&attachment.config()?)?);
        results.push(attachment.add_result()?.unwrap_or_default());
    }
    let text = text(&record.dns, &lists.iter().collect::<Vec<_>>(), &results);
    let file = record.dir().join("resolv.conf");
    if fs::read_to_string(&file).is_ok_and(|it| it == text) {
        return Ok(());
    }
    // In place: the container has the file itself mounted.
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

/// What `--dns…` asks for beside the networks. Where a network answers names, its resolver has got the
/// servers of `--dns`, and asks them for the names that it does not know.
fn beside_networks(
    requested: &Resolver,
    networks: &[&NetworkList],
    results: &[AddResult],
) -> Resolver {
    let mut networks = networks.iter().zip(results);
    let takes_servers = networks
        .any(|(list, result)| list.has_capability("dns") && !result.dns.nameservers.is_empty());
    let mut requested = requested.clone();
    if takes_servers {
        requested.servers.clear();
    }
    requested
}

/// The node's name servers; with systemd-resolved those that it asks, because its own address is the
/// node's loopback.
fn resolv_conf_of_node() -> String {
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let is_stub = own.lines().any(|it| it.trim() == "nameserver 127.0.0.53");
    let behind = is_stub.then(|| fs::read_to_string("/run/systemd/resolve/resolv.conf").ok());
    behind.flatten().unwrap_or(own)
}
