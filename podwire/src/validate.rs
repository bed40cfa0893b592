//! What is wrong with a configuration: all of it, each fault with its place.
//!
//! Runtimes and plugins stop at the first fault, and ignore what they do not
//! know; here every key is looked at. What is an error here makes a runtime or
//! a plugin refuse the configuration; what works, but hardly as its author
//! meant it, is a warning.

mod bridge;

mod dhcp;
mod findings;
mod host_local;
mod list;
mod loopback;
mod macvlan;
mod portmap;
mod routes;
mod schema;
mod specification;
mod spelling;
mod r#static;
mod vxlan;
mod wiring;

use std::path::{Path, PathBuf};

use anyhow::Result;
use cni::conf::NetConf;
use cni::json::{DecodeError, Json};
use cni::version::Version;
use cni::{Error, delegate};
use serde::de::DeserializeOwned;

pub use findings::{Finding, Findings, Hint, Severity};

use crate::network_list::{files, side_dir};
use crate::probe::supported_versions;
use schema::{Key, Others};

/// What has been found in one file.
#[derive(Debug)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// The network that it describes, if it says so.
    pub network: Option<String>,
    /// In the order of the file, more or less.
    pub findings: Findings,
}

/// What is known of a plugin of ours.
struct Plugin {
    name: &'static str,
    /// Its own keys.
    keys: &'static [Key],
    /// What keys have to do with each other.
    check: fn(&Conf<'_>, &mut Findings),
    /// What the plugin itself does with them at ADD before it acts.
    read: fn(&Conf<'_>) -> Result<()>,
}

/// The plugins whose keys are known.
const PLUGINS: &[Plugin] = &[
    bridge::PLUGIN,
    loopback::PLUGIN,
    macvlan::PLUGIN,
    portmap::PLUGIN,
    vxlan::PLUGIN,
];

/// The same for IPAM plugins; their keys are those under `ipam`.
const IPAM_PLUGINS: &[Plugin] = &[dhcp::PLUGIN, host_local::PLUGIN, r#static::PLUGIN];

/// The plugins that pass `ipam` on as it is.
const DELEGATING: &[&str] = &[
    "bridge",
    "dummy",
    "host-device",
    "ipvlan",
    "macvlan",
    "ptp",
    "tap",
    "vlan",
    "vxlan",
];

/// What a name that is almost one of these was meant to be.
const COMMON_NAMES: &[&str] = &[
    "bandwidth",
    "bridge",
    "calico",
    "cilium-cni",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "multus",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
    "vxlan",
    "whereabouts",
];

/// One plugin's configuration in its surroundings.
struct Conf<'a> {
    document: &'a Json,
    /// The network's name, if it has one.
    network: &'a str,
    /// Where it is in the file: `plugins[0]`, or nothing.
    place: String,
    /// Of the network; the newest when it is not known, to find no fault with it.
    version: Version,
}

impl Conf<'_> {
    fn place_of(&self, key: &str) -> String {
        schema::join(&self.place, key)
    }

    /// A value; `null` stands for the default, as if the key were not there.
    fn value(&self, key: &str) -> Option<Json> {
        self.document.get(key).filter(|value| *value != Json::Null)
    }

    /// Whether no plugin comes before it.
    fn is_first(&self) -> bool {
        self.place.is_empty() || self.place.starts_with("plugins[0]")
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.document.get(key), Some(Json::Bool(true)))
    }

    fn integer(&self, key: &str) -> Option<i64> {
        schema::integer(&self.document.get(key)?)
    }

    fn text(&self, key: &str) -> Option<String> {
        schema::text(self.document.get(key))
    }

    /// The keys as the plugin's own types.
    fn keys<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(self.document.decode()?)
    }

    /// The type of the IPAM plugin, if there is one.
    fn ipam(&self) -> Option<String> {
        let ipam = self.document.get("ipam")?;
        schema::text(ipam.get("type")).filter(|name| !name.is_empty())
    }

    /// Whether the runtime may pass something under this name.
    fn has_capability(&self, name: &str) -> bool {
        let capabilities = self.document.get("capabilities");
        let value = capabilities.and_then(|all| all.get(name));
        matches!(value, Some(Json::Bool(true)))
    }
}

/// Checks the files, and all configurations in the directories, among `places`;
/// whether plugins are there and speak the version only with `plugin_dirs`.
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
        vxlan::between(&mut report, &reports);
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
    report.network = schema::text(document.get("name"));
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

/// A single plugin's configuration, from before there were lists.
fn single(document: &Json, findings: &mut Findings, plugin_dirs: Option<&[PathBuf]>) {
    match document.get("name") {
        None => findings.error("name", "missing network name"),
        Some(Json::String(name)) => list::check_name(&name, findings),
        // Of the wrong type, which the table of keys tells.
        Some(_) => {}
    }
    let version = list::check_version(document.get("cniVersion").as_ref(), findings);
    list::tell_excluded_runtimes(version, findings);
    let name = schema::text(document.get("name"));
    let conf = Conf {
        document,
        network: name.as_deref().unwrap_or_default(),
        place: String::new(),
        version: version.unwrap_or(Version::LATEST),
    };
    plugin(&conf, findings, plugin_dirs);
}

/// One plugin's configuration.
fn plugin(conf: &Conf<'_>, findings: &mut Findings, plugin_dirs: Option<&[PathBuf]>) {
    let Json::Object(members) = conf.document else {
        let kind = schema::kind_of(conf.document);
        findings.error(&conf.place, format!("expected an object, got {kind}"));
        return;
    };
    let name = conf.text("type").unwrap_or_default();
    let known = PLUGINS.iter().find(|plugin| plugin.name == name);
    let (own, others) = match known {
        Some(known) => (known.keys, Others::AreMistakes),
        None => (&[][..], Others::AreFine),
    };
    schema::check_members(
        members,
        &[own, specification::KEYS],
        others,
        &conf.place,
        findings,
    );
    executable(conf, "type", &name, plugin_dirs, findings);
    if let Some(known) = known {
        examine(known, conf, findings);
    }
    let Some(ipam) = conf.ipam() else { return };
    executable(conf, "ipam.type", &ipam, plugin_dirs, findings);
    // What another plugin makes of its ipam before it passes it on is not known.
    if DELEGATING.contains(&name.as_str()) {
        ipam_keys(conf, &ipam, findings);
    }
}

fn ipam_keys(conf: &Conf<'_>, name: &str, findings: &mut Findings) {
    let Some(known) = IPAM_PLUGINS.iter().find(|plugin| plugin.name == name) else {
        return;
    };
    let Some(Json::Object(members)) = conf.document.get("ipam") else {
        return;
    };
    let place = conf.place_of("ipam");
    let tables = [known.keys, specification::IPAM_KEYS];
    schema::check_members(&members, &tables, Others::AreMistakes, &place, findings);
    examine(known, conf, findings);
}

/// Looks at keys together, and asks the plugin's own code. That has the last word: it names
/// one fault and no place for many, so what the tables found stands before it.
fn examine(plugin: &Plugin, conf: &Conf<'_>, findings: &mut Findings) {
    (plugin.check)(conf, findings);
    if findings.has_error_at(&conf.place) {
        return;
    }
    let common = || conf.keys::<NetConf>().map(drop);
    let Err(error) = common().and_then(|()| (plugin.read)(conf)) else {
        return;
    };
    match error.downcast_ref::<DecodeError>() {
        Some(fault) => findings.error(&conf.place_of(fault.path()), fault.what()),
        None => findings.error(&conf.place, Error::from_chain(&error).to_string()),
    }
}

/// Whether a plugin's name can be one, is a common one misspelt, and, with
/// `plugin_dirs`, whether it is there and speaks the network's version.
fn executable(
    conf: &Conf<'_>,
    key: &str,
    name: &str,
    plugin_dirs: Option<&[PathBuf]>,
    findings: &mut Findings,
) {
    let place = conf.place_of(key);
    if name.is_empty() {
        return;
    }
    if name.contains('/') {
        findings.error(&place, format!("invalid plugin name: {name}"));
        return;
    }
    if let Some(meant) = spelling::slip(name, COMMON_NAMES) {
        findings.warning(
            &place,
            format!("unknown plugin {name}; did you mean {meant}?"),
        );
    }
    let Some(dirs) = plugin_dirs else { return };
    let versions = delegate::find(name, dirs).and_then(|file| supported_versions(&file));
    let wanted = conf.version.as_str();
    match versions {
        Err(error) => findings.error(&place, format!("{error:#}")),
        Ok(versions) if !versions.iter().any(|version| version == wanted) => {
            let reason = format!("plugin {name} does not support config version {wanted:?}");
            findings.error(&place, reason);
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests;
