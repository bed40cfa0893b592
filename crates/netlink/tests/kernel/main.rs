//! Tests against the real kernel, observed with ip(8), bridge(8), ping(8) and tcpdump(8), never with
//! the code under test.
//!
//! Every test first moves its own thread into private namespaces (libtest runs each test on a new
//! thread): see [`sandbox::here`].

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
mod rule;
mod veth;
mod vxlan;

/// Adds a pod's namespace to the test's node.
fn add_pod(name: &str) -> netns::NetNs {
    netns::NetNs::open(&sandbox::here::add_pod(name)).unwrap()
}
