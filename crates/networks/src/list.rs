//! Network configurations on disk, found and read as libcni does.
//!
//! Source: `libcni/conf.go`. podwire loads and refuses the same files as a runtime, with the
//! same texts, to which it adds the file's name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use cni::conf::NetConf;
use cni::env::ContainerId;
use cni::json::Json;
use cni::version::{Version, numbers};
use cni::{Code, Error};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::named::Record;

/// A network: the plugins that make one attachment, in order.
#[derive(Clone, Debug)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version for all its plugins, as written; empty means 0.1.0.
    pub cni_version: String,
    /// CHECK succeeds without running the plugins.
    pub disable_check: bool,
    /// GC does nothing.
    pub disable_gc: bool,
    /// At least one.
    pub plugins: Vec<PluginConf>,
    /// The list as it was read, for the cache.
    pub bytes: Vec<u8>,
    load_only_inlined_plugins: bool,
}

/// The configuration of one plugin of a network.
#[derive(Clone, Debug)]
pub struct PluginConf {
    /// `type`: the name of the executable.
    pub plugin: String,
    /// Its own `name`; usually empty, because the list's counts.
    pub name: String,
    /// The capability arguments that it takes.
    pub capabilities: BTreeMap<String, bool>,
    /// All keys.
    pub document: Map<String, Value>,
    cni_version: String,
}

impl NetworkList {
    /// Finds the network called `name` in `dir`: lists first, then single
    /// configurations; a file that cannot be read ends the search, as in libcni.
    pub fn load(dir: &Path, name: &str) -> Result<Self> {
        let lists = files(dir, &[".conflist"])?;
        for file in &lists {
            let list = Self::from_file(file)?;
            if list.name == name {
                return list.checked();
            }
        }
        let singles = files(dir, &[".conf", ".json"])?;
        if lists.is_empty() && singles.is_empty() {
            bail!("no net configurations found in {}", dir.display());
        }
        for file in &singles {
            let single = PluginConf::from_file(file)?;
            if single.name == name {
                return single.into_list().context(text(file))?.checked();
            }
        }
        bail!(
            "no net configuration with name \"{name}\" in {}",
            dir.display()
        )
    }

    /// Reads a `.conflist` with the plugins that lie beside it in
    /// `<network name>/*.conf`.
    pub fn from_file(file: &Path) -> Result<Self> {
        let bytes = read(file)?;
        let mut list = Self::from_bytes(&bytes).map_err(|error| in_file(file, error))?;
        if !list.load_only_inlined_plugins {
            list.plugins.extend(side_loaded(file, &list.name)?);
        }
        if list.plugins.is_empty() {
            return Err(anyhow!("no plugin configs found").context(text(file)));
        }
        Ok(list)
    }

    /// Reads a list; without the key `plugins` it has none as yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).context("error parsing configuration list")
    }

    fn read(bytes: &[u8]) -> Result<Self> {
        let document: Map<String, Value> = serde_json::from_slice(bytes)?;
        // The keys of a list match to the letter, unlike those of a plugin:
        // libcni reads the former from a map.
        let name = match document.get("name") {
            None => bail!("no name"),
            Some(Value::String(name)) => name.clone(),
            Some(other) => bail!("invalid name type {}", go_type(other)),
        };
        let mut list = Self {
            name,
            cni_version: version(&document)?,
            disable_check: boolean(&document, "disableCheck")?,
            disable_gc: boolean(&document, "disableGC")?,
            load_only_inlined_plugins: boolean(&document, "loadOnlyInlinedPlugins")?,
            plugins: Vec::new(),
            bytes: bytes.to_vec(),
        };
        match document.get("plugins") {
            None if list.load_only_inlined_plugins => {
                bail!("`loadOnlyInlinedPlugins` is true, and no 'plugins' key")
            }
            None => {}
            Some(Value::Array(plugins)) if plugins.is_empty() => bail!("no plugins in list"),
            Some(Value::Array(plugins)) => {
                for (index, plugin) in plugins.iter().enumerate() {
                    let plugin = PluginConf::from_value(plugin.clone())
                        .with_context(|| format!("failed to parse plugin config {index}"))?;
                    list.plugins.push(plugin);
                }
            }
            Some(other) => bail!("invalid 'plugins' type {}", go_type(other)),
        }
        Ok(list)
    }

    /// Whether the list's version is `since` or newer; an error when it is no version.
    pub fn at_least(&self, since: Version) -> Result<bool> {
        let text = match self.cni_version.as_str() {
            "" => Version::V0_1_0.as_str(),
            text => text,
        };
        let version = numbers(text).with_context(|| format!("invalid version {text:?}"))?;
        Ok(Some(version) >= numbers(since.as_str()))
    }

    /// Whether a plugin takes the capability arguments of this name.
    pub fn has_capability(&self, name: &str) -> bool {
        let mut plugins = self.plugins.iter();
        plugins.any(|it| it.capabilities.get(name) == Some(&true))
    }

    /// What `podwire network create` has recorded in it; empty for a list of another program.
    pub fn record(&self) -> Record {
        let document = serde_json::from_slice(&self.bytes);
        let record = document.ok().and_then(|it| Record::of(&it));
        record.unwrap_or_default()
    }

    /// Whether a list that was read from its text alone has all its plugins: none lies beside the
    /// file in `dir`.
    pub fn is_complete(&self, dir: &Path) -> bool {
        let beside = || files(&dir.join(&self.name), &[".conf"]);
        let inlined = self.load_only_inlined_plugins;
        !self.plugins.is_empty() && (inlined || beside().is_ok_and(|it| it.is_empty()))
    }

    /// Checks the name by the specification: it becomes part of a file's name.
    fn checked(self) -> Result<Self> {
        check_name(&self.name)?;
        Ok(self)
    }
}

impl PluginConf {
    /// Reads one plugin's configuration.
    pub fn from_file(file: &Path) -> Result<Self> {
        let bytes = read(file)?;
        let document = serde_json::from_slice(&bytes)
            .map_err(anyhow::Error::from)
            .context("error parsing configuration");
        document
            .and_then(Self::from_value)
            .map_err(|error| in_file(file, error))
    }

    fn from_value(value: Value) -> Result<Self> {
        Self::read(value).context("error parsing configuration")
    }

    fn read(value: Value) -> Result<Self> {
        let document = Json::deserialize(&value)?;
        let head: Head = document.decode()?;
        // Every plugin refuses common keys of a wrong type: report them before the first one
        // has run.
        let conf: NetConf = document.decode()?;
        if conf.plugin.is_empty() {
            bail!("missing 'type'");
        }
        let Value::Object(document) = value else {
            bail!("expected an object");
        };
        Ok(Self {
            plugin: conf.plugin,
            name: head.name,
            cni_version: head.cni_version,
            capabilities: conf.capabilities,
            document,
        })
    }

    /// A list of this one plugin, as if it had been written so.
    pub fn into_list(self) -> Result<NetworkList> {
        let list = json!({
            "name": self.name,
            "cniVersion": self.cni_version,
            "plugins": [self.document],
        });
        NetworkList::from_bytes(list.to_string().as_bytes())
    }
}

/// What a single configuration has in place of a list's keys.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    name: String,
    #[serde(rename = "cniVersion")]
    cni_version: String,
}

/// An error with the file's name in front; code 6 when it is not JSON.
fn in_file(file: &Path, error: anyhow::Error) -> anyhow::Error {
    let is_json = |cause: &(dyn std::error::Error + 'static)| !cause.is::<serde_json::Error>();
    let all_json = error.chain().all(is_json);
    let error = error.context(text(file));
    if all_json {
        return error;
    }
    Code::Decode.err(format!("{error:#}")).into()
}

/// Refuses a network name that the specification does not allow.
pub fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Code::InvalidConfig.err("missing network name"));
    }
    // Network names and container ids have the same characters.
    ContainerId::parse(name).map(drop).map_err(|_| {
        Code::InvalidConfig
            .err("invalid characters found in network name")
            .details(name)
    })
}

/// The files in `dir` whose names end in one of `endings`, sorted; none when
/// there is no such directory.
pub fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // As in libcni, a link to a directory counts as a file.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir && endings.iter().any(|ending| name.ends_with(ending)) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn side_loaded(list: &Path, network: &str) -> Result<Vec<PluginConf>> {
    let dir = side_dir(list, network);
    let files = files(&dir, &[".conf"])
        .with_context(|| format!("failed to read plugin config files in {}", dir.display()))?;
    files
        .iter()
        .map(|file| PluginConf::from_file(file))
        .collect()
}

/// The directory beside `list` for files with one plugin each.
pub fn side_dir(list: &Path, network: &str) -> PathBuf {
    list.parent().unwrap_or(Path::new(".")).join(network)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let content = cni::file::read_chosen(file, cni::file::LONGEST);
    content.with_context(|| format!("error reading {}", text(file)))
}

fn text(file: &Path) -> String {
    file.display().to_string()
}

/// The highest of `cniVersion` and `cniVersions` that podwire supports.
fn version(document: &Map<String, Value>) -> Result<String> {
    let single = match document.get("cniVersion") {
        None => String::new(),
        Some(Value::String(version)) => version.clone(),
        Some(other) => bail!("invalid cniVersion type {}", go_type(other)),
    };
    let Some(several) = document.get("cniVersions") else {
        return Ok(single);
    };
    let Value::Array(several) = several else {
        bail!("invalid type for cniVersions: {}", go_type(several));
    };
    let mut known = Vec::new();
    for (index, entry) in several.iter().enumerate() {
        let Value::String(entry) = entry else {
            bail!(
                "invalid type for cniVersions index {index}: {}",
                go_type(entry)
            );
        };
        let what = || format!("invalid cniVersions entry {entry} at index {index}");
        known.push((numbers(entry).with_context(what)?, entry.clone()));
    }
    if !single.is_empty() {
        let what = || format!("invalid cniVersion {single}");
        known.push((numbers(&single).with_context(what)?, single.clone()));
    }
    let ours = numbers(Version::LATEST.as_str()).unwrap_or_default();
    known.retain(|(version, _)| *version <= ours);
    Ok(known.into_iter().max().map_or(single, |(_, text)| text))
}

/// A boolean, also as a string.
fn boolean(document: &Map<String, Value>, key: &str) -> Result<bool> {
    match document.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) => match text.to_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => bail!("invalid value {other:?} for {key}"),
        },
        Some(other) => bail!("invalid type {} for {key}", go_type(other)),
    }
}

/// Go's name of a decoded value's type, for libcni's error texts.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests;
