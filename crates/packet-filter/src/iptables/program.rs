//! The only file that executes iptables: finds the programs, passes text to them and from them, and
//! distinguishes a held lock from a refusal. It knows no rule, and works with any table.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cni::execute::{self, Limits};
use cni::lock::Lock;
use cni::{Capability, Code, Denied};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::table::{Family, Listing, Transaction};

/// Where to search the programs, and how long they wait.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Directories, the first one wins.
    pub path: Vec<PathBuf>,
    /// Seconds to wait for a held xtables lock.
    pub lock_wait: u32,
}

impl Programs {
    /// The programs of a family; fails with the name of a program that is missing.
    pub fn of(&self, family: Family) -> Result<Program> {
        self.search(family)?.map_err(|missing| {
            anyhow!("find {missing}: not installed (searched PATH, /usr/sbin and /sbin)")
        })
    }

    /// The programs of a family; `None` if one of them is in none of the directories. It is a
    /// failure if a directory cannot be searched, as it may have them.
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
                // As in execvp(3): the next directory may have the program, but if none has it,
                // this one may.
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

/// Whether a program is a link to the nft variant. A script around it is not examined.
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
    /// Why.
    pub error: anyhow::Error,
}

impl Program {
    /// Whether `-C` is exact. ip6tables-legacy 1.8.9 (Debian 12) compares all but the last 56 bytes
    /// of a rule: it finds rules that are not there, where only the target or a port differs. What we
    /// delete differs from all other rules earlier than that, by an address or a comment.
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Fails unless a table can be read: the program runs, and the kernel has the table.
    pub fn try_out(&self, table: &str) -> Result<()> {
        // OUTPUT and a number: lists one rule at most.
        let output = self.list(table, &["OUTPUT", "1"])?;
        if !output.status.success() {
            return Err(self.failure(&self.list, &output));
        }
        Ok(())
    }

    /// The rules of a chain: `iptables -t TABLE -S CHAIN`; `None` if there is no such chain.
    pub fn chain(&self, table: &str, chain: &str) -> Result<Option<Listing>> {
        let output = self.list(table, &[chain])?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return Ok(Some(Listing::parse(&text)));
        }
        if is_absent(&message(&output)) {
            return Ok(None);
        }
        Err(self.failure(&self.list, &output)).with_context(|| format!("list chain {chain}"))
    }

    /// A whole table: `iptables-save -t TABLE`; empty if the kernel does not have it.
    pub fn table(&self, table: &str) -> Result<Listing> {
        let op = || format!("list table {table}");
        let output = execute(&self.save, &["-t", table], "")?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            // The program does not check whether its output could be written.
            if text.contains(&format!("*{table}")) && !text.lines().any(|line| line == "COMMIT") {
                let name = self.save.display();
                return Err(anyhow!("{name}: ended in the middle")).with_context(op);
            }
            return Ok(Listing::parse(&text));
        }
        if is_absent(&message(&output)) {
            return Ok(Listing::default());
        }
        Err(self.failure(&self.save, &output)).with_context(op)
    }

    /// Keeps other processes of podwire from deciding on a whole table, until the result is dropped.
    /// The nft variant has no lock, and its `-N` does not fail for the second of two processes that
    /// both saw no chain: every pod that is the first of its node would add the shared rules. The
    /// programs' own lock cannot be used: the legacy variant would wait for us.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let Ok(mut file) = File::open(&self.restore) else {
            return Ok(None);
        };
        let start = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock.into())),
                Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
                // A file system without locks: rules may be added twice, which does no harm.
                Err(_) => return Ok(None),
            }
            if start.elapsed().as_secs() >= u64::from(self.lock_wait) {
                return Err(self.locked(&self.restore, "lock on it").into());
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether [`Program::lock`] takes the same lock for both.
    pub fn is_locked_with(&self, other: &Self) -> bool {
        self.restore.canonicalize().ok() == other.restore.canonicalize().ok()
    }

    /// Whether it is the nft variant, whose rules are in nf_tables.
    pub fn is_nft(&self) -> bool {
        is_nft(&self.restore)
    }

    /// Makes all changes or none: `iptables-restore --noflush`.
    pub fn commit(&self, transaction: &Transaction) -> Result<(), Refused> {
        if transaction.is_empty() {
            return Ok(());
        }
        let wait = self.lock_wait.to_string();
        let arguments = ["--noflush", "--wait", &wait];
        let text = transaction.to_string();
        let output = if transaction.deletes() {
            execute_deletion(&self.restore, &arguments, &text)
        } else {
            execute(&self.restore, &arguments, &text)
        };
        let output = output.map_err(|error| Refused { line: None, error })?;
        if output.status.success() {
            return Ok(());
        }
        let line = failed_line(&message(&output));
        let mut op = format!("change table {}", transaction.table());
        if let Some(rule) = line.and_then(|line| transaction.line(line)) {
            op = format!("{op}: {rule}");
        }
        let error = self.failure(&self.restore, &output).context(op);
        Err(Refused { line, error })
    }

    /// Whether the table has all rules that a transaction requires.
    pub fn has(&self, required: &Transaction) -> Result<bool> {
        match self.commit(required) {
            Ok(()) => Ok(true),
            Err(Refused { line: Some(_), .. }) => Ok(false),
            Err(Refused { error, .. }) => Err(error),
        }
    }

    fn list(&self, table: &str, chain: &[&str]) -> Result<Output> {
        let wait = self.lock_wait.to_string();
        let arguments = [&["--wait", &wait, "-t", table, "-S"], chain].concat();
        execute(&self.list, &arguments, "")
    }

    fn failure(&self, program: &Path, output: &Output) -> anyhow::Error {
        let message = message(output);
        if message.contains("holding the xtables lock") {
            return self.locked(program, "xtables lock").into();
        }
        let text = format!("{}: {message}", program.display());
        if FORBIDDEN.iter().any(|it| message.contains(it)) {
            Denied::new(text, NEEDED).into()
        } else {
            anyhow!(text)
        }
    }

    fn locked(&self, program: &Path, lock: &str) -> cni::Error {
        let (name, wait) = (program.display(), self.lock_wait);
        Code::TryAgain.err(format!(
            "{name}: another program has held the {lock} for {wait} s"
        ))
    }
}

/// The messages of a program that lacks a privilege, or a place for its lock.
const FORBIDDEN: [&str; 3] = [
    "Permission denied",
    "Operation not permitted",
    "can't open lock file",
];

/// What iptables needs; the legacy program opens a raw socket.
const NEEDED: &[Capability] = &[Capability::NetAdmin, Capability::NetRaw];

/// Whether the cause of a failure is that a program may not be executed, or may not read a table.
pub fn is_forbidden(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        cause.is::<Denied>() || io.is_some_and(|it| it.kind() == io::ErrorKind::PermissionDenied)
    })
}

/// Whether the message of a program that failed means that there is no such chain or table. The exit
/// status does not tell: 1 is also a malloc(3) that failed, 3 also a lack of permission, and then the
/// chain may exist. A message that is not listed here counts as a failure, so that a DEL that cannot
/// read the table does not claim to have cleaned up.
fn is_absent(message: &str) -> bool {
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
    // nft 1.8.3 to 1.8.9, for a chain that does not exist. For a table it means that rules of other
    // programs are in it, and perhaps ours.
    let incompatible = message.contains("chain `") && message.contains("' is incompatible");
    incompatible || absent.iter().any(|text| message.contains(text))
}

/// The error messages of a program in one line, or its exit status.
fn message(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::trim);
    // The nft variant warns of tables of the other one; a hint to --help is of no use here.
    let lines = lines.filter(|line| {
        !line.is_empty() && !line.starts_with("# Warning") && !line.starts_with("Try `")
    });
    let message = lines.collect::<Vec<_>>().join(": ");
    if message.is_empty() {
        return output.status.to_string();
    }
    message
}

/// The number in `iptables-restore: line 3 failed`.
fn failed_line(message: &str) -> Option<usize> {
    let (_, rest) = message.split_once("line ")?;
    let (number, rest) = rest.split_once(' ')?;
    let number = number.parse().ok()?;
    rest.starts_with("failed").then_some(number)
}

fn execute(program: &Path, arguments: &[&str], input: &str) -> Result<Output> {
    let run = || {
        let child = start(program, arguments)?;
        execute::finish(child, input.as_bytes(), Limits::LISTING)
    };
    run().map_err(|error| execute::failure(program, error))
}

/// Executes `iptables-restore` with a transaction that deletes rules. The nft variant would wait for
/// RCU when it closes its socket, with the kernel's commit lock held: a child keeps a copy of the
/// socket for that time.
///
/// The program prints a comment of its input if it is verbose, and reads on. At that moment the
/// transaction is committed, and the socket is still open. The comment is longer than the buffer of
/// its output, which it would print at its end otherwise.
///
/// Cost: 80 lines, here, in `cni::execute` and in `deferred`. Gain: a DEL of firewall takes 5 ms
/// instead of 14 on Linux 6.18.
fn execute_deletion(program: &Path, arguments: &[&str], text: &str) -> Result<Output> {
    let arguments = [arguments, &["--verbose"]].concat();
    let text = format!("{text}#{:1$}\n", "", OUTPUT_BUFFER);
    let keep_sockets = |pid| {
        for socket in deferred::netfilter_sockets_of(pid) {
            deferred::close(socket.as_fd());
        }
    };
    let run = || {
        let child = start(program, &arguments)?;
        execute::finish_at_output(child, text.as_bytes(), Limits::LISTING, keep_sockets)
    };
    run().map_err(|error| execute::failure(program, error))
}

/// More than the C library buffers of the output into a pipe, and less than the longest line that
/// the program reads (10,240 bytes).
const OUTPUT_BUFFER: usize = 5000;

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel's interface to legacy iptables is this program"
)]
fn start(program: &Path, arguments: &[&str]) -> io::Result<Child> {
    execute::start(Command::new(program).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failed_line_is_found_in_the_messages_of_both_variants() {
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
        for message in [
            "iptables: No chain/target/match by that name.",
            "iptables v1.8.9 (nf_tables): chain `X' in table `nat' is incompatible, use 'nft' tool.",
            "ip6tables v1.8.9 (legacy): can't initialize ip6tables table `nat': Table does not exist (do you need to insmod?): Perhaps ip6tables or your kernel needs to be upgraded.",
            "iptables-save v1.8.9 (legacy): Cannot initialize: iptables who? (do you need to insmod?)",
            "ip6tables v1.8.9 (legacy): can't initialize ip6tables table `nat': Address family not supported by protocol",
        ] {
            assert!(is_absent(message), "{message}");
        }
        for message in [
            "xtables: malloc failed: Cannot allocate memory",
            "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)",
            "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Memory allocation problem",
            "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
            "iptables v1.8.9 (nf_tables): table `nat' is incompatible, use 'nft' tool.",
            "Fatal: can't open lock file /run/xtables.lock: Read-only file system",
            "exit status: 1",
        ] {
            assert!(!is_absent(message), "{message}");
        }
    }
}
