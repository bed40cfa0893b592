//! Networks with a mode on a node where the policy of iptables' chain FORWARD is DROP, as Docker
//! sets it.
//!
//! A rule of nf_tables that accepts does not end the chains of other tables. So iptables accepts
//! packets from and to the network's devices, by two rules for each device and family. The rules of
//! [`Access`] drop the packets that must not pass. An internal network has the two rules, too:
//! packets between its pods are bridged, and pass FORWARD if br_netfilter is on. A set contains the
//! devices with such rules. An ADD looks there, so that only the first one of a network executes
//! iptables.

use anyhow::{Context, Result, bail};
use nftables::{Family, Part, Socket, Transaction, listing};

use super::{ACCEPTED, Access, installation, is_installed, table};
use crate::backend::iptables::{delete_rules, settle};
use crate::backend::{Iptables, Nftables, network_comment};
use crate::iptables::policy::{self, FAMILIES};
use crate::iptables::table::{self as tables, FILTER, Listing, word};

const FORWARD: &str = "FORWARD";

impl Nftables {
    /// Makes iptables accept packets that are forwarded for the network, if its policy is to drop.
    /// Tables of the legacy variant are read only for the first pod of a network, because that
    /// takes a process.
    pub fn accept_forwarded(&self, wanted: &Access, is_first: bool) -> Result<()> {
        for (family, of) in FAMILIES {
            let may_drop = policy::drops_in_nft(&self.socket, family, FORWARD)?
                || is_first && policy::is_legacy_in_use(of);
            if !may_drop {
                continue;
            }
            if is_noted(&self.socket, wanted, family)? {
                continue;
            }
            let iptables = Iptables::new();
            let Some(program) = iptables.programs.installed(of)? else {
                continue;
            };
            if !program.table(FILTER)?.drops(FORWARD) {
                continue;
            }
            // Note it first: after a kill in between, DEL knows that there may be rules.
            self.transact(|socket| note(socket, wanted, family))?;
            let _lock = program.lock()?;
            settle(&program, || missing(wanted, &program.table(FILTER)?))
                .context("accept what is forwarded for the network")?;
        }
        Ok(())
    }

    /// Fails if a policy of iptables drops packets that are forwarded for the network.
    pub fn check_forwarded(&self, wanted: &Access) -> Result<()> {
        for (family, of) in FAMILIES {
            let may_drop = policy::drops_in_nft(&self.socket, family, FORWARD)?
                || policy::is_legacy_in_use(of);
            if !may_drop {
                continue;
            }
            let Some(program) = Iptables::new().programs.installed(of)? else {
                continue;
            };
            let found = program.table(FILTER)?;
            if found.drops(FORWARD) && !missing(wanted, &found)?.is_empty() {
                let (name, network) = (of.program(), &wanted.network);
                bail!(
                    "{name} -P {FORWARD} is DROP, and no rule accepts what is forwarded for {network}"
                );
            }
        }
        Ok(())
    }

    /// Puts the rules back, whatever is noted.
    pub fn restore_forwarded(&self, wanted: &Access) -> Result<()> {
        self.transact(|socket| {
            let mut changes = Transaction::new();
            for (family, ..) in FAMILIES {
                for element in wanted.accepted() {
                    let found = listing::element_at(socket, table(family), ACCEPTED, &element.key)?;
                    if let Some(found) = found {
                        changes.delete_element(table(family), found);
                    }
                }
            }
            Ok(changes)
        })?;
        self.accept_forwarded(wanted, true)
    }

    /// Removes the rules of the network's devices from iptables.
    pub(super) fn drop_forwarded(&self, network: &str) -> Result<()> {
        let comment = network_comment(network);
        for (family, of) in FAMILIES {
            let noted =
                listing::elements(&self.socket, table(family), &[ACCEPTED], |it| it == comment)?;
            let Some(program) = Iptables::new()
                .programs
                .installed(of)?
                .filter(|_| !noted.is_empty())
            else {
                continue;
            };
            let mut rules = Vec::new();
            for element in &noted {
                if let [device @ Part::Interface(_)] = element.key[..] {
                    rules.extend(rules_of(device.to_string().trim_matches('"'))?);
                }
            }
            let _lock = program.lock()?;
            delete_rules(&program, FORWARD, |it| rules.contains(it))
                .context("remove the network's rules from iptables")?;
        }
        Ok(())
    }
}

fn is_noted(socket: &Socket, wanted: &Access, family: Family) -> Result<bool> {
    for element in wanted.accepted() {
        if listing::element_at(socket, table(family), ACCEPTED, &element.key)?.as_ref()
            != Some(&element)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn note(socket: &Socket, wanted: &Access, family: Family) -> Result<Transaction, nftables::Error> {
    let mut changes = Transaction::new();
    if !is_installed(socket, family)? {
        changes.extend(installation(family));
    }
    for element in wanted.accepted() {
        if let Some(found) = listing::element_at(socket, table(family), ACCEPTED, &element.key)? {
            changes.delete_element(table(family), found);
        }
        changes.create_element(table(family), element);
    }
    Ok(changes)
}

fn rules_of(device: &str) -> Result<[String; 2]> {
    let device = word(device)?;
    let rule =
        |side| format!("-{side} {device} -m comment --comment \"podwire: gateway mode\" -j ACCEPT");
    Ok(["i", "o"].map(rule))
}

/// The rules that the chain lacks. They come last, instead of the policy.
fn missing(wanted: &Access, found: &Listing) -> Result<tables::Transaction> {
    let mut missing = tables::Transaction::new(FILTER);
    for device in &wanted.devices {
        for rule in rules_of(device)? {
            if !found.rules(FORWARD).contains(&rule) {
                missing.append(FORWARD, &rule);
            }
        }
    }
    Ok(missing)
}
