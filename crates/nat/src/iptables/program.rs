//! The only file that executes iptables: finds the programs, carries text to
//! them and from them, tells a held lock from a refusal. It knows no rule.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cni::Code;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::table::{Family, Listing, Transaction};

/// Where the programs are searched for, and how long they wait.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// Directories, the first one wins.
    pub(super) path: Vec<PathBuf>,
    /// Seconds for which a held xtables lock is waited for.
    pub(super) lock_wait: u32,
}

impl Programs {
    /// The programs of a family; fails with the name of the one that is missing.
    pub(super) fn of(&self, family: Family) -> Result<Program> {
        let prefix = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let list = self.find(prefix)?;
        Ok(Program {
            is_exact: family == Family::V4 || is_nft(&list),
            list,
            save: self.find(&format!("{prefix}-save"))?,
            restore: self.find(&format!("{prefix}-restore"))?,
            lock_wait: self.lock_wait,
        })
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        let mut candidates = self.path.iter().map(|directory| directory.join(name));
        candidates.find(|file| file.is_file()).ok_or_else(|| {
            anyhow!("find {name}: not installed (searched PATH, /usr/sbin and /sbin)")
        })
    }
}

/// The programs of one family.
pub(super) struct Program {
    list: PathBuf,
    save: PathBuf,
    restore: PathBuf,
    lock_wait: u32,
    is_exact: bool,
}

/// Whether a program is a link to the nft variant. A script around it is not
/// looked into.
fn is_nft(program: &Path) -> bool {
    let file = program.canonicalize().unwrap_or_default();
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().contains("nft")
}

/// Why a transaction was not made.
#[derive(Debug)]
pub(super) struct Refused {
    /// The line of its text that the program names.
    pub(super) line: Option<usize>,
    /// What to tell.
    pub(super) error: anyhow::Error,
}

impl Program {
    /// Whether `-C` can be believed. ip6tables-legacy 1.8.9 (Debian 12) compares
    /// all but the last 56 bytes of a rule: it finds rules that are not there,
    /// where only the target or a port is another. What we delete differs from
    /// everybody else's earlier than that, by an address or a comment.
    pub(super) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Whether the table can be read: the program runs, and the kernel has it.
    pub(super) fn is_usable(&self) -> bool {
        // OUTPUT and a number: one rule at most, however many there are.
        self.ask(&["OUTPUT", "1"])
            .is_ok_and(|output| output.status.success())
    }

    /// `iptables -t nat -S CHAIN`; `None` if there is no such chain.
    pub(super) fn chain(&self, chain: &str) -> Result<Option<Listing>> {
        let output = self.ask(&[chain])?;
        if output.status.success() {
            return Ok(Some(Listing::parse(&String::from_utf8_lossy(
                &output.stdout,
            ))));
        }
        if is_absent(&output) {
            return Ok(None);
        }
        Err(self.failure(&self.list, &output)).with_context(|| format!("list chain {chain}"))
    }

    /// The whole table: `iptables-save -t nat`.
    pub(super) fn table(&self) -> Result<Listing> {
        let output = execute(&self.save, &["-t", "nat"], "")?;
        if !output.status.success() {
            return Err(self.failure(&self.save, &output)).context("list table nat");
        }
        Ok(Listing::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Keeps others of us from deciding on the whole table meanwhile, until the
    /// result is dropped. The nft variant has no lock, and its `-N` does not fail
    /// for the second of two who both saw no chain: every pod that is the first of
    /// its node would add the shared rules. The programs' own lock cannot be taken
    /// for them: the legacy variant would wait for us.
    pub(super) fn alone(&self) -> Result<Option<Flock<File>>> {
        let Ok(mut file) = File::open(&self.restore) else {
            return Ok(None);
        };
        let begun = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock)),
                Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
                // A file system without locks: rules may come twice, which harms nobody.
                Err(_) => return Ok(None),
            }
            if begun.elapsed().as_secs() >= u64::from(self.lock_wait) {
                return Err(self.locked(&self.restore, "lock on it").into());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether [`Program::alone`] of both is the same lock.
    pub(super) fn is_locked_with(&self, other: &Self) -> bool {
        self.restore.canonicalize().ok() == other.restore.canonicalize().ok()
    }

    /// Makes all changes or none: `iptables-restore --noflush`.
    pub(super) fn carry(&self, transaction: &Transaction) -> Result<(), Refused> {
        if transaction.is_empty() {
            return Ok(());
        }
        let wait = self.lock_wait.to_string();
        let arguments = ["--noflush", "--wait", &wait];
        let output = execute(&self.restore, &arguments, &transaction.to_string())
            .map_err(|error| Refused { line: None, error })?;
        if output.status.success() {
            return Ok(());
        }
        let line = failed_line(&said(&output));
        let error = self.failure(&self.restore, &output);
        let error = match line.and_then(|line| transaction.line(line)) {
            Some(rule) => error.context(format!("change table nat: {rule}")),
            None => error.context("change table nat"),
        };
        Err(Refused { line, error })
    }

    /// Makes `rule` the first of a chain of any table, unless it is there.
    pub(super) fn keep(&self, table: &str, chain: &str, rule: &str) -> Result<()> {
        let wait = self.lock_wait.to_string();
        let carry = |line: &str| {
            let text = format!("*{table}\n{line} {chain} {rule}\nCOMMIT\n");
            execute(&self.restore, &["--noflush", "--wait", &wait], &text)
        };
        if carry("-C")?.status.success() {
            return Ok(());
        }
        let output = carry("-I")?;
        if !output.status.success() {
            return Err(self.failure(&self.restore, &output))
                .with_context(|| format!("change table {table}: -I {chain} {rule}"));
        }
        Ok(())
    }

    fn ask(&self, chain: &[&str]) -> Result<Output> {
        let wait = self.lock_wait.to_string();
        let arguments = [&["--wait", &wait, "-t", "nat", "-S"], chain].concat();
        execute(&self.list, &arguments, "")
    }

    fn failure(&self, program: &Path, output: &Output) -> anyhow::Error {
        let said = said(output);
        if said.contains("holding the xtables lock") {
            return self.locked(program, "xtables lock").into();
        }
        anyhow!("{}: {said}", program.display())
    }

    fn locked(&self, program: &Path, lock: &str) -> cni::Error {
        let (name, wait) = (program.display(), self.lock_wait);
        Code::TryAgain.err(format!(
            "{name}: another program has held the {lock} for {wait} s"
        ))
    }
}

/// Exit status 1 is all that both variants have in common: legacy says "No
/// chain/target/match by that name", nft 1.8.9 says that the chain is
/// "incompatible". Status 3 is a kernel (or a boot option) without this family;
/// but not without permission, where the chain may well be there.
fn is_absent(output: &Output) -> bool {
    match output.status.code() {
        Some(1) => true,
        Some(3) => !said(output).contains("Permission denied"),
        _ => false,
    }
}

/// What a program had to say, in one line.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim);
    // The nft variant warns of tables of the other one; the hint to --help helps nobody.
    let lines = lines.filter(|line| {
        !line.is_empty() && !line.starts_with("# Warning") && !line.starts_with("Try `")
    });
    let said = lines.collect::<Vec<_>>().join(": ");
    if said.is_empty() {
        return output.status.to_string();
    }
    said
}

/// The number in `iptables-restore: line 3 failed`.
fn failed_line(said: &str) -> Option<usize> {
    let (_, rest) = said.split_once("line ")?;
    let (number, rest) = rest.split_once(' ')?;
    let number = number.parse().ok()?;
    rest.starts_with("failed").then_some(number)
}

fn execute(program: &Path, arguments: &[&str], input: &str) -> Result<Output> {
    let run = || cni::delegate::finish(command(program, arguments).spawn()?, input.as_bytes());
    run().with_context(|| format!("execute {}", program.display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel's interface to legacy iptables is this program"
)]
fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failed_line_is_found_in_what_both_variants_say() {
        let nft = "iptables-nft-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).";
        assert_eq!(failed_line(nft), Some(3));
        assert_eq!(failed_line("iptables-restore: line 12 failed"), Some(12));
        assert_eq!(failed_line("Error occurred at line: 4"), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let programs = Programs {
            path: vec!["/nonexistent".into()],
            lock_wait: 1,
        };
        let error = programs.of(Family::V6).err().unwrap();
        assert!(format!("{error:#}").starts_with("find ip6tables: not installed"));
    }
}
