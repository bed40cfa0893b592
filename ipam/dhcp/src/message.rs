//! DHCP messages: a client's requests, and a server's replies. Source: RFC 2131 (the
//! fixed part), RFC 2132 (options), RFC 3396 (long options). smoltcp reads and writes the
//! fixed part. It ignores truncated options, so options are read here.

use std::net::Ipv4Addr;

use netlink::Mac;
pub use smoltcp::wire::DhcpMessageType;
use smoltcp::wire::{ArpHardware, DhcpFlags, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress};

/// The numbers of the options that the daemon itself knows (RFC 2132, 3397, 3442).
#[allow(missing_docs)] // the names of the RFCs
pub mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DOMAIN_NAME_SERVER: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const STATIC_ROUTE: u8 = 33;
    pub const NTP_SERVERS: u8 = 42;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_IDENTIFIER: u8 = 54;
    pub const PARAMETER_REQUEST_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAXIMUM_MESSAGE_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_IDENTIFIER: u8 = 61;
    pub const USER_CLASS: u8 = 77;
    pub const DOMAIN_SEARCH: u8 = 119;
    pub const CLASSLESS_STATIC_ROUTE: u8 = 121;
    /// What Windows servers send in its place.
    pub const MICROSOFT_CLASSLESS_STATIC_ROUTE: u8 = 249;
    pub const END: u8 = 255;
}

const MAGIC: u32 = 0x6382_5363;
/// Where the fixed part ends and options begin.
const FIXED: usize = 240;
/// Relays and servers drop messages that are shorter than BOOTP's (RFC 1542, section 2.1).
const MIN_SIZE: usize = 300;

/// A message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The message type.
    pub kind: DhcpMessageType,
    /// The transaction ID.
    pub xid: u32,
    /// How long the client has been trying, in seconds.
    pub seconds: u16,
    /// Its address (`ciaddr`), or 0.0.0.0.
    pub address: Ipv4Addr,
    /// Its hardware address.
    pub mac: Mac,
    /// Whether the server shall broadcast its answer.
    pub broadcast: bool,
    /// Options after the message type, each of at most 255 bytes.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Request {
    /// The message, without UDP and IP.
    pub fn write(&self) -> Vec<u8> {
        let options: usize = self.options.iter().map(|(_, data)| 2 + data.len()).sum();
        let mut buffer = vec![0; (FIXED + 3 + options + 1).max(MIN_SIZE)];
        let mut packet = DhcpPacket::new_unchecked(&mut buffer[..]);
        packet.set_opcode(DhcpOpCode::Request);
        packet.set_hardware_type(ArpHardware::Ethernet);
        packet.set_hardware_len(6);
        packet.set_transaction_id(self.xid);
        packet.set_secs(self.seconds);
        if self.broadcast {
            packet.set_flags(DhcpFlags::BROADCAST);
        }
        packet.set_client_ip(self.address);
        packet.set_client_hardware_address(EthernetAddress(self.mac.0));
        packet.set_magic_number(MAGIC);
        let mut writer = packet.options_mut();
        let kind = [self.kind.into()];
        let all = std::iter::once((option::MESSAGE_TYPE, &kind[..]));
        let own = self.options.iter().map(|(kind, data)| (*kind, &data[..]));
        for (kind, data) in all.chain(own) {
            // The buffer has room for all of them; one that is too long is left out.
            let _ = writer.emit(DhcpOption { kind, data });
        }
        let _ = writer.end();
        buffer
    }
}

/// A message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Offer, Ack or Nak.
    pub kind: DhcpMessageType,
    /// The transaction ID of the request.
    pub xid: u32,
    /// The hardware address of the client.
    pub mac: Mac,
    /// The client's address (`yiaddr`); 0.0.0.0 in a Nak.
    pub address: Ipv4Addr,
    /// Every option once, in the order in which they came.
    options: Vec<(u8, Vec<u8>)>,
}

/// Why a message is invalid.
pub type Malformed = &'static str;
/// The fixed part is truncated, or not that of a DHCP reply over Ethernet.
const HEADER: Malformed = "not a DHCP message of a server";
/// An option is longer than the rest of the message, or the end option is missing.
const TRUNCATED: Malformed = "the options are truncated";
/// The message type is missing, or not a server's.
const TYPE: Malformed = "not a message type of a server";

impl Reply {
    /// Reads the payload of a UDP datagram.
    ///
    /// # Errors
    /// When any part of it is invalid.
    pub fn read(message: &[u8]) -> Result<Self, Malformed> {
        let packet = DhcpPacket::new_checked(message).map_err(|_| HEADER)?;
        let of_server = packet.opcode() == DhcpOpCode::Reply
            && packet.hardware_type() == ArpHardware::Ethernet
            && packet.hardware_len() == 6
            && packet.magic_number() == MAGIC;
        if !of_server {
            return Err(HEADER);
        }
        let options = read_options(message)?;
        let kind = match find(&options, option::MESSAGE_TYPE) {
            Some([kind]) => DhcpMessageType::from(*kind),
            _ => return Err(TYPE),
        };
        if !matches!(
            kind,
            DhcpMessageType::Offer | DhcpMessageType::Ack | DhcpMessageType::Nak
        ) {
            return Err(TYPE);
        }
        Ok(Self {
            kind,
            xid: packet.transaction_id(),
            mac: Mac(packet.client_hardware_address().0),
            address: packet.your_ip(),
            options,
        })
    }

    /// The same message without these options.
    pub fn without(&self, kinds: &[u8]) -> Self {
        let mut reply = self.clone();
        reply.options.retain(|(kind, _)| !kinds.contains(kind));
        reply
    }

    /// The data of an option, if it is there.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        find(&self.options, kind)
    }

    /// The server identifier, if there is one.
    pub fn server(&self) -> Option<Ipv4Addr> {
        let data = self.option(option::SERVER_IDENTIFIER)?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?))
    }

    /// The server's reason for a Nak, without control characters.
    pub fn reason(&self) -> String {
        let text = self.option(option::MESSAGE).unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        text.chars().filter(|c| !c.is_control()).collect()
    }
}

fn find(options: &[(u8, Vec<u8>)], kind: u8) -> Option<&[u8]> {
    let found = options.iter().find(|(other, _)| *other == kind)?;
    Some(&found.1)
}

/// All options: those after the fixed part, then those in the fields `file` and `sname`
/// if option 52 says so (RFC 3396).
fn read_options(message: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, Malformed> {
    const FILE: std::ops::Range<usize> = 108..236;
    const SNAME: std::ops::Range<usize> = 44..108;
    let mut options = Vec::new();
    read_area(&message[FIXED..], &mut options)?;
    let overload = match find(&options, option::OVERLOAD) {
        Some([which]) => *which,
        _ => 0,
    };
    if overload & 1 != 0 {
        read_area(&message[FILE], &mut options)?;
    }
    if overload & 2 != 0 {
        read_area(&message[SNAME], &mut options)?;
    }
    Ok(options)
}

fn read_area(mut area: &[u8], options: &mut Vec<(u8, Vec<u8>)>) -> Result<(), Malformed> {
    loop {
        let (kind, rest) = area.split_first().ok_or(TRUNCATED)?;
        area = rest;
        match *kind {
            option::END => return Ok(()),
            option::PAD => {}
            kind => {
                let (length, rest) = area.split_first().ok_or(TRUNCATED)?;
                let (data, rest) = rest
                    .split_at_checked(usize::from(*length))
                    .ok_or(TRUNCATED)?;
                area = rest;
                // A repeated option continues the first one (RFC 3396).
                match options.iter_mut().find(|(other, _)| *other == kind) {
                    Some((_, start)) => start.extend(data),
                    None => options.push((kind, data.to_vec())),
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    pub const XID: u32 = 0x1234_5678;

    /// The message of a server, with these options.
    pub fn reply(kind: u8, address: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
        let request = Request {
            kind: DhcpMessageType::Discover,
            xid: XID,
            seconds: 0,
            address: Ipv4Addr::UNSPECIFIED,
            mac: MAC,
            broadcast: false,
            options: Vec::new(),
        };
        let mut message = request.write();
        message.truncate(FIXED);
        message[0] = 2;
        message[16..20].copy_from_slice(&address);
        message.extend([option::MESSAGE_TYPE, 1, kind]);
        for (kind, data) in options {
            message.extend([*kind, data.len() as u8]);
            message.extend(*data);
        }
        message.push(option::END);
        message
    }

    #[test]
    fn a_request_is_written() {
        let request = Request {
            kind: DhcpMessageType::Request,
            xid: XID,
            seconds: 7,
            address: Ipv4Addr::new(10, 0, 0, 5),
            mac: MAC,
            broadcast: true,
            options: vec![(option::CLIENT_IDENTIFIER, b"\0abc".to_vec())],
        };
        let message = request.write();
        assert_eq!(message.len(), MIN_SIZE);
        assert_eq!(message[..8], [1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(message[8..16], [0, 7, 0x80, 0, 10, 0, 0, 5]);
        assert_eq!(message[28..34], MAC.0);
        assert_eq!(
            message[236..250],
            [
                0x63, 0x82, 0x53, 0x63, 53, 1, 3, 61, 4, 0, b'a', b'b', b'c', 255
            ]
        );
    }

    #[test]
    fn a_reply_is_read_with_its_options() {
        let message = reply(
            5,
            [10, 0, 0, 5],
            &[(54, &[10, 0, 0, 1]), (0, b""), (3, b"ab"), (3, b"cd")],
        );
        // The length byte of the padding is padding, too.
        let reply = Reply::read(&message).unwrap();
        assert_eq!(reply.kind, DhcpMessageType::Ack);
        assert_eq!((reply.xid, reply.mac), (XID, MAC));
        assert_eq!(reply.address, Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(reply.server(), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(reply.option(3), Some(&b"abcd"[..]), "RFC 3396");
        assert_eq!(reply.option(6), None);
    }

    #[test]
    fn options_continue_in_the_fields_for_names() {
        let mut message = reply(2, [10, 0, 0, 5], &[(52, &[3])]);
        message[108..113].copy_from_slice(&[6, 2, b'a', b'b', 255]);
        message[44..49].copy_from_slice(&[6, 2, b'c', b'd', 255]);
        let reply = Reply::read(&message).unwrap();
        assert_eq!(reply.option(6), Some(&b"abcd"[..]));
        message[44] = 0;
        message[108..236].fill(0);
        assert_eq!(Reply::read(&message), Err(TRUNCATED));
    }

    #[test]
    fn a_truncated_message_is_refused() {
        let message = reply(5, [10, 0, 0, 5], &[(54, &[10, 0, 0, 1]), (1, &[255; 4])]);
        assert!(Reply::read(&message).is_ok());
        for length in 0..message.len() {
            assert!(Reply::read(&message[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_option_longer_than_the_message_is_refused() {
        let mut message = reply(5, [10, 0, 0, 5], &[(1, &[255; 4])]);
        message[FIXED + 4] = 200;
        assert_eq!(Reply::read(&message), Err(TRUNCATED));
    }

    #[test]
    fn a_message_that_is_not_a_servers_is_refused() {
        let good = reply(5, [10, 0, 0, 5], &[]);
        for (position, value, fault) in [
            (0, 1, HEADER),
            (1, 6, HEADER),
            (2, 16, HEADER),
            (236, 0, HEADER),
            (242, 1, TYPE),
            (242, 99, TYPE),
        ] {
            let mut message = good.clone();
            message[position] = value;
            assert_eq!(Reply::read(&message), Err(fault), "byte {position}");
        }
    }

    #[test]
    fn any_byte_can_have_any_value() {
        let good = reply(5, [10, 0, 0, 5], &[(52, &[3]), (121, &[32, 1, 2, 3])]);
        for position in 0..good.len() {
            for value in 0..=255 {
                let mut message = good.clone();
                message[position] = value;
                let _ = Reply::read(&message);
            }
        }
    }
}
