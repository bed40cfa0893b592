//! Access to and from the pods of a network: `gatewayModeIPv4`, `gatewayModeIPv6`,
//! `internal`, `icc`, `links`.

mod filters;
mod lab;
mod life;
mod links;
mod matrix;
mod modes;
mod trace;
