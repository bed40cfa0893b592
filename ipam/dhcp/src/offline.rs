//! What DEL and GC do while no daemon runs: the next daemon would restore leases on disk
//! for pods that are gone by then.

use std::path::Path;

use anyhow::Result;
use cni::{Code, Error};
use netlink::Mac;

use crate::lease;
use crate::pod;
use crate::socket::Socket;
use crate::store::{Owner, Record, Store, directory};

/// The leases of the daemon at `socket`, locked; `None` when there are none.
///
/// # Errors
/// Code 11 while another process has them: a daemon that starts or ends.
fn open(socket: &str) -> Result<Option<Store>> {
    let dir = directory("", socket);
    if !dir.exists() {
        return Ok(None);
    }
    match Store::open(&dir)? {
        Some(store) => Ok(Some(store)),
        None => Err(busy(&dir).into()),
    }
}

fn busy(dir: &Path) -> Error {
    let holder = dir.metadata().ok().and_then(|it| cni::lock::holder(&it));
    let who = holder.map_or(String::new(), |pid| format!(" by process {pid}"));
    let dir = dir.display();
    Code::TryAgain.err(format!(
        "leases in {dir} are in use{who}, and no daemon listens"
    ))
}

/// Removes the lease of `owner`, if there is one, and releases it at its server if that is
/// possible.
///
/// # Errors
/// When the leases are in use, or a file cannot be removed.
pub fn release(socket: &str, owner: &Owner, netns: Option<&Path>) -> Result<()> {
    let Some(store) = open(socket)? else {
        return Ok(());
    };
    if let Some(record) = store.find(owner) {
        release_at_server(&record, netns);
    }
    store.remove(owner)
}

/// The same for every lease of `network` that is not in use.
///
/// # Errors
/// As [`release`].
pub fn collect(socket: &str, network: &str, in_use: impl Fn(&Owner) -> bool) -> Result<()> {
    let Some(store) = open(socket)? else {
        return Ok(());
    };
    let leases = store.load()?;
    for record in &leases.records {
        if record.owner.network == network && !in_use(&record.owner) {
            release_at_server(record, None);
            store.remove(&record.owner)?;
        }
    }
    leases.ensure_all_read()
}

/// Sends one packet. A failure is only logged: the server frees the address when the lease
/// ends.
fn release_at_server(record: &Record, netns: Option<&Path>) {
    if let Err(error) = send_release(record, netns) {
        let id = record.owner.client_id();
        cni::log(format_args!(
            "{id}: failed to release DHCP lease: {error:#}"
        ));
    }
}

fn send_release(record: &Record, netns: Option<&Path>) -> Result<()> {
    let Some(grant) = &record.grant else {
        return Ok(());
    };
    let mut place = record.place.clone();
    if let Some(netns) = netns {
        // The daemon's path may have its -hostprefix.
        netns.clone_into(&mut place.netns);
    }
    let Some(interface) = pod::reopen(&place, &record.owner.ifname)? else {
        return Ok(());
    };
    let xid = std::process::id();
    let step = lease::release(&record.identity, &grant.terms, xid);
    let socket = Socket::open(&interface.netns, &interface.link, xid)?;
    pod::send(&socket, &step, interface.mac, Some(Mac(grant.server_mac)))
}
