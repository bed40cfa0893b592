//! The network namespace of the calling thread.

// SAFETY: at each `unsafe`. nix has no wrapper of the request.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::libc;

/// Where procfs shows it. Not /proc/self, which is the main thread: it may be in another namespace.
pub const PATH: &str = "/proc/thread-self/ns/net";

/// Opens the namespace of the calling thread.
///
/// A socket knows its namespace. At the first look-up of [`PATH`], the kernel creates the files of the
/// process in /proc, and removes them when the process ends. Without such look-ups an ADD of bridge
/// takes 0.2 ms less.
///
/// # Errors
/// As open(2), if the kernel refuses the request and /proc is not mounted.
pub fn open() -> io::Result<OwnedFd> {
    // Without CAP_NET_ADMIN the kernel refuses; Linux before 4.10 does not know the request.
    of_a_socket().or_else(|_| File::open(PATH).map(Into::into))
}

fn of_a_socket() -> io::Result<OwnedFd> {
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the request has no argument; the socket is open until the end of the function.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGSKNS as libc::Ioctl) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just returned this descriptor; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
