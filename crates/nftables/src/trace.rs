//! Follows one packet through all rules of nf_tables, including those of iptables' nft variant: the
//! kernel reports each rule that applies to the packet (`nft monitor trace`).
//!
//! A rule in a table of our own, which comes before all others, selects the packet. The table belongs
//! to the socket: the kernel deletes it when the socket is closed, also when the process is killed.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use transport::{Error, Netfilter, Protocol as _, find, find_in, text};

use crate::expression::{Side, Statement};
use crate::nfta::*;
use crate::socket::is_absent;
use crate::{Chain, Family, Point, Protocol, Rule, Socket, Table, Transaction};

/// Before connections are looked up (-400), so before everything else.
const FIRST_OF_ALL: i32 = -450;
const CHAIN: &str = "trace";
const NAME: &str = "podwire_trace";

/// Which packets to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Packets from this address.
    pub source: IpAddr,
    /// Packets to this address.
    pub destination: IpAddr,
    /// Packets to this port.
    pub port: Option<(Protocol, u16)>,
    /// The port of a bridge on which the packets arrive. The sender's questions for neighbours (ARP,
    /// neighbour solicitations) are followed there, too: without an answer, no packet follows.
    pub bridge_port: Option<String>,
}

impl Wanted {
    /// In a table of bridges: the questions for neighbours.
    fn questions(&self) -> Option<Rule> {
        let port = self.bridge_port.clone()?;
        let question = match self.source {
            IpAddr::V4(_) => Statement::Arp,
            IpAddr::V6(_) => Statement::NeighbourSolicitation,
        };
        let statements = [Statement::Interface(port), question, Statement::Trace];
        Some(Rule::new(statements))
    }

    fn rule(&self) -> Rule {
        let mut statements = vec![
            Statement::Address(Side::Source, self.source.into()),
            Statement::Address(Side::Destination, self.destination.into()),
        ];
        let port = self
            .port
            .map(|(protocol, port)| Statement::Port(protocol, port));
        statements.extend(port);
        statements.push(Statement::Trace);
        Rule::new(statements)
    }
}

/// What the rules did with a packet at one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's number for the packet: the same at all steps.
    pub packet: u32,
    /// The family of the table.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule, by its handle; `None` where the chain ends.
    pub rule: Option<u64>,
    /// What happened.
    pub verdict: Verdict,
    /// The source and destination of the packet at this moment; only with the first step of each
    /// chain that packets enter.
    pub addresses: Option<[IpAddr; 2]>,
    /// Source and destination port, also of the first step only.
    pub ports: Option<[u16; 2]>,
    /// Whether the packet is a question for a neighbour, also of the first step only.
    pub is_question: bool,
    /// The index of the interface on which the packet arrived.
    pub input: Option<u32>,
    /// The index of the interface through which it leaves.
    pub output: Option<u32>,
}

/// What happens to a packet after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel goes on with the next rule.
    Continue,
    /// This table accepts it.
    Accept,
    /// It is dropped.
    Drop,
    /// It is passed to a program.
    Queue,
    /// It goes back to the chain that led here.
    Return,
    /// It enters this chain.
    Enter(String),
    /// A verdict that this crate does not know.
    Other(u32),
}

/// A trace that is running.
#[derive(Debug)]
pub struct Trace {
    socket: Socket,
}

impl Trace {
    /// Begins to follow the packets that are `wanted` at `point`, in the namespace of `socket`: IP
    /// packets, and in `prerouting` also frames in bridges.
    ///
    /// # Errors
    /// `EPERM` or `EBUSY` when another trace is running, `EOPNOTSUPP` before Linux 5.12; other errors
    /// of the kernel.
    pub fn start(socket: Socket, point: Point, wanted: &Wanted) -> Result<Self, Error> {
        socket
            .join(NFNLGRP_NFTRACE)
            .map_err(|errno| Error::new("receive what rules do with packets", errno))?;
        socket.make_room();
        let begin = |family| {
            let table = Table::commented(family, NAME, "podwire trace: until it ends").owned();
            let mut changes = Transaction::new();
            changes.add_table(table);
            let chain = Chain::hooked(CHAIN, "filter", point, FIRST_OF_ALL);
            changes.add_chain(table, chain);
            changes.add_rule(table, CHAIN, wanted.rule());
            if let Some(questions) = wanted.questions().filter(|_| family == Family::Bridge) {
                changes.add_rule(table, CHAIN, questions);
            }
            changes.commit(&socket, None)
        };
        begin(Family::Inet)?;
        if point == Point::Prerouting {
            match begin(Family::Bridge) {
                // The kernel has no rules for bridges.
                Err(error) if is_absent(&error) => {}
                begun => begun?,
            }
        }
        Ok(Self { socket })
    }

    /// The steps since the last call. Does not wait.
    ///
    /// # Errors
    /// The kernel has dropped some (`ENOBUFS`); the socket fails.
    pub fn steps(&self) -> Result<Vec<Step>, Errno> {
        let mut steps = Vec::new();
        self.socket
            .heard(libc::NFT_MSG_TRACE, |family, attributes| {
                steps.extend(Step::read(family, attributes));
            })?;
        steps.retain(|it: &Step| it.table != NAME);
        Ok(steps)
    }
}

impl AsFd for Trace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Step {
    fn read(family: u8, bytes: &[u8]) -> Option<Self> {
        let number = |kind| find(bytes, kind).and_then(Netfilter::u32);
        let word = |kind| find(bytes, kind).and_then(text).map(str::to_owned);
        // NFT_TRACETYPE_POLICY, _RETURN, _RULE.
        let rule = find(bytes, NFTA_TRACE_RULE_HANDLE).and_then(Netfilter::u64);
        let verdict = match number(NFTA_TRACE_TYPE)? {
            1 => Verdict::of(number(NFTA_TRACE_POLICY)?, None),
            _ => {
                let path = [NFTA_TRACE_VERDICT, NFTA_VERDICT_CODE];
                let code = find_in(bytes, &path).and_then(Netfilter::u32)?;
                let chain = find_in(bytes, &[NFTA_TRACE_VERDICT, NFTA_VERDICT_CHAIN]);
                Verdict::of(code, chain.and_then(text))
            }
        };
        let header = find(bytes, NFTA_TRACE_NETWORK_HEADER);
        let transport = find(bytes, NFTA_TRACE_TRANSPORT_HEADER);
        Some(Self {
            packet: number(NFTA_TRACE_ID)?,
            family: family_name(family),
            table: word(NFTA_TRACE_TABLE)?,
            chain: word(NFTA_TRACE_CHAIN)?,
            rule,
            verdict,
            addresses: header.and_then(addresses),
            ports: transport.and_then(ports),
            is_question: header.is_some_and(|it| is_question(it, transport)),
            input: number(NFTA_TRACE_IIF),
            output: number(NFTA_TRACE_OIF),
        })
    }
}

impl Verdict {
    /// The codes that lead to a chain are negative numbers.
    fn of(code: u32, chain: Option<&str>) -> Self {
        match code as i32 {
            libc::NF_DROP => Self::Drop,
            libc::NF_ACCEPT => Self::Accept,
            libc::NF_QUEUE => Self::Queue,
            libc::NFT_CONTINUE => Self::Continue,
            libc::NFT_RETURN => Self::Return,
            libc::NFT_JUMP | libc::NFT_GOTO => Self::Enter(chain.unwrap_or_default().to_owned()),
            // NF_DROP_REASON and NF_QUEUE_NR use the upper half for a further number.
            code if code > 0 && code & 0xff == libc::NF_QUEUE => Self::Queue,
            code => Self::Other(code as u32),
        }
    }
}

/// nft's word for a family.
fn family_name(number: u8) -> String {
    match i32::from(number) {
        libc::NFPROTO_INET => "inet".into(),
        libc::NFPROTO_IPV4 => "ip".into(),
        libc::NFPROTO_IPV6 => "ip6".into(),
        libc::NFPROTO_BRIDGE => "bridge".into(),
        libc::NFPROTO_ARP => "arp".into(),
        libc::NFPROTO_NETDEV => "netdev".into(),
        _ => number.to_string(),
    }
}

/// Whether this is ARP (RFC 826: hardware and protocol) or a neighbour solicitation (RFC 4861).
fn is_question(header: &[u8], transport: Option<&[u8]>) -> bool {
    const ARP: [u8; 4] = [0, 1, 8, 0];
    let is_icmpv6 = header.first().is_some_and(|it| it >> 4 == 6)
        && header.get(6) == Some(&(libc::IPPROTO_ICMPV6 as u8));
    let kind = transport.and_then(<[u8]>::first);
    header.starts_with(&ARP) || (is_icmpv6 && kind == Some(&ICMPV6_NEIGHBOUR_SOLICITATION))
}

pub(crate) fn addresses(header: &[u8]) -> Option<[IpAddr; 2]> {
    let v4 = |at: usize| {
        Some(IpAddr::from(
            <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?,
        ))
    };
    let v6 = |at: usize| {
        Some(IpAddr::from(
            <[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?,
        ))
    };
    match header.first()? >> 4 {
        4 => Some([v4(12)?, v4(16)?]),
        6 => Some([v6(8)?, v6(24)?]),
        _ => None,
    }
}

pub(crate) fn ports(header: &[u8]) -> Option<[u16; 2]> {
    let port = |at: usize| Some(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?));
    Some([port(0)?, port(2)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attributes;

    #[test]
    fn a_step_is_read_as_the_kernel_reports_it() {
        let verdict = Attributes::new().u32(NFTA_VERDICT_CODE, libc::NF_DROP as u32);
        let mut header = [0; 20];
        header[0] = 0x45;
        header[12..].copy_from_slice(&[10, 1, 0, 2, 10, 1, 0, 3]);
        let it = Attributes::new()
            .text(NFTA_TRACE_TABLE, "filter")
            .text(NFTA_TRACE_CHAIN, "forward")
            .u64(NFTA_TRACE_RULE_HANDLE, 7)
            .u32(NFTA_TRACE_TYPE, 3)
            .nest(NFTA_TRACE_VERDICT, &verdict)
            .u32(NFTA_TRACE_ID, 9)
            .bytes(NFTA_TRACE_NETWORK_HEADER, &header)
            .bytes(NFTA_TRACE_TRANSPORT_HEADER, &[0x9c, 0x40, 0, 80]);
        let step = Step::read(libc::NFPROTO_INET as u8, it.as_bytes()).unwrap();
        assert_eq!(
            (step.family.as_str(), step.rule, step.packet),
            ("inet", Some(7), 9)
        );
        assert_eq!(step.verdict, Verdict::Drop);
        assert_eq!(
            step.addresses.unwrap().map(|it| it.to_string()),
            ["10.1.0.2", "10.1.0.3"]
        );
        assert_eq!(step.ports, Some([40000, 80]));
        assert_eq!(Step::read(2, &it.as_bytes()[..20]), None);
    }

    #[test]
    fn the_rule_chooses_by_addresses_and_port() {
        let wanted = Wanted {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.1.0.3".parse().unwrap(),
            port: Some((Protocol::Tcp, 80)),
            bridge_port: Some("veth1".into()),
        };
        let text = "ip saddr 10.1.0.2 ip daddr 10.1.0.3 tcp dport 80 meta nftrace set 1";
        assert_eq!(wanted.rule().text(Family::Inet), text);
        let questions = wanted.questions().unwrap().text(Family::Bridge);
        let text = "iifname \"veth1\" ether type arp meta nftrace set 1";
        assert_eq!(questions, text);
    }

    #[test]
    fn questions_for_neighbours_are_known_by_their_headers() {
        let (mut ip, arp) = ([0; 40], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert!(is_question(&arp, None) && !is_question(&ip, None));
        ip[..7].copy_from_slice(&[0x60, 0, 0, 0, 0, 24, 58]);
        assert!(is_question(&ip, Some(&[135, 0])) && !is_question(&ip, Some(&[128, 0])));
        assert!(!is_question(&ip, Some(&[])));
    }
}
