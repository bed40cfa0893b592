//! What bridge's keys mean, and what belongs to a bridge rather than to a pod: for the plugin
//! itself, and for `podwire`, which validates a configuration by the same code and puts back
//! what another program took from the bridge.

pub mod conf;
pub mod plan;
pub mod vlan;
