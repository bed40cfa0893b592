//! What is wrong with a configuration: all of it, each fault with its place.
//!
//! Runtimes and plugins stop at the first fault and ignore unknown keys; `validate` checks
//! every key. The types and checks are the plugins' own (`Conf` and `Plan`). An error is a
//! fault for which a runtime or a plugin refuses the configuration; a warning is legal, but
//! probably a mistake.

mod addresses;
mod findings;
mod list;
mod plugins;
mod spelling;
mod subject;

use std::path::{Path, PathBuf};

use cni::conf::NetConf;
use cni::json::Json;
use cni::version::Version;
use networks::{files, side_dir};

pub use findings::{Finding, Findings, Hint, Severity};

use plugins::{DELEGATING, IPAM_PLUGINS, PLUGINS};
use subject::{Subject, join, text};

/// The names of all plugins of this suite.
pub fn plugins() -> Vec<&'static str> {
    let all = PLUGINS.iter().chain(IPAM_PLUGINS);
    all.map(|it| it.name).collect()
}

/// The result of one file.
#[derive(Debug)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// The name of the network that it describes, if it has one.
    pub network: Option<String>,
    /// In the order of the file, more or less.
    pub findings: Findings,
}

/// Keys of every plugin that [`NetConf`] does not have: libcni and `cni::run` read some, the
/// others are for plugins that read them.
const COMMON_KEYS: &[&str] = &["cniVersion", "name", "args", "runtimeConfig"];

/// Objects in which a runtime, or the author for other plugins, may have any key.
const FREE_OBJECTS: &[&str] = &["args", "args.cni", "runtimeConfig"];

/// Checks the files and directories `places`. With `plugin_dirs` it also checks whether the
/// plugins exist and support the network's version.
pub fn all(places: &[PathBuf], plugin_dirs: Option<&[PathBuf]>) -> Vec<Report> {
    let mut reports = Vec::new();
    for place in places {
        if place.is_dir() {
            reports.extend(directory(place, plugin_dirs));
        } else {
            reports.push(file(place, plugin_dirs));
        }
    }
    reports
}

fn directory(dir: &Path, plugin_dirs: Option<&[PathBuf]>) -> Vec<Report> {
    let fault = |reason: String| {
        let mut findings = Findings::default();
        findings.error("", reason);
        vec![Report {
            file: dir.to_owned(),
            network: None,
            findings,
        }]
    };
    let found = match files(dir, &[".conflist", ".conf", ".json"]) {
        Ok(found) if found.is_empty() => {
            return fault(format!("no net configurations found in {}", dir.display()));
        }
        Ok(found) => found,
        Err(error) => return fault(format!("{error:#}")),
    };
    let mut reports: Vec<Report> = Vec::new();
    for path in &found {
        let mut report = file(path, plugin_dirs);
        let same = |other: &&Report| other.network.is_some() && other.network == report.network;
        if let Some(other) = reports.iter().find(same) {
            let other = other.file.display();
            let reason = format!("{other} describes a network of that name too");
            report.findings.warning("name", reason);
        }
        overlays_agree(&mut report, &reports);
        reports.push(report);
    }
    reports
}

fn file(path: &Path, plugin_dirs: Option<&[PathBuf]>) -> Report {
    let mut report = Report {
        file: path.to_owned(),
        network: None,
        findings: Findings::default(),
    };
    let Some(document) = read(path, &mut report.findings) else {
        return report;
    };
    report.network = text(document.get("name").as_ref());
    let is_list = path.extension().is_some_and(|ending| ending == "conflist");
    let Report {
        network, findings, ..
    } = &mut report;
    if is_list {
        let beside = network.as_deref().map(|name| side_dir(path, name));
        list::check(&document, findings, plugin_dirs, beside.as_deref());
    } else if document.get("plugins").is_some() && document.get("type").is_none() {
        findings.error(
            "plugins",
            "a list of plugins is read from *.conflist files only",
        );
        list::check(&document, findings, plugin_dirs, None);
    } else {
        single(&document, findings, plugin_dirs);
    }
    report
}

fn read(path: &Path, findings: &mut Findings) -> Option<Json> {
    let text = match cni::file::read_chosen(path, cni::file::LONGEST) {
        Ok(text) => text,
        Err(error) => {
            let reason = cni::reason(&error);
            findings.error("", format!("cannot be read: {reason}"));
            return None;
        }
    };
    match Json::parse(&text) {
        Ok(document) => Some(document),
        Err(error) => {
            findings.syntax(&error);
            None
        }
    }
}

/// A configuration without a list of plugins, which old runtimes use.
fn single(document: &Json, findings: &mut Findings, plugin_dirs: Option<&[PathBuf]>) {
    match document.get("name") {
        None => findings.error("name", "missing network name"),
        Some(Json::String(name)) => list::check_name(&name, findings),
        Some(other) => findings.error("name", format!("expected a string, got {}", other.kind())),
    }
    let version = list::check_version(document.get("cniVersion").as_ref(), findings);
    list::hint_at_excluded_runtimes(version, findings);
    let name = text(document.get("name").as_ref()).unwrap_or_default();
    let version = version.unwrap_or(Version::LATEST);
    let subject = Subject::new(document, &name, String::new(), version, findings);
    plugin(subject, plugin_dirs);
}

/// One plugin's configuration.
fn plugin(mut subject: Subject<'_>, plugin_dirs: Option<&[PathBuf]>) {
    if !matches!(subject.document, Json::Object(_)) {
        let kind = subject.document.kind();
        subject.error("", format!("expected an object, got {kind}"));
        return;
    }
    subject.net = subject.keys::<NetConf>().unwrap_or_default();
    let (name, ipam) = (subject.net.plugin.clone(), subject.net.ipam.plugin.clone());
    if name.is_empty() && !subject.has_error_at("type") {
        subject.error("type", "missing");
    }
    subject.check_executable("type", &name, plugin_dirs);
    subject.check_executable("ipam.type", &ipam, plugin_dirs);
    // Other plugins may change `ipam` before they pass it on.
    let delegates = DELEGATING.contains(&name.as_str());
    match IPAM_PLUGINS.iter().find(|it| delegates && it.name == ipam) {
        Some(known) => (known.check)(&mut subject),
        None => subject.known.allow_any("ipam"),
    }
    match PLUGINS.iter().find(|it| it.name == name) {
        Some(known) => {
            (known.check)(&mut subject);
            subject.known.add("", COMMON_KEYS);
        }
        None => subject.known.allow_any(""),
    }
    for free in FREE_OBJECTS {
        subject.known.allow_any(free);
    }
    subject.check_unknown_keys();
}

/// Reports the VXLAN networks of `report` that cannot be on one node with one of `others`.
fn overlays_agree(report: &mut Report, others: &[Report]) {
    let mut clashes = Vec::new();
    for (place, network) in report.findings.overlays() {
        let theirs = others.iter().flat_map(|other| {
            let all = other.findings.overlays().iter();
            all.map(|(_, network)| (other.file.display(), network))
        });
        // The other finding about a name that is there twice is enough.
        for (file, other) in theirs.filter(|(_, other)| other.name != network.name) {
            if let Some((key, why)) = network.clash(other) {
                clashes.push((join(place, key), format!("{why} ({file})")));
            }
        }
    }
    for (path, reason) in clashes {
        report.findings.error(&path, reason);
    }
}

#[cfg(test)]
mod tests;
