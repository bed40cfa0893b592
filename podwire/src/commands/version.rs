//! `podwire version`: list the plugins, and the versions that they support.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use cni::delegate;
use networks::NetworkList;
use serde::Serialize;

use super::Verdict;
use crate::options::{ConfDir, PluginDirs};
use crate::output::{Output, print};
use crate::probe::{release, supported_versions};
use crate::validate;

/// List the plugins and the versions that they support.
///
/// Prints the version of podwire, then runs every executable in the plugin directories with the
/// verb VERSION and prints which versions of the CNI specification it supports; with NETWORK, only
/// the plugins of that network, in order. In parentheses follow the plugin's suite and release,
/// where known: podwire, Go (github.com/containernetworking/plugins), or another.
///
/// --json prints an object: version, and plugins with name, path, release, versions and error.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Version {
    /// Only the plugins of this network
    network: Option<String>,
    #[command(flatten)]
    conf: ConfDir,
    #[command(flatten)]
    plugins: PluginDirs,
}

const OUTCOME: &str = "\
Exit status: 0 when all plugins answered, 1 when one did not, 2 for a wrong
command line.

Examples:
  podwire version
  podwire version --json mynet | jq '.plugins[].versions'
";

#[derive(Serialize)]
struct Answer {
    version: &'static str,
    plugins: Vec<Plugin>,
}

#[derive(Serialize)]
struct Plugin {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    versions: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Version {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let path = self.plugins.all();
        let plugins: Vec<_> = match &self.network {
            Some(network) => {
                let list = NetworkList::load(&self.conf.conf_dir, network)?;
                let all = list.plugins.iter();
                all.map(|plugin| ask(&plugin.plugin, delegate::find(&plugin.plugin, &path)))
                    .collect()
            }
            None => {
                let found = executables(&path).into_iter();
                found.map(|(name, file)| ask(&name, Ok(file))).collect()
            }
        };
        let failed = plugins.iter().any(|plugin| plugin.error.is_some());
        let answer = Answer {
            version: env!("CARGO_PKG_VERSION"),
            plugins,
        };
        if output.is_json() {
            output.print_json(&answer)?;
        } else {
            print(&lines(&answer))?;
        }
        Ok(Verdict::good_if(!failed))
    }
}

/// The executables that a runtime would find: of one name, the first on the path.
fn executables(path: &[PathBuf]) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let entries = path.iter().filter_map(|dir| fs::read_dir(dir).ok());
    for file in entries.flatten().flatten().map(|entry| entry.path()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if is_executable(&file) && !is_other(&name, &file) {
            found.entry(name.into_owned()).or_insert(file);
        }
    }
    found
}

/// Whether it is not a plugin: podwire itself, its agent, or a file that is being installed.
fn is_other(name: &str, file: &Path) -> bool {
    // One file may be podwire and all plugins.
    if validate::plugins().contains(&name) {
        return false;
    }
    let identity = |file: &Path| fs::metadata(file).map(|it| (it.dev(), it.ino())).ok();
    let ours = std::env::current_exe().ok();
    let ours = ours.and_then(|ours| identity(&ours));
    ["podwire", "podwired", "suite"].contains(&name)
        || name.starts_with('.')
        || ours.is_some() && identity(file) == ours
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

fn ask(name: &str, file: Result<PathBuf>) -> Plugin {
    let (path, versions) = match file {
        Ok(file) => {
            let versions = supported_versions(&file);
            (Some(file), versions)
        }
        Err(error) => (None, Err(error)),
    };
    let release = path.as_deref().and_then(release);
    let error = versions.as_ref().err().map(|error| format!("{error:#}"));
    Plugin {
        name: name.to_owned(),
        path,
        release,
        versions: versions.unwrap_or_default(),
        error,
    }
}

fn lines(answer: &Answer) -> String {
    let mut text = format!("podwire {}", answer.version);
    let widest = answer.plugins.iter().map(|plugin| plugin.name.len()).max();
    for plugin in &answer.plugins {
        let versions = plugin.versions.join(", ");
        let answer = plugin.error.as_deref().unwrap_or(&versions);
        let width = widest.unwrap_or_default();
        text += &format!("\n{:<width$}  {answer}", plugin.name);
        if let Some(release) = &plugin.release {
            text += &format!("  ({release})");
        }
    }
    text
}
