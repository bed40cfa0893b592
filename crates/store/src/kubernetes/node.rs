//! What is read of a node.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::api;
use crate::{Error, Revision};

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The revision of its last change.
    pub revision: Revision,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The subnets that the cluster has assigned to it, one for each family.
    pub pod_cidrs: Vec<String>,
    /// Its condition `NetworkUnavailable`, which keeps pods away if it is true; `None` without it.
    pub network_unavailable: Option<bool>,
}

/// An answer with many nodes.
#[derive(Deserialize)]
pub(super) struct List {
    pub metadata: Metadata,
    pub items: Vec<Object>,
}

/// A node as it is sent, or the revision in a bookmark.
#[derive(Deserialize)]
pub(super) struct Object {
    pub metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub name: String,
    resource_version: String,
    /// Of a list: where the next page begins.
    #[serde(rename = "continue")]
    pub next: String,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    conditions: Option<Vec<Condition>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Metadata {
    /// The revision of the object, or of the list.
    pub fn revision(&self) -> Result<Revision, Error> {
        api::revision(&self.resource_version)
    }
}

impl From<Object> for Node {
    fn from(object: Object) -> Self {
        let Object {
            metadata,
            spec,
            status,
        } = object;
        let pod_cidrs = match spec.pod_cidrs {
            Some(all) if !all.is_empty() => all,
            _ => vec![spec.pod_cidr],
        };
        let conditions = status.conditions.unwrap_or_default();
        let condition = conditions.iter().find(|it| it.kind == "NetworkUnavailable");
        Self {
            revision: metadata.revision().unwrap_or_default(),
            name: metadata.name,
            annotations: metadata.annotations.unwrap_or_default(),
            pod_cidrs: pod_cidrs.into_iter().filter(|it| !it.is_empty()).collect(),
            network_unavailable: condition.map(|it| it.status != "False"),
        }
    }
}
