//! The agent's socket: what plugins and `podwire` ask it.
//!
//! A request is one JSON object in a line, and so is its answer. The object has one key, the
//! subject: that of a role, or
//! - `{"status":{}}`: answered with the state of each role;
//! - `{"giveWay":{}}`: an agent that was started on demand ends, so that another one can start.
//!
//! An answer with the key `error` says why there is no other.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};

use crate::conf::remove_socket;
use crate::roles::{Query, Running};

/// The longest request, in bytes: an ADD with some ten thousand ranges, as `exclude` leaves them.
const LONGEST: u64 = 1024 * 1024;
/// How many callers are served at once; others wait.
const CALLERS: usize = 512;

/// What callers reach.
pub struct Control {
    /// The roles that run.
    pub roles: Vec<Running>,
    /// Whether the agent was started on demand.
    pub on_demand: bool,
    /// Set when the agent is to give way.
    pub give_way: Notify,
    callers: Semaphore,
}

impl Control {
    /// For these roles.
    pub fn new(roles: Vec<Running>, on_demand: bool) -> Self {
        Self {
            roles,
            on_demand,
            give_way: Notify::new(),
            callers: Semaphore::new(CALLERS),
        }
    }

    /// Serves one caller until it closes the connection.
    pub async fn serve(self: Arc<Self>, stream: UnixStream) {
        let Ok(_permit) = self.callers.acquire().await else {
            return;
        };
        let (read, mut write) = stream.into_split();
        let mut reader = BufReader::new(read);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut reader).take(LONGEST);
            let read = limited.read_until(b'\n', &mut line).await;
            if read.is_err() || line.last() != Some(&b'\n') {
                return;
            }
            let answer = self.answer(&line).await;
            let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
            let mut text = answer.to_string();
            text.push('\n');
            if write.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, line: &[u8]) -> Result<Value> {
        let request: Map<String, Value> = serde_json::from_slice(line).context("request")?;
        let mut request = request.into_iter();
        let (Some((subject, body)), None) = (request.next(), request.next()) else {
            return Err(anyhow!("request: not an object with one key"));
        };
        match subject.as_str() {
            "status" => Ok(self.status().await),
            "giveWay" if self.on_demand => {
                self.give_way.notify_one();
                Ok(json!({}))
            }
            "giveWay" => Err(anyhow!("this agent was not started on demand")),
            _ => {
                let role = self.roles.iter().find(|it| it.subject == subject);
                let role = role.with_context(|| {
                    format!("request {subject}: no role that runs here has this subject")
                })?;
                role.ask(|reply| Query::Request(body, reply)).await
            }
        }
    }

    async fn status(&self) -> Value {
        let mut roles = Map::new();
        for role in &self.roles {
            let mut status = match role.ask(Query::Status).await {
                Ok(status) => status,
                Err(error) => json!({"error": error.to_string()}),
            };
            status["ready"] = match &*role.readiness.borrow() {
                Ok(()) => json!(true),
                Err(why) => json!(why),
            };
            roles.insert(role.name.into(), status);
        }
        json!({"version": env!("CARGO_PKG_VERSION"), "onDemand": self.on_demand, "roles": roles})
    }
}

/// Listens at `path`, for root alone, in the place of a socket that was left there.
///
/// # Errors
/// Those of bind(2).
pub fn listen(path: &Path) -> Result<UnixListener> {
    remove_socket(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
