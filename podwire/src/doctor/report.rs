//! `--report`: an archive for an issue, with what shows the fault and nothing that is secret.
//!
//! It has no file of the cache and no argument of a runtime, and of configurations no value of a key
//! that may be secret. The names of pods, addresses and interfaces are in it: they are what it is
//! about.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use survey::Survey;
use tar::{Builder, Header};

/// Words in keys whose values are left out.
const SECRET: [&str; 10] = [
    "passw",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "psk",
    "credential",
    "private",
    "auth",
    "key",
];

/// Writes the archive, which only its owner can read. It must not exist.
///
/// # Errors
/// The file exists, or cannot be written.
pub fn write(file: &Path, findings: &Value, survey: &Survey) -> Result<()> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
    };
    let opened = open().with_context(|| format!("create {}", file.display()))?;
    let fill = || -> Result<()> {
        let mut archive = Builder::new(opened);
        add(
            &mut archive,
            "doctor.json",
            &serde_json::to_string_pretty(findings)?,
        )?;
        add(&mut archive, "version", &version())?;
        add(
            &mut archive,
            "namespaces",
            &format!("{:#?}", survey.namespaces),
        )?;
        add(&mut archive, "attachments", &attachments(survey))?;
        add(
            &mut archive,
            "published",
            &format!("{:#?}", survey.published),
        )?;
        for network in &survey.catalogue.networks {
            let Some(listed) = network.listed() else {
                continue;
            };
            let mut document = Value::Object(listed.document.clone());
            redact(&mut document);
            let text = serde_json::to_string_pretty(&document)?;
            add(
                &mut archive,
                &format!("networks/{}.json", network.name),
                &text,
            )?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    };
    fill().with_context(|| format!("write {}", file.display()))
}

fn add(archive: &mut Builder<std::fs::File>, name: &str, text: &str) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o600);
    header.set_cksum();
    let path = format!("podwire-report/{name}");
    Ok(archive.append_data(&mut header, path, text.as_bytes())?)
}

fn version() -> String {
    let kernel = std::fs::read_to_string("/proc/version").unwrap_or_default();
    format!("podwire {}\n{kernel}", env!("CARGO_PKG_VERSION"))
}

/// The attachments without the configuration and the arguments of the runtime.
fn attachments(survey: &Survey) -> String {
    let line = |it: &survey::Attachment| {
        format!(
            "{} cached={} home={:?} inside={:?} outside={:?} reserved={:?}\nresult={:#?}\n",
            it.label(),
            it.cached.is_some(),
            it.home,
            it.inside,
            it.outside,
            it.reserved,
            it.result
        )
    };
    survey.attachments.iter().map(line).collect()
}

/// Replaces the values of keys that may be secret.
fn redact(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.to_lowercase();
                if SECRET.iter().any(|word| key.contains(word)) {
                    *value = "left out".into();
                } else {
                    redact(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::String(text) => *text = without_user(text),
        _ => {}
    }
}

/// A URL may have a name and a password before its host.
fn without_user(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://left out{}", &rest[user.len()..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_secret_keys_are_left_out_wherever_they_are() {
        let mut document = json!({"plugins": [{"type": "x", "ipam": {"etcdPassword": "p"},
            "Token": [1], "etcd": ["http://me:p@db:1/a@b", "http://db/"]}]});
        redact(&mut document);
        assert_eq!(
            document,
            json!({"plugins": [{"type": "x", "ipam": {"etcdPassword": "left out"},
                "Token": "left out", "etcd": ["http://left out@db:1/a@b", "http://db/"]}]})
        );
    }
}
