//! What libcni remembers of each attachment, in its place and in its form, so
//! that podwire and every program on libcni delete what the other has added.
//!
//! Source: `cachedInfo` in `libcni/api.go`.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cni::AddResult;
use cni::json::Json;
use cni::version::Version;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

const KIND: &str = "cniCacheV1";

/// The directory of all attachments on this node.
#[derive(Clone, Debug)]
pub struct Cache {
    results: PathBuf,
}

/// One attachment as it is on disk; the order of the members is libcni's.
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
    /// Everything that the runtime offered as `runtimeConfig`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability_args: Option<Map<String, Value>>,
    /// What the last plugin of the chain answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

/// Which attachment: the three parts of a file's name.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The container.
    pub container_id: &'a str,
    /// The interface in the container.
    pub ifname: &'a str,
}

impl CachedAttachment {
    /// An attachment that `config` describes.
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
    /// The cache under `dir`, which is /var/lib/cni everywhere but in tests.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            results: dir.join("results"),
        }
    }

    /// Writes an attachment down. A reader sees all of it or nothing, also
    /// after a crash: libcni writes in place, and half a file is a DEL without
    /// `prevResult`.
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

    /// What is known of an attachment; `None` when nothing is. A file from
    /// before `cniCacheV1` is a bare result.
    pub fn get(&self, key: Key<'_>) -> Result<Option<CachedAttachment>> {
        let file = self.file(key);
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let document: Value =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
        if document.get("kind").and_then(Value::as_str) != Some(KIND) {
            return Ok(Some(legacy(key, document)));
        }
        let attachment = serde_json::from_value(document)
            .with_context(|| format!("parse {}", file.display()))?;
        Ok(Some(attachment))
    }

    /// Whether anything is remembered of an attachment, readable or not.
    pub fn has(&self, key: Key<'_>) -> bool {
        self.file(key).exists()
    }

    /// Forgets an attachment; one that is not there is forgotten.
    pub fn remove(&self, key: Key<'_>) -> Result<()> {
        let file = self.file(key);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    /// All attachments to `network`, in the order of their files' names. What
    /// is no attachment is passed over, and so are files from before
    /// `cniCacheV1`, which do not say whose they are: as in libcni.
    pub fn of_network(&self, network: &str) -> Result<Vec<CachedAttachment>> {
        let files = self.files()?;
        let attachments = files.iter().filter_map(|file| read(file));
        Ok(attachments
            .filter(|it| it.network_name == network)
            .collect())
    }

    /// The same of all networks, the oldest ADD first.
    pub fn oldest_first(&self) -> Result<Vec<CachedAttachment>> {
        let mut files = self.files()?;
        files.sort_by_cached_key(|file| fs::metadata(file).and_then(|it| it.modified()).ok());
        Ok(files.iter().filter_map(|file| read(file)).collect())
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
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        Ok(files)
    }

    fn file(&self, key: Key<'_>) -> PathBuf {
        let Key {
            network,
            container_id,
            ifname,
        } = key;
        self.results
            .join(format!("{network}-{container_id}-{ifname}"))
    }
}

impl CachedAttachment {
    /// Which attachment it is.
    pub fn key(&self) -> Key<'_> {
        Key {
            network: &self.network_name,
            container_id: &self.container_id,
            ifname: &self.ifname,
        }
    }

    /// The result as a plugin gets it that is spoken to in `version`. An error
    /// when it is none, or cannot be said in that version.
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

/// The attachment in a file, if there is one.
fn read(file: &Path) -> Option<CachedAttachment> {
    let attachment: CachedAttachment = serde_json::from_slice(&read_file(file).ok()?).ok()?;
    let usable = attachment.kind == KIND && !attachment.ifname.is_empty();
    usable.then_some(attachment)
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

/// A file that somebody put there as such: a link would have us read another, and
/// to open a pipe would wait for who writes to it.
fn read_file(file: &Path) -> std::io::Result<Vec<u8>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(file)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
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
        assert!(cache.of_network("n").unwrap().is_empty());
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
        assert!(cache.of_network("n").unwrap().is_empty());
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(cache.get(KEY).is_err());
        assert!(cache.of_network("n").unwrap().is_empty());
    }

    #[test]
    fn only_attachments_of_the_network_are_listed() {
        let dir = tempfile::TempDir::new().unwrap();
        let cache = Cache::in_dir(dir.path());
        assert!(cache.of_network("n").unwrap().is_empty());
        cache.put(&attachment()).unwrap();
        let mut other = attachment();
        other.network_name = "n-c".into();
        cache.put(&other).unwrap();
        fs::write(dir.path().join("results/n-x-eth0"), "{").unwrap();
        let listed = cache.of_network("n").unwrap();
        assert_eq!(listed, [attachment()]);
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
        let listed = cache.oldest_first().unwrap();
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
