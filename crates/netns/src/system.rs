//! What the kernel reports about namespaces, by system calls that nix lacks.

// SAFETY of both `unsafe`: each is one system call on a descriptor that is open as long as it is
// borrowed; each pointer is to a live variable.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::libc;

/// asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Whether `fd` is a network namespace; `None` where the kernel does not report it. All kinds of
/// namespaces are files of nsfs, so nothing else tells them apart (ioctl_ns(2), since Linux 4.11).
pub(crate) fn is_network(fd: BorrowedFd<'_>) -> Option<bool> {
    // SAFETY: see the top; the request has no argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind == libc::CLONE_NEWNET)
}

/// The cookie of the calling thread's namespace, a number that is unique until the next boot;
/// `None` before Linux 5.14.
///
/// # Errors
/// No socket can be opened.
pub(crate) fn cookie() -> Result<Option<u64>, Errno> {
    // Every socket knows its namespace.
    let socket = UnixDatagram::unbound()
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: see the top; `length` is the size of `cookie`.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Ok((failed == 0).then_some(cookie))
}
