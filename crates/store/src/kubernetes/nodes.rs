//! The nodes of a Kubernetes cluster: listed, watched, and changed in their annotations and
//! conditions.

use http::Method;
use serde_json::Value;

use super::access::ApiAccess;
use super::api::{Api, Content, Event, Events, odd};
use super::node::{List, Node, Object};
use crate::{Error, Revision};

const NODES: &str = "/api/v1/nodes";
/// How many nodes come in one answer: with their images a node has tens of kilobytes, and an answer
/// is in memory as a whole.
const PAGE: usize = 250;

/// A change of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeEvent {
    /// It was added or has changed, or is as before: anything may have changed.
    Is(Node),
    /// It is gone.
    Gone {
        /// Its name.
        name: String,
    },
}

/// How a patch is merged into an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// RFC 7386: an array is replaced.
    Plain,
    /// Kubernetes' own: conditions are merged by their type.
    Strategic,
}

/// The nodes of a cluster.
#[derive(Debug)]
pub struct Nodes {
    api: Api,
}

impl Nodes {
    /// Checks how the API is reached. Connects with the first call.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or has something that is not supported; no cluster around.
    pub fn new(access: ApiAccess) -> anyhow::Result<Self> {
        Ok(Self {
            api: Api::new(access)?,
        })
    }

    /// Gives each node to `each`, a page at a time, and returns the revision to watch from.
    ///
    /// # Errors
    /// The API does not answer or refuses.
    pub async fn list(&self, mut each: impl FnMut(Node)) -> Result<Revision, Error> {
        let mut next = String::new();
        loop {
            let query = format!("{NODES}?limit={PAGE}&continue={next}");
            let mut page: List = self.api.ask(Method::GET, &query, None).await?;
            page.items.into_iter().for_each(|it| each(it.into()));
            next = std::mem::take(&mut page.metadata.next);
            if next.is_empty() {
                return page.metadata.revision();
            }
        }
    }

    /// Changes a node's status or annotations. Returns the revision of the change.
    ///
    /// # Errors
    /// The API does not answer or refuses.
    pub async fn patch(&self, name: &str, patch: &Value, merge: Merge) -> Result<Revision, Error> {
        let path = format!("{NODES}/{name}/status");
        let content = Content {
            kind: match merge {
                Merge::Plain => "application/merge-patch+json",
                Merge::Strategic => "application/strategic-merge-patch+json",
            },
            document: patch,
        };
        let node: Object = self.api.ask(Method::PATCH, &path, Some(content)).await?;
        node.metadata.revision()
    }

    /// The changes after `revision`.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. The API does not answer or refuses.
    pub async fn watch(&self, revision: Revision) -> Result<NodeWatch, Error> {
        Ok(NodeWatch {
            events: self.api.watch(NODES, revision).await?,
            seen: revision,
        })
    }

    /// Uses a new connection from the next call on.
    pub fn reconnect(&self) {
        self.api.reconnect();
    }
}

/// A watch of all nodes.
#[derive(Debug)]
pub struct NodeWatch {
    events: Events,
    seen: Revision,
}

impl NodeWatch {
    /// All changes up to this revision have been returned.
    pub fn seen(&self) -> Revision {
        self.seen
    }

    /// The next changes, in their order; `None` when the server has ended the watch, as it does after
    /// some minutes. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. The connection is lost.
    pub async fn next(&mut self) -> Result<Option<Vec<NodeEvent>>, Error> {
        let Some(events) = self.events.next().await? else {
            return Ok(None);
        };
        let mut changes = Vec::new();
        for event in events {
            changes.extend(self.change(event)?);
        }
        Ok(Some(changes))
    }

    fn change(&mut self, event: Event) -> Result<Option<NodeEvent>, Error> {
        let object: Object = serde_json::from_value(event.object).map_err(odd)?;
        self.seen = object.metadata.revision()?;
        Ok(match event.kind.as_str() {
            "ADDED" | "MODIFIED" => Some(NodeEvent::Is(object.into())),
            "DELETED" => Some(NodeEvent::Gone {
                name: object.metadata.name,
            }),
            // A bookmark is a revision alone.
            _ => None,
        })
    }
}
