//! Addresses that nobody on the pod's segment has already.
//!
//! An IPAM plugin knows what it handed out itself. On a segment that is shared
//! with other machines, or with nodes that have a pool of their own each, that is
//! not all there is: the segment is asked, too.

use std::net::IpAddr;

use anyhow::Result;
use cni::env::IfName;
use cni::{AddResult, Call, Code, Undo, delegate};
use netns::NetNs;

/// How many times IPAM is asked. A taken address is found out within milliseconds,
/// so that many fit into the patience of any runtime; more of them are no accident.
const TRIES: usize = 16;

/// Asks IPAM for addresses, and the segment of `ifname` whether anybody has them.
/// Those that somebody has are released, and IPAM is asked for others. The interface
/// must be there, and is up afterwards; releasing the addresses is pushed on `undo`.
/// `None` if the configuration has no IPAM plugin.
///
/// # Errors
/// Code 11 when IPAM gives the same addresses again (a fixed one), or others that
/// somebody has, too many times; what IPAM says; as [`netlink::find_conflict`].
pub fn without_conflict(
    call: &Call,
    netns: &NetNs,
    ifname: &IfName,
    undo: &mut Undo,
) -> Result<Option<AddResult>> {
    let mut conflicts: Vec<String> = Vec::new();
    let mut last = Vec::new();
    for _ in 0..TRIES {
        let Some(lease) = delegate::ipam_add(call, undo)? else {
            return Ok(None);
        };
        let addresses: Vec<IpAddr> = lease.ips.iter().map(|ip| ip.address.ip()).collect();
        if addresses == last {
            break;
        }
        let Some(conflict) = netlink::find_conflict(netns, ifname.as_str(), &addresses)? else {
            return Ok(Some(lease));
        };
        cni::log(format_args!("address conflict: {conflict}"));
        conflicts.push(conflict.to_string());
        delegate::ipam_del(call)?;
        last = addresses;
    }
    let conflicts = conflicts.join(", ");
    Err(Code::TryAgain
        .err(format!("address conflict: {conflicts}"))
        .into())
}
