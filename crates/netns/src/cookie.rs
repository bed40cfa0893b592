//! The number that the kernel gives a network namespace for as long as the machine runs.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::libc;

/// asm-generic/socket.h
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's namespace; `None` before Linux 5.14.
///
/// # Errors
/// No socket can be made.
pub fn of_this_thread() -> Result<Option<u64>, Errno> {
    // Every socket knows its namespace.
    let socket = UnixDatagram::unbound().map_err(|error| {
        let errno = error.raw_os_error().unwrap_or_default();
        Errno::from_raw(errno)
    })?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live variables, and `length` is the size of the first.
    #[allow(unsafe_code, reason = "a socket option that no crate has")]
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
