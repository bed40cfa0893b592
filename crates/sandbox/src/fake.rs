//! A plugin whose answers the test chooses and whose calls it can read.

#![allow(clippy::disallowed_methods)] // starts cp

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A plugin made of shell script. Unless the test sets an answer, it succeeds and prints nothing.
pub struct FakePlugin {
    name: String,
    dir: PathBuf,
}

/// One call that a fake plugin has seen.
#[derive(Clone, Debug)]
pub struct Call {
    /// Value of `CNI_COMMAND`.
    pub command: String,
    /// All variables of its environment.
    pub env: BTreeMap<String, String>,
    /// What came on standard input, to the byte.
    pub stdin: String,
}

impl FakePlugin {
    pub(crate) fn install(bin: &Path, name: &str) -> Self {
        let dir = bin.join(format!(".{name}"));
        fs::create_dir_all(dir.join("calls")).expect("make the fake's directory");
        let script = dir.join("script");
        fs::write(&script, SCRIPT.replace("@DIR@", &dir.display().to_string()))
            .expect("write the fake");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
            .expect("make the fake executable");
        // A child that another test is about to start may hold for a moment what this program
        // has open, and nothing that is open for writing can be executed. So cp(1) writes it.
        let mut copy = Command::new("cp");
        copy.arg("-p").arg(&script).arg(bin.join(name));
        let copied = copy.status().expect("run cp");
        assert!(copied.success(), "copy the fake");
        Self {
            name: name.to_owned(),
            dir,
        }
    }

    /// Its `type` in a configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Answers `verb` with this document and exit status 0.
    pub fn answer(&self, verb: &str, document: &Value) -> &Self {
        self.set(verb, 0, &document.to_string(), "")
    }

    /// Answers `verb` with a CNI error and exit status 1.
    pub fn fail(&self, verb: &str, code: u32, msg: &str) -> &Self {
        let error = serde_json::json!({"cniVersion": "1.0.0", "code": code, "msg": msg});
        self.set(verb, 1, &error.to_string(), "")
    }

    /// Answers `verb` with any exit status and any bytes.
    pub fn set(&self, verb: &str, status: i32, stdout: &str, stderr: &str) -> &Self {
        for (what, content) in [
            ("status", &*status.to_string()),
            ("stdout", stdout),
            ("stderr", stderr),
        ] {
            fs::write(self.dir.join(format!("{verb}.{what}")), content)
                .expect("set the fake's answer");
        }
        self
    }

    /// Makes `verb` run this shell code first, in the plugin's place: `sleep 60`, say.
    pub fn before(&self, verb: &str, code: &str) -> &Self {
        fs::write(self.dir.join(format!("{verb}.before")), code).expect("set the fake's code");
        self
    }

    /// All calls so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        (0..).map_while(|n| self.call(n)).collect()
    }

    /// Verbs of all calls so far, oldest first.
    pub fn verbs(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.command).collect()
    }

    fn call(&self, number: usize) -> Option<Call> {
        let dir = self.dir.join("calls").join(number.to_string());
        let env = fs::read(dir.join("env")).ok()?;
        let env: BTreeMap<String, String> = String::from_utf8_lossy(&env)
            .split('\0')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        Some(Call {
            command: env.get("CNI_COMMAND").cloned().unwrap_or_default(),
            stdin: fs::read_to_string(dir.join("stdin")).unwrap_or_default(),
            env,
        })
    }
}

/// mkdir is atomic: calls at the same time get numbers of their own.
const SCRIPT: &str = r#"#!/bin/sh
dir='@DIR@'
n=0
until mkdir "$dir/calls/$n" 2>/dev/null; do n=$((n+1)); done
cat > "$dir/calls/$n/stdin"
cat "/proc/$$/environ" > "$dir/calls/$n/env"
if [ -f "$dir/$CNI_COMMAND.before" ]; then . "$dir/$CNI_COMMAND.before"; fi
[ -f "$dir/$CNI_COMMAND.status" ] || exit 0
cat "$dir/$CNI_COMMAND.stdout"
cat "$dir/$CNI_COMMAND.stderr" >&2
exit "$(cat "$dir/$CNI_COMMAND.status")"
"#;
