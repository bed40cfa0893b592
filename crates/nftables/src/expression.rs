//! Rules as data: the text that nft prints for a statement, and the expressions that the
//! kernel's virtual machine runs for it.
//!
//! The expressions are those that nft itself compiles a rule to, register by register. So
//! `nft list ruleset` shows our rules as they are written here, and a rule that another
//! program wrote is recognised as the same.
//! Source: linux/netfilter/nf_tables.h; `nft --debug=netlink`.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use nix::libc;

use crate::Attributes;
use crate::family::{Family, Protocol};
use crate::nfta::*;
use transport::{attributes, find, find_in, flagged_attributes};

/// An address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields' names")]
pub enum Side {
    Source,
    Destination,
}

/// A value that a packet has, as a part of the key that is looked up in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `iifname`
    Interface,
    /// `oifname`
    OutInterface,
    /// `ip saddr`
    Source,
    /// `ip saddr & 255.255.255.0`, with the mask of a network
    SourceSubnet(IpAddr),
    /// `ip daddr`
    Destination,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `udp dport`
    UdpPort,
    /// `@th,96,24`: the VNI of a VXLAN packet, which is behind eight bytes of UDP and four of
    /// VXLAN. Where a packet is too short to have one, the rule does not apply.
    Vni,
}

impl Field {
    fn text(self, ip: &str) -> String {
        match self {
            Self::Interface => "iifname".into(),
            Self::OutInterface => "oifname".into(),
            Self::Source => format!("{ip} saddr"),
            Self::SourceSubnet(mask) => format!("{ip} saddr & {mask}"),
            Self::Destination => format!("{ip} daddr"),
            Self::Protocol => "meta l4proto".into(),
            Self::Port => "th dport".into(),
            Self::UdpPort => "udp dport".into(),
            Self::Vni => "@th,96,24".into(),
        }
    }
}

/// One part of a rule: a condition or an action.
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
    /// `ip saddr . ip daddr @set`
    In(Vec<Field>, &'static str),
    /// `iifname . oifname != @set`
    NotIn(Vec<Field>, &'static str),
    /// `fib saddr . iif oif exists`: an answer to the source could leave by the interface that
    /// the packet came in by.
    ReversePath,
    /// `ether saddr 00:11:22:33:44:55`
    EtherSource([u8; 6]),
    /// `ether daddr 00:11:22:33:44:55`: in a table of IP, of the frame that the packet came in.
    EtherDestination([u8; 6]),
    /// `tcp dport 8080`
    Port(Protocol, u16),
    /// `fib daddr type local`: to an address of the node.
    LocalDestination,
    /// `ct status dnat`: the connection was redirected.
    Redirected,
    /// `ct state established,related`: a packet of a connection that was let through before.
    Established,
    /// `icmp type echo-request`, in a table of IPv6 `icmpv6 type echo-request`.
    EchoRequest,
    /// `ether type arp`
    Arp,
    /// `icmpv6 type nd-neighbor-solicit`: what ARP is in IPv6; in a table of bridges.
    NeighbourSolicitation,
    /// `icmp type redirect`, in a table of IPv6 `icmpv6 type nd-redirect`: the advice to send to
    /// another router, or to the neighbour itself.
    RedirectAdvice,
    /// `dnat ip to ip daddr . meta l4proto . th dport map @map`
    RedirectBy(Vec<Field>, &'static str),
    /// `dnat to 10.22.0.2:80`
    RedirectTo(SocketAddr),
    /// `masquerade`, or `masquerade fully-random`
    Masquerade {
        /// Source ports are drawn at random.
        fully_random: bool,
    },
    /// `xt match "comment"`: a comment as iptables writes it.
    IptablesComment(String),
    /// `xt match "conntrack"`: what [`Statement::Established`] compares, as iptables writes it.
    IptablesEstablished,
    /// `counter`, as iptables gives one to each rule.
    Counter,
    /// `meta nftrace set 1`: from here on, the kernel reports what each rule does with the packet.
    Trace,
    /// `accept`
    Accept,
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
        let key = |fields: &[Field]| {
            let words: Vec<_> = fields.iter().map(|it| it.text(ip)).collect();
            words.join(" . ")
        };
        match self {
            Self::Address(side, network) => address_text(*side, network, ""),
            Self::AddressNot(side, network) => address_text(*side, network, "!= "),
            Self::Interface(name) => format!("iifname \"{name}\""),
            Self::InterfaceNot(name) => format!("iifname != \"{name}\""),
            Self::OutInterface(name) => format!("oifname \"{name}\""),
            Self::OutInterfaceNot(name) => format!("oifname != \"{name}\""),
            Self::In(fields, set) => format!("{} @{set}", key(fields)),
            Self::NotIn(fields, set) => format!("{} != @{set}", key(fields)),
            Self::ReversePath => "fib saddr . iif oif exists".into(),
            Self::EtherSource(mac) => format!("ether saddr {}", mac_text(mac)),
            Self::EtherDestination(mac) => format!("ether daddr {}", mac_text(mac)),
            Self::Port(protocol, port) => format!("{protocol} dport {port}"),
            Self::LocalDestination => "fib daddr type local".into(),
            Self::Redirected => "ct status dnat".into(),
            Self::Established => "ct state established,related".into(),
            Self::EchoRequest if family == Family::Ip6 => "icmpv6 type echo-request".into(),
            Self::EchoRequest => "icmp type echo-request".into(),
            Self::Arp => "ether type arp".into(),
            Self::NeighbourSolicitation => "icmpv6 type nd-neighbor-solicit".into(),
            Self::RedirectAdvice if family == Family::Ip6 => "icmpv6 type nd-redirect".into(),
            Self::RedirectAdvice => "icmp type redirect".into(),
            Self::RedirectBy(fields, map) => format!("dnat {ip} to {} map @{map}", key(fields)),
            Self::RedirectTo(to) => format!("dnat to {to}"),
            Self::Masquerade { fully_random: true } => "masquerade fully-random".into(),
            Self::Masquerade { .. } => "masquerade".into(),
            Self::IptablesComment(_) => "xt match \"comment\"".into(),
            Self::IptablesEstablished => "xt match \"conntrack\"".into(),
            Self::Counter => "counter".into(),
            Self::Trace => "meta nftrace set 1".into(),
            Self::Accept => "accept".into(),
            Self::Return => "return".into(),
            Self::Drop => "drop".into(),
            Self::Jump(chain) => format!("jump {chain}"),
            Self::Goto(chain) => format!("goto {chain}"),
        }
    }
}

fn address_text(side: Side, network: &IpNetwork, not: &str) -> String {
    let ip = if network.is_ipv4() { "ip" } else { "ip6" };
    let side = match side {
        Side::Source => "saddr",
        Side::Destination => "daddr",
    };
    let address = network.network();
    let mut text = format!("{ip} {side} {not}{address}");
    if usize::from(network.prefix()) < octets(address).len() * 8 {
        text += &format!("/{}", network.prefix());
    }
    text
}

fn mac_text(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The expressions of a rule in a table of `family`.
pub fn compile(family: Family, statements: &[Statement]) -> Vec<Attributes> {
    let mut program = Program {
        family,
        list: Vec::new(),
        compared: None,
    };
    statements.iter().for_each(|it| program.statement(it));
    program.list
}

/// Whether `found`, the expressions of a rule as the kernel lists them, begins with those of
/// `wanted`; with `whole`, it must have no others. The kernel adds attributes (defaults), and omits
/// none.
pub fn matches(wanted: &[Attributes], found: &[u8], whole: bool) -> bool {
    let mut found = attributes(found).map(|(_, expression)| expression);
    let mut wanted = wanted.iter();
    let begins = wanted.all(|wanted| found.next().is_some_and(|found| is(wanted, found)));
    begins && (!whole || found.next().is_none())
}

/// The text that `found` compares first, such as the interface of `iifname "veth0"`.
pub fn first_compared(found: &[u8]) -> Option<String> {
    let path = [NFTA_EXPR_DATA, NFTA_CMP_DATA, NFTA_DATA_VALUE];
    let mut found = attributes(found).map(|(_, expression)| expression);
    let value = found.find_map(|it| find_in(it, &path))?;
    let name = value.split(|byte| *byte == 0).next()?;
    String::from_utf8(name.to_vec()).ok()
}

fn is(wanted: &Attributes, found: &[u8]) -> bool {
    // This attribute is only there where a flag is set.
    let flags = |expression| find_in(expression, &[NFTA_EXPR_DATA, NFTA_MASQ_FLAGS]);
    let masquerade = find(found, NFTA_EXPR_NAME) == Some(b"masq\0");
    covers(wanted.as_bytes(), found) && (!masquerade || flags(wanted.as_bytes()) == flags(found))
}

/// Whether each attribute of `wanted` is in `found` with the same value; a nested attribute may contain
/// more in `found`.
fn covers(wanted: &[u8], found: &[u8]) -> bool {
    const NLA_F_NESTED: u16 = 0x8000;
    flagged_attributes(wanted).all(|(kind, wanted)| {
        // The kernel does not set the flag of every nested attribute; we do.
        find(found, kind & !NLA_F_NESTED).is_some_and(|found| {
            if kind & NLA_F_NESTED != 0 {
                covers(wanted, found)
            } else {
                wanted == found
            }
        })
    })
}

/// A list of expressions: the content of `NFTA_RULE_EXPRESSIONS`.
pub fn list(expressions: &[Attributes]) -> Attributes {
    let empty = Attributes::new();
    expressions
        .iter()
        .fold(empty, |list, it| list.nest(NFTA_LIST_ELEM, it))
}

/// The registers: words of four bytes. Values begin at the first.
const FIRST: u32 = 0;

/// The number of the register that begins at `word`: the kernel has one name for each 16 bytes,
/// and others for the words between.
fn register(word: u32) -> u32 {
    match word % 4 {
        0 => libc::NFT_REG_1 as u32 + word / 4,
        _ => libc::NFT_REG32_00 as u32 + word,
    }
}

struct Program {
    family: Family,
    list: Vec<Attributes>,
    /// The family that `meta nfproto` was compared with already.
    compared: Option<Family>,
}

impl Program {
    fn statement(&mut self, statement: &Statement) {
        const EQ: i32 = libc::NFT_CMP_EQ;
        const NEQ: i32 = libc::NFT_CMP_NEQ;
        match statement {
            Statement::Address(side, network) => self.address(*side, network, EQ),
            Statement::AddressNot(side, network) => self.address(*side, network, NEQ),
            Statement::Interface(name) => self.interface(libc::NFT_META_IIFNAME, name, EQ),
            Statement::InterfaceNot(name) => self.interface(libc::NFT_META_IIFNAME, name, NEQ),
            Statement::OutInterface(name) => self.interface(libc::NFT_META_OIFNAME, name, EQ),
            Statement::OutInterfaceNot(name) => self.interface(libc::NFT_META_OIFNAME, name, NEQ),
            Statement::In(fields, set) => {
                self.load_key(fields);
                self.look_up(set, |it| it);
            }
            Statement::NotIn(fields, set) => {
                self.load_key(fields);
                self.look_up(set, |it| it.u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV));
            }
            Statement::RedirectBy(fields, map) => {
                self.load_key(fields);
                self.look_up(map, |it| it.u32(NFTA_LOOKUP_DREG, register(FIRST)));
                self.dnat(self.address_length().div_ceil(4));
            }
            Statement::RedirectTo(to) => {
                self.load(FIRST, &octets(to.ip()));
                self.load(4, &to.port().to_be_bytes());
                self.dnat(4);
            }
            Statement::ReversePath => {
                let flags = NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT;
                self.fib(NFT_FIB_RESULT_OIF, flags);
                self.compare(EQ, &1u32.to_ne_bytes());
            }
            Statement::LocalDestination => {
                self.fib(NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR);
                // The type of an address is in the machine's byte order.
                self.compare(EQ, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
            }
            Statement::EtherSource(mac) => self.mac(6, mac),
            Statement::EtherDestination(mac) => {
                if self.family != Family::Bridge {
                    self.require_ethernet();
                }
                self.mac(0, mac);
            }
            Statement::Port(protocol, port) => {
                self.require_protocol(*protocol);
                self.field(Field::Port, FIRST);
                self.compare(EQ, &port.to_be_bytes());
            }
            Statement::Redirected => self.tracked(libc::NFT_CT_STATUS, IPS_DST_NAT),
            Statement::Established => self.tracked(libc::NFT_CT_STATE, CT_ESTABLISHED | CT_RELATED),
            Statement::EchoRequest => self.icmp(ICMP_ECHO_REQUEST, ICMPV6_ECHO_REQUEST),
            Statement::RedirectAdvice => self.icmp(ICMP_REDIRECT, ICMPV6_REDIRECT),
            Statement::Arp => {
                self.payload(FIRST, libc::NFT_PAYLOAD_LL_HEADER, 12, 2);
                self.compare(EQ, &(libc::ETH_P_ARP as u16).to_be_bytes());
            }
            Statement::NeighbourSolicitation => {
                self.icmp_type(libc::IPPROTO_ICMPV6, ICMPV6_NEIGHBOUR_SOLICITATION);
            }
            Statement::Masquerade { fully_random } => self.masquerade(*fully_random),
            Statement::IptablesComment(text) => self.iptables_comment(text),
            Statement::IptablesEstablished => self.iptables_established(),
            Statement::Counter => self.push("counter", &Attributes::new()),
            Statement::Trace => self.trace(),
            Statement::Accept => self.verdict(libc::NF_ACCEPT, None),
            Statement::Return => self.verdict(libc::NFT_RETURN, None),
            Statement::Drop => self.verdict(libc::NF_DROP, None),
            Statement::Jump(chain) => self.verdict(libc::NFT_JUMP, Some(chain)),
            Statement::Goto(chain) => self.verdict(libc::NFT_GOTO, Some(chain)),
        }
    }

    /// The packet came in on Ethernet.
    fn require_ethernet(&mut self) {
        self.meta(FIRST, libc::NFT_META_IIFTYPE);
        // In the machine's byte order.
        self.compare(libc::NFT_CMP_EQ, &libc::ARPHRD_ETHER.to_ne_bytes());
    }

    fn masquerade(&mut self, fully_random: bool) {
        let mut flags = Attributes::new();
        if fully_random {
            flags = flags.u32(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
        }
        self.push("masq", &flags);
    }

    /// `struct xt_comment_info` (linux/netfilter/xt_comment.h).
    fn iptables_comment(&mut self, text: &str) {
        let mut info = [0; XT_MAX_COMMENT_LEN];
        let length = text.len().min(info.len() - 1);
        info[..length].copy_from_slice(&text.as_bytes()[..length]);
        self.iptables_match("comment", 0, &info);
    }

    /// `struct xt_conntrack_mtinfo3` (linux/netfilter/xt_conntrack.h), for
    /// `--ctstate RELATED,ESTABLISHED`.
    fn iptables_established(&mut self) {
        const MATCH_FLAGS: usize = 146;
        const STATE_MASK: usize = 150;
        let mut info = [0; 168];
        info[MATCH_FLAGS..][..2].copy_from_slice(&XT_CONNTRACK_STATE.to_ne_bytes());
        // Its bits are those of nf_tables.
        let states = (CT_ESTABLISHED | CT_RELATED) as u16;
        info[STATE_MASK..][..2].copy_from_slice(&states.to_ne_bytes());
        self.iptables_match("conntrack", 3, &info);
    }

    /// A match of iptables with the revision and the form of its `info`.
    fn iptables_match(&mut self, name: &str, revision: u32, info: &[u8]) {
        let attributes = Attributes::new()
            .text(NFTA_MATCH_NAME, name)
            .u32(NFTA_MATCH_REV, revision)
            .bytes(NFTA_MATCH_INFO, info);
        self.push("match", &attributes);
    }

    /// The kernel reports what the further rules do with the packet: `meta nftrace set 1`.
    fn trace(&mut self) {
        self.load(FIRST, &[1]);
        let set = Attributes::new()
            .u32(NFTA_META_KEY, libc::NFT_META_NFTRACE as u32)
            .u32(NFTA_META_SREG, register(FIRST));
        self.push("meta", &set);
    }

    /// Whether connection tracking has one of `bits` in `key` for the packet.
    fn tracked(&mut self, key: i32, bits: u32) {
        let load = Attributes::new()
            .u32(NFTA_CT_DREG, register(FIRST))
            .u32(NFTA_CT_KEY, key as u32);
        self.push("ct", &load);
        self.mask(&bits.to_ne_bytes());
        self.compare(libc::NFT_CMP_NEQ, &[0; 4]);
    }

    fn push(&mut self, name: &str, data: &Attributes) {
        let expression = Attributes::new().text(NFTA_EXPR_NAME, name);
        self.list.push(expression.nest(NFTA_EXPR_DATA, data));
    }

    /// A network that ends on a byte is compared without a mask, as nft does it.
    fn address(&mut self, side: Side, network: &IpNetwork, op: i32) {
        let bytes = octets(network.network());
        let family = match network {
            IpNetwork::V4(_) => Family::Ip,
            IpNetwork::V6(_) => Family::Ip6,
        };
        self.require(family);
        let start = address_offset(side, bytes.len() as u32);
        let prefix = usize::from(network.prefix());
        if prefix.is_multiple_of(8) && prefix > 0 {
            let length = prefix / 8;
            let base = libc::NFT_PAYLOAD_NETWORK_HEADER;
            self.payload(FIRST, base, start, length as u32);
            self.compare(op, &bytes[..length]);
        } else {
            let base = libc::NFT_PAYLOAD_NETWORK_HEADER;
            self.payload(FIRST, base, start, bytes.len() as u32);
            self.mask(&octets(network.mask()));
            self.compare(op, &bytes);
        }
    }

    /// In a table of both families, a rule about an address is for packets of that address's family.
    fn require(&mut self, family: Family) {
        if self.family == Family::Inet && self.compared != Some(family) {
            self.meta(FIRST, libc::NFT_META_NFPROTO);
            self.compare(libc::NFT_CMP_EQ, &[family.number()]);
            self.compared = Some(family);
        }
    }

    fn require_protocol(&mut self, protocol: Protocol) {
        self.meta(FIRST, libc::NFT_META_L4PROTO);
        self.compare(libc::NFT_CMP_EQ, &[protocol.number()]);
    }

    /// A message of ICMP: its type in a table of IPv4, and in one of IPv6.
    fn icmp(&mut self, v4: u8, v6: u8) {
        let (protocol, kind) = match self.family {
            Family::Ip6 => (libc::IPPROTO_ICMPV6, v6),
            _ => (libc::IPPROTO_ICMP, v4),
        };
        self.icmp_type(protocol, kind);
    }

    fn icmp_type(&mut self, protocol: libc::c_int, kind: u8) {
        self.meta(FIRST, libc::NFT_META_L4PROTO);
        self.compare(libc::NFT_CMP_EQ, &[protocol as u8]);
        self.payload(FIRST, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
        self.compare(libc::NFT_CMP_EQ, &[kind]);
    }

    fn interface(&mut self, which: i32, name: &str, op: i32) {
        self.meta(FIRST, which);
        self.compare(op, &interface_name(name));
    }

    fn mac(&mut self, offset: u32, mac: &[u8; 6]) {
        self.payload(FIRST, libc::NFT_PAYLOAD_LL_HEADER, offset, 6);
        self.compare(libc::NFT_CMP_EQ, mac);
    }

    /// Loads the values of `fields` one after the other.
    fn load_key(&mut self, fields: &[Field]) {
        if fields.contains(&Field::UdpPort) {
            self.require_protocol(Protocol::Udp);
        }
        let mut word = FIRST;
        for field in fields {
            word += self.field(*field, word).div_ceil(4);
        }
    }

    /// Loads one value to `word`; its length in bytes.
    fn field(&mut self, field: Field, word: u32) -> u32 {
        let transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER;
        let (base, offset, length) = match field {
            Field::Interface | Field::OutInterface => {
                let key = match field {
                    Field::Interface => libc::NFT_META_IIFNAME,
                    _ => libc::NFT_META_OIFNAME,
                };
                self.meta(word, key);
                return libc::IFNAMSIZ as u32;
            }
            Field::Protocol => {
                self.meta(word, libc::NFT_META_L4PROTO);
                return 1;
            }
            Field::Source | Field::SourceSubnet(_) => self.address_field(Side::Source),
            Field::Destination => self.address_field(Side::Destination),
            // TCP, UDP and SCTP all have it there.
            Field::Port | Field::UdpPort => (transport, 2, 2),
            Field::Vni => (transport, 12, 3),
        };
        self.payload(word, base, offset, length);
        if let Field::SourceSubnet(mask) = field {
            self.mask(&octets(mask));
        }
        length
    }

    fn address_length(&self) -> u32 {
        if self.family == Family::Ip6 { 16 } else { 4 }
    }

    fn address_field(&self, side: Side) -> (i32, u32, u32) {
        let length = self.address_length();
        let base = libc::NFT_PAYLOAD_NETWORK_HEADER;
        (base, address_offset(side, length), length)
    }

    /// Looks up the key that begins in the first register; `more` completes the lookup.
    fn look_up(&mut self, set: &str, more: impl FnOnce(Attributes) -> Attributes) {
        let lookup = Attributes::new()
            .text(NFTA_LOOKUP_SET, set)
            .u32(NFTA_LOOKUP_SREG, register(FIRST));
        self.push("lookup", &more(lookup));
    }

    /// To the address in the first register and the port at `word`.
    fn dnat(&mut self, word: u32) {
        let nat = Attributes::new()
            .u32(NFTA_NAT_TYPE, libc::NFT_NAT_DNAT as u32)
            .u32(NFTA_NAT_FAMILY, u32::from(self.family.number()))
            .u32(NFTA_NAT_REG_ADDR_MIN, register(FIRST))
            .u32(NFTA_NAT_REG_PROTO_MIN, register(word));
        self.push("nat", &nat);
    }

    fn load(&mut self, word: u32, value: &[u8]) {
        let immediate = Attributes::new()
            .u32(NFTA_IMMEDIATE_DREG, register(word))
            .nest(NFTA_IMMEDIATE_DATA, &data(value));
        self.push("immediate", &immediate);
    }

    fn payload(&mut self, word: u32, base: i32, offset: u32, length: u32) {
        let payload = Attributes::new()
            .u32(NFTA_PAYLOAD_DREG, register(word))
            .u32(NFTA_PAYLOAD_BASE, base as u32)
            .u32(NFTA_PAYLOAD_OFFSET, offset)
            .u32(NFTA_PAYLOAD_LEN, length);
        self.push("payload", &payload);
    }

    fn meta(&mut self, word: u32, key: i32) {
        let meta = Attributes::new()
            .u32(NFTA_META_DREG, register(word))
            .u32(NFTA_META_KEY, key as u32);
        self.push("meta", &meta);
    }

    fn fib(&mut self, result: u32, flags: u32) {
        let fib = Attributes::new()
            .u32(NFTA_FIB_DREG, register(FIRST))
            .u32(NFTA_FIB_RESULT, result)
            .u32(NFTA_FIB_FLAGS, flags);
        self.push("fib", &fib);
    }

    /// Masks the first register.
    fn mask(&mut self, mask: &[u8]) {
        let bitwise = Attributes::new()
            .u32(NFTA_BITWISE_SREG, register(FIRST))
            .u32(NFTA_BITWISE_DREG, register(FIRST))
            .u32(NFTA_BITWISE_LEN, mask.len() as u32)
            .nest(NFTA_BITWISE_MASK, &data(mask))
            .nest(NFTA_BITWISE_XOR, &data(&vec![0; mask.len()]));
        self.push("bitwise", &bitwise);
    }

    /// Compares the first register.
    fn compare(&mut self, op: i32, value: &[u8]) {
        let compare = Attributes::new()
            .u32(NFTA_CMP_SREG, register(FIRST))
            .u32(NFTA_CMP_OP, op as u32)
            .nest(NFTA_CMP_DATA, &data(value));
        self.push("cmp", &compare);
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        let mut verdict = Attributes::new().u32(NFTA_VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            verdict = verdict.text(NFTA_VERDICT_CHAIN, chain);
        }
        let data = Attributes::new().nest(NFTA_DATA_VERDICT, &verdict);
        let immediate = Attributes::new()
            .u32(NFTA_IMMEDIATE_DREG, libc::NFT_REG_VERDICT as u32)
            .nest(NFTA_IMMEDIATE_DATA, &data);
        self.push("immediate", &immediate);
    }
}

/// `struct nft_data` with a value.
pub fn data(value: &[u8]) -> Attributes {
    Attributes::new().bytes(NFTA_DATA_VALUE, value)
}

/// Where an address of so many bytes is in the header of its packet.
fn address_offset(side: Side, length: u32) -> u32 {
    let source = if length == 4 { 12 } else { 8 };
    match side {
        Side::Source => source,
        Side::Destination => source + length,
    }
}

/// A name as the kernel compares it, padded with zeros; longer ones are cut.
pub fn interface_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    let length = name.len().min(padded.len() - 1);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

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

    fn same(wanted: &[Attributes], found: &[u8]) -> bool {
        matches(wanted, found, true)
    }

    /// The names of the expressions, as `nft --debug=netlink` prints them.
    fn names(program: &[Attributes]) -> Vec<&str> {
        let name = |it| transport::text(find(it, NFTA_EXPR_NAME)?);
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
    fn what_the_kernel_adds_or_does_not_flag_makes_no_difference() {
        let wanted = Attributes::new().nest(2, &Attributes::new().u32(1, 5));
        let inner = Attributes::new().u32(1, 5).u32(7, 0);
        let found = Attributes::new().u32(1, 0).bytes(2, inner.as_bytes());
        assert!(covers(wanted.as_bytes(), found.as_bytes()));
        let other = Attributes::new().nest(2, &Attributes::new().u32(1, 6));
        assert!(!covers(wanted.as_bytes(), other.as_bytes()));
        assert!(!covers(wanted.as_bytes(), &[]));
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
