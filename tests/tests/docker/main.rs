//! The same commands with Docker and with podwire, on a node for each: exit status, output, and which
//! container reaches which. What differs on purpose is a row of the table "Differences from Docker" in
//! docs/networks.md.
//!
//! Debian package: docker.io.

mod node;
mod packets;
mod questions;
mod script;
mod step;

const WHY: &str = "the Go suite has no such command";
