//! The nat tables of iptables for all pods of a node: the present rules, and one transaction for
//! each family with all changes. Methods fail if a name or a condition cannot be part of a rule.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::Attachment;
use cni::lock::Lock;

use super::Rules;
use crate::backend::Iptables;
use crate::iptables::program::{Program, Refused};
use crate::iptables::table::{FAMILIES, Family, Listing, NAT, Transaction};
use crate::masquerade::{Masquerade, iptables as masquerade};
use crate::ports::HostPorts;
use crate::ports::iptables::{self as ports, Found};

/// The rules of both tables. Until it is dropped, no other process of podwire decides on them.
pub struct Tables {
    iptables: Iptables,
    of: Vec<Table>,
}

struct Table {
    family: Family,
    program: Program,
    listing: Listing,
    _lock: Option<Lock>,
}

/// Changes of the table of one family.
pub struct Changes {
    family: Family,
    transaction: Transaction,
}

impl fmt::Display for Changes {
    /// What the family's `iptables-restore --noflush` would read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.family.program();
        write!(f, "# {program}-restore --noflush\n{}", self.transaction)
    }
}

impl Tables {
    /// Reads the tables of the families that are installed. With `is_none` they count as empty:
    /// reading would create them.
    pub fn read(iptables: &Iptables, is_none: bool) -> Result<Self> {
        let mut of = Vec::<Table>::new();
        for family in FAMILIES {
            let Some(program) = iptables.programs.installed(family)? else {
                continue;
            };
            // Both may be links to one file, which is locked once.
            let is_locked = of.iter().any(|it| it.program.is_locked_with(&program));
            let lock = if is_locked { None } else { program.lock()? };
            let listing = if is_none {
                Listing::default()
            } else {
                iptables.unless_forbidden(program.table(NAT), "read the nat tables")?
            };
            of.push(Table {
                family,
                program,
                listing,
                _lock: lock,
            });
        }
        let iptables = iptables.clone();
        Ok(Self { iptables, of })
    }

    fn has_chain(&self, chain: &str) -> bool {
        self.of.iter().any(|it| it.listing.chain(chain).is_some())
    }

    /// Whether there is a chain that masquerades the container of `owner` on its network, complete
    /// or not.
    pub fn has_masquerade_chain(&self, owner: &Attachment) -> bool {
        self.has_chain(&masquerade::chain(owner))
    }

    /// Whether there is a chain for the ports of the container of `owner` on its network.
    pub fn has_ports_chain(&self, owner: &Attachment) -> bool {
        self.has_chain(&ports::chain(owner))
    }

    /// Whether nothing of a masquerade is missing.
    pub fn has_masquerade(&self, wanted: &Masquerade) -> Result<bool> {
        self.has_all(|family| {
            let rules = masquerade::Rules::new(wanted, family)?;
            Ok(rules.map(|it| it.check()))
        })
    }

    /// Whether nothing of published ports is missing.
    pub fn has_ports(&self, wanted: &HostPorts) -> Result<bool> {
        self.has_all(|family| {
            let rules = ports::Rules::new(wanted, family)?;
            Ok(rules.map(|it| it.check()))
        })
    }

    fn has_all(&self, check: impl Fn(Family) -> Result<Option<Transaction>>) -> Result<bool> {
        for family in FAMILIES {
            if let Some(required) = check(family)?
                && !self.has(family, &required)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether CHECK passes. A rule with the same text needs no program; any other one is compared by
    /// the program, as in CHECK.
    fn has(&self, family: Family, required: &Transaction) -> Result<bool> {
        let Some(table) = self.of.iter().find(|it| it.family == family) else {
            return Ok(false);
        };
        let mut similar = false;
        for (chain, rule) in required.required() {
            match ports::find(&table.listing, chain, rule) {
                Found::Same => {}
                Found::Similar => similar = true,
                Found::Missing => return Ok(false),
            }
        }
        if similar && table.program.is_exact() {
            return table.program.has(required);
        }
        Ok(true)
    }

    /// The chains of containers on networks that are not `known`.
    pub fn chains_of_others(&self, known: &[&Attachment]) -> BTreeSet<String> {
        let known: HashSet<_> = known
            .iter()
            .flat_map(|it| [masquerade::chain(it), ports::chain(it)])
            .collect();
        let chains = self.of.iter().flat_map(|it| it.listing.chains());
        let others = chains.filter(|(chain, rules)| {
            (chain.starts_with("CNI-DN-") || masquerade::is_chain(chain, rules))
                && !known.contains(*chain)
        });
        others.map(|(chain, _)| chain.to_owned()).collect()
    }

    /// Changes that add these rules; what others have stays. Of two pods that want a port, the later
    /// in the list gets it.
    ///
    /// # Errors
    /// A family is not installed.
    pub fn additions(&self, wanted: &Rules<'_>) -> Result<Vec<Changes>> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let mut port_rules = Vec::new();
            for ports in &wanted.ports {
                port_rules.extend(ports::Rules::new(ports, family)?);
            }
            let mut masquerade_rules = Vec::new();
            for masquerade in by_chain(&wanted.masquerades) {
                masquerade_rules.extend(masquerade::Rules::new(&masquerade, family)?);
            }
            if port_rules.is_empty() && masquerade_rules.is_empty() {
                continue;
            }
            let Some(table) = self.of.iter().find(|it| it.family == family) else {
                // The error names the missing program.
                self.iptables.programs.of(family)?;
                continue;
            };
            let mut transaction = ports::publish_all(&port_rules, &table.listing);
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

    /// Changes that remove the present rules of these.
    pub fn removals(&self, gone: &Rules<'_>) -> Vec<Changes> {
        let mut all = Vec::new();
        for table in &self.of {
            let (family, listing) = (table.family, &table.listing);
            let mut transaction = Transaction::new(NAT);
            for wanted in by_chain(&gone.masquerades) {
                let addresses = wanted.addresses.iter().map(|it| it.ip());
                let own: Vec<IpAddr> = addresses.filter(|it| family.has(*it)).collect();
                if !own.is_empty() {
                    let removal = masquerade::remove_found(&wanted.owner, &own, listing);
                    transaction.extend(removal);
                }
            }
            transaction.extend(ports::remove_all(&gone.ports, listing));
            if !transaction.is_empty() {
                all.push(Changes {
                    family,
                    transaction,
                });
            }
        }
        all
    }

    /// Makes changes that were decided on these tables.
    ///
    /// # Errors
    /// The tables are different by now, or the xtables lock is held (code 11).
    pub fn commit(&self, changes: &Changes) -> Result<()> {
        let mut tables = self.of.iter();
        let Some(table) = tables.find(|it| it.family == changes.family) else {
            return Ok(());
        };
        let committed = table.program.commit(&changes.transaction);
        committed.map_err(|Refused { error, .. }| error)
    }
}

/// One masquerade for each chain: interfaces of a container on one network share a chain.
fn by_chain(masquerades: &[&Masquerade]) -> Vec<Masquerade> {
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
