//! What the kernel has: rules and elements, read over netlink.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc;

use crate::error::Error;
use crate::expression;
use crate::family::Family;
use crate::family::Protocol;
use crate::message::{self, Attributes, Head};
use crate::socket::{Socket, nftables};
use crate::transaction::{
    Change, Part, Rule, Set, Table, Type, comment, element_list, encode, fitting, lengths,
};

/// A rule that is there.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The chain that it is in.
    pub chain: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// Its comment; empty if it has none.
    pub comment: String,
    expressions: Vec<u8>,
}

impl Listed {
    /// Whether it is `rule` to the letter, comment included.
    pub fn is(&self, family: Family, rule: &Rule) -> bool {
        let comment = rule.comment.as_deref().unwrap_or_default();
        self.comment == fitting(comment) && self.does(family, rule)
    }

    /// Whether it does what `rule` does.
    pub fn does(&self, family: Family, rule: &Rule) -> bool {
        let wanted = expression::compile(family, &rule.statements);
        expression::same(&wanted, &self.expressions)
    }

    /// Whether the first of what it does is what `rule` does.
    pub fn begins(&self, family: Family, rule: &Rule) -> bool {
        let wanted = expression::compile(family, &rule.statements);
        expression::begins(&wanted, &self.expressions)
    }

    /// The interface that it begins with, as in `iifname "veth0" jump x`.
    pub fn interface(&self) -> Option<String> {
        expression::first_compared(&self.expressions)
    }

    /// The change that takes it away.
    pub fn deletion(&self, table: Table) -> Change {
        Change::DeleteRule(table, self.chain.clone(), self.handle)
    }
}

impl Listed {
    /// `rule` as the kernel would list it: for tests of code that compares rules.
    pub fn of(family: Family, chain: &str, handle: u64, rule: &Rule) -> Self {
        let expressions = expression::list(&expression::compile(family, &rule.statements));
        Self {
            chain: chain.to_owned(),
            handle,
            comment: rule.comment.clone().unwrap_or_default(),
            expressions: expressions.as_bytes().to_vec(),
        }
    }
}

/// The rules of `table`, or of one of its chains, in their order; none where
/// there is no such table or chain.
pub fn rules(socket: &Socket, table: Table, chain: Option<&str>) -> Result<Vec<Listed>, Error> {
    let mut which = Attributes::new().text(1, table.name);
    if let Some(chain) = chain {
        which = which.text(2, chain);
    }
    let answers = dump(socket, table, libc::NFT_MSG_GETRULE, &which)
        .map_err(|errno| Error::new(format!("list rules of table {table}"), errno))?;
    let rules = answers.iter().filter_map(|answer| rule(answer));
    // Kernels before 4.16 do not filter.
    let wanted = |it: &Listed| chain.is_none_or(|chain| it.chain == chain);
    Ok(rules
        .filter(|(name, rule)| name == table.name && wanted(rule))
        .map(|(_, rule)| rule)
        .collect())
}

fn rule(bytes: &[u8]) -> Option<(String, Listed)> {
    let table = message::find(bytes, 1).and_then(message::text)?;
    let rule = Listed {
        chain: message::find(bytes, 2).and_then(message::text)?.to_owned(),
        handle: message::find(bytes, 3).and_then(message::long_number)?,
        comment: message::find(bytes, 7)
            .and_then(comment)
            .unwrap_or_default()
            .to_owned(),
        expressions: message::find(bytes, 4).unwrap_or_default().to_owned(),
    };
    Some((table.to_owned(), rule))
}

/// Whether there is a table of `family`, whoever made it.
pub fn has_table(socket: &Socket, family: Family) -> Result<bool, Error> {
    let table = Table {
        family,
        name: "",
        comment: "",
    };
    let answers = dump(socket, table, libc::NFT_MSG_GETTABLE, &Attributes::new())
        .map_err(|errno| Error::new(format!("list tables of family {family}"), errno))?;
    Ok(!answers.is_empty())
}

/// An element that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Vec<Part>,
    /// Its value; nothing in a set.
    pub value: Vec<Part>,
    /// Its comment; empty if it has none.
    pub owner: String,
}

/// The elements of `set` whose owner is `wanted`; none where there is no such
/// set.
pub fn entries(
    socket: &Socket,
    table: Table,
    set: Set,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Entry>, Error> {
    let which = Attributes::new().text(1, table.name).text(2, set.name);
    // Most are somebody else's: look at that before anything else.
    let is_wanted = |element: &&[u8]| element_owner(element).is_some_and(&wanted);
    let pick = |answer: &[u8]| -> Vec<Entry> {
        let its = elements(answer).filter(is_wanted);
        its.filter_map(|it| entry(table.family, set, it)).collect()
    };
    let head = head(table, libc::NFT_MSG_GETSETELEM);
    let mut found = none_where_absent(socket.search(head, &which, pick)).map_err(|errno| {
        let op = format!("list elements of {table} {}", set.name);
        Error::new(op, errno)
    })?;
    // While the kernel makes room in a set that grew, a listing may begin again in the
    // middle (`rhashtable_walk_next`, lib/rhashtable.c). To delete an element twice fails.
    found.sort_by(|one, other| one.key.cmp(&other.key));
    found.dedup_by(|one, other| one.key == other.key);
    Ok(found)
}

/// The element of `set` with this key.
pub fn entry_at(
    socket: &Socket,
    table: Table,
    set: Set,
    key: &[Part],
) -> Result<Option<Entry>, Error> {
    let data = Attributes::new().bytes(1, &encode(key));
    let element = Attributes::new().nest(1, &data);
    let which = element_list(&table, set.name, &Attributes::new().nest(1, &element));
    match socket.request(head(table, libc::NFT_MSG_GETSETELEM), &which) {
        Ok(answers) => Ok(answers
            .iter()
            .flat_map(|answer| elements(answer))
            .find_map(|element| entry(table.family, set, element))),
        // The element, the set or the table.
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => {
            let op = format!("look up an element of {table} {}", set.name);
            Err(Error::new(op, errno))
        }
    }
}

fn elements(answer: &[u8]) -> impl Iterator<Item = &[u8]> {
    let list = message::find(answer, 3).unwrap_or_default();
    message::attributes(list).map(|(_, element)| element)
}

fn element_owner(element: &[u8]) -> Option<&str> {
    message::find(element, 6).and_then(comment)
}

fn entry(family: Family, set: Set, element: &[u8]) -> Option<Entry> {
    let value = match set.value {
        [] => Vec::new(),
        types => decode(family, types, message::find_in(element, &[2, 1])?)?,
    };
    Some(Entry {
        key: decode(family, set.key, message::find_in(element, &[1, 1])?)?,
        value,
        owner: element_owner(element).unwrap_or_default().to_owned(),
    })
}

/// A key or a value; `None` if it is none that could be ours.
fn decode(family: Family, types: &[Type], mut bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    for (kind, length) in types.iter().zip(lengths(types, family)) {
        let (part, rest) = bytes.split_at_checked(length)?;
        bytes = rest;
        parts.push(match kind {
            Type::Address if length == 16 => {
                Part::Address(IpAddr::from(<[u8; 16]>::try_from(part).ok()?))
            }
            Type::Address => Part::Address(IpAddr::from(<[u8; 4]>::try_from(part).ok()?)),
            Type::Protocol => Part::Protocol(protocol(part[0])?),
            Type::Port => Part::Port(u16::from_be_bytes([part[0], part[1]])),
            Type::Interface => Part::Interface(part.try_into().ok()?),
            Type::Vni => Part::Vni(u32::from_be_bytes([0, part[0], part[1], part[2]])),
            Type::Number => Part::Number(u32::from_ne_bytes(part.try_into().ok()?)),
        });
    }
    Some(parts)
}

fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|it| it.number() == number)
}

fn head(table: Table, kind: i32) -> Head {
    Head {
        kind: nftables(kind),
        flags: 0,
        family: table.family.number(),
        resource: 0,
    }
}

/// A dump in which something that is not there is nothing.
fn dump(
    socket: &Socket,
    table: Table,
    kind: i32,
    which: &Attributes,
) -> Result<Vec<Vec<u8>>, Errno> {
    none_where_absent(socket.dump(head(table, kind), which))
}

fn none_where_absent<T>(listed: Result<Vec<T>, Errno>) -> Result<Vec<T>, Errno> {
    match listed {
        Err(Errno::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_they_were_written() {
        let types = [Type::Address, Type::Protocol, Type::Port];
        for (family, ip) in [(Family::Ip, "1.2.3.4"), (Family::Ip6, "fd00::1")] {
            let key = vec![
                Part::Address(ip.parse().unwrap()),
                Part::Protocol(Protocol::Sctp),
                Part::Port(65535),
            ];
            assert_eq!(decode(family, &types, &encode(&key)), Some(key));
        }
        assert_eq!(decode(Family::Ip, &types, &[1, 2, 3, 4]), None);
        assert_eq!(decode(Family::Ip, &[Type::Protocol], &[1]), None);
    }
}
