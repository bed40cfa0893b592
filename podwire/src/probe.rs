//! Finds out a plugin's suite and release, and the versions that it supports.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cni::delegate::Delegate;
use cni::env::{Environment, Verb};
use cni::execute::{self, Limits};
use cni::version::Version;
use cni::{Error, SUITE};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    cni_version: String,
    supported_versions: Option<Vec<String>>,
}

/// The versions that the plugin at `executable` supports, from its answer to VERSION. A
/// plugin from before that verb supports 0.1.0.
pub fn supported_versions(executable: &Path) -> Result<Vec<String>> {
    let inherited = inherited();
    // Old plugins refuse every verb without these variables. libcni sends the same values.
    let dummies = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    let dummies = dummies.map(|name| (name.into(), "dummy".into()));
    let environment =
        Environment::from_pairs::<std::ffi::OsString, std::ffi::OsString>(inherited.chain(dummies));
    let stdin = json!({"cniVersion": Version::LATEST.as_str()}).to_string();
    match Delegate::new(executable, environment, stdin.as_bytes()).run(Verb::Version) {
        Ok(stdout) => {
            let answer: Answer = serde_json::from_slice(&stdout).context("parse VERSION")?;
            match answer.supported_versions {
                Some(versions) => Ok(versions),
                // The list came with 0.3.0.
                None if answer.cni_version == "0.2.0" => Ok(vec!["0.1.0".into(), "0.2.0".into()]),
                None => bail!("the answer to VERSION has no supportedVersions"),
            }
        }
        Err(error) if Error::from_chain(&error).msg == "unknown CNI_COMMAND: VERSION" => {
            Ok(vec![Version::V0_1_0.to_string()])
        }
        Err(error) => Err(error),
    }
}

/// The suite and release of the plugin at `executable`: `podwire 2.0.0`, `Go v1.9.1`; `None`
/// when unknown.
pub fn release(executable: &Path) -> Option<String> {
    let output = introduce(executable).ok()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if let [SUITE, _, release] = stdout.split_whitespace().collect::<Vec<_>>()[..] {
        return Some(format!("{SUITE} {release}"));
    }
    // `CNI bridge plugin v1.9.1`, or `CNI bridge plugin version unknown`.
    let stderr = String::from_utf8_lossy(&output.stderr);
    let banner = stderr.lines().next()?.strip_prefix("CNI ")?;
    let (_, release) = banner.split_once(" plugin ")?;
    let suite = if is_of_go_suite(executable) {
        "Go"
    } else {
        "another suite's"
    };
    Some(format!("{suite} {release}"))
}

/// Go writes the path of its module into every executable.
fn is_of_go_suite(executable: &Path) -> bool {
    const MODULE: &[u8] = b"github.com/containernetworking/plugins";
    /// Several times the size of the largest plugin.
    const LONGEST: u64 = 128 * 1024 * 1024;
    let content = cni::file::read_chosen(executable, LONGEST).unwrap_or_default();
    content.windows(MODULE.len()).any(|part| part == MODULE)
}

/// Runs a plugin with `--version` and without a verb. One of ours answers on standard
/// output; others print their name and release on standard error.
#[allow(clippy::disallowed_methods)] // no verb, hence no delegate
fn introduce(executable: &Path) -> std::io::Result<std::process::Output> {
    let mut command = Command::new(executable);
    command.arg("--version").env_clear().envs(inherited());
    let child = execute::start(&mut command)?;
    execute::finish(child, b"", Limits::PLUGIN)
}

fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"CNI_"))
}
