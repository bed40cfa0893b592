//! firewall: lets the packets of a pod through the node's firewall, and keeps pods behind other
//! bridges away from it.
//!
//! A chained plugin: it runs after the plugin that gave the pod its addresses, and returns that
//! plugin's result unchanged.

pub mod conf;
pub mod node;
mod note;
pub mod plan;

use anyhow::{Context, Result};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Attachment, BestEffort, Code, Plugin, Undo, Version, WithLabel};
use packet_filter::FirewallBackend;
use wiring::notes::Notes;

pub use crate::conf::Conf;
use crate::note::Note;
pub use crate::plan::Plan;
use crate::plan::addresses;

/// The plugin.
pub struct Firewall;

impl Plugin for Firewall {
    const NAME: &'static str = "firewall";
    /// Those with CHECK, as the Go plugin.
    const VERSIONS: &'static [Version] = &[Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let owner = &request.attachment;
        let plan = Plan::new(&request.conf)?;
        let previous = request.call.required_prev_result(MISSING)?;
        let wanted = plan.wanted(&previous)?;
        let backend = choose(plan.backend)?;
        let is_repeated = node::is_noted(owner);
        let note = Note::new(backend, &plan.zone, &wanted.addresses);
        if !is_repeated {
            let (owner, note) = (owner.clone(), note.clone());
            undo.push("remove the rules of the pod", move || forget(&owner, &note));
        }
        node::record(owner, &wanted, backend)?;
        wanted.add(backend, is_repeated)?;
        Ok(previous)
    }

    /// Finds the rules by what ADD has noted, else by the result.
    fn del(request: &Del<Conf>) -> Result<()> {
        let owner = &request.attachment;
        let note = notes(&owner.network).find(owner);
        let note = note.and_then(|note| note.parse().ok()).or_else(|| {
            let previous = request.call.prev_result_hint()?;
            let backend = choose(FirewallBackend::named(&request.conf.backend)).ok()?;
            let zone = Plan::new(&request.conf).ok()?.zone;
            Some(Note::new(backend, &zone, &addresses(&previous)))
        });
        forget(owner, &note.unwrap_or_default())
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let previous = request.call.required_prev_result(MISSING)?;
        plan.wanted(&previous)?.check(choose(plan.backend)?)
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        node::collect(&request.call.network, &request.valid)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let usable = choose(plan.backend)?.try_out();
        usable
            .context("let packets of pods through")
            .code(Code::NotAvailable)
    }
}

/// The Go plugin's text.
const MISSING: &str = "missing prevResult from earlier plugin";

fn notes(network: &str) -> Notes {
    Notes::of(Firewall::NAME, network)
}

/// The back end that the configuration names, or the one for this node.
fn choose(named: Option<FirewallBackend>) -> Result<FirewallBackend> {
    named.map_or_else(FirewallBackend::choose, Ok)
}

/// Removes the policy of a bridge that no pod uses any more.
fn drop_policy(what: &str) -> Result<()> {
    match note::policy_of(what) {
        Some((kind, bridge)) => packet_filter::drop_ingress(kind, bridge),
        None => Ok(()),
    }
}

/// Removes the rules of an attachment, and what only this one used.
fn forget(owner: &Attachment, note: &Note) -> Result<()> {
    let mut all = BestEffort::new();
    let removed = all.step("remove the rules of the pod", || note.remove());
    // The note is needed as long as there are rules.
    if removed.is_some() {
        all.step("forget the pod", || {
            notes(&owner.network).remove(owner, drop_policy)
        });
    }
    all.finish()
}
