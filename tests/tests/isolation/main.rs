//! Who reaches the pods of a network, and whom they reach: `gatewayModeIPv4`, `gatewayModeIPv6`,
//! `internal`, `icc`, `links`.

mod filters;
mod lab;
mod life;
mod links;
mod matrix;
mod modes;
mod trace;
