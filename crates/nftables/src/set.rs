//! Sets, maps and their elements, as nft prints them and as the kernel has them.

use std::fmt;
use std::net::IpAddr;

use nix::libc;
use transport::{find, find_in};

use crate::Attributes;
use crate::expression::{data, interface_name, octets};
use crate::family::{Family, Protocol};
use crate::nfta::*;
use crate::userdata::{self, comment, comment_data};

/// The types that a set's keys and a map's values consist of.
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
    /// A number, printed as a packet mark.
    Number,
}

/// How nft and the kernel know a type.
struct Facts {
    /// nft's name.
    name: &'static str,
    /// nft's number, which the kernel keeps for nft to read.
    number: u32,
    bytes: usize,
    /// nft's expression for such a value of a packet.
    expression: &'static str,
    /// The same expression in nft's user data (`NFTNL_UDATA_SET_TYPEOF_*`, libnftnl's udata.h): its
    /// kind, then its parts.
    user_data: (u32, &'static [u32]),
}

impl Type {
    fn facts(self, family: Family) -> Facts {
        // A protocol of nft and its field; a key of `meta`.
        const PAYLOAD: u32 = 7;
        const META: u32 = 9;
        const L4PROTO: &[u32] = &[libc::NFT_META_L4PROTO as u32];
        const IIFNAME: &[u32] = &[libc::NFT_META_IIFNAME as u32];
        const MARK: &[u32] = &[libc::NFT_META_MARK as u32];
        let (name, number, bytes, expression, user_data) = match self {
            Self::Address if family == Family::Ip6 => {
                ("ipv6_addr", 8, 16, "ip6 saddr", (PAYLOAD, &[13, 8][..]))
            }
            Self::Address => ("ipv4_addr", 7, 4, "ip saddr", (PAYLOAD, &[12, 11][..])),
            Self::Protocol => ("inet_proto", 12, 1, "meta l4proto", (META, L4PROTO)),
            Self::Port => ("inet_service", 13, 2, "udp dport", (PAYLOAD, &[6, 2][..])),
            Self::Interface => ("ifname", 41, 16, "iifname", (META, IIFNAME)),
            // The field belongs to no protocol of nft: 24 bits from bit 96 of the transport header (3).
            Self::Vni => (
                "integer",
                4,
                3,
                "@th,96,24",
                (PAYLOAD, &[0, 0, 3, 96, 24][..]),
            ),
            Self::Number => ("mark", 19, 4, "meta mark", (META, MARK)),
        };
        Facts {
            name,
            number,
            bytes,
            expression,
            user_data,
        }
    }

    /// A value of this type; `None` if this crate does not write such values.
    fn decode(self, bytes: &[u8]) -> Option<Part> {
        Some(match self {
            Self::Address => Part::Address(match bytes.len() {
                16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
                _ => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            }),
            Self::Protocol => Part::Protocol(Protocol::from_number(bytes[0])?),
            Self::Port => Part::Port(u16::from_be_bytes([bytes[0], bytes[1]])),
            Self::Interface => Part::Interface(bytes.try_into().ok()?),
            Self::Vni => Part::Vni(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])),
            Self::Number => Part::Number(u32::from_ne_bytes(bytes.try_into().ok()?)),
        })
    }
}

/// How many bytes each of `types` takes in a key or a value. A single type has its own length; with
/// several, each begins at a register of four bytes.
fn lengths(types: &[Type], family: Family) -> impl Iterator<Item = usize> {
    let is_alone = types.len() == 1;
    types.iter().map(move |it| match it.facts(family).bytes {
        length if is_alone => length,
        length => length.next_multiple_of(4),
    })
}

/// A set, or a map if it has values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// The types that its keys consist of.
    pub key: &'static [Type],
    /// The types that its values consist of; empty for a set.
    pub value: &'static [Type],
}

impl Set {
    /// A set.
    pub const fn new(name: &'static str, key: &'static [Type]) -> Self {
        Self::map(name, key, &[])
    }

    /// A map.
    pub const fn map(name: &'static str, key: &'static [Type], value: &'static [Type]) -> Self {
        Self { name, key, value }
    }

    /// An element of the set; nft prints `comment`, unless it is empty.
    pub fn element(
        self,
        key: impl Into<Vec<Part>>,
        value: impl Into<Vec<Part>>,
        comment: impl Into<String>,
    ) -> Element {
        Element {
            set: self,
            key: key.into(),
            value: value.into(),
            comment: comment.into(),
        }
    }

    /// `set` or `map`.
    pub fn noun(&self) -> &'static str {
        if self.value.is_empty() { "set" } else { "map" }
    }

    /// Whether nft has no name for the type of a part of the key.
    fn is_typeof(&self) -> bool {
        self.key.contains(&Type::Vni)
    }

    /// The text between the braces of the set's definition in nft's syntax.
    pub fn definition(&self, family: Family) -> String {
        let join = |types: &[Type], word: fn(Facts) -> &'static str| {
            let words: Vec<_> = types.iter().map(|it| word(it.facts(family))).collect();
            words.join(" . ")
        };
        let key = if self.is_typeof() {
            format!("typeof {}", join(self.key, |it| it.expression))
        } else {
            format!("type {}", join(self.key, |it| it.name))
        };
        match self.value {
            [] => key,
            value => format!("{key} : {}", join(value, |it| it.name)),
        }
    }

    /// The user data from which nft knows how to print the elements.
    fn user_data(&self, family: Family) -> Vec<u8> {
        // nft's number for the byte order of a key. If the key has several parts, each has its own order.
        let key_order = match self.key {
            [Type::Interface | Type::Number] => 1,
            [_] => 2,
            _ => 0,
        };
        let mut data = userdata::number(userdata::SET_KEYBYTEORDER, key_order);
        if self.value == [Type::Number] {
            const HOST_ENDIAN: u32 = 1;
            data.extend(userdata::number(userdata::SET_DATABYTEORDER, HOST_ENDIAN));
        }
        if self.is_typeof() {
            const CONCATENATION: u32 = 13;
            let part = |(at, it): (u8, &Type)| {
                let (kind, parts) = it.facts(family).user_data;
                let parts: Vec<u8> = (0..)
                    .zip(parts)
                    .flat_map(|(at, part)| userdata::number(at, *part))
                    .collect();
                userdata::entry(at, &userdata::typeof_expression(kind, &parts))
            };
            let parts: Vec<u8> = (0..).zip(self.key).flat_map(part).collect();
            let key = userdata::typeof_expression(CONCATENATION, &parts);
            data.extend(userdata::entry(userdata::SET_KEY_TYPEOF, &key));
        }
        data
    }

    /// The attributes of the set for `NFT_MSG_NEWSET`; `id` identifies it within a batch.
    pub(crate) fn attributes(&self, family: Family, table: &str, id: u32) -> Attributes {
        // Concatenated types: six bits each.
        let kind = |types: &[Type]| {
            let number = |sum, it: &Type| sum << 6 | it.facts(family).number;
            types.iter().fold(0, number)
        };
        let length = |types: &[Type]| lengths(types, family).sum::<usize>() as u32;
        let flags = if self.value.is_empty() {
            0
        } else {
            libc::NFT_SET_MAP
        };
        let mut it = Attributes::new()
            .text(NFTA_SET_TABLE, table)
            .text(NFTA_SET_NAME, self.name)
            .u32(NFTA_SET_FLAGS, flags as u32)
            .u32(NFTA_SET_KEY_TYPE, kind(self.key))
            .u32(NFTA_SET_KEY_LEN, length(self.key));
        if !self.value.is_empty() {
            it = it
                .u32(NFTA_SET_DATA_TYPE, kind(self.value))
                .u32(NFTA_SET_DATA_LEN, length(self.value));
        }
        it.u32(NFTA_SET_ID, id)
            .bytes(NFTA_SET_USERDATA, &self.user_data(family))
    }
}

/// A part of a key or a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "as in `Type`")]
pub enum Part {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    /// Padded with zeros, as the kernel has it.
    Interface([u8; libc::IFNAMSIZ]),
    Vni(u32),
    Number(u32),
}

impl Part {
    /// The interface called `name`.
    pub fn interface(name: &str) -> Self {
        Self::Interface(interface_name(name))
    }
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

/// An element of a set or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The set that it is in.
    pub set: Set,
    /// Its key.
    pub key: Vec<Part>,
    /// Its value; empty in a set.
    pub value: Vec<Part>,
    /// Its comment; empty for none.
    pub comment: String,
}

impl Element {
    /// Its key, as nft prints it.
    pub fn key_text(&self) -> String {
        join(&self.key)
    }

    /// The element, as nft prints it.
    pub fn text(&self) -> String {
        let mut text = self.key_text();
        if !self.comment.is_empty() {
            text = format!("{text} comment \"{}\"", self.comment);
        }
        if !self.value.is_empty() {
            text = format!("{text} : {}", join(&self.value));
        }
        text
    }

    /// The attributes of a request about the element: all if `whole`, to create it; otherwise its key.
    pub(crate) fn attributes(&self, table: &str, whole: bool) -> Attributes {
        let value = |parts: &[Part]| data(&encode(parts));
        let mut it = Attributes::new().nest(NFTA_SET_ELEM_KEY, &value(&self.key));
        if whole && !self.value.is_empty() {
            it = it.nest(NFTA_SET_ELEM_DATA, &value(&self.value));
        }
        if whole && !self.comment.is_empty() {
            it = it.bytes(NFTA_SET_ELEM_USERDATA, &comment_data(&self.comment));
        }
        let list = Attributes::new().nest(NFTA_LIST_ELEM, &it);
        Attributes::new()
            .text(NFTA_SET_ELEM_LIST_TABLE, table)
            .text(NFTA_SET_ELEM_LIST_SET, self.set.name)
            .nest(NFTA_SET_ELEM_LIST_ELEMENTS, &list)
    }

    /// Reads an element of `set` as the kernel lists it; `None` if this crate does not write such
    /// elements.
    pub(crate) fn read(family: Family, set: Set, element: &[u8]) -> Option<Self> {
        let decode = |types: &[Type], kind| match types {
            [] => Some(Vec::new()),
            _ => decode(family, types, find_in(element, &[kind, NFTA_DATA_VALUE])?),
        };
        Some(Self {
            set,
            key: decode(set.key, NFTA_SET_ELEM_KEY)?,
            value: decode(set.value, NFTA_SET_ELEM_DATA)?,
            comment: element_comment(element).unwrap_or_default().to_owned(),
        })
    }
}

/// The comment of an element as the kernel lists it.
pub(crate) fn element_comment(element: &[u8]) -> Option<&str> {
    find(element, NFTA_SET_ELEM_USERDATA).and_then(comment)
}

fn join(parts: &[Part]) -> String {
    let words: Vec<_> = parts.iter().map(Part::to_string).collect();
    words.join(" . ")
}

/// A key or a value as the kernel has it.
fn encode(parts: &[Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Part::Address(ip) => bytes.extend(octets(*ip)),
            Part::Protocol(protocol) => bytes.push(protocol.number()),
            Part::Port(port) => bytes.extend(port.to_be_bytes()),
            Part::Interface(name) => bytes.extend(name),
            Part::Vni(vni) => bytes.extend(&vni.to_be_bytes()[1..]),
            // nft reads marks in the machine's own byte order.
            Part::Number(number) => bytes.extend(number.to_ne_bytes()),
        }
        if parts.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

fn decode(family: Family, types: &[Type], mut bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    for (kind, length) in types.iter().zip(lengths(types, family)) {
        let (part, rest) = bytes.split_at_checked(length)?;
        parts.push(kind.decode(part)?);
        bytes = rest;
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport::{Netfilter, Protocol as _};

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

    #[test]
    fn a_set_tells_nft_what_its_keys_and_values_are() {
        let key = &[Type::Address, Type::Protocol, Type::Port];
        let set = Set::map("m", key, &[Type::Address, Type::Port]);
        let sent = set.attributes(Family::Ip, "t", 1);
        let number = |kind| find(sent.as_bytes(), kind).and_then(Netfilter::u32);
        // The numbers that `nft` sends for this map.
        assert_eq!(number(NFTA_SET_FLAGS), Some(8));
        assert_eq!(number(NFTA_SET_KEY_TYPE), Some(0x730d));
        assert_eq!(number(NFTA_SET_KEY_LEN), Some(12));
        assert_eq!(number(NFTA_SET_DATA_TYPE), Some(0x1cd));
        assert_eq!(number(NFTA_SET_DATA_LEN), Some(8));
    }
}
