//! The nat tables of a node and all its pods at once: what is there of each, and
//! one transaction for each family that lays down, or takes away, all of it.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;
use cni::lock::Lock;

use crate::backend::Iptables;
use crate::iptables::program::{Program, Refused};
use crate::iptables::table::{FAMILIES, Family, Listing, Transaction};
use crate::masquerade::Masquerade;
use crate::masquerade::iptables as masquerade;
use crate::ports::HostPorts;
use crate::ports::iptables::{self as hostport, Found};

/// What is in both tables. Nobody else of us decides on them until it is dropped.
pub struct Tables {
    iptables: Iptables,
    of: Vec<Table>,
}

struct Table {
    family: Family,
    program: Program,
    listing: Listing,
    _alone: Option<Lock>,
}

/// Changes of the table of one family.
pub struct Changes {
    family: Family,
    transaction: Transaction,
}

impl fmt::Display for Changes {
    /// What the family's `iptables-restore --noflush` would read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = match self.family {
            Family::V4 => "iptables-restore",
            Family::V6 => "ip6tables-restore",
        };
        write!(f, "# {program} --noflush\n{}", self.transaction)
    }
}

impl Tables {
    /// Reads the tables of the families that are installed; empty ones where
    /// there `is_none`: to read them would make them.
    pub fn read(iptables: &Iptables, is_none: bool) -> Result<Self> {
        let mut of = Vec::<Table>::new();
        for family in FAMILIES {
            let Some(program) = iptables.programs.installed(family)? else {
                continue;
            };
            // Both may be links to one file, which is locked once.
            let alone = match of.iter().any(|it| it.program.is_locked_with(&program)) {
                true => None,
                false => program.alone()?,
            };
            let listing = match is_none {
                true => Listing::default(),
                false => iptables.unless_forbidden(program.table(), "read the nat tables")?,
            };
            of.push(Table {
                family,
                program,
                listing,
                _alone: alone,
            });
        }
        let iptables = iptables.clone();
        Ok(Self { iptables, of })
    }

    /// Whether there is a chain that masquerades for the container of `owner` on
    /// its network, whole or not.
    pub fn has_masquerade(&self, owner: &Attachment) -> bool {
        let chain = masquerade::chain(owner);
        self.of.iter().any(|it| it.listing.chain(&chain).is_some())
    }

    /// Whether nothing of it is missing.
    ///
    /// # Errors
    /// A name cannot be part of a rule.
    pub fn masquerades(&self, wanted: &Masquerade) -> Result<bool> {
        for family in FAMILIES {
            let rules = masquerade::Rules::new(wanted, family)?;
            if let Some(rules) = rules
                && !self.has_all(family, &rules.check())?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether there is a chain for the ports of the container of `owner` on its
    /// network.
    pub fn has_ports(&self, owner: &Attachment) -> bool {
        let chain = hostport::chain(owner);
        self.of.iter().any(|it| it.listing.chain(&chain).is_some())
    }

    /// Whether nothing of them is missing.
    ///
    /// # Errors
    /// A name or a condition cannot be part of a rule.
    pub fn publishes(&self, wanted: &HostPorts) -> Result<bool> {
        for family in FAMILIES {
            let rules = hostport::Rules::new(wanted, family)?;
            if let Some(rules) = rules
                && !self.has_all(family, &rules.check())?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The chains of containers on networks that are not `known`.
    pub fn chains_of_others(&self, known: &[&Attachment]) -> Vec<String> {
        let known: HashSet<_> = known
            .iter()
            .flat_map(|it| [masquerade::chain(it), hostport::chain(it)])
            .collect();
        let chains = self.of.iter().flat_map(|it| it.listing.chains());
        let others = chains.filter(|(chain, rules)| {
            (chain.starts_with("CNI-DN-") || masquerade::is_chain(chain, rules))
                && !known.contains(*chain)
        });
        let others: BTreeSet<_> = others.map(|(chain, _)| chain.to_owned()).collect();
        others.into_iter().collect()
    }

    /// What CHECK says of these rules. Text that is the same needs no program; what is not the
    /// same is decided by the program, as in CHECK.
    fn has_all(&self, family: Family, rules: &Transaction) -> Result<bool> {
        let Some(table) = self.of.iter().find(|it| it.family == family) else {
            return Ok(false);
        };
        let mut similar = false;
        for (chain, rule) in rules.required() {
            match hostport::find(&table.listing, chain, rule) {
                Found::Same => {}
                Found::Similar => similar = true,
                Found::Missing => return Ok(false),
            }
        }
        match similar && table.program.is_exact() {
            false => Ok(true),
            true => table.program.has(rules),
        }
    }

    /// Lays down these masquerades and ports; what is there of others stays as it
    /// is. Of two pods that want a port, the later in the list has it.
    ///
    /// # Errors
    /// As [`Tables::publishes`]; a family is not installed.
    pub fn additions(
        &self,
        masquerades: &[&Masquerade],
        ports: &[&HostPorts],
    ) -> Result<Vec<Changes>> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut rules = Vec::new();
            for wanted in ports {
                rules.extend(hostport::Rules::new(wanted, family)?);
            }
            let mut masquerade_rules = Vec::new();
            for wanted in chains(masquerades) {
                masquerade_rules.extend(masquerade::Rules::new(&wanted, family)?);
            }
            if rules.is_empty() && masquerade_rules.is_empty() {
                continue;
            }
            let Some(table) = self.of.iter().find(|it| it.family == family) else {
                // It says which program is missing.
                self.iptables.programs.of(family)?;
                continue;
            };
            let mut transaction = hostport::publish_all(&rules, &table.listing);
            for rules in masquerade_rules {
                transaction.extend(rules.complete(&table.listing));
            }
            all.push(Changes {
                family,
                transaction,
            });
        }
        Ok(all)
    }

    /// Takes away what is there of these.
    pub fn removals(&self, masquerades: &[&Masquerade], ports: &[&HostPorts]) -> Vec<Changes> {
        let mut all = Vec::new();
        for Table {
            family, listing, ..
        } in &self.of
        {
            let mut transaction = Transaction::new();
            for wanted in chains(masquerades) {
                let addresses = wanted.addresses.iter().map(|it| it.ip());
                let own: Vec<IpAddr> = addresses.filter(|it| family.has(*it)).collect();
                if !own.is_empty() {
                    let removal = masquerade::remove_found(&wanted.owner, &own, listing);
                    transaction.extend(removal);
                }
            }
            transaction.extend(hostport::remove_all(ports, listing));
            if !transaction.is_empty() {
                all.push(Changes {
                    family: *family,
                    transaction,
                });
            }
        }
        all
    }

    /// Makes changes that were decided on these tables.
    ///
    /// # Errors
    /// They are others by now, or the xtables lock is held (code 11).
    pub fn carry(&self, changes: &Changes) -> Result<()> {
        let mut tables = self.of.iter();
        let Some(table) = tables.find(|it| it.family == changes.family) else {
            return Ok(());
        };
        table
            .program
            .carry(&changes.transaction)
            .map_err(|Refused { error, .. }| error)
    }
}

/// One masquerade for each chain: interfaces of a container on one network share one.
fn chains(masquerades: &[&Masquerade]) -> Vec<Masquerade> {
    let mut chains = Vec::<(String, Masquerade)>::new();
    for wanted in masquerades {
        let chain = masquerade::chain(&wanted.owner);
        match chains.iter_mut().find(|(name, _)| *name == chain) {
            Some((_, one)) => one.addresses.extend(&wanted.addresses),
            None => chains.push((chain, (*wanted).clone())),
        }
    }
    chains.into_iter().map(|(_, one)| one).collect()
}
