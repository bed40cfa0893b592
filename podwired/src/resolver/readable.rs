//! Descriptors that a task waits for.

#![allow(unsafe_code, reason = "AsyncFd wants a promise about the descriptor")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::inotify::Inotify;
use tokio::io::unix::AsyncFd;

/// Owns one descriptor, which stays the same and open as long as the value lives.
pub trait Owner: AsFd {}

impl Owner for UdpSocket {}
impl Owner for Inotify {}

/// An owner of a descriptor, as [`AsyncFd`] wants it.
pub struct Source<T>(pub T);

impl<T: Owner> AsRawFd for Source<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Has the runtime watch the descriptor, which does not block.
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn watched<T: Owner>(owner: T) -> io::Result<AsyncFd<Source<T>>> {
    // SAFETY: an Owner's descriptor stays the same and open until the Owner is dropped, which the
    // AsyncFd does after it has stopped watching.
    let registered = unsafe { AsyncFd::register(Source(owner)) };
    registered.map_err(Into::into)
}
