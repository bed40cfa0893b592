//! The names of pods. The plugin `dnsname` writes a record for each attachment, the resolver of
//! `podwired` answers from the records, and `podwire names` lists them.
//!
//! # Records
//!
//! A record is one JSON document ([`Record`]) in one file ([`Directory`]):
//!
//! ```text
//! /run/podwire/names/<network>/<container id>:<interface>
//! ```
//!
//! Both names are derived, so DEL finds the file with no other knowledge; each is replaced by a hash
//! if it is longer than 120 bytes ([`cni::names::short`]), and the document has it in full. A file is
//! whole or absent: it is written beside its place, under a name with a dot in front, and renamed.
//! Names with a dot in front are never records. A boot clears `/run`, and all pods end with it.
//!
//! Each record also has what the resolver needs to know of the network ([`Network`]). The records of
//! one network may differ there, after its configuration has changed: the newest one holds.
//!
//! # Requests to the resolver
//!
//! The resolver is a role of `podwired`, which listens on the Unix stream socket
//! `/run/podwire/podwired.sock`, for root alone. A request and its answer are one line of JSON each; a
//! connection may carry many, one after the other. The key at the top of a request names the role:
//!
//! | request | meaning | answer |
//! |---|---|---|
//! | `{"names":{"read":"<network>/<file>"}}` | the record was written or removed: read it now | `{"servers":["10.1.0.1"]}`, once every later question is answered by the new state: the addresses where the resolver answers for that network. Others than those of the record: another server has the port there. None: it answers nowhere |
//! | `{"names":{"resolve":"<name>"}}` | a question of the node, which is in all networks | `{"found":[{"network":"web","address":"10.1.0.2"}]}` |
//! | `{"names":"elsewhere"}` | which pods of other nodes are known | `{"elsewhere":[{"network":"web","node":"n2","container":"…","names":["db"],"addresses":["10.1.1.2"]}]}` |
//! | any that fails | | `{"error":"<reason>"}` |
//!
//! [`Request`], [`Reply`], [`Found`] and [`Elsewhere`] are these lines for both sides; [`Resolver`] is the client, whose
//! every wait has a limit. A `podwired` reads all records before it listens, so an answer also stands for
//! the names of earlier ADDs.

mod directory;
mod name;
mod protocol;
mod record;
mod resolver;

pub use agent::Unreachable;
pub use directory::{Directory, Entry};
pub use name::{Fault, Name};
pub use protocol::{Elsewhere, Found, Reply, Request};
pub use record::{Namespace, Network, Record, Server, Service, Static, StaticData};
pub use resolver::Resolver;
