//! The packet socket of a lease. It sends and receives without an address, and receives only
//! the DHCP answers of one exchange.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink::{Error, Link, Mac, PacketSocket};
use netns::NetNs;
use nix::libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH,
    BPF_RET, BPF_W, ETH_P_IP,
};

const BROADCAST: Mac = Mac([0xff; 6]);

/// Bytes of an Ethernet header: destination, source, EtherType.
const ETHERNET: usize = 14;

/// A packet socket on one link.
#[derive(Debug)]
pub struct Socket {
    packets: PacketSocket,
    xid: u32,
}

impl Socket {
    /// Opens one inside `netns`, on `link`, for the answers to `xid`.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket: `ENODEV` for
    /// a link that is gone.
    pub fn open(netns: &NetNs, link: &Link, xid: u32) -> anyhow::Result<Self> {
        let packets = netns.enter(|| PacketSocket::open(link, ETH_P_IP as u16))??;
        packets.set_filter(&answers_to(xid))?;
        Ok(Self { packets, xid })
    }

    /// Receives the answers to `xid` from now on.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn set_xid(&mut self, xid: u32) -> Result<(), Error> {
        if self.xid != xid {
            self.packets.set_filter(&answers_to(xid))?;
            self.xid = xid;
        }
        Ok(())
    }

    /// Sends an IPv4 packet to `to`; as a broadcast without it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, packet: &[u8], from: Mac, to: Option<Mac>) -> Result<(), Error> {
        let to = to.unwrap_or(BROADCAST);
        let kind = (ETH_P_IP as u16).to_be_bytes();
        let frame = [&to.0[..], &from.0, &kind, packet].concat();
        self.packets.send(&frame)
    }

    /// The next packet, with the sender's hardware address; `None` when there is none.
    ///
    /// # Errors
    /// `ENETDOWN` once when the link goes down.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<(&'a [u8], Mac)>, Error> {
        let Some(frame) = self.packets.receive(buffer)? else {
            return Ok(None);
        };
        let (header, packet) = frame.split_at(frame.len().min(ETHERNET));
        let from = header.get(6..).and_then(<[u8]>::first_chunk).copied();
        Ok(Some((packet, Mac(from.unwrap_or_default()))))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.packets.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.packets.into()
    }
}

/// tcpdump's "udp dst port 68 and udp[12:4] = xid". Otherwise, on a segment where all pods ask
/// at once, every answer would wake the daemon once for each of them.
fn answers_to(xid: u32) -> [(u32, u8, u8, u32); 11] {
    let ip = ETHERNET as u32;
    [
        (BPF_LD | BPF_B | BPF_ABS, 0, 0, ip + 9),
        (BPF_JMP | BPF_JEQ | BPF_K, 0, 8, 17),
        (BPF_LD | BPF_H | BPF_ABS, 0, 0, ip + 6),
        (BPF_JMP | BPF_JSET | BPF_K, 6, 0, 0x1fff),
        (BPF_LDX | BPF_B | BPF_MSH, 0, 0, ip),
        (BPF_LD | BPF_H | BPF_IND, 0, 0, ip + 2),
        (BPF_JMP | BPF_JEQ | BPF_K, 0, 3, 68),
        (BPF_LD | BPF_W | BPF_IND, 0, 0, ip + 8 + 4),
        (BPF_JMP | BPF_JEQ | BPF_K, 0, 1, xid),
        (BPF_RET | BPF_K, 0, 0, u32::MAX),
        (BPF_RET | BPF_K, 0, 0, 0),
    ]
}
