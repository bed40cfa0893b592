//! libcni's cache of attachments, in its place and format, so that podwire and every
//! program with libcni can delete each other's attachments.
//!
//! Source: `cachedInfo` in `libcni/api.go`.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cni::AddResult;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};
use cni::file::LONGEST;
use cni::json::Json;
use cni::version::Version;
use packet_filter::PortOwner;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

/// The three parts of a file's name.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The container.
    pub container_id: &'a str,
    /// The interface in the container.
    pub ifname: &'a str,
}

impl Key<'_> {
    fn file_name(self) -> String {
        format!("{}-{}-{}", self.network, self.container_id, self.ifname)
    }
}

impl CachedAttachment {
    /// A new attachment with the configuration `config`.
    pub fn new(key: Key<'_>, config: &[u8], result: Value) -> Self {
        Self {
            kind: KIND.into(),
            container_id: key.container_id.into(),
            config: Some(BASE64_STANDARD.encode(config)),
            ifname: key.ifname.into(),
            network_name: key.network.into(),
            result: Some(result),
            ..Self::default()
        }
    }

    /// The network's configuration at the time of the ADD.
    pub fn config(&self) -> Result<Vec<u8>> {
        let config = self.config.as_deref().unwrap_or_default();
        BASE64_STANDARD
            .decode(config)
            .context("decode the cached configuration")
    }
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
    pub fn put(&self, attachment: &CachedAttachment) -> Result<()> {
        let file = self.file(attachment.key());
        let document = serde_json::to_vec(attachment)?;
        let what = || format!("write {}", file.display());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.results)
            .with_context(|| format!("create {}", self.results.display()))?;
        // A NamedTempFile is readable by its owner only: 0600, as libcni's.
        let mut temporary = tempfile::NamedTempFile::new_in(&self.results).with_context(what)?;
        temporary.write_all(&document).with_context(what)?;
        temporary.as_file().sync_all().with_context(what)?;
        temporary.persist(&file).with_context(what)?;
        Ok(())
    }

    /// Reads an attachment; `None` without a file. A file from before `cniCacheV1` has only
    /// the result.
    pub fn get(&self, key: Key<'_>) -> Result<Option<CachedAttachment>> {
        let file = self.file(key);
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let what = || format!("parse {}", file.display());
        let document = Json::parse(&text).with_context(what)?;
        match document.get("kind") {
            Some(Json::String(kind)) if kind == KIND => {
                let attachment = document.decode().with_context(what)?;
                Ok(Some(attachment))
            }
            _ => {
                let result = serde_json::from_slice(&text).with_context(what)?;
                Ok(Some(legacy(key, result)))
            }
        }
    }

    /// Whether there is a file, readable or not.
    pub fn has(&self, key: Key<'_>) -> bool {
        fs::symlink_metadata(self.file(key)).is_ok()
    }

    /// Removes an attachment; without a file, it succeeds.
    pub fn remove(&self, key: Key<'_>) -> Result<()> {
        let file = self.file(key);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// The attachments to `network` in the order of the files' names, and the files that may
    /// be of this network.
    pub fn of_network(&self, network: &str) -> Result<Contents> {
        let mut contents = read_all(&self.files()?);
        contents.keep_network(network);
        Ok(contents)
    }

    /// The same for all networks, the oldest ADD first.
    pub fn oldest_first(&self) -> Result<Contents> {
        let mut files = self.files()?;
        files.sort_by_cached_key(|file| {
            fs::symlink_metadata(file).and_then(|it| it.modified()).ok()
        });
        Ok(read_all(&files))
    }

    /// All files, in the order of their names.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.results) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", self.results.display()));
            }
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut files = paths
            .collect::<std::io::Result<Vec<_>>>()
            .with_context(|| format!("read {}", self.results.display()))?;
        files.sort();
        Ok(files)
    }

    fn file(&self, key: Key<'_>) -> PathBuf {
        self.results.join(key.file_name())
    }
}

impl CachedAttachment {
    /// The parts of its file's name.
    pub fn key(&self) -> Key<'_> {
        Key {
            network: &self.network_name,
            container_id: &self.container_id,
            ifname: &self.ifname,
        }
    }

    /// The attachment in the form of GC's list.
    pub fn owner(&self) -> ValidAttachment {
        ValidAttachment {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    /// The attachment with checked names; an error when the file has invalid ones.
    pub fn attachment(&self) -> Result<cni::Attachment> {
        Ok(cni::Attachment {
            network: self.network_name.clone(),
            container_id: ContainerId::parse(&self.container_id)?,
            ifname: IfName::parse(&self.ifname)?,
        })
    }

    /// The addresses in the result; none if it cannot be read.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let result = self
            .result
            .as_ref()
            .and_then(|it| Json::deserialize(it).ok());
        let result = result.and_then(|it| AddResult::decode_any(&it, Version::V0_1_0).ok());
        let ips = result.map(|it| it.ips).unwrap_or_default();
        ips.iter().map(|it| it.address.0.ip()).collect()
    }

    /// `network/container/interface`, for messages.
    pub fn label(&self) -> String {
        let (network, id, ifname) = (&self.network_name, &self.container_id, &self.ifname);
        format!("{network}/{id}/{ifname}")
    }

    /// The result in `version`, for a plugin. An error when it is not a result, or cannot be
    /// expressed in that version.
    pub fn result_as(&self, version: &str) -> Result<Option<Value>> {
        let Some(result) = &self.result else {
            return Ok(None);
        };
        let document = Json::deserialize(result)?;
        let fallback = Version::V0_1_0;
        let decoded = AddResult::decode_any(&document, fallback).context("parse the result")?;
        let stamp = document.get("cniVersion");
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
    /// The attachments to `network`, with all that an unidentified file may be of.
    pub fn in_use(&self, network: &str) -> Vec<ValidAttachment> {
        let known = self.attachments.iter();
        let known = known.filter(|it| it.network_name == network);
        let possible = self
            .unidentified
            .iter()
            .flat_map(|it| it.possible_owners(network));
        known.map(CachedAttachment::owner).chain(possible).collect()
    }

    fn keep_network(&mut self, network: &str) {
        self.attachments.retain(|it| it.network_name == network);
        self.unidentified
            .retain(|it| !it.possible_owners(network).is_empty());
    }
}

impl Unidentified {
    /// Whether it may be the file of an owner of published ports.
    pub fn may_be(&self, owner: &PortOwner) -> bool {
        match owner.attachment() {
            None => true,
            Some(it) => self.possible_owners(&it.network).iter().any(|of| {
                of.container_id == it.container_id.as_str() && of.ifname == it.ifname.as_str()
            }),
        }
    }

    /// The attachments to `network` that the file may be of. Its name
    /// `NETWORK-CONTAINER-INTERFACE` is ambiguous where a part has a `-`: all readings count.
    pub fn possible_owners(&self, network: &str) -> Vec<ValidAttachment> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let rest = name
            .and_then(|name| name.strip_prefix(network))
            .and_then(|name| name.strip_prefix('-'));
        let mut owners: Vec<_> = rest.map(readings).unwrap_or_default();
        let named = self.named.iter().filter(|it| it.network_name == network);
        owners.extend(named.map(CachedAttachment::owner));
        owners
    }
}

/// All readings of `CONTAINER-INTERFACE`.
fn readings(text: &str) -> Vec<ValidAttachment> {
    let splits = text
        .match_indices('-')
        .map(|(at, _)| (&text[..at], &text[at + 1..]));
    let possible = splits
        .filter(|(id, ifname)| ContainerId::parse(id).is_ok() && IfName::parse(ifname).is_ok());
    possible
        .map(|(id, ifname)| ValidAttachment {
            container_id: id.into(),
            ifname: ifname.into(),
        })
        .collect()
}

fn read_all(files: &[PathBuf]) -> Contents {
    let mut contents = Contents::default();
    for file in files {
        match read(file) {
            Ok(attachment) => contents.attachments.push(attachment),
            Err(unclear) => contents.unidentified.push(*unclear),
        }
    }
    contents
}

/// The attachment in a file, whose name must match.
fn read(file: &Path) -> Result<CachedAttachment, Box<Unidentified>> {
    let unclear = |fault: Option<String>, named| {
        Box::new(Unidentified {
            path: file.to_owned(),
            fault,
            named,
        })
    };
    let fault = |fault: String| unclear(Some(fault), None);
    let text = read_file(file).map_err(|error| fault(cni::reason(&error)))?;
    let document = Json::parse(&text).map_err(|error| fault(format!("not JSON: {error}")))?;
    if !matches!(document, Json::Object(_)) {
        return Err(fault("not an attachment".into()));
    }
    match document.get("kind") {
        Some(Json::String(kind)) if kind == KIND => {}
        // A bare result.
        None => return Err(unclear(None, None)),
        Some(_) => return Err(fault("of an unknown kind".into())),
    }
    let attachment: CachedAttachment = document
        .decode()
        .map_err(|error| fault(error.to_string()))?;
    if file.file_name() != Some(attachment.key().file_name().as_ref()) {
        let label = attachment.label();
        let contradiction = format!("its content is of {label}, its name is not");
        return Err(unclear(Some(contradiction), Some(attachment)));
    }
    Ok(attachment)
}

fn legacy(key: Key<'_>, result: Value) -> CachedAttachment {
    CachedAttachment {
        container_id: key.container_id.into(),
        ifname: key.ifname.into(),
        network_name: key.network.into(),
        result: Some(result),
        ..CachedAttachment::default()
    }
}

/// Reads a regular file, as libcni writes them, and nothing else.
fn read_file(file: &Path) -> std::io::Result<Vec<u8>> {
    let (content, _) = cni::file::read(file, LONGEST)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    const KEY: Key<'_> = Key {
        network: "n",
        container_id: "c",
        ifname: "eth0",
    };

    fn result() -> Value {
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]})
    }

    fn attachment() -> CachedAttachment {
        CachedAttachment {
            netns: "/run/netns/a".into(),
            cni_args: Some(vec![("K".into(), "V".into())]),
            capability_args: Some(Map::from_iter([("mac".to_owned(), json!("02::"))])),
            ..CachedAttachment::new(KEY, br#"{"name":"n"}"#, result())
        }
    }

    #[test]
    fn a_file_has_the_form_and_the_mode_of_libcnis() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        cache.put(&attachment()).unwrap();
        let file = dir.path().join("results/n-c-eth0");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            r#"{"kind":"cniCacheV1","containerId":"c","config":"eyJuYW1lIjoibiJ9","ifName":"eth0","networkName":"n","netns":"/run/netns/a","cniArgs":[["K","V"]],"capabilityArgs":{"mac":"02::"},"result":{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}}"#
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(file.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_written_is_read_again_and_replaced() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        assert_eq!(cache.get(KEY).unwrap(), None);
        cache.put(&attachment()).unwrap();
        let mut other = attachment();
        other.netns = "/run/netns/b".into();
        cache.put(&other).unwrap();
        let read = cache.get(KEY).unwrap().unwrap();
        assert_eq!(read, other);
        assert_eq!(read.config().unwrap(), br#"{"name":"n"}"#);
        cache.remove(KEY).unwrap();
        cache.remove(KEY).unwrap();
        assert!(!cache.has(KEY));
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let bare = CachedAttachment::new(KEY, b"{}", result());
        let text = serde_json::to_string(&bare).unwrap();
        assert!(!text.contains("netns") && !text.contains("Args"), "{text}");
    }

    #[test]
    fn a_bare_result_is_an_attachment_too() {
        let dir = tempfile::TempDir::new().unwrap();
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        fs::write(results.join("n-c-eth0"), result().to_string()).unwrap();
        let cache = Cache::in_dir(dir.path());
        let read = cache.get(KEY).unwrap().unwrap();
        assert_eq!(read.result_as("1.0.0").unwrap(), Some(result()));
        let contents = cache.of_network("n").unwrap();
        assert!(contents.attachments.is_empty());
        assert_eq!(
            contents.unidentified[0].possible_owners("n"),
            [owner("c", "eth0")]
        );
        assert_eq!(contents.unidentified[0].fault, None);
    }

    #[test]
    fn links_and_pipes_in_the_place_of_files_are_not_read() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        cache.put(&attachment()).unwrap();
        let (file, elsewhere) = (dir.path().join("results/n-c-eth0"), dir.path().join("x"));
        fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(cache.get(KEY).is_err());
        assert!(cache.has(KEY));
        assert_eq!(owners(&cache, "n"), [owner("c", "eth0")]);
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(cache.get(KEY).is_err());
        assert!(cache.has(KEY));
        assert_eq!(owners(&cache, "n"), [owner("c", "eth0")]);
    }

    #[test]
    fn only_attachments_of_the_network_are_listed() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        assert!(cache.of_network("n").unwrap().attachments.is_empty());
        cache.put(&attachment()).unwrap();
        let mut other = attachment();
        other.network_name = "n-c".into();
        cache.put(&other).unwrap();
        let listed = cache.of_network("n").unwrap();
        assert_eq!(listed.attachments, [attachment()]);
        assert!(listed.unidentified.is_empty(), "{listed:?}");
    }

    fn owner(id: &str, ifname: &str) -> ValidAttachment {
        ValidAttachment {
            container_id: id.into(),
            ifname: ifname.into(),
        }
    }

    /// The possible owners of unidentified files.
    fn owners(cache: &Cache, network: &str) -> Vec<ValidAttachment> {
        let unclear = cache.of_network(network).unwrap().unidentified;
        let owners = unclear.iter().flat_map(|it| it.possible_owners(network));
        owners.collect()
    }

    #[test]
    fn an_unreadable_file_may_be_of_any_reading_of_its_name() {
        let dir = tempfile::TempDir::new().unwrap();
        let results = dir.path().join("results");
        fs::create_dir(&results).unwrap();
        let cache = Cache::in_dir(dir.path());
        let half = &serde_json::to_string(&attachment()).unwrap()[..40];
        let unknown_kind = r#"{"kind": "cniCacheV9"}"#;
        let unnamed = r#"{"kind": "cniCacheV1"}"#;
        let other_type = r#"{"kind": "cniCacheV1", "containerId": 1}"#;
        for text in [
            "",
            "{",
            "null",
            "[]",
            half,
            unknown_kind,
            unnamed,
            other_type,
        ] {
            fs::write(results.join("n-c-eth0"), text).unwrap();
            assert_eq!(owners(&cache, "n"), [owner("c", "eth0")], "{text}");
            let listed = cache.of_network("n").unwrap();
            assert!(listed.attachments.is_empty() && listed.unidentified[0].fault.is_some());
            assert!(cache.of_network("c").unwrap().unidentified.is_empty());
        }
        fs::remove_file(results.join("n-c-eth0")).unwrap();
        fs::create_dir(results.join("n-a-b-eth0-x")).unwrap();
        let all = [
            owner("a", "b-eth0-x"),
            owner("a-b", "eth0-x"),
            owner("a-b-eth0", "x"),
        ];
        assert_eq!(owners(&cache, "n"), all);
        let all = [owner("b", "eth0-x"), owner("b-eth0", "x")];
        assert_eq!(owners(&cache, "n-a"), all, "a network's name may have a -");
        assert!(owners(&cache, "n-a-b-eth0").is_empty());
    }

    #[test]
    fn content_and_name_in_contradiction_are_both_in_use() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        cache.put(&attachment()).unwrap();
        let results = dir.path().join("results");
        fs::copy(results.join("n-c-eth0"), results.join("n-d-eth0")).unwrap();
        fs::copy(results.join("n-c-eth0"), results.join("m-d-eth0")).unwrap();
        let both = [owner("c", "eth0"), owner("d", "eth0"), owner("c", "eth0")];
        assert_eq!(owners(&cache, "n"), both);
        assert_eq!(owners(&cache, "m"), [owner("d", "eth0")]);
    }

    #[test]
    fn keys_match_in_any_case_and_the_last_of_several_counts_as_in_go() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        cache.put(&attachment()).unwrap();
        let file = dir.path().join("results/n-c-eth0");
        let text = fs::read_to_string(&file).unwrap();
        let text = text.replace(r#""containerId""#, r#""containerId":"x","CONTAINERID""#);
        fs::write(&file, text).unwrap();
        assert_eq!(cache.of_network("n").unwrap().attachments, [attachment()]);
        assert_eq!(cache.get(KEY).unwrap(), Some(attachment()));
    }

    #[test]
    fn the_newest_add_comes_last() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        for (id, age) in [("a", 1), ("b", 3), ("c", 2)] {
            let mut one = attachment();
            one.container_id = id.into();
            cache.put(&one).unwrap();
            let file = fs::File::open(cache.file(one.key())).unwrap();
            let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            file.set_modified(then).unwrap();
        }
        let listed = cache.oldest_first().unwrap().attachments;
        let ids: Vec<_> = listed.iter().map(|it| it.container_id.as_str()).collect();
        assert_eq!(ids, ["b", "c", "a"]);
    }

    #[test]
    fn the_result_is_converted_to_the_version_of_the_list() {
        let cached = CachedAttachment::new(KEY, b"{}", result());
        let old = cached.result_as("0.3.1").unwrap().unwrap();
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["cniVersion"], "0.3.1");
        let layer2 = CachedAttachment::new(KEY, b"{}", json!({"cniVersion": "1.0.0"}));
        let error = format!("{:#}", layer2.result_as("0.2.0").unwrap_err());
        assert!(error.starts_with("failed to convert cached result to config version \"0.2.0\""));
    }
}
