//! The ports of a bridge by their numbers, at a cost that hardly depends on their count. A list
//! over netlink describes each port in full: 2 ms for 1,000 ports.

// SAFETY of the `unsafe`: one system call that nix lacks. The kernel reads `request` and the four
// words that it points to, and writes at most `MOST` numbers to the array that the second word
// points to. All of them outlive the call.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use nix::{errno::Errno, libc};

use crate::{Error, Link, Netlink};

/// More port numbers than a bridge has: they have ten bits (`BR_MAX_PORTS`,
/// net/bridge/br_private.h).
pub const MOST: usize = 1024;

/// `BRCTL_GET_PORT_LIST` (linux/if_bridge.h).
const GET_PORT_LIST: libc::c_ulong = 7;

/// The ioctl(2) of a bridge (linux/sockios.h).
const SIOCDEVPRIVATE: libc::Ioctl = 0x89f0;

impl Netlink {
    /// The index of each port of `bridge`, at the place of its port number; 0 where there is none:
    /// `brctl show BRIDGE`.
    ///
    /// # Errors
    /// The link is no bridge.
    pub fn port_indexes(&self, bridge: &Link) -> Result<Box<[u32; MOST]>, Error> {
        let mut indexes = Box::new([0; MOST]);
        let mut words: [libc::c_ulong; 4] = [
            GET_PORT_LIST,
            indexes.as_mut_ptr() as libc::c_ulong,
            MOST as libc::c_ulong,
            0,
        ];
        // SAFETY: zero bytes are a valid `ifreq`, a structure of integers and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // One byte less than the field has: a name ends with a zero byte.
        let name = bridge.name.bytes().take(libc::IFNAMSIZ - 1);
        for (place, byte) in request.ifr_name.iter_mut().zip(name) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        let socket = self.socket.as_fd().as_raw_fd();
        // SAFETY: see the top.
        let done = unsafe { libc::ioctl(socket, SIOCDEVPRIVATE, &raw mut request) };
        match Errno::result(done) {
            Ok(_) => Ok(indexes),
            Err(errno) => Err(Error::new(format!("list ports of {}", bridge.name), errno)),
        }
    }
}
