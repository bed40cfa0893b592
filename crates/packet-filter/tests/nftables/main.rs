//! nf_tables against the real kernel: rules are looked at with nft(8), and with
//! traffic between namespaces; never with the code under test.
//!
//! Every test first moves its own thread, and nothing else, into private
//! namespaces (libtest runs each test on a fresh thread): see [`node`].

#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod churn;
mod closing;
mod conntrack;
mod go;
mod hostport;
mod masquerade;
mod node;
mod spoof;
mod traffic;
