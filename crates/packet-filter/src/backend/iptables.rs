//! The iptables back end: the chains, comments and rules of the Go plugins, so
//! that a node switches from them and back under running pods.
//!
//! `masquerade` and `hostport` decide and write text, `table` is that text,
//! `program` alone executes: one `iptables-restore --noflush` for a change, and
//! at most a look at one or two chains before it.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use cni::conf::ValidAttachment;
use cni::{Attachment, BestEffort, Error};

use crate::backend::{Backend, Kind};
use crate::iptables::program::{Program, Programs, Refused, is_forbidden};
use crate::iptables::table::{FAMILIES, Family, Listing, Transaction};
use crate::masquerade::Masquerade;
use crate::masquerade::iptables::{self as masquerade, POSTROUTING};
use crate::ports::iptables::{self as hostport, ENTRIES, Known, OLD_ENTRIES};
use crate::ports::{HostPorts, Notice};

/// The system's own iptables, legacy or nft: whichever `iptables` is.
#[derive(Clone, Debug)]
pub struct Iptables {
    pub(crate) programs: Programs,
    needed: Families,
    guessed: bool,
}

/// The families whose nat table can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// By `iptables`.
    pub v4: bool,
    /// By `ip6tables`.
    pub v6: bool,
}

impl Families {
    /// Whether there is one at all.
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

/// Shorter than a runtime waits for a plugin; kube-proxy on a large node holds
/// the lock for some seconds.
const LOCK_WAIT: u32 = 20;

/// A transaction is made anew when the table has changed since it was read.
const ATTEMPTS: u32 = 3;

impl Default for Iptables {
    fn default() -> Self {
        Self::new()
    }
}

impl Iptables {
    /// Those in `PATH`, or else in /usr/sbin or /sbin: runtimes start plugins
    /// with whatever `PATH` they have. Nothing is executed.
    pub fn new() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let path: Vec<_> = env::split_paths(&path).collect();
        Self::in_path(path.into_iter().chain(["/usr/sbin".into(), "/sbin".into()]))
    }

    /// Those in the first of these directories that has each.
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

    /// Something that is to be removed is known to be in these families: there the
    /// programs must be. In others nothing can be where they are not installed.
    pub fn needed_in(mut self, known: Families) -> Self {
        self.needed = known;
        self
    }

    /// Whether nothing says that there is anything to be removed, because the kernel does
    /// not let us look without a program. Then a program that may not look either is no
    /// failure: what removes rules could not have made them. It is told on stderr.
    pub fn guessed(mut self, guessed: bool) -> Self {
        self.guessed = guessed;
        self
    }

    /// Waits so many seconds for a held xtables lock, instead of 20.
    pub fn lock_wait(mut self, seconds: u32) -> Self {
        self.programs.lock_wait = seconds;
        self
    }

    /// Which families can be used: the programs are there and can read the nat
    /// table. One short process for each.
    pub fn probe(&self) -> Families {
        let usable = |family| {
            self.programs
                .of(family)
                .is_ok_and(|it| it.try_out().is_ok())
        };
        Families {
            v4: usable(Family::V4),
            v6: usable(Family::V6),
        }
    }

    /// Fails unless one of the families can be used: one short process where IPv4 can.
    ///
    /// # Errors
    /// What is wrong with both.
    pub fn try_out(&self) -> Result<()> {
        let try_out = |family| self.programs.of(family)?.try_out();
        let Err(v4) = try_out(Family::V4) else {
            return Ok(());
        };
        try_out(Family::V6).map_err(|v6| {
            let both = format!("neither iptables nor ip6tables can read its nat table: {v6:#}");
            v4.context(both)
        })
    }

    /// Whether the programs see a chain of the nat table; they must be installed.
    ///
    /// # Errors
    /// They cannot look.
    pub fn sees(&self, ipv4: bool, chain: &str) -> Result<bool> {
        let family = if ipv4 { Family::V4 } else { Family::V6 };
        Ok(self.programs.of(family)?.chain(chain)?.is_some())
    }

    /// Drops what others send to 127.0.0.0/8 of the node, or from there; once more does no harm.
    ///
    /// # Errors
    /// The table raw cannot be used.
    pub fn close_localhost(&self) -> Result<()> {
        let rules = ["-d", "-s"].map(|side| {
            format!(
                "{side} 127.0.0.0/8 ! -i lo -m comment --comment \"podwire: not from outside\" -j DROP"
            )
        });
        let program = self.programs.of(Family::V4)?;
        program
            .keep("raw", "PREROUTING", &rules)
            .context("keep others from 127.0.0.0/8")
    }

    /// Does `step` in each family that is installed, whatever happens in the
    /// other. Where there is no iptables, it has left nothing, unless somebody knows
    /// better ([`Iptables::needed_in`]).
    fn clean(&self, what: &str, step: impl Fn(&Program, Family) -> Result<()>) -> Result<()> {
        let mut effort = BestEffort::new();
        for family in FAMILIES {
            let program = || match self.needed.has(family) {
                true => self.programs.of(family).map(Some),
                false => self.programs.installed(family),
            };
            effort.step(what, || {
                let done = program().and_then(|found| match found {
                    Some(program) => step(&program, family),
                    None => Ok(()),
                });
                self.unless_forbidden(done, what)
            });
        }
        effort.finish()
    }

    /// `done`, or nothing where a program may not look for what is only guessed.
    pub(crate) fn unless_forbidden<T: Default>(&self, done: Result<T>, what: &str) -> Result<T> {
        match done {
            Err(error) if self.guessed && is_forbidden(&error) => {
                cni::log(format_args!("{what}: iptables may not be asked: {error:#}"));
                Ok(T::default())
            }
            done => done,
        }
    }

    /// Carries what `collect` finds in the whole table: one process where there
    /// is nothing.
    fn sweep(&self, what: &str, collect: impl Fn(&Listing) -> Transaction) -> Result<()> {
        self.clean(what, |program, _| {
            settle(program, || Ok(collect(&program.table()?)))
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
        // The chains are the pods' own.
        Ok(false)
    }

    fn remove_masquerade(&self, owner: &Attachment, addresses: &[IpAddr]) -> Result<()> {
        self.clean(
            &format!("remove masquerade of {owner}"),
            |program, family| {
                let own = addresses.iter().copied().filter(|it| family.has(*it));
                let own: Vec<_> = own.collect();
                if own.is_empty() && !addresses.is_empty() {
                    return Ok(());
                }
                remove_masquerade(program, owner, &own)
            },
        )
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
        self.sweep(
            &format!("collect masquerades of network {network}"),
            |table| masquerade::collect(network, valid, table),
        )
    }

    fn publish(&self, wanted: &HostPorts) -> Result<Vec<Notice>> {
        let mut notices = Vec::new();
        if wanted.mappings.is_empty() {
            return Ok(notices);
        }
        for family in FAMILIES {
            let Some(rules) = hostport::Rules::new(wanted, family)? else {
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
        self.clean(&format!("unpublish ports of {owner}"), |program, _| {
            unpublish(program, owner)
        })
    }

    fn check_published(&self, wanted: &HostPorts) -> Result<()> {
        if wanted.mappings.is_empty() {
            return Ok(());
        }
        for family in FAMILIES {
            let Some(rules) = hostport::Rules::new(wanted, family)? else {
                continue;
            };
            let chain = hostport::chain(&wanted.owner);
            check(
                &self.programs.of(family)?,
                &[&chain, ENTRIES],
                rules.check(),
            )?;
        }
        Ok(())
    }

    fn collect_published(&self, network: &str, valid: &[ValidAttachment]) -> Result<()> {
        self.sweep(
            &format!("collect published ports of network {network}"),
            |table| hostport::collect(network, valid, table),
        )
    }
}

/// One process where the pod is new; three more where its container has a chain.
fn masquerade(program: &Program, owner: &Attachment, rules: &masquerade::Rules) -> Result<()> {
    if carried(program, &rules.create())? {
        return Ok(());
    }
    settle(program, || {
        let found = look(program, &[&masquerade::chain(owner), POSTROUTING])?;
        Ok(rules.complete(&found))
    })
}

/// One process where the addresses are known and nobody else needs the chain,
/// and one where they are not known and there is nothing.
fn remove_masquerade(program: &Program, owner: &Attachment, addresses: &[IpAddr]) -> Result<()> {
    let chain = masquerade::chain(owner);
    let removal = masquerade::remove(owner, addresses);
    if !addresses.is_empty() && carried(program, &removal)? {
        return Ok(());
    }
    settle(program, || {
        let mut found = Listing::default();
        // No chain, no jump to it.
        if let Some(listing) = program.chain(&chain)? {
            found = listing;
            found.extend(look(program, &[POSTROUTING])?);
        }
        Ok(masquerade::remove_found(owner, addresses, &found))
    })
}

/// Two processes, and another for each pod that has a port of ours; a read of
/// the whole table where a rule that all pods share is missing.
fn publish(
    program: &Program,
    wanted: &HostPorts,
    family: Family,
    rules: &hostport::Rules,
) -> Result<Vec<Notice>> {
    // Where `-C` cannot be believed, the whole table is read in any case.
    let exact = program.is_exact();
    let found = if exact {
        look(program, &[ENTRIES])?
    } else {
        program.table()?
    };
    let mut notices = Vec::new();
    for rival in hostport::rivals(wanted, family, &found) {
        let found = look(program, &[&rival.chain])?;
        notices.extend(rival.lost(wanted, family, &found));
    }
    let known = if exact {
        Known::Entries(&found)
    } else {
        Known::Table(&found)
    };
    let ready = !exact || found.chain(ENTRIES).is_some();
    let quick = ready && carried(program, &rules.publish(known))?;
    if !quick {
        let _alone = program.alone()?;
        settle(program, || {
            Ok(rules.publish(Known::Table(&program.table()?)))
        })?;
    }
    Ok(notices)
}

/// One process where there is nothing.
fn unpublish(program: &Program, owner: &Attachment) -> Result<()> {
    let chain = hostport::chain(owner);
    settle(program, || {
        let mut transaction = Transaction::new();
        let Some(own) = program.chain(&chain)? else {
            return Ok(transaction);
        };
        let found = look(program, &[ENTRIES])?;
        hostport::remove(&mut transaction, ENTRIES, &chain, &found);
        let old = hostport::old_chain(owner);
        if hostport::may_be_old(own.rules(&chain)) && program.chain(&old)?.is_some() {
            let found = look(program, &[OLD_ENTRIES])?;
            hostport::remove(&mut transaction, OLD_ENTRIES, &old, &found);
        }
        Ok(transaction)
    })
}

/// The rules of some chains; none of those that do not exist.
fn look(program: &Program, chains: &[&str]) -> Result<Listing> {
    let mut listing = Listing::default();
    for chain in chains {
        listing.extend(program.chain(chain)?.unwrap_or_default());
    }
    Ok(listing)
}

/// Reads, decides and carries; anew if that is refused, because between reading
/// and carrying the table may have changed.
fn settle(program: &Program, decide: impl Fn() -> Result<Transaction>) -> Result<()> {
    let mut attempt = 1;
    loop {
        match program.carry(&decide()?) {
            Ok(()) => return Ok(()),
            Err(refused) if attempt == ATTEMPTS || is_coded(&refused) => return Err(refused.error),
            Err(_) => attempt += 1,
        }
    }
}

/// Whether a transaction that takes something for granted could be made.
fn carried(program: &Program, transaction: &Transaction) -> Result<bool> {
    match program.carry(transaction) {
        Ok(()) => Ok(true),
        Err(refused) if is_coded(&refused) => Err(refused.error),
        Err(_) => Ok(false),
    }
}

/// A held lock has been waited for long enough already.
fn is_coded(refused: &Refused) -> bool {
    refused.error.downcast_ref::<Error>().is_some()
}

/// Names the chain that is missing, or else every rule of `required` that is.
fn check(program: &Program, chains: &[&str], mut required: Transaction) -> Result<()> {
    for chain in chains {
        if program.chain(chain)?.is_none() {
            // The Go plugin's words.
            return Err(anyhow!("chain {chain} not found in iptables table nat"));
        }
    }
    let mut missing = Vec::new();
    if !program.is_exact() {
        let table = program.table()?;
        let absent = required.required();
        let is_missing = |chain: &str, rule: &str| {
            hostport::find(&table, chain, rule) == hostport::Found::Missing
        };
        let absent = absent.filter(|(chain, rule)| is_missing(chain, rule));
        missing.extend(absent.map(|(chain, rule)| format!("-A {chain} {rule}")));
        required = Transaction::new();
    }
    while let Err(refused) = program.carry(&required) {
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
