//! The nodes of a Kubernetes cluster: listed, watched, and changed in their annotations and
//! conditions.
//!
//! Three requests of the API, over the HTTP/2 that etcd needs anyway. The crate `kube` would add 90
//! crates and more than a minute to a build, and keeps whole objects; of a node the few fields of
//! [`Node`] are read here.

mod access;
mod node;

use std::cell::RefCell;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::Channel;

use crate::connection::{self, chain};
use crate::{Error, Revision};

pub use self::access::ApiAccess;
pub use self::node::Node;
use self::node::{List, Object};

/// How long one request may take, but for a watch.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many nodes come in one answer: with their images a node has tens of kilobytes, and an answer
/// is in memory as a whole.
const PAGE: usize = 250;
/// What an answer may have.
const LARGEST: usize = 64 << 20;
/// The server ends a watch after so many seconds, so that each begins with a new token.
const LONGEST_WATCH: u32 = 480;

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
    access: ApiAccess,
    /// Files with certificates are read for each new connection.
    channel: RefCell<Option<Channel>>,
}

impl Nodes {
    /// Checks how the API is reached. Connects with the first call.
    ///
    /// # Errors
    /// A kubeconfig that cannot be read or has something that is not supported; no cluster around.
    pub fn new(access: ApiAccess) -> anyhow::Result<Self> {
        access.place()?;
        Ok(Self {
            access,
            channel: RefCell::default(),
        })
    }

    /// Gives each node to `each`, a page at a time, and returns the revision to watch from.
    ///
    /// # Errors
    /// The API does not answer or refuses.
    pub async fn list(&self, mut each: impl FnMut(Node)) -> Result<Revision, Error> {
        let mut next = String::new();
        loop {
            let query = format!("/api/v1/nodes?limit={PAGE}&continue={next}");
            let answer = self.ask(Method::GET, &query, None);
            let mut page: List = within(answer).await?;
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
        let path = format!("/api/v1/nodes/{name}/status");
        let answer = self.ask(Method::PATCH, &path, Some((patch, merge)));
        let node: Object = within(answer).await?;
        node.metadata.revision()
    }

    /// The changes after `revision`.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. The API does not answer or refuses.
    pub async fn watch(&self, revision: Revision) -> Result<NodeWatch, Error> {
        let query = format!(
            "/api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds={LONGEST_WATCH}"
        );
        let opening = self.send(Method::GET, &query, None);
        let answer = within(opening).await?;
        Ok(NodeWatch {
            body: answer.into_body(),
            line: Vec::new(),
            seen: revision,
        })
    }

    /// Uses a new connection from the next call on.
    pub fn reconnect(&self) {
        *self.channel.borrow_mut() = None;
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        patch: Option<(&Value, Merge)>,
    ) -> Result<A, Error> {
        let answer = self.send(method, path, patch).await?;
        let content = content(answer.into_body(), LARGEST).await?;
        serde_json::from_slice(&content).map_err(|it| unavailable(format!("its answer: {it}")))
    }

    /// Sends a request, and returns the answer to it if it is a good one.
    async fn send(
        &self,
        method: Method,
        path: &str,
        patch: Option<(&Value, Merge)>,
    ) -> Result<Response<Body>, Error> {
        let sending = async {
            let (mut channel, token) = self.connect()?;
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::ACCEPT, "application/json");
            if let Some(token) = token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let body = match patch {
                None => Body::empty(),
                Some((patch, merge)) => {
                    let kind = match merge {
                        Merge::Plain => "application/merge-patch+json",
                        Merge::Strategic => "application/strategic-merge-patch+json",
                    };
                    request = request.header(header::CONTENT_TYPE, kind);
                    Body::new(Full::from(patch.to_string()))
                }
            };
            let request = request.body(body)?;
            std::future::poll_fn(|context| GrpcService::poll_ready(&mut channel, context)).await?;
            Ok::<_, anyhow::Error>(GrpcService::call(&mut channel, request).await?)
        };
        let answer = sending.await.map_err(|error| {
            self.reconnect();
            unavailable(chain(error.as_ref()))
        })?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(refusal(status, answer.into_body()).await),
        }
    }

    /// A connection, and the token for the next request: it is replaced before it expires, so it is
    /// read each time.
    fn connect(&self) -> anyhow::Result<(Channel, Option<String>)> {
        let place = self.access.place()?;
        let token = place.token()?;
        if let Some(channel) = &*self.channel.borrow() {
            return Ok((channel.clone(), token));
        }
        let endpoint = connection::endpoint(&place.server, place.tls()?)?;
        let channel = endpoint.connect_lazy();
        *self.channel.borrow_mut() = Some(channel.clone());
        Ok((channel, token))
    }
}

/// A watch of all nodes.
#[derive(Debug)]
pub struct NodeWatch {
    body: Body,
    /// What has come of the next event.
    line: Vec<u8>,
    seen: Revision,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
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
        loop {
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|status| unavailable(chain(&status)))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.line.extend_from_slice(&data);
            let Some(end) = self.line.iter().rposition(|it| *it == b'\n') else {
                if self.line.len() > LARGEST {
                    return Err(unavailable("an event without an end".into()));
                }
                continue;
            };
            let rest = self.line.split_off(end + 1);
            let lines = std::mem::replace(&mut self.line, rest);
            let lines = lines.split(|it| *it == b'\n').filter(|it| !it.is_empty());
            let mut events = Vec::new();
            for line in lines {
                events.extend(self.event(line)?);
            }
            return Ok(Some(events));
        }
    }

    fn event(&mut self, line: &[u8]) -> Result<Option<NodeEvent>, Error> {
        let odd = |error: serde_json::Error| unavailable(format!("an event: {error}"));
        let event: Event = serde_json::from_slice(line).map_err(odd)?;
        if event.kind == "ERROR" {
            let status: Status = serde_json::from_value(event.object).map_err(odd)?;
            return Err(status.error(StatusCode::INTERNAL_SERVER_ERROR));
        }
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

/// What the API says of a request that it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

impl Status {
    fn error(self, otherwise: StatusCode) -> Error {
        let status = StatusCode::from_u16(self.code).unwrap_or(otherwise);
        let why = match self.message.is_empty() {
            true => status.to_string(),
            false => self.message,
        };
        match status {
            StatusCode::GONE => Error::Compacted,
            StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::UNPROCESSABLE_ENTITY => Error::Refused(why),
            _ => unavailable(why),
        }
    }
}

async fn refusal(status: StatusCode, body: Body) -> Error {
    let content = content(body, LARGEST).await.unwrap_or_default();
    let parsed: Status = serde_json::from_slice(&content).unwrap_or_default();
    parsed.error(status)
}

async fn content(mut body: Body, most: usize) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|status| unavailable(chain(&status)))?;
        if let Ok(data) = frame.into_data() {
            content.extend_from_slice(&data);
        }
        if content.len() > most {
            return Err(unavailable(format!("an answer of more than {most} bytes")));
        }
    }
    Ok(content)
}

async fn within<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => Err(unavailable("no answer".into())),
    }
}

fn unavailable(why: String) -> Error {
    Error::Unavailable(why)
}
