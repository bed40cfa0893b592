//! What static's keys mean: for the plugin itself, and for `podwire validate`, which reads
//! a configuration by the same code.

pub mod conf;
pub mod plan;
