//! The sockets of one address: UDP and TCP, port 53.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use cni::SystemError;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

/// Where clients ask.
pub const PORT: u16 = 53;
/// Room for a burst of questions, in bytes.
const BUFFER: usize = 4 * 1024 * 1024;
/// Connections that are not accepted yet.
const BACKLOG: i32 = 128;

/// The sockets of an address.
pub struct Sockets {
    /// For questions in datagrams.
    pub udp: UdpSocket,
    /// For those that need a connection.
    pub tcp: TcpListener,
}

impl Sockets {
    /// Opens both. The address need not be there yet: a bridge gets it with its first pod, and loses it
    /// when another program deletes the bridge.
    ///
    /// # Errors
    /// EADDRINUSE where another server answers.
    pub fn open(address: IpAddr) -> Result<Self> {
        let udp = UdpSocket::from(bound(address, SockType::Datagram)?);
        // Without the capability the usual room remains.
        let _ = setsockopt(&udp, sockopt::RcvBufForce, &BUFFER);
        let _ = setsockopt(&udp, sockopt::SndBufForce, &BUFFER);
        let tcp = bound(address, SockType::Stream)?;
        listen(&tcp, Backlog::new(BACKLOG)?).context("listen")?;
        Ok(Self {
            udp,
            tcp: tcp.into(),
        })
    }
}

fn bound(address: IpAddr, kind: SockType) -> Result<OwnedFd> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, None).context("open a socket")?;
    setsockopt(&fd, sockopt::IpFreebind, &true).context("set IP_FREEBIND")?;
    if kind == SockType::Stream {
        // Connections of an earlier agent may linger.
        setsockopt(&fd, sockopt::ReuseAddr, &true).context("set SO_REUSEADDR")?;
    }
    let to = SockaddrStorage::from(SocketAddr::new(address, PORT));
    let protocol = if kind == SockType::Stream {
        "TCP"
    } else {
        "UDP"
    };
    bind(fd.as_raw_fd(), &to).map_err(|errno| {
        SystemError::new(format!("bind {protocol} port {PORT} of {address}"), errno)
    })?;
    Ok(fd)
}
