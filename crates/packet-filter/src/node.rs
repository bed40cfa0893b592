//! The rules of all pods of a node at once: `resync` restores what was flushed, `adopt` takes over the
//! rules of the Go plugins, `release` gives them back.
//!
//! Each is one transaction of nf_tables and one of each family's iptables. New rules are added
//! before old ones are removed, so that a pod always has rules. Live connections are in the
//! kernel's connection tracking, which nothing here touches, except UDP ones that lead to the wrong
//! place.

mod firewall;
mod ruleset;
mod tables;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cni::Attachment;
use nftables::Family;

pub use self::firewall::{Firewalled, Missing};
use self::ruleset::Ruleset;
use self::tables::{Changes, Tables};
use crate::access::{Access, Linked, Links, OpenPorts};
use crate::backend::{self, Iptables, Kind, Nftables};
use crate::isolation::Isolation;
use crate::leftovers::{self, Hint};
use crate::masquerade::Masquerade;
use crate::ports::{HostPorts, Notice};
use crate::separation::Separation;
use crate::spoof_check::SpoofCheck;
use crate::vxlan_guard::VxlanGuard;

/// The packet filter rules that an attachment wants.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The attachment.
    pub owner: Attachment,
    /// Its masquerade.
    pub masquerade: Option<Wanted<Masquerade>>,
    /// Its published ports.
    pub ports: Option<Wanted<HostPorts>>,
    /// Its MAC spoof check.
    pub spoof_check: Option<SpoofCheck>,
    /// The separation of its network from others.
    pub separation: Option<Separation>,
    /// The isolation of its network's pods.
    pub isolation: Option<Isolation>,
    /// The access to its network.
    pub access: Option<Access>,
    /// Its opened ports.
    pub open_ports: Option<OpenPorts>,
    /// Its links to other pods.
    pub links: Option<Links>,
    /// The VXLAN guard of its network; one of the network's pods has it.
    pub vxlan_guard: Option<VxlanGuard>,
}

impl Pod {
    /// An attachment that wants nothing.
    pub fn new(owner: Attachment) -> Self {
        Self {
            owner,
            masquerade: None,
            ports: None,
            spoof_check: None,
            separation: None,
            isolation: None,
            access: None,
            open_ports: None,
            links: None,
            vxlan_guard: None,
        }
    }
}

/// Rules that a configuration wants.
#[derive(Clone, Debug)]
pub struct Wanted<T> {
    /// The rules.
    pub rules: T,
    /// The back end, if the configuration names one.
    pub backend: Option<Kind>,
}

/// The changes that were made, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A line for each object: `masquerade of mynet/c1/eth0`.
    pub done: Vec<String>,
    /// Rules that stay unexpectedly, and why.
    pub left: Vec<String>,
    /// Intended changes of behaviour from now on.
    pub notes: Vec<String>,
    /// The transactions, as nft and iptables-restore would read them; only of a dry run.
    pub transactions: Vec<String>,
}

impl Report {
    /// Adds the lines of `more` that are new, and its transactions.
    pub fn add(&mut self, more: Self) {
        self.transactions.extend(more.transactions);
        for (all, more) in [
            (&mut self.done, more.done),
            (&mut self.left, more.left),
            (&mut self.notes, more.notes),
        ] {
            for line in more {
                if !all.contains(&line) {
                    all.push(line);
                }
            }
        }
    }
}

/// Restores what is missing of these pods, the oldest first. A `dry` run changes nothing.
///
/// # Errors
/// A back end that a configuration names cannot be used; what the kernel refuses.
pub fn resync(pods: &[Pod], dry: bool) -> Result<Report> {
    carry_out(dry, || Plan::resync(pods))
}

/// Rewrites the rules of the Go plugins for these pods as podwire's.
///
/// # Errors
/// As [`resync`].
pub fn adopt(pods: &[Pod], dry: bool) -> Result<Report> {
    carry_out(dry, || Plan::adopt(pods))
}

/// Rewrites podwire's rules for these pods as those of the Go plugins.
///
/// # Errors
/// As [`resync`].
pub fn release(pods: &[Pod], dry: bool) -> Result<Report> {
    carry_out(dry, || Plan::release(pods))
}

/// How often a plan is made again because other programs changed something.
const ATTEMPTS: u32 = 8;

fn carry_out(dry: bool, plan: impl Fn() -> Result<Plan>) -> Result<Report> {
    let (mut report, mut restored) = (Report::default(), Vec::new());
    let mut attempt = 1;
    let forwarded = loop {
        let mut plan = plan()?;
        report.add(std::mem::take(&mut plan.report));
        restored.append(&mut plan.restored);
        if dry {
            report.transactions = plan.transactions();
            return Ok(report);
        }
        match plan.commit() {
            Ok(()) => break plan.forwarded,
            // A coded error is a held lock, and that has been waited for.
            Err(error) if attempt == ATTEMPTS || error.is::<cni::Error>() => return Err(error),
            Err(_) => attempt += 1,
        }
        drop(plan);
        sleep(Duration::from_millis(10));
    };
    // Needs the lock of iptables, which the plan has held.
    for wanted in &forwarded {
        Nftables::open()?.restore_forwarded(wanted)?;
    }
    for ports in &restored {
        backend::delete_stray_connections(ports);
    }
    Ok(report)
}

/// The present rules of the node.
struct Node {
    /// `None` where the kernel has no nf_tables.
    ruleset: Option<Ruleset>,
    tables: Tables,
    /// Tried out once for all pods: that costs two processes.
    iptables_is_usable: OnceCell<bool>,
}

impl Node {
    fn read() -> Result<Self> {
        let hint = leftovers::iptables_hint()?;
        let iptables = Iptables::new().guessed(hint == Hint::Unreadable);
        let tables = Tables::read(&iptables, hint == Hint::Nothing)?;
        let nftables = Nftables::find_usable(Family::Ip)?;
        Ok(Self {
            ruleset: nftables.map(Ruleset::read).transpose()?,
            tables,
            iptables_is_usable: OnceCell::new(),
        })
    }

    fn iptables_is_usable(&self) -> bool {
        let usable = || Iptables::new().try_out().is_ok();
        *self.iptables_is_usable.get_or_init(usable)
    }

    /// The back end of podwire's plugins.
    fn ours(&self, forced: Option<Kind>) -> Result<Kind> {
        match forced {
            Some(kind) => Ok(kind),
            None if self.ruleset.is_some() => Ok(Kind::Nftables),
            None if self.iptables_is_usable() => Ok(Kind::Iptables),
            None => bail!("neither nftables nor iptables is usable: the kernel lacks both"),
        }
    }

    /// The back end of the Go plugins where no configuration names one.
    fn go_default(&self) -> Kind {
        if self.iptables_is_usable() {
            Kind::Iptables
        } else {
            Kind::Nftables
        }
    }

    fn ruleset(&mut self) -> Result<&mut Ruleset> {
        self.ruleset
            .as_mut()
            .context("nftables is not usable: the kernel lacks nf_tables")
    }

    fn has_masquerade(&self, wanted: &Masquerade) -> Result<bool> {
        let ruleset = self.ruleset.as_ref();
        let in_nftables = ruleset.is_some_and(|it| it.has_masquerade(wanted));
        Ok(in_nftables || self.tables.has_masquerade(wanted)?)
    }

    fn has_ports(&self, wanted: &HostPorts) -> Result<bool> {
        let in_nftables = self.ruleset.as_ref().is_some_and(|it| it.has_ports(wanted));
        Ok(in_nftables || self.tables.has_ports(wanted)?)
    }
}

/// Masquerades and ports of many pods.
#[derive(Default)]
struct Rules<'a> {
    masquerades: Vec<&'a Masquerade>,
    ports: Vec<&'a HostPorts>,
}

impl Rules<'_> {
    fn is_empty(&self) -> bool {
        self.masquerades.is_empty() && self.ports.is_empty()
    }
}

/// The rules of each back end.
#[derive(Default)]
struct ByBackend<'a> {
    nftables: Rules<'a>,
    iptables: Rules<'a>,
}

impl<'a> ByBackend<'a> {
    fn of(&mut self, kind: Kind) -> &mut Rules<'a> {
        match kind {
            Kind::Nftables => &mut self.nftables,
            Kind::Iptables => &mut self.iptables,
        }
    }
}

/// The changes that the node's rules need.
struct Plan {
    node: Node,
    /// What iptables adds.
    first: Vec<Changes>,
    /// What iptables removes.
    last: Vec<Changes>,
    /// Ports that were missing: UDP connections may lead to the wrong place.
    restored: Vec<HostPorts>,
    /// Networks for which iptables has to accept what its policy drops.
    forwarded: Vec<Access>,
    /// Whether the table raw has to close 127.0.0.0/8.
    close_localhost: bool,
    report: Report,
}

impl Plan {
    fn new() -> Result<Self> {
        Ok(Self {
            node: Node::read()?,
            first: Vec::new(),
            last: Vec::new(),
            restored: Vec::new(),
            forwarded: Vec::new(),
            close_localhost: false,
            report: Report::default(),
        })
    }

    fn done(&mut self, what: &str, owner: &Attachment) {
        self.report.done.push(format!("{what} of {owner}"));
    }

    fn resync(pods: &[Pod]) -> Result<Self> {
        let mut plan = Self::new()?;
        let (missing, spoof_checks) = plan.missing_of_pods(pods)?;
        let (separations, isolations) = plan.missing_of_networks(pods)?;
        plan.first = plan.node.tables.additions(&missing.iptables)?;
        // A port that another owner has stays.
        for owner in plan.add(&missing.nftables)? {
            let line = format!("ports of {owner}");
            plan.report.done.retain(|it| *it != line);
            plan.restored.retain(|it| it.owner != owner);
        }
        if missing.nftables.ports.is_empty() {
            plan.complete_tables(pods)?;
        }
        if !isolations.is_empty() {
            let ruleset = plan.node.ruleset()?;
            let additions = ruleset.nftables.isolation_additions(&isolations)?;
            ruleset.extend(additions);
        }
        if !separations.is_empty() {
            plan.node.ruleset()?.add_separations(&separations)?;
        }
        if !spoof_checks.is_empty() {
            let ruleset = plan.node.ruleset()?;
            let additions = ruleset.nftables.spoof_check_additions(&spoof_checks)?;
            ruleset.extend(additions);
        }
        plan.restore_access(pods)?;
        plan.close_localhost(pods)?;
        Ok(plan)
    }

    /// Restores the access to each network as its newest pod wants it, and opened ports. Networks
    /// on one bridge have the same elements, and so have pods that had one address after the other:
    /// the newest has them.
    fn restore_access(&mut self, pods: &[Pod]) -> Result<()> {
        let (mut devices, mut addresses) = (HashSet::new(), HashSet::new());
        for pod in pods.iter().rev() {
            if let Some(wanted) = &pod.access
                && wanted.devices.iter().all(|it| devices.insert(it))
            {
                let ruleset = self.node.ruleset()?;
                let line = |what: &str| format!("{what} {}", wanted.network);
                if ruleset.add_access(wanted)? {
                    self.report.done.push(line("access to"));
                }
                if ruleset.nftables.check_forwarded(wanted).is_err() {
                    self.report.done.push(line("forwarding for"));
                    self.forwarded.push(wanted.clone());
                }
            }
            if let Some(wanted) = &pod.open_ports
                && wanted.addresses.iter().all(|it| addresses.insert(it))
                && self.node.ruleset()?.open_ports(wanted)?
            {
                self.done("opened ports", &pod.owner);
            }
            // Of a pod that is gone, another one may have the address by now.
            let is_there = |it: &Linked| pods.iter().any(|pod| pod.owner == it.owner);
            if let Some(wanted) = pod.links.as_ref().map(|it| it.to_those(is_there))
                && self.node.ruleset()?.link(&wanted)?
            {
                self.done("links", &pod.owner);
            }
        }
        Ok(())
    }

    /// The missing masquerades and ports, by the back end that is to have them, and the missing spoof
    /// checks.
    fn missing_of_pods<'a>(
        &mut self,
        pods: &'a [Pod],
    ) -> Result<(ByBackend<'a>, Vec<&'a SpoofCheck>)> {
        let (mut missing, mut spoof_checks) = (ByBackend::default(), Vec::new());
        for pod in pods {
            if let Some(Wanted { rules, backend }) = &pod.masquerade
                && !self.node.has_masquerade(rules)?
            {
                let kind = self.node.ours(*backend)?;
                missing.of(kind).masquerades.push(rules);
                self.done("masquerade", &pod.owner);
            }
            if let Some(Wanted { rules, backend }) = &pod.ports {
                let kind = self.node.ours(*backend)?;
                if !self.node.has_ports(rules)? {
                    missing.of(kind).ports.push(rules);
                    self.restored.push(rules.clone());
                    self.done("ports", &pod.owner);
                }
            }
            if let Some(wanted) = &pod.spoof_check
                && self
                    .node
                    .ruleset()?
                    .nftables
                    .check_spoof_check(wanted)
                    .is_err()
            {
                spoof_checks.push(wanted);
                self.done("spoof check", &pod.owner);
            }
        }
        Ok((missing, spoof_checks))
    }

    /// The missing separations and isolations, each once; VXLAN guards are added at once. Without
    /// nf_tables there are none.
    fn missing_of_networks<'a>(
        &mut self,
        pods: &'a [Pod],
    ) -> Result<(Vec<&'a Separation>, Vec<&'a Isolation>)> {
        let (mut separations, mut isolations) = (Vec::new(), Vec::new());
        let Some(ruleset) = &mut self.node.ruleset else {
            return Ok((separations, isolations));
        };
        let done = &mut self.report.done;
        for wanted in pods.iter().filter_map(|pod| pod.separation.as_ref()) {
            if !separations.contains(&wanted) && ruleset.nftables.check_separation(wanted).is_err()
            {
                separations.push(wanted);
                done.push(format!("separation of {}", wanted.network));
            }
        }
        for wanted in pods.iter().filter_map(|pod| pod.vxlan_guard.as_ref()) {
            if ruleset.add_vxlan_guard(wanted)? {
                done.push(format!("VXLAN guard of {}", wanted.network));
            }
        }
        for wanted in pods.iter().filter_map(|pod| pod.isolation.as_ref()) {
            if !isolations.contains(&wanted) && ruleset.nftables.check_isolation(wanted).is_err() {
                isolations.push(wanted);
                done.push(format!("isolation of {}", wanted.network));
            }
        }
        Ok((separations, isolations))
    }

    /// Completes the tables of ports that an older version may have made.
    fn complete_tables(&mut self, pods: &[Pod]) -> Result<()> {
        let ports = pods.iter().filter_map(|pod| pod.ports.as_ref());
        let ports = ports.filter(|it| it.backend != Some(Kind::Iptables));
        let ports: Vec<_> = ports.map(|it| &it.rules).collect();
        if let Some(ruleset) = &mut self.node.ruleset
            && ports.iter().any(|it| ruleset.has_own_ports(it))
            && ruleset.complete_tables(&ports)?
        {
            self.report.done.push("rules for published ports".into());
        }
        Ok(())
    }

    /// Closes 127.0.0.0/8 to packets from outside where iptables has ports that open it.
    fn close_localhost(&mut self, pods: &[Pod]) -> Result<()> {
        for Wanted { rules, backend } in pods.iter().filter_map(|pod| pod.ports.as_ref()) {
            if rules.opens_localhost() && self.node.ours(*backend)? == Kind::Iptables {
                match &mut self.node.ruleset {
                    Some(ruleset) => return ruleset.close_localhost(),
                    None => self.close_localhost = true,
                }
            }
        }
        Ok(())
    }

    /// Adds rules to nf_tables. Returns the owners whose ports stay as they are.
    fn add(&mut self, rules: &Rules<'_>) -> Result<Vec<Attachment>> {
        if rules.is_empty() {
            return Ok(Vec::new());
        }
        let (unchanged, notices) = self.node.ruleset()?.add(rules)?;
        for Notice { mapping, from } in notices {
            let port = mapping.published_port();
            let line = format!("host port {port} belongs to {from}");
            self.report.left.push(line);
        }
        Ok(unchanged)
    }

    fn adopt(pods: &[Pod]) -> Result<Self> {
        let mut plan = Self::new()?;
        let mut taken = Rules::default();
        for pod in pods {
            if let Some(Wanted { rules, backend }) = &pod.masquerade
                && plan.node.ours(*backend)? == Kind::Nftables
                && (plan.node.tables.has_masquerade_chain(&pod.owner)
                    || plan.node.ruleset()?.has_masquerade_of_go(rules))
            {
                taken.masquerades.push(rules);
                plan.done("masquerade", &pod.owner);
            }
            if let Some(Wanted { rules, backend }) = &pod.ports
                && plan.node.ours(*backend)? == Kind::Nftables
                && (plan.node.tables.has_ports_chain(&pod.owner)
                    || plan.node.ruleset()?.has_ports_of_go(rules))
            {
                taken.ports.push(rules);
                plan.done("ports", &pod.owner);
            }
        }
        plan.add(&taken)?;
        if !taken.is_empty() {
            plan.node.ruleset()?.remove_of_go(&taken);
            plan.last = plan.node.tables.removals(&taken);
        }
        let owners: Vec<_> = pods.iter().map(|pod| &pod.owner).collect();
        let left = &mut plan.report.left;
        for chain in plan.node.tables.chains_of_others(&owners) {
            left.push(format!("iptables chain {chain}: unknown container"));
        }
        if let Some(ruleset) = &plan.node.ruleset {
            for id in ruleset.other_containers(&owners) {
                left.push(format!("ports of container {id}: unknown container"));
            }
        }
        Ok(plan)
    }

    fn release(pods: &[Pod]) -> Result<Self> {
        let mut plan = Self::new()?;
        let default = plan.node.go_default();
        let Some(ruleset) = &mut plan.node.ruleset else {
            // The rules in iptables are the same for both suites.
            return Ok(plan);
        };
        let report = &mut plan.report;
        let (mut gone, mut added) = (Rules::default(), ByBackend::default());
        for pod in pods {
            if let Some(Wanted { rules, backend }) = &pod.masquerade
                && ruleset.has_masquerade_of_network(rules)
                && rules.is_known_to_go()
            {
                let kind = backend.unwrap_or(default);
                if kind == Kind::Nftables || !plan.node.tables.has_masquerade(rules)? {
                    added.of(kind).masquerades.push(rules);
                }
                gone.masquerades.push(rules);
                report.done.push(format!("masquerade of {}", pod.owner));
            }
            if let Some(Wanted { rules, backend }) = &pod.ports
                && ruleset.has_own_ports(rules)
            {
                if rules.has_conditions() {
                    report.left.push(format!(
                        "ports of {}: the Go plugins apply one pod's conditions to all",
                        pod.owner
                    ));
                    continue;
                }
                let kind = backend.unwrap_or(default);
                if kind == Kind::Nftables || !plan.node.tables.has_ports(rules)? {
                    added.of(kind).ports.push(rules);
                }
                gone.ports.push(rules);
                report.done.push(format!("ports of {}", pod.owner));
            }
        }
        ruleset.add_of_go(&added.nftables);
        ruleset.remove(&gone)?;
        if ruleset.opens_localhost() {
            report.notes.push(
                "neighbours reach 127.0.0.0/8 of the node through interfaces whose route_localnet is 1, as is usual with the Go plugins"
                    .into(),
            );
        }
        plan.first = plan.node.tables.additions(&added.iptables)?;
        Ok(plan)
    }

    fn commit(&self) -> Result<()> {
        for changes in &self.first {
            self.node.tables.commit(changes)?;
        }
        if let Some(ruleset) = &self.node.ruleset {
            // Refused where iptables' nft variant has just changed something: then the next plan has
            // only this left to do.
            ruleset.commit()?;
        }
        for changes in &self.last {
            self.node.tables.commit(changes)?;
        }
        if self.close_localhost {
            Iptables::new().close_localhost()?;
        }
        Ok(())
    }

    fn transactions(&self) -> Vec<String> {
        let text = |changes: &Changes| changes.to_string();
        let mut all: Vec<_> = self.first.iter().map(text).collect();
        if let Some(ruleset) = &self.node.ruleset
            && !ruleset.is_unchanged()
        {
            all.push(ruleset.to_string());
        }
        all.extend(self.last.iter().map(text));
        all
    }
}
