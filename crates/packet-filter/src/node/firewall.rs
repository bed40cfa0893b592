//! The firewalls of all pods of a node: what of their rules is missing, and to restore it. One
//! listing and one transaction of each family's iptables, and one conversation with firewalld for
//! each zone, for any number of pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;

use crate::backend::{Iptables, Kind, Nftables};
use crate::firewall::iptables::Many;
use crate::firewall::{Firewall, FirewallBackend, Ingress, firewalld, usable_nftables};
use crate::iptables::table::FAMILIES;

/// The firewall of an attachment.
#[derive(Clone, Debug)]
pub struct Firewalled {
    /// The attachment.
    pub owner: Attachment,
    /// What it wants.
    pub wanted: Firewall,
    /// What has its rules.
    pub backend: FirewallBackend,
}

/// What is missing of many firewalls.
#[derive(Default)]
pub struct Missing<'a> {
    /// The attachments that miss something.
    pub owners: Vec<&'a Attachment>,
    /// What cannot be looked at, and why.
    pub left: Vec<String>,
    iptables: Vec<(&'a Firewall, bool)>,
    nftables: Vec<&'a Ingress>,
    firewalld: BTreeMap<&'a str, Vec<IpAddr>>,
}

impl<'a> Missing<'a> {
    /// Looks for the rules of `all`.
    ///
    /// # Errors
    /// A back end cannot be used.
    pub fn of(all: &'a [Firewalled]) -> Result<Self> {
        let mut missing = Self::default();
        missing.find_in_iptables(all)?;
        missing.find_in_nftables(all)?;
        missing.find_in_firewalld(all);
        Ok(missing)
    }

    /// Whether the attachment misses something, or may do so.
    pub fn has(&self, owner: &Attachment) -> bool {
        self.owners.contains(&owner)
    }

    fn add(&mut self, owner: &'a Attachment) {
        if !self.has(owner) {
            self.owners.push(owner);
        }
    }

    fn find_in_iptables(&mut self, all: &'a [Firewalled]) -> Result<()> {
        let mut with_rules = Vec::new();
        for it in all {
            let accepts = it.backend == FirewallBackend::Iptables;
            if accepts || has_policy_in(it, Kind::Iptables)? {
                with_rules.push((it, accepts));
            }
        }
        for family in FAMILIES {
            let wants = |it: &Firewalled| it.wanted.addresses.iter().any(|ip| family.has(*ip));
            if !with_rules.iter().any(|(it, _)| wants(it)) {
                continue;
            }
            let found = Iptables::new().filter(family)?;
            for (it, accepts) in &with_rules {
                let rules = Many::of(&[(&it.wanted, *accepts)], family);
                if !rules.missing(&found).is_empty() {
                    self.add(&it.owner);
                    self.iptables.push((&it.wanted, *accepts));
                }
            }
        }
        Ok(())
    }

    fn find_in_nftables(&mut self, all: &'a [Firewalled]) -> Result<()> {
        let mut nftables = None;
        for it in all {
            let Some(ingress) = &it.wanted.ingress else {
                continue;
            };
            if !has_policy_in(it, Kind::Nftables)? {
                continue;
            }
            let nftables: &Nftables = match &nftables {
                Some(nftables) => nftables,
                None => nftables.insert(usable_nftables()?),
            };
            if nftables.check_ingress(ingress).is_err() {
                self.add(&it.owner);
                if !self.nftables.contains(&ingress) {
                    self.nftables.push(ingress);
                }
            }
        }
        Ok(())
    }

    fn find_in_firewalld(&mut self, all: &'a [Firewalled]) {
        let mut zones = BTreeMap::<&str, Vec<&Firewalled>>::new();
        let of_firewalld = |it: &&Firewalled| it.backend == FirewallBackend::Firewalld;
        for it in all.iter().filter(of_firewalld) {
            zones.entry(&it.wanted.zone).or_default().push(it);
        }
        for (zone, members) in zones {
            let addresses = members.iter().flat_map(|it| &it.wanted.addresses);
            let addresses: Vec<_> = addresses.copied().collect();
            match firewalld::missing(zone, &addresses) {
                Ok(absent) => {
                    let misses = |it: &&&Firewalled| {
                        it.wanted.addresses.iter().any(|ip| absent.contains(ip))
                    };
                    members
                        .iter()
                        .filter(misses)
                        .for_each(|it| self.add(&it.owner));
                    self.firewalld.insert(zone, absent);
                }
                Err(error) => self.left.push(format!("sources of zone {zone}: {error:#}")),
            }
        }
    }

    /// Adds what is missing. `dry`: only returns the transactions.
    ///
    /// # Errors
    /// What a back end refuses.
    pub fn restore(&self, dry: bool) -> Result<Vec<String>> {
        let mut transactions = Vec::new();
        for family in FAMILIES {
            let rules = Many::of(&self.iptables, family);
            if rules.is_empty() {
                continue;
            }
            if dry {
                let changes = rules.missing(&Iptables::new().filter(family)?);
                let program = family.program();
                transactions.push(format!("# {program}-restore --noflush\n{changes}"));
            } else {
                Iptables::new().add_many(&rules, family)?;
            }
        }
        for ingress in &self.nftables {
            let nftables = usable_nftables()?;
            if dry {
                let changes = nftables.ingress_additions(ingress)?;
                transactions.push(format!("# nft -f -\n{changes}"));
            } else {
                nftables.ensure_ingress(ingress)?;
            }
        }
        for (zone, addresses) in &self.firewalld {
            if dry {
                let command = |ip| format!("firewall-cmd --zone={zone} --add-source={ip}\n");
                let commands: String = addresses.iter().map(command).collect();
                transactions.extend((!commands.is_empty()).then_some(commands));
            } else if !addresses.is_empty() {
                firewalld::add(zone, addresses)?;
            }
        }
        Ok(transactions)
    }
}

/// Whether the attachment's ingress policy is in this packet filter.
fn has_policy_in(it: &Firewalled, kind: Kind) -> Result<bool> {
    Ok(it.wanted.ingress.is_some() && it.backend.of_policies()? == kind)
}
