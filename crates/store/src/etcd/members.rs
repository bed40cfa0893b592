//! Connections to the members of an etcd cluster: TLS, user and password, and the change to another
//! member when one does not answer.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::uri::{PathAndQuery, Uri};
use prost::Message;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::messages as api;
use crate::Error;
use crate::connection::{self, Tls, chain, is_tls, read};

/// A list of many thousand keys comes in one message. etcd's own limit for what it sends is 2 GiB.
const LARGEST_MESSAGE: usize = 256 << 20;

/// How etcd is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `https://HOST:PORT` of each member, or `http://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// The certificate authorities of the members' certificates, as PEM.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate, as PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, as PEM.
    pub key_file: Option<PathBuf>,
    /// The user, where etcd wants one.
    pub username: Option<String>,
    /// The file with its password, in one line.
    pub password_file: Option<PathBuf>,
}

/// The members of a cluster, one of which is in use.
#[derive(Debug)]
pub(super) struct Members {
    access: Access,
    current: Cell<usize>,
    /// Files with certificates are read for each new connection: they are replaced before they
    /// expire.
    channel: RefCell<Option<Channel>>,
    token: RefCell<Option<String>>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answered<A> {
    pub answer: A,
    /// Another member got the request before and gave no answer. It may have done the same request.
    pub is_repeated: bool,
}

impl Members {
    pub fn new(access: Access) -> Result<Self> {
        if access.endpoints.is_empty() {
            bail!("endpoints: missing");
        }
        for endpoint in &access.endpoints {
            check(endpoint, &access)?;
        }
        if access.cert_file.is_some() != access.key_file.is_some() {
            bail!("certFile and keyFile: one without the other");
        }
        let members = Self {
            access,
            current: Cell::new(0),
            channel: RefCell::default(),
            token: RefCell::default(),
        };
        members.endpoint_settings()?;
        Ok(members)
    }

    /// The member in use.
    pub fn endpoint(&self) -> &str {
        &self.access.endpoints[self.current.get()]
    }

    /// A request with one answer, which may be done twice without harm.
    pub async fn call<Q, A>(
        &self,
        path: &'static str,
        message: &Q,
        patience: Duration,
    ) -> Result<A, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let answered = self.ask(path, message, patience).await?;
        Ok(answered.answer)
    }

    /// A request with one answer. Asks each member at most once.
    pub async fn ask<Q, A>(
        &self,
        path: &'static str,
        message: &Q,
        patience: Duration,
    ) -> Result<Answered<A>, Error>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let members = self.access.endpoints.len();
        let mut renewed = false;
        let mut left = members;
        loop {
            let error = match self.ask_one(path, message, patience).await {
                Ok(answer) => {
                    let is_repeated = left < members;
                    return Ok(Answered {
                        answer,
                        is_repeated,
                    });
                }
                Err(status) => {
                    // A token expires, and a restarted member does not know it.
                    if status.code() == Code::Unauthenticated && !renewed {
                        renewed = true;
                        *self.token.borrow_mut() = None;
                        continue;
                    }
                    self.failed(&status)
                }
            };
            left -= 1;
            if left == 0 || !matches!(error, Error::Unavailable(_)) {
                return Err(error);
            }
        }
    }

    /// A request that is followed by a stream of answers.
    pub async fn stream<Q, A>(
        &self,
        path: &'static str,
        message: Q,
        patience: Duration,
    ) -> Result<Streaming<A>, Error>
    where
        Q: Message + Clone + Default + Send + Sync + 'static,
        A: Message + Default + Send + 'static,
    {
        let opening = async {
            let mut grpc = self.ready().await?;
            // The stream stays open from our side.
            let messages = tokio_stream::once(message).chain(tokio_stream::pending());
            let request = self.request(messages).await?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.streaming(request, path_of(path), codec).await?;
            Ok::<_, Status>(answer.into_inner())
        };
        match timeout(patience, opening).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(status)) => {
                if status.code() == Code::Unauthenticated {
                    *self.token.borrow_mut() = None;
                }
                Err(self.failed(&status))
            }
            Err(_) => Err(self.lost("no answer")),
        }
    }

    /// Forgets the connection.
    pub fn reconnect(&self) {
        *self.channel.borrow_mut() = None;
    }

    /// The error for `status`; the next call goes to another member where that may help.
    pub fn failed(&self, status: &Status) -> Error {
        match error(status) {
            Error::Unavailable(why) => self.lost(&why),
            other => other,
        }
    }

    /// The error of a member that does not answer. The next call goes to another one.
    pub fn lost(&self, why: &str) -> Error {
        let error = Error::Unavailable(format!("{}: {why}", self.endpoint()));
        self.reconnect();
        let next = (self.current.get() + 1) % self.access.endpoints.len();
        self.current.set(next);
        error
    }

    async fn ask_one<Q, A>(
        &self,
        path: &'static str,
        message: &Q,
        patience: Duration,
    ) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let asking = async {
            let mut grpc = self.ready().await?;
            let request = self.request(message.clone()).await?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(request, path_of(path), codec).await
        };
        match timeout(patience, asking).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer")),
        }
    }

    /// A connection that takes a request.
    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let channel = self.channel()?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::unavailable(chain(&error)))?;
        Ok(grpc)
    }

    fn channel(&self) -> Result<Channel, Status> {
        if let Some(channel) = &*self.channel.borrow() {
            return Ok(channel.clone());
        }
        let settings = self.endpoint_settings();
        let settings = settings.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let channel = settings.connect_lazy();
        *self.channel.borrow_mut() = Some(channel.clone());
        Ok(channel)
    }

    fn endpoint_settings(&self) -> Result<Endpoint> {
        let access = &self.access;
        let ca = access.ca_file.as_deref().map(|it| read("caFile", it));
        let identity = match (&access.cert_file, &access.key_file) {
            (Some(cert), Some(key)) => Some((read("certFile", cert)?, read("keyFile", key)?)),
            _ => None,
        };
        let tls = Tls {
            ca: ca.transpose()?,
            identity,
        };
        connection::endpoint(self.endpoint(), tls).context("caFile, certFile, keyFile")
    }

    /// A request with what etcd wants to know beside the message.
    async fn request<T>(&self, message: T) -> Result<Request<T>, Status> {
        let mut request = Request::new(message);
        // A member that has lost the others ends its streams instead of waiting with them.
        let metadata = request.metadata_mut();
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = self.token().await? {
            let token = MetadataValue::try_from(token);
            let token = token.map_err(|_| Status::internal("a token that is no text"))?;
            metadata.insert("token", token);
        }
        Ok(request)
    }

    /// The token of the user; `None` without one.
    async fn token(&self) -> Result<Option<String>, Status> {
        let Some(name) = &self.access.username else {
            return Ok(None);
        };
        if let Some(token) = &*self.token.borrow() {
            return Ok(Some(token.clone()));
        }
        let password = match &self.access.password_file {
            Some(file) => read("passwordFile", file)
                .map_err(|error| Status::permission_denied(format!("{error:#}")))?,
            None => String::new(),
        };
        let login = api::AuthenticateRequest {
            name: name.clone(),
            password: password.trim_end().to_owned(),
        };
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<_, api::AuthenticateResponse>::default();
        let path = path_of("/etcdserverpb.Auth/Authenticate");
        let answer = grpc.unary(Request::new(login), path, codec).await?;
        let token = answer.into_inner().token;
        *self.token.borrow_mut() = Some(token.clone());
        Ok(Some(token))
    }
}

/// The meaning of `status` for a caller.
pub(super) fn error(status: &Status) -> Error {
    let why = || match std::error::Error::source(status) {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::OutOfRange if status.message().contains("compacted") => Error::Compacted,
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Error::Refused(why()),
        _ => Error::Unavailable(why()),
    }
}

fn check(endpoint: &str, access: &Access) -> Result<()> {
    let uri: Option<Uri> = endpoint.parse().ok();
    let is_whole = uri.is_some_and(|it| {
        it.host().is_some() && it.port().is_some() && matches!(it.path(), "" | "/")
    });
    let scheme = ["http://", "https://"];
    if !is_whole || !scheme.iter().any(|it| endpoint.starts_with(it)) {
        bail!("endpoints: {endpoint:?} is not http://HOST:PORT or https://HOST:PORT");
    }
    if is_tls(endpoint) && access.ca_file.is_none() {
        bail!("caFile: missing, and {endpoint} has TLS");
    }
    // flanneld ignores the files then, without a warning, and speaks plain text.
    if !is_tls(endpoint) && (access.ca_file.is_some() || access.cert_file.is_some()) {
        bail!("endpoints: {endpoint} has no TLS, which caFile and certFile are for");
    }
    Ok(())
}

fn path_of(path: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(endpoints: &[&str], ca: bool) -> String {
        let access = Access {
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
            ca_file: ca.then(|| "/nonexistent".into()),
            ..Access::default()
        };
        format!("{:#}", Members::new(access).unwrap_err())
    }

    #[test]
    fn faults_name_the_key() {
        assert_eq!(fault(&[], false), "endpoints: missing");
        for odd in ["10.0.0.1:2379", "ftp://a:1", "http://a", "http://a:1/v3"] {
            assert!(fault(&[odd], false).starts_with("endpoints: "), "{odd}");
        }
        assert!(fault(&["https://a:1"], false).starts_with("caFile: missing"));
        assert!(fault(&["http://a:1"], true).contains("has no TLS"));
        assert!(fault(&["https://a:1"], true).starts_with("caFile: read /nonexistent"));
    }
}
