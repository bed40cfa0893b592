//! Against the real kernel, observed with ip(8), bridge(8), ping(8) and
//! tcpdump(8), never with the code under test.
//!
//! Every test first moves its own thread, and nothing else, into private
//! namespaces (libtest runs each test on a fresh thread): see [`sandbox`].

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod address;
mod announce;
mod apply;
mod bridge;
mod forwarding;
mod link;
mod macvlan;
mod removal;
mod route;
mod sandbox;
mod veth;
mod vxlan;
