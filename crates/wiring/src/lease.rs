//! Addresses for a pod.
//!
//! An IPAM plugin knows only what it has allocated itself. Other machines on the segment, or
//! nodes with a pool of their own, may use the same addresses. With `detectConflicts`, the
//! segment is probed before an address is used.

use std::net::IpAddr;

use anyhow::Result;
use cni::request::Add;
use cni::{AddResult, Code, Undo, delegate};
use netns::NetNs;

use crate::{Addressing, Gateway};

/// How many times IPAM is called. A probe finds a conflict within milliseconds, so this many fit
/// into the timeout of any runtime. More conflicts than this are no coincidence.
const TRIES: usize = 16;

/// The addresses and routes of a pod whose network has no gateway on this node, as [`acquire`] gets
/// them.
///
/// # Errors
/// As [`acquire`].
pub fn addressing<C>(
    request: &Add<C>,
    netns: &NetNs,
    detect_conflicts: bool,
    undo: &mut Undo,
) -> Result<Option<Addressing>> {
    let lease = acquire(request, netns, detect_conflicts, undo)?;
    Ok(lease.map(|lease| Addressing::new(lease, Gateway::None)))
}

/// Gets addresses from the IPAM plugin; `None` without `ipam`. Releasing them is pushed on `undo`.
///
/// With `detect_conflicts`, addresses that another host on the segment uses are released, and
/// others are requested from IPAM. The pod's interface must exist; it is up afterwards.
///
/// # Errors
/// Code 11 if IPAM returns the same addresses again (they are fixed), or addresses in conflict
/// too often; errors of the IPAM plugin and of [`netlink::find_conflict`].
pub fn acquire<C>(
    request: &Add<C>,
    netns: &NetNs,
    detect_conflicts: bool,
    undo: &mut Undo,
) -> Result<Option<AddResult>> {
    let call = &request.call;
    if !detect_conflicts {
        return delegate::ipam_add(call, undo);
    }
    let ifname = request.attachment.ifname.as_str();
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
        let Some(conflict) = netlink::find_conflict(netns, ifname, &addresses)? else {
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
