//! The system calls that nix has no safe call for.

// SAFETY of every `unsafe`: it is one system call; each pointer is to a live variable that
// outlives the call, and comes with the variable's true size.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// Sets a socket option whose value is a `T` of the kernel's layout.
pub(crate) fn set_option<T>(
    fd: BorrowedFd<'_>,
    level: i32,
    option: i32,
    value: &T,
) -> Result<(), Errno> {
    let size = size_of::<T>() as libc::socklen_t;
    let value = (&raw const *value).cast();
    // SAFETY: see the top.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value, size) };
    Errno::result(result).map(drop)
}

/// Has the kernel drop each datagram for which the classic BPF `program` returns 0
/// (socket(7), `SO_ATTACH_FILTER`).
///
/// # Errors
/// When the kernel refuses it.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Reads one datagram into the capacity of `buffer`, without waiting; returns the port of its
/// sender, which is 0 for the kernel. The memory is only touched where something is written.
///
/// # Errors
/// `EMSGSIZE` for a datagram that does not fit: a message that was cut must never be taken for
/// a whole one.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<u32, Errno> {
    buffer.clear();
    // SAFETY: all zeros are a valid address.
    let mut sender: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&sender) as libc::socklen_t;
    // SAFETY: see the top.
    let length = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.capacity(),
            // MSG_TRUNC returns the true length.
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            (&raw mut sender).cast(),
            &raw mut size,
        )
    };
    let length = Errno::result(length)? as usize;
    if length > buffer.capacity() {
        return Err(Errno::EMSGSIZE);
    }
    // SAFETY: the kernel has written so many bytes.
    unsafe { buffer.set_len(length) };
    Ok(sender.nl_pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_datagram_that_does_not_fit_is_an_error() {
        let (one, two) = UnixDatagram::pair().unwrap();
        let mut buffer = Vec::with_capacity(64);
        let capacity = buffer.capacity();
        one.send(&vec![1; capacity + 1]).unwrap();
        one.send(&vec![2; capacity]).unwrap();
        assert_eq!(receive(two.as_fd(), &mut buffer), Err(Errno::EMSGSIZE));
        assert_eq!(receive(two.as_fd(), &mut buffer), Ok(0));
        assert_eq!(buffer, vec![2; capacity]);
        assert_eq!(receive(two.as_fd(), &mut buffer), Err(Errno::EAGAIN));
    }
}
