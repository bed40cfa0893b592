//! A DHCP message in a UDP datagram in an IPv4 packet, which a client without an
//! address has to read and write itself. Source: RFC 791, RFC 768; the formats are
//! smoltcp's.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket, UdpRepr};

/// The clients' port (RFC 2131, section 4.1).
const CLIENT_PORT: u16 = 68;
/// The servers' and relays' port.
const SERVER_PORT: u16 = 67;

const IP_HEADER: usize = 20;

/// The message in `packet`, if that is a whole IPv4 packet from the servers' port to the
/// clients'.
///
/// The UDP checksum is not verified. On veth pairs and bridges the kernel leaves it to
/// hardware that does not exist, so packets of a server on the same machine have none.
pub fn read(packet: &[u8]) -> Option<&[u8]> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    let whole = !ip.more_frags() && ip.frag_offset() == 0;
    let header = usize::from(ip.header_len());
    if ip.version() != 4 || header < IP_HEADER || !whole || ip.next_header() != IpProtocol::Udp {
        return None;
    }
    let datagram = packet.get(header..usize::from(ip.total_len()))?;
    let udp = UdpPacket::new_checked(datagram).ok()?;
    if (udp.src_port(), udp.dst_port()) != (SERVER_PORT, CLIENT_PORT) {
        return None;
    }
    datagram.get(UDP_HEADER_LEN..usize::from(udp.len()))
}

/// A packet with `message` from the clients' port of `from` to the servers' port of `to`.
pub fn write(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let udp = UdpRepr {
        src_port: CLIENT_PORT,
        dst_port: SERVER_PORT,
    };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: UDP_HEADER_LEN + message.len(),
        hop_limit: 64,
    };
    let mut packet = vec![0; IP_HEADER + ip.payload_len];
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut packet[IP_HEADER..]),
        &from.into(),
        &to.into(),
        message.len(),
        |payload| payload.copy_from_slice(message),
        &checksums,
    );
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::BROADCAST);
        let mut packet = write(from, to, b"message");
        // The ports as in a server's packet.
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet
    }

    #[test]
    fn a_message_is_read_as_written_and_without_padding() {
        let mut packet = packet();
        assert_eq!(read(&packet), Some(&b"message"[..]));
        packet.extend([0; 11]);
        assert_eq!(read(&packet), Some(&b"message"[..]));
    }

    #[test]
    fn written_packets_have_valid_checksums() {
        let (from, to) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let packet = write(from, to, b"message");
        let ip = Ipv4Packet::new_checked(&packet[..]).unwrap();
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&from.into(), &to.into()));
    }

    #[test]
    fn anything_else_is_ignored() {
        for (position, value) in [
            (0, 0x65),  // version 6
            (0, 0x41),  // a header of four bytes
            (0, 0x4f),  // one that is longer than the packet
            (2, 0xff),  // a length beyond the end
            (6, 0x20),  // a fragment
            (7, 0x01),  // a later fragment
            (9, 6),     // TCP
            (21, 68),   // from a client
            (23, 67),   // to a server
            (24, 0xff), // a datagram beyond the end
            (25, 0x07), // one that is shorter than its header
        ] {
            let mut packet = packet();
            packet[position] = value;
            assert_eq!(read(&packet), None, "byte {position} {value:#x}");
        }
        for length in 0..packet().len() {
            assert_eq!(read(&packet()[..length]), None);
        }
    }
}
