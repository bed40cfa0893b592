//! Faults, injected at every system call.
//!
//! [`tracer`] runs a plugin under ptrace(2) and injects a fault at one of its system calls. [`sweep`] injects one fault
//! after the other into the plugins of [`chains`] and compares the node before and after each. [`commands`] does so with
//! commands of `podwire`. [`storm`] runs many attachments at once. [`cluster`] hands out addresses of a cluster under faults.

pub mod agent;
pub mod calls;
pub mod chains;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod dhcp;
pub mod glance;
pub mod journal;
pub mod node;
pub mod storm;
pub mod strike;
pub mod sweep;
pub mod tracer;
