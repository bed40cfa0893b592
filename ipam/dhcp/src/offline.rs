//! What DEL and GC do while no daemon runs: there may be leases on disk that a
//! daemon would take up again when it starts, for pods that are gone by then.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cni::{Code, Error};
use netlink::Mac;

use crate::lease::{Held, Lease, Patience};
use crate::pod;
use crate::socket::PacketSocket;
use crate::store::{Owner, Record, Store, directory};

/// The leases of the daemon at `socket`, if there are any and nobody has them.
///
/// # Errors
/// Code 11 while another program has them: a daemon that starts or ends.
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

/// Gives the lease of `owner` back, if one is known: to its server if that can be
/// done, and in any case so that no daemon takes it up again.
///
/// # Errors
/// When leases are in use, or cannot be removed.
pub fn release(socket: &str, owner: &Owner, netns: Option<&Path>) -> Result<()> {
    let Some(store) = open(socket)? else {
        return Ok(());
    };
    if let Some(record) = store.find(owner) {
        tell_the_server(&record, netns);
    }
    store.remove(owner)
}

/// The same for every lease on `network` that `in_use` does not know.
///
/// # Errors
/// As [`release`].
pub fn collect(socket: &str, network: &str, in_use: impl Fn(&Owner) -> bool) -> Result<()> {
    let Some(store) = open(socket)? else {
        return Ok(());
    };
    for record in store.load()? {
        if record.owner.network == network && !in_use(&record.owner) {
            tell_the_server(&record, None);
            store.remove(&record.owner)?;
        }
    }
    Ok(())
}

/// Sends one packet, and is content when it cannot: a server that does not hear of
/// it has the address back when the lease ends.
fn tell_the_server(record: &Record, netns: Option<&Path>) {
    if let Err(error) = try_to_tell(record, netns) {
        let id = record.owner.client_id();
        cni::log(format_args!(
            "{id}: failed to release DHCP lease: {error:#}"
        ));
    }
}

fn try_to_tell(record: &Record, netns: Option<&Path>) -> Result<()> {
    let Some(grant) = &record.grant else {
        return Ok(());
    };
    let mut place = record.place.clone();
    if let Some(netns) = netns {
        // The daemon's path may have had a prefix.
        place.netns = PathBuf::from(netns);
    }
    let Some(interface) = pod::reopen(&place, &record.owner.ifname)? else {
        return Ok(());
    };
    let patience = Patience {
        answer: 0,
        pause: 0,
        whole: 0,
    };
    let held = Held {
        terms: grant.terms.clone(),
        since: 0,
    };
    let seed = u64::from(std::process::id());
    let mut lease = Lease::new(record.identity.clone(), patience, seed, 0);
    lease = lease.remembered(Some(held), 0, 0);
    let Some(step) = lease.release(0) else {
        return Ok(());
    };
    let socket = PacketSocket::open(&interface.netns, interface.link.index, lease.xid())?;
    pod::send(&socket, &step, interface.mac, Some(Mac(grant.server_mac)))
}
