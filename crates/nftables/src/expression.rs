//! What a rule says: as nft prints it, and as the kernel's virtual machine runs
//! it.
//!
//! The expressions are those that nft itself compiles a rule to, register by
//! register, so that `nft list ruleset` shows our rules as they are written
//! here, and so that a rule of the Go plugins is recognised as the same.
//! Source: linux/netfilter/nf_tables.h; `nft --debug=netlink`.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use nix::libc;

use crate::family::Family;
use crate::family::Protocol;
use crate::message::{self, Attributes};

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// One part of a rule: a condition or what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `ip saddr 10.22.0.0/24`
    Address(Side, IpNetwork),
    /// `ip daddr != 10.22.0.0/24`
    AddressNot(Side, IpNetwork),
    /// `iifname "veth0"`
    Interface(String),
    /// `iifname != "lo"`
    InterfaceNot(String),
    /// `oifname "cni0"`
    OutInterface(String),
    /// `oifname != "vxlan0"`
    OutInterfaceNot(String),
    /// `iifname @set`
    InterfaceIn(&'static str),
    /// `oifname @set`
    OutInterfaceIn(&'static str),
    /// `iifname . oifname != @set`
    InterfacesNotIn(&'static str),
    /// `udp dport @set`
    UdpPortIn(&'static str),
    /// `udp dport . @th,96,24 != @set`: of a VXLAN packet, its port and VNI. Where a packet is
    /// too short to have a VNI, the rule does not apply.
    VxlanNotIn(&'static str),
    /// `iifname . udp dport . @th,96,24 @set`
    InterfaceAndVxlanIn(&'static str),
    /// `ip saddr . udp dport . @th,96,24 @set`
    SourceAndVxlanIn(&'static str),
    /// `fib saddr . iif oif exists`: an answer to the source could leave by the interface that
    /// the packet came in by.
    ReversePath,
    /// `ether saddr 00:11:22:33:44:55`
    EtherSource([u8; 6]),
    /// `ether daddr 00:11:22:33:44:55`: in a table of IP, what the frame had that the packet came in.
    EtherDestination([u8; 6]),
    /// `tcp dport 8080`
    Port(Protocol, u16),
    /// `fib daddr type local`: for an address of the node.
    LocalDestination,
    /// `ct status dnat`: the connection was redirected.
    Redirected,
    /// `ip saddr . ip daddr @set`
    AddressesIn(&'static str),
    /// `ip saddr & 255.255.255.0 . ip daddr @set`, with the mask of a network
    SubnetAndDestinationIn(IpAddr, &'static str),
    /// `ip daddr . meta l4proto . th dport @set`
    TargetIn(&'static str),
    /// `dnat ip to ip daddr . meta l4proto . th dport map @map`
    RedirectByTarget(&'static str),
    /// `dnat ip to meta l4proto . th dport map @map`
    RedirectByPort(&'static str),
    /// `dnat to 10.22.0.2:80`
    RedirectTo(SocketAddr),
    /// `masquerade`, perhaps `fully-random`
    Masquerade {
        /// Source ports are drawn at random.
        fully_random: bool,
    },
    /// `return`
    Return,
    /// `drop`
    Drop,
    /// `jump chain`
    Jump(String),
    /// `goto chain`
    Goto(String),
}

impl Statement {
    /// As nft prints it in a table of `family`.
    pub fn text(&self, family: Family) -> String {
        let ip = if family == Family::Ip6 { "ip6" } else { "ip" };
        match self {
            Self::Address(side, network) => address_text(*side, network, ""),
            Self::AddressNot(side, network) => address_text(*side, network, "!= "),
            Self::Interface(name) => format!("iifname \"{name}\""),
            Self::InterfaceNot(name) => format!("iifname != \"{name}\""),
            Self::OutInterface(name) => format!("oifname \"{name}\""),
            Self::OutInterfaceNot(name) => format!("oifname != \"{name}\""),
            Self::InterfaceIn(set) => format!("iifname @{set}"),
            Self::OutInterfaceIn(set) => format!("oifname @{set}"),
            Self::InterfacesNotIn(set) => format!("iifname . oifname != @{set}"),
            Self::UdpPortIn(set) => format!("udp dport @{set}"),
            Self::VxlanNotIn(set) => format!("udp dport . @th,96,24 != @{set}"),
            Self::InterfaceAndVxlanIn(set) => format!("iifname . udp dport . @th,96,24 @{set}"),
            Self::SourceAndVxlanIn(set) => format!("{ip} saddr . udp dport . @th,96,24 @{set}"),
            Self::ReversePath => "fib saddr . iif oif exists".into(),
            Self::EtherSource(mac) => format!("ether saddr {}", Mac(mac)),
            Self::EtherDestination(mac) => format!("ether daddr {}", Mac(mac)),
            Self::Port(protocol, port) => format!("{protocol} dport {port}"),
            Self::RedirectTo(to) => format!("dnat to {to}"),
            Self::LocalDestination => "fib daddr type local".into(),
            Self::Redirected => "ct status dnat".into(),
            Self::AddressesIn(set) => format!("{ip} saddr . {ip} daddr @{set}"),
            Self::SubnetAndDestinationIn(mask, set) => {
                format!("{ip} saddr & {mask} . {ip} daddr @{set}")
            }
            Self::TargetIn(set) => format!("{ip} daddr . meta l4proto . th dport @{set}"),
            Self::RedirectByTarget(map) => {
                format!("dnat {ip} to {ip} daddr . meta l4proto . th dport map @{map}")
            }
            Self::RedirectByPort(map) => {
                format!("dnat {ip} to meta l4proto . th dport map @{map}")
            }
            Self::Masquerade { fully_random: true } => "masquerade fully-random".into(),
            Self::Masquerade { .. } => "masquerade".into(),
            Self::Return => "return".into(),
            Self::Drop => "drop".into(),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Goto(chain) => format!("goto {chain}"),
        }
    }
}

fn address_text(side: Side, network: &IpNetwork, not: &str) -> String {
    let (ip, width) = match network {
        IpNetwork::V4(_) => ("ip", 32),
        IpNetwork::V6(_) => ("ip6", 128),
    };
    let side = match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    };
    let mut text = format!("{ip} {side} {not}{}", network.network());
    if network.prefix() < width {
        // Writing to a String cannot fail.
        let _ = write!(text, "/{}", network.prefix());
    }
    text
}

struct Mac<'a>(&'a [u8; 6]);

impl fmt::Display for Mac<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// The expressions of a rule in a table of `family`.
pub fn compile(family: Family, statements: &[Statement]) -> Vec<Attributes> {
    let mut program = Program {
        family,
        list: Vec::new(),
        protocol: None,
    };
    for statement in statements {
        program.statement(statement);
    }
    program.list
}

/// Whether `found`, the expressions of a rule as the kernel lists them, are
/// those of `wanted`. The kernel adds attributes (defaults); it leaves out none.
pub fn same(wanted: &[Attributes], found: &[u8]) -> bool {
    let mut found = message::attributes(found).map(|(_, expression)| expression);
    let equal = wanted
        .iter()
        .all(|wanted| found.next().is_some_and(|found| is(wanted, found)));
    equal && found.next().is_none()
}

/// Whether `found` begins with the expressions of `wanted`.
pub fn begins(wanted: &[Attributes], found: &[u8]) -> bool {
    let mut found = message::attributes(found).map(|(_, expression)| expression);
    wanted
        .iter()
        .all(|wanted| found.next().is_some_and(|found| is(wanted, found)))
}

/// The text that `found` compares first, such as the interface of `iifname "veth0"`.
pub fn first_compared(found: &[u8]) -> Option<String> {
    let mut found = message::attributes(found).map(|(_, expression)| expression);
    // NFTA_CMP_DATA and NFTA_DATA_VALUE (linux/netfilter/nf_tables.h).
    let value = found.find_map(|it| message::find_in(it, &[EXPR_DATA, 3, 1]))?;
    let name = value.split(|byte| *byte == 0).next()?;
    String::from_utf8(name.to_vec()).ok()
}

fn is(wanted: &Attributes, found: &[u8]) -> bool {
    // The flag that an expression has only if it was asked for.
    let flags = |expression| message::find_in(expression, &[EXPR_DATA, MASQ_FLAGS]);
    let masquerade = message::find(found, EXPR_NAME) == Some(b"masq\0");
    message::covers(wanted, found) && (!masquerade || flags(wanted.as_bytes()) == flags(found))
}

/// A list of expressions: the content of `NFTA_RULE_EXPRESSIONS`.
pub fn list(expressions: &[Attributes]) -> Attributes {
    let empty = Attributes::new();
    expressions
        .iter()
        .fold(empty, |list, it| list.nest(LIST_ELEM, it))
}

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const MASQ_FLAGS: u16 = 1;

/// Registers: 16 bytes from the first, and their 4-byte parts after it.
const VERDICT_REGISTER: u32 = libc::NFT_REG_VERDICT as u32;
const REGISTER: u32 = libc::NFT_REG_1 as u32;
const REGISTER_2: u32 = libc::NFT_REG_2 as u32;
const REGISTER_WORD_1: u32 = libc::NFT_REG32_01 as u32;
const REGISTER_WORD_2: u32 = REGISTER_WORD_1 + 1;

/// A lookup that finds nothing is what is wanted (linux/netfilter/nf_tables.h).
const NFT_LOOKUP_F_INV: u32 = 1;

struct Program {
    family: Family,
    list: Vec<Attributes>,
    /// What `meta nfproto` was compared with already.
    protocol: Option<Family>,
}

impl Program {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Address(side, network) => self.address(*side, network, libc::NFT_CMP_EQ),
            Statement::AddressNot(side, network) => {
                self.address(*side, network, libc::NFT_CMP_NEQ);
            }
            Statement::Interface(name) => {
                self.interface(libc::NFT_META_IIFNAME, name, libc::NFT_CMP_EQ);
            }
            Statement::InterfaceNot(name) => {
                self.interface(libc::NFT_META_IIFNAME, name, libc::NFT_CMP_NEQ);
            }
            Statement::OutInterface(name) => {
                self.interface(libc::NFT_META_OIFNAME, name, libc::NFT_CMP_EQ);
            }
            Statement::OutInterfaceNot(name) => {
                self.interface(libc::NFT_META_OIFNAME, name, libc::NFT_CMP_NEQ);
            }
            Statement::InterfaceIn(set) => {
                self.meta(REGISTER, libc::NFT_META_IIFNAME);
                self.look_up(set, false);
            }
            Statement::OutInterfaceIn(set) => {
                self.meta(REGISTER, libc::NFT_META_OIFNAME);
                self.look_up(set, false);
            }
            Statement::InterfacesNotIn(set) => {
                self.meta(REGISTER, libc::NFT_META_IIFNAME);
                self.meta(REGISTER_2, libc::NFT_META_OIFNAME);
                self.look_up_none(set);
            }
            Statement::UdpPortIn(set) => {
                self.require_udp();
                self.destination_port(REGISTER);
                self.look_up(set, false);
            }
            Statement::VxlanNotIn(set) => {
                self.require_udp();
                self.load_vxlan(REGISTER);
                self.look_up_none(set);
            }
            Statement::InterfaceAndVxlanIn(set) => {
                self.require_udp();
                self.meta(REGISTER, libc::NFT_META_IIFNAME);
                self.load_vxlan(REGISTER_2);
                self.look_up(set, false);
            }
            Statement::SourceAndVxlanIn(set) => {
                self.require_udp();
                self.load_address(REGISTER, Side::Source);
                self.load_vxlan(self.after_address());
                self.look_up(set, false);
            }
            Statement::ReversePath => {
                let fib = Attributes::new()
                    .u32(1, REGISTER)
                    .u32(2, FIB_RESULT_OIF)
                    .u32(3, FIB_F_SADDR | FIB_F_IIF | FIB_F_PRESENT);
                self.push("fib", &fib);
                self.compare(libc::NFT_CMP_EQ, &1u32.to_ne_bytes());
            }
            Statement::EtherSource(mac) => {
                self.payload(REGISTER, libc::NFT_PAYLOAD_LL_HEADER, 6, 6);
                self.compare(libc::NFT_CMP_EQ, mac);
            }
            Statement::EtherDestination(mac) => {
                if self.family != Family::Bridge {
                    // In the machine's byte order.
                    self.meta(REGISTER, libc::NFT_META_IIFTYPE);
                    self.compare(libc::NFT_CMP_EQ, &libc::ARPHRD_ETHER.to_ne_bytes());
                }
                self.payload(REGISTER, libc::NFT_PAYLOAD_LL_HEADER, 0, 6);
                self.compare(libc::NFT_CMP_EQ, mac);
            }
            Statement::LocalDestination => {
                let fib = Attributes::new()
                    .u32(1, REGISTER)
                    .u32(2, FIB_RESULT_ADDRTYPE)
                    .u32(3, FIB_F_DADDR);
                self.push("fib", &fib);
                // What type an address has is in the machine's byte order.
                self.compare(libc::NFT_CMP_EQ, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
            }
            Statement::Port(protocol, port) => {
                self.require_protocol(*protocol);
                self.destination_port(REGISTER);
                self.compare(libc::NFT_CMP_EQ, &port.to_be_bytes());
            }
            Statement::RedirectTo(to) => {
                self.load(REGISTER, &octets(to.ip()));
                self.load(REGISTER_2, &to.port().to_be_bytes());
                self.nat(REGISTER_2);
            }
            Statement::Redirected => {
                let status = Attributes::new()
                    .u32(1, REGISTER)
                    .u32(2, libc::NFT_CT_STATUS as u32);
                self.push("ct", &status);
                self.mask(&IPS_DST_NAT.to_ne_bytes());
                self.compare(libc::NFT_CMP_NEQ, &[0; 4]);
            }
            Statement::AddressesIn(set) => {
                self.load_address(REGISTER, Side::Source);
                self.load_address(self.after_address(), Side::Destination);
                self.look_up(set, false);
            }
            Statement::SubnetAndDestinationIn(mask, set) => {
                self.load_address(REGISTER, Side::Source);
                self.mask(&octets(*mask));
                self.load_address(self.after_address(), Side::Destination);
                self.look_up(set, false);
            }
            Statement::TargetIn(set) => {
                self.load_target();
                self.look_up(set, false);
            }
            Statement::RedirectByTarget(map) => {
                self.load_target();
                self.redirect(map);
            }
            Statement::RedirectByPort(map) => {
                self.load_port(REGISTER);
                self.redirect(map);
            }
            Statement::Masquerade { fully_random } => {
                let mut flags = Attributes::new();
                if *fully_random {
                    flags = flags.u32(MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
                }
                self.push("masq", &flags);
            }
            Statement::Return => self.verdict(libc::NFT_RETURN, None),
            Statement::Drop => self.verdict(libc::NF_DROP, None),
            Statement::Jump(chain) => self.verdict(libc::NFT_JUMP, Some(chain)),
            Statement::Goto(chain) => self.verdict(libc::NFT_GOTO, Some(chain)),
        }
    }

    fn push(&mut self, name: &str, data: &Attributes) {
        let expression = Attributes::new().text(EXPR_NAME, name);
        self.list.push(expression.nest(EXPR_DATA, data));
    }

    /// A network that ends on a byte is compared without a mask, as nft does.
    fn address(&mut self, side: Side, network: &IpNetwork, op: i32) {
        let bytes = octets(network.network());
        let (family, start) = match (network, side) {
            (IpNetwork::V4(_), Side::Source) => (Family::Ip, 12),
            (IpNetwork::V4(_), Side::Destination) => (Family::Ip, 16),
            (IpNetwork::V6(_), Side::Source) => (Family::Ip6, 8),
            (IpNetwork::V6(_), Side::Destination) => (Family::Ip6, 24),
        };
        self.require(family);
        let prefix = usize::from(network.prefix());
        if prefix.is_multiple_of(8) && prefix > 0 {
            let length = prefix / 8;
            self.payload(REGISTER, libc::NFT_PAYLOAD_NETWORK_HEADER, start, length);
            self.compare(op, &bytes[..length]);
        } else {
            self.payload(
                REGISTER,
                libc::NFT_PAYLOAD_NETWORK_HEADER,
                start,
                bytes.len(),
            );
            self.mask(&octets(network.mask()));
            self.compare(op, &bytes);
        }
    }

    /// In a table for both, an address has to be of a packet of its protocol.
    fn require(&mut self, family: Family) {
        if self.family == Family::Inet && self.protocol != Some(family) {
            self.meta(REGISTER, libc::NFT_META_NFPROTO);
            self.compare(libc::NFT_CMP_EQ, &[family.number()]);
            self.protocol = Some(family);
        }
    }

    fn require_protocol(&mut self, protocol: Protocol) {
        self.meta(REGISTER, libc::NFT_META_L4PROTO);
        self.compare(libc::NFT_CMP_EQ, &[protocol.number()]);
    }

    fn require_udp(&mut self) {
        self.require_protocol(Protocol::Udp);
    }

    fn destination_port(&mut self, register: u32) {
        self.payload(register, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
    }

    /// Port and VNI, which is behind eight bytes of UDP and four of VXLAN.
    fn load_vxlan(&mut self, register: u32) {
        self.destination_port(register);
        let vni = Self::next(register);
        self.payload(vni, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 12, 3);
    }

    fn interface(&mut self, which: i32, name: &str, op: i32) {
        let mut padded = [0; libc::IFNAMSIZ];
        let bytes = name.as_bytes();
        let length = bytes.len().min(padded.len() - 1);
        padded[..length].copy_from_slice(&bytes[..length]);
        self.meta(REGISTER, which);
        self.compare(op, &padded);
    }

    fn load_address(&mut self, register: u32, side: Side) {
        let (start, length) = match (self.family, side) {
            (Family::Ip6, Side::Source) => (8, 16),
            (Family::Ip6, Side::Destination) => (24, 16),
            (_, Side::Source) => (12, 4),
            (_, Side::Destination) => (16, 4),
        };
        self.payload(register, libc::NFT_PAYLOAD_NETWORK_HEADER, start, length);
    }

    /// The register after an address that is in the first.
    fn after_address(&self) -> u32 {
        match self.family {
            Family::Ip6 => REGISTER_2,
            _ => REGISTER_WORD_1,
        }
    }

    /// Destination address, protocol and port.
    fn load_target(&mut self) {
        self.load_address(REGISTER, Side::Destination);
        self.load_port(self.after_address());
    }

    /// Protocol and destination port, which all of TCP, UDP and SCTP have there.
    fn load_port(&mut self, register: u32) {
        self.meta(register, libc::NFT_META_L4PROTO);
        self.destination_port(Self::next(register));
    }

    /// The part of a register after this one.
    fn next(register: u32) -> u32 {
        match register {
            REGISTER => REGISTER_WORD_1,
            REGISTER_WORD_1 => REGISTER_WORD_2,
            // The second of the parts of the second register.
            _ => REGISTER_WORD_1 + 4,
        }
    }

    /// Looks up what is in the first register on; `map` puts the value there.
    fn look_up(&mut self, set: &str, map: bool) {
        let mut lookup = Attributes::new().text(1, set).u32(2, REGISTER);
        if map {
            lookup = lookup.u32(3, REGISTER);
        }
        self.push("lookup", &lookup);
    }

    fn look_up_none(&mut self, set: &str) {
        let lookup = Attributes::new()
            .text(1, set)
            .u32(2, REGISTER)
            .u32(5, NFT_LOOKUP_F_INV);
        self.push("lookup", &lookup);
    }

    fn redirect(&mut self, map: &str) {
        self.look_up(map, true);
        self.nat(self.after_address());
    }

    /// To the address in the first register and the port in another.
    fn nat(&mut self, port: u32) {
        let nat = Attributes::new()
            .u32(1, libc::NFT_NAT_DNAT as u32)
            .u32(2, u32::from(self.family.number()))
            .u32(3, REGISTER)
            .u32(5, port);
        self.push("nat", &nat);
    }

    /// Puts a constant into a register.
    fn load(&mut self, register: u32, value: &[u8]) {
        let data = Attributes::new().bytes(DATA_VALUE, value);
        let immediate = Attributes::new().u32(1, register).nest(2, &data);
        self.push("immediate", &immediate);
    }

    fn payload(&mut self, register: u32, base: i32, start: u32, length: usize) {
        let payload = Attributes::new()
            .u32(1, register)
            .u32(2, base as u32)
            .u32(3, start)
            .u32(4, length as u32);
        self.push("payload", &payload);
    }

    fn meta(&mut self, register: u32, key: i32) {
        let meta = Attributes::new().u32(1, register).u32(2, key as u32);
        self.push("meta", &meta);
    }

    fn mask(&mut self, mask: &[u8]) {
        let value = |bytes: &[u8]| Attributes::new().bytes(DATA_VALUE, bytes);
        let bitwise = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, REGISTER)
            .u32(3, mask.len() as u32)
            .nest(4, &value(mask))
            .nest(5, &value(&vec![0; mask.len()]));
        self.push("bitwise", &bitwise);
    }

    fn compare(&mut self, op: i32, value: &[u8]) {
        let data = Attributes::new().bytes(DATA_VALUE, value);
        let compare = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, op as u32)
            .nest(3, &data);
        self.push("cmp", &compare);
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        let mut verdict = Attributes::new().u32(1, code as u32);
        if let Some(chain) = chain {
            verdict = verdict.text(2, chain);
        }
        let data = Attributes::new().nest(DATA_VERDICT, &verdict);
        let immediate = Attributes::new().u32(1, VERDICT_REGISTER).nest(2, &data);
        self.push("immediate", &immediate);
    }
}

/// linux/netfilter/nf_tables.h; the libc crate has none of them.
const FIB_RESULT_OIF: u32 = 1;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_SADDR: u32 = 1;
const FIB_F_DADDR: u32 = 1 << 1;
const FIB_F_IIF: u32 = 1 << 3;
const FIB_F_PRESENT: u32 = 1 << 5;
/// linux/netfilter/nf_nat.h
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
/// linux/netfilter/nf_conntrack_common.h
const IPS_DST_NAT: u32 = 1 << 5;

/// An address as it is in a packet.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masquerade(network: &str, fully_random: bool) -> Vec<Statement> {
        let network = network.parse().unwrap();
        vec![
            Statement::Address(Side::Source, network),
            Statement::AddressNot(Side::Destination, network),
            Statement::Masquerade { fully_random },
        ]
    }

    /// The names of the expressions, as `nft --debug=netlink` prints them.
    fn names(program: &[Attributes]) -> Vec<&str> {
        let name = |it| message::text(message::find(it, EXPR_NAME)?);
        program
            .iter()
            .filter_map(|it| name(it.as_bytes()))
            .collect()
    }

    #[test]
    fn a_subnet_that_ends_on_a_byte_needs_no_mask() {
        let program = compile(Family::Inet, &masquerade("10.22.0.0/24", false));
        let expected = ["meta", "cmp", "payload", "cmp", "payload", "cmp", "masq"];
        assert_eq!(names(&program), expected);
        let program = compile(Family::Ip, &masquerade("10.22.0.0/23", false));
        let expected = [
            "payload", "bitwise", "cmp", "payload", "bitwise", "cmp", "masq",
        ];
        assert_eq!(names(&program), expected);
    }

    #[test]
    fn a_rule_is_the_same_only_with_the_same_expressions() {
        let program = |network, random| compile(Family::Inet, &masquerade(network, random));
        let found = |network, random| list(&program(network, random)).as_bytes().to_vec();
        let (plain, random) = (
            program("10.22.0.0/24", false),
            program("10.22.0.0/24", true),
        );
        assert!(same(&plain, &found("10.22.0.0/24", false)));
        assert!(!same(&plain, &found("10.22.1.0/24", false)));
        assert!(!same(&plain, &found("10.22.0.0/24", true)));
        assert!(!same(&random, &found("10.22.0.0/24", false)));
        assert!(!same(&plain[1..], &found("10.22.0.0/24", false)));
        assert!(!same(&plain, &[]));
        assert!(!same(&[], &found("10.22.0.0/24", false)));
    }

    #[test]
    fn a_comparison_is_encoded_as_nft_encodes_it() {
        if cfg!(target_endian = "big") {
            return;
        }
        let program = compile(Family::Bridge, &[Statement::Drop]);
        let expected = [
            0x30, 0, 1, 0x80, // NFTA_LIST_ELEM
            0x0e, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0, //
            0x1c, 0, 2, 0x80, // NFTA_EXPR_DATA
            8, 0, 1, 0, 0, 0, 0, 0, // the verdict's register
            0x10, 0, 2, 0x80, 0x0c, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 0, // NF_DROP
        ];
        assert_eq!(list(&program).as_bytes(), expected);
    }
}
