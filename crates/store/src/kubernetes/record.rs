//! A key and its value as an object, which people can read: `kubectl get ipamrecords`.
//!
//! The parts of a key are fields, so that they can be columns; the resource is declared in
//! `deploy/kubernetes/ipam.yaml`.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::api::revision;
use crate::{Entry, Error, Revision};

/// Where the objects are.
pub(super) const RECORDS: &str = "/apis/podwire.dev/v1/ipamrecords";

/// How much of a key its object's name shows: a name has at most 253 characters.
const SHOWN: usize = 180;

/// An object as it is sent.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    pub metadata: Metadata,
    /// `None` in a bookmark.
    #[serde(default)]
    pub spec: Option<Spec>,
}

/// An answer with many objects.
#[derive(Debug, Deserialize)]
pub(super) struct Records {
    pub metadata: Metadata,
    pub items: Vec<Record>,
}

/// What is read of an object's metadata, or of a list's.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub name: String,
    pub resource_version: String,
    /// Of a list: where the next page begins.
    #[serde(rename = "continue")]
    pub next: String,
}

/// The key `PREFIX/KIND/POOL/ITEM`, or without a pool, and its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    prefix: String,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    item: String,
    value: Value,
    /// Another one with each write: the API does not count a write that changes nothing.
    #[serde(default)]
    stamp: String,
}

impl Spec {
    /// # Errors
    /// A key that does not begin with the prefix, or has no kind; a value that is not JSON.
    pub fn new(prefix: &str, key: &str, value: &[u8]) -> Result<Self, Error> {
        let refused = |why: &str| Error::Refused(format!("key {key}: {why}"));
        let rest = key.strip_prefix(prefix).and_then(|it| it.strip_prefix('/'));
        let rest = rest.ok_or_else(|| refused("not below the prefix"))?;
        let (kind, pool, item) = match rest.splitn(3, '/').collect::<Vec<_>>()[..] {
            [kind, pool, item] => (kind, Some(pool.to_owned()), item),
            [kind, item] => (kind, None, item),
            _ => return Err(refused("no kind")),
        };
        let value = serde_json::from_slice(value).map_err(|it| refused(&it.to_string()))?;
        Ok(Self {
            prefix: prefix.to_owned(),
            kind: kind.to_owned(),
            pool,
            item: item.to_owned(),
            value,
            stamp: token(),
        })
    }

    fn key(&self) -> String {
        let (prefix, kind, item) = (&self.prefix, &self.kind, &self.item);
        match &self.pool {
            Some(pool) => format!("{prefix}/{kind}/{pool}/{item}"),
            None => format!("{prefix}/{kind}/{item}"),
        }
    }

    /// The object for the API; with a revision it replaces the one that has it.
    pub fn object(&self, name: &str, replaced: Option<Revision>) -> Value {
        let mut metadata = json!({"name": name});
        if let Some(revision) = replaced {
            metadata["resourceVersion"] = revision.to_string().into();
        }
        json!({
            "apiVersion": "podwire.dev/v1",
            "kind": "IpamRecord",
            "metadata": metadata,
            "spec": self,
        })
    }
}

impl Record {
    /// The revision of the object, or of the bookmark.
    pub fn revision(&self) -> Result<Revision, Error> {
        revision(&self.metadata.resource_version)
    }

    /// The key and its value; `None` for an object that has no key with this prefix, or not the name that
    /// such a key has.
    pub fn entry(self, prefix: &str) -> Result<Option<Entry>, Error> {
        let revision = self.revision()?;
        let Some(spec) = self.spec.filter(|it| it.prefix == prefix) else {
            return Ok(None);
        };
        let key = spec.key();
        if object_name(prefix, &key) != self.metadata.name {
            return Ok(None);
        }
        Ok(Some(Entry {
            key,
            value: spec.value.to_string().into_bytes(),
            revision,
            lease: None,
        }))
    }
}

/// The name of a key's object: what people recognise, and 128 bits of a digest, so that no two keys have
/// the same one. DNS-1123: lower-case letters, digits, `-` and `.`.
pub(super) fn object_name(prefix: &str, key: &str) -> String {
    let shown = key.strip_prefix(prefix).unwrap_or(key);
    let plain = |it: char| match it.to_ascii_lowercase() {
        it if it.is_ascii_alphanumeric() => it,
        _ => '-',
    };
    let shown: String = shown.chars().map(plain).take(SHOWN).collect();
    let digest = Sha256::digest(key.as_bytes());
    let digest: String = digest[..16].iter().map(|it| format!("{it:02x}")).collect();
    match shown.trim_matches('-') {
        "" => digest,
        shown => format!("{shown}.{digest}"),
    }
}

/// A text that no other call returns.
pub(super) fn token() -> String {
    // Its keys are random, and others with each call.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_its_object_says() {
        for key in [
            "/p/nodes/one",
            "/p/blocks/web/10.0.0.0-26",
            "/p/names/web/0/default/db-0",
        ] {
            let spec = Spec::new("/p", key, br#"{"node":"a"}"#).unwrap();
            let name = object_name("/p", key);
            let mut object = spec.object(&name, None);
            object["metadata"]["resourceVersion"] = "7".into();
            let record: Record = serde_json::from_value(object.clone()).unwrap();
            let entry = record.entry("/p").unwrap().unwrap();
            assert_eq!((entry.key.as_str(), entry.revision), (key, 7));
            assert_eq!(entry.value, br#"{"node":"a"}"#);
            let other: Record = serde_json::from_value(object.clone()).unwrap();
            assert_eq!(other.entry("/q").unwrap(), None);
            object["metadata"]["name"] = "other".into();
            let other: Record = serde_json::from_value(object).unwrap();
            assert_eq!(other.entry("/p").unwrap(), None);
        }
        assert!(Spec::new("/p", "/q/nodes/one", b"1").is_err());
        assert!(Spec::new("/p", "/p/nodes", b"1").is_err());
        assert!(Spec::new("/p", "/p/nodes/one", b"{").is_err());
    }

    #[test]
    fn names_are_those_of_objects_and_differ() {
        let long = format!("/p/names/web/0/{}", "a-".repeat(200));
        let keys = [
            "/p/nodes/One",
            "/p/nodes/one",
            "/p/nodes/one-",
            "/p/",
            "/p/blocks/web/fd00::-122",
            &long,
        ];
        let names: Vec<_> = keys.iter().map(|it| object_name("/p", it)).collect();
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name}");
            assert!(name.len() <= 253, "{name}");
            let is_label = |it: &str| {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                !it.is_empty() && it.chars().all(plain) && it.trim_matches('-') == it
            };
            assert!(name.split('.').all(is_label), "{name}");
        }
        assert!(names[1].starts_with("nodes-one."));
    }

    #[test]
    fn each_write_has_another_stamp() {
        let spec = || Spec::new("/p", "/p/nodes/one", b"1").unwrap();
        assert_ne!(spec(), spec());
    }
}
