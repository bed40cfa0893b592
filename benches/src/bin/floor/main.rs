//! The floor: the smallest set of kernel requests for a job of a CNI plugin.
//!
//! ```text
//! floor nothing
//! floor add|check|del loopback NETNS
//! floor add|check|del address FILE
//! floor add|check|del bridge NETNS ADDRESS FILE HOSTEND [masquerade] [PORT…]
//! floor add|check|del macvlan NETNS ADDRESS FILE PARENT
//! floor add|check|del firewall ADDRESS
//! floor forget-connections
//! floor peak PROGRAM [ARGUMENT…]
//! ```
//!
//! It parses, validates, allocates and undoes nothing, and relies on the present kernel: no program
//! that does the job can be much faster. `firewall` executes iptables, because the job is to change
//! its chains. `peak` runs a program and prints the most memory that it had; it is here because the
//! count of a child starts at that of its parent, so the parent must be small.

// A benchmark, never installed: one thread that ends inside the pod.
#![allow(clippy::disallowed_methods)]

mod jobs;
mod netlink;
mod nftables;
mod peak;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor {}: {error:#}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["nothing"] => Ok(()),
        ["forget-connections"] => nftables::forget_connections(),
        ["peak", program, args @ ..] => peak::run(program, args),
        [verb, "loopback", netns] => jobs::loopback(verb, netns),
        [verb, "address", file] => jobs::address(verb, file),
        [verb, "macvlan", netns, address, file, parent] => {
            jobs::macvlan(verb, netns, jobs::Held { address, file }, parent)
        }
        [verb, "firewall", address] => jobs::firewall(verb, address),
        [verb, "bridge", netns, address, file, host, more @ ..] => {
            // First, because the job itself ends inside the pod.
            outside(verb, address, more)?;
            jobs::bridge(verb, netns, jobs::Held { address, file }, host)
        }
        _ => bail!("no such job"),
    }
}

/// Masquerade and published ports, which are rules on the node.
fn outside(verb: &str, address: &str, words: &[&str]) -> Result<()> {
    let ports: Vec<u16> = words.iter().filter_map(|word| word.parse().ok()).collect();
    if words.contains(&"masquerade") && verb != "del" {
        nftables::rule_is_there()?;
    }
    if ports.is_empty() {
        return Ok(());
    }
    let address = address.parse()?;
    match verb {
        "add" => nftables::publish(address, &ports),
        "check" => nftables::published(&ports),
        _ => nftables::unpublish(address, &ports),
    }
}
