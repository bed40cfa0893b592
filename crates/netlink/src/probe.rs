//! Probes a segment for an address before it is used.
//!
//! IPv4 addresses are probed with ARP (RFC 5227), IPv6 addresses with neighbour solicitations
//! (RFC 4862, section 5.4), both from the unspecified address, so that no neighbour table changes.
//! The RFCs allow up to seven seconds, for slow hosts and for switches whose port has just come up.
//! The link of a pod's parent has been up for long, and a host that has the address answers within
//! milliseconds. So there are three probes, 200 ms apart, and 200 ms to wait after the last.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use netns::NetNs;
use nix::errno::Errno;
use transport::wait_readable;

use crate::{Link, Mac, Netlink, packet::PacketSocket};

/// How many probes are sent for an address (`PROBE_NUM` of RFC 5227).
const PROBES: u32 = 3;
/// Between two probes, and after the last (`PROBE_MIN` there is a second).
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a link may take to get its carrier after it was set up.
const CARRIER: Duration = Duration::from_secs(1);

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// ff02::1, the destination of answers to the unspecified address (RFC 4861, 7.2.4).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Another host has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address that was probed.
    pub address: IpAddr,
    /// The hardware address of the host that has it, or probes for it at the same time.
    pub mac: Mac,
}

impl fmt::Display for Conflict {
    /// `10.1.2.3 is used by 02:00:00:00:00:01`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is used by {}", self.address, self.mac)
    }
}

/// Probes the segment of the interface `name` in `netns` for hosts that have, or are about to take,
/// one of `addresses`. Sets the interface up. Without a conflict it takes 0.6 s for any number
/// of addresses.
///
/// # Errors
/// When the interface has no hardware address or no carrier, so that no host could answer; when the
/// kernel refuses a packet socket.
pub fn find_conflict(
    netns: &NetNs,
    name: &str,
    addresses: &[IpAddr],
) -> anyhow::Result<Option<Conflict>> {
    netns.enter(|| {
        let link = ready_link(name)?;
        let Some(mac) = link.mac else {
            bail!("link {name} has no hardware address to probe from");
        };
        Prober::open(&link, mac, addresses)?.run()
    })?
}

/// The interface, up and with a carrier. Its operational state is determined a little later, so it
/// is not used.
fn ready_link(name: &str) -> anyhow::Result<Link> {
    let netlink = Netlink::open()?;
    netlink.set_up(netlink.get_link(name)?.index)?;
    let until = Instant::now() + CARRIER;
    loop {
        match netlink.find_parent(name)? {
            Some(ready) if ready.carrier => return Ok(ready.link),
            _ if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            _ => bail!("link {name} has no carrier: its addresses cannot be probed"),
        }
    }
}

struct Prober<'a> {
    mac: Mac,
    addresses: &'a [IpAddr],
    arp: PacketSocket,
    ndp: PacketSocket,
}

impl<'a> Prober<'a> {
    fn open(link: &Link, mac: Mac, addresses: &'a [IpAddr]) -> anyhow::Result<Self> {
        let arp = PacketSocket::open(link, ETHERTYPE_ARP)?;
        let ndp = PacketSocket::open(link, ETHERTYPE_IPV6)?;
        // The kernel joins these groups only for addresses that it has.
        ndp.join(group_mac(ALL_NODES))?;
        for address in addresses {
            if let IpAddr::V6(address) = address {
                ndp.join(group_mac(solicited_node(*address)))?;
            }
        }
        Ok(Self {
            mac,
            addresses,
            arp,
            ndp,
        })
    }

    fn run(&self) -> anyhow::Result<Option<Conflict>> {
        for _ in 0..PROBES {
            self.send().context("probe for address conflicts")?;
            if let Some(conflict) = self.listen(Instant::now() + INTERVAL)? {
                return Ok(Some(conflict));
            }
        }
        Ok(None)
    }

    fn send(&self) -> anyhow::Result<()> {
        for address in self.addresses {
            match address {
                IpAddr::V4(address) => self.arp.send(&arp_probe(self.mac, *address))?,
                IpAddr::V6(address) => self.ndp.send(&solicitation(self.mac, *address))?,
            }
        }
        Ok(())
    }

    fn listen(&self, until: Instant) -> anyhow::Result<Option<Conflict>> {
        loop {
            match wait_readable([self.arp.as_fd(), self.ndp.as_fd()], until) {
                Err(Errno::ETIMEDOUT) => return Ok(None),
                waited => waited.context("wait for answers to address probes")?,
            };
            if let Some(conflict) = self.received()? {
                return Ok(Some(conflict));
            }
            // A busy segment must not extend the wait.
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    fn received(&self) -> anyhow::Result<Option<Conflict>> {
        match self.received_on(&self.arp, arp_claim)? {
            None => self.received_on(&self.ndp, ndp_claim),
            conflict => Ok(conflict),
        }
    }

    /// Reads a limited number of frames, so that a busy segment cannot occupy it.
    fn received_on(
        &self,
        socket: &PacketSocket,
        parse: fn(&[u8]) -> Option<Claim>,
    ) -> anyhow::Result<Option<Conflict>> {
        // Longer frames are cut: only their beginning is read.
        let mut buffer = [0; 128];
        for _ in 0..256 {
            let Some(frame) = socket.receive(&mut buffer)? else {
                break;
            };
            if let Some(conflict) = parse(frame).and_then(|claim| self.conflict(claim)) {
                return Ok(Some(conflict));
            }
        }
        Ok(None)
    }

    /// A switch that sends frames back (VEPA) returns our own probes, which are no conflict.
    fn conflict(&self, claim: Claim) -> Option<Conflict> {
        let ours = self.addresses.contains(&claim.address) && claim.mac != self.mac;
        ours.then_some(Conflict {
            address: claim.address,
            mac: claim.mac,
        })
    }
}

/// The content of a frame whose sender has an address, or probes for it.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    address: IpAddr,
    mac: Mac,
}

/// ARP for Ethernet and IPv4 (RFC 826), up to its operation.
const ARP_HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// An ARP request for `address` from 0.0.0.0.
fn arp_probe(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend(ARP_HEADER);
    frame.extend(1_u16.to_be_bytes());
    frame.extend(mac.0);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn arp_claim(frame: &[u8]) -> Option<Claim> {
    let arp = frame.get(14..42)?;
    if arp[..6] != ARP_HEADER {
        return None;
    }
    let mac = Mac::from_slice(&arp[8..14])?;
    let ip = |at: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = arp.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    let (sender, target) = (ip(14)?, ip(24)?);
    // A request from the unspecified address is a probe like ours (RFC 5227, 2.1.1).
    let claimed = if sender.is_unspecified() {
        target
    } else {
        sender
    };
    Some(Claim {
        address: claimed.into(),
        mac,
    })
}

/// A neighbour solicitation for `address` from `::`, and so without options.
fn solicitation(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let group = solicited_node(address);
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    let sum = checksum(Ipv6Addr::UNSPECIFIED, group, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet(group_mac(group), mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, 255]);
    frame.extend(Ipv6Addr::UNSPECIFIED.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

fn ndp_claim(frame: &[u8]) -> Option<Claim> {
    let mac = Mac::from_slice(frame.get(6..12)?)?;
    let (header, message) = (frame.get(14..54)?, frame.get(54..78)?);
    // A packet with hop limit 255 has crossed no router (RFC 4861, 7.1).
    if header[6] != ICMPV6 || header[7] != 255 {
        return None;
    }
    let is_probe = message[0] == SOLICITATION && header[8..24] == [0; 16];
    let claims = message[0] == ADVERTISEMENT || is_probe;
    let target: [u8; 16] = message[8..24].try_into().ok()?;
    claims.then_some(Claim {
        address: IpAddr::V6(target.into()),
        mac,
    })
}

fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(80);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// ff02::1:ffXX:XXXX, with the last three octets of the address (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = address.to_bits() & 0xff_ffff;
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// 33:33 and the last four octets of the group (RFC 2464, section 7).
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// The Internet checksum with the pseudo-header of IPv6 (RFC 8200, 8.1).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = message.len() as u32 + u32::from(ICMPV6);
    for word in [&from.octets(), &to.octets(), message]
        .into_iter()
        .flat_map(|part: &[u8]| part.chunks(2))
    {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn claim(address: &str) -> Option<Claim> {
        Some(Claim {
            address: address.parse().unwrap(),
            mac: THEIRS,
        })
    }

    /// An ARP frame of THEIRS.
    fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = arp_probe(THEIRS, target.into());
        frame[21] = operation;
        frame[28..32].copy_from_slice(&sender);
        frame
    }

    #[test]
    fn an_arp_probe_has_no_sender_address() {
        let frame = arp_probe(OURS, [10, 1, 2, 3].into());
        assert_eq!(frame.len(), 42);
        assert_eq!(
            frame[..14],
            *b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\x06"
        );
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[38..], [10, 1, 2, 3]);
    }

    #[test]
    fn the_sender_of_arp_claims_its_own_address() {
        let (ours, other) = ([10, 1, 2, 3], [10, 1, 2, 9]);
        assert_eq!(arp_claim(&arp(2, ours, other)), claim("10.1.2.3"));
        assert_eq!(arp_claim(&arp(1, ours, other)), claim("10.1.2.3"));
        // A neighbour that resolves the address does not have it.
        assert_eq!(arp_claim(&arp(1, other, ours)), claim("10.1.2.9"));
        // Another host probes as well.
        assert_eq!(arp_claim(&arp(1, [0; 4], ours)), claim("10.1.2.3"));
    }

    #[test]
    fn a_solicitation_is_as_the_kernel_sends_it() {
        // Written by hand from RFC 4861, section 4.3; the black-box tests ask tcpdump.
        let frame = solicitation(OURS, "fd00::2".parse().unwrap());
        let mut expected = vec![0x33, 0x33, 0xff, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        expected.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
        expected.extend([0; 16]);
        expected.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2]);
        expected.extend([135, 0]);
        assert_eq!(frame[..56], expected);
        assert_eq!(frame.len(), 78);
        // With the right checksum, the sum over everything is zero.
        let group = solicited_node("fd00::2".parse().unwrap());
        assert_eq!(checksum(Ipv6Addr::UNSPECIFIED, group, &frame[54..]), 0);
    }

    #[test]
    fn advertisements_and_probes_claim_an_address() {
        let mut frame = solicitation(THEIRS, "fd00::2".parse().unwrap());
        assert_eq!(ndp_claim(&frame), claim("fd00::2"));
        frame[22 + 15] = 7;
        assert_eq!(ndp_claim(&frame), None, "a neighbour resolves the address");
        frame[54] = ADVERTISEMENT;
        assert_eq!(ndp_claim(&frame), claim("fd00::2"));
        frame[21] = 64;
        assert_eq!(ndp_claim(&frame), None, "it has crossed a router");
    }

    #[test]
    fn short_and_foreign_frames_claim_nothing() {
        for length in 0..42 {
            let frame = arp(2, [10, 1, 2, 3], [10, 1, 2, 9]);
            assert_eq!(arp_claim(&frame[..length]), None);
        }
        for length in 0..78 {
            let frame = solicitation(THEIRS, "fd00::2".parse().unwrap());
            assert_eq!(ndp_claim(&frame[..length]), None);
        }
        let mut token_ring = arp(2, [10, 1, 2, 3], [10, 1, 2, 9]);
        token_ring[15] = 6;
        assert_eq!(arp_claim(&token_ring), None);
    }
}
