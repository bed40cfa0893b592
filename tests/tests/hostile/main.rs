//! Attacks: what a hostile pod, tenant, neighbour, caller or file does, and what the
//! plugins do about it. One file for each seat of SECURITY.md.

mod files;
