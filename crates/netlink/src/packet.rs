//! A packet socket: sends and receives whole frames on one link (packet(7)).
//!
//! Closing one waits for RCU, some ten milliseconds (`packet_release`, net/packet/af_packet.c), so
//! it is not for the hot path.

// SAFETY of the two `unsafe`: each is one system call that nix lacks, with a structure of libc that
// outlives the call, and its true size.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cni::Capability;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket},
};

use crate::{Error, Link, Mac};

/// Sends and receives frames of one EtherType on one link. Frames of this host are not received.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    index: i32,
    /// The link's name.
    link: String,
}

impl PacketSocket {
    /// Opens a socket for a link of the calling thread's namespace.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW; `ENODEV` for a link that is gone.
    pub fn open(link: &Link, ethertype: u16) -> Result<Self, Error> {
        let op = || format!("open a packet socket on {}", link.name);
        let failed = |errno| Error::new(op(), errno).needs(&[Capability::NetRaw]);
        // With protocol 0, no frame of another link arrives before the socket is bound.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(failed)?;
        let index = i32::try_from(link.index).map_err(|_| failed(Errno::EINVAL))?;
        let link = link.name.clone();
        let this = Self {
            socket,
            index,
            link,
        };
        this.bind(ethertype).map_err(failed)?;
        Ok(this)
    }

    fn bind(&self, ethertype: u16) -> Result<(), Errno> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ethertype.to_be(),
            sll_ifindex: self.index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = size_of_val(&address) as libc::socklen_t;
        // SAFETY: see the top; bind(2) reads `size` bytes of `address`.
        let bound =
            unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), size) };
        Errno::result(bound).map(drop)
    }

    /// Also receives frames to the group `mac`.
    pub(crate) fn join(&self, mac: Mac) -> Result<(), Error> {
        let mut address = [0; 8];
        address[..6].copy_from_slice(&mac.0);
        let group = libc::packet_mreq {
            mr_ifindex: self.index,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: address,
        };
        let size = size_of_val(&group) as libc::socklen_t;
        let (socket, value) = (self.socket.as_raw_fd(), &raw const group);
        let (level, option) = (libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP);
        // SAFETY: see the top; setsockopt(2) reads `size` bytes of `group`.
        let joined = unsafe { libc::setsockopt(socket, level, option, value.cast(), size) };
        Errno::result(joined)
            .map(drop)
            .map_err(|errno| Error::new(format!("receive multicast {mac}"), errno))
    }

    /// Receives only frames that a classic BPF program accepts. Each statement is its code, the
    /// statements to skip if a comparison is true or false, and the operand: the order of
    /// `tcpdump -dd`.
    ///
    /// # Errors
    /// When the kernel refuses the program.
    pub fn set_filter(&self, program: &[(u32, u8, u8, u32)]) -> Result<(), Error> {
        let statement = |&(code, jt, jf, k): &(u32, u8, u8, u32)| {
            let code = code as u16;
            libc::sock_filter { code, jt, jf, k }
        };
        let mut program: Vec<_> = program.iter().map(statement).collect();
        transport::attach_filter(self.as_fd(), &mut program)
            .map_err(|errno| Error::new(format!("set a filter on {}", self.link), errno))
    }

    /// Sends a frame, its Ethernet header included.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .map(drop)
            .map_err(|errno| Error::new(format!("send on {}", self.link), errno))
    }

    /// The next received frame, its Ethernet header included, cut to the length of `buffer`; `None`
    /// when there is none.
    ///
    /// # Errors
    /// `ENETDOWN` once when the link goes down.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, Error> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(&buffer[..length.min(buffer.len())])),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(Error::new(format!("receive on {}", self.link), errno)),
        }
    }
}

impl From<PacketSocket> for OwnedFd {
    fn from(socket: PacketSocket) -> Self {
        socket.socket
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
