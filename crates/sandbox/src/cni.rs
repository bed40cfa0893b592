//! Call a plugin as a runtime does, and read its answer as strictly as the strictest one.

#![allow(clippy::disallowed_methods)] // starts the plugins

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::netns::Netns;
use crate::process::{Finished, Run, Stdout, TIME_LIMIT};
use crate::sandbox::Inner;
use crate::suite::Suite;

/// A call of a plugin, before it is made. Methods that end in a verb make it.
#[derive(Clone)]
pub struct Cni {
    inner: Arc<Inner>,
    kind: String,
    suite: Suite,
    /// `None` removes a variable that would otherwise be set.
    env: BTreeMap<String, Option<OsString>>,
    netns: Option<String>,
    id: Option<String>,
    stdin: Option<Vec<u8>>,
    stdout: Stdout,
    limit: Duration,
    wrapper: Vec<String>,
}

impl Cni {
    pub(crate) fn new(inner: Arc<Inner>, kind: &str) -> Self {
        Self {
            inner,
            kind: kind.to_owned(),
            suite: Suite::Ours,
            env: BTreeMap::new(),
            netns: None,
            id: None,
            stdin: None,
            stdout: Stdout::Captured,
            limit: TIME_LIMIT,
            wrapper: Vec::new(),
        }
    }

    /// Uses the peer's plugins, for the delegate too.
    pub fn peer(self) -> Self {
        self.suite(Suite::Peer)
    }

    /// Uses this suite's plugins, for the delegate too.
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// `CNI_CONTAINERID`; unless set it follows from the pod's name (see [`container_id`]).
    pub fn id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// `CNI_NETNS`; unless set it is the pod's path. `""` is what runtimes send when the pod is gone.
    pub fn netns(mut self, path: &str) -> Self {
        self.netns = Some(path.to_owned());
        self
    }

    /// `CNI_ARGS`.
    pub fn args(self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    /// Sets any variable, over what the builder would set.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(name.to_owned(), Some(value.into()));
        self
    }

    /// Removes a variable that the builder would set.
    pub fn unset(mut self, name: &str) -> Self {
        self.env.insert(name.to_owned(), None);
        self
    }

    /// Sends these bytes instead of the configuration.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// What the plugin writes its answer to.
    pub fn stdout(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// Kills the plugin, and fails the test, after this long.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the plugin under another program: `setpriv --bounding-set -net_admin`, say.
    pub fn under(mut self, argv: &[&str]) -> Self {
        self.wrapper = argv.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// ADD of `ifname` in `pod`.
    pub fn add(self, conf: &Value, pod: &Netns, ifname: &str) -> Outcome {
        self.attachment("ADD", conf, pod, ifname)
    }

    /// CHECK; `conf` should carry the prevResult ([`crate::conf::with_prev`]).
    pub fn check(self, conf: &Value, pod: &Netns, ifname: &str) -> Outcome {
        self.attachment("CHECK", conf, pod, ifname)
    }

    /// DEL of `ifname` in `pod`.
    pub fn del(self, conf: &Value, pod: &Netns, ifname: &str) -> Outcome {
        self.attachment("DEL", conf, pod, ifname)
    }

    /// GC; `conf` should carry the valid attachments ([`crate::conf::with_valid`]).
    pub fn gc(self, conf: &Value) -> Outcome {
        self.network("GC", conf)
    }

    /// STATUS.
    pub fn status(self, conf: &Value) -> Outcome {
        self.network("STATUS", conf)
    }

    /// VERSION, with the placeholders that libcni sends.
    pub fn version(self) -> Outcome {
        let conf = serde_json::json!({"cniVersion": crate::newest()});
        let dummy = |cni: Self, name: &str| {
            if cni.env.contains_key(name) {
                cni
            } else {
                cni.env(name, "dummy")
            }
        };
        let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
        names
            .into_iter()
            .fold(self, dummy)
            .network("VERSION", &conf)
    }

    /// Any command about an attachment; the verb may be one that does not exist.
    pub fn attachment(self, verb: &str, conf: &Value, pod: &Netns, ifname: &str) -> Outcome {
        let id = self.id.clone().unwrap_or_else(|| container_id(pod));
        let netns = self.netns.clone().unwrap_or_else(|| pod.path());
        let about = [
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname.to_owned()),
        ];
        self.call(verb, conf, &about)
    }

    /// Any command about the network as a whole.
    pub fn network(self, verb: &str, conf: &Value) -> Outcome {
        self.call(verb, conf, &[])
    }

    /// Any command, with nothing but what `env` and `stdin` have set.
    pub fn bare(self) -> Outcome {
        let stdin = self.stdin.clone().unwrap_or_default();
        let vars = BTreeMap::new();
        self.execute(vars, stdin, "bare")
    }

    fn call(self, verb: &str, conf: &Value, about: &[(&str, String)]) -> Outcome {
        let mut vars = BTreeMap::from([
            ("CNI_COMMAND".to_owned(), verb.into()),
            ("CNI_PATH".to_owned(), self.path()),
        ]);
        for (name, value) in about {
            vars.insert((*name).to_owned(), value.into());
        }
        let stdin = self
            .stdin
            .clone()
            .unwrap_or_else(|| conf.to_string().into_bytes());
        self.execute(vars, stdin, verb)
    }

    fn path(&self) -> OsString {
        let mut path = self.fakes().into_os_string();
        path.push(":");
        path.push(self.suite.dir());
        path
    }

    fn fakes(&self) -> PathBuf {
        self.inner.dir().join("fakes")
    }

    fn program(&self) -> PathBuf {
        let fake = self.fakes().join(&self.kind);
        if fake.exists() {
            return fake;
        }
        self.suite.dir().join(&self.kind)
    }

    fn execute(self, vars: BTreeMap<String, OsString>, stdin: Vec<u8>, verb: &str) -> Outcome {
        let program = self.program();
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&program),
            Some((wrapper, args)) => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(&program);
                command
            }
        };
        // A runtime hands down its own environment; the little of it that matters.
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .envs(vars);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let label = format!("{verb} of {}", program.display());
        let run = Run {
            stdin,
            stdout: self.stdout,
            limit: self.limit,
        };
        Outcome {
            label,
            finished: self.inner.run(command, run),
        }
    }
}

/// The container id that calls for this pod carry unless the test sets another.
pub fn container_id(pod: &Netns) -> String {
    format!("id-{}", pod.name())
}

/// What a plugin answered.
#[derive(Clone, Debug)]
pub struct Outcome {
    label: String,
    finished: Finished,
}

/// An error document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// CNI error code.
    pub code: u64,
    /// What went wrong.
    pub msg: String,
    /// More of it; empty if absent.
    pub details: String,
}

impl Outcome {
    /// Exit status.
    pub fn code(&self) -> i32 {
        self.finished.code
    }

    /// Standard output, to the byte.
    pub fn stdout(&self) -> &str {
        &self.finished.stdout
    }

    /// Standard error, to the byte.
    pub fn stderr(&self) -> &str {
        &self.finished.stderr
    }

    /// How long the call took.
    pub fn elapsed(&self) -> Duration {
        self.finished.elapsed
    }

    /// The one document of a success. Panics if the call failed, or if standard
    /// output holds anything but exactly one document.
    #[track_caller]
    pub fn result(&self) -> Value {
        assert!(self.code() == 0, "{} failed: {self}", self.label);
        self.document()
    }

    /// The one error document of a failure. Panics if the call succeeded, did not
    /// exit with 1, or printed anything but exactly one error document.
    #[track_caller]
    pub fn error(&self) -> Failure {
        assert!(
            self.code() == 1,
            "{} should exit with 1 and an error: {self}",
            self.label
        );
        let document = self.document();
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let keys = document
            .as_object()
            .map(|o| o.keys().cloned().collect::<Vec<_>>());
        let known = ["cniVersion", "code", "msg", "details"];
        assert!(
            keys.is_some_and(|keys| keys.iter().all(|key| known.contains(&key.as_str()))),
            "{}: an error holds code, msg and details: {self}",
            self.label
        );
        let code = document["code"].as_u64();
        let code =
            code.unwrap_or_else(|| panic!("{}: an error without a code: {self}", self.label));
        assert!(
            !text("msg").is_empty(),
            "{}: an error without a message: {self}",
            self.label
        );
        Failure {
            code,
            msg: text("msg"),
            details: text("details"),
        }
    }

    /// A success that has nothing to say, as DEL, CHECK, GC and STATUS have.
    #[track_caller]
    pub fn silent(&self) -> &Self {
        assert!(self.code() == 0, "{} failed: {self}", self.label);
        assert!(
            self.stdout().is_empty(),
            "{} should print nothing: {self}",
            self.label
        );
        self
    }

    #[track_caller]
    fn document(&self) -> Value {
        let mut documents = serde_json::Deserializer::from_str(self.stdout()).into_iter::<Value>();
        let first = documents.next();
        let one = match first {
            Some(Ok(document)) => document,
            Some(Err(e)) => panic!("{}: standard output is not JSON: {e}: {self}", self.label),
            None => panic!("{}: no document on standard output: {self}", self.label),
        };
        assert!(
            documents.next().is_none(),
            "{}: more than one document on standard output: {self}",
            self.label
        );
        one
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "exit {}, stdout {:?}, stderr {:?}",
            self.code(),
            self.stdout(),
            self.stderr()
        )
    }
}
