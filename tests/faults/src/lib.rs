//! Accidents, in every place where they can happen.
//!
//! [`tracer`] runs a plugin under ptrace(2) and strikes at one of its system calls; [`sweep`] has one accident after
//! the other and asks each time whether all is as before; [`chains`] are what has them. [`commands`] are those
//! of `podwire`. [`storm`] is many at once. [`cluster`] is addresses of a whole cluster, in which everything happens.

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
