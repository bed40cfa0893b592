//! host-local: hands out addresses from ranges of this node and remembers on
//! its disk who holds them.
//!
//! It is a library because main plugins call it rather than execute it where
//! the executable in `CNI_PATH` is this build: see [`cni::linked`].
//!
//! The files are those of the Go plugin of the same name, so that a node can
//! switch to this one, and back, under running pods. What is added lies beside
//! them: an index by owner, which spares ADD and DEL the search through every
//! reservation.

pub mod allocator;
pub mod conf;
mod file;
pub mod index;
pub mod network;
pub mod owner;
pub mod plan;
pub mod range;
pub mod resolv_conf;
mod usage;

use std::collections::HashSet;

use anyhow::Result;
use cni::linked::{self, Linked};
use cni::result::{Dns, IpConfig};
use cni::{Add, AddResult, BestEffort, Check, Code, Del, Gc, Plugin, Status, Undo, WithLabel};

use crate::allocator::{Lease, Refusal};
use crate::conf::Conf;
use crate::network::{Holder, Network, Place};
use crate::owner::Owner;
use crate::plan::Plan;

pub use usage::{Usage, usage};

/// This build: a hash of the sources, which changes with whatever may change what it does.
pub const BUILD: [u8; linked::BUILD] = *include_bytes!(concat!(env!("OUT_DIR"), "/build"));

/// This plugin, for one that calls it.
pub const LINKED: Linked = Linked::of::<HostLocal>(BUILD);

/// The plugin.
#[derive(Debug)]
pub struct HostLocal;

impl Plugin for HostLocal {
    const NAME: &'static str = "host-local";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf, request.call.version, &request.call.args)?;
        let dns = match &plan.resolv_conf {
            Some(path) => resolv_conf::read(path)?,
            None => Dns::default(),
        };
        let place = Place::new(&plan.data_dir, &request.call.network);
        let mut network = Network::create(&place)?;
        let mut holder = Holder::new(&mut network, &request.attachment)?;

        let mut wanted = plan.requested.clone();
        let mut ips = Vec::new();
        for (number, set) in plan.sets.iter().enumerate() {
            let requested = plan.requested_of(number, &mut wanted);
            let lease = allocator::allocate(set, number, requested, &mut holder)
                .map_err(|refusal| refused(number, refusal))?;
            give_back(undo, &place, holder.owner(), &lease);
            ips.push(IpConfig {
                interface: None,
                address: lease.address,
                gateway: Some(lease.gateway),
            });
        }
        if !wanted.is_empty() {
            let list: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            let ranges: Vec<_> = plan.sets.iter().map(ToString::to_string).collect();
            let msg = format!("failed to allocate all requested IPs: {}", list.join(" "));
            let details = format!("one from each of these ranges: {}", ranges.join("; "));
            return Err(Code::Internal.err(msg).details(details).into());
        }
        Ok(AddResult {
            interfaces: Vec::new(),
            ips,
            routes: plan.routes,
            dns,
        })
    }

    fn del(request: &Del<Conf>) -> Result<()> {
        release(request)?;
        // Such a configuration never had an attachment, so the Go plugin's DEL
        // refuses it too, and its test suite asks for that.
        Ok(plan::check_version(&request.conf, request.call.version)?)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.version, &request.call.args)?;
        let place = Place::new(&plan.data_dir, &request.call.network);
        if let Some(mut network) = Network::find(&place)? {
            for owner in Owner::both(&request.attachment) {
                if !network.held_by(&owner)?.is_empty() {
                    return Ok(());
                }
            }
        }
        anyhow::bail!(
            "host-local: Failed to find address added by container {}",
            request.attachment.container_id
        )
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let place = Place::new(&request.conf.data_dir(), &request.call.network);
        let Some(mut network) = Network::find(&place)? else {
            return Ok(());
        };
        let valid: HashSet<Owner> = request.valid.iter().flat_map(Owner::of_valid).collect();
        network.retain(|owner| valid.contains(owner))
    }

    /// Fails for reasons of the node only. Whether an address is free changes with every
    /// pod: containerd and CRI-O report a node whose STATUS fails as not ready, and
    /// Kubernetes evicts its pods, which are well. So ADD tells that a pool is exhausted.
    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.version, "")?;
        if let Some(path) = &plan.resolv_conf {
            resolv_conf::read(path).code(Code::NotAvailable)?;
        }
        let place = Place::new(&plan.data_dir, &request.call.network);
        network::probe(&place).code(Code::NotAvailable)
    }
}

/// Gives back what the attachment holds.
fn release(request: &Del<Conf>) -> Result<()> {
    let place = Place::new(&request.conf.data_dir(), &request.call.network);
    let Some(mut network) = Network::find(&place)? else {
        return Ok(());
    };
    // A reservation with only the container id was written by a Go plugin
    // of before 2018; like the Go plugin, we take it for ours only where
    // there is none with the interface.
    let mut owner = Owner::of(&request.attachment);
    if network.held_by(&owner)?.is_empty() {
        owner = Owner::legacy(&request.attachment);
    }
    let mut all = BestEffort::new();
    for reservation in network.held_by(&owner)? {
        all.step("release address", || {
            network.release(&owner, reservation.ip)
        });
    }
    all.finish()
}

/// The error of an ADD that got no address from range set `number`. An empty
/// pool may fill again, so the runtime is told to try again later.
fn refused(number: usize, refusal: Refusal) -> anyhow::Error {
    let error = match refusal {
        Refusal::Store(error) => error,
        Refusal::Exhausted(_) => Code::TryAgain.err(refusal.to_string()).into(),
        _ => anyhow::anyhow!(refusal.to_string()),
    };
    error.context(format!("failed to allocate for range {number}"))
}

/// Only what this ADD took is given back: another attachment under the same
/// name may be the reason why it failed.
fn give_back(undo: &mut Undo, place: &Place, owner: &Owner, lease: &Lease) {
    let (place, owner, ip) = (place.clone(), owner.clone(), lease.address.ip());
    undo.push(
        format!("release address {ip}"),
        move || match Network::find(&place)? {
            Some(mut network) => network.release(&owner, ip),
            None => Ok(()),
        },
    );
}
