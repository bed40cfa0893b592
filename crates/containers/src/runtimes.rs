//! Finds a container by what the user calls it.
//!
//! | container of | is found by | in |
//! |---|---|---|
//! | `podwire run` | name, id, prefix of the id | /run/podwire/run |
//! | any runtime with libcni | `CNI_CONTAINERID`, also without containerd's namespace before it; a prefix | the cache of attachments |
//! | podman; a pod of the kubelet | `K8S_POD_NAME`, or `K8S_POD_NAMESPACE/K8S_POD_NAME` | the cache (`cniArgs`) |
//! | nerdctl | name | /var/lib/nerdctl/*/names |
//! | containerd's CRI | id of a container in a pod; a prefix | /run/containerd/io.containerd.runtime.v2.task (annotation `io.kubernetes.cri.sandbox-id`) |
//! | CRI-O | the same | /run/containers/storage/*-containers (annotation `io.kubernetes.cri-o.SandboxID`, pkg/annotations of CRI-O) |
//! | none | path of a network namespace | the path |
//!
//! A name wins over a prefix.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use cni::file::{self, LONGEST};
use netns::NetNs;
use networks::{Cache, CachedAttachment};
use serde_json::Value;

use crate::place::{self, Record};

const NERDCTL: &str = "/var/lib/nerdctl";
const CONTAINERD: &str = "/run/containerd/io.containerd.runtime.v2.task";
/// Podman's containers are there, too; they have no such annotation.
const CRIO: &str = "/run/containers/storage";

/// A container that can be attached.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// `CNI_CONTAINERID` of its attachments.
    pub id: String,
    /// Its name, if it has one.
    pub name: String,
    /// The path of its network namespace.
    pub netns: String,
    /// Its attachments in the cache.
    pub attachments: Vec<CachedAttachment>,
    /// What is recorded, if `podwire run` has started it.
    pub record: Option<Record>,
}

impl Container {
    /// Finds a container; `derived_id` gives one to a namespace that nothing is attached to.
    ///
    /// # Errors
    /// There is none, or more than one; the cache cannot be read.
    pub fn find(word: &str, cache: &Cache, derived_id: impl Fn(&str) -> String) -> Result<Self> {
        if let Some(record) = place::find(word)? {
            return Ok(Self {
                id: record.id.clone(),
                name: record.name.clone(),
                netns: record.netns.clone(),
                attachments: cache.of_container(&record.id)?,
                record: Some(record),
            });
        }
        let attachments = cache.oldest_first()?.attachments;
        if word.starts_with('/') {
            return at_path(word, attachments, derived_id);
        }
        let known = Known::of(attachments);
        let id = known.id_of(word)?;
        Ok(known.container(&id))
    }

    /// Its name, or its id if it has none.
    pub fn shown(&self) -> &str {
        match self.name.as_str() {
            "" => &self.id,
            name => name,
        }
    }

    /// Fails unless the container's namespace is there, and is the one that was attached.
    ///
    /// # Errors
    /// It is gone.
    pub fn must_run(&self) -> Result<()> {
        let shown = self.shown();
        match NetNs::open(Path::new(&self.netns)) {
            Ok(netns) if self.is_attached_to(&netns)? => Ok(()),
            Ok(_) => bail!("Container {shown} is not running: its network namespace is gone"),
            Err(error) => bail!("Container {shown} is not running: {error}"),
        }
    }

    /// Whether the namespace has an interface of the cache. `/proc/PID/ns/net` may be another
    /// process's by now.
    fn is_attached_to(&self, netns: &NetNs) -> Result<bool> {
        if !self.netns.starts_with("/proc/") || self.attachments.is_empty() {
            return Ok(true);
        }
        let names: Vec<_> = self
            .attachments
            .iter()
            .map(|it| it.ifname.clone())
            .collect();
        let exists = |name: &String| nix::net::if_::if_nametoindex(name.as_str()).is_ok();
        netns.enter(|| names.iter().any(exists))
    }
}

fn at_path(
    path: &str,
    mut attachments: Vec<CachedAttachment>,
    derived_id: impl Fn(&str) -> String,
) -> Result<Container> {
    NetNs::open(Path::new(path))?;
    let derived = derived_id(path);
    let mut there = attachments
        .iter()
        .filter(|it| it.netns_path().as_deref() == Some(path));
    // One that the user has named so, or podwire; otherwise that of the runtime.
    let id = match there.clone().find(|it| it.container_id == derived) {
        Some(_) => derived,
        None => there.next().map_or(derived, |it| it.container_id.clone()),
    };
    attachments.retain(|it| it.container_id == id);
    Ok(Container {
        name: attachments.iter().find_map(pod_name).unwrap_or_default(),
        netns: path.to_owned(),
        attachments,
        id,
        record: None,
    })
}

/// The containers of the cache, by their ids.
struct Known(BTreeMap<String, Vec<CachedAttachment>>);

impl Known {
    fn of(attachments: Vec<CachedAttachment>) -> Self {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for attachment in attachments {
            let of_one = all.entry(attachment.container_id.clone()).or_default();
            of_one.push(attachment);
        }
        Self(all)
    }

    fn container(&self, id: &str) -> Container {
        let attachments = self.0.get(id).cloned().unwrap_or_default();
        Container {
            id: id.to_owned(),
            name: attachments.iter().find_map(pod_name).unwrap_or_default(),
            netns: attachments
                .iter()
                .find_map(CachedAttachment::netns_path)
                .unwrap_or_default(),
            attachments,
            record: None,
        }
    }

    fn id_of(&self, word: &str) -> Result<String> {
        if word.is_empty() {
            bail!("invalid container name or ID: value is empty");
        }
        let ids = self.0.keys();
        let exact = ids
            .clone()
            .filter(|it| *it == word || without_namespace(it) == word);
        let named = self
            .0
            .iter()
            .filter(|(_, its)| its.iter().any(|it| is_named(it, word)));
        let named = named.map(|(id, _)| id);
        let kept = names_of_nerdctl(word)
            .into_iter()
            .chain(pods_of_containerd(word))
            .chain(pods_of_crio(word));
        let kept: Vec<_> = kept.filter(|it| self.0.contains_key(it)).collect();
        let prefixed =
            ids.filter(|it| it.starts_with(word) || without_namespace(it).starts_with(word));
        let steps: [Vec<&String>; 4] = [
            exact.collect(),
            named.collect(),
            kept.iter().collect(),
            prefixed.collect(),
        ];
        for mut found in steps {
            found.dedup();
            match found[..] {
                [] => {}
                [id] => return Ok(id.clone()),
                [first, second, ..] => bail!(
                    "Multiple containers found with name or prefix {word}: {first}, {second}; name \
                     the id, or NAMESPACE/NAME of the pod"
                ),
            }
        }
        bail!("No such container: {word}")
    }
}

/// containerd's clients put their namespace before the id: `default-web`.
fn without_namespace(id: &str) -> &str {
    id.split_once('-').map_or(id, |(_, id)| id)
}

fn arg<'a>(attachment: &'a CachedAttachment, name: &str) -> Option<&'a str> {
    let mut args = attachment.cni_args.iter().flatten();
    args.find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

/// The name of the container or pod in the arguments of an attachment.
fn pod_name(attachment: &CachedAttachment) -> Option<String> {
    arg(attachment, "K8S_POD_NAME").map(str::to_owned)
}

fn is_named(attachment: &CachedAttachment, word: &str) -> bool {
    let Some(name) = arg(attachment, "K8S_POD_NAME") else {
        return false;
    };
    let namespace = arg(attachment, "K8S_POD_NAMESPACE").unwrap_or_default();
    name == word || word.split_once('/') == Some((namespace, name))
}

/// The ids of the containers that nerdctl calls `name`: files `names/NAMESPACE/NAME` with the id.
fn names_of_nerdctl(name: &str) -> Vec<String> {
    if name.contains('/') || name == ".." {
        return Vec::new();
    }
    let dirs = children(Path::new(NERDCTL)).into_iter();
    let namespaces = dirs.flat_map(|it| children(&it.join("names")));
    let id = |namespace: PathBuf| {
        let (text, _) = file::read(&namespace.join(name), LONGEST).ok()?;
        let namespace = namespace.file_name()?.to_str()?.to_owned();
        Some(format!(
            "{namespace}-{}",
            String::from_utf8(text).ok()?.trim()
        ))
    };
    namespaces.filter_map(id).collect()
}

/// The pods of containerd that have a container whose id begins with `word`.
fn pods_of_containerd(word: &str) -> Vec<String> {
    let namespaces = children(Path::new(CONTAINERD)).into_iter();
    let bundles = namespaces.flat_map(|it| children(&it));
    pods_of(bundles, word, "io.kubernetes.cri.sandbox-id")
}

/// The same of CRI-O. The name of the directory has that of the storage driver before it.
fn pods_of_crio(word: &str) -> Vec<String> {
    let dirs = children(Path::new(CRIO)).into_iter();
    let dirs = dirs.filter(|it| it.to_string_lossy().ends_with("-containers"));
    let containers = dirs.flat_map(|it| children(&it));
    pods_of(containers, word, "io.kubernetes.cri-o.SandboxID")
}

/// The pods of the containers in these directories, as `annotation` in the container's
/// configuration (OCI) says. The directory has the id of the container.
fn pods_of(containers: impl Iterator<Item = PathBuf>, word: &str, annotation: &str) -> Vec<String> {
    let fits = |dir: &PathBuf| {
        let id = dir.file_name().and_then(|it| it.to_str());
        id.is_some_and(|it| it.starts_with(word))
    };
    let pod = |dir: PathBuf| {
        let read = |file| file::read(&dir.join(file), LONGEST).ok();
        let (text, _) = read("config.json").or_else(|| read("userdata/config.json"))?;
        let spec: Value = serde_json::from_slice(&text).ok()?;
        Some(spec["annotations"][annotation].as_str()?.to_owned())
    };
    containers.filter(fits).filter_map(pod).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|it| it.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use networks::Attachment;

    fn cached(id: &str, args: &[(&str, &str)]) -> CachedAttachment {
        let attachment = Attachment {
            owner: cni::Attachment::parse("n", id, "eth0").unwrap(),
            netns: format!("/run/netns/{id}"),
            args: Some(
                args.iter()
                    .map(|(k, v)| ((*k).into(), (*v).into()))
                    .collect(),
            ),
            capability_args: None,
        };
        CachedAttachment::planned(&attachment, b"{}")
    }

    fn known() -> Known {
        let web = [("K8S_POD_NAME", "web"), ("K8S_POD_NAMESPACE", "one")];
        let other = [("K8S_POD_NAME", "web"), ("K8S_POD_NAMESPACE", "two")];
        Known::of(vec![
            cached("aaaa1111", &web),
            cached("aaaa2222", &other),
            cached("default-job", &[]),
            cached("bbbb", &[("K8S_POD_NAME", "aaaa")]),
        ])
    }

    #[test]
    fn a_container_is_found_by_id_name_and_prefix_in_this_order() {
        for (word, id) in [
            ("aaaa1111", "aaaa1111"),
            ("one/web", "aaaa1111"),
            ("two/web", "aaaa2222"),
            ("default-job", "default-job"),
            ("job", "default-job"),
            ("jo", "default-job"),
            ("aaaa2", "aaaa2222"),
            // The name wins over the prefix.
            ("aaaa", "bbbb"),
        ] {
            assert_eq!(known().id_of(word).unwrap(), id, "{word}");
        }
        assert_eq!(known().container("bbbb").name, "aaaa");
        assert_eq!(known().container("bbbb").netns, "/run/netns/bbbb");
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_an_error() {
        for (word, expected) in [
            ("nope", "No such container: nope"),
            ("three/web", "No such container: three/web"),
            ("web", "Multiple containers found with name or prefix web"),
            ("aaa", "Multiple containers found with name or prefix aaa"),
            ("", "invalid container name or ID: value is empty"),
        ] {
            let error = known().id_of(word).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{word}: {error}");
        }
    }
}
