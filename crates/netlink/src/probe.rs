//! Asking a segment whether anybody has an address, before it is used.
//!
//! IPv4 is asked for by the ARP probes of RFC 5227, IPv6 by the neighbour
//! solicitations of RFC 4862 (section 5.4), both from no address at all, so that
//! nobody's neighbour table changes. The RFCs give hosts of 2008 and switches that
//! have just seen a cable up to seven seconds; a pod's wire has been up for long,
//! and whoever has the address answers within milliseconds. So: three probes,
//! 200 ms apart, and an answer is waited for 200 ms after the last.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use netns::NetNs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Link, Mac, Netlink, packet::PacketSocket};

/// How often an address is asked for (`PROBE_NUM` of RFC 5227).
const PROBES: u32 = 3;
/// Between two probes, and after the last (`PROBE_MIN` there is a second).
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a link that was just set up may take to get its carrier.
const CARRIER: Duration = Duration::from_secs(1);

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// ff02::1, to which an answer to somebody without an address goes (RFC 4861, 7.2.4).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Somebody has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address that was asked for.
    pub address: IpAddr,
    /// The hardware address of who has it, or wants it at the same time.
    pub mac: Mac,
}

impl fmt::Display for Conflict {
    /// `10.1.2.3 is used by 02:00:00:00:00:01`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is used by {}", self.address, self.mac)
    }
}

/// Asks the segment of the interface `name` in `netns` whether anybody has, or is
/// about to take, one of `addresses`. Sets the interface up. Without a conflict it
/// takes 0.6 s, however many addresses there are.
///
/// # Errors
/// When the interface has no hardware address or no carrier: nobody could
/// answer; when the kernel refuses a packet socket.
pub fn find_conflict(
    netns: &NetNs,
    name: &str,
    addresses: &[IpAddr],
) -> anyhow::Result<Option<Conflict>> {
    netns.enter(|| {
        let link = ready_link(name)?;
        let Some(mac) = link.mac else {
            bail!("link {name} has no hardware address to ask from");
        };
        Prober::open(&link, mac, addresses)?.run()
    })?
}

/// The interface, up and with a carrier. Its operational state is worked out a
/// little later, and would not tell.
fn ready_link(name: &str) -> anyhow::Result<Link> {
    let netlink = Netlink::open()?;
    netlink.set_up(netlink.get_link(name)?.index)?;
    let until = Instant::now() + CARRIER;
    loop {
        match netlink.find_parent(name)? {
            Some(ready) if ready.carrier => return Ok(ready.link),
            _ if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            _ => bail!("link {name} has no carrier: nobody can be asked for an address"),
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
        // The kernel joins neither group for an address that it does not have yet.
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
            self.ask().context("probe for address conflicts")?;
            if let Some(conflict) = self.listen(Instant::now() + INTERVAL)? {
                return Ok(Some(conflict));
            }
        }
        Ok(None)
    }

    fn ask(&self) -> anyhow::Result<()> {
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
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut fds =
                [&self.arp, &self.ndp].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            // An interrupted poll is a short one: the loop looks again.
            let _ = poll(&mut fds, timeout);
            if let Some(conflict) = self.heard()? {
                return Ok(Some(conflict));
            }
        }
    }

    fn heard(&self) -> anyhow::Result<Option<Conflict>> {
        let by_arp = self.heard_on(&self.arp, arp_claim)?;
        match by_arp {
            None => self.heard_on(&self.ndp, ndp_claim),
            conflict => Ok(conflict),
        }
    }

    /// Goes through what a socket has heard. A busy segment cannot hold it up: there
    /// is an end to what is read at once.
    fn heard_on(
        &self,
        socket: &PacketSocket,
        parse: fn(&[u8]) -> Option<Claim>,
    ) -> anyhow::Result<Option<Conflict>> {
        // Longer frames are of no interest, and are cut.
        let mut buffer = [0; 128];
        for _ in 0..256 {
            let Some(frame) = socket.receive(&mut buffer)? else {
                break;
            };
            if let Some(conflict) = parse(frame).and_then(|claim| self.judge(claim)) {
                return Ok(Some(conflict));
            }
        }
        Ok(None)
    }

    /// A switch that sends frames back (VEPA) lets us hear our own probes.
    fn judge(&self, claim: Claim) -> Option<Conflict> {
        let ours = self.addresses.contains(&claim.address) && claim.mac != self.mac;
        ours.then_some(Conflict {
            address: claim.address,
            mac: claim.mac,
        })
    }
}

/// A frame says that somebody has an address, or asks whether he may take it.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    address: IpAddr,
    mac: Mac,
}

/// ARP for Ethernet and IPv4 (RFC 826), up to its operation.
const ARP_HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Who has `address`? Tell nobody.
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
    // Whoever asks from nowhere is probing, as we do (RFC 5227, 2.1.1).
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

/// Does anybody have `address`? Asked from nowhere, so without options.
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
    // A hop limit of 255 has crossed no router (RFC 4861, 7.1).
    if header[6] != ICMPV6 || header[7] != 255 {
        return None;
    }
    let asked_from_nowhere = header[8..24] == [0; 16];
    let claims = match message[0] {
        ADVERTISEMENT => true,
        SOLICITATION => asked_from_nowhere,
        _ => false,
    };
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
    fn an_arp_probe_says_nothing_about_us() {
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
    fn who_sends_from_an_address_has_it_whatever_he_says() {
        let (ours, other) = ([10, 1, 2, 3], [10, 1, 2, 9]);
        assert_eq!(arp_claim(&arp(2, ours, other)), claim("10.1.2.3"));
        assert_eq!(arp_claim(&arp(1, ours, other)), claim("10.1.2.3"));
        // He asks for the address as a neighbour: it is not he who has it.
        assert_eq!(arp_claim(&arp(1, other, ours)), claim("10.1.2.9"));
        // He is probing as well.
        assert_eq!(arp_claim(&arp(1, [0; 4], ours)), claim("10.1.2.3"));
    }

    #[test]
    fn a_solicitation_is_one_that_the_kernel_would_send() {
        // Drawn by hand after RFC 4861, section 4.3; the black-box tests ask tcpdump.
        let frame = solicitation(OURS, "fd00::2".parse().unwrap());
        let mut expected = vec![0x33, 0x33, 0xff, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        expected.extend([0x60, 0, 0, 0, 0, 24, 58, 255]);
        expected.extend([0; 16]);
        expected.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2]);
        expected.extend([135, 0]);
        assert_eq!(frame[..56], expected);
        assert_eq!(frame.len(), 78);
        // A right checksum makes the sum over everything zero.
        let group = solicited_node("fd00::2".parse().unwrap());
        assert_eq!(checksum(Ipv6Addr::UNSPECIFIED, group, &frame[54..]), 0);
    }

    #[test]
    fn an_advertisement_or_another_probe_claims_and_a_question_does_not() {
        let mut frame = solicitation(THEIRS, "fd00::2".parse().unwrap());
        assert_eq!(ndp_claim(&frame), claim("fd00::2"));
        frame[22 + 15] = 7;
        assert_eq!(ndp_claim(&frame), None, "a neighbour asks for the address");
        frame[54] = ADVERTISEMENT;
        assert_eq!(ndp_claim(&frame), claim("fd00::2"));
        frame[21] = 64;
        assert_eq!(ndp_claim(&frame), None, "it came over a router");
    }

    #[test]
    fn what_is_short_or_foreign_claims_nothing() {
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
