//! host-local: hands out addresses from ranges of this node and stores the reservations on
//! its disk.
//!
//! Main plugins call it instead of executing it if the executable in `CNI_PATH` is the same
//! build: see [`cni::linked`].
//!
//! The files are those of the Go plugin of the same name, so that a node can switch to this
//! plugin, and back, under running pods. An index by owner lies beside them, so that ADD and
//! DEL need not read every reservation.

pub mod allocator;
pub mod boot;
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
use cni::result::IpConfig;
use cni::{Add, AddResult, BestEffort, Check, Code, Del, Gc, Plugin, Status, Undo, WithLabel};

use crate::allocator::{Lease, Refusal};
use crate::conf::Conf;
use crate::network::{Holder, Network, Place};
use crate::owner::Owner;
use crate::plan::Plan;

pub use usage::{Usage, forget, reserved, usage};

/// The name of this build: a hash of all sources that decide what the plugin does.
pub const BUILD: [u8; linked::BUILD] = *include_bytes!(concat!(env!("OUT_DIR"), "/build"));

/// This plugin, for plugins that call it.
pub const LINKED: Linked = cni::link::<HostLocal>(BUILD);

/// The plugin.
#[derive(Debug)]
pub struct HostLocal;

impl Plugin for HostLocal {
    const NAME: &'static str = "host-local";
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let plan = Plan::new(&request.conf, request.call.version, &request.call.args)?;
        let dns = plan.resolv_conf.as_deref().map(resolv_conf::read);
        let dns = dns.transpose()?.unwrap_or_default();
        let place = Place::new(&plan.data_dir, &request.call.network);
        if !request.call.is_linked {
            // Perhaps by a Go plugin, whose pods have random MACs.
            cni::foreign::note(&request.call.network);
        }
        let mut network = Network::create(&place)?;
        let mut holder = Holder::new(&mut network, &request.attachment)?;

        let mut wanted = plan.requested.clone();
        let mut ips = Vec::new();
        for (number, set) in plan.sets.iter().enumerate() {
            let requested = plan.requested_of(number, &mut wanted);
            let lease = allocator::allocate(set, number, requested, &mut holder)
                .map_err(|refusal| refused(number, refusal))?;
            push_release(undo, &place, holder.owner(), &lease);
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
        // No ADD with such a configuration has succeeded. The Go plugin's DEL refuses it too,
        // and its test suite checks that.
        Ok(plan::check_version(&request.conf, request.call.version)?)
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.version, &request.call.args)?;
        let place = Place::new(&plan.data_dir, &request.call.network);
        let id = request.attachment.container_id.as_str();
        if let Some(mut network) = Network::find(&place)? {
            let owners = Owner::both(&request.attachment);
            let held = network.held_by(id)?;
            if held.iter().any(|it| owners.contains(&it.owner)) {
                return Ok(());
            }
        }
        anyhow::bail!("host-local: Failed to find address added by container {id}")
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let place = Place::new(&request.conf.data_dir(), &request.call.network);
        let Some(mut network) = Network::find(&place)? else {
            return Ok(());
        };
        let valid: HashSet<Owner> = request.valid.iter().flat_map(Owner::of_valid).collect();
        network.retain(|owner| valid.contains(owner))
    }

    /// Fails only for reasons of the node, not if no address is free: containerd and CRI-O
    /// report a node whose STATUS fails as not ready, and Kubernetes then evicts its pods. ADD
    /// reports an exhausted pool.
    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf, request.call.version, "")?;
        if let Some(path) = &plan.resolv_conf {
            resolv_conf::read(path).code(Code::NotAvailable)?;
        }
        let place = Place::new(&plan.data_dir, &request.call.network);
        network::probe(&place).code(Code::NotAvailable)
    }
}

/// Releases the addresses of the attachment.
fn release(request: &Del<Conf>) -> Result<()> {
    let place = Place::new(&request.conf.data_dir(), &request.call.network);
    let Some(mut network) = Network::find(&place)? else {
        return Ok(());
    };
    let held = network.held_by(request.attachment.container_id.as_str())?;
    // Go plugins before 2018 wrote reservations with only the container id. As in the Go
    // plugin, such a reservation counts only if there is none with the interface.
    let [newer, legacy] = Owner::both(&request.attachment);
    let is_newer = held.iter().any(|it| it.owner == newer);
    let owner = if is_newer { newer } else { legacy };
    let mut all = BestEffort::new();
    for reservation in held.iter().filter(|it| it.owner == owner) {
        all.step("release address", || network.release(reservation));
    }
    all.finish()
}

/// The error of an ADD that got no address from range set `number`. An exhausted pool has code
/// 11, because an address may be released later.
fn refused(number: usize, refusal: Refusal) -> anyhow::Error {
    let error = match refusal {
        Refusal::Store(error) => error,
        Refusal::Exhausted(_) => Code::TryAgain.err(refusal.to_string()).into(),
        _ => anyhow::anyhow!(refusal.to_string()),
    };
    error.context(format!("failed to allocate for range {number}"))
}

/// Pushes the release of the address of this ADD, and of no other: the ADD may fail because
/// the attachment already exists.
fn push_release(undo: &mut Undo, place: &Place, owner: &Owner, lease: &Lease) {
    let (place, owner, ip) = (place.clone(), owner.clone(), lease.address.ip());
    undo.push(format!("release address {ip}"), move || {
        let Some(mut network) = Network::find(&place)? else {
            return Ok(());
        };
        let held = network.held_by(owner.container())?;
        let mut own = held
            .iter()
            .filter(|it| it.record.ip == ip && it.owner == owner);
        own.try_for_each(|it| network.release(it))
    });
}
