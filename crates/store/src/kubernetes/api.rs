//! Requests of the API, and its watches.

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

use super::access::ApiAccess;
use crate::connection::{self, chain};
use crate::{Error, Revision};

/// How long a request about one object may take: one is the renewal of a lease.
const PATIENCE: Duration = Duration::from_secs(5);
/// A list may be megabytes over a slow line. A watch may stay open for longer than that.
const PATIENCE_OF_LISTS: Duration = Duration::from_secs(20);
/// What an answer may have.
const LARGEST: usize = 64 << 20;
/// The server ends a watch after so many seconds, so that each begins with a new token.
const LONGEST_WATCH: u32 = 480;

/// What a request carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    /// Its media type.
    pub kind: &'static str,
    /// The document.
    pub document: &'a Value,
}

impl<'a> Content<'a> {
    /// An object, or options.
    pub fn json(document: &'a Value) -> Self {
        let kind = "application/json";
        Self { kind, document }
    }
}

/// What has become of a change that requires that an object is there or not, or has a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed<T> {
    /// It is done.
    Done(T),
    /// The object is another one, or none; or there is one. Nothing has changed.
    Otherwise,
}

/// An API server.
#[derive(Debug)]
pub(super) struct Api {
    access: ApiAccess,
    /// Files with certificates are read for each new connection.
    channel: RefCell<Option<Channel>>,
}

impl Api {
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

    /// Uses a new connection from the next call on.
    pub fn reconnect(&self) {
        *self.channel.borrow_mut() = None;
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// The API does not answer or refuses.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: Option<Content<'_>>,
    ) -> Result<A, Error> {
        let asking = async {
            let answer = self.send(method, path, content).await?;
            match answer.status() {
                status if status.is_success() => read(answer.into_body()).await,
                status => Err(refusal(status, answer.into_body()).await),
            }
        };
        self.within(PATIENCE_OF_LISTS, asking).await
    }

    /// An object; `None` if there is none.
    ///
    /// # Errors
    /// The API does not answer or refuses.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<Option<A>, Error> {
        match self.change(Method::GET, path, None).await? {
            Changed::Done(found) => Ok(Some(found)),
            Changed::Otherwise => Ok(None),
        }
    }

    /// The answer to a request that depends on an object: it is created, or replaced or deleted with a
    /// revision.
    ///
    /// # Errors
    /// The API does not answer or refuses.
    pub async fn change<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: Option<Content<'_>>,
    ) -> Result<Changed<A>, Error> {
        let changing = async {
            let is_creation = method == Method::POST;
            let answer = self.send(method, path, content).await?;
            match answer.status() {
                // A replacement that has created: the object was gone.
                StatusCode::CREATED if !is_creation => Ok(Changed::Otherwise),
                status if status.is_success() => read(answer.into_body()).await.map(Changed::Done),
                StatusCode::CONFLICT => Ok(Changed::Otherwise),
                StatusCode::NOT_FOUND if !is_creation => Ok(Changed::Otherwise),
                status => Err(refusal(status, answer.into_body()).await),
            }
        };
        self.within(PATIENCE, changing).await
    }

    /// The changes of the objects at `path` after `revision`.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. The API does not answer or refuses.
    pub async fn watch(&self, path: &str, revision: Revision) -> Result<Events, Error> {
        let query = format!(
            "{path}?watch=1&allowWatchBookmarks=true&resourceVersion={revision}&timeoutSeconds={LONGEST_WATCH}"
        );
        let opening = async {
            let answer = self.send(Method::GET, &query, None).await?;
            match answer.status() {
                status if status.is_success() => Ok(answer.into_body()),
                status => Err(refusal(status, answer.into_body()).await),
            }
        };
        Ok(Events {
            body: self.within(PATIENCE_OF_LISTS, opening).await?,
            line: Vec::new(),
        })
    }

    /// Waits for an answer; one that does not come is not waited for on the same connection again.
    async fn within<T>(
        &self,
        patience: Duration,
        future: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match timeout(patience, future).await {
            Ok(done) => done,
            Err(_) => {
                self.reconnect();
                Err(unavailable("no answer".into()))
            }
        }
    }

    /// Sends a request, and returns the answer to it, whatever that is.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content: Option<Content<'_>>,
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
            let body = match content {
                None => Body::empty(),
                Some(Content { kind, document }) => {
                    request = request.header(header::CONTENT_TYPE, kind);
                    Body::new(Full::from(document.to_string()))
                }
            };
            let request = request.body(body)?;
            std::future::poll_fn(|context| GrpcService::poll_ready(&mut channel, context)).await?;
            Ok::<_, anyhow::Error>(GrpcService::call(&mut channel, request).await?)
        };
        sending.await.map_err(|error| {
            self.reconnect();
            unavailable(chain(error.as_ref()))
        })
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

/// A change of an object.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    /// `ADDED`, `MODIFIED`, `DELETED`, or `BOOKMARK`: a revision alone.
    #[serde(rename = "type")]
    pub kind: String,
    /// The object, with the revision of the change.
    pub object: Value,
}

/// The events of a watch.
#[derive(Debug)]
pub(super) struct Events {
    body: Body,
    /// What has come of the next event.
    line: Vec<u8>,
}

impl Events {
    /// The next events, in their order; `None` when the server has ended the watch, as it does after
    /// some minutes. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Error::Compacted`]: list again. The connection is lost.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
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
            return lines.map(event).collect::<Result<Vec<_>, _>>().map(Some);
        }
    }
}

fn event(line: &[u8]) -> Result<Event, Error> {
    let event: Event = serde_json::from_slice(line).map_err(odd)?;
    if event.kind == "ERROR" {
        let status: Status = serde_json::from_value(event.object).map_err(odd)?;
        return Err(status.error(StatusCode::INTERNAL_SERVER_ERROR));
    }
    Ok(event)
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
        let why = if self.message.is_empty() {
            status.to_string()
        } else {
            self.message
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

/// The API calls it a text. It is etcd's revision, and since Kubernetes 1.35 its documents promise a
/// number that grows.
///
/// # Errors
/// It is no number.
pub(super) fn revision(resource_version: &str) -> Result<Revision, Error> {
    let number = resource_version.parse();
    number.map_err(|_| unavailable(format!("resourceVersion {resource_version:?} is no number")))
}

/// An event that cannot be read.
pub(super) fn odd(error: serde_json::Error) -> Error {
    unavailable(format!("an event: {error}"))
}

async fn refusal(status: StatusCode, body: Body) -> Error {
    let content = content(body).await.unwrap_or_default();
    let parsed: Status = serde_json::from_slice(&content).unwrap_or_default();
    parsed.error(status)
}

async fn read<A: DeserializeOwned>(body: Body) -> Result<A, Error> {
    let content = content(body).await?;
    serde_json::from_slice(&content).map_err(|it| unavailable(format!("its answer: {it}")))
}

async fn content(mut body: Body) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|status| unavailable(chain(&status)))?;
        if let Ok(data) = frame.into_data() {
            content.extend_from_slice(&data);
        }
        if content.len() > LARGEST {
            return Err(unavailable(format!(
                "an answer of more than {LARGEST} bytes"
            )));
        }
    }
    Ok(content)
}

fn unavailable(why: String) -> Error {
    Error::Unavailable(why)
}
