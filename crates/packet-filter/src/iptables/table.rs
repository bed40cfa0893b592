//! A table of iptables as text: what `iptables-save` and `iptables -S` print, and what
//! `iptables-restore` reads. Nothing here executes a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use cni::Code;

/// The table of masquerade and published ports.
pub const NAT: &str = "nat";
/// The table of rules that accept and drop.
pub const FILTER: &str = "filter";
/// The table whose rules come before connection tracking.
pub const RAW: &str = "raw";

/// A family of addresses, each with programs and tables of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "IP versions")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Whether an address is of this family.
    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    /// The program that lists it; `-save` and `-restore` are to be appended for the others.
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// Its multicast addresses.
    pub fn multicast(self) -> &'static str {
        match self {
            Self::V4 => "224.0.0.0/4",
            Self::V6 => "ff00::/8",
        }
    }
}

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The rules of some chains of a table, as they are in the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    rules: BTreeMap<String, Vec<String>>,
    /// The chains whose policy is DROP.
    dropping: BTreeSet<String>,
}

impl Listing {
    /// Reads what `iptables-save -t TABLE` or `iptables -t TABLE -S` printed.
    pub fn parse(text: &str) -> Self {
        let mut chains = BTreeMap::<String, Vec<String>>::new();
        let mut dropping = BTreeSet::new();
        for line in text.lines() {
            let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            match first {
                "-A" => {
                    let rules = chains.entry(chain.to_owned()).or_default();
                    rules.push(rule.to_owned());
                }
                "-N" | "-P" => {
                    chains.entry(chain.to_owned()).or_default();
                    if rule == "DROP" {
                        dropping.insert(chain.to_owned());
                    }
                }
                _ if first.starts_with(':') => {
                    let name = &first[1..];
                    chains.entry(name.to_owned()).or_default();
                    if chain == "DROP" {
                        dropping.insert(name.to_owned());
                    }
                }
                // *TABLE, COMMIT, comments
                _ => {}
            }
        }
        Self {
            rules: chains,
            dropping,
        }
    }

    /// Whether the policy of `chain` is to drop.
    pub fn drops(&self, chain: &str) -> bool {
        self.dropping.contains(chain)
    }

    /// The rules of `chain` (what follows `-A CHAIN `); `None` if there is no
    /// such chain.
    pub fn chain(&self, chain: &str) -> Option<&[String]> {
        self.rules.get(chain).map(Vec::as_slice)
    }

    /// The same; a chain that does not exist has no rules.
    pub fn rules(&self, chain: &str) -> &[String] {
        self.chain(chain).unwrap_or_default()
    }

    /// Adds the chains of another one.
    pub fn extend(&mut self, other: Self) {
        self.rules.extend(other.rules);
        self.dropping.extend(other.dropping);
    }

    /// All chains by name.
    pub fn chains(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.rules
            .iter()
            .map(|(name, rules)| (name.as_str(), rules.as_slice()))
    }
}

/// Whether `rule` goes to `chain`.
pub fn jumps_to(rule: &str, chain: &str) -> bool {
    let target = rule.strip_suffix(chain);
    target.is_some_and(|before| before.ends_with("-j "))
}

/// The value of an option of `rule`, such as `-j` or `--comment`.
pub fn option(rule: &str, name: &str) -> Option<String> {
    let words = words(rule);
    let at = words.iter().position(|word| word == name)?;
    words.into_iter().nth(at + 1)
}

/// The words of a line that iptables printed, without its quotes.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (quoted, begun) = (!quoted, true),
            '\\' if quoted => word.extend(letters.next()),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// `text` as one word of a line for `iptables-restore`.
///
/// Fails on a control character: a line break would begin another rule.
pub fn word(text: &str) -> Result<String> {
    if text.chars().any(char::is_control) {
        return Err(Code::InvalidConfig
            .err(format!("control character in {text:?}"))
            .into());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/!=+%@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    let escaped = text.replace('\\', r"\\").replace('"', r#"\""#);
    Ok(format!("\"{escaped}\""))
}

/// Changes of a table that are made together or not at all.
#[derive(Debug)]
pub struct Transaction {
    table: &'static str,
    lines: Vec<String>,
}

impl Transaction {
    /// No changes of `table`.
    pub fn new(table: &'static str) -> Self {
        Self {
            table,
            lines: Vec::new(),
        }
    }

    /// The table's name.
    pub fn table(&self) -> &'static str {
        self.table
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether rules are deleted, or may be.
    pub fn deletes(&self) -> bool {
        let deletes = |line: &String| ["-D", "-F", ":"].iter().any(|it| line.starts_with(it));
        self.lines.iter().any(deletes)
    }

    /// Makes the changes of `more`, which are of the same table, after these.
    pub fn extend(&mut self, more: Self) {
        self.lines.extend(more.lines);
    }

    /// Adds a chain; the transaction fails if it exists.
    pub fn create(&mut self, chain: &str) {
        self.lines.push(format!("-N {chain}"));
    }

    /// Adds a chain, or empties it.
    pub fn create_empty(&mut self, chain: &str) {
        self.lines.push(format!(":{chain} - [0:0]"));
    }

    /// Appends a rule.
    pub fn append(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-A {chain} {rule}"));
    }

    /// Makes a rule the first.
    pub fn insert(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-I {chain} {rule}"));
    }

    /// The transaction fails unless the rule exists.
    pub fn require(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-C {chain} {rule}"));
    }

    /// Deletes one such rule; the transaction fails if there is none.
    pub fn delete(&mut self, chain: &str, rule: &str) {
        self.lines.push(format!("-D {chain} {rule}"));
    }

    /// Deletes a chain that nothing leads to any more, with its rules.
    pub fn delete_chain(&mut self, chain: &str) {
        self.lines.push(format!("-F {chain}"));
        self.lines.push(format!("-X {chain}"));
    }

    /// The rules that have to exist, each with its chain.
    pub fn required(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self
            .lines
            .iter()
            .filter_map(|line| line.strip_prefix("-C "));
        lines.filter_map(|line| line.split_once(' '))
    }

    /// The line that `iptables-restore` counts as number `line`; the first, the
    /// table's name, is 1.
    pub fn line(&self, line: usize) -> Option<&str> {
        self.lines.get(line.checked_sub(2)?).map(String::as_str)
    }

    /// Removes that line and returns it.
    pub fn remove_line(&mut self, line: usize) -> Option<String> {
        let at = line.checked_sub(2).filter(|at| *at < self.lines.len())?;
        Some(self.lines.remove(at))
    }
}

impl fmt::Display for Transaction {
    /// What `iptables-restore --noflush` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.table)?;
        self.lines
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))?;
        writeln!(f, "COMMIT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_from_both_programs() {
        let saved =
            "# Generated\n*nat\n:OUTPUT ACCEPT [0:0]\n:EMPTY - [0:0]\n-A OUTPUT -j EMPTY\nCOMMIT\n";
        let listed = "-P OUTPUT ACCEPT\n-N EMPTY\n-A OUTPUT -j EMPTY\n";
        let listing = Listing::parse(saved);
        assert_eq!(listing, Listing::parse(listed));
        assert_eq!(listing.rules("OUTPUT"), ["-j EMPTY"]);
        assert_eq!(listing.chain("EMPTY"), Some(&[][..]));
        assert_eq!(listing.chain("NONE"), None);
    }

    #[test]
    fn words_are_told_apart_as_iptables_quotes_them() {
        let rule = r#"-p tcp -m comment --comment "it\'s \"a\" \\ b" --none "" -j X"#;
        let comment = r#"it's "a" \ b"#;
        assert_eq!(option(rule, "--comment").as_deref(), Some(comment));
        assert_eq!(option(rule, "--none").as_deref(), Some(""));
        assert_eq!(option(rule, "-j").as_deref(), Some("X"));
        assert_eq!(option(rule, "-s"), None);
        assert_eq!(words(&word(comment).unwrap()), [comment]);
    }

    #[test]
    fn a_word_cannot_begin_another_rule() {
        let error = word("x\n-F OUTPUT").unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            r#"control character in "x\n-F OUTPUT""#
        );
    }

    #[test]
    fn a_rule_goes_to_the_whole_name_of_a_chain() {
        assert!(jumps_to("-s 1.2.3.4/32 -j CNI-1", "CNI-1"));
        assert!(jumps_to("-j CNI-1", "CNI-1"));
        assert!(!jumps_to("-j XCNI-1", "CNI-1"));
        assert!(!jumps_to("-j CNI-12", "CNI-1"));
    }
}
