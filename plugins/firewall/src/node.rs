//! What `podwire` does with the attachments of a node, by their notes.

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;
use packet_filter::{Firewall, FirewallBackend, Kind};

use crate::note::{self, Note};
use crate::{Plan, choose, drop_policy, notes};

/// Whether an ADD of podwire, or [`record`], has noted the attachment.
pub fn is_noted(owner: &Attachment) -> bool {
    notes(&owner.network).find(owner).is_some()
}

/// What has the attachment's rules: as noted, else as the configuration says, or this node.
///
/// # Errors
/// A directory of `PATH` cannot be searched.
pub fn backend(owner: &Attachment, plan: &Plan) -> Result<FirewallBackend> {
    let noted = notes(&owner.network).find(owner);
    let noted = noted.and_then(|note| note.parse::<Note>().ok()?.backend);
    noted.map_or_else(|| choose(plan.backend), Ok)
}

/// Notes what an attachment has on the node. With nftables, only a policy leaves anything.
///
/// # Errors
/// The note cannot be written.
pub fn record(owner: &Attachment, wanted: &Firewall, backend: FirewallBackend) -> Result<()> {
    if backend == FirewallBackend::Nftables && wanted.ingress.is_none() {
        return Ok(());
    }
    let note = Note::new(backend, &wanted.zone, &wanted.addresses);
    let what = note::what(wanted, backend)?;
    notes(&owner.network).add(&what, owner, &note.to_string())
}

/// Forgets an attachment whose rules the Go plugin has from now on. What is in iptables and
/// firewalld stays; a policy in nftables goes with the last attachment.
///
/// # Errors
/// A file cannot be removed; what the kernel refuses.
pub fn hand_over(owner: &Attachment) -> Result<()> {
    let drop_in_nftables = |what: &str| match note::policy_of(what) {
        Some((Kind::Nftables, _)) => drop_policy(what),
        _ => Ok(()),
    };
    notes(&owner.network).remove(owner, drop_in_nftables)
}

/// Removes the rules of attachments that are not `valid`.
///
/// # Errors
/// What a back end refuses; a file cannot be read or removed.
pub fn collect(network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let clean = |note: &str| note.parse().map_or(Ok(()), |note: Note| note.remove());
    notes(network).collect(valid, clean, drop_policy)
}
