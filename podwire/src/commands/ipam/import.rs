//! `podwire ipam import`: addresses that host-local or whereabouts has handed out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use cni::{Attachment, Cidr};
use pools::{Add, Agent, Owner, Request, Set, Span};
use serde::Deserialize;
use serde_json::json;

use super::{PATIENCE, text};
use crate::commands::Verdict;
use crate::options::CacheDir;
use crate::output::{Output, print};

/// The longest file of host-local, and of a pool of whereabouts (etcd's limit is 1.5 MB).
const LONGEST: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The network whose pods have the addresses
    #[arg(long)]
    network: String,
    /// The pool of the addresses, if it is not the network's name
    #[arg(long)]
    pool: Option<String>,
    /// The subnet of the network, as in 10.7.0.0/16: host-local's directory does not say it
    #[arg(long, value_name = "CIDR")]
    range: Option<Cidr>,
    /// Only list what would be taken over
    #[arg(long)]
    dry_run: bool,
    /// Also containers that are not in the cache of this node's runtime
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    cache: CacheDir,
    /// Directory of a network of host-local, or a pool of whereabouts as JSON
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<PathBuf>,
}

/// A pool of whereabouts: its allocations.
#[derive(Deserialize)]
struct IpPool {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    range: Cidr,
    #[serde(default)]
    allocations: BTreeMap<String, Allocation>,
}

#[derive(Deserialize)]
struct Allocation {
    id: String,
    #[serde(default)]
    ifname: String,
}

/// An address that is in use.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    ip: IpAddr,
    owner: Owner,
    range: Cidr,
}

impl Import {
    pub(super) fn run(&self, agent: &Agent, output: &Output) -> Result<Verdict> {
        let mut found: Vec<Found> = Vec::new();
        for source in &self.sources {
            let read = if source.is_dir() {
                self.host_local(source)
            } else {
                self.whereabouts(source)
            };
            found.extend(read.with_context(|| format!("read {}", source.display()))?);
        }
        let (mut taken, mut failed) = (Vec::new(), Vec::new());
        found.sort();
        for Found { ip, owner, range } in found {
            match self.take(agent, ip, range, &owner) {
                Ok(()) => taken.push(json!({"address": ip, "owner": owner.to_string()})),
                Err(error) => {
                    let why = format!("{error:#}");
                    failed.push(json!({"address": ip, "owner": owner.to_string(), "error": why}));
                }
            }
        }
        let document = json!({"dryRun": self.dry_run, "taken": taken, "failed": failed});
        if output.is_json() {
            output.print_json(&document)?;
        } else {
            let verb = if self.dry_run { "would take" } else { "took" };
            for it in &taken {
                print(&format!(
                    "{verb} {} of {}",
                    text(&it["address"]),
                    text(&it["owner"])
                ))?;
            }
            for it in &failed {
                cni::log(format_args!(
                    "podwire: {} of {}: {}",
                    text(&it["address"]),
                    text(&it["owner"]),
                    text(&it["error"])
                ));
            }
        }
        Ok(Verdict::good_if(failed.is_empty()))
    }

    /// Files with the name of an address, and container and interface as content.
    fn host_local(&self, dir: &Path) -> Result<Vec<Found>> {
        let range = self.range.context("--range: missing")?;
        let mut all = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|it| it.to_str());
            let Some(ip) = name.and_then(|it| it.parse::<IpAddr>().ok()) else {
                continue;
            };
            let (content, _) = cni::file::read(&path, LONGEST)?;
            let content = String::from_utf8_lossy(&content).into_owned();
            let mut lines = content.lines();
            let (id, ifname) = (lines.next().unwrap_or_default(), lines.next());
            let owner = self.owner(id, ifname.unwrap_or("eth0"));
            let owner = owner.filter(|_| range.0.contains(ip));
            all.extend(owner.map(|owner| Found { ip, owner, range }));
        }
        Ok(all)
    }

    fn whereabouts(&self, path: &Path) -> Result<Vec<Found>> {
        let content = cni::file::read_chosen(path, LONGEST)?;
        let pool: IpPool = serde_json::from_slice(&content)?;
        let cache = self.cache.open();
        let mut all = Vec::new();
        for (offset, allocation) in &pool.spec.allocations {
            let Some(ip) = at(pool.spec.range, offset) else {
                bail!(
                    "spec.allocations: {offset:?} is no offset in {}",
                    pool.spec.range
                );
            };
            let ifname = match allocation.ifname.as_str() {
                "" => "eth0",
                ifname => ifname,
            };
            let Some(owner) = self.owner(&allocation.id, ifname) else {
                continue;
            };
            let attachment = Attachment::parse(&self.network, &owner.container, &owner.ifname);
            if self.all || attachment.is_some_and(|it| cache.has(&it)) {
                let range = pool.spec.range;
                all.push(Found { ip, owner, range });
            }
        }
        Ok(all)
    }

    fn owner(&self, id: &str, ifname: &str) -> Option<Owner> {
        let attachment = Attachment::parse(&self.network, id.trim(), ifname.trim())?;
        Some(Owner::from(&attachment))
    }

    fn take(&self, agent: &Agent, ip: IpAddr, range: Cidr, owner: &Owner) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let add = Add {
            pool: self.pool.clone().unwrap_or_else(|| self.network.clone()),
            owner: owner.clone(),
            namespace: None,
            name: None,
            cool_down: 30,
            sets: vec![Set {
                // The whole range: a new pool gets blocks by its size.
                spans: vec![Span(range.0.network(), range.0.broadcast())],
                block: None,
                requested: Some(ip),
            }],
            deadline: None,
        };
        agent.ask(&Request::Add(add), PATIENCE).map(drop)
    }
}

/// The address with this distance from the network's.
fn at(range: Cidr, offset: &str) -> Option<IpAddr> {
    let offset: u64 = offset.parse().ok()?;
    let ip = match range.0.network() {
        IpAddr::V4(ip) => IpAddr::V4(ip.to_bits().checked_add(offset.try_into().ok()?)?.into()),
        IpAddr::V6(ip) => IpAddr::V6(ip.to_bits().checked_add(offset.into())?.into()),
    };
    range.0.contains(ip).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_from_the_network() {
        let ip = |range: &str, offset| at(range.parse().unwrap(), offset).map(|it| it.to_string());
        assert_eq!(ip("10.7.0.0/24", "5").as_deref(), Some("10.7.0.5"));
        assert_eq!(ip("fd07::10/64", "300").as_deref(), Some("fd07::12c"));
        assert_eq!(ip("10.7.0.0/24", "256"), None);
        assert_eq!(ip("10.7.0.0/24", "x"), None);
    }
}
