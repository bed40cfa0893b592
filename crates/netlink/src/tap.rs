//! Tap devices: links whose frames go to and come from a program, such as a virtual machine, that
//! opens `/dev/net/tun` (Documentation/networking/tuntap.rst).

// SAFETY of the `unsafe`: system calls that nix lacks, on a descriptor that is open as long as the
// value. `TUNSETIFF` gets a pointer to a structure that outlives the call; the others take numbers.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use netns::NetNs;
use nix::errno::Errno;
use nix::libc;

use crate::{Error, Netlink};

/// Where programs open a tap device.
pub const CLONE_DEVICE: &str = "/dev/net/tun";

/// A tap device to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Several queues, each of which a thread of the program can serve.
    pub multi_queue: bool,
    /// The user who may open it; `None`: only a privileged user.
    pub owner: Option<u32>,
    /// The group whose members may open it; `None`: no group.
    pub group: Option<u32>,
    /// A header of four bytes before each frame, until a program chooses.
    pub packet_information: bool,
    /// A header of virtio before each frame, until a program chooses.
    pub virtio_header: bool,
}

impl TapSpec {
    fn flags(&self) -> libc::c_int {
        let flag = |on, flag| if on { flag } else { 0 };
        libc::IFF_TAP
            // Otherwise the call would attach to an existing device of another program.
            | libc::IFF_TUN_EXCL
            | flag(self.multi_queue, libc::IFF_MULTI_QUEUE)
            | flag(!self.packet_information, libc::IFF_NO_PI)
            | flag(self.virtio_header, libc::IFF_VNET_HDR)
    }
}

/// A tap device that the kernel deletes with this value, unless [`Tap::keep`] is called: a caller
/// that is killed leaves none. It has a carrier meanwhile.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Creates a tap device in `netns`: `ip tuntap add dev NAME mode tap user OWNER group GROUP
    /// multi_queue`. It is down.
    ///
    /// # Errors
    /// `EEXIST` when there is a link of that name, of any kind; `ENOENT` without the device node.
    pub fn create(spec: &TapSpec, netns: &NetNs) -> anyhow::Result<Self> {
        // It belongs to the namespace where it is opened.
        let file = netns.enter(open)??;
        let tap = Self {
            file,
            name: spec.name.clone(),
        };
        if let Err(errno) = tap.attach(spec.flags()) {
            let exists = Netlink::open_in(netns)?.find_link(&spec.name)?.is_some();
            let errno = if exists { Errno::EEXIST } else { errno };
            return Err(tap.refused("add", errno).into());
        }
        for (request, id) in [
            (libc::TUNSETOWNER, spec.owner),
            (libc::TUNSETGROUP, spec.group),
        ] {
            if let Some(id) = id {
                tap.set(request, libc::c_ulong::from(id))
                    .map_err(|errno| tap.refused("set the owner of", errno))?;
            }
        }
        Ok(tap)
    }

    /// Makes the device stay when it is closed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep(self) -> Result<(), Error> {
        self.set(libc::TUNSETPERSIST, 1)
            .map_err(|errno| self.refused("keep", errno))
    }

    fn attach(&self, flags: libc::c_int) -> Result<(), Errno> {
        // SAFETY: zero bytes are a valid `ifreq`, a structure of integers and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        // The kernel would choose a number for `tap%d`.
        if self.name.len() > room || self.name.contains('%') {
            return Err(Errno::EINVAL);
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: see the top.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        Errno::result(done).map(drop)
    }

    fn set(&self, request: libc::Ioctl, value: libc::c_ulong) -> Result<(), Errno> {
        // SAFETY: see the top.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), request, value) };
        Errno::result(done).map(drop)
    }

    fn refused(&self, action: &str, errno: Errno) -> Error {
        Error::new(format!("{action} tap {}", self.name), errno)
    }
}

/// Whether tap devices can be created: opens [`CLONE_DEVICE`].
///
/// # Errors
/// `ENOENT` without the device node, `ENODEV` without the kernel's module.
pub fn may_create_taps() -> Result<(), Error> {
    open().map(drop)
}

fn open() -> Result<File, Error> {
    let opened = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE);
    opened.map_err(|error: io::Error| Error::io(format!("open {CLONE_DEVICE}"), &error))
}
