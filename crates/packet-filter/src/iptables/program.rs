//! The only file that executes iptables: finds the programs, carries text to
//! them and from them, tells a held lock from a refusal. It knows no rule.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cni::Code;
use cni::execute::{self, Limits};
use cni::lock::Lock;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::table::{Family, Listing, Transaction};

/// Where the programs are searched for, and how long they wait.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Directories, the first one wins.
    pub path: Vec<PathBuf>,
    /// Seconds for which a held xtables lock is waited for.
    pub lock_wait: u32,
}

impl Programs {
    /// The programs of a family; fails with the name of the one that is missing.
    pub fn of(&self, family: Family) -> Result<Program> {
        self.search(family)?.map_err(|missing| {
            anyhow!("find {missing}: not installed (searched PATH, /usr/sbin and /sbin)")
        })
    }

    /// The programs of a family; `None` if one of them is in none of the directories.
    /// That a directory cannot be searched is a failure: they may be there.
    pub fn installed(&self, family: Family) -> Result<Option<Program>> {
        Ok(self.search(family)?.ok())
    }

    /// The programs, or the name of the one that is missing.
    fn search(&self, family: Family) -> Result<Result<Program, String>> {
        let mut found = Vec::new();
        for suffix in ["", "-save", "-restore"] {
            let name = format!("{}{suffix}", family.program());
            match self.find(&name)? {
                Some(program) => found.push(program),
                None => return Ok(Err(name)),
            }
        }
        let [list, save, restore] = <[PathBuf; 3]>::try_from(found)
            .map_err(|found| anyhow!("three programs are {found:?}"))?;
        Ok(Ok(Program {
            is_exact: family == Family::V4 || is_nft(&list),
            list,
            save,
            restore,
            lock_wait: self.lock_wait,
        }))
    }

    fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        let mut unknown = None;
        for directory in &self.path {
            let file = directory.join(name);
            match file.metadata() {
                Ok(meta) if meta.is_file() => return Ok(Some(file)),
                Ok(_) => {}
                Err(error) if is_nowhere(&error) => {}
                // As execvp(3) has it: the next one may do, but nobody can say that there is none.
                Err(error) => unknown = unknown.or(Some((file, error))),
            }
        }
        match unknown {
            Some((file, error)) => {
                Err(error).with_context(|| format!("look for {}", file.display()))
            }
            None => Ok(None),
        }
    }
}

fn is_nowhere(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The programs of one family.
pub struct Program {
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
pub struct Refused {
    /// The line of its text that the program names.
    pub line: Option<usize>,
    /// What to tell.
    pub error: anyhow::Error,
}

impl Program {
    /// Whether `-C` can be believed. ip6tables-legacy 1.8.9 (Debian 12) compares
    /// all but the last 56 bytes of a rule: it finds rules that are not there,
    /// where only the target or a port is another. What we delete differs from
    /// everybody else's earlier than that, by an address or a comment.
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Fails unless the table can be read: the program runs, and the kernel has it.
    pub fn try_out(&self) -> Result<()> {
        // OUTPUT and a number: one rule at most, however many there are.
        let output = self.ask(&["OUTPUT", "1"])?;
        match output.status.success() {
            true => Ok(()),
            false => Err(self.failure(&self.list, &output)),
        }
    }

    /// `iptables -t nat -S CHAIN`; `None` if there is no such chain.
    pub fn chain(&self, chain: &str) -> Result<Option<Listing>> {
        let output = self.ask(&[chain])?;
        if output.status.success() {
            return Ok(Some(Listing::parse(&String::from_utf8_lossy(
                &output.stdout,
            ))));
        }
        if is_absent(&said(&output)) {
            return Ok(None);
        }
        Err(self.failure(&self.list, &output)).with_context(|| format!("list chain {chain}"))
    }

    /// The whole table: `iptables-save -t nat`; empty if the kernel has none.
    pub fn table(&self) -> Result<Listing> {
        let output = execute(&self.save, &["-t", "nat"], "")?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            // The program does not look whether what it wrote was taken.
            if text.contains("*nat") && !text.lines().any(|line| line == "COMMIT") {
                let name = self.save.display();
                return Err(anyhow!("{name}: ended in the middle")).context("list table nat");
            }
            return Ok(Listing::parse(&text));
        }
        if is_absent(&said(&output)) {
            return Ok(Listing::default());
        }
        Err(self.failure(&self.save, &output)).context("list table nat")
    }

    /// Keeps others of us from deciding on the whole table meanwhile, until the
    /// result is dropped. The nft variant has no lock, and its `-N` does not fail
    /// for the second of two who both saw no chain: every pod that is the first of
    /// its node would add the shared rules. The programs' own lock cannot be taken
    /// for them: the legacy variant would wait for us.
    pub fn alone(&self) -> Result<Option<Lock>> {
        let Ok(mut file) = File::open(&self.restore) else {
            return Ok(None);
        };
        let begun = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock.into())),
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
    pub fn is_locked_with(&self, other: &Self) -> bool {
        self.restore.canonicalize().ok() == other.restore.canonicalize().ok()
    }

    /// Makes all changes or none: `iptables-restore --noflush`.
    pub fn carry(&self, transaction: &Transaction) -> Result<(), Refused> {
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

    /// Whether the table has all rules that a transaction requires.
    pub fn has(&self, required: &Transaction) -> Result<bool> {
        match self.carry(required) {
            Ok(()) => Ok(true),
            Err(Refused { line: Some(_), .. }) => Ok(false),
            Err(Refused { error, .. }) => Err(error),
        }
    }

    /// Puts those of `rules` that a chain of any table lacks before all others: one process
    /// where none is missing.
    pub fn keep(&self, table: &str, chain: &str, rules: &[String]) -> Result<()> {
        let wait = self.lock_wait.to_string();
        let carry = |verb: &str, rules: &[String]| {
            let lines = rules.iter().map(|rule| format!("{verb} {chain} {rule}\n"));
            let text = format!("*{table}\n{}COMMIT\n", lines.collect::<String>());
            execute(&self.restore, &["--noflush", "--wait", &wait], &text)
        };
        if carry("-C", rules)?.status.success() {
            return Ok(());
        }
        for rule in rules.iter().map(std::slice::from_ref) {
            let found = carry("-C", rule)?;
            if found.status.success() {
                continue;
            }
            if failed_line(&said(&found)).is_none() {
                return Err(self.failure(&self.restore, &found))
                    .with_context(|| format!("look for a rule in table {table}"));
            }
            let output = carry("-I", rule)?;
            if !output.status.success() {
                return Err(self.failure(&self.restore, &output))
                    .with_context(|| format!("change table {table}: -I {chain} {}", rule[0]));
            }
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
        let told = format!("{}: {said}", program.display());
        match FORBIDDEN.iter().any(|text| said.contains(text)) {
            true => Forbidden(told).into(),
            false => anyhow!(told),
        }
    }

    fn locked(&self, program: &Path, lock: &str) -> cni::Error {
        let (name, wait) = (program.display(), self.lock_wait);
        Code::TryAgain.err(format!(
            "{name}: another program has held the {lock} for {wait} s"
        ))
    }
}

/// What a program says that lacks a privilege, or a place for its lock.
const FORBIDDEN: [&str; 3] = [
    "Permission denied",
    "Operation not permitted",
    "can't open lock file",
];

/// A program was not allowed to look.
#[derive(Debug)]
struct Forbidden(String);

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Forbidden {}

/// Whether the reason of a failure is that a program may not be executed, or may not look.
pub fn is_forbidden(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        cause.is::<Forbidden>() || io.is_some_and(|it| it.kind() == io::ErrorKind::PermissionDenied)
    })
}

/// Whether a program that failed says that there is no such chain or table. The exit
/// status does not tell: 1 is also a malloc(3) that failed, 3 also a lack of
/// permission, and then the chain may well be there. What is not listed here counts
/// as a failure, so that a DEL that cannot look does not claim to have cleaned up.
fn is_absent(said: &str) -> bool {
    let absent = [
        // Both variants, of a chain.
        "No chain/target/match by that name",
        // Legacy: the kernel (or a boot option) has no such table, or none at all.
        "do you need to insmod?",
        // The kernel has no IPv6; both variants.
        "Address family not supported by protocol",
        // nft: a kernel without nfnetlink, and one without nf_tables.
        "Failed to initialize nft: Protocol not supported",
        "Could not fetch rule set generation id: Invalid argument",
    ];
    // nft 1.8.3 to 1.8.9 of a chain that does not exist. The same of a table means that somebody
    // else's rules are in it, and perhaps ours.
    let incompatible = said.contains("chain `") && said.contains("' is incompatible");
    incompatible || absent.iter().any(|text| said.contains(text))
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
    let run = || {
        let child = command(program, arguments).spawn()?;
        execute::finish(child, input.as_bytes(), Limits::LISTING)
    };
    run().map_err(|error| execute::failure(program, error))
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
        assert!(programs.installed(Family::V6).unwrap().is_none());
    }

    #[test]
    fn a_directory_that_cannot_be_searched_may_have_the_program() {
        // ENAMETOOLONG: an error that root gets, too.
        let programs = Programs {
            path: vec!["x".repeat(300).into(), "/nonexistent".into()],
            lock_wait: 1,
        };
        let error = programs.installed(Family::V4).err().unwrap();
        assert!(format!("{error:#}").starts_with("look for xxx"), "{error}");
    }

    #[test]
    fn only_what_says_so_is_absent() {
        for said in [
            "iptables: No chain/target/match by that name.",
            "iptables v1.8.9 (nf_tables): chain `X' in table `nat' is incompatible, use 'nft' tool.",
            "ip6tables v1.8.9 (legacy): can't initialize ip6tables table `nat': Table does not exist (do you need to insmod?): Perhaps ip6tables or your kernel needs to be upgraded.",
            "iptables-save v1.8.9 (legacy): Cannot initialize: iptables who? (do you need to insmod?)",
            "ip6tables v1.8.9 (legacy): can't initialize ip6tables table `nat': Address family not supported by protocol",
        ] {
            assert!(is_absent(said), "{said}");
        }
        for said in [
            "xtables: malloc failed: Cannot allocate memory",
            "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)",
            "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Memory allocation problem",
            "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
            "iptables v1.8.9 (nf_tables): table `nat' is incompatible, use 'nft' tool.",
            "Fatal: can't open lock file /run/xtables.lock: Read-only file system",
            "exit status: 1",
        ] {
            assert!(!is_absent(said), "{said}");
        }
    }
}
