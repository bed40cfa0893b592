//! The roles of the agent: the one place where a role is named, started and queried.
//!
//! A role is an async function that gets its settings and its [`Channels`]. It runs on a thread of its
//! own until the channel of its queries ends.

use std::sync::{Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::Page;

/// How long a role may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A role that is switched on, with its settings.
#[derive(Debug, PartialEq)]
pub enum Role {
    /// Answers for the names of pods.
    Resolver(crate::resolver::Settings),
    /// Makes the nodes of a network peers.
    Overlay(crate::overlay::Settings),
    /// Has addresses that are unique in a cluster.
    Ipam(crate::ipam::Settings),
}

impl Role {
    /// Its key in the configuration and in a status.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Resolver(_) => "resolver",
            Self::Overlay(_) => "overlay",
            Self::Ipam(_) => "ipam",
        }
    }

    /// The key of its requests on the agent's socket.
    pub fn subject(&self) -> &'static str {
        match self {
            Self::Resolver(_) => "names",
            Self::Overlay(_) => "overlay",
            Self::Ipam(_) => "ipam",
        }
    }

    async fn serve(self, channels: Channels) -> Result<()> {
        match self {
            Self::Resolver(settings) => crate::resolver::serve(settings, channels).await,
            Self::Overlay(settings) => crate::overlay::serve(settings, channels).await,
            Self::Ipam(settings) => crate::ipam::serve(settings, channels).await,
        }
    }
}

/// A request to a role. An answer without a receiver is dropped.
#[derive(Debug)]
pub enum Query {
    /// A request of the agent's socket: what stands at the role's [`Role::subject`].
    Request(Value, oneshot::Sender<Value>),
    /// What `{"status":{}}` shows of the role.
    Status(oneshot::Sender<Value>),
    /// Its metrics.
    Metrics(oneshot::Sender<Page>),
    /// Whether it has nothing left to do, after a new look at what plugins have left on disk.
    IsIdle(oneshot::Sender<bool>),
}

/// `Ok`, or what a role waits for.
pub type Readiness = Result<(), String>;

/// What a role gets of the agent.
pub struct Channels {
    /// Requests to it; their end is that of the role.
    pub queries: mpsc::Receiver<Query>,
    /// Whether the role does what it is for.
    pub readiness: watch::Sender<Readiness>,
    /// Whether it has nothing to do at the moment.
    pub idle: watch::Sender<bool>,
    started: Option<oneshot::Sender<()>>,
}

impl Channels {
    /// The role serves from now on. An agent has started once all of its roles have.
    pub fn started(&mut self) {
        if let Some(started) = self.started.take() {
            let _ = started.send(());
        }
    }
}

/// A role that runs.
pub struct Running {
    /// [`Role::name`].
    pub name: &'static str,
    /// [`Role::subject`].
    pub subject: &'static str,
    /// [`Channels::readiness`].
    pub readiness: watch::Receiver<Readiness>,
    /// [`Channels::idle`].
    pub idle: watch::Receiver<bool>,
    /// `None` once the role is to end.
    queries: Mutex<Option<mpsc::Sender<Query>>>,
}

/// How a role has ended.
pub type Ended = oneshot::Receiver<Result<()>>;

/// Starts a role, and returns once it serves.
///
/// # Errors
/// What the role failed with.
pub async fn start(role: Role) -> Result<(Running, Ended)> {
    let (ask, queries) = mpsc::channel(256);
    let (ready, readiness) = watch::channel(Err("starting".to_owned()));
    let (busy, idle) = watch::channel(false);
    let (started, has_started) = oneshot::channel();
    let (end, mut ended) = oneshot::channel();
    let (name, subject) = (role.name(), role.subject());
    let channels = Channels {
        queries,
        readiness: ready,
        idle: busy,
        started: Some(started),
    };
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let result = match runtime {
            Ok(runtime) => {
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, role.serve(channels))
            }
            Err(error) => Err(error.into()),
        };
        let _ = end.send(result);
    };
    Builder::new()
        .name(name.into())
        .spawn(body)
        .with_context(|| format!("start the thread of {name}"))?;
    if has_started.await.is_err() {
        let why = (&mut ended).await;
        let why = why.unwrap_or_else(|_| Err(anyhow!("the role has panicked")));
        let why = why.err().unwrap_or_else(|| anyhow!("it has ended"));
        return Err(why.context(format!("start the role {name}")));
    }
    let running = Running {
        name,
        subject,
        readiness,
        idle,
        queries: Mutex::new(Some(ask)),
    };
    Ok((running, ended))
}

impl Running {
    /// Asks the role.
    ///
    /// # Errors
    /// It does not answer in time, or has ended.
    pub async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Query) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let queries = self.queries.lock();
        let queries = queries.unwrap_or_else(PoisonError::into_inner).clone();
        let answered = async {
            queries?.send(ask(reply)).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(anyhow!("the role {} has ended", self.name)),
            Err(_) => Err(anyhow!("the role {} does not answer", self.name)),
        }
    }

    /// Has the role end.
    pub fn end(&self) {
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        queries.take();
    }
}
