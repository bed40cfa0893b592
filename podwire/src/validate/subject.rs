//! One plugin's configuration while it is checked.

use std::path::PathBuf;

use cni::conf::NetConf;
use cni::delegate;
use cni::faults::{Fault, Faults};
use cni::json::{Json, Keys, Stray};
use cni::version::Version;
use serde::de::DeserializeOwned;

use super::addresses::Address;
use super::findings::Findings;
use super::spelling::{self, COMMON_NAMES};
use crate::probe::supported_versions;

/// One plugin's configuration in its surroundings, and what is known of it so far.
pub struct Subject<'a> {
    pub document: &'a Json,
    /// The network's name, if it has one.
    pub network: &'a str,
    /// Its place in the file: `plugins[0]`, or nothing.
    place: String,
    /// The version of the network; the newest if it is unknown, which finds no fault.
    pub version: Version,
    /// The keys that every plugin has.
    pub net: NetConf,
    /// The keys that have a reader.
    pub known: Keys,
    /// For each address that IPAM gives to a pod, its candidates: one of each range of a
    /// set. Empty where the configuration does not determine them.
    pub addresses: Vec<Vec<Address>>,
    findings: &'a mut Findings,
}

impl<'a> Subject<'a> {
    pub fn new(
        document: &'a Json,
        network: &'a str,
        place: String,
        version: Version,
        findings: &'a mut Findings,
    ) -> Self {
        Self {
            document,
            network,
            place,
            version,
            net: NetConf::default(),
            known: Keys::default(),
            addresses: Vec::new(),
            findings,
        }
    }

    /// Reads the keys of `T`, reports each fault in their types, and leaves faulty values out.
    pub fn keys<T: DeserializeOwned>(&mut self) -> Option<T> {
        let read = self.document.decode_all();
        self.known.extend(read.keys);
        for fault in read.faults {
            self.error(fault.path(), fault.what());
        }
        read.value
    }

    /// The value, or `None` after its faults were reported: those of keys that have no fault yet.
    pub fn take<T>(&mut self, checked: Result<T, impl Into<Faults>>) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(faults) => {
                let faults = faults.into().into_iter();
                let new: Vec<_> = faults
                    .filter(|it| it.key.is_empty() || !self.has_error_at(&it.key))
                    .collect();
                new.into_iter().for_each(|fault| self.fault(fault));
                None
            }
        }
    }

    /// Reports a fault.
    pub fn fault(&mut self, Fault { key, error }: Fault) {
        let text = error.to_string();
        // The place is printed before the text.
        let reason = text.strip_prefix(&format!("{key}: ")).unwrap_or(&text);
        self.error(&key, reason);
    }

    pub fn error(&mut self, key: &str, reason: impl Into<String>) {
        let path = join(&self.place, key);
        self.findings.error(&path, reason);
    }

    pub fn warning(&mut self, key: &str, reason: impl Into<String>) {
        let path = join(&self.place, key);
        self.findings.warning(&path, reason);
    }

    /// Whether there is an error at a key or below it.
    pub fn has_error_at(&self, key: &str) -> bool {
        self.findings.has_error_at(&join(&self.place, key))
    }

    /// Keeps a VXLAN network: those of a directory must agree.
    pub fn keep_overlay(&mut self, network: overlay::Network) {
        self.findings.keep_overlay(&self.place, network);
    }

    /// Whether no plugin comes before it.
    pub fn is_first(&self) -> bool {
        self.place.is_empty() || self.place.starts_with("plugins[0]")
    }

    pub fn has_ipam(&self) -> bool {
        !self.net.ipam.plugin.is_empty()
    }

    /// Whether the runtime may pass something under this name.
    pub fn has_capability(&self, name: &str) -> bool {
        self.net.capabilities.get(name) == Some(&true)
    }

    /// Whether a plugin's name can be one, is a common one misspelt, and, with
    /// `plugin_dirs`, whether the plugin exists and supports the network's version.
    pub fn check_executable(&mut self, key: &str, name: &str, plugin_dirs: Option<&[PathBuf]>) {
        if name.is_empty() {
            return;
        }
        if name.contains('/') {
            self.error(key, format!("invalid plugin name: {name}"));
            return;
        }
        if let Some(meant) = spelling::slip(name, COMMON_NAMES) {
            let reason = format!("unknown plugin {name}; did you mean {meant}?");
            self.warning(key, reason);
        }
        let Some(dirs) = plugin_dirs else { return };
        let versions = delegate::find(name, dirs).and_then(|file| supported_versions(&file));
        let wanted = self.version.as_str();
        match versions {
            Err(error) => self.error(key, format!("{error:#}")),
            Ok(versions) if !versions.iter().any(|version| version == wanted) => {
                let reason = format!("plugin {name} does not support config version {wanted:?}");
                self.error(key, reason);
            }
            Ok(_) => {}
        }
    }

    /// Reports keys without a reader, and keys that are there more than once.
    pub fn check_unknown_keys(&mut self) {
        for stray in self.known.strays(self.document) {
            match stray {
                Stray::Unknown { path, known } => {
                    let name = path.rsplit('.').next().unwrap_or(&path);
                    let reason = spelling::unknown_key(name, &known);
                    self.warning(&path, reason);
                }
                Stray::Repeated { path } => {
                    self.warning(&path, "written more than once: the last one counts");
                }
            }
        }
    }
}

/// The place of `key` in the object at `place`.
pub fn join(place: &str, key: &str) -> String {
    match (place, key) {
        (place, "") => place.to_owned(),
        ("", key) => key.to_owned(),
        (place, key) => format!("{place}.{key}"),
    }
}

/// A string, if it is one.
pub fn text(value: Option<&Json>) -> Option<String> {
    match value {
        Some(Json::String(text)) => Some(text.clone()),
        _ => None,
    }
}
