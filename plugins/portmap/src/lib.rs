//! What portmap's keys mean: for the plugin itself, and for `podwire`, which puts
//! published ports back when somebody has flushed them.

pub mod conf;
pub mod plan;
pub mod reserved;
