//! Changes of the rule set, as data: rendered as nft's text, which tests
//! compare, and encoded for the kernel, which takes all of them or none.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use nix::libc;

use crate::error::Error;
use crate::expression::{Statement, compile, list, octets};
use crate::family::{Family, Protocol};
use crate::message::{Attributes, Head};
use crate::socket::{Refused, Request, Socket, nftables};

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// For the reader; empty for none. Kernels before 5.10 do not keep it.
    pub comment: &'static str,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// Where.
    pub point: Point,
    /// Lower ones come first.
    pub priority: i32,
}

/// The points on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the kernel's names
pub enum Point {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Point {
    /// `NF_INET_*`; those of bridges (`NF_BR_*`) are the same.
    fn number(self) -> u32 {
        (match self {
            Self::Prerouting => libc::NF_INET_PRE_ROUTING,
            Self::Input => libc::NF_INET_LOCAL_IN,
            Self::Forward => libc::NF_INET_FORWARD,
            Self::Output => libc::NF_INET_LOCAL_OUT,
            Self::Postrouting => libc::NF_INET_POST_ROUTING,
        }) as u32
    }

    fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Where packets enter it; `None` for one that others jump to.
    pub hook: Option<Hook>,
    /// For the reader; empty for none.
    pub comment: &'static str,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, then what is done.
    pub statements: Vec<Statement>,
    /// What it is for, or whose it is.
    pub comment: Option<String>,
}

impl Rule {
    /// One that belongs to nobody in particular.
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self {
            statements: statements.into(),
            comment: None,
        }
    }

    /// With whose it is.
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self {
            comment: Some(comment.into()),
            ..self
        }
    }

    /// As nft prints it in a table of `family`.
    pub fn text(&self, family: Family) -> String {
        let mut words: Vec<_> = self.statements.iter().map(|it| it.text(family)).collect();
        if let Some(comment) = &self.comment {
            words.push(format!("comment \"{comment}\""));
        }
        words.join(" ")
    }
}

/// What a set's keys and a map's values are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An address of the table's family.
    Address,
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// The name of an interface.
    Interface,
    /// The VXLAN network identifier of a UDP packet: three bytes of its payload, for
    /// which nft has no name.
    Vni,
    /// A number; of all that nft can print, a packet mark is the plainest.
    Number,
}

impl Type {
    fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Address, Family::Ip6) => "ipv6_addr",
            (Self::Address, _) => "ipv4_addr",
            (Self::Protocol, _) => "inet_proto",
            (Self::Port, _) => "inet_service",
            (Self::Interface, _) => "ifname",
            (Self::Vni, _) => "integer",
            (Self::Number, _) => "mark",
        }
    }

    /// The expression that has a value of this type, where nft wants to be told: a set
    /// with a part of a payload as a key has no name for its type.
    fn expression(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Address, Family::Ip6) => "ip6 saddr",
            (Self::Address, _) => "ip saddr",
            (Self::Protocol, _) => "meta l4proto",
            (Self::Port, _) => "udp dport",
            (Self::Interface, _) => "iifname",
            (Self::Number, _) => "meta mark",
            (Self::Vni, _) => "@th,96,24",
        }
    }

    /// The same as nft keeps it (`NFTNL_UDATA_SET_TYPEOF_*`, libnftnl's udata.h): the kind of
    /// the expression, then its parts.
    fn user_data(self, family: Family) -> Vec<u8> {
        let payload = 7;
        let meta = 9;
        // Numbers of nft: a protocol and its field, or a key of `meta`.
        let (kind, parts): (u32, &[u32]) = match (self, family) {
            (Self::Address, Family::Ip6) => (payload, &[13, 8]),
            (Self::Address, _) => (payload, &[12, 11]),
            (Self::Protocol, _) => (meta, &[libc::NFT_META_L4PROTO as u32]),
            (Self::Port, _) => (payload, &[6, 2]),
            (Self::Interface, _) => (meta, &[libc::NFT_META_IIFNAME as u32]),
            (Self::Number, _) => (meta, &[libc::NFT_META_MARK as u32]),
            // Of no protocol: behind the transport header (3), from bit 96, 24 bits.
            (Self::Vni, _) => (payload, &[0, 0, 3, 96, 24]),
        };
        let numbered = parts.iter().zip(0..);
        let parts: Vec<u8> = numbered
            .flat_map(|(part, at)| user_number(at, *part))
            .collect();
        [user_number(0, kind), user_bytes(1, &parts)].concat()
    }

    /// nft's own number: the kernel keeps it for nft to read.
    fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Address, Family::Ip6) => 8,
            (Self::Address, _) => 7,
            (Self::Protocol, _) => 12,
            (Self::Port, _) => 13,
            (Self::Interface, _) => 41,
            (Self::Vni, _) => 4,
            (Self::Number, _) => 19,
        }
    }

    /// Bytes.
    fn length(self, family: Family) -> usize {
        match (self, family) {
            (Self::Address, Family::Ip6) | (Self::Interface, _) => 16,
            (Self::Address, _) | (Self::Number, _) => 4,
            (Self::Vni, _) => 3,
            (Self::Port, _) => 2,
            (Self::Protocol, _) => 1,
        }
    }
}

/// A set, or a map if it has values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What its keys are made of.
    pub key: &'static [Type],
    /// What its values are made of; nothing for a set.
    pub value: &'static [Type],
}

impl Set {
    /// Whether a part of its key has no type of its own.
    fn is_typeof(&self) -> bool {
        self.key.contains(&Type::Vni)
    }

    /// What nft has to know to print the keys.
    fn user_data(&self, family: Family) -> Vec<u8> {
        let mut data = user_number(KEY_BYTE_ORDER, self.byte_order());
        if self.value == [Type::Number] {
            const MACHINES_OWN: u32 = 1;
            data.extend(user_number(VALUE_BYTE_ORDER, MACHINES_OWN));
        }
        if self.is_typeof() {
            const CONCATENATION: u32 = 13;
            let numbered = self.key.iter().zip(0..);
            let parts: Vec<u8> = numbered
                .flat_map(|(part, at)| user_bytes(at, &part.user_data(family)))
                .collect();
            let of = [user_number(0, CONCATENATION), user_bytes(1, &parts)].concat();
            data.extend(user_bytes(KEY_TYPEOF, &of));
        }
        data
    }

    /// nft's number for the order of the bytes of a key: of several parts each has its own.
    fn byte_order(&self) -> u32 {
        match self.key {
            [Type::Interface] => 1,
            [_] => 2,
            _ => 0,
        }
    }

    fn noun(&self) -> &'static str {
        if self.value.is_empty() { "set" } else { "map" }
    }
}

/// A part of a key or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // as in `Type`
pub enum Part {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    /// Padded with zeros, as the kernel has it.
    Interface([u8; libc::IFNAMSIZ]),
    Vni(u32),
    Number(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Protocol(protocol) => protocol.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => write!(f, "{number:#010x}"),
            Self::Interface(name) => {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                write!(f, "\"{}\"", String::from_utf8_lossy(name))
            }
            Self::Vni(vni) => write!(f, "{vni:#x}"),
        }
    }
}

impl Part {
    /// The interface called `name`.
    pub fn interface(name: &str) -> Self {
        let mut padded = [0; libc::IFNAMSIZ];
        let bytes = name.as_bytes();
        let length = bytes.len().min(padded.len() - 1);
        padded[..length].copy_from_slice(&bytes[..length]);
        Self::Interface(padded)
    }
}

/// An element of a set or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Where it is.
    pub set: Set,
    /// Its key.
    pub key: Vec<Part>,
    /// Its value; nothing in a set.
    pub value: Vec<Part>,
    /// Whose it is.
    pub owner: String,
}

impl Element {
    fn text(&self, whole: bool) -> String {
        let join = |parts: &[Part]| {
            let words: Vec<_> = parts.iter().map(Part::to_string).collect();
            words.join(" . ")
        };
        let mut text = join(&self.key);
        if whole {
            if !self.owner.is_empty() {
                text = format!("{text} comment \"{}\"", self.owner);
            }
            if !self.value.is_empty() {
                text = format!("{text} : {}", join(&self.value));
            }
        }
        text
    }
}

/// How many bytes each of `types` takes in a key or a value. Of several, each begins at
/// a register of four bytes; one alone is as long as it is.
pub fn lengths(types: &[Type], family: Family) -> impl Iterator<Item = usize> {
    let alone = types.len() == 1;
    types.iter().map(move |it| match it.length(family) {
        length if alone => length,
        length => length.next_multiple_of(4),
    })
}

/// A key or a value as the kernel has it.
pub fn encode(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Part::Address(ip) => bytes.extend(octets(*ip)),
            Part::Protocol(protocol) => bytes.push(protocol.number()),
            Part::Port(port) => bytes.extend(port.to_be_bytes()),
            Part::Interface(name) => bytes.extend(name),
            Part::Vni(vni) => bytes.extend(&vni.to_be_bytes()[1..]),
            // nft reads marks in the machine's own order of bytes.
            Part::Number(number) => bytes.extend(number.to_ne_bytes()),
        }
        if parts.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A table; none if it is there.
    AddTable(Table),
    /// A table with all that is in it.
    DeleteTable(Table),
    /// A chain; none if it is there.
    AddChain(Table, Chain),
    /// A set or map; none if it is there.
    AddSet(Table, Set),
    /// A set with its elements, which no rule looks into any more.
    DeleteSet(Table, Set),
    /// No rule of a chain stays.
    FlushChain(Table, Cow<'static, str>),
    /// A rule, after those of the chain.
    AddRule(Table, Cow<'static, str>, Rule),
    /// A rule, before those of the chain.
    InsertRule(Table, Cow<'static, str>, Rule),
    /// A rule, by the kernel's number.
    DeleteRule(Table, String, u64),
    /// A chain with its rules.
    DeleteChain(Table, String),
    /// An element, where none has its key.
    CreateElement(Table, Element),
    /// The element with this key.
    DeleteElement(Table, Element),
}

impl Change {
    /// What is said of it in an error.
    pub fn describe(&self) -> String {
        match self {
            Self::AddTable(table) => format!("add table {table}"),
            Self::DeleteTable(table) => format!("delete table {table}"),
            Self::AddChain(table, chain) => format!("add chain {table} {}", chain.name),
            Self::AddSet(table, set) => format!("add {} {table} {}", set.noun(), set.name),
            Self::DeleteSet(table, set) => format!("delete {} {table} {}", set.noun(), set.name),
            Self::FlushChain(table, chain) => format!("flush chain {table} {chain}"),
            Self::AddRule(table, chain, _) | Self::InsertRule(table, chain, _) => {
                format!("add rule to chain {table} {chain}")
            }
            Self::DeleteRule(table, chain, _) => format!("delete rule of chain {table} {chain}"),
            Self::DeleteChain(table, chain) => format!("delete chain {table} {chain}"),
            Self::CreateElement(table, it) => {
                format!("add {} to {table} {}", it.text(false), it.set.name)
            }
            Self::DeleteElement(table, it) => {
                format!("delete {} of {table} {}", it.text(false), it.set.name)
            }
        }
    }

    fn request(&self, id: u32) -> Request {
        match self {
            Self::AddTable(table) => {
                let mut it = Attributes::new().text(1, table.name).u32(2, 0);
                if !table.comment.is_empty() {
                    it = it.bytes(6, &user_data(COMMENT, table.comment));
                }
                request(table, libc::NFT_MSG_NEWTABLE, 0, it)
            }
            Self::DeleteTable(table) => {
                let it = Attributes::new().text(1, table.name);
                request(table, libc::NFT_MSG_DELTABLE, 0, it)
            }
            Self::AddChain(table, chain) => {
                let it = chain_attributes(table, chain);
                request(table, libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, it)
            }
            Self::AddSet(table, set) => {
                let it = set_attributes(table, set, id);
                request(table, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, it)
            }
            Self::DeleteSet(table, set) => {
                let it = Attributes::new().text(1, table.name).text(2, set.name);
                request(table, libc::NFT_MSG_DELSET, 0, it)
            }
            Self::FlushChain(table, chain) => {
                let it = Attributes::new().text(1, table.name).text(2, chain);
                request(table, libc::NFT_MSG_DELRULE, 0, it)
            }
            Self::AddRule(table, chain, rule) => {
                let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
                let it = rule_attributes(table, chain, rule);
                request(table, libc::NFT_MSG_NEWRULE, flags, it)
            }
            Self::InsertRule(table, chain, rule) => {
                let it = rule_attributes(table, chain, rule);
                request(table, libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE, it)
            }
            Self::DeleteRule(table, chain, handle) => {
                let it = Attributes::new()
                    .text(1, table.name)
                    .text(2, chain)
                    .u64(3, *handle);
                request(table, libc::NFT_MSG_DELRULE, 0, it)
            }
            Self::DeleteChain(table, chain) => {
                let it = Attributes::new().text(1, table.name).text(3, chain);
                request(table, libc::NFT_MSG_DELCHAIN, 0, it)
            }
            Self::CreateElement(table, element) => {
                let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
                let it = element_attributes(table, element, true);
                request(table, libc::NFT_MSG_NEWSETELEM, flags, it)
            }
            Self::DeleteElement(table, element) => {
                let it = element_attributes(table, element, false);
                request(table, libc::NFT_MSG_DELSETELEM, 0, it)
            }
        }
    }
}

impl fmt::Display for Change {
    /// The line that tells nft to do it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) if table.comment.is_empty() => write!(f, "add table {table}"),
            Self::AddTable(table) => {
                write!(f, "add table {table} {{ comment \"{}\" ; }}", table.comment)
            }
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain(table, chain) => {
                write!(f, "add chain {table} {}", chain.name)?;
                let hook = chain.hook.map(|it| {
                    let (kind, point, priority) = (it.kind, it.point.name(), it.priority);
                    format!(" type {kind} hook {point} priority {priority} ; policy accept ;")
                });
                let comment = Some(chain.comment)
                    .filter(|comment| !comment.is_empty())
                    .map(|comment| format!(" comment \"{comment}\" ;"));
                match (hook, comment) {
                    (None, None) => Ok(()),
                    (hook, comment) => {
                        let (hook, comment) =
                            (hook.unwrap_or_default(), comment.unwrap_or_default());
                        write!(f, " {{{hook}{comment} }}")
                    }
                }
            }
            Self::AddSet(table, set) => {
                let family = table.family;
                let names = |types: &[Type]| {
                    let names: Vec<_> = types.iter().map(|it| it.name(family)).collect();
                    names.join(" . ")
                };
                let key = match set.is_typeof() {
                    false => format!("type {}", names(set.key)),
                    true => {
                        let of = |it: &Type| it.expression(family);
                        let all: Vec<_> = set.key.iter().map(of).collect();
                        format!("typeof {}", all.join(" . "))
                    }
                };
                let noun = set.noun();
                write!(f, "add {noun} {table} {} {{ {key}", set.name)?;
                if !set.value.is_empty() {
                    write!(f, " : {}", names(set.value))?;
                }
                f.write_str(" ; }")
            }
            Self::DeleteSet(table, set) => write!(f, "delete {} {table} {}", set.noun(), set.name),
            Self::FlushChain(table, chain) => write!(f, "flush chain {table} {chain}"),
            Self::AddRule(table, chain, rule) => {
                write!(f, "add rule {table} {chain} {}", rule.text(table.family))
            }
            Self::InsertRule(table, chain, rule) => {
                write!(f, "insert rule {table} {chain} {}", rule.text(table.family))
            }
            Self::DeleteRule(table, chain, handle) => {
                write!(f, "delete rule {table} {chain} handle {handle}")
            }
            Self::DeleteChain(table, chain) => write!(f, "delete chain {table} {chain}"),
            Self::CreateElement(table, it) => {
                write!(
                    f,
                    "create element {table} {} {{ {} }}",
                    it.set.name,
                    it.text(true)
                )
            }
            Self::DeleteElement(table, it) => {
                write!(
                    f,
                    "delete element {table} {} {{ {} }}",
                    it.set.name,
                    it.text(false)
                )
            }
        }
    }
}

/// Types of user data: nft's own, which the kernel keeps for it.
const COMMENT: u8 = 0;
/// The same of a set.
const KEY_BYTE_ORDER: u8 = 0;
const VALUE_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;

/// A comment is as long as nft lets one be.
pub const COMMENT_LENGTH: usize = 128;

fn user_data(kind: u8, text: &str) -> Vec<u8> {
    let text = fitting(text);
    let mut bytes = vec![kind, text.len() as u8 + 1];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

fn user_bytes(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, value.len() as u8], value].concat()
}

/// Numbers are in the machine's byte order.
fn user_number(kind: u8, value: u32) -> Vec<u8> {
    user_bytes(kind, &value.to_ne_bytes())
}

/// As much of a comment as is kept.
pub fn fitting(comment: &str) -> &str {
    let mut end = comment.len().min(COMMENT_LENGTH);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    &comment[..end]
}

/// The comment in user data.
pub fn comment(user_data: &[u8]) -> Option<&str> {
    let (head, mut rest) = user_data.split_first_chunk::<2>()?;
    let mut head = *head;
    loop {
        let value = rest.get(..usize::from(head[1]))?;
        if head[0] == COMMENT {
            return crate::message::text(value);
        }
        let (next, after) = rest.get(value.len()..)?.split_first_chunk::<2>()?;
        (head, rest) = (*next, after);
    }
}

fn request(table: &Table, kind: i32, flags: i32, attributes: Attributes) -> Request {
    Request {
        head: Head {
            kind: nftables(kind),
            flags: flags as u16,
            family: table.family.number(),
            resource: 0,
        },
        attributes,
    }
}

fn rule_attributes(table: &Table, chain: &str, rule: &Rule) -> Attributes {
    let it = Attributes::new()
        .text(1, table.name)
        .text(2, chain)
        .nest(4, &list(&compile(table.family, &rule.statements)));
    match &rule.comment {
        Some(comment) => it.bytes(7, &user_data(COMMENT, comment)),
        None => it,
    }
}

fn chain_attributes(table: &Table, chain: &Chain) -> Attributes {
    let mut it = Attributes::new().text(1, table.name).text(3, &chain.name);
    if let Some(hook) = chain.hook {
        let place = Attributes::new()
            .u32(1, hook.point.number())
            .u32(2, hook.priority as u32);
        it = it
            .text(7, hook.kind)
            .u32(5, libc::NF_ACCEPT as u32)
            .nest(4, &place);
    }
    if !chain.comment.is_empty() {
        it = it.bytes(12, &user_data(COMMENT, chain.comment));
    }
    it
}

fn set_attributes(table: &Table, set: &Set, id: u32) -> Attributes {
    // Concatenated types: six bits each.
    let kind = |types: &[Type]| {
        let number = |sum, it: &Type| sum << 6 | it.number(table.family);
        types.iter().fold(0, number)
    };
    let length = |types: &[Type]| lengths(types, table.family).sum::<usize>() as u32;
    let flags = if set.value.is_empty() {
        0
    } else {
        libc::NFT_SET_MAP
    };
    let mut it = Attributes::new()
        .text(1, table.name)
        .text(2, set.name)
        .u32(3, flags as u32)
        .u32(4, kind(set.key))
        .u32(5, length(set.key));
    if !set.value.is_empty() {
        it = it.u32(6, kind(set.value)).u32(7, length(set.value));
    }
    it.u32(10, id).bytes(13, &set.user_data(table.family))
}

fn element_attributes(table: &Table, element: &Element, whole: bool) -> Attributes {
    let data = |parts: &[Part]| Attributes::new().bytes(1, &encode(parts));
    let mut it = Attributes::new().nest(1, &data(&element.key));
    if whole {
        if !element.value.is_empty() {
            it = it.nest(2, &data(&element.value));
        }
        if !element.owner.is_empty() {
            it = it.bytes(6, &user_data(COMMENT, &element.owner));
        }
    }
    element_list(table, element.set.name, &Attributes::new().nest(1, &it))
}

/// What requests about elements begin with; `elements` is a list of them.
pub fn element_list(table: &Table, set: &str, elements: &Attributes) -> Attributes {
    Attributes::new()
        .text(1, table.name)
        .text(2, set)
        .nest(3, elements)
}

/// Changes that happen all at once or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction(Vec<Change>);

impl Transaction {
    /// Without a change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does `change` after the others.
    pub fn push(&mut self, change: Change) {
        self.0.push(change);
    }

    /// Does the changes of `more` after these.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it takes this table away.
    pub fn deletes_table(&self, table: Table) -> bool {
        self.0.contains(&Change::DeleteTable(table))
    }

    /// Carries it to the kernel. With a `generation`, fails with `ERESTART` if
    /// the rule set is another by now.
    pub fn commit(&self, socket: &Socket, generation: Option<u32>) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        socket
            .commit(&self.requests(), generation)
            .map_err(|refused| {
                let Refused {
                    message,
                    errno,
                    told,
                } = refused;
                let change = message.and_then(|at| self.0.get(at));
                let op = change.map_or_else(|| "commit rules".into(), Change::describe);
                Error::refused(op, errno, told)
            })
    }

    /// Whether the kernel would take it.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, socket: &Socket) -> Result<(), Error> {
        socket
            .check(&self.requests())
            .map_err(|errno| Error::new("try nf_tables", errno))
    }

    fn requests(&self) -> Vec<Request> {
        let numbered = self.0.iter().zip(1..);
        numbered.map(|(change, id)| change.request(id)).collect()
    }
}

impl fmt::Display for Transaction {
    /// What `nft -f -` would read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|change| writeln!(f, "{change}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message;

    const TABLE: Table = Table {
        family: Family::Ip,
        name: "t",
        comment: "",
    };

    #[test]
    fn comments_are_where_nft_looks_for_them() {
        assert_eq!(user_data(COMMENT, "abc"), b"\x00\x04abc\0");
        assert_eq!(comment(b"\x00\x04abc\0"), Some("abc"));
        assert_eq!(comment(b"\x02\x02x\0\x00\x02a\0"), Some("a"));
        assert_eq!(comment(b"\x02\x09x\0"), None);
        assert_eq!(comment(&[]), None);
    }

    #[test]
    fn long_comments_are_cut_between_characters() {
        let long = format!("{}é", "a".repeat(127));
        assert_eq!(fitting(&long), "a".repeat(127));
        assert_eq!(user_data(COMMENT, &"b".repeat(300)).len(), 131);
    }

    #[test]
    fn keys_fill_registers_of_four_bytes() {
        let key = [
            Part::Address(IpAddr::from([1, 2, 3, 4])),
            Part::Protocol(Protocol::Tcp),
            Part::Port(80),
        ];
        assert_eq!(encode(&key), [1, 2, 3, 4, 6, 0, 0, 0, 0, 80, 0, 0]);
    }

    #[test]
    fn a_set_tells_nft_what_its_keys_and_values_are() {
        let set = Set {
            name: "m",
            key: &[Type::Address, Type::Protocol, Type::Port],
            value: &[Type::Address, Type::Port],
        };
        let sent = set_attributes(&TABLE, &set, 1);
        let number = |kind| message::find(sent.as_bytes(), kind).and_then(message::number);
        // The numbers that `nft` sends for this map.
        assert_eq!(
            (number(3), number(4), number(5)),
            (Some(8), Some(0x730d), Some(12))
        );
        assert_eq!((number(6), number(7)), (Some(0x1cd), Some(8)));
    }

    #[test]
    fn errors_name_the_object() {
        let element = Element {
            set: Set {
                name: "ports",
                key: &[Type::Protocol, Type::Port],
                value: &[Type::Address, Type::Port],
            },
            key: vec![Part::Protocol(Protocol::Udp), Part::Port(53)],
            value: vec![Part::Address(IpAddr::from([10, 0, 0, 1])), Part::Port(53)],
            owner: "net/c/eth0".into(),
        };
        let change = Change::CreateElement(TABLE, element);
        assert_eq!(change.describe(), "add udp . 53 to ip t ports");
        assert_eq!(
            change.to_string(),
            "create element ip t ports { udp . 53 comment \"net/c/eth0\" : 10.0.0.1 . 53 }"
        );
    }
}
