//! What a test has for a node: directories of its own, plugins made of shell
//! script, and the built podwire. No kernel is touched: the plugins do nothing
//! but write down how they were called.

// Each test binary uses its part of this.
#![allow(dead_code)]
// Tests execute what they test; the rule is for plugins.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The namespace that the tests name; nothing is there.
pub const NETNS: &str = "/nonexistent/netns/blue";

/// A node.
pub struct Node {
    dir: TempDir,
}

/// What podwire did.
#[derive(Debug)]
pub struct Finished {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// How a plugin was called.
#[derive(Debug)]
pub struct Call {
    /// `type:VERB`
    pub what: String,
    pub env: BTreeMap<String, String>,
    pub stdin: Value,
}

impl Node {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("make a directory");
        for name in ["bin", "net.d", "cache", "calls"] {
            fs::create_dir(dir.path().join(name)).expect("make a directory");
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A plugin that runs `script` with CNI_COMMAND set, after it has written
    /// down how it was called.
    pub fn plugin(&self, name: &str, script: &str) {
        let calls = self.path("calls");
        // mkdir is atomic, so every call gets a number of its own.
        let script = format!(
            "#!/bin/sh\nn=0\nuntil mkdir {calls}/$n 2>/dev/null; do n=$((n+1)); done\n\
             cat > {calls}/$n/stdin\nenv > {calls}/$n/env\n\
             echo {name}:$CNI_COMMAND > {calls}/$n/what\n{script}\n",
            calls = calls.display()
        );
        let file = self.path("bin").join(name);
        fs::write(&file, script).expect("write a plugin");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }

    /// A plugin that answers ADD with its own name as the interface's.
    pub fn working_plugin(&self, name: &str) {
        let result = json!({"cniVersion": "1.1.0", "interfaces": [{"name": name}]});
        self.plugin(name, &format!("[ $CNI_COMMAND != ADD ] || echo '{result}'"));
    }

    /// A plugin that works, but fails for `verb`.
    pub fn failing_plugin(&self, name: &str, verb: &str, code: u32) {
        let error = json!({"code": code, "msg": format!("{name} is broken"), "details": "why"});
        let result = json!({"cniVersion": "1.1.0", "interfaces": [{"name": name}]});
        self.plugin(
            name,
            &format!(
                "if [ $CNI_COMMAND = {verb} ]; then echo '{error}'; exit 1; fi\n\
                 [ $CNI_COMMAND != ADD ] || echo '{result}'"
            ),
        );
    }

    pub fn configure(&self, file: &str, document: &Value) {
        fs::write(self.path("net.d").join(file), document.to_string()).expect("write a file");
    }

    /// The network `net` of these plugins, at 1.1.0.
    pub fn network(&self, plugins: &[&str]) {
        let plugins: Vec<_> = plugins.iter().map(|name| json!({"type": name})).collect();
        self.configure(
            "10-net.conflist",
            &json!({"cniVersion": "1.1.0", "name": "net", "plugins": plugins}),
        );
    }

    pub fn podwire(&self, arguments: &[&str]) -> Finished {
        self.podwire_with(&[], arguments)
    }

    /// Runs podwire as cnitool is run: everything but the cache by environment.
    pub fn podwire_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podwire"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("CNI_PATH", self.path("bin"))
            .env("NETCONFPATH", self.path("net.d"))
            .envs(variables.iter().copied())
            .args(arguments);
        let with_cache = ["add", "del", "check", "gc"];
        if arguments.first().is_some_and(|it| with_cache.contains(it)) {
            command.arg("--cache-dir").arg(self.path("cache"));
        }
        finished(&command.output().expect("run podwire"))
    }

    /// All calls so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        let dirs = (0..).map(|n: u32| self.path("calls").join(n.to_string()));
        dirs.take_while(|dir| dir.exists())
            .map(|dir| call(&dir))
            .collect()
    }

    /// `type:VERB` of all calls so far.
    pub fn order(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.what).collect()
    }

    pub fn forget_calls(&self) {
        fs::remove_dir_all(self.path("calls")).expect("remove the calls");
        fs::create_dir(self.path("calls")).expect("make a directory");
    }

    /// The file of the attachment of `NETNS` to `net`.
    pub fn cached(&self) -> PathBuf {
        self.path("cache/results")
            .join(format!("net-{}-eth0", container_id()))
    }
}

/// What cnitool derives from `NETNS`; by `sha512sum`, not by our own code.
pub fn container_id() -> String {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "printf %s \"$1\" | sha512sum | cut -c1-20",
        "sh",
        NETNS,
    ]);
    let output = finished(&command.output().expect("run sha512sum"));
    format!("cnitool-{}", output.stdout.trim())
}

pub fn finished(output: &Output) -> Finished {
    Finished {
        status: output.status.code().expect("an exit status"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Finished {
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    /// Failed with exit status 1; returns its standard error.
    #[track_caller]
    pub fn failed(self) -> String {
        assert_eq!(self.status, 1, "{self:?}");
        self.stderr
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn call(dir: &Path) -> Call {
    let read = |name: &str| fs::read_to_string(dir.join(name)).expect("read a call");
    let env = read("env");
    let pairs = env.lines().filter_map(|line| line.split_once('='));
    let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Call {
        what: read("what").trim().to_owned(),
        env: pairs.map(own).collect(),
        stdin: serde_json::from_str(&read("stdin")).unwrap_or_default(),
    }
}
