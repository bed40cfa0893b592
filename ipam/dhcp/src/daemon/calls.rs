//! What plugins call: allocate, release, check and GC.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use cni::AddResult;
use cni::conf::valid_attachments;
use cni::json::Json;

use super::clock::now;
use super::connection::Call;
use super::table::Entry;
use super::{Daemon, Io};
use crate::lease::Identity;
use crate::plan::Plan;
use crate::pod::{self, Interface};
use crate::rpc::{self, Answer, Arguments, Header, NO_METHOD};
use crate::store::{Owner, Place, Record};

impl Daemon {
    pub fn on_call(&mut self, connection: u32, call: Call) {
        let answer = match call.header.method.as_str() {
            rpc::ALLOCATE => match self.allocate(&call.arguments) {
                Ok(key) => return self.wait_for(key, connection, call.header),
                Err(error) => Err(error),
            },
            rpc::RELEASE => read_owner(&call.arguments)
                .and_then(|(owner, _)| self.release(&owner))
                .map(|()| None),
            rpc::CHECK => self.check(&call.arguments).map(Some),
            rpc::GC => self.collect(&call.arguments).map(|()| None),
            other => Err(anyhow!("{NO_METHOD} {other}")),
        };
        self.io.answer(connection, &call.header, &answer);
    }

    /// Starts to acquire a lease, unless it is held or being acquired; returns its key.
    fn allocate(&mut self, arguments: &Arguments) -> Result<u32> {
        let (owner, document) = read_owner(arguments)?;
        let plan = Plan::new(&cni::conf::load(&document)?, &arguments.args)?;
        let netns = PathBuf::from(format!("{}{}", self.host_prefix, arguments.netns));
        let identity = plan.identity(&owner.client_id());
        let interface = pod::open(&netns, &owner.ifname)?;
        let place = place(netns, &interface)?;
        if let Some(key) = self.table.key_of(&owner) {
            self.allocate_again(key, place, identity, plan.priority);
            return Ok(key);
        }
        let lease = self.new_lease(identity);
        let entry = Entry::new(owner, place, plan.priority, lease);
        entry.log(format_args!("acquiring lease"));
        Ok(self.table.insert(entry))
    }

    /// Another ADD for the same pod gets the lease that the pod has. If the runtime has
    /// created the pod anew under the same id, it gets the same address if the server
    /// agrees.
    fn allocate_again(&mut self, key: u32, place: Place, identity: Identity, priority: u32) {
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        let same_netns = entry.place.inode == place.inode && !entry.lease.is_suspended();
        let same_link = entry.place.mac == place.mac || entry.lease.held().is_none();
        entry.place = place;
        entry.priority = priority;
        if !same_netns || !same_link {
            entry.log(format_args!("acquiring lease on another interface"));
            entry.lease.restart(identity, now());
            entry.applied = None;
            entry.delivered = false;
            self.io.close_socket(entry);
        } else if entry.lease.held().is_none() {
            entry.lease.start_deadline(now());
        }
    }

    fn wait_for(&mut self, key: u32, connection: u32, header: Header) {
        if let Some(open) = self.io.connections.get_mut(&connection) {
            open.waits_for = Some(key);
        }
        if let Some(entry) = self.table.get_mut(key) {
            entry.waiting.push((connection, header));
        }
        self.settle(key);
        // At once, rather than after the other events.
        self.on_timers();
    }

    fn check(&self, arguments: &Arguments) -> Result<AddResult> {
        let (owner, _) = read_owner(arguments)?;
        let entry = self.table.find(&owner);
        entry
            .filter(|entry| !entry.lease.is_suspended())
            .and_then(|entry| Some(entry.lease.held()?.terms.to_result(entry.priority)))
            .ok_or_else(|| anyhow!("no lease is held for {}", owner.client_id()))
    }

    /// Releases a lease. The plugin is answered after the packet has been sent, because the
    /// main plugin deletes the link next.
    ///
    /// # Errors
    /// When its file cannot be removed: the next daemon would restore it.
    fn release(&mut self, owner: &Owner) -> Result<()> {
        let key = self.table.key_of(owner);
        let Some(mut entry) = key.and_then(|key| self.table.remove(key)) else {
            // The file may be unreadable, or an earlier removal may have failed.
            return self.io.store.remove(owner);
        };
        self.io.refuse_waiting(&mut entry, "the lease is released");
        entry.log(format_args!("releasing lease"));
        self.io.give_back(&mut entry);
        self.io.drop_lease(entry)
    }

    /// Releases the network's leases that no valid attachment has; one that fails does not
    /// keep it from the others.
    fn collect(&mut self, arguments: &Arguments) -> Result<()> {
        let (owner, document) = read_owner(arguments)?;
        let Some(valid) = valid_attachments(&document)? else {
            return Ok(());
        };
        let in_use = |it: &Owner| {
            valid
                .iter()
                .any(|valid| valid.container_id == it.container_id && valid.ifname == it.ifname)
        };
        let of_network = self.table.owners().filter(|it| it.network == owner.network);
        let stale: Vec<_> = of_network.filter(|it| !in_use(it)).cloned().collect();
        let mut done: Vec<_> = stale.iter().map(|owner| self.release(owner)).collect();
        let leases = self.io.store.load()?;
        for Record { owner: it, .. } in &leases.records {
            // The daemon could not read this file when it started. The server frees the address at the end of the lease.
            if it.network == owner.network && !in_use(it) && self.table.find(it).is_none() {
                done.push(self.io.store.remove(it));
            }
        }
        done.push(leases.ensure_all_read());
        done.into_iter().collect()
    }

    /// Drops a lease that was not granted or has ended.
    pub fn forget(&mut self, key: u32) {
        if let Some(entry) = self.table.remove(key)
            && let Err(error) = self.io.drop_lease(entry)
        {
            cni::log(format_args!("failed to drop the lease: {error:#}"));
        }
    }
}

impl Io {
    fn answer(&mut self, connection: u32, header: &Header, answer: &Answer) {
        let Some(open) = self.connections.get_mut(&connection) else {
            return;
        };
        open.waits_for = None;
        if open.answer(header, answer).is_err() {
            self.close_connection(connection);
        }
    }

    /// Answers the plugins that wait for a lease, once it is held and confirmed.
    pub fn answer_waiting(&mut self, entry: &mut Entry) {
        let Some(held) = entry.lease.held() else {
            return;
        };
        if entry.waiting.is_empty() || (!entry.delivered && entry.lease.is_asking()) {
            return;
        }
        let answer = Ok(Some(held.terms.to_result(entry.priority)));
        entry.applied = Some(held.terms.clone());
        entry.delivered = true;
        self.answer_all(entry, &answer);
    }

    pub fn refuse_waiting(&mut self, entry: &mut Entry, why: &'static str) {
        self.answer_all(entry, &Err(anyhow!(why)));
    }

    /// Releases the lease at its server, if one is held.
    pub fn give_back(&mut self, entry: &mut Entry) {
        if let Some(step) = entry.lease.release() {
            let sent = self.try_to_send(entry, &step).map(drop);
            entry.log_failure("release DHCP lease", sent);
        }
    }

    pub fn answer_all(&mut self, entry: &mut Entry, answer: &Answer) {
        for (connection, header) in std::mem::take(&mut entry.waiting) {
            self.answer(connection, &header, answer);
        }
    }

    fn drop_lease(&mut self, mut entry: Entry) -> Result<()> {
        self.close_socket(&mut entry);
        self.store.remove(&entry.owner)
    }
}

fn place(netns: PathBuf, interface: &Interface) -> Result<Place> {
    Ok(Place {
        inode: pod::inode(&netns)?,
        netns,
        mac: interface.mac.0,
    })
}

/// The owner of the lease that a call is about, and the configuration.
fn read_owner(arguments: &Arguments) -> Result<(Owner, Json)> {
    let document =
        Json::parse(&arguments.stdin).map_err(|error| anyhow!("error parsing netconf: {error}"))?;
    let network = match document.get("name") {
        Some(Json::String(name)) => name,
        _ => String::new(),
    };
    let owner = Owner {
        container_id: arguments.container_id.clone(),
        network,
        ifname: arguments.ifname.clone(),
    };
    Ok((owner, document))
}
