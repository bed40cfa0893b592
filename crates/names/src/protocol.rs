//! The lines on the resolver's socket; the documentation of the crate explains them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Entry, Name};

/// A request of a client to the role `names`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Read this record now.
    Read(Entry),
    /// Which addresses has this name? The name may end with a network's name or domain.
    Resolve(Name),
    /// Which pods of other nodes are known?
    Elsewhere,
}

/// A line has one key: the role's name.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line<T> {
    Names(T),
}

impl fmt::Display for Request {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = serde_json::to_string(&Line::Names(self)).map_err(|_| fmt::Error)?;
        f.write_str(&line)
    }
}

impl FromStr for Request {
    type Err = serde_json::Error;

    fn from_str(line: &str) -> Result<Self, serde_json::Error> {
        let Line::Names(request) = serde_json::from_str(line)?;
        Ok(request)
    }
}

/// An answer of the resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The answer to [`Request::Read`]: the addresses where the record's network is served.
    Servers(Vec<IpAddr>),
    /// The answer to [`Request::Resolve`].
    Found(Vec<Found>),
    /// The answer to [`Request::Elsewhere`].
    Elsewhere(Vec<Elsewhere>),
    /// The reason why the request failed.
    Error(String),
}

/// An address of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The network's name.
    pub network: String,
    /// The address.
    pub address: IpAddr,
}

/// The names of a pod of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The network's name.
    pub network: String,
    /// The host name of the node.
    pub node: String,
    /// The container's id.
    pub container: String,
    /// Its names in this network.
    pub names: Vec<Name>,
    /// Its addresses in this network.
    pub addresses: Vec<IpAddr>,
}

impl fmt::Display for Reply {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Reply {
    type Err = serde_json::Error;

    fn from_str(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_those_of_the_documentation() {
        let read = Request::Read("web/a:eth0".parse().unwrap());
        let resolve = Request::Resolve("db.web".parse().unwrap());
        for (request, line) in [
            (read, r#"{"names":{"read":"web/a:eth0"}}"#),
            (resolve, r#"{"names":{"resolve":"db.web"}}"#),
            (Request::Elsewhere, r#"{"names":"elsewhere"}"#),
        ] {
            assert_eq!(request.to_string(), line);
            assert_eq!(line.parse::<Request>().unwrap(), request);
        }
        let address: IpAddr = "10.1.0.1".parse().unwrap();
        let found = Found {
            network: "web".into(),
            address,
        };
        let elsewhere = Elsewhere {
            network: "web".into(),
            node: "n2".into(),
            container: "c1".into(),
            names: vec!["db".parse().unwrap()],
            addresses: vec![address],
        };
        for (reply, line) in [
            (Reply::Servers(vec![address]), r#"{"servers":["10.1.0.1"]}"#),
            (
                Reply::Found(vec![found]),
                r#"{"found":[{"network":"web","address":"10.1.0.1"}]}"#,
            ),
            (
                Reply::Elsewhere(vec![elsewhere]),
                concat!(
                    r#"{"elsewhere":[{"network":"web","node":"n2","container":"c1","#,
                    r#""names":["db"],"addresses":["10.1.0.1"]}]}"#
                ),
            ),
            (Reply::Error("no".into()), r#"{"error":"no"}"#),
        ] {
            assert_eq!(reply.to_string(), line);
            assert_eq!(line.parse::<Reply>().unwrap(), reply);
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "",
            "{}",
            r#"{"names":{}}"#,
            r#"{"names":{"read":"../a"}}"#,
            r#"{"names":{"resolve":"a..b"}}"#,
            r#"{"overlay":{"read":"web/a"}}"#,
        ] {
            assert!(line.parse::<Request>().is_err(), "{line}");
        }
    }
}
