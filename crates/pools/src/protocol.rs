//! What plugins and `podwire` ask the role `ipam` of the agent: one JSON document in a line each way,
//! below the key `ipam`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use agent::Socket;
use anyhow::{Context, Result};
use cni::{Code, Error};
use names::Namespace;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::book::{Lease, Owner};
use crate::span::Span;
use crate::time::Time;

/// A request to the role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// One address of each set, or none at all.
    Add(Add),
    /// The addresses of this attachment are free.
    Del(Owner),
    /// Which addresses has this attachment?
    Held(Owner),
    /// Which addresses have the attachments of this network?
    Network(String),
    /// This lease has ended.
    Release(Release),
    /// Would an ADD get an address now, as far as the agent is concerned?
    Ready {},
    /// All that the agent knows.
    Show {},
    /// The node is gone for good: its blocks are free.
    Forget {
        /// Its name.
        node: String,
    },
}

/// What an ADD wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Add {
    /// The pool.
    pub pool: String,
    /// What it is for.
    pub owner: Owner,
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The name that the addresses follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long addresses rest after their release, in seconds.
    pub cool_down: u64,
    /// One address from each.
    pub sets: Vec<Set>,
    /// When the caller waits no longer. An agent that was stopped in between may read this request after
    /// the DEL that follows it: it hands out nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

/// Addresses of which an ADD gets one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Set {
    /// The addresses, without those that no pod may have.
    pub spans: Vec<Span>,
    /// The length of the prefix of blocks; `None` for that of the pool, or the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<u8>,
    /// It has to be this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<IpAddr>,
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Its pool.
    pub pool: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its number.
    pub sequence: u64,
}

/// An address of a pool in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolLease {
    /// The pool.
    pub pool: String,
    /// The lease.
    #[serde(flatten)]
    pub lease: Lease,
}

/// What the role answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// To [`Request::Add`]: in the order of the sets.
    Leased {
        /// The addresses.
        leases: Vec<PoolLease>,
        /// When this answer is worth nothing any more: the fence.
        until: Time,
    },
    /// To [`Request::Held`] and [`Request::Network`].
    Leases(Vec<PoolLease>),
    /// To [`Request::Show`].
    State(Value),
    /// It is done.
    Done {},
    /// It is not done.
    Refused {
        /// The code of the CNI specification.
        code: u32,
        /// Why.
        why: String,
    },
    /// The agent has no such role, or it does not answer.
    Error(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line<T> {
    Ipam(T),
}

/// The agent, for programs that need addresses.
#[derive(Clone, Debug)]
pub struct Agent(Socket);

impl Agent {
    /// The agent that listens at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Socket::at(path, "agent"))
    }

    /// Asks, and waits for the answer, which is neither [`Reply::Refused`] nor [`Reply::Error`].
    ///
    /// # Errors
    /// [`agent::Unreachable`] where nothing listens; code 11 where the agent has no such role; the code
    /// of the refusal.
    pub fn ask(&self, request: &Request, patience: Duration) -> Result<Reply> {
        let line = serde_json::to_string(&Line::Ipam(request))?;
        let answer = self.0.ask(&line, patience)?;
        match serde_json::from_str(&answer).with_context(|| self.0.describe())? {
            Reply::Refused { code, why } => Err(Error::document(code, why, "").into()),
            Reply::Error(why) => {
                let what = self.0.describe();
                Err(Code::TryAgain.err(format!("{what}: {why}")).into())
            }
            reply => Ok(reply),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_these() {
        let owner = Owner {
            network: "web".into(),
            container: "a".into(),
            ifname: "eth0".into(),
        };
        let set = Set {
            spans: vec![Span(
                "10.0.0.2".parse().unwrap(),
                "10.0.0.9".parse().unwrap(),
            )],
            block: None,
            requested: None,
        };
        let add = Request::Add(Add {
            pool: "web".into(),
            owner: owner.clone(),
            namespace: None,
            name: None,
            cool_down: 30,
            sets: vec![set],
            deadline: None,
        });
        let own = r#"{"network":"web","container":"a","ifname":"eth0"}"#;
        for (request, line) in [
            (
                add,
                format!(
                    r#"{{"add":{{"pool":"web","owner":{own},"coolDown":30,"sets":[{{"spans":[["10.0.0.2","10.0.0.9"]]}}]}}}}"#
                ),
            ),
            (Request::Del(owner), format!(r#"{{"del":{own}}}"#)),
            (Request::Ready {}, r#"{"ready":{}}"#.to_owned()),
        ] {
            assert_eq!(request.to_string(), line);
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
    }

    #[test]
    fn without_an_agent_the_error_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::at(dir.path().join("none"));
        let error = agent.ask(&Request::Ready {}, Duration::from_secs(1));
        assert!(error.unwrap_err().is::<agent::Unreachable>());
    }
}
