//! The rules of the plugin firewall, of all attachments in the cache: restored after a flush, taken
//! over from the Go plugin, and handed over to it.

use anyhow::Result;
use firewall::node as noted;
use packet_filter::node::{Firewalled, Missing, Report};
use packet_filter::{FirewallBackend, Iptables, Kind};

use crate::pods::{Attached, Plan};

/// Restores what is missing, and notes attachments that are not noted. `dry` only reports.
///
/// # Errors
/// What a back end refuses.
pub fn resync(attached: &[Attached], dry: bool) -> Result<Report> {
    let all = firewalled(attached)?;
    let missing = Missing::of(&all)?;
    let mut report = Report::default();
    for it in all.iter().filter(|it| missing.has(&it.owner)) {
        if !dry {
            noted::record(&it.owner, &it.wanted, it.backend)?;
        }
        report.done.push(line(it));
    }
    report.left.extend(missing.left.iter().cloned());
    report.transactions = missing.restore(dry)?;
    Ok(report)
}

/// Takes over the rules of the Go plugin: they are podwire's once they are noted, but for those of
/// a configuration that names nftables, which the Go plugin has in iptables or firewalld.
///
/// # Errors
/// What a back end refuses.
pub fn adopt(attached: &[Attached], dry: bool) -> Result<Report> {
    let mut report = Report::default();
    let mut all = firewalled(attached)?;
    all.retain(|it| !noted::is_noted(&it.owner));
    let of_go = as_go_has_them(&all)?;
    let missing = Missing::of(&of_go)?;
    for (it, go) in all.iter().zip(&of_go) {
        if go.backend == FirewallBackend::Nftables || missing.has(&it.owner) {
            continue;
        }
        report.done.push(line(it));
        if dry {
            continue;
        }
        noted::record(&it.owner, &it.wanted, it.backend)?;
        it.wanted.add(it.backend, true)?;
        if it.backend == FirewallBackend::Nftables {
            let (wanted, policies) = (&it.wanted, go.backend.of_policies()?);
            go.backend.remove(&wanted.zone, &wanted.addresses)?;
            if let Some(ingress) = &wanted.ingress {
                packet_filter::drop_ingress(policies, &ingress.bridge)?;
            }
        }
    }
    report.left.extend(missing.left.iter().cloned());
    Ok(report)
}

/// Hands the rules over to the Go plugin: it has those in iptables and firewalld as they are, and
/// gets those of nftables there. `whole`: all networks are released.
///
/// # Errors
/// What a back end refuses.
pub fn release(attached: &[Attached], whole: bool, dry: bool) -> Result<Report> {
    let mut report = Report::default();
    let all = firewalled(attached)?;
    let of_go = as_go_has_them(&all)?;
    let (mut can, mut released) = (Vec::new(), Vec::new());
    for (it, go) in all.into_iter().zip(of_go) {
        let is_known = go.backend != FirewallBackend::Nftables;
        let has_policy = it.wanted.ingress.is_some();
        if !is_known || has_policy && go.backend.of_policies()? == Kind::Nftables {
            report.left.push(format!(
                "firewall of {}: the Go plugin needs iptables",
                it.owner
            ));
        } else if noted::is_noted(&it.owner) || it.backend != go.backend {
            released.push(line(&it));
            can.push(go);
        }
    }
    let missing = Missing::of(&can)?;
    report.left.extend(missing.left.iter().cloned());
    report.transactions = missing.restore(dry)?;
    let moves = |it: &&Firewalled| missing.has(&it.owner) || noted::is_noted(&it.owner);
    for (it, line) in can.iter().zip(released) {
        if moves(&it) {
            report.done.push(line);
        }
        if !dry {
            noted::hand_over(&it.owner)?;
        }
    }
    if whole && !dry && !can.is_empty() {
        Iptables::new().isolate_published_ports()?;
    }
    Ok(report)
}

/// The same attachments as the Go plugin has them: it does not know nftables, nor an exception for
/// published ports.
fn as_go_has_them(all: &[Firewalled]) -> Result<Vec<Firewalled>> {
    let mut chosen = None;
    let mut of_go = all.to_vec();
    for it in &mut of_go {
        if let Some(ingress) = &mut it.wanted.ingress {
            ingress.published = false;
        }
        if it.backend == FirewallBackend::Nftables {
            it.backend = match chosen {
                Some(backend) => backend,
                None => *chosen.insert(FirewallBackend::choose()?),
            };
        }
    }
    Ok(of_go)
}

fn line(it: &Firewalled) -> String {
    format!("firewall of {}", it.owner)
}

/// The attachments whose list has the plugin firewall.
fn firewalled(attached: &[Attached]) -> Result<Vec<Firewalled>> {
    let mut all = Vec::new();
    for it in attached {
        for plugin in &it.plugins {
            if let Plan::Firewall(plan) = &plugin.plan {
                all.push(Firewalled {
                    owner: it.owner.clone(),
                    wanted: plan.wanted(&it.result)?,
                    backend: noted::backend(&it.owner, plan)?,
                });
            }
        }
    }
    Ok(all)
}
