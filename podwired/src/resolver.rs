//! The resolver: names of pods, for pods.

use anyhow::Result;
use serde::Deserialize;
use serde_json::json;

use crate::roles::{Ask, Desk};

/// The keys of the role.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conf {}

/// Serves until the desk's asks end.
///
/// # Errors
/// What the role cannot go on without.
pub async fn serve(_conf: Conf, mut desk: Desk) -> Result<()> {
    desk.started();
    let _ = desk.readiness.send_replace(Ok(()));
    desk.idle.send_replace(true);
    while let Some(ask) = desk.asks.recv().await {
        match ask {
            Ask::Request(_, reply) => drop(reply.send(json!({"servers": []}))),
            Ask::Status(reply) => drop(reply.send(json!({"names": 0}))),
            Ask::Metrics(reply) => drop(reply.send(Default::default())),
            Ask::IsIdle(reply) => drop(reply.send(true)),
        }
    }
    Ok(())
}
