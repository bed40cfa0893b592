//! Telling the neighbours where an address is now.
//!
//! An address that was another pod's a moment ago is still in the neighbour
//! tables of the host and of its siblings, with the other's hardware address;
//! until those entries expire, for about ten seconds, packets are lost. What the
//! kernel sends by itself (arp_notify) leaves before the bridge forwards for the
//! new port, and is lost too. So: send it again when the port is up.

// The address of a packet socket (struct sockaddr_ll) has no safe constructor.
#![allow(unsafe_code)]

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use netns::NetNs;
use nix::{
    libc,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket,
    },
};

use crate::{Error, Mac};

/// `ETH_P_ARP` and `ETH_P_IPV6` (linux/if_ether.h).
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// IPv6 next header: ICMPv6.
const ICMPV6: u8 = 58;
/// All nodes on the link (RFC 4291, section 2.7.1), and their Ethernet address
/// (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Announces addresses on one link. It may be made inside a namespace and used
/// from outside.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
    index: u32,
    mac: Mac,
}

impl Announcer {
    /// Opens a packet socket for the link with `index` and hardware address
    /// `mac`, in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses packet sockets.
    pub fn open(index: u32, mac: Mac) -> Result<Self, Error> {
        // Protocol 0: it receives nothing.
        let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(AddressFamily::Packet, kind, flags, None)
            .map_err(|errno| Error::new("open a packet socket", errno))?;
        Ok(Self { socket, index, mac })
    }

    /// As [`Announcer::open`], inside `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or as [`Announcer::open`].
    pub fn open_in(netns: &NetNs, index: u32, mac: Mac) -> anyhow::Result<Self> {
        Ok(netns.enter(|| Self::open(index, mac))??)
    }

    /// Sends one frame for each of `ips`, to everyone on the link.
    ///
    /// # Errors
    /// When the link is down (`ENETDOWN`) or gone (`ENXIO`).
    pub fn announce(&self, ips: &[IpAddr]) -> Result<(), Error> {
        for ip in ips {
            let frame = match ip {
                IpAddr::V4(v4) => gratuitous_arp(self.mac, *v4),
                IpAddr::V6(v6) => unsolicited_advertisement(self.mac, *v6),
            };
            self.send(&frame)
                .map_err(|errno| Error::new(format!("announce {ip}"), errno))?;
        }
        Ok(())
    }

    fn send(&self, frame: &[u8]) -> nix::Result<usize> {
        let to = link_address(self.index);
        sendto(self.socket.as_raw_fd(), frame, &to, MsgFlags::empty())
    }
}

/// Everything about the destination but the link is in the frame itself.
fn link_address(index: u32) -> LinkAddr {
    let mut address: libc::sockaddr_ll = {
        // SAFETY: all fields are integers, for which zero is a value.
        unsafe { mem::zeroed() }
    };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let pointer = (&raw const address).cast();
    // SAFETY: `pointer` is to a whole sockaddr_ll of family AF_PACKET, which is
    // copied before it goes out of scope.
    let address = unsafe { LinkAddr::from_raw(pointer, None) };
    address.unwrap_or_else(|| unreachable!("the family is AF_PACKET"))
}

/// "Who has `ip`? Tell `ip`", to everyone (RFC 5227, section 2.3).
///
/// A request rather than a reply, as the kernel's own announcements are. Those
/// who have an entry for `ip` update it at once: for an announcement the kernel
/// skips the second during which it otherwise ignores contradictions. Nobody
/// makes a new entry (arp_accept is off), so it costs bystanders nothing.
fn gratuitous_arp(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet (1) for IPv4, lengths 6 and 4, request (1).
    frame.extend([0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    frame
}

/// "`ip` is at `mac`, forget what you knew", to all nodes (RFC 4861, section 7.2.6).
fn unsolicited_advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    // Neighbour advertisement (136), its checksum to be filled in.
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(ip.octets());
    // Option 2, one unit of eight bytes: target link-layer address.
    message.extend([2, 1]);
    message.extend(mac.0);
    let checksum = icmpv6_checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // Hop limit 255 proves that it was not forwarded; receivers insist on it.
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// The Internet checksum over the pseudo-header and `message` (RFC 4443, section 2.3).
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(40 + message.len());
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, ICMPV6]);
    bytes.extend(message);
    let sum = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x2a]);

    #[test]
    fn an_arp_announcement_asks_for_its_own_sender() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(frame.len(), 14 + 28);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[28..32], [10, 1, 2, 3]);
        assert_eq!(frame[38..42], [10, 1, 2, 3]);
    }

    #[test]
    fn an_advertisement_has_a_checksum_that_adds_up() {
        let ip: Ipv6Addr = "fd00::2a".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, ip);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // Summed with the checksum in place, the result is zero.
        assert_eq!(icmpv6_checksum(ip, ALL_NODES, &frame[54..]), 0);
    }
}
