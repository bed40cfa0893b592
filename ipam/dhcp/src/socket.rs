//! A packet socket in a pod, which can send and receive without an address. See
//! packet(7).

#![allow(unsafe_code)] // nix cannot make the address of a packet socket

use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink::Mac;
use netns::NetNs;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const IPV4: u16 = libc::ETH_P_IP as u16;
const BROADCAST: Mac = Mac([0xff; 6]);

/// A socket that receives the DHCP answers of one exchange on one link.
///
/// The kernel adds and removes the Ethernet header (`SOCK_DGRAM`): we get IPv4 packets,
/// and the sender's hardware address.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    ifindex: i32,
    xid: u32,
}

impl PacketSocket {
    /// Opens one inside `netns`, on the link with this index, for the answers to `xid`.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket: `ENODEV` for
    /// a link that is gone.
    pub fn open(netns: &NetNs, ifindex: u32, xid: u32) -> anyhow::Result<Self> {
        // Without a protocol it receives nothing until it is bound. By then it has its filter.
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Datagram, flags, None)
        };
        let fd = netns.enter(open)??;
        let socket = Self {
            fd,
            ifindex: ifindex.try_into()?,
            xid,
        };
        socket.set_filter()?;
        socket.bind()?;
        Ok(socket)
    }

    /// Receives the answers to `xid` from now on.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn set_xid(&mut self, xid: u32) -> io::Result<()> {
        if self.xid == xid {
            return Ok(());
        }
        self.xid = xid;
        self.set_filter()
    }

    /// Drops all but the answers to `xid` in the kernel. Otherwise, on a segment where all
    /// pods ask at once, every answer would wake the daemon once for each of them.
    fn set_filter(&self) -> io::Result<()> {
        // tcpdump's "udp dst port 68" for what starts with the IPv4 header, and
        // the xid of the message.
        let filter = [
            statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 9),
            jump(libc::BPF_JEQ, 17, 0, 8),
            statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 6),
            jump(libc::BPF_JSET, 0x1fff, 6, 0),
            statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
            statement(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 2),
            jump(libc::BPF_JEQ, 68, 0, 3),
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, 8 + 4),
            jump(libc::BPF_JEQ, self.xid, 0, 1),
            statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
            statement(libc::BPF_RET | libc::BPF_K, 0),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the option's value is a sock_fprog (socket(7)); the kernel only reads the
        // filter, and copies it before the call returns.
        let failed = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        };
        done(failed as isize).map(drop)
    }

    fn bind(&self) -> io::Result<()> {
        let address = self.address(Mac([0; 6]));
        // SAFETY: `address` is a sockaddr_ll of the length that is passed with it.
        let failed = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        done(failed as isize).map(drop)
    }

    /// Sends an IPv4 packet to `to`; as a broadcast without it.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn send(&self, packet: &[u8], to: Option<Mac>) -> io::Result<()> {
        let address = self.address(to.unwrap_or(BROADCAST));
        // SAFETY: `packet` and `address` are as long as the lengths that are passed
        // with them, and live until the call returns.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        done(sent).map(drop)
    }

    /// Reads the next packet into `buffer`; returns its length and the sender's hardware
    /// address, `None` when there is no packet.
    ///
    /// # Errors
    /// `ENETDOWN` once when the link goes down.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Mac)>> {
        let mut address = self.address(Mac([0; 6]));
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes no more than `buffer` and `address` have room
        // for, by the lengths that are passed with them.
        let received = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        match done(received) {
            Ok(length) => {
                let [a, b, c, d, e, f, ..] = address.sll_addr;
                Ok(Some((length, Mac([a, b, c, d, e, f]))))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn address(&self, mac: Mac) -> libc::sockaddr_ll {
        let mut octets = [0; 8];
        octets[..6].copy_from_slice(&mac.0);
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: IPV4.to_be(),
            sll_ifindex: self.ifindex,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: octets,
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<PacketSocket> for OwnedFd {
    fn from(socket: PacketSocket) -> Self {
        socket.fd
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(how: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: (libc::BPF_JMP | how | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    }
}

fn done(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
