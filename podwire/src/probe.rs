//! Asking a plugin which versions of the specification it speaks.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cni::Error;
use cni::delegate::Delegate;
use cni::env::{Environment, Verb};
use cni::version::Version;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    cni_version: String,
    supported_versions: Option<Vec<String>>,
}

/// The versions that the plugin at `executable` speaks, by its own account. One
/// from before VERSION was a verb speaks 0.1.0.
pub fn supported_versions(executable: &Path) -> Result<Vec<String>> {
    let inherited = std::env::vars_os().filter(|(name, _)| {
        let name = name.as_encoded_bytes();
        !name.starts_with(b"CNI_")
    });
    // Old plugins refuse every verb without these, so libcni makes them up.
    let made_up = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    let made_up = made_up.map(|name| (name.into(), "dummy".into()));
    let environment =
        Environment::from_pairs::<std::ffi::OsString, std::ffi::OsString>(inherited.chain(made_up));
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
