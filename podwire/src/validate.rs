//! What is wrong with a configuration: all of it, each fault with its place.
//!
//! Runtimes and plugins stop at the first fault and ignore unknown keys; `validate` checks
//! every key. The types and checks are the plugins' own (`Conf` and `Plan`). An error is a
//! fault for which a runtime or a plugin refuses the configuration; a warning is legal, but
//! probably a mistake.

mod addresses;
mod findings;
mod list;
mod manifest;
mod plugins;
mod spelling;
mod subject;

use std::path::{Path, PathBuf};

use cni::conf::NetConf;
use cni::json::Json;
use cni::version::Version;
use networks::{files, side_dir};

pub use findings::{Finding, Findings, Hint, Severity};

use manifest::{Attachment, Config};
use plugins::{DELEGATING, IPAM_PLUGINS, PLUGINS};
use subject::{Subject, join, text};

/// The names of all plugins of this suite.
pub fn plugins() -> Vec<&'static str> {
    let all = PLUGINS.iter().chain(IPAM_PLUGINS);
    all.map(|it| it.name).collect()
}

/// The result of one configuration.
#[derive(Debug)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// The object of a Kubernetes manifest that holds it, `namespace/name`.
    pub object: Option<String>,
    /// The name of the network that it describes, if it has one.
    pub network: Option<String>,
    /// In the order of the file, more or less.
    pub findings: Findings,
}

/// Keys of every plugin that [`NetConf`] does not have: libcni and `cni::run` read some, the
/// others are for plugins that read them.
const COMMON_KEYS: &[&str] = &["cniVersion", "name", "args", "runtimeConfig", "$schema"];

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
            reports.extend(file(place, plugin_dirs));
        }
    }
    reports
}

fn directory(dir: &Path, plugin_dirs: Option<&[PathBuf]>) -> Vec<Report> {
    let fault = |reason: String| {
        let mut findings = Findings::default();
        findings.error("", reason);
        vec![Report {
            findings,
            ..Report::of(dir)
        }]
    };
    let found = match files(dir, &[".conflist", ".conf", ".json", ".yaml", ".yml"]) {
        Ok(found) if found.is_empty() => {
            return fault(format!("no net configurations found in {}", dir.display()));
        }
        Ok(found) => found,
        Err(error) => return fault(format!("{error:#}")),
    };
    let mut reports: Vec<Report> = Vec::new();
    for mut report in found.iter().flat_map(|path| file(path, plugin_dirs)) {
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

impl Report {
    fn of(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            object: None,
            network: None,
            findings: Findings::default(),
        }
    }

    /// The result of one document in a file. `is_list` is what the file's name says.
    fn check(
        mut self,
        document: &Json,
        is_list: bool,
        plugin_dirs: Option<&[PathBuf]>,
        beside: Option<&Path>,
    ) -> Self {
        self.network = text(document.get("name").as_ref());
        if is_list {
            list::check(document, &mut self.findings, plugin_dirs, beside)
        } else {
            single(document, &mut self.findings, plugin_dirs)
        }
        self
    }
}

/// The configurations of a file: one, or those of a Kubernetes manifest.
fn file(path: &Path, plugin_dirs: Option<&[PathBuf]>) -> Vec<Report> {
    let mut report = Report::of(path);
    let ending = path.extension().unwrap_or_default();
    let is_yaml = ending == "yaml" || ending == "yml";
    let Some(documents) = read(path, is_yaml, &mut report.findings) else {
        return vec![report];
    };
    if is_yaml || documents.iter().any(manifest::is_object) {
        let held = manifest::attachments(&documents);
        return held.map(|it| held_by(it, path, plugin_dirs)).collect();
    }
    let document = documents.into_iter().next().unwrap_or_default();
    let is_list = ending == "conflist";
    if !is_list && is_list_document(&document) {
        let reason = "a list of plugins is read from *.conflist files only";
        report.findings.error("plugins", reason);
        return vec![report.check(&document, true, plugin_dirs, None)];
    }
    let name = text(document.get("name").as_ref());
    let beside = name.map(|name| side_dir(path, &name));
    vec![report.check(&document, is_list, plugin_dirs, beside.as_deref())]
}

/// The configuration in an object of a manifest.
fn held_by(held: Attachment, path: &Path, plugin_dirs: Option<&[PathBuf]>) -> Report {
    let mut report = Report {
        object: Some(held.object),
        ..Report::of(path)
    };
    match held.config {
        Config::Document(document) => {
            report.check(&document, is_list_document(&document), plugin_dirs, None)
        }
        Config::OnNode => {
            let text = "empty: Multus looks for this network in the node's own directory";
            report.findings.hint("spec.config", text);
            report
        }
        Config::Faulty(reason) => {
            report.findings.error("spec.config", reason);
            report
        }
    }
}

fn is_list_document(document: &Json) -> bool {
    document.get("plugins").is_some() && document.get("type").is_none()
}

/// The documents of a file: one, or several of YAML.
fn read(path: &Path, is_yaml: bool, findings: &mut Findings) -> Option<Vec<Json>> {
    let text = match cni::file::read_chosen(path, cni::file::LONGEST) {
        Ok(text) => text,
        Err(error) => {
            let reason = cni::reason(&error);
            findings.error("", format!("cannot be read: {reason}"));
            return None;
        }
    };
    if is_yaml {
        let documents = manifest::parse(&text);
        return documents.map_err(|error| findings.error("", error)).ok();
    }
    match Json::parse(&text) {
        Ok(document) => Some(vec![document]),
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
