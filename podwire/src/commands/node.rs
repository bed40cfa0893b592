//! `podwire resync`, `adopt` and `release`: the rules of all pods of the node.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use clap::Args;
use networks::Contents;
use packet_filter::node::{Pod, Report, Wanted};
use packet_filter::{Kind, PortOwner};
use serde::Serialize;
use wiring::shared;

use super::Verdict;
use crate::options::{CacheDir, ConfDir};
use crate::output::{Output, print};
use crate::pods::{self, Pods};
use crate::unknown_owners::{self, UnknownOwners};

/// The options of the three commands.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the attachments to this network
    network: Option<String>,
    /// Change nothing; print the transactions
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    cache: CacheDir,
}

/// One of the three commands.
pub struct Task<'a> {
    /// Acts on the pods; with `true` it only reports what it would do.
    pub run: &'a dyn Fn(&Pods, bool) -> Result<Report>,
    /// The label of what was done: `put back`.
    pub done: &'static str,
    /// The line when there was nothing to do.
    pub nothing: &'static str,
    /// Whether podwire owns the rules afterwards; otherwise the Go plugins do.
    pub ours: bool,
}

/// What a command prints: lists of texts.
#[derive(Serialize)]
struct Document {
    done: Vec<String>,
    left: Vec<String>,
    skipped: Vec<String>,
    errors: Vec<String>,
    removed: Vec<String>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    transactions: Vec<String>,
}

impl Options {
    /// Whether no network is named.
    pub fn is_of_all_networks(&self) -> bool {
        self.network.is_none()
    }

    /// Runs a task for the attachments in the cache, and prints what it did.
    pub fn run(&self, task: &Task<'_>, output: &Output) -> Result<Verdict> {
        let (network, dry) = (self.network.as_deref(), self.dry_run);
        let contents = self.cache.open().oldest_first()?;
        let mut pods = Pods::of(&contents, network, &self.conf.conf_dir);
        let mut removed = Vec::new();
        if !task.ours {
            removed = settle_unknown_owners(&mut pods, &contents, network, dry)?;
            keep_shared_masquerade(&mut pods);
        } else if !dry {
            record_users(&pods.wanted)?;
        }
        let report = (task.run)(&pods, dry)?;
        if !task.ours && !dry {
            forget_users(&pods.wanted)?;
        }
        let document = Document {
            done: report.done,
            left: report.left,
            skipped: pods.skipped,
            errors: pods.errors,
            removed,
            notes: report.notes,
            transactions: report.transactions,
        };
        if output.is_json() {
            output.print_json(&document)?;
        } else if !output.is_silent() {
            document.print(task, dry, output)?;
        }
        Ok(Verdict::good_if(document.errors.is_empty()))
    }
}

/// Records the users of a subnet's rule before it is made: it stays as long as they live.
pub fn record_users(pods: &[Pod]) -> Result<()> {
    for Wanted { rules, backend } in pods.iter().filter_map(|pod| pod.masquerade.as_ref()) {
        if *backend != Some(Kind::Iptables) {
            shared::use_subnets(rules)?;
        }
    }
    for pod in pods {
        if let Some(isolation) = &pod.isolation {
            shared::use_isolation(&pod.owner, isolation)?;
        }
    }
    Ok(())
}

/// Removes the records of shared rules, which the Go plugins would never remove.
fn forget_users(pods: &[Pod]) -> Result<()> {
    let mut networks = BTreeMap::<&str, Vec<&cni::Attachment>>::new();
    for pod in pods.iter().filter(|pod| uses_shared_rules(pod)) {
        let owners = networks.entry(&pod.owner.network).or_default();
        owners.push(&pod.owner);
    }
    for (network, owners) in networks {
        shared::hand_over(network, &owners)?;
    }
    Ok(())
}

fn uses_shared_rules(pod: &Pod) -> bool {
    let masquerade = pod.masquerade.as_ref();
    masquerade.is_some_and(|it| it.rules.is_known_to_go()) || pod.isolation.is_some()
}

/// Removes published ports of pods that are gone, because the Go plugins do not look into
/// podwire's tables, and records an error for those of unknown pods that may live. Returns
/// what was removed, or would be.
fn settle_unknown_owners(
    pods: &mut Pods,
    contents: &Contents,
    network: Option<&str>,
    dry: bool,
) -> Result<Vec<String>> {
    let unknown = UnknownOwners::find(contents, network, |it| !pods::is_gone(&it.netns))?;
    for (owner, why) in &unknown.alive {
        pods.errors.push(format!(
            "ports of {} stay: {why}, but the cache has no such attachment; give the cache of \
             its runtime (--cache-dir), or delete it with podwire's plugins",
            owner.name
        ));
    }
    let gone = unknown.gone.iter();
    pods.gone.extend(gone.filter_map(PortOwner::attachment));
    if !dry {
        unknown.remove_gone()?;
        let networks: BTreeSet<_> = pods.wanted.iter().map(|pod| &pod.owner.network).collect();
        for network in networks {
            // Attachments that are gone do not use the network's rules any more.
            let valid = contents.in_use(network).into_iter();
            let valid = valid.chain(unknown_owners::with_veth(network)?);
            shared::collect(network, &valid.collect::<Vec<_>>())?;
        }
    }
    let gone = unknown.gone.iter();
    Ok(gone
        .map(|it| format!("ports of {}, which is gone", it.name))
        .collect())
}

/// Keeps a subnet's rule at podwire while pods that are not in the cache may use it.
fn keep_shared_masquerade(pods: &mut Pods) {
    let owners = pods.wanted.iter().map(|pod| &pod.owner);
    let known: Vec<_> = owners.chain(&pods.gone).cloned().collect();
    let known: Vec<_> = known.iter().collect();
    let wanted = pods.wanted.iter().filter(|pod| uses_shared_rules(pod));
    let networks: BTreeSet<_> = wanted.map(|pod| pod.owner.network.clone()).collect();
    for network in networks {
        if !shared::has_other_users(&network, &known) {
            continue;
        }
        for pod in &mut pods.wanted {
            if pod.owner.network == network {
                pod.masquerade = None;
            }
        }
        pods.errors.push(format!(
            "masquerade of {network} stays: attachments that are not in the cache may use it; \
             `podwire gc --keep-cached {network}` forgets those that are gone"
        ));
    }
}

impl Document {
    fn print(&self, task: &Task<'_>, dry: bool, output: &Output) -> Result<()> {
        for line in &self.errors {
            cni::log(format_args!("podwire: {line}"));
        }
        for line in self.skipped.iter().chain(&self.left) {
            cni::log(format_args!("podwire: left as it is: {line}"));
        }
        let would = if dry { "would be " } else { "" };
        for line in &self.removed {
            print(&format!("{would}removed: {line}"))?;
        }
        for line in &self.done {
            print(&format!("{would}{}: {line}", task.done))?;
        }
        for line in &self.notes {
            cni::log(format_args!("podwire: note: {line}"));
        }
        for text in &self.transactions {
            print(text)?;
        }
        if self.done.is_empty() && self.removed.is_empty() {
            output.remark(task.nothing)?;
        }
        Ok(())
    }
}
