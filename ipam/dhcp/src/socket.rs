//! A packet socket in a pod: how to say something without an address, and hear
//! the answer. See packet(7).

#![allow(unsafe_code)] // nix has no way to make the address of a packet socket

use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink::Mac;
use netns::NetNs;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const IPV4: u16 = libc::ETH_P_IP as u16;
const BROADCAST: Mac = Mac([0xff; 6]);

/// A socket that hears the DHCP answers of one exchange on one link.
///
/// The kernel writes and reads the Ethernet header (`SOCK_DGRAM`): we see IPv4
/// packets, and who sent them.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    ifindex: i32,
}

impl PacketSocket {
    /// Opens one inside `netns`, on the link with this index, to be used from here.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel refuses the socket:
    /// `ENODEV` or `ENETDOWN` for a link that is gone or down.
    pub fn open(netns: &NetNs, ifindex: u32, xid: u32) -> anyhow::Result<Self> {
        // Without a protocol it hears nothing until it is bound, by when it has its filter.
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Datagram, flags, None)
        };
        let fd = netns.enter(open)??;
        let socket = Self {
            fd,
            ifindex: ifindex.try_into()?,
        };
        socket.hear(xid)?;
        socket.bind()?;
        Ok(socket)
    }

    /// Hears the answers to `xid` from now on, and nothing else. On a segment
    /// where all pods ask at once, each would be woken by the answers of all.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn hear(&self, xid: u32) -> io::Result<()> {
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
            jump(libc::BPF_JEQ, xid, 0, 1),
            statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
            statement(libc::BPF_RET | libc::BPF_K, 0),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the option's value is a sock_fprog (socket(7)); the kernel copies
        // the filter, to which it does not write, before the call returns.
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

    /// Sends an IPv4 packet to `to`, or to everybody.
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

    /// The next packet into `buffer`, its length and the hardware address that it
    /// came from; `None` when there is none.
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
