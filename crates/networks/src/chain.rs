//! Runs the plugins of a network for one attachment, as libcni does.
//!
//! Source: `libcni/api.go`. Three things differ, on which no program can rely: an ADD that
//! fails is rolled back, a DEL goes on after a plugin has failed, and all executables are
//! looked up before the first one is run.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use cni::conf::ValidAttachment;
use cni::delegate::{self, Delegate};
use cni::env::{Environment, Verb};
use cni::json::Json;
use cni::version::Version;
use cni::{AddResult, BestEffort, Error};
use netns::NetNs;
use nix::net::if_::if_nametoindex;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Cache, CachedAttachment, NetworkList, PluginConf, request};

/// What the details of an error begin with if a failed ADD has left something.
pub const NOT_ROLLED_BACK: &str = "could not roll back";

/// An attachment, as a runtime passes it to plugins.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its names.
    pub owner: cni::Attachment,
    /// Path of the container's network namespace; empty when unknown.
    pub netns: String,
    /// `CNI_ARGS`; `None` when there are none.
    pub args: Option<Vec<(String, String)>>,
    /// The capability arguments, from which `runtimeConfig` is made.
    pub capability_args: Option<Map<String, Value>>,
}

/// The result of the last plugin of a chain.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exact output of the plugin.
    pub text: String,
    /// The same as a value, with the version added if it was missing.
    pub document: Value,
    /// The same, decoded.
    pub result: AddResult,
}

/// What to do about the plugins that have run when one fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Run DEL of them and of the one that failed.
    RollBack,
    /// Leave everything as it is, for debugging.
    Leave,
}

/// The plugins of a network, and where their executables are.
#[derive(Debug)]
pub struct Chain<'a> {
    list: &'a NetworkList,
    path: Vec<PathBuf>,
}

impl Attachment {
    /// The attachment of a cached ADD.
    ///
    /// # Errors
    /// The file has invalid names.
    pub fn from_cached(cached: &CachedAttachment) -> Result<Self> {
        Ok(Self {
            owner: cached.attachment()?,
            netns: cached.netns.clone(),
            args: cached.cni_args.clone(),
            capability_args: cached.capability_args.clone(),
        })
    }

    /// Takes what the user left out from the cache, so that the plugins get at CHECK and DEL
    /// what they got at ADD.
    pub fn complete(&mut self, cached: Option<&CachedAttachment>) {
        let Some(cached) = cached else { return };
        if self.netns.is_empty() {
            self.netns = cached.netns.clone();
        }
        let (args, capability_args) = (&cached.cni_args, &cached.capability_args);
        self.args = self.args.take().or_else(|| args.clone());
        let own = self.capability_args.take();
        self.capability_args = own.or_else(|| capability_args.clone());
    }

    /// Whether the container has an interface of that name; false when the namespace cannot
    /// be opened.
    fn interface_exists(&self) -> bool {
        let ifname = self.owner.ifname.as_str();
        NetNs::open(self.netns.as_ref()).is_ok_and(|netns| {
            let exists = netns.enter(|| if_nametoindex(ifname).is_ok());
            exists.unwrap_or(false)
        })
    }

    /// The variables of the protocol.
    fn variables(&self) -> [(&'static str, String); 4] {
        let pairs = self.args.iter().flatten();
        let args: Vec<_> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
        [
            ("CNI_CONTAINERID", self.owner.container_id.to_string()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.owner.ifname.to_string()),
            ("CNI_ARGS", args.join(";")),
        ]
    }
}

impl<'a> Chain<'a> {
    /// The plugins of `list`, executables looked up in `path`.
    pub fn new(list: &'a NetworkList, path: Vec<PathBuf>) -> Self {
        Self { list, path }
    }

    /// Runs ADD in order, each plugin with the result of the previous one, and writes the
    /// attachment to the cache.
    ///
    /// Nothing is rolled back when the interface existed before: then a second ADD has
    /// failed, and DEL would delete the first one's work.
    ///
    /// # Errors
    /// A plugin is missing or fails, or the attachment cannot be written.
    pub fn add(
        &self,
        attachment: &Attachment,
        cache: &Cache,
        on_failure: OnFailure,
    ) -> Result<Answer> {
        for plugin in &self.list.plugins {
            delegate::find(&plugin.plugin, &self.path).map_err(|e| failed(plugin, "add", &e))?;
        }
        let occupied = cache.has(&attachment.owner) || attachment.interface_exists();
        let mut ran = Vec::new();
        let mut last = None;
        let added = self
            .add_each(attachment, &mut ran, &mut last)
            .and_then(|()| self.save(attachment, cache, last.as_ref()));
        match added {
            Ok(()) => last.context("no plugin configs found"),
            Err(error) if on_failure == OnFailure::Leave => Err(error),
            Err(error) if occupied => {
                let mut error = Error::from_chain(&error);
                let ifname = &attachment.owner.ifname;
                error.add_details(&format!("not rolled back: {ifname} was there before"));
                Err(error.into())
            }
            Err(error) => {
                let last = last.as_ref().map(|answer| &answer.document);
                Err(self.roll_back(attachment, &ran, last, error))
            }
        }
    }

    fn add_each(
        &self,
        attachment: &Attachment,
        ran: &mut Vec<&'a PluginConf>,
        last: &mut Option<Answer>,
    ) -> Result<()> {
        for plugin in &self.list.plugins {
            ran.push(plugin);
            let prev = last.as_ref().map(|answer| &answer.document);
            let answer = self
                .run(Verb::Add, plugin, attachment, prev)
                .and_then(|stdout| Answer::parse(&stdout, &self.list.cni_version))
                .map_err(|error| failed(plugin, "add", &error))?;
            *last = Some(answer);
        }
        Ok(())
    }

    fn save(&self, attachment: &Attachment, cache: &Cache, answer: Option<&Answer>) -> Result<()> {
        let Some(answer) = answer else { return Ok(()) };
        let result = answer.document.clone();
        let cached = CachedAttachment::new(attachment, &self.list.bytes, result);
        cache.put(&cached).with_context(|| {
            let network = &self.list.name;
            format!("failed to set network {network:?} cached result")
        })
    }

    /// Runs DEL of the plugins that have run, also of the one that failed, as the
    /// specification requires for a plugin that stopped half-way.
    fn roll_back(
        &self,
        attachment: &Attachment,
        ran: &[&PluginConf],
        last: Option<&Value>,
        cause: anyhow::Error,
    ) -> anyhow::Error {
        let last = last.filter(|_| self.list.at_least(Version::V0_4_0).unwrap_or(false));
        let mut left = Vec::new();
        for plugin in ran.iter().rev() {
            if let Err(error) = self.run(Verb::Del, plugin, attachment, last)
                // DEL often fails for the same reason as ADD: report it once.
                && failed(plugin, "add", &error) != Error::from_chain(&cause)
            {
                left.push(failed(plugin, "delete", &error).to_string());
            }
        }
        if left.is_empty() {
            return cause;
        }
        let mut error = Error::from_chain(&cause);
        error.add_details(&format!("{NOT_ROLLED_BACK}: {}", left.join("; ")));
        error.into()
    }

    /// Runs DEL in reverse order, every plugin even if others fail, so that the pod's address
    /// is released in any case. Removes the attachment from the cache when all have
    /// succeeded.
    ///
    /// # Errors
    /// The first error, with the others in its details.
    pub fn del(&self, attachment: &Attachment, cache: &Cache) -> Result<()> {
        let mut prev = None;
        if self.list.at_least(Version::V0_4_0)? {
            // DEL goes on without a result if that cannot be read.
            prev = self.cached_result(attachment, cache).unwrap_or_default();
        }
        let mut all = BestEffort::new();
        for plugin in self.list.plugins.iter().rev() {
            all.step(&plugin.plugin, || {
                self.run(Verb::Del, plugin, attachment, prev.as_ref())
                    .map_err(|error| failed(plugin, "delete", &error).into())
            });
        }
        all.finish()?;
        cache.remove(&attachment.owner)
    }

    /// Runs CHECK in order, up to the first error. `false`: the network has `disableCheck`.
    ///
    /// # Errors
    /// Of the first plugin that fails; or the version has no CHECK, or the cache cannot be read.
    pub fn check(&self, attachment: &Attachment, cache: &Cache) -> Result<bool> {
        if !self.list.at_least(Version::V0_4_0)? {
            let version = &self.list.cni_version;
            bail!("configuration version {version:?} does not support the CHECK command");
        }
        if self.list.disable_check {
            return Ok(false);
        }
        let prev = self
            .cached_result(attachment, cache)
            .with_context(|| format!("failed to get network {:?} cached result", self.list.name))?;
        for plugin in &self.list.plugins {
            self.run(Verb::Check, plugin, attachment, prev.as_ref())
                .map_err(|error| failed(plugin, "check", &error))?;
        }
        Ok(true)
    }

    /// Runs STATUS in order, up to the first error, whose code is kept. `false`:
    /// the network's version has no STATUS.
    ///
    /// # Errors
    /// Of the first plugin that fails.
    pub fn status(&self) -> Result<bool> {
        if !self.list.at_least(Version::V1_1_0).unwrap_or(false) {
            return Ok(false);
        }
        for plugin in &self.list.plugins {
            self.execute(Verb::Status, plugin, None, request::base(self.list, plugin))
                .map_err(|error| failed(plugin, "status", &error))?;
        }
        Ok(true)
    }

    /// Runs GC of all plugins, with `valid` as the attachments in use. `false`: the network's
    /// version has no GC.
    ///
    /// # Errors
    /// The first error, with the others in its details.
    pub fn gc(&self, valid: &[ValidAttachment]) -> Result<bool> {
        if !self.list.at_least(Version::V1_1_0).unwrap_or(false) {
            return Ok(false);
        }
        let mut all = BestEffort::new();
        for plugin in &self.list.plugins {
            let document = request::of_gc(self.list, plugin, valid);
            let what = format!("failed to GC plugin {}", plugin.plugin);
            all.step(&plugin.plugin, || {
                self.execute(Verb::Gc, plugin, None, document)
                    .map_err(|error| prefixed(&what, &error).into())
            });
        }
        all.finish()?;
        Ok(true)
    }

    fn cached_result(&self, attachment: &Attachment, cache: &Cache) -> Result<Option<Value>> {
        match cache.get(&attachment.owner)? {
            None => Ok(None),
            Some(cached) => cached.result_as(&self.list.cni_version),
        }
    }

    fn run(
        &self,
        verb: Verb,
        plugin: &PluginConf,
        attachment: &Attachment,
        prev_result: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let offered = attachment.capability_args.as_ref();
        let document = request::of_attachment(self.list, plugin, prev_result, offered);
        self.execute(verb, plugin, Some(attachment), document)
    }

    fn execute(
        &self,
        verb: Verb,
        plugin: &PluginConf,
        attachment: Option<&Attachment>,
        document: Map<String, Value>,
    ) -> Result<Vec<u8>> {
        let executable = delegate::find(&plugin.plugin, &self.path)?;
        let stdin = serde_json::to_vec(&document)?;
        Delegate::new(&executable, self.environment(attachment)?, &stdin).run(verb)
    }

    /// The variables of the protocol, and our own; the former are empty for a verb without
    /// an attachment.
    fn environment(&self, attachment: Option<&Attachment>) -> Result<Environment> {
        let path = std::env::join_paths(&self.path).context("join the plugin directories")?;
        let empty = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"];
        let empty = empty.map(|name| (name, String::new()));
        let protocol = attachment.map_or(empty, Attachment::variables);
        let protocol = protocol.map(|(name, value)| (OsString::from(name), value.into()));
        // The first of several with one name counts.
        let all = protocol.into_iter().chain([("CNI_PATH".into(), path)]);
        Ok(Environment::from_pairs(all.chain(std::env::vars_os())))
    }
}

impl Answer {
    /// Reads the output of a plugin. A result without a version has that of the
    /// configuration.
    fn parse(stdout: &[u8], version: &str) -> Result<Self> {
        let mut document: Value =
            serde_json::from_slice(stdout).context("failed to unmarshal raw result")?;
        if document.is_null() {
            document = Value::Object(Map::new());
        }
        let members = document
            .as_object_mut()
            .context("failed to unmarshal raw result: not an object")?;
        let stamp = members.get("cniVersion").and_then(Value::as_str);
        if stamp.unwrap_or_default().is_empty() {
            let version = match version {
                "" => Version::V0_1_0.as_str(),
                version => version,
            };
            members.insert("cniVersion".into(), version.into());
        }
        let result = AddResult::decode_any(&Json::deserialize(&document)?, Version::V0_1_0)
            .context("failed to parse result")?;
        Ok(Self {
            text: String::from_utf8_lossy(stdout).trim().to_owned(),
            document,
            result,
        })
    }
}

/// A plugin's error with libcni's text around it.
fn failed(plugin: &PluginConf, verb: &str, error: &anyhow::Error) -> Error {
    let name = match plugin.name.as_str() {
        "" => String::new(),
        name => format!(" name={name:?}"),
    };
    let kind = &plugin.plugin;
    prefixed(
        &format!("plugin type={kind:?}{name} failed ({verb})"),
        error,
    )
}

/// An error with a text before it; its code and details are kept.
fn prefixed(what: &str, error: &anyhow::Error) -> Error {
    let mut error = Error::from_chain(error);
    error.msg = format!("{what}: {}", error.msg);
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_result_without_a_version_has_that_of_the_configuration() {
        let version = |stdout: &str, conf: &str| {
            let answer = Answer::parse(stdout.as_bytes(), conf).unwrap();
            answer.document["cniVersion"].clone()
        };
        assert_eq!(version("{}", "1.0.0"), "1.0.0");
        assert_eq!(version("null", "0.4.0"), "0.4.0");
        assert_eq!(version(r#"{"cniVersion": ""}"#, ""), "0.1.0");
        assert_eq!(version(r#"{"cniVersion": "0.3.1"}"#, "1.0.0"), "0.3.1");
    }

    #[test]
    fn unknown_members_stay_in_the_result() {
        let answer = Answer::parse(br#"{"x": 1, "ips": []}"#, "1.0.0").unwrap();
        assert_eq!(
            answer.document,
            json!({"cniVersion": "1.0.0", "ips": [], "x": 1})
        );
    }

    #[test]
    fn an_invalid_result_is_refused() {
        for stdout in ["", "[]", "{", r#"{"cniVersion": "7.0.0"}"#, r#"{"ips": 1}"#] {
            assert!(
                Answer::parse(stdout.as_bytes(), "1.0.0").is_err(),
                "{stdout}"
            );
        }
    }

    #[test]
    fn an_error_names_the_plugin_and_keeps_its_code() {
        let list = NetworkList::from_bytes(
            br#"{"name": "n", "plugins": [{"type": "bridge", "name": "own"}]}"#,
        )
        .unwrap();
        let cause = cni::Code::TryAgain.err("busy").details("later").into();
        let error = failed(&list.plugins[0], "add", &cause);
        assert_eq!(error.code, 11);
        assert_eq!(
            error.to_string(),
            "plugin type=\"bridge\" name=\"own\" failed (add): busy; later"
        );
    }
}
