//! The ports of a bridge by their numbers, and the name of one, at a cost that hardly depends on their
//! count. A list over netlink describes each port in full: 2 ms for 1,000 ports.

// SAFETY of the `unsafe`: one system call that nix lacks, with a structure of integers and pointers
// that is valid with any bytes and outlives the call. For `BRCTL_GET_PORT_LIST` the kernel also reads
// the four words that it points to, and writes at most `MOST` numbers to the array that the second
// word points to; for `SIOCGIFNAME` it reads the index and writes the name.
#![allow(unsafe_code)]

use std::ffi::CStr;
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
        let mut request = empty_request();
        // One byte less than the field has: a name ends with a zero byte.
        let name = bridge.name.bytes().take(libc::IFNAMSIZ - 1);
        for (place, byte) in request.ifr_name.iter_mut().zip(name) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        match self.ioctl(SIOCDEVPRIVATE, &mut request) {
            Ok(()) => Ok(indexes),
            Err(errno) => Err(Error::new(format!("list ports of {}", bridge.name), errno)),
        }
    }

    /// The name of the link with this index; `None` if there is none. Unlike a query over netlink, it
    /// does not wait for a change of another link: netdevice(7).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn find_name(&self, index: u32) -> Result<Option<String>, Error> {
        let mut request = empty_request();
        request.ifr_ifru.ifru_ifindex = index as libc::c_int;
        match self.ioctl(libc::SIOCGIFNAME as libc::Ioctl, &mut request) {
            Ok(()) => {
                let name = request.ifr_name.map(|byte| byte as u8);
                let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
                Ok(Some(name.to_string_lossy().into_owned()))
            }
            Err(Errno::ENODEV) => Ok(None),
            Err(errno) => Err(Error::new(format!("get name of link {index}"), errno)),
        }
    }

    fn ioctl(&self, what: libc::Ioctl, request: &mut libc::ifreq) -> Result<(), Errno> {
        let socket = self.socket.as_fd().as_raw_fd();
        // SAFETY: see the top.
        Errno::result(unsafe { libc::ioctl(socket, what, request) }).map(drop)
    }
}

fn empty_request() -> libc::ifreq {
    // SAFETY: see the top.
    unsafe { std::mem::zeroed() }
}
