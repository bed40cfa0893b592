//! Fault injection: kills and failing system calls at every point of a plugin.
//!
//! [`tracer`] runs a plugin under ptrace(2) and injects a fault at one of its system calls; [`sweep`] tries one point after
//! the other and checks each time whether the node is as before; [`chains`] lists the plugins. [`storm`] runs many calls at once.

pub mod calls;
pub mod chains;
pub mod dhcp;
pub mod glance;
pub mod journal;
pub mod node;
pub mod storm;
pub mod strike;
pub mod sweep;
pub mod tracer;
