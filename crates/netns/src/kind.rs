//! Which kind of namespace a descriptor is of. All kinds are files of nsfs: only the kernel
//! can tell them apart (ioctl_ns(2), since Linux 4.11).

// SAFETY of the `unsafe`: the request has no argument; the kernel writes nothing.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// Whether `fd` is a network namespace; `None` where the kernel does not tell.
pub(crate) fn is_network(fd: BorrowedFd<'_>) -> Option<bool> {
    // SAFETY: see the top; the descriptor is open as long as it is borrowed.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind == libc::CLONE_NEWNET)
}
