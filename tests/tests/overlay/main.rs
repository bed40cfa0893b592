//! The overlay role of podwired: nodes of a flannel network in a real etcd.

mod accidents;
mod direct;
mod flannel;
mod names;
mod segment;
mod stores;
