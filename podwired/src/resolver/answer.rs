//! The answer to one message: decided from the index alone, without a socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use names::StaticData;

use super::index::{Client, Hit, Index, NetId};

/// The length of the header (RFC 1035, section 4.1.1).
pub const HEADER: usize = 12;
/// The longest answer over UDP to a client without EDNS (RFC 1035, section 4.2.1).
const SHORTEST_LIMIT: u16 = 512;
/// The longest that we send over UDP, and what we tell clients to send: no fragments.
const UDP_LIMIT: u16 = 1232;
/// The length of an OPT record without options.
const OPT: u16 = 11;
/// How many aliases of aliases are followed.
const ALIASES: usize = 8;

/// How the message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// An answer that is too long is truncated.
    Udp,
    /// No limit but the format's.
    Tcp,
}

/// What the resolver does with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is in the buffer.
    Reply(Kind),
    /// Others know.
    Forward(Forward),
    /// No answer: it was no question.
    Silence,
}

/// What an answer is, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name that is known.
    Known,
    /// A name that does not exist.
    Unknown,
    /// The client may not ask for it.
    Refused,
    /// It cannot be understood.
    Malformed,
}

/// A question for other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Those to ask, in order; none: those of the node.
    pub servers: Vec<SocketAddr>,
    /// The longest answer that the client takes.
    pub limit: u16,
}

/// Answers; keeps what one answer needs and the next one can use again.
#[derive(Debug, Default)]
pub struct Answerer {
    nets: Vec<NetId>,
    name: String,
    turn: usize,
}

struct Question<'a> {
    message: &'a Message,
    name: &'a Name,
    kind: RecordType,
    limit: u16,
}

impl Answerer {
    /// Answers `packet`, which came from `source` to the address `local`, into `out`.
    pub fn answer(
        &mut self,
        index: &Index,
        (local, source): (IpAddr, IpAddr),
        packet: &[u8],
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Verdict {
        out.clear();
        // A response gets no answer: two servers would talk without end.
        if packet.len() < HEADER || packet.get(2).is_none_or(|it| it & 0x80 != 0) {
            return Verdict::Silence;
        }
        let Ok(message) = Message::from_vec(packet) else {
            // Without its question, which cannot be read.
            let (id, flags) = ([packet[0], packet[1]], packet[2] & 0x79);
            out.extend([id[0], id[1], flags | 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
            return Verdict::Reply(Kind::Malformed);
        };
        let query = message.queries.first();
        let (Some(query), 1) = (query, message.queries.len()) else {
            let code = match message.metadata.op_code {
                OpCode::Query => ResponseCode::FormErr,
                _ => ResponseCode::NotImp,
            };
            return refuse(&message, code, Kind::Malformed, out);
        };
        let question = Question {
            message: &message,
            name: query.name(),
            kind: query.query_type(),
            limit: limit(&message, transport),
        };
        let fault = match () {
            () if message.metadata.op_code != OpCode::Query => Some(ResponseCode::NotImp),
            () if message.edns.as_ref().is_some_and(|it| it.version() > 0) => {
                Some(ResponseCode::BADVERS)
            }
            () => None,
        };
        if let Some(code) = fault {
            return refuse(&message, code, Kind::Malformed, out);
        }
        let client = index.client(local, source, &mut self.nets);
        let is_transfer = matches!(question.kind, RecordType::AXFR | RecordType::IXFR);
        if client == Client::Stranger || query.query_class() != DNSClass::IN || is_transfer {
            return refuse(&message, ResponseCode::Refused, Kind::Refused, out);
        }
        self.decide(index, client, source, &question, out)
    }

    fn decide(
        &mut self,
        index: &Index,
        client: Client,
        source: IpAddr,
        question: &Question<'_>,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let is_text = write_name(question.name, &mut self.name);
        let labels = question.name.iter().count();
        let found = is_text
            .then(|| index.find(&self.nets, &self.name))
            .flatten();
        if let Some(hit) = found {
            self.turn = self.turn.wrapping_add(1);
            let records = self.records(index, &hit, question);
            return reply(
                question,
                ResponseCode::NoError,
                records,
                index.zone(&self.name),
                hit.net.about.ttl,
                out,
            );
        }
        let mut is_own = labels == 1;
        if let Some(address) = reversed(&self.name) {
            if let Some((net, name)) = index.name_of(&self.nets, address) {
                let ttl = net.about.ttl;
                let records = pointer(question, &name, ttl);
                return reply(question, ResponseCode::NoError, records, None, ttl, out);
            }
            is_own = index.has_subnet_of(address);
        }
        let zone = index.zone(&self.name).filter(|_| is_text);
        if is_own || zone.is_some() {
            return reply(question, ResponseCode::NXDomain, Vec::new(), zone, 0, out);
        }
        if client == Client::Node {
            // It has servers of its own, which may have sent it here.
            return refuse(question.message, ResponseCode::Refused, Kind::Refused, out);
        }
        let servers = index.servers(source, &self.nets);
        if servers.is_empty() && index.are_internal(&self.nets) {
            return reply(question, ResponseCode::NXDomain, Vec::new(), None, 0, out);
        }
        let limit = question.limit;
        Verdict::Forward(Forward { servers, limit })
    }

    /// The records that answer a question for a name that is known.
    fn records(&self, index: &Index, hit: &Hit<'_>, question: &Question<'_>) -> Vec<Record> {
        let (mut records, ttl) = (Vec::new(), hit.net.about.ttl);
        let mut owner = question.name.clone();
        let (mut hit, mut hops) = (*hit, 0);
        // An alias stands alone, and is followed within the networks.
        while let Some(target) = alias(&hit) {
            let Ok(target_name) = Name::from_ascii(format!("{target}.")) else {
                break;
            };
            let data = RData::CNAME(CNAME(target_name.clone()));
            records.push(Record::from_rdata(owner.clone(), ttl, data));
            let next = index.find(&self.nets, target);
            let (Some(next), true) = (next, hops < ALIASES) else {
                return records;
            };
            if question.kind == RecordType::CNAME {
                return records;
            }
            (hit, hops, owner) = (next, hops + 1, target_name);
        }
        let kind = question.kind;
        let mut add = |data| records.push(Record::from_rdata(owner.clone(), ttl, data));
        if matches!(kind, RecordType::A | RecordType::AAAA | RecordType::ANY) {
            let mut addresses = Vec::with_capacity(4);
            for address in index.addresses(hit) {
                let is_wanted = match address {
                    IpAddr::V4(_) => kind != RecordType::AAAA,
                    IpAddr::V6(_) => kind != RecordType::A,
                };
                if is_wanted && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.len() > 1 {
                let first = self.turn % addresses.len();
                addresses.rotate_left(first);
            }
            for address in addresses {
                add(match address {
                    IpAddr::V4(it) => RData::A(A(it)),
                    IpAddr::V6(it) => RData::AAAA(AAAA(it)),
                });
            }
        }
        let is = |it| kind == it || kind == RecordType::ANY;
        for data in hit.data {
            match data {
                StaticData::Srv(services) if is(RecordType::SRV) => {
                    for it in services {
                        if let Ok(target) = Name::from_ascii(format!("{}.", it.target)) {
                            add(RData::SRV(SRV::new(
                                it.priority,
                                it.weight,
                                it.port,
                                target,
                            )));
                        }
                    }
                }
                StaticData::Txt(texts) if is(RecordType::TXT) => {
                    add(RData::TXT(TXT::new(texts.clone())));
                }
                _ => {}
            }
        }
        records
    }
}

fn alias<'a>(hit: &Hit<'a>) -> Option<&'a str> {
    let mut data = hit.data.iter();
    data.find_map(|it| match it {
        StaticData::Cname(target) => Some(target.as_str()),
        _ => None,
    })
}

fn pointer(question: &Question<'_>, name: &str, ttl: u32) -> Vec<Record> {
    let is_wanted = matches!(question.kind, RecordType::PTR | RecordType::ANY);
    let name = Name::from_ascii(format!("{name}."))
        .ok()
        .filter(|_| is_wanted);
    let record = |it| Record::from_rdata(question.name.clone(), ttl, RData::PTR(PTR(it)));
    name.map(record).into_iter().collect()
}

/// The longest answer that the client takes.
fn limit(message: &Message, transport: Transport) -> u16 {
    match (transport, &message.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (_, None) => SHORTEST_LIMIT,
        (_, Some(edns)) => edns.max_payload().clamp(SHORTEST_LIMIT, UDP_LIMIT),
    }
}

/// Writes a name in lower case, without the dot at its end. Whether it may be one of ours: others have
/// bytes that no name of ours has.
fn write_name(name: &Name, text: &mut String) -> bool {
    text.clear();
    let mut is_text = true;
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            is_text &= byte.is_ascii_graphic() && *byte != b'.';
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    is_text
}

/// The address whose name is asked for (RFC 1035, section 3.5; RFC 3596, section 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = rest.rsplit('.');
        for octet in &mut octets {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts
            .next()
            .is_none()
            .then(|| Ipv4Addr::from(octets).into());
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut digits = 0;
    for part in rest.rsplit('.') {
        let digit = part.chars().next().filter(|_| part.len() == 1)?;
        bits = (bits << 4) | u128::from(digit.to_digit(16)?);
        digits += 1;
    }
    (digits == 32).then(|| Ipv6Addr::from(bits).into())
}

/// An answer without records.
fn refuse(message: &Message, code: ResponseCode, kind: Kind, out: &mut Vec<u8>) -> Verdict {
    let mut response = response_to(message, code);
    response.metadata.recursion_available = false;
    write(&response, SHORTEST_LIMIT, out);
    Verdict::Reply(kind)
}

/// An answer of ours. One without records has the SOA of its zone: how long nothing is known.
fn reply(
    question: &Question<'_>,
    code: ResponseCode,
    answers: Vec<Record>,
    zone: Option<&str>,
    ttl: u32,
    out: &mut Vec<u8>,
) -> Verdict {
    let mut response = response_to(question.message, code);
    response.metadata.authoritative = true;
    if answers.is_empty() {
        let zone = zone.and_then(|it| Name::from_ascii(format!("{it}.")).ok());
        let zone = zone.unwrap_or_else(Name::root);
        let here = Name::from_ascii("podwired.").unwrap_or_else(|_| Name::root());
        let soa = SOA::new(here, zone.clone(), 1, 3600, 600, 86400, ttl);
        response.authorities = vec![Record::from_rdata(zone, ttl, RData::SOA(soa))];
    }
    response.answers = answers;
    write(&response, question.limit, out);
    Verdict::Reply(match code {
        ResponseCode::NoError => Kind::Known,
        _ => Kind::Unknown,
    })
}

fn response_to(message: &Message, code: ResponseCode) -> Message {
    let query = &message.metadata;
    let mut response = Message::new(query.id, MessageType::Response, query.op_code);
    response.metadata.recursion_desired = query.recursion_desired;
    response.metadata.checking_disabled = query.checking_disabled;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries = message.queries.iter().take(1).cloned().collect();
    response.edns = message.edns.as_ref().map(|requested| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LIMIT);
        edns.set_dnssec_ok(requested.flags().dnssec_ok);
        edns
    });
    response
}

/// Encodes a response. What does not fit is left out, and the flag TC tells the client.
fn write(response: &Message, limit: u16, out: &mut Vec<u8>) {
    if encode(response, limit, out) {
        return;
    }
    let mut shorter = response.clone();
    let (answers, edns) = (std::mem::take(&mut shorter.answers), shorter.edns.take());
    shorter.authorities.clear();
    let room = limit.saturating_sub(if edns.is_some() { OPT } else { 0 });
    // As many as fit beside the OPT record.
    shorter.answers = answers;
    while !encode(&shorter, room, out) && !shorter.answers.is_empty() {
        let length = shorter.answers.len();
        shorter.answers.truncate(length - length.div_ceil(8));
    }
    shorter.edns = edns;
    shorter.metadata.truncation = true;
    encode(&shorter, limit, out);
}

/// Whether everything fits.
fn encode(response: &Message, limit: u16, out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut encoder = BinEncoder::new(out);
    encoder.set_max_size(limit);
    let encoded = response.emit(&mut encoder).is_ok();
    // The bit TC, which the encoder sets where it left something out.
    encoded && (response.metadata.truncation || out.get(2).is_some_and(|it| it & 2 == 0))
}
