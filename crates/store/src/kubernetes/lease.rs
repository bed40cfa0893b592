//! A node's sign of life: an object of coordination.k8s.io, which is rewritten in time. There is no
//! watch on these objects: each node reads one other.
//!
//! The server does not end a lease. Another node does: one that has seen it without a change for as
//! long as it lasts deletes it, if it is still as it was seen. From then on it cannot be renewed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Revision;

/// Counts renewals, so that each changes the object.
const RENEWALS: &str = "podwire.dev/renewals";
/// The revision of the node's key: it has been there since, if this object has.
const KEY: &str = "podwire.dev/key";

/// A lease as the API has it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Lease {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    #[serde(flatten)]
    pub version: Version,
    annotations: BTreeMap<String, String>,
}

/// Which object it is, and which state of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Version {
    pub uid: String,
    pub resource_version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
}

impl Lease {
    pub fn holder(&self) -> &str {
        self.spec.holder_identity.as_deref().unwrap_or_default()
    }

    /// The revision of the node's key when the lease was last written; `None` if there was none yet.
    pub fn key(&self) -> Option<Revision> {
        self.metadata.annotations.get(KEY)?.parse().ok()
    }

    pub fn lasts(&self) -> Duration {
        Duration::from_secs(self.spec.lease_duration_seconds.unwrap_or_default())
    }
}

/// The path of the leases of a namespace.
pub(super) fn path(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}

/// What a lease is to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub holder: &'a str,
    pub ttl: Duration,
    pub renewals: u64,
    pub key: Option<Revision>,
}

impl Wanted<'_> {
    /// The object; it replaces the one with that version. The UID has the API refuse to create it anew
    /// where that one is gone.
    pub fn object(&self, replaced: Option<&Version>) -> Value {
        let mut metadata = json!({
            "name": self.name,
            "namespace": self.namespace,
            "annotations": {RENEWALS: self.renewals.to_string()},
        });
        if let Some(key) = self.key {
            metadata["annotations"][KEY] = key.to_string().into();
        }
        if let Some(version) = replaced {
            metadata["uid"] = version.uid.as_str().into();
            metadata["resourceVersion"] = version.resource_version.as_str().into();
        }
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": self.ttl.as_secs(),
            },
        })
    }
}

/// The condition of a deletion.
pub(super) fn only_if(version: &Version) -> Value {
    let mut preconditions = json!({"resourceVersion": version.resource_version});
    if !version.uid.is_empty() {
        preconditions["uid"] = version.uid.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": preconditions,
    })
}

/// A time of this machine that cannot be set and runs on while it is suspended (CLOCK_BOOTTIME).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Moment(Duration);

impl Moment {
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
        // It has always worked since Linux 2.6.39.
        Self(now.map_or(Duration::ZERO, Duration::from))
    }
}

/// What has been seen of the leases of others, and since when it has been so.
#[derive(Debug, Default)]
pub(super) struct Observations(HashMap<String, (String, Moment)>);

impl Observations {
    /// Notes that a lease was `state` between two moments, and returns for how long it has certainly been
    /// so: from the end of the first look to the beginning of this one.
    pub fn note(&mut self, name: &str, state: &str, sent: Moment, answered: Moment) -> Duration {
        match self.0.get(name) {
            Some((before, since)) if before == state => sent.0.saturating_sub(since.0),
            _ => {
                self.0.insert(name.to_owned(), (state.to_owned(), answered));
                Duration::ZERO
            }
        }
    }

    /// What has ended is not observed any more.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_idle_from_the_end_of_the_first_look_to_the_beginning_of_the_last() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let mut all = Observations::default();
        assert_eq!(all.note("a", "7", at(10), at(12)), Duration::ZERO);
        assert_eq!(all.note("a", "7", at(20), at(29)), Duration::from_secs(8));
        assert_eq!(all.note("a", "8", at(30), at(31)), Duration::ZERO);
        assert_eq!(all.note("a", "8", at(30), at(31)), Duration::ZERO);
        all.forget("a");
        assert_eq!(all.note("a", "8", at(60), at(61)), Duration::ZERO);
    }
}
