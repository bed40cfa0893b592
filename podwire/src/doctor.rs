//! Examines a node: what is wrong with the networks of its pods, what shows it, and what to do.
//!
//! Each module has the checks of one subject, as constants ([`finding::Check`]) and as functions that
//! compare the survey of the node with what its attachments want. Nothing is changed. What `resync`
//! would restore is a finding, by the same code, and so is what `validate` reports.

mod agent;
mod configuration;
mod finding;
mod forwarding;
mod kernel;
mod limits;
mod links;
mod machine;
mod native;
pub mod path;
mod programs;
pub mod report;
mod stores;
mod tunnels;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use networks::{Cache, Contents};
use serde_json::{Value, json};
use survey::{Attachment, Sources, Survey, Unread};

use finding::Check;
pub use finding::{About, Finding, Remedy, Severity};

use crate::pods::{Attached, Plan, Pods};

/// How long an ADD or DEL usually takes: what differs for a moment only is no fault.
const AGAIN: Duration = Duration::from_millis(300);

/// All checks, by their ids: the page lists them.
#[cfg(test)]
pub const CHECKS: &[&Check] = &[
    &forwarding::FORWARDING,
    &forwarding::POLICY,
    &forwarding::VARIANTS,
    &forwarding::BRIDGED,
    &forwarding::REVERSE_PATH,
    &forwarding::ADVERTISEMENTS,
    &native::DROPPING,
    &links::INTERFACE,
    &links::DOWN,
    &links::PORT,
    &links::MTU,
    &links::TUNNEL,
    &links::DRIFTING,
    &links::DUPLICATE,
    &links::PORTS,
    &links::ADDRESS,
    &path::ROUTE,
    &stores::RULES,
    &stores::BRIDGE,
    &stores::GONE,
    &stores::UNCACHED,
    &stores::LEAKED,
    &stores::STRAY_PORTS,
    &stores::UNREADABLE,
    &stores::VACANT,
    &stores::IMPOSSIBLE,
    &configuration::FAULT,
    &configuration::UNUSED,
    &configuration::PLUGIN,
    &configuration::OVERLAP,
    &configuration::NARROW,
    &configuration::EXHAUSTED,
    &configuration::SERVER,
    &kernel::KINDS,
    &programs::NETWORK_MANAGER,
    &programs::NETWORKD,
    &programs::FIREWALLD,
    &agent::ABSENT,
    &agent::UNREADY,
    &agent::VERSIONS,
    &agent::UNANSWERED,
    &agent::UPSTREAM,
    &limits::NEIGHBOURS,
    &limits::CONNECTIONS,
    &limits::FILES,
    &limits::TASKS,
    &machine::WATCHES,
    &machine::BACKLOG,
    &machine::CLOCK,
    &tunnels::ADDRESS,
    &tunnels::PEERS,
];

/// What an examination has found.
#[derive(Debug, Default)]
pub struct Examination {
    /// What is wrong, by id.
    pub findings: Vec<Finding>,
    /// What could not be examined.
    pub unread: Vec<Unread>,
}

/// A node, as the checks see it.
pub struct Node<'a> {
    /// The node.
    pub survey: &'a Survey,
    /// The cache as a whole.
    pub contents: &'a Contents,
    /// What the attachments in the cache want of the node.
    pub pods: &'a Pods,
    /// Where the plugins are.
    pub plugin_dirs: &'a [PathBuf],
    /// Where configurations and cache are.
    pub sources: &'a Sources,
    /// The attachments whose plugins are known, by their labels.
    attached: HashMap<String, &'a Attached>,
    /// The bridges and devices of networks.
    devices: BTreeSet<String>,
}

/// What is examined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole node.
    Node,
    /// A network, and what concerns the whole node.
    Network(String),
    /// A container, its networks, and what concerns the whole node.
    Container(String),
}

impl Examination {
    /// Examines the node.
    ///
    /// # Errors
    /// The node, the cache or the configurations cannot be read at all.
    pub fn of(
        sources: &Sources,
        plugin_dirs: &[PathBuf],
        scope: &Scope,
    ) -> Result<(Self, Vec<path::Hop>)> {
        let survey = Survey::take(sources)?;
        Self::of_survey(&survey, sources, plugin_dirs, scope)
    }

    /// Examines the node with a survey that was made. What may come from an ADD or DEL that runs at
    /// this moment is a finding only if it is there a little later, too.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn confirmed(
        survey: &Survey,
        sources: &Sources,
        plugin_dirs: &[PathBuf],
        scope: &Scope,
    ) -> Result<(Self, Vec<path::Hop>)> {
        let (mut found, hops) = Self::of_survey(survey, sources, plugin_dirs, scope)?;
        if !found.may_be_passing() {
            return Ok((found, hops));
        }
        std::thread::sleep(AGAIN);
        let (again, hops) = Self::of(sources, plugin_dirs, scope)?;
        found.confirm(again);
        Ok((found, hops))
    }

    fn of_survey(
        survey: &Survey,
        sources: &Sources,
        plugin_dirs: &[PathBuf],
        scope: &Scope,
    ) -> Result<(Self, Vec<path::Hop>)> {
        let contents = Cache::in_dir(&sources.cache_dir).oldest_first()?;
        let pods = Pods::of(&contents, None, &sources.conf_dir);
        let node = Node {
            devices: devices(survey, &pods),
            attached: pods
                .attached
                .iter()
                .map(|it| (it.owner.to_string(), it))
                .collect(),
            survey,
            contents: &contents,
            pods: &pods,
            plugin_dirs,
            sources,
        };
        let mut found = Self {
            unread: survey.unread.clone(),
            ..Self::default()
        };
        for error in &pods.errors {
            // The files that cannot be read are findings.
            if !survey
                .unidentified
                .iter()
                .any(|it| error.starts_with(&it.path.display().to_string()))
            {
                found.unread("attachment", error);
            }
        }
        configuration::check(&node, &mut found);
        forwarding::check(&node, &mut found);
        links::check(&node, &mut found);
        path::check(&node, &mut found);
        stores::check(&node, &mut found);
        programs::check(&node, &mut found);
        limits::check(&node, &mut found);
        machine::check(&node, &mut found);
        agent::check(&mut found);
        kernel::check(&node, &mut found);
        tunnels::check(&node, &mut found);
        found.findings.sort_by_key(|it| it.check.id);
        let hops = match scope {
            Scope::Container(id) => path::hops(&node, id, &found),
            Scope::Node | Scope::Network(_) => Vec::new(),
        };
        found.keep(scope, survey);
        Ok((found, hops))
    }

    /// Adds a finding.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Notes something that could not be examined.
    pub fn unread(&mut self, what: &str, why: impl Display) {
        self.unread.push(Unread {
            what: what.to_owned(),
            why: format!("{why:#}"),
        });
    }

    /// What `podwire doctor --json` prints.
    pub fn document(&self, hops: &[path::Hop]) -> Value {
        let findings: Vec<_> = self.findings.iter().map(Finding::document).collect();
        let unread = self.unread.iter();
        let unread: Vec<_> = unread
            .map(|it| json!({"what": it.what, "why": it.why}))
            .collect();
        let mut document = json!({"findings": findings, "unread": unread});
        if !hops.is_empty() {
            document["path"] = json!(hops);
        }
        document
    }

    /// Whether a finding may come from an ADD or DEL that ran meanwhile: it compares the cache with
    /// the kernel.
    fn may_be_passing(&self) -> bool {
        self.findings.iter().any(|it| is_passing(it.check))
    }

    /// Keeps of such findings those that a second examination has, too; what that one could not
    /// read counts.
    fn confirm(&mut self, again: Self) {
        let has = |finding: &Finding| {
            let same = |it: &Finding| it.check == finding.check && it.about == finding.about;
            again.findings.iter().any(same)
        };
        self.findings.retain(|it| !is_passing(it.check) || has(it));
        self.unread = again.unread;
    }

    fn keep(&mut self, scope: &Scope, survey: &Survey) {
        let of_container =
            |id: &str, name: &str| survey.of_container(id).any(|it| it.network == name);
        self.findings.retain(|it| match (scope, &it.about) {
            (Scope::Node, _) | (_, About::Node) => true,
            (Scope::Network(name), About::Network(network) | About::Pod { network, .. }) => {
                name == network
            }
            (Scope::Container(id), About::Network(network)) => of_container(id, network),
            (Scope::Container(id), About::Pod { container_id, .. }) => id == container_id,
        });
    }
}

impl Node<'_> {
    /// What the plugins of an attachment want, if the cache has it.
    pub fn attached(&self, attachment: &Attachment) -> Option<&Attached> {
        self.attached.get(&attachment.label()).copied()
    }

    /// Whether an interface of the node is a bridge or device of a network.
    pub fn is_of_a_network(&self, name: &str) -> bool {
        self.devices.contains(name)
    }
}

fn is_passing(check: &Check) -> bool {
    let passing = [
        &links::INTERFACE,
        &links::DOWN,
        &links::PORT,
        &links::ADDRESS,
        &path::ROUTE,
        &stores::RULES,
        &stores::GONE,
        &stores::UNCACHED,
        &stores::LEAKED,
        &stores::STRAY_PORTS,
        &stores::UNREADABLE,
        &stores::VACANT,
        &agent::ABSENT,
        &agent::UNREADY,
    ];
    passing.contains(&check)
}

/// The bridges and devices that plugins made: those of attachments, and those that configurations
/// name.
fn devices(survey: &Survey, pods: &Pods) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for plugin in pods.attached.iter().flat_map(|it| &it.plugins) {
        match &plugin.plan {
            Plan::Bridge(plan) => {
                all.insert(plan.bridge.to_string());
                all.extend(plan.vlan_gateway.as_ref().map(ToString::to_string));
            }
            Plan::Vxlan(plan) => {
                all.insert(plan.network.bridge.to_string());
                all.insert(plan.network.device());
            }
            Plan::Ptp(_) | Plan::Portmap(_) | Plan::Firewall(_) => {}
        }
    }
    let listed = survey
        .catalogue
        .networks
        .iter()
        .filter_map(|it| it.listed());
    for plugin in listed.flat_map(|it| &it.list.plugins) {
        let bridge = plugin.document.get("bridge").and_then(|it| it.as_str());
        match plugin.plugin.as_str() {
            "bridge" => all.extend([bridge.unwrap_or("cni0").to_owned()]),
            "vxlan" => all.extend(bridge.map(str::to_owned)),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_in_order() {
        let ids: Vec<_> = CHECKS.iter().map(|it| it.id).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(ids, sorted);
    }

    /// Each check has a black-box test that makes its fault.
    #[test]
    fn each_check_has_a_test() {
        let tests = concat!(
            include_str!("../../tests/tests/doctor/addresses.rs"),
            include_str!("../../tests/tests/doctor/agent.rs"),
            include_str!("../../tests/tests/doctor/limits.rs"),
            include_str!("../../tests/tests/doctor/links.rs"),
            include_str!("../../tests/tests/doctor/node.rs"),
            include_str!("../../tests/tests/doctor/stores.rs"),
        );
        let ids = CHECKS.iter().map(|it| format!("\"{}\"", it.id));
        let untested: Vec<_> = ids.filter(|it| !tests.contains(it)).collect();
        assert!(untested.is_empty(), "{untested:?}");
    }

    /// docs/doctor.md has a row for each check, with its severity and title.
    #[test]
    fn the_page_has_all_checks() {
        let page = include_str!("../../docs/doctor.md");
        let rows: Vec<_> = page.lines().filter(|it| it.starts_with("| PW")).collect();
        let expected = CHECKS.iter().map(|it| {
            let severity = match it.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            format!("| {} | {severity} | {} | {} |", it.id, it.title, it.why)
        });
        assert_eq!(rows, expected.collect::<Vec<_>>());
    }
}
