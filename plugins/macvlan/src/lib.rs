//! What macvlan's keys mean: for the plugin itself, and for `podwire validate`, which reads
//! a configuration by the same code.

pub mod conf;
pub mod pattern;
pub mod plan;
