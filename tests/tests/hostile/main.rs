//! Attacks: what a hostile pod, tenant, neighbour, caller or file does, and what the
//! plugins do about it. One file for each seat of SECURITY.md.

mod callers;
mod files;
mod isolation;
// Hosts with a network between them, as the tests of vxlan have them.
#[allow(dead_code)]
#[path = "../vxlan/fleet.rs"]
mod fleet;
mod neighbours;
mod overlay;
mod pods;
mod ports;
mod spoofing;
mod tenants;
