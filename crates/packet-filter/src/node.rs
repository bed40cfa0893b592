//! All pods of a node at once: what a flush took away is put back, what the Go
//! plugins laid down is taken over, or given back to them.
//!
//! Each is one transaction of nf_tables and one of each family's iptables. What
//! is to be there comes first and what is to go comes last, so that at no moment
//! a pod is without; connections that live are in the kernel's connection
//! tracking, which nothing here touches but for UDP that went astray.

mod ruleset;
mod tables;

use std::cell::OnceCell;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cni::Attachment;

use self::ruleset::Ruleset;
use self::tables::{Changes, Tables};
use crate::backend::{self, Iptables, Kind, Nftables, usable};
use crate::isolation::Isolation;
use crate::leftovers::{self, Hint};
use crate::masquerade::Masquerade;
use crate::ports::{HostPorts, Notice, Snat};
use crate::separation::Separation;
use crate::spoof_check::SpoofCheck;
use crate::vxlan_guard::VxlanGuard;
use ::nftables::Family;

/// What an attachment wants of the node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Whose it is.
    pub owner: Attachment,
    /// What leaves it, if that is masqueraded.
    pub masquerade: Option<Asked<Masquerade>>,
    /// What leads to it, if anything does.
    pub ports: Option<Asked<HostPorts>>,
    /// Whether its frames are looked at.
    pub spoof_check: Option<SpoofCheck>,
    /// Whether its network is kept apart from others.
    pub separation: Option<Separation>,
    /// Whether it is kept from others of its network.
    pub isolation: Option<Isolation>,
    /// Who may send its network's packets; of several pods of a network, one has it.
    pub guard: Option<VxlanGuard>,
}

/// Something that a configuration wants.
#[derive(Clone, Debug)]
pub struct Asked<T> {
    /// What.
    pub what: T,
    /// By which back end, if it says so.
    pub backend: Option<Kind>,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One for each thing: `masquerade of mynet/c1/eth0`.
    pub done: Vec<String>,
    /// What stays as it is though one might expect otherwise, and why.
    pub left: Vec<String>,
    /// What is different from now on, and as it should be.
    pub notes: Vec<String>,
    /// The transactions, as nft and iptables-restore would read them; only of what
    /// would be done.
    pub transactions: Vec<String>,
}

/// Puts back what is missing of these pods, the oldest first. `dry`: only tells.
///
/// # Errors
/// A back end that a configuration names cannot be used; what the kernel refuses.
pub fn resync(pods: &[Pod], dry: bool) -> Result<Report> {
    settle(dry, || Plan::resync(pods))
}

/// Rewrites what the Go plugins laid down for these pods as podwire's plugins
/// would.
///
/// # Errors
/// As [`resync`].
pub fn adopt(pods: &[Pod], dry: bool) -> Result<Report> {
    settle(dry, || Plan::adopt(pods))
}

/// Rewrites what podwire's plugins laid down for these pods as the Go plugins
/// would.
///
/// # Errors
/// As [`resync`].
pub fn release(pods: &[Pod], dry: bool) -> Result<Report> {
    settle(dry, || Plan::release(pods))
}

/// How often a plan is made anew because others changed something meanwhile.
const ATTEMPTS: u32 = 8;

fn settle(dry: bool, plan: impl Fn() -> Result<Plan>) -> Result<Report> {
    let (mut report, mut put_back) = (Report::default(), Vec::new());
    let mut attempt = 1;
    loop {
        let mut plan = plan()?;
        report.add(std::mem::take(&mut plan.report));
        put_back.append(&mut plan.put_back);
        if dry {
            report.transactions = plan.transactions();
            return Ok(report);
        }
        match plan.carry() {
            Ok(()) => break,
            // A held lock has been waited for long enough already.
            Err(error) if attempt == ATTEMPTS || error.is::<cni::Error>() => return Err(error),
            Err(_) => attempt += 1,
        }
        drop(plan);
        sleep(Duration::from_millis(10));
    }
    for ports in &put_back {
        backend::forget_connections(ports);
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, more: Self) {
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

/// What is there on the node.
struct Node {
    /// `None` where the kernel has no nf_tables.
    ruleset: Option<Ruleset>,
    tables: Tables,
    /// Asked for once, whatever the number of pods: it costs two processes.
    iptables_is_usable: OnceCell<bool>,
}

impl Node {
    fn read() -> Result<Self> {
        let hint = leftovers::iptables_hint()?;
        let iptables = Iptables::new().guessed(hint == Hint::Unreadable);
        let tables = Tables::read(&iptables, hint == Hint::Nothing)?;
        let usable = usable(Family::Ip)?;
        let ruleset = usable
            .then(|| Ruleset::read(Nftables::open()?))
            .transpose()?;
        Ok(Self {
            ruleset,
            tables,
            iptables_is_usable: OnceCell::new(),
        })
    }

    fn iptables_is_usable(&self) -> bool {
        let usable = || Iptables::new().try_out().is_ok();
        *self.iptables_is_usable.get_or_init(usable)
    }

    /// Where podwire's plugins would put it.
    fn ours(&self, forced: Option<Kind>) -> Result<Kind> {
        match forced {
            Some(kind) => Ok(kind),
            None if self.ruleset.is_some() => Ok(Kind::Nftables),
            None if self.iptables_is_usable() => Ok(Kind::Iptables),
            None => bail!("neither nftables nor iptables is usable: the kernel lacks both"),
        }
    }

    /// Where the Go plugins put what no configuration names a back end for.
    fn go_default(&self) -> Kind {
        match self.iptables_is_usable() {
            true => Kind::Iptables,
            false => Kind::Nftables,
        }
    }

    fn ruleset(&mut self) -> Result<&mut Ruleset> {
        self.ruleset
            .as_mut()
            .context("nftables is not usable: the kernel lacks nf_tables")
    }

    fn masquerades(&self, wanted: &Masquerade) -> Result<bool> {
        let ruleset = self.ruleset.as_ref();
        let in_nftables = ruleset.is_some_and(|it| it.masquerades(wanted));
        Ok(in_nftables || self.tables.masquerades(wanted)?)
    }

    fn publishes(&self, wanted: &HostPorts) -> Result<bool> {
        let in_nftables = self.ruleset.as_ref().is_some_and(|it| it.publishes(wanted));
        Ok(in_nftables || self.tables.publishes(wanted)?)
    }
}

/// Things of one back end.
#[derive(Default)]
struct Things<'a> {
    masquerades: Vec<&'a Masquerade>,
    ports: Vec<&'a HostPorts>,
}

impl Things<'_> {
    fn is_empty(&self) -> bool {
        self.masquerades.is_empty() && self.ports.is_empty()
    }
}

/// What is to be done.
struct Plan {
    node: Node,
    /// What iptables lays down.
    first: Vec<Changes>,
    /// What iptables takes away.
    last: Vec<Changes>,
    /// Ports that were not there, to which UDP may have gone astray.
    put_back: Vec<HostPorts>,
    /// Whether the table raw has to keep others from 127.0.0.0/8.
    close_localhost: bool,
    report: Report,
}

impl Plan {
    fn new(node: Node) -> Self {
        Self {
            node,
            first: Vec::new(),
            last: Vec::new(),
            put_back: Vec::new(),
            close_localhost: false,
            report: Report::default(),
        }
    }

    fn done(&mut self, what: &str, owner: &Attachment) {
        self.report.done.push(format!("{what} of {owner}"));
    }

    fn left(&mut self, line: String) {
        self.report.left.push(line);
    }

    fn resync(pods: &[Pod]) -> Result<Self> {
        let mut plan = Self::new(Node::read()?);
        let (mut nftables, mut iptables) = (Things::default(), Things::default());
        let (mut spoof_checks, mut networks) = (Vec::new(), Vec::<&Separation>::new());
        let mut opened = false;
        for pod in pods {
            if let Some(Asked { what, backend }) = &pod.masquerade
                && !plan.node.masquerades(what)?
            {
                match plan.node.ours(*backend)? {
                    Kind::Nftables => nftables.masquerades.push(what),
                    Kind::Iptables => iptables.masquerades.push(what),
                }
                plan.done("masquerade", &pod.owner);
            }
            if let Some(Asked { what, backend }) = &pod.ports {
                let kind = plan.node.ours(*backend)?;
                opened |= kind == Kind::Iptables && opens_localhost(what);
                if !plan.node.publishes(what)? {
                    match kind {
                        Kind::Nftables => nftables.ports.push(what),
                        Kind::Iptables => iptables.ports.push(what),
                    }
                    plan.put_back.push(what.clone());
                    plan.done("ports", &pod.owner);
                }
            }
            if let Some(wanted) = &pod.spoof_check
                && !plan.node.ruleset()?.checks(wanted)
            {
                spoof_checks.push(wanted);
                plan.done("spoof check", &pod.owner);
            }
        }
        for separation in pods.iter().filter_map(|pod| pod.separation.as_ref()) {
            // Without nf_tables, networks are not kept apart.
            if let Some(ruleset) = &plan.node.ruleset
                && !networks.contains(&separation)
                && !ruleset.is_separated(separation)
            {
                networks.push(separation);
                let line = format!("separation of {}", separation.network);
                plan.report.done.push(line);
            }
        }
        for guard in pods.iter().filter_map(|pod| pod.guard.as_ref()) {
            if let Some(ruleset) = &mut plan.node.ruleset
                && ruleset.guard_vxlan(guard)?
            {
                let line = format!("VXLAN guard of {}", guard.network);
                plan.report.done.push(line);
            }
        }
        let mut isolations = Vec::<&Isolation>::new();
        for wanted in pods.iter().filter_map(|pod| pod.isolation.as_ref()) {
            if let Some(ruleset) = &plan.node.ruleset
                && !isolations.contains(&wanted)
                && !ruleset.isolates(wanted)
            {
                isolations.push(wanted);
                let line = format!("isolation of {}", wanted.network);
                plan.report.done.push(line);
            }
        }
        plan.first = plan
            .node
            .tables
            .additions(&iptables.masquerades, &iptables.ports)?;
        // A port that another owner has stays as it is.
        for owner in plan.add(&nftables)? {
            let line = format!("ports of {owner}");
            plan.report.done.retain(|it| *it != line);
            plan.put_back.retain(|it| it.owner != owner);
        }
        plan.complete(pods, &nftables)?;
        if !isolations.is_empty() {
            plan.node.ruleset()?.isolate(&isolations)?;
        }
        if !networks.is_empty() {
            plan.node.ruleset()?.ensure_separation(&networks)?;
        }
        if !spoof_checks.is_empty() {
            plan.node.ruleset()?.add_spoof_checks(&spoof_checks)?;
        }
        if opened {
            match &mut plan.node.ruleset {
                Some(ruleset) => ruleset.close_localhost()?,
                None => plan.close_localhost = true,
            }
        }
        Ok(plan)
    }

    fn adopt(pods: &[Pod]) -> Result<Self> {
        let mut plan = Self::new(Node::read()?);
        let mut taken = Things::default();
        for pod in pods {
            if let Some(Asked { what, backend }) = &pod.masquerade
                && plan.node.ours(*backend)? == Kind::Nftables
                && (plan.node.tables.has_masquerade(&pod.owner)
                    || plan.node.ruleset()?.go_masquerades(what))
            {
                taken.masquerades.push(what);
                plan.done("masquerade", &pod.owner);
            }
            if let Some(Asked { what, backend }) = &pod.ports
                && plan.node.ours(*backend)? == Kind::Nftables
                && (plan.node.tables.has_ports(&pod.owner)
                    || plan.node.ruleset()?.go_publishes(what))
            {
                taken.ports.push(what);
                plan.done("ports", &pod.owner);
            }
        }
        plan.add(&taken)?;
        if !taken.is_empty() {
            plan.node
                .ruleset()?
                .remove_go(&taken.masquerades, &taken.ports);
            plan.last = plan.node.tables.removals(&taken.masquerades, &taken.ports);
        }
        let owners: Vec<_> = pods.iter().map(|pod| &pod.owner).collect();
        for chain in plan.node.tables.chains_of_others(&owners) {
            plan.left(format!(
                "iptables chain {chain}: nobody knows its container"
            ));
        }
        if let Some(ruleset) = &plan.node.ruleset {
            for id in ruleset.other_containers(&owners) {
                let line = format!("ports of container {id}: nobody knows it");
                plan.report.left.push(line);
            }
        }
        Ok(plan)
    }

    /// Brings the tables of ports to what they should be where no port is missing: they may
    /// be an older version's.
    fn complete(&mut self, pods: &[Pod], missing: &Things<'_>) -> Result<()> {
        let ports = pods.iter().filter_map(|pod| pod.ports.as_ref());
        let ports = ports.filter(|it| it.backend != Some(Kind::Iptables));
        let ports: Vec<_> = ports.map(|it| &it.what).collect();
        if let Some(ruleset) = &mut self.node.ruleset
            && missing.ports.is_empty()
            && ports.iter().any(|it| ruleset.has_ports(it))
            && ruleset.complete(&ports)?
        {
            self.report.done.push("rules for published ports".into());
        }
        Ok(())
    }

    /// Adds things to nf_tables. Whose ports stay as they are all the same.
    fn add(&mut self, things: &Things<'_>) -> Result<Vec<Attachment>> {
        if things.is_empty() {
            return Ok(Vec::new());
        }
        let ruleset = self.node.ruleset()?;
        let (unchanged, notices) = ruleset.add(&things.masquerades, &things.ports)?;
        for Notice { mapping, from } in notices {
            let (port, protocol) = (mapping.host_port, mapping.protocol);
            self.left(format!("host port {port}/{protocol} is {from}'s"));
        }
        Ok(unchanged)
    }

    fn release(pods: &[Pod]) -> Result<Self> {
        let mut plan = Self::new(Node::read()?);
        let default = plan.node.go_default();
        let theirs = |forced: Option<Kind>| forced.unwrap_or(default);
        let Some(ruleset) = &mut plan.node.ruleset else {
            // What iptables has is theirs already.
            return Ok(plan);
        };
        let (mut report, mut gone) = (Report::default(), Things::default());
        let (mut nftables, mut iptables) = (Things::default(), Things::default());
        for pod in pods {
            if let Some(Asked { what, backend }) = &pod.masquerade
                && ruleset.masquerades_network(what)
                && what.is_known_to_go()
            {
                match theirs(*backend) {
                    Kind::Nftables => nftables.masquerades.push(what),
                    Kind::Iptables if plan.node.tables.masquerades(what)? => {}
                    Kind::Iptables => iptables.masquerades.push(what),
                }
                gone.masquerades.push(what);
                report.done.push(format!("masquerade of {}", pod.owner));
            }
            if let Some(Asked { what, backend }) = &pod.ports
                && ruleset.has_ports(what)
            {
                if !(what.conditions_v4.is_empty() && what.conditions_v6.is_empty()) {
                    report.left.push(format!(
                        "ports of {}: the Go plugins apply one pod's conditions to all",
                        pod.owner
                    ));
                    continue;
                }
                match theirs(*backend) {
                    Kind::Nftables => nftables.ports.push(what),
                    Kind::Iptables if plan.node.tables.publishes(what)? => {}
                    Kind::Iptables => iptables.ports.push(what),
                }
                gone.ports.push(what);
                report.done.push(format!("ports of {}", pod.owner));
            }
        }
        ruleset.add_go(&nftables.masquerades, &nftables.ports);
        ruleset.remove_ours(&gone.masquerades, &gone.ports)?;
        if ruleset.opens_localhost() {
            report.notes.push(
                "neighbours reach 127.0.0.0/8 of the node through interfaces whose route_localnet is 1, as is usual with the Go plugins"
                    .into(),
            );
        }
        plan.first = plan
            .node
            .tables
            .additions(&iptables.masquerades, &iptables.ports)?;
        plan.report = report;
        Ok(plan)
    }

    fn carry(&self) -> Result<()> {
        for changes in &self.first {
            self.node.tables.carry(changes)?;
        }
        if let Some(ruleset) = &self.node.ruleset {
            // Refused where iptables' nft variant has just changed something: then
            // this is all that is left of the next plan.
            ruleset.carry()?;
        }
        for changes in &self.last {
            self.node.tables.carry(changes)?;
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

/// Whether portmap lets 127.0.0.1 through to the pod.
fn opens_localhost(wanted: &HostPorts) -> bool {
    wanted.snat != Snat::Off
        && wanted.pod_v4.is_some()
        && wanted.mappings.iter().any(|it| it.applies_to(true))
}
