//! The keys of a list of plugins. Unlike those of a plugin they match to the
//! letter, because libcni reads them from a map.

use std::path::{Path, PathBuf};

use cni::conf::NetConf;
use cni::json::Json;
use cni::version::{Version, numbers};
use networks::files;
use networks::named::Record;

use super::findings::Findings;
use super::spelling;
use super::subject::{Subject, join, text};
use super::{COMMON_KEYS, plugin};

/// The reason why a value cannot be that of its key.
type Check = fn(&Json) -> Result<(), String>;

const KEYS: &[(&str, Check)] = &[
    ("$schema", string),
    ("name", string),
    ("cniVersion", string),
    ("cniVersions", versions),
    ("disableCheck", is_boolean),
    ("disableGC", is_boolean),
    ("loadOnlyInlinedPlugins", is_boolean),
    ("plugins", list),
];

/// Keys that programs write for themselves: nerdctl, podman with its CNI back end, and `podwire
/// network`.
const OF_RUNTIMES: &[&str] = &["nerdctlID", "nerdctlLabels", "args", Record::KEY];

/// Keys that have no effect before a version.
const SINCE: &[(&str, Version)] = &[
    ("disableCheck", Version::V0_4_0),
    ("disableGC", Version::V1_1_0),
];

/// Checks a list. `beside` is the directory in which more plugins of it may be.
pub fn check(
    document: &Json,
    findings: &mut Findings,
    plugin_dirs: Option<&[PathBuf]>,
    beside: Option<&Path>,
) {
    let Json::Object(members) = document else {
        findings.error("", expected("an object", document));
        return;
    };
    check_keys(members, findings);
    let mut list = List {
        members,
        version: Version::LATEST,
        plugin_dirs,
    };
    if let Some(Json::String(name)) = list.exact("name") {
        check_name(name, findings);
    }
    if let Some(version) = list.check_version(findings) {
        list.version = version;
    }
    let count = list.check_plugins(findings);
    let has_plugins = list.exact("plugins").is_some();
    if list.is_true("loadOnlyInlinedPlugins") {
        if !has_plugins {
            let reason = "missing, and loadOnlyInlinedPlugins keeps those beside the file away";
            findings.error("plugins", reason);
        }
        return;
    }
    let beside = beside.and_then(|dir| files(dir, &[".conf"]).ok());
    let beside = beside.unwrap_or_default();
    list.check_beside(&beside, count, findings);
    if !has_plugins && beside.is_empty() {
        findings.error("plugins", missing_plugins(members));
    }
}

/// A list while it is checked.
struct List<'a> {
    members: &'a [(String, Json)],
    /// The newest if it is unknown, which finds no fault.
    version: Version,
    plugin_dirs: Option<&'a [PathBuf]>,
}

impl<'a> List<'a> {
    fn exact(&self, name: &str) -> Option<&'a Json> {
        let mut latest_first = self.members.iter().rev();
        let found = latest_first.find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    }

    fn is_true(&self, name: &str) -> bool {
        self.exact(name).is_some_and(|it| boolean(it) == Ok(true))
    }

    /// The version; `None` if it is unknown, after that was reported.
    fn check_version(&self, findings: &mut Findings) -> Option<Version> {
        let single = self.exact("cniVersion");
        let version = match self.exact("cniVersions") {
            Some(Json::Array(several)) if !several.is_empty() => highest(single, several, findings),
            _ => check_version(single, findings),
        };
        let single = text(single).and_then(|text| Version::parse(&text));
        hint_at_excluded_runtimes(single, findings);
        for (key, since) in SINCE {
            if let Some(version) = version.filter(|version| self.is_true(key) && version < since) {
                let reason = format!("has no effect at cniVersion {version}, before {since}");
                findings.warning(key, reason);
            }
        }
        version
    }

    /// Checks the plugins in the list, and counts them.
    fn check_plugins(&self, findings: &mut Findings) -> usize {
        let Some(Json::Array(plugins)) = self.exact("plugins") else {
            return 0;
        };
        for (index, document) in plugins.iter().enumerate() {
            let place = format!("plugins[{index}]");
            for key in ["name", "cniVersion"] {
                let path = join(&place, key);
                match document.get(key) {
                    Some(own @ Json::String(_)) if Some(&own) == self.exact(key) => {}
                    Some(Json::String(_)) => findings.warning(&path, "that of the list counts"),
                    Some(other) => findings.error(&path, expected("a string", &other)),
                    None => {}
                }
            }
            self.check_plugin(document, place, findings);
        }
        plugins.len()
    }

    /// Their places are numbers after the plugins of the list, with the names of the files.
    fn check_beside(&self, beside: &[PathBuf], count: usize, findings: &mut Findings) {
        for (index, file) in beside.iter().enumerate() {
            let place = format!("plugins[{}] ({})", count + index, file.display());
            let document = cni::file::read_chosen(file, cni::file::LONGEST)
                .map_err(|error| format!("cannot be read: {}", cni::reason(&error)))
                .and_then(|text| Json::parse(&text).map_err(|error| format!("not JSON: {error}")));
            match document {
                Err(reason) => findings.error(&place, reason),
                Ok(document) => self.check_plugin(&document, place, findings),
            }
        }
    }

    fn check_plugin(&self, document: &Json, place: String, findings: &mut Findings) {
        let network = text(self.exact("name")).unwrap_or_default();
        let subject = Subject::new(document, &network, place, self.version, findings);
        plugin(subject, self.plugin_dirs);
    }
}

/// Reports keys that no runtime reads, also for their case, and values of a wrong type.
fn check_keys(members: &[(String, Json)], findings: &mut Findings) {
    for (index, (name, value)) in members.iter().enumerate() {
        if members[..index].iter().any(|(other, _)| other == name) {
            findings.warning(name, "written more than once: the last one counts");
        }
        let is_overridden = members[index + 1..].iter().any(|(other, _)| other == name);
        match KEYS.iter().find(|(key, _)| key == name) {
            // Of a map, the last value counts, whatever it is.
            Some(_) if is_overridden => {}
            // A runtime that reads a map takes null for a wrong type.
            Some(_) if *value == Json::Null => {
                findings.error(name, "null is no value for a key of a list");
            }
            Some((_, check)) => {
                if let Err(reason) = check(value) {
                    findings.error(name, reason);
                }
            }
            None if OF_RUNTIMES.contains(&name.as_str()) => {}
            None => findings.warning(name, unknown(name)),
        }
    }
    if !members.iter().any(|(name, _)| name == "name") {
        findings.error("name", "missing");
    }
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = KEYS.iter().map(|(key, _)| *key).collect();
    if let Some(meant) = names.iter().find(|it| it.eq_ignore_ascii_case(name)) {
        return format!("unknown key; keys of a list match to the letter: {meant}");
    }
    let empty = Json::Object(Vec::new());
    let mut of_plugins = empty.decode_all::<NetConf>().keys;
    of_plugins.extend(empty.decode_all::<bridge::Conf>().keys);
    of_plugins.add("", COMMON_KEYS);
    if of_plugins.of("").any(|key| key.eq_ignore_ascii_case(name)) {
        return "unknown key; keys of a plugin belong into plugins[]".to_owned();
    }
    spelling::unknown_key(name, &names)
}

fn missing_plugins(members: &[(String, Json)]) -> &'static str {
    if members.iter().any(|(name, _)| name == "type") {
        "missing; a plugin without a list is read from *.conf and *.json files only"
    } else {
        "missing, and none lie in the directory of the network's name"
    }
}

/// Checks the name of a network.
pub fn check_name(name: &str, findings: &mut Findings) {
    if let Err(error) = networks::check_name(name) {
        findings.error("name", error.msg);
    }
}

/// The version; `None` if it is unknown, after that was reported.
pub fn check_version(value: Option<&Json>, findings: &mut Findings) -> Option<Version> {
    let text = match value {
        None | Some(Json::Null) => {
            let reason = "missing: 0.1.0 is assumed, without CHECK, GC and STATUS";
            findings.warning("cniVersion", reason);
            return Some(Version::V0_1_0);
        }
        Some(Json::String(text)) => text,
        Some(other) => {
            findings.error("cniVersion", expected("a string", other));
            return None;
        }
    };
    let version = Version::parse(text);
    if version.is_none() {
        let known: Vec<_> = Version::ALL.iter().map(|it| it.as_str()).collect();
        let reason = format!("unknown version {text:?}; known are {}", known.join(", "));
        findings.error("cniVersion", reason);
    }
    version
}

/// Names the runtimes that do not support the version under `cniVersion`, which is the only
/// one that a libcni before 1.2 reads.
pub fn hint_at_excluded_runtimes(single: Option<Version>, findings: &mut Findings) {
    if single == Some(Version::V1_1_0) {
        findings.hint(
            "cniVersion",
            "containerd 1.6 and 1.7 and podman 4 do not know 1.1.0 and refuse it; a list with \
             \"cniVersion\": \"1.0.0\", \"cniVersions\": [\"1.0.0\", \"1.1.0\"] works everywhere",
        );
    }
}

/// The highest version that libcni would take. The check of the key reports invalid ones.
fn highest(single: Option<&Json>, several: &[Json], findings: &mut Findings) -> Option<Version> {
    let all = several.iter().chain(single);
    let texts = all.filter_map(|value| text(Some(value)));
    let known = texts.filter_map(|text| Some((numbers(&text)?, text)));
    let newest = numbers(Version::LATEST.as_str())?;
    let (_, taken) = known.filter(|(version, _)| *version <= newest).max()?;
    let version = Version::parse(&taken);
    if version.is_none() {
        let reason = format!("{taken:?} is the highest, and no version of the specification");
        findings.error("cniVersions", reason);
    }
    version
}

fn string(value: &Json) -> Result<(), String> {
    match value {
        Json::String(_) => Ok(()),
        other => Err(expected("a string", other)),
    }
}

fn versions(value: &Json) -> Result<(), String> {
    let Json::Array(items) = value else {
        return Err(expected("a list", value));
    };
    for (index, item) in items.iter().enumerate() {
        let at = |reason: String| format!("[{index}]: {reason}");
        string(item).map_err(at)?;
        let text = text(Some(item)).unwrap_or_default();
        let known = numbers(&text).map(drop);
        known.ok_or_else(|| at(format!("{text:?} is no version")))?;
    }
    Ok(())
}

fn is_boolean(value: &Json) -> Result<(), String> {
    boolean(value).map(drop)
}

fn boolean(value: &Json) -> Result<bool, String> {
    match value {
        Json::Bool(value) => Ok(*value),
        Json::String(text) => match text.to_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("expected a boolean, got {text:?}")),
        },
        other => Err(expected("a boolean", other)),
    }
}

fn list(value: &Json) -> Result<(), String> {
    match value {
        Json::Array(items) if items.is_empty() => Err("no plugins in list".to_owned()),
        Json::Array(_) => Ok(()),
        other => Err(expected("a list", other)),
    }
}

fn expected(what: &str, got: &Json) -> String {
    format!("expected {what}, got {}", got.kind())
}
