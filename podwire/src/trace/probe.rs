//! Sends one packet, and hears what comes back.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use netns::NetNs;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect,
    getsockname, getsockopt, recv, send, setsockopt, socket, sockopt,
};
use packet_filter::Protocol;
use socket2::SockRef;

use super::target::{Origin, Target};

/// The identifier of our echo requests; the kernel gives each raw socket all answers.
const ECHO: [u8; 4] = [0x70, 0x77, 0, 1];
/// linux/icmp.h, linux/icmpv6.h: requests and answers.
const ECHO_TYPES: [[u8; 2]; 2] = [[8, 0], [128, 129]];

/// A packet that was sent.
#[derive(Debug)]
pub struct Probe {
    fd: OwnedFd,
    target: Target,
    /// Its source port, where it has one.
    pub port: Option<u16>,
}

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet.
    Nothing,
    /// The connection was accepted; an echo was answered.
    Accepted,
    /// A host answered that nothing listens there.
    Refused,
    /// Another answer, or an error of the pod's own kernel.
    Failed(Errno),
}

/// The source address that the namespace chooses for packets to `ip`.
///
/// # Errors
/// There is no route.
pub fn source(netns: &NetNs, ip: IpAddr) -> Result<IpAddr> {
    netns
        .enter(|| -> std::io::Result<IpAddr> {
            let any: IpAddr = match ip {
                IpAddr::V4(_) => [0u8; 4].into(),
                IpAddr::V6(_) => [0u8; 16].into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            // No packet is sent. The port does not matter.
            socket.connect((ip, 9))?;
            Ok(socket.local_addr()?.ip())
        })?
        .with_context(|| format!("find a source address for {ip}"))
}

/// Lets a socket send from an address that may be another's (ip(7), IP_TRANSPARENT).
fn forge(fd: &OwnedFd, source: IpAddr) -> Result<()> {
    let socket = SockRef::from(fd);
    match source {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    Ok(socket.bind(&SocketAddr::new(source, 0).into())?)
}

impl Probe {
    /// Sends a packet from `origin` to `target`.
    ///
    /// # Errors
    /// No socket can be made, or none with the origin's source address. That the packet cannot be sent
    /// is an answer.
    pub fn send(origin: &Origin, target: Target) -> Result<(Self, Answer)> {
        let family = match target.ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let (kind, protocol) = match target.port {
            Some((Protocol::Udp, _)) => (SockType::Datagram, None),
            Some(_) => (SockType::Stream, None),
            None if target.ip.is_ipv4() => (SockType::Raw, Some(SockProtocol::Icmp)),
            None => (SockType::Raw, Some(SockProtocol::IcmpV6)),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = origin
            .netns
            .enter(|| socket(family, kind, flags, protocol))?
            .context("open a socket")?;
        if let Some(source) = origin.source {
            forge(&fd, source).with_context(|| format!("send from {source}"))?;
        }
        let address = SocketAddr::new(target.ip, target.port_number());
        let connected = connect(fd.as_raw_fd(), &SockaddrStorage::from(address));
        let mut probe = Self {
            fd,
            target,
            port: None,
        };
        let sent = match connected {
            Err(errno) => Err(errno),
            Ok(()) => probe.first_packet(),
        };
        probe.port = probe.own_port();
        let answer = match sent {
            Ok(()) | Err(Errno::EINPROGRESS) => Answer::Nothing,
            Err(errno) => Answer::failed(errno),
        };
        Ok((probe, answer))
    }

    /// For a connection, the kernel sends it.
    fn first_packet(&self) -> Result<(), Errno> {
        let packet = match self.target.port {
            Some((Protocol::Udp, _)) => Vec::new(),
            Some(_) => return Ok(()),
            None => echo(self.target.ip),
        };
        send(self.fd.as_raw_fd(), &packet, MsgFlags::empty()).map(drop)
    }

    fn own_port(&self) -> Option<u16> {
        self.target.port?;
        let own: SockaddrStorage = getsockname(self.fd.as_raw_fd()).ok()?;
        let v4 = own.as_sockaddr_in().map(|it| it.port());
        v4.or(own.as_sockaddr_in6().map(|it| it.port()))
    }

    /// What poll(2) is to wait for: a connection becomes writable.
    pub fn is_connection(&self) -> bool {
        matches!(self.target.port, Some((Protocol::Tcp, _)))
    }

    /// What has come back.
    pub fn answer(&self) -> Answer {
        if self.is_connection() {
            return self.connection();
        }
        let mut buffer = [0; 256];
        match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => Answer::Nothing,
            Err(errno) => Answer::failed(errno),
            Ok(_) if self.target.port.is_some() => Answer::Accepted,
            Ok(length) if is_reply(self.target.ip, &buffer[..length]) => Answer::Accepted,
            Ok(_) => Answer::Nothing,
        }
    }

    fn connection(&self) -> Answer {
        match getsockopt(&self.fd, sockopt::SocketError) {
            Ok(0) => {
                let connected =
                    nix::sys::socket::getpeername::<SockaddrStorage>(self.fd.as_raw_fd());
                match connected {
                    Ok(_) => Answer::Accepted,
                    Err(_) => Answer::Nothing,
                }
            }
            Ok(error) => Answer::failed(Errno::from_raw(error)),
            Err(errno) => Answer::Failed(errno),
        }
    }
}

impl Drop for Probe {
    /// A connection is reset: the other side forgets it at once.
    fn drop(&mut self) {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        if self.is_connection() {
            let _ = setsockopt(&self.fd, sockopt::Linger, &at_once);
        }
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Answer {
    fn failed(errno: Errno) -> Self {
        match std::io::Error::from(errno).kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            _ => Self::Failed(errno),
        }
    }
}

fn echo(ip: IpAddr) -> Vec<u8> {
    let [request, _] = ECHO_TYPES[usize::from(ip.is_ipv6())];
    let mut packet = vec![request, 0, 0, 0];
    packet.extend(ECHO);
    // For IPv6, the kernel adds the checksum.
    if ip.is_ipv4() {
        let words = packet
            .chunks(2)
            .map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])));
        let sum: u32 = words.sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether a packet is the answer to our echo request. An IPv4 packet comes with its header.
fn is_reply(ip: IpAddr, packet: &[u8]) -> bool {
    let [_, reply] = ECHO_TYPES[usize::from(ip.is_ipv6())];
    let start = match packet.first() {
        Some(first) if ip.is_ipv4() => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let message = packet.get(start..).unwrap_or_default();
    message.first() == Some(&reply) && message.get(4..8) == Some(&ECHO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_has_a_valid_checksum_and_an_answer() {
        let mut packet = echo([10, 0, 0, 1].into());
        let words = packet
            .chunks(2)
            .map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        packet[0] = 0;
        let with_header = [&[0x45; 1][..], &[0; 19], &packet].concat();
        assert!(is_reply([10, 0, 0, 1].into(), &with_header));
        assert!(!is_reply([10, 0, 0, 1].into(), &with_header[..10]));
    }
}
