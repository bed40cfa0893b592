//! The life of the agent: its roles start, its socket opens, and it serves until a signal, or until
//! the work for which it was started is done.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::conf::{Endpoint, Settings, remove_socket};
use crate::control::{Control, listen};
use crate::instance::{Instance, close_output};
use crate::page::Page;
use crate::roles::{Ended, Query};
use crate::{endpoint, log, readiness, roles};

/// How long an agent that was started on demand stays without work: a pod that is replaced finds it.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait for the end of a role.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT, the end of a role, or on demand the end of all work.
///
/// # Errors
/// A role cannot be started, or has failed.
pub async fn serve(settings: Settings, on_demand: bool, _instance: Instance) -> Result<()> {
    let mut signals = Signals {
        terminate: signal(SignalKind::terminate()).context("catch SIGTERM")?,
        interrupt: signal(SignalKind::interrupt()).context("catch SIGINT")?,
    };
    let (mut running, mut ends) = (Vec::new(), Vec::new());
    for role in settings.roles {
        let (role, ended) = roles::start(role).await?;
        log::debug(format_args!("the role {} has started", role.name));
        running.push(role);
        ends.push(ended);
    }
    let control = Arc::new(Control::new(running, on_demand));
    let listener = listen(&settings.socket)?;
    let page = settings.page.map(Page::open).transpose()?;
    let endpoint = match &settings.endpoint {
        Some(endpoint) => endpoint::open(endpoint, Arc::clone(&control), page).await,
        None => Ok(()),
    };
    endpoint.context("endpoint")?;
    let agent = Agent {
        control,
        socket: &settings.socket,
        endpoint: match &settings.endpoint {
            Some(Endpoint::Unix(path)) => Some(path),
            _ => None,
        },
    };
    readiness::notify("READY=1");
    if on_demand {
        close_output();
    }
    let ended = tokio::select! {
        () = signals.any() => Ok(()),
        ended = any_end(&mut ends) => ended,
        result = agent.accept(listener) => result,
    };
    readiness::notify("STOPPING=1");
    agent.stop(ends).await;
    ended
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The first role that ends, which none should.
async fn any_end(ends: &mut [Ended]) -> Result<()> {
    std::future::poll_fn(|context| {
        for ended in &mut *ends {
            let polled = std::pin::Pin::new(ended).poll(context);
            if let std::task::Poll::Ready(ended) = polled {
                let ended = ended.unwrap_or_else(|_| Err(anyhow!("a role has panicked")));
                return std::task::Poll::Ready(ended);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

struct Agent<'a> {
    control: Arc<Control>,
    socket: &'a Path,
    endpoint: Option<&'a Path>,
}

impl Agent<'_> {
    /// Accepts callers. On demand it returns once nothing is left to do.
    async fn accept(&self, mut listener: UnixListener) -> Result<()> {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(Arc::clone(&self.control).serve(stream));
                    }
                    // No descriptor is left: others end meanwhile.
                    Err(error) => {
                        log::warn(format_args!("accept on the agent's socket: {error}"));
                        sleep(Duration::from_millis(100)).await;
                    }
                },
                () = self.control.give_way.notified() => {
                    // The answer is on its way.
                    sleep(Duration::from_millis(10)).await;
                    return Ok(());
                }
                () = self.is_idle(), if self.control.on_demand => {
                    if self.is_done(listener).await {
                        return Ok(());
                    }
                    listener = listen(self.socket)?;
                }
            }
        }
    }

    /// Waits until no role has had work for a while.
    async fn is_idle(&self) {
        loop {
            let mut idle = true;
            for role in &self.control.roles {
                let mut watched = role.idle.clone();
                if watched.wait_for(|it| *it).await.is_ok() {
                    let again = watched.wait_for(|it| !*it);
                    idle &= timeout(LINGER, again).await.is_err();
                }
            }
            if idle {
                return;
            }
        }
    }

    /// Closes the socket, then looks once more. A plugin writes a record before it connects: so either
    /// its connection fails and it starts the next agent, or its record is found here.
    async fn is_done(&self, listener: UnixListener) -> bool {
        remove_socket(self.socket);
        while let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await {
            tokio::spawn(Arc::clone(&self.control).serve(stream));
        }
        drop(listener);
        for role in &self.control.roles {
            if !role.ask(Query::IsIdle).await.unwrap_or(true) {
                return false;
            }
        }
        true
    }

    /// Ends the roles, and waits for each.
    async fn stop(self, ends: Vec<Ended>) {
        for socket in self.endpoint.into_iter().chain([self.socket]) {
            remove_socket(socket);
        }
        for role in &self.control.roles {
            role.end();
        }
        for ended in ends.into_iter().filter(|it| !it.is_terminated()) {
            let _ = timeout(PATIENCE, ended).await;
        }
    }
}
