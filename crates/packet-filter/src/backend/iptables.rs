//! iptables as a back end: the chains, comments and rules of the Go plugins, so that a node can
//! switch to podwire and back while pods run.
//!
//! The subjects' modules decide and write text. A change is one `iptables-restore --noflush`, and
//! before it at most one or two chains are read.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use cni::conf::ValidAttachment;
use cni::{Attachment, BestEffort, Error};

use crate::backend::{Backend, Kind};
use crate::iptables::program::{Program, Programs, Refused, is_forbidden};
use crate::iptables::table::{FAMILIES, FILTER, Family, Listing, NAT, RAW, Transaction};
use crate::masquerade::Masquerade;
use crate::masquerade::iptables::{self as masquerade, POSTROUTING};
use crate::ports::iptables::{self as ports, ENTRIES, Known, OLD_ENTRIES};
use crate::ports::{HostPorts, Notice};

/// The system's own iptables, legacy or nft.
#[derive(Clone, Debug)]
pub struct Iptables {
    pub(crate) programs: Programs,
    needed: Families,
    guessed: bool,
}

/// Families of iptables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// The family of `iptables`.
    pub v4: bool,
    /// The family of `ip6tables`.
    pub v6: bool,
}

impl Families {
    /// Whether it is at least one.
    pub fn any(self) -> bool {
        self.v4 || self.v6
    }

    fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// Seconds. Shorter than a runtime waits for a plugin; kube-proxy on a large node holds the lock for
/// some seconds.
const LOCK_WAIT: u32 = 20;

/// How many times a transaction is decided, if the table has changed since it was read.
const ATTEMPTS: u32 = 3;

impl Default for Iptables {
    fn default() -> Self {
        Self::new()
    }
}

impl Iptables {
    /// The programs in `PATH`, or else in /usr/sbin or /sbin: runtimes start plugins with any `PATH`.
    /// Nothing is executed.
    pub fn new() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let path: Vec<_> = env::split_paths(&path).collect();
        Self::in_path(path.into_iter().chain(["/usr/sbin".into(), "/sbin".into()]))
    }

    /// The programs in the first of these directories that has each.
    pub fn in_path(path: impl IntoIterator<Item = PathBuf>) -> Self {
        let programs = Programs {
            path: path.into_iter().collect(),
            lock_wait: LOCK_WAIT,
        };
        Self {
            programs,
            needed: Families::default(),
            guessed: false,
        }
    }

    /// The rules to remove are known to exist in these families, so their programs must be
    /// installed. Other families have no rules if their programs are not installed.
    pub fn needed_in(mut self, known: Families) -> Self {
        self.needed = known;
        self
    }

    /// It is unknown whether there are rules to remove, because only the programs can read the
    /// table. Then it is logged, and no failure, if a program is not permitted to read the table:
    /// it could not have added rules either.
    pub fn guessed(mut self, guessed: bool) -> Self {
        self.guessed = guessed;
        self
    }

    /// Waits so many seconds for a held xtables lock, instead of 20.
    pub fn lock_wait(mut self, seconds: u32) -> Self {
        self.programs.lock_wait = seconds;
        self
    }

    /// The families whose programs are installed and can read the nat table. One short process for
    /// each.
    pub fn probe(&self) -> Families {
        let is_usable = |family| self.try_out_family(family).is_ok();
        Families {
            v4: is_usable(Family::V4),
            v6: is_usable(Family::V6),
        }
    }

    fn try_out_family(&self, family: Family) -> Result<()> {
        self.programs.of(family)?.try_out(NAT)
    }

    /// Fails unless one of the families can be used: one short process where IPv4 can.
    ///
    /// # Errors
    /// What is wrong with both.
    pub fn try_out(&self) -> Result<()> {
        let Err(v4) = self.try_out_family(Family::V4) else {
            return Ok(());
        };
        self.try_out_family(Family::V6).map_err(|v6| {
            let both = format!("neither iptables nor ip6tables can read its nat table: {v6:#}");
            v4.context(both)
        })
    }

    /// Whether the programs, which must be installed, see a chain of the nat table.
    ///
    /// # Errors
    /// They cannot read it.
    pub fn sees(&self, ipv4: bool, chain: &str) -> Result<bool> {
        let family = if ipv4 { Family::V4 } else { Family::V6 };
        Ok(self.programs.of(family)?.chain(NAT, chain)?.is_some())
    }

    /// Drops packets from outside that have an address of 127.0.0.0/8 as destination or source. It
    /// can be repeated. One process if the rules exist.
    ///
    /// # Errors
    /// The table raw cannot be used.
    pub fn close_localhost(&self) -> Result<()> {
        const CHAIN: &str = "PREROUTING";
        let rules = ["-d", "-s"].map(|side| {
            format!(
                "{side} 127.0.0.0/8 ! -i lo -m comment --comment \"podwire: not from outside\" -j DROP"
            )
        });
        let program = self.programs.of(Family::V4)?;
        let close = || {
            let required = |rules: &[String]| {
                let mut required = Transaction::new(RAW);
                rules.iter().for_each(|it| required.require(CHAIN, it));
                required
            };
            let mut missing = Transaction::new(RAW);
            if program.commit(&required(&rules)).is_err() {
                for rule in &rules {
                    if !program.has(&required(std::slice::from_ref(rule)))? {
                        missing.insert(CHAIN, rule);
                    }
                }
            }
            program.commit(&missing).map_err(|refused| refused.error)
        };
        close().context("close 127.0.0.0/8 to packets from outside")
    }

    /// Does `step` in each family that is installed, even if it fails in the other. Where there is no
    /// iptables, there are no rules of it, unless they are known to exist ([`Iptables::needed_in`]).
    pub(crate) fn clean(
        &self,
        what: &str,
        step: impl Fn(&Program, Family) -> Result<()>,
    ) -> Result<()> {
        let mut effort = BestEffort::new();
        for family in FAMILIES {
            effort.step(what, || {
                let program = if self.needed.has(family) {
                    self.programs.of(family).map(Some)
                } else {
                    self.programs.installed(family)
                };
                let done = program.and_then(|found| match found {
                    Some(program) => step(&program, family),
                    None => Ok(()),
                });
                self.unless_forbidden(done, what)
            });
        }
        effort.finish()
    }

    /// `done`, or the default if a program is not permitted to read a table whose rules are only
    /// guessed.
    pub(crate) fn unless_forbidden<T: Default>(&self, done: Result<T>, what: &str) -> Result<T> {
        match done {
            Err(error) if self.guessed && is_forbidden(&error) => {
                cni::log(format_args!("{what}: iptables may not be asked: {error:#}"));
                Ok(T::default())
            }
            done => done,
        }
    }

    /// Removes what `collect` finds in the whole table: one process where there is nothing.
    fn sweep(&self, what: &str, collect: impl Fn(&Listing) -> Transaction) -> Result<()> {
        self.clean(what, |program, _| {
            settle(program, || Ok(collect(&program.table(NAT)?)))
        })
    }
}

impl Backend for Iptables {
    fn kind(&self) -> Kind {
        Kind::Iptables
    }

    fn masquerade(&self, wanted: &Masquerade) -> Result<bool> {
        for family in FAMILIES {
            if let Some(rules) = masquerade::Rules::new(wanted, family)? {
                self.programs
                    .of(family)
                    .and_then(|program| masquerade(&program, &wanted.owner, &rules))
                    .with_context(|| format!("masquerade {}", wanted.owner))?;
            }
        }
        // The chains belong to the pods.
        Ok(false)
    }

    fn remove_masquerade(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<()> {
        let what = format!("remove masquerade of {owner}");
        self.clean(&what, |program, family| {
            let own = addresses.iter().copied().filter(|it| family.has(*it));
            let own: Vec<_> = own.collect();
            if own.is_empty() && !addresses.is_empty() {
                return Ok(());
            }
            remove_masquerade(program, owner, &own)
        })
    }

    fn check_masquerade(&self, wanted: &Masquerade) -> Result<()> {
        for family in FAMILIES {
            if let Some(rules) = masquerade::Rules::new(wanted, family)? {
                let chain = masquerade::chain(&wanted.owner);
                check(&self.programs.of(family)?, &[&chain], rules.check())?;
            }
        }
        Ok(())
    }

    fn collect_masquerade(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        let what = format!("collect masquerades of network {network}");
        self.sweep(&what, |table| masquerade::collect(network, valid, table))
    }

    fn publish(&self, wanted: &HostPorts) -> Result<Vec<Notice>> {
        let mut notices = Vec::new();
        if wanted.mappings.is_empty() {
            return Ok(notices);
        }
        for family in FAMILIES {
            let Some(rules) = ports::Rules::new(wanted, family)? else {
                continue;
            };
            let lost = self
                .programs
                .of(family)
                .and_then(|program| publish(&program, wanted, family, &rules))
                .with_context(|| format!("publish ports of {}", wanted.owner))?;
            // A mapping of both families is lost once.
            for notice in lost {
                if !notices.contains(&notice) {
                    notices.push(notice);
                }
            }
        }
        Ok(notices)
    }

    fn unpublish(&self, owner: &Attachment) -> Result<()> {
        let what = format!("unpublish ports of {owner}");
        self.clean(&what, |program, _| unpublish(program, owner))
    }

    fn check_published(&self, wanted: &HostPorts) -> Result<()> {
        if wanted.mappings.is_empty() {
            return Ok(());
        }
        for family in FAMILIES {
            if let Some(rules) = ports::Rules::new(wanted, family)? {
                let chain = ports::chain(&wanted.owner);
                let program = self.programs.of(family)?;
                check(&program, &[&chain, ENTRIES], rules.check())?;
            }
        }
        Ok(())
    }

    fn collect_published(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        let what = format!("collect published ports of network {network}");
        self.sweep(&what, |table| ports::collect(network, valid, table))
    }
}

/// One process where the pod is new; three more where its container has a chain.
fn masquerade(program: &Program, owner: &Attachment, rules: &masquerade::Rules) -> Result<()> {
    if committed(program, &rules.create())? {
        return Ok(());
    }
    settle(program, || {
        let found = read(program, &[&masquerade::chain(owner), POSTROUTING])?;
        Ok(rules.complete(&found))
    })
}

/// One process where the addresses are known and nothing else needs the chain, and where they are not
/// known and there is nothing.
fn remove_masquerade(program: &Program, owner: &Attachment, addresses: &[IpAddr]) -> Result<()> {
    let chain = masquerade::chain(owner);
    let removal = masquerade::remove(owner, addresses);
    if !addresses.is_empty() && committed(program, &removal)? {
        return Ok(());
    }
    settle(program, || {
        let mut found = Listing::default();
        // Without the chain there is no jump to it.
        if let Some(listing) = program.chain(NAT, &chain)? {
            found = listing;
            found.extend(read(program, &[POSTROUTING])?);
        }
        Ok(masquerade::remove_found(owner, addresses, &found))
    })
}

/// Two processes, and another for each pod that has one of the ports; the whole table is read where
/// a rule that all pods share is missing.
fn publish(
    program: &Program,
    wanted: &HostPorts,
    family: Family,
    rules: &ports::Rules,
) -> Result<Vec<Notice>> {
    // Where `-C` is not exact, the whole table is read in any case.
    let exact = program.is_exact();
    let found = if exact {
        read(program, &[ENTRIES])?
    } else {
        program.table(NAT)?
    };
    let mut notices = Vec::new();
    for conflict in ports::conflicts(wanted, family, &found) {
        let found = read(program, &[&conflict.chain])?;
        notices.extend(conflict.lost(wanted, family, &found));
    }
    let known = if exact {
        Known::Entries(&found)
    } else {
        Known::Table(&found)
    };
    let is_ready = !exact || found.chain(ENTRIES).is_some();
    if !(is_ready && committed(program, &rules.publish(known))?) {
        let _lock = program.lock()?;
        settle(program, || {
            Ok(rules.publish(Known::Table(&program.table(NAT)?)))
        })?;
    }
    Ok(notices)
}

/// One process where there is nothing.
fn unpublish(program: &Program, owner: &Attachment) -> Result<()> {
    let chain = ports::chain(owner);
    settle(program, || {
        let mut transaction = Transaction::new(NAT);
        let Some(own) = program.chain(NAT, &chain)? else {
            return Ok(transaction);
        };
        let found = read(program, &[ENTRIES])?;
        ports::remove(&mut transaction, ENTRIES, &chain, &found);
        let old = ports::old_chain(owner);
        if ports::may_be_old(own.rules(&chain)) && program.chain(NAT, &old)?.is_some() {
            let found = read(program, &[OLD_ENTRIES])?;
            ports::remove(&mut transaction, OLD_ENTRIES, &old, &found);
        }
        Ok(transaction)
    })
}

/// The rules of some chains; a chain that does not exist has none.
fn read(program: &Program, chains: &[&str]) -> Result<Listing> {
    let mut listing = Listing::default();
    for chain in chains {
        listing.extend(program.chain(NAT, chain)?.unwrap_or_default());
    }
    Ok(listing)
}

/// Reads, decides and commits; again if that is refused, because the table may have changed in
/// between.
pub(crate) fn settle(program: &Program, decide: impl Fn() -> Result<Transaction>) -> Result<()> {
    let mut attempt = 1;
    loop {
        match program.commit(&decide()?) {
            Ok(()) => return Ok(()),
            Err(refused) if attempt == ATTEMPTS || is_locked(&refused) => return Err(refused.error),
            Err(_) => attempt += 1,
        }
    }
}

/// Deletes the rules of `chain` in the table filter that are `own`.
///
/// # Errors
/// What iptables refuses.
pub(crate) fn delete_rules(
    program: &Program,
    chain: &str,
    own: impl Fn(&String) -> bool,
) -> Result<()> {
    settle(program, || {
        let found = program.chain(FILTER, chain)?.unwrap_or_default();
        let mut removal = Transaction::new(FILTER);
        let rules = found.rules(chain).iter().filter(|it| own(it));
        rules.for_each(|rule| removal.delete(chain, rule));
        Ok(removal)
    })
}

/// Whether a transaction that assumes something about the table could be made.
pub(crate) fn committed(program: &Program, transaction: &Transaction) -> Result<bool> {
    match program.commit(transaction) {
        Ok(()) => Ok(true),
        Err(refused) if is_locked(&refused) => Err(refused.error),
        Err(_) => Ok(false),
    }
}

/// A held lock, the only coded error, has been waited for.
fn is_locked(refused: &Refused) -> bool {
    refused.error.downcast_ref::<Error>().is_some()
}

/// Names the chain that is missing, or else every rule of `required` that is.
fn check(program: &Program, chains: &[&str], mut required: Transaction) -> Result<()> {
    for chain in chains {
        if program.chain(NAT, chain)?.is_none() {
            // The Go plugin's text.
            return Err(anyhow!("chain {chain} not found in iptables table nat"));
        }
    }
    let mut missing = Vec::new();
    if !program.is_exact() {
        let table = program.table(NAT)?;
        let is_missing =
            |chain: &str, rule: &str| ports::find(&table, chain, rule) == ports::Found::Missing;
        let absent = required.required();
        let absent = absent.filter(|(chain, rule)| is_missing(chain, rule));
        missing.extend(absent.map(|(chain, rule)| format!("-A {chain} {rule}")));
        required = Transaction::new(NAT);
    }
    while let Err(refused) = program.commit(&required) {
        let rule = refused.line.and_then(|line| required.remove_line(line));
        let Some(rule) = rule else {
            return Err(refused.error);
        };
        missing.push(rule.replacen("-C", "-A", 1));
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(anyhow!(
        "missing in iptables table nat: {}",
        missing.join("; ")
    ))
}
