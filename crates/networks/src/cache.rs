//! libcni's cache of attachments.
//!
//! Source: `cachedInfo` in `libcni/api.go`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cni::AddResult;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};
use cni::file::{self, LONGEST, is_at};
use cni::json::Json;
use cni::lock;
use cni::version::Version;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Attachment;

const KIND: &str = "cniCacheV1";

/// The directory of the attachments on this node.
#[derive(Clone, Debug)]
pub struct Cache {
    results: PathBuf,
}

/// A file of the cache; the order of the members is libcni's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CachedAttachment {
    kind: String,
    /// `CNI_CONTAINERID` of its ADD.
    pub container_id: String,
    /// The network's configuration as it was read, in base64.
    config: Option<String>,
    /// `CNI_IFNAME` of its ADD.
    #[serde(rename = "ifName")]
    pub ifname: String,
    /// The network's name.
    pub network_name: String,
    /// `CNI_NETNS` of its ADD.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub netns: String,
    /// `CNI_ARGS` of its ADD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_args: Option<Vec<(String, String)>>,
    /// The runtime's capability arguments, from which `runtimeConfig` is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability_args: Option<Map<String, Value>>,
    /// The result of the last plugin of the chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// The name of an attachment's file.
fn file_name(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{network}-{container_id}-{ifname}")
}

impl Cache {
    /// The cache under `dir`, usually /var/lib/cni.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            results: dir.join("results"),
        }
    }

    /// Fails without a cache: then it is unknown what is in use. A runtime creates it with
    /// its first attachment, and never removes it.
    ///
    /// # Errors
    /// It is missing; the runtime may have it elsewhere.
    pub fn must_exist(&self) -> Result<()> {
        if self.results.is_dir() {
            return Ok(());
        }
        bail!(
            "{} is missing, so nothing says what is in use: --cache-dir names the runtime's cache",
            self.results.display()
        )
    }

    /// Writes an attachment. A reader sees all of it or nothing, also after a crash. (libcni
    /// writes in place, and with half a file DEL has no `prevResult`.)
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, attachment: &CachedAttachment) -> Result<()> {
        let file = self.results.join(attachment.file_name());
        let document = serde_json::to_vec(attachment)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.results)
            .with_context(|| format!("create {}", self.results.display()))?;
        let unfinished = self.unfinished(&attachment.file_name());
        let write = || -> Result<bool> {
            let (mut new, _) = file::open(&unfinished, OFlag::O_WRONLY | OFlag::O_CREAT)?;
            let _alone = lock::exclusive(new.try_clone()?, &unfinished)?;
            if !is_at(&new, &unfinished) {
                // Another process has finished it.
                return Ok(false);
            }
            new.set_len(0)?;
            new.write_all(&document)?;
            new.sync_all()?;
            fs::rename(&unfinished, &file)?;
            Ok(true)
        };
        while !write().with_context(|| format!("write {}", file.display()))? {}
        Ok(())
    }

    /// Reads an attachment; `None` without a file. A file from before `cniCacheV1` has only
    /// the result.
    ///
    /// # Errors
    /// The file cannot be read, or not as an attachment.
    pub fn get(&self, owner: &cni::Attachment) -> Result<Option<CachedAttachment>> {
        let file = self.file(owner);
        let text = match file::read(&file, LONGEST) {
            Err(error) if file::is_absent(&error) => return Ok(None),
            read => read.with_context(|| format!("read {}", file.display()))?.0,
        };
        let parse = || -> Result<CachedAttachment> {
            let document = Json::parse(&text)?;
            match document.get("kind") {
                Some(Json::String(kind)) if kind == KIND => Ok(document.decode()?),
                _ => Ok(CachedAttachment::of(owner, serde_json::from_slice(&text)?)),
            }
        };
        let parsed = parse().with_context(|| format!("parse {}", file.display()));
        parsed.map(Some)
    }

    /// Whether there is a file, readable or not.
    pub fn has(&self, owner: &cni::Attachment) -> bool {
        fs::symlink_metadata(self.file(owner)).is_ok()
    }

    /// Removes an attachment; without a file, it succeeds.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, owner: &cni::Attachment) -> Result<()> {
        let file = self.file(owner);
        let (id, ifname) = (owner.container_id.as_str(), owner.ifname.as_str());
        // What a killed process has left.
        let unfinished = self.unfinished(&file_name(&owner.network, id, ifname));
        let removed = file::remove(&unfinished).and_then(|()| file::remove(&file));
        removed.with_context(|| format!("remove {}", file.display()))
    }

    /// The attachments to `network` in the order of the files' names, and the files that may
    /// be of this network.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of_network(&self, network: &str) -> Result<Contents> {
        let mut files = self.files()?;
        files.sort();
        let mut contents = Contents::read(files);
        contents.keep_network(network);
        Ok(contents)
    }

    /// The attachments of a container whose files can be read. Only files with its id in their
    /// names are.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of_container(&self, id: &str) -> Result<Vec<CachedAttachment>> {
        let part = format!("-{id}-");
        let mut files = self.files()?;
        files.retain(|it| {
            let name = it.file_name().map(|it| it.to_string_lossy());
            name.is_some_and(|it| it.contains(&part))
        });
        files.sort();
        let mut attachments = Contents::read(files).attachments;
        attachments.retain(|it| it.container_id == id);
        Ok(attachments)
    }

    /// The same for all networks, the oldest ADD first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn oldest_first(&self) -> Result<Contents> {
        let mut files = self.files()?;
        files.sort();
        files.sort_by_cached_key(|file| {
            fs::symlink_metadata(file).and_then(|it| it.modified()).ok()
        });
        Ok(Contents::read(files))
    }

    /// The files of attachments. Their names begin with that of a network, and so with no dot.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let read = || {
            let mut files = Vec::new();
            for entry in fs::read_dir(&self.results)? {
                let entry = entry?;
                if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                    files.push(entry.path());
                }
            }
            Ok(files)
        };
        match read() {
            Err(error) if file::is_absent(&error) => Ok(Vec::new()),
            files => files.with_context(|| format!("read {}", self.results.display())),
        }
    }

    /// Where a file is until it is complete. There is one for each attachment, so that a DEL finds what
    /// a killed process has left.
    fn unfinished(&self, file_name: &str) -> PathBuf {
        let name = cni::names::short(file_name);
        self.results.join(format!(".podwire-{name}"))
    }

    fn file(&self, owner: &cni::Attachment) -> PathBuf {
        let (id, ifname) = (owner.container_id.as_str(), owner.ifname.as_str());
        self.results.join(file_name(&owner.network, id, ifname))
    }
}

impl CachedAttachment {
    /// A new attachment to the network with the configuration `config`.
    pub fn new(attachment: &Attachment, config: &[u8], result: Value) -> Self {
        Self {
            kind: KIND.into(),
            config: Some(BASE64_STANDARD.encode(config)),
            netns: attachment.netns.clone(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capability_args.clone(),
            ..Self::of(&attachment.owner, result)
        }
    }

    /// An attachment that is about to be made: without a result.
    pub fn planned(attachment: &Attachment, config: &[u8]) -> Self {
        Self {
            result: None,
            ..Self::new(attachment, config, Value::Null)
        }
    }

    fn of(owner: &cni::Attachment, result: Value) -> Self {
        Self {
            container_id: owner.container_id.to_string(),
            ifname: owner.ifname.to_string(),
            network_name: owner.network.clone(),
            result: Some(result),
            ..Self::default()
        }
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        file_name(&self.network_name, &self.container_id, &self.ifname)
    }

    /// The network's configuration at the time of the ADD.
    ///
    /// # Errors
    /// It is not base64.
    pub fn config(&self) -> Result<Vec<u8>> {
        let config = self.config.as_deref().unwrap_or_default();
        BASE64_STANDARD
            .decode(config)
            .context("decode the cached configuration")
    }

    /// Puts another configuration of the network in the place of that of the ADD.
    pub fn replace_config(&mut self, config: &[u8]) {
        self.config = Some(BASE64_STANDARD.encode(config));
    }

    /// Puts another MTU, in bytes, in the place of that of the ADD, wherever the result has one.
    pub fn replace_mtu(&mut self, mtu: u32) {
        let interfaces = self.result.as_mut().and_then(|it| it.get_mut("interfaces"));
        for interface in interfaces
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(known) = interface.get_mut("mtu") {
                *known = mtu.into();
            }
        }
    }

    /// Adds a default route to the result for each family in which the container has a gateway and no
    /// such route. Returns whether there was something to add.
    ///
    /// # Errors
    /// It is not a result.
    pub fn add_default_routes(&mut self) -> Result<bool> {
        let Some(known) = self.add_result()? else {
            return Ok(false);
        };
        let mut added = Vec::new();
        for (dst, is_ipv4) in [("0.0.0.0/0", true), ("::/0", false)] {
            let mut gateways = known.ips.iter().filter_map(|it| it.gateway);
            let mut routes = known.routes.iter().map(|it| it.dst);
            let has_route = routes.any(|it| it.is_default() && it.0.is_ipv4() == is_ipv4);
            if !has_route && gateways.any(|it| it.is_ipv4() == is_ipv4) {
                added.push(json!({"dst": dst}));
            }
        }
        let result = self.result.as_mut().and_then(Value::as_object_mut);
        let routes = result.map(|it| it.entry("routes").or_insert_with(|| json!([])));
        match routes {
            Some(Value::Array(routes)) if !added.is_empty() => routes.extend(added),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The attachment in the form of GC's list.
    pub fn owner(&self) -> ValidAttachment {
        valid(&self.container_id, &self.ifname)
    }

    /// The attachment with checked names; an error when the file has invalid ones.
    pub fn attachment(&self) -> Result<cni::Attachment> {
        Ok(cni::Attachment {
            network: self.network_name.clone(),
            container_id: ContainerId::parse(&self.container_id)?,
            ifname: IfName::parse(&self.ifname)?,
        })
    }

    /// The result of the ADD, if there is one.
    ///
    /// # Errors
    /// It is not a result.
    pub fn add_result(&self) -> Result<Option<AddResult>> {
        let decode = |result| -> Result<AddResult> {
            let document = Json::deserialize(result)?;
            let decoded = AddResult::decode_any(&document, Version::V0_1_0);
            decoded.context("parse the cached result")
        };
        self.result.as_ref().map(decode).transpose()
    }

    /// The path of the network namespace: libcni writes it since 1.2; the result names it as the
    /// interface's sandbox.
    pub fn netns_path(&self) -> Option<String> {
        if !self.netns.is_empty() {
            return Some(self.netns.clone());
        }
        let result = self.add_result().ok()??;
        let inside = result.in_container().find(|it| it.name == self.ifname);
        inside.map(|it| it.sandbox.clone())
    }

    /// `network/container/interface`, for messages.
    pub fn label(&self) -> String {
        let (network, id, ifname) = (&self.network_name, &self.container_id, &self.ifname);
        format!("{network}/{id}/{ifname}")
    }

    /// The result in `version`, for a plugin.
    ///
    /// # Errors
    /// It is not a result, or cannot be expressed in that version.
    pub fn result_as(&self, version: &str) -> Result<Option<Value>> {
        let (Some(result), Some(decoded)) = (&self.result, self.add_result()?) else {
            return Ok(None);
        };
        let stamp = Json::deserialize(result)?.get("cniVersion");
        if matches!(stamp, Some(Json::String(text)) if text == version) {
            return Ok(Some(result.clone()));
        }
        let Some(wanted) = Version::parse(version) else {
            bail!("unsupported CNI result version {version:?}");
        };
        let converted = decoded.encode(wanted).with_context(|| {
            format!("failed to convert cached result to config version {version:?}")
        })?;
        Ok(Some(serde_json::from_str(&converted)?))
    }
}

/// The files of the cache.
#[derive(Debug, Default)]
pub struct Contents {
    /// The attachments whose files can be read.
    pub attachments: Vec<CachedAttachment>,
    /// The other files. Their attachments count as in use.
    pub unidentified: Vec<Unidentified>,
}

/// A file whose attachment is not known for certain: truncated by a crash, unreadable, not
/// a regular file, of an old libcni, or with another name than its content.
#[derive(Debug)]
pub struct Unidentified {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it; `None` for a file of an old libcni.
    pub fault: Option<String>,
    /// The attachment that its content names, if it names one.
    named: Option<CachedAttachment>,
}

impl Contents {
    fn read(files: Vec<PathBuf>) -> Self {
        let mut contents = Self::default();
        for path in files {
            let (fault, named) = match read(&path) {
                Ok(it) if path.file_name() == Some(it.file_name().as_ref()) => {
                    contents.attachments.push(it);
                    continue;
                }
                Ok(it) => {
                    let fault = format!("its content is of {}, its name is not", it.label());
                    (Some(fault), Some(it))
                }
                Err(fault) => (fault, None),
            };
            contents
                .unidentified
                .push(Unidentified { path, fault, named });
        }
        contents
    }

    /// The attachments to `network`, with all that an unidentified file may be of.
    pub fn in_use(&self, network: &str) -> Vec<ValidAttachment> {
        let known = self.attachments.iter();
        let known = known.filter(|it| it.network_name == network);
        let unidentified = self.unidentified.iter();
        let possible = unidentified.flat_map(|it| it.possible_owners(network));
        known.map(CachedAttachment::owner).chain(possible).collect()
    }

    fn keep_network(&mut self, network: &str) {
        self.attachments.retain(|it| it.network_name == network);
        self.unidentified
            .retain(|it| !it.possible_owners(network).is_empty());
    }
}

impl Unidentified {
    /// Whether it may be the file of this attachment.
    pub fn may_be(&self, owner: &cni::Attachment) -> bool {
        let owner_of = valid(owner.container_id.as_str(), owner.ifname.as_str());
        self.possible_owners(&owner.network).contains(&owner_of)
    }

    /// The attachments to `network` that the file may be of. Its name
    /// `NETWORK-CONTAINER-INTERFACE` is ambiguous where a part has a `-`: all readings count.
    pub fn possible_owners(&self, network: &str) -> Vec<ValidAttachment> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let rest = name.and_then(|name| name.strip_prefix(network)?.strip_prefix('-'));
        let mut owners: Vec<_> = rest.map(readings).unwrap_or_default();
        let named = self.named.iter().filter(|it| it.network_name == network);
        owners.extend(named.map(CachedAttachment::owner));
        owners
    }
}

/// All readings of `CONTAINER-INTERFACE`.
fn readings(text: &str) -> Vec<ValidAttachment> {
    let splits = text.match_indices('-');
    let splits = splits.map(|(at, _)| (&text[..at], &text[at + 1..]));
    let possible = splits
        .filter(|(id, ifname)| ContainerId::parse(id).is_ok() && IfName::parse(ifname).is_ok());
    possible.map(|(id, ifname)| valid(id, ifname)).collect()
}

fn valid(container_id: &str, ifname: &str) -> ValidAttachment {
    ValidAttachment {
        container_id: container_id.into(),
        ifname: ifname.into(),
    }
}

/// The attachment in a file, or what is wrong with it; `None` for a bare result.
fn read(file: &Path) -> Result<CachedAttachment, Option<String>> {
    // A regular file, as libcni writes them, and nothing else.
    let read = file::read(file, LONGEST);
    let (text, _) = read.map_err(|error| Some(cni::reason(&error)))?;
    let document = Json::parse(&text).map_err(|error| Some(format!("not JSON: {error}")))?;
    match document.get("kind") {
        Some(Json::String(kind)) if kind == KIND => {
            document.decode().map_err(|error| Some(error.to_string()))
        }
        Some(_) => Err(Some("of an unknown kind".into())),
        None if matches!(document, Json::Object(_)) => Err(None),
        None => Err(Some("not an attachment".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};
    use tempfile::TempDir;

    fn result() -> Value {
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]})
    }

    fn attachment() -> CachedAttachment {
        of_network("n")
    }

    fn of_network(network: &str) -> CachedAttachment {
        let attachment = Attachment {
            owner: cni::Attachment::parse(network, "c", "eth0").unwrap(),
            netns: "/run/netns/a".into(),
            args: Some(vec![("K".into(), "V".into())]),
            capability_args: Some(Map::from_iter([("mac".to_owned(), json!("02::"))])),
        };
        CachedAttachment::new(&attachment, br#"{"name":"n"}"#, result())
    }

    /// A cache in a directory of its own.
    struct Node {
        dir: TempDir,
        cache: Cache,
    }

    impl Node {
        fn empty() -> Self {
            let dir = TempDir::new().unwrap();
            let cache = Cache::in_dir(dir.path());
            fs::create_dir(&cache.results).unwrap();
            Self { dir, cache }
        }

        fn with_attachment() -> Self {
            let node = Self::empty();
            node.cache.put(&attachment()).unwrap();
            node
        }

        fn file(&self) -> PathBuf {
            self.cache.results.join("n-c-eth0")
        }

        fn get(&self) -> Result<Option<CachedAttachment>> {
            self.cache.get(&attachment().attachment().unwrap())
        }

        /// The possible owners of unidentified files.
        fn owners(&self, network: &str) -> Vec<ValidAttachment> {
            let unclear = self.cache.of_network(network).unwrap().unidentified;
            let owners = unclear.iter().flat_map(|it| it.possible_owners(network));
            owners.collect()
        }
    }

    #[test]
    fn a_file_has_the_form_and_the_mode_of_libcnis() {
        let node = Node::with_attachment();
        assert_eq!(
            fs::read_to_string(node.file()).unwrap(),
            r#"{"kind":"cniCacheV1","containerId":"c","config":"eyJuYW1lIjoibiJ9","ifName":"eth0","networkName":"n","netns":"/run/netns/a","cniArgs":[["K","V"]],"capabilityArgs":{"mac":"02::"},"result":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}}"#
        );
        let mode = fs::metadata(node.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&node.cache.results).unwrap().count(), 1);
        // What a killed process has left is no attachment, and goes with its own.
        let left = node.cache.unfinished(&attachment().file_name());
        fs::write(&left, "{").unwrap();
        assert!(node.cache.of_network("n").unwrap().unidentified.is_empty());
        node.cache.put(&attachment()).unwrap();
        assert!(!left.exists() && node.file().exists());
        fs::write(&left, "{").unwrap();
        let owner = attachment().attachment().unwrap();
        node.cache.remove(&owner).unwrap();
        assert_eq!(fs::read_dir(&node.cache.results).unwrap().count(), 0);
        let bare = CachedAttachment {
            netns: String::new(),
            cni_args: None,
            capability_args: None,
            ..attachment()
        };
        let text = serde_json::to_string(&bare).unwrap();
        assert!(!text.contains("netns") && !text.contains("Args"), "{text}");
    }

    #[test]
    fn an_attachment_is_written_read_replaced_and_removed() {
        let node = Node::with_attachment();
        let mut other = attachment();
        other.netns = "/run/netns/b".into();
        node.cache.put(&other).unwrap();
        let read = node.get().unwrap().unwrap();
        assert_eq!(read, other);
        assert_eq!(read.config().unwrap(), br#"{"name":"n"}"#);
        let owner = other.attachment().unwrap();
        node.cache.remove(&owner).unwrap();
        node.cache.remove(&owner).unwrap();
        assert!(!node.cache.has(&owner));
        assert_eq!(node.get().unwrap(), None);
    }

    #[test]
    fn a_bare_result_is_an_attachment_too() {
        let node = Node::empty();
        fs::write(node.file(), result().to_string()).unwrap();
        let read = node.get().unwrap().unwrap();
        assert_eq!(read.result_as("1.0.0").unwrap(), Some(result()));
        let contents = node.cache.of_network("n").unwrap();
        assert!(contents.attachments.is_empty());
        assert_eq!(node.owners("n"), [valid("c", "eth0")]);
        assert_eq!(contents.unidentified[0].fault, None);
    }

    #[test]
    fn links_and_pipes_in_the_place_of_files_are_not_read() {
        let node = Node::with_attachment();
        let (file, elsewhere) = (node.file(), node.dir.path().join("x"));
        let is_in_use_unread = || {
            assert!(node.get().is_err());
            assert!(node.cache.has(&attachment().attachment().unwrap()));
            assert_eq!(node.owners("n"), [valid("c", "eth0")]);
        };
        fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        is_in_use_unread();
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        is_in_use_unread();
    }

    #[test]
    fn only_attachments_of_the_network_are_listed() {
        let node = Node::with_attachment();
        node.cache.put(&of_network("n-c")).unwrap();
        let listed = node.cache.of_network("n").unwrap();
        assert_eq!(listed.attachments, [attachment()]);
        assert!(listed.unidentified.is_empty(), "{listed:?}");
    }

    #[test]
    fn an_unreadable_file_may_be_of_any_reading_of_its_name() {
        let node = Node::empty();
        let half = &serde_json::to_string(&attachment()).unwrap()[..40];
        let unknown_kind = r#"{"kind": "cniCacheV9"}"#;
        let unnamed = r#"{"kind": "cniCacheV1"}"#;
        let other_type = r#"{"kind": "cniCacheV1", "containerId": 1}"#;
        let texts = ["", "{", "null", "[]", half];
        for text in texts.into_iter().chain([unknown_kind, unnamed, other_type]) {
            fs::write(node.file(), text).unwrap();
            assert_eq!(node.owners("n"), [valid("c", "eth0")], "{text}");
            let listed = node.cache.of_network("n").unwrap();
            assert!(listed.attachments.is_empty() && listed.unidentified[0].fault.is_some());
            assert!(node.owners("c").is_empty());
        }
        fs::remove_file(node.file()).unwrap();
        fs::create_dir(node.cache.results.join("n-a-b-eth0-x")).unwrap();
        let all = [
            valid("a", "b-eth0-x"),
            valid("a-b", "eth0-x"),
            valid("a-b-eth0", "x"),
        ];
        assert_eq!(node.owners("n"), all);
        let all = [valid("b", "eth0-x"), valid("b-eth0", "x")];
        assert_eq!(node.owners("n-a"), all, "a network's name may have a -");
        assert!(node.owners("n-a-b-eth0").is_empty());
    }

    #[test]
    fn content_and_name_in_contradiction_are_both_in_use() {
        let node = Node::with_attachment();
        for name in ["n-d-eth0", "m-d-eth0"] {
            fs::copy(node.file(), node.cache.results.join(name)).unwrap();
        }
        let both = [valid("c", "eth0"), valid("d", "eth0"), valid("c", "eth0")];
        assert_eq!(node.owners("n"), both);
        assert_eq!(node.owners("m"), [valid("d", "eth0")]);
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_of_several_counts_as_in_go() {
        let node = Node::with_attachment();
        let text = fs::read_to_string(node.file()).unwrap();
        let text = text.replace(r#""containerId""#, r#""containerId":"x","CONTAINERID""#);
        fs::write(node.file(), text).unwrap();
        let listed = node.cache.of_network("n").unwrap().attachments;
        assert_eq!(listed, [attachment()]);
        assert_eq!(node.get().unwrap(), Some(attachment()));
    }

    #[test]
    fn the_newest_add_comes_last() {
        let node = Node::empty();
        for (id, age) in [("a", 1), ("b", 3), ("c", 2)] {
            let mut one = attachment();
            one.container_id = id.into();
            node.cache.put(&one).unwrap();
            let file = fs::File::open(node.cache.results.join(one.file_name())).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age))
                .unwrap();
        }
        let listed = node.cache.oldest_first().unwrap().attachments;
        let ids: Vec<_> = listed.iter().map(|it| it.container_id.as_str()).collect();
        assert_eq!(ids, ["b", "c", "a"]);
    }

    #[test]
    fn the_result_is_converted_to_the_version_of_the_list() {
        let old = attachment().result_as("0.3.1").unwrap().unwrap();
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["cniVersion"], "0.3.1");
        let mut layer2 = attachment();
        layer2.result = Some(json!({"cniVersion": "1.0.0"}));
        let error = format!("{:#}", layer2.result_as("0.2.0").unwrap_err());
        assert!(error.starts_with("failed to convert cached result to config version \"0.2.0\""));
    }
}
