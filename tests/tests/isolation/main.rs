//! Who reaches the pods of a network, and whom they reach: `gatewayModeIPv4`, `gatewayModeIPv6`,
//! `internal`, `icc`.

mod filters;
mod lab;
mod life;
mod modes;
mod trace;
