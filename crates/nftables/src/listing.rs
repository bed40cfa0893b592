//! What the kernel has: tables, chains, rules and elements, read over netlink. A table, a chain or a
//! set that does not exist counts as empty.

use nix::errno::Errno;
use nix::libc;
use transport::{Error, Netfilter, Protocol as _, Refusal, attributes, find, find_in, text};

use crate::expression::{compile, first_compared, list, matches};
use crate::family::Family;
use crate::nfta::*;
use crate::set::{Element, Part, Set, element_comment};
use crate::socket::{self, Socket};
use crate::transaction::{Rule, Table};
use crate::userdata::{comment, fitting};
use crate::{Attributes, Request};

/// A rule that the kernel has.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The table that it is in.
    pub table: Table,
    /// The chain that it is in.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Its comment; empty if it has none.
    pub comment: String,
    expressions: Vec<u8>,
}

impl Listed {
    /// `rule` as the kernel would list it: for tests of code that compares rules.
    pub fn of(table: Table, chain: &str, handle: u64, rule: &Rule) -> Self {
        let expressions = list(&compile(table.family, &rule.statements));
        Self {
            table,
            chain: chain.to_owned(),
            handle,
            comment: rule.comment.clone().unwrap_or_default(),
            expressions: expressions.as_bytes().to_vec(),
        }
    }

    fn read(table: Table, bytes: &[u8]) -> Option<Self> {
        let word = |kind| find(bytes, kind).and_then(text);
        // Kernels before 4.16 do not filter.
        if word(NFTA_RULE_TABLE)? != table.name {
            return None;
        }
        let user_data = find(bytes, NFTA_RULE_USERDATA);
        let expressions = find(bytes, NFTA_RULE_EXPRESSIONS);
        Some(Self {
            table,
            chain: word(NFTA_RULE_CHAIN)?.to_owned(),
            handle: find(bytes, NFTA_RULE_HANDLE).and_then(Netfilter::u64)?,
            comment: user_data.and_then(comment).unwrap_or_default().to_owned(),
            expressions: expressions.unwrap_or_default().to_owned(),
        })
    }

    /// Whether it equals `rule`, comment included.
    pub fn is(&self, rule: &Rule) -> bool {
        let comment = rule.comment.as_deref().unwrap_or_default();
        self.comment == fitting(comment) && self.does(rule)
    }

    /// Whether it does what `rule` does.
    pub fn does(&self, rule: &Rule) -> bool {
        self.matches(rule, true)
    }

    /// Whether it begins with what `rule` does.
    pub fn begins(&self, rule: &Rule) -> bool {
        self.matches(rule, false)
    }

    fn matches(&self, rule: &Rule, whole: bool) -> bool {
        let wanted = compile(self.table.family, &rule.statements);
        matches(&wanted, &self.expressions, whole)
    }

    /// The interface that it begins with, as in `iifname "veth0" jump x`.
    pub fn interface(&self) -> Option<String> {
        first_compared(&self.expressions)
    }
}

/// The rules of a table that are in `chain`.
pub fn in_chain<'a>(rules: &'a [Listed], chain: &str) -> impl Iterator<Item = &'a Listed> {
    rules.iter().filter(move |it| it.chain == chain)
}

/// Whether a chain has all of `wanted` in their order; there may be others between them, of an
/// administrator.
pub fn has_in_order(rules: &[Listed], chain: &str, wanted: &[Rule]) -> bool {
    let mut found = in_chain(rules, chain);
    wanted.iter().all(|rule| found.any(|it| it.does(rule)))
}

/// Whether a chain has the rules `wanted`, comments included, and no others.
pub fn has_exactly(rules: &[Listed], chain: &str, wanted: &[Rule]) -> bool {
    let mut found = in_chain(rules, chain);
    let mut wanted = wanted.iter();
    wanted.all(|rule| found.next().is_some_and(|it| it.is(rule))) && found.next().is_none()
}

/// The rules of `table` in their order: `nft -a list table`.
///
/// # Errors
/// What the kernel refuses.
pub fn rules(socket: &Socket, table: Table) -> Result<Vec<Listed>, Error> {
    let which = Attributes::new().text(NFTA_RULE_TABLE, table.name);
    read_rules(socket, table, &which)
}

/// The rules of one chain: `nft -a list chain`.
///
/// # Errors
/// What the kernel refuses.
pub fn chain_rules(socket: &Socket, table: Table, chain: &str) -> Result<Vec<Listed>, Error> {
    let which = Attributes::new()
        .text(NFTA_RULE_TABLE, table.name)
        .text(NFTA_RULE_CHAIN, chain);
    let mut rules = read_rules(socket, table, &which)?;
    rules.retain(|it| it.chain == chain);
    Ok(rules)
}

/// The first rules of a chain, about eight, in one answer of the kernel. It is the last request over
/// this socket.
///
/// # Errors
/// What the kernel refuses.
pub fn first_rules(socket: &Socket, table: Table, chain: &str) -> Result<Vec<Listed>, Error> {
    let which = Attributes::new()
        .text(NFTA_RULE_TABLE, table.name)
        .text(NFTA_RULE_CHAIN, chain);
    let request = request(table.family, libc::NFT_MSG_GETRULE, &which);
    let found = socket.begin_dump(&request, |answer| Listed::read(table, answer));
    let mut rules = none_where_absent(found)
        .map_err(|refusal| Error::refused(format!("list chain {table} {chain}"), refusal))?;
    rules.retain(|it| it.chain == chain);
    Ok(rules)
}

fn read_rules(socket: &Socket, table: Table, which: &Attributes) -> Result<Vec<Listed>, Error> {
    let request = request(table.family, libc::NFT_MSG_GETRULE, which);
    let found = socket.dump(&request, |answer| Listed::read(table, answer));
    none_where_absent(found)
        .map_err(|refusal| Error::refused(format!("list rules of table {table}"), refusal))
}

/// Whether there is a table of `family`, made by any program: `nft list tables FAMILY`.
///
/// # Errors
/// The kernel refuses, or does not have the family.
pub fn has_tables(socket: &Socket, family: Family) -> Result<bool, Error> {
    let request = request(family, libc::NFT_MSG_GETTABLE, &Attributes::new());
    let found = none_where_absent(socket.dump(&request, |_| Some(())));
    let op = || format!("list tables of family {family}");
    let found = found.map_err(|refusal| Error::refused(op(), refusal))?;
    Ok(!found.is_empty())
}

/// Whether there is a table called `table`, made by any program: `nft list table FAMILY TABLE`.
///
/// # Errors
/// As [`has_tables`].
pub fn has_table(socket: &Socket, family: Family, table: &str) -> Result<bool, Error> {
    let which = Attributes::new().text(NFTA_TABLE_NAME, table);
    let request = request(family, libc::NFT_MSG_GETTABLE, &which);
    is_present(socket, &request, || format!("find table {family} {table}"))
}

/// Whether `table` has a chain called `chain`: `nft list chain FAMILY TABLE CHAIN`.
///
/// # Errors
/// As [`has_tables`].
pub fn has_chain(socket: &Socket, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
    let which = Attributes::new()
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain);
    let request = request(family, libc::NFT_MSG_GETCHAIN, &which);
    is_present(socket, &request, || {
        format!("find chain {family} {table} {chain}")
    })
}

/// Whether the policy of a chain is to drop; false where there is no such chain.
///
/// # Errors
/// As [`has_tables`].
pub fn chain_drops(
    socket: &Socket,
    family: Family,
    table: &str,
    chain: &str,
) -> Result<bool, Error> {
    let which = Attributes::new()
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain);
    let request = request(family, libc::NFT_MSG_GETCHAIN, &which);
    let policy = |answer: &[u8]| find(answer, NFTA_CHAIN_POLICY).and_then(Netfilter::u32);
    let found = none_where_absent(socket.get(&request, policy)).map_err(|refusal| {
        let op = format!("find chain {family} {table} {chain}");
        Error::refused(op, refusal)
    })?;
    Ok(found.contains(&(libc::NF_DROP as u32)))
}

/// The chains of all tables that drop what is forwarded and no rule accepts: the family, table and
/// chain of each.
///
/// # Errors
/// As [`has_tables`].
pub fn dropping_forwarded(socket: &Socket) -> Result<Vec<(Family, String, String)>, Error> {
    let mut all = Vec::new();
    for family in [Family::Ip, Family::Ip6, Family::Inet] {
        let request = request(family, libc::NFT_MSG_GETCHAIN, &Attributes::new());
        let found = none_where_absent(socket.dump(&request, dropping));
        let op = || format!("list chains of family {family}");
        let found = found.map_err(|refusal| Error::refused(op(), refusal))?;
        all.extend(
            found
                .into_iter()
                .map(|(table, chain)| (family, table, chain)),
        );
    }
    Ok(all)
}

fn dropping(answer: &[u8]) -> Option<(String, String)> {
    let number = |path: &[u16]| find_in(answer, path).and_then(Netfilter::u32);
    let word = |kind| find(answer, kind).and_then(text).map(str::to_owned);
    let is_forward =
        number(&[NFTA_CHAIN_HOOK, NFTA_HOOK_HOOKNUM]) == Some(libc::NF_INET_FORWARD as u32);
    let drops = number(&[NFTA_CHAIN_POLICY]) == Some(libc::NF_DROP as u32);
    (is_forward && drops).then_some(())?;
    Some((word(NFTA_CHAIN_TABLE)?, word(NFTA_CHAIN_NAME)?))
}

fn is_present(
    socket: &Socket,
    request: &Request,
    op: impl FnOnce() -> String,
) -> Result<bool, Error> {
    match socket.get(request, |_| Some(())) {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.errno == Errno::ENOENT => Ok(false),
        Err(refusal) => Err(Error::refused(op(), refusal)),
    }
}

/// The elements of `sets` whose comment is `wanted`: `nft list set` for each.
///
/// # Errors
/// What the kernel refuses.
pub fn elements(
    socket: &Socket,
    table: Table,
    sets: &[Set],
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Element>, Error> {
    let mut all = Vec::new();
    for set in sets {
        all.extend(set_elements(socket, table, *set, &wanted)?);
    }
    Ok(all)
}

fn set_elements(
    socket: &Socket,
    table: Table,
    set: Set,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Element>, Error> {
    let which = Attributes::new()
        .text(NFTA_SET_ELEM_LIST_TABLE, table.name)
        .text(NFTA_SET_ELEM_LIST_SET, set.name);
    // Most are not wanted: look at the comment before anything else.
    let is_wanted = |element: &&[u8]| element_comment(element).is_some_and(&wanted);
    let pick = |answer: &[u8]| -> Vec<Element> {
        let elements = in_answer(answer).filter(is_wanted);
        let read = elements.filter_map(|it| Element::read(table.family, set, it));
        read.collect()
    };
    let request = request(table.family, libc::NFT_MSG_GETSETELEM, &which);
    let mut found = none_where_absent(socket.dump(&request, pick)).map_err(|refusal| {
        let op = format!("list elements of {table} {}", set.name);
        Error::refused(op, refusal)
    })?;
    // While the kernel makes room in a set that grew, a listing may begin again in the
    // middle (`rhashtable_walk_next`, lib/rhashtable.c). To delete an element twice fails.
    found.sort_by(|one, other| one.key.cmp(&other.key));
    found.dedup_by(|one, other| one.key == other.key);
    Ok(found)
}

/// The element of `set` that has this key.
///
/// # Errors
/// What the kernel refuses.
pub fn element_at(
    socket: &Socket,
    table: Table,
    set: Set,
    key: &[Part],
) -> Result<Option<Element>, Error> {
    let which = set.element(key, [], "").attributes(table.name, false);
    let request = request(table.family, libc::NFT_MSG_GETSETELEM, &which);
    let read = |answer: &[u8]| {
        let mut elements = in_answer(answer);
        elements.find_map(|it| Element::read(table.family, set, it))
    };
    // The element, the set or the table may be missing.
    let found = none_where_absent(socket.get(&request, read)).map_err(|refusal| {
        let op = format!("look up an element of {table} {}", set.name);
        Error::refused(op, refusal)
    })?;
    Ok(found.into_iter().next())
}

fn in_answer(answer: &[u8]) -> impl Iterator<Item = &[u8]> {
    let list = find(answer, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    attributes(list).map(|(_, element)| element)
}

fn request(family: Family, message: i32, which: &Attributes) -> Request {
    socket::request(message, 0, family, which)
}

fn none_where_absent<T>(listed: Result<Vec<T>, Refusal>) -> Result<Vec<T>, Refusal> {
    match listed {
        Err(refusal) if refusal.errno == Errno::ENOENT => Ok(Vec::new()),
        other => other,
    }
}
