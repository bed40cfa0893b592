//! firewall: lets the packets of a pod through the node's firewall, and keeps pods behind other
//! bridges away from it.
//!
//! A chained plugin: it runs after the plugin that gave the pod its addresses, and returns that
//! plugin's result unchanged.

pub mod conf;
mod note;
pub mod plan;

use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use cni::request::{Add, Check, Del, Gc, Status};
use cni::{AddResult, Attachment, BestEffort, Code, Plugin, Undo, Version, WithLabel};
use packet_filter::{Family, Firewalld, Ingress, Iptables, Nftables};
use wiring::notes::Notes;

pub use crate::conf::Conf;
use crate::note::Note;
pub use crate::plan::Plan;
use crate::plan::{Backend, addresses};

/// The plugin.
pub struct Firewall;

impl Plugin for Firewall {
    const NAME: &'static str = "firewall";
    /// Those with CHECK, as the Go plugin.
    const VERSIONS: &'static [Version] = &[Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
    type Conf = Conf;

    fn add(request: &Add<Conf>, undo: &mut Undo) -> Result<AddResult> {
        let (call, owner) = (&request.call, &request.attachment);
        let plan = Plan::new(&request.conf)?;
        let previous = call.required_prev_result(MISSING)?;
        let wanted = plan.wanted(&previous)?;
        let backend = choose(plan.backend)?;
        let policy = policy_backend(backend)?;
        let notes = notes(&owner.network);
        let is_repeated = notes.find(owner).is_some();
        let note = Note::new(backend, &plan.zone, &wanted.addresses);
        if !is_repeated {
            let (owner, note) = (owner.clone(), note.clone());
            undo.push("remove the rules of the pod", move || forget(&owner, &note));
        }
        // With nftables, only a policy leaves anything on the node.
        if backend != Backend::Nftables || wanted.ingress.is_some() {
            let what = what(policy, wanted.ingress.as_ref());
            notes.add(&what, owner, &note.to_string())?;
        }
        match backend {
            Backend::Iptables => Iptables::new().add_firewall(&wanted, is_repeated)?,
            Backend::Nftables => {}
            Backend::Firewalld => {
                let mut firewalld = Firewalld::connect()?;
                let mut ips = wanted.addresses.iter();
                ips.try_for_each(|ip| firewalld.add(&plan.zone, *ip))?;
            }
        }
        apply(policy, backend, &wanted)?;
        Ok(previous)
    }

    /// Finds the rules by what ADD has noted, else by the result.
    fn del(request: &Del<Conf>) -> Result<()> {
        let owner = &request.attachment;
        let note = notes(&owner.network).find(owner);
        let note = note.and_then(|note| note.parse().ok()).or_else(|| {
            let previous = request.call.prev_result_hint()?;
            let backend = choose(Backend::named(&request.conf.backend)).ok()?;
            let zone = Plan::new(&request.conf).ok()?.zone;
            Some(Note::new(backend, &zone, &addresses(&previous)))
        });
        forget(owner, &note.unwrap_or_default())
    }

    fn check(request: &Check<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let previous = request.call.required_prev_result(MISSING)?;
        let wanted = plan.wanted(&previous)?;
        let backend = choose(plan.backend)?;
        match backend {
            Backend::Iptables => return Iptables::new().check_firewall(&wanted),
            Backend::Nftables => {}
            Backend::Firewalld => {
                let mut firewalld = Firewalld::connect()?;
                let mut ips = wanted.addresses.iter();
                ips.try_for_each(|ip| firewalld.check(&plan.zone, *ip))?;
            }
        }
        match &wanted.ingress {
            Some(ingress) if policy_backend(backend)? == Backend::Nftables => {
                nftables()?.check_ingress(ingress)
            }
            _ => Ok(()),
        }
    }

    fn gc(request: &Gc<Conf>) -> Result<()> {
        let clean = |note: &str| note.parse::<Note>().map_or(Ok(()), |note| remove(&note));
        notes(&request.call.network).collect(&request.valid, clean, drop_policy)
    }

    fn status(request: &Status<Conf>) -> Result<()> {
        let plan = Plan::new(&request.conf)?;
        let usable = match choose(plan.backend)? {
            Backend::Iptables => Iptables::new().try_out_filter(),
            Backend::Nftables => nftables().map(drop),
            Backend::Firewalld => Firewalld::find()
                .map(drop)
                .ok_or_else(|| anyhow!("firewalld is not on the system bus")),
        };
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

/// The back end that the configuration names, else as the Go plugin: firewalld if it runs, else
/// iptables; nftables where that is not installed.
fn choose(named: Option<Backend>) -> Result<Backend> {
    if let Some(named) = named {
        return Ok(named);
    }
    if Firewalld::find().is_some() {
        return Ok(Backend::Firewalld);
    }
    policy_backend(Backend::Firewalld)
}

/// What has the ingress policies: as in the Go plugin iptables, but nftables if that is the back end
/// or iptables is not installed.
fn policy_backend(backend: Backend) -> Result<Backend> {
    match backend {
        Backend::Firewalld if !Iptables::new().is_installed()? => Ok(Backend::Nftables),
        Backend::Firewalld => Ok(Backend::Iptables),
        other => Ok(other),
    }
}

fn nftables() -> Result<Nftables> {
    let found = Nftables::find_usable(Family::Ip).context("nftables is not usable")?;
    found.context("nftables is not usable: the kernel lacks nf_tables")
}

/// What an attachment uses, in the notes: the policy of a bridge, or nothing that others use.
fn what(policy: Backend, ingress: Option<&Ingress>) -> String {
    match ingress {
        Some(ingress) => format!("{}-{}", policy.name(), ingress.bridge),
        None => "open".to_owned(),
    }
}

/// Applies the ingress policy, if there is one. With iptables as the back end that is done already.
fn apply(policy: Backend, backend: Backend, wanted: &packet_filter::Firewall) -> Result<()> {
    match &wanted.ingress {
        Some(ingress) if policy == Backend::Nftables => nftables()?.ensure_ingress(ingress),
        Some(_) if backend == Backend::Firewalld => Iptables::new().add_ingress(wanted),
        _ => Ok(()),
    }
}

/// Removes the policy of a bridge that no pod uses any more; `what` as [`what()`] has it.
fn drop_policy(what: &str) -> Result<()> {
    match what.split_once('-') {
        Some(("iptables", bridge)) => Iptables::new().remove_ingress(bridge),
        Some(("nftables", bridge)) => match Nftables::find()? {
            Some(nftables) => nftables.closed_later().drop_ingress(bridge),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Removes the rules of an attachment, and what only this one used.
fn forget(owner: &Attachment, note: &Note) -> Result<()> {
    let mut all = BestEffort::new();
    let removed = all.step("remove the rules of the pod", || remove(note));
    // The note is needed as long as there are rules.
    if removed.is_some() {
        all.step("forget the pod", || {
            notes(&owner.network).remove(owner, drop_policy)
        });
    }
    all.finish()
}

/// Removes the rules of an attachment's addresses.
fn remove(note: &Note) -> Result<()> {
    match note.backend {
        Some(Backend::Iptables) => Iptables::new().remove_firewall(&note.addresses),
        Some(Backend::Firewalld) => {
            // Without it nothing lets packets through.
            let Some(mut firewalld) = Firewalld::find() else {
                return Ok(());
            };
            let mut ips = note.addresses.iter();
            ips.try_for_each(|ip: &IpAddr| firewalld.remove(&note.zone, *ip))
        }
        Some(Backend::Nftables) | None => Ok(()),
    }
}
