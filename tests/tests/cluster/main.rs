//! cluster: addresses that are unique in a cluster. The plugin, the role `ipam` of the agent, and
//! several nodes with one store.

mod command;
mod life;
mod node;
mod shared;
