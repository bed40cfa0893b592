//! The texts of error numbers, for programs that are linked with musl.
//!
//! musl has texts of its own: "Resource busy" for EBUSY. Users, and tools that read
//! messages, know those of glibc, which the Go plugins print as well. `std::io::Error` gets
//! its text from the C library's `__xpg_strerror_r`. This file defines that function in the
//! place of musl's, for all programs. A test in `error.rs` fails if std no longer calls it.
#![allow(unsafe_code, reason = "a function with the C library's name and types")]

use std::ffi::CStr;

use nix::errno::Errno;
use nix::libc::{c_char, c_int, size_t, strerror};

/// glibc's texts where musl's differ, of errors that files, processes, sockets and netlink
/// can give. Source: errnos.h of glibc.
const TEXTS: &[(Errno, &CStr)] = &[
    (Errno::EIO, c"Input/output error"),
    (Errno::ECHILD, c"No child processes"),
    (Errno::ENOMEM, c"Cannot allocate memory"),
    (Errno::EBUSY, c"Device or resource busy"),
    (Errno::EXDEV, c"Invalid cross-device link"),
    (Errno::EMFILE, c"Too many open files"),
    (Errno::ENOTTY, c"Inappropriate ioctl for device"),
    (Errno::ESPIPE, c"Illegal seek"),
    (Errno::ERANGE, c"Numerical result out of range"),
    (Errno::EDEADLK, c"Resource deadlock avoided"),
    (Errno::ENAMETOOLONG, c"File name too long"),
    (Errno::ELOOP, c"Too many levels of symbolic links"),
    (Errno::ETIME, c"Timer expired"),
    (Errno::ECOMM, c"Communication error on send"),
    (Errno::EOVERFLOW, c"Value too large for defined data type"),
    (Errno::ENOTUNIQ, c"Name not unique on network"),
    (
        Errno::EILSEQ,
        c"Invalid or incomplete multibyte or wide character",
    ),
    (Errno::EUSERS, c"Too many users"),
    (Errno::ENOTSOCK, c"Socket operation on non-socket"),
    (Errno::EMSGSIZE, c"Message too long"),
    (Errno::EOPNOTSUPP, c"Operation not supported"),
    (Errno::EADDRINUSE, c"Address already in use"),
    (Errno::EADDRNOTAVAIL, c"Cannot assign requested address"),
    (Errno::ENETUNREACH, c"Network is unreachable"),
    (Errno::ENETRESET, c"Network dropped connection on reset"),
    (Errno::ECONNABORTED, c"Software caused connection abort"),
    (Errno::EISCONN, c"Transport endpoint is already connected"),
    (Errno::ENOTCONN, c"Transport endpoint is not connected"),
    (
        Errno::ESHUTDOWN,
        c"Cannot send after transport endpoint shutdown",
    ),
    (Errno::ETOOMANYREFS, c"Too many references: cannot splice"),
    (Errno::ETIMEDOUT, c"Connection timed out"),
    (Errno::EHOSTUNREACH, c"No route to host"),
    (Errno::EINPROGRESS, c"Operation now in progress"),
    (Errno::EUCLEAN, c"Structure needs cleaning"),
    (Errno::EDQUOT, c"Disk quota exceeded"),
    (Errno::EOWNERDEAD, c"Owner died"),
    (Errno::ERFKILL, c"Operation not possible due to RF-kill"),
];

fn text(number: c_int) -> Option<&'static CStr> {
    let errno = Errno::from_raw(number);
    let found = TEXTS.iter().find(|(it, _)| *it == errno);
    found.map(|(_, text)| *text)
}

/// Writes the text of error `number` into `buffer` of `length` bytes, cut off if it is
/// longer. Returns 0, or `ERANGE` when it was cut off (strerror(3)).
///
/// # Safety
///
/// `buffer` has `length` writable bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xpg_strerror_r(number: c_int, buffer: *mut c_char, length: size_t) -> c_int {
    // SAFETY: strerror returns a constant string for every number.
    let text = text(number).unwrap_or_else(|| unsafe { CStr::from_ptr(strerror(number)) });
    let text = text.to_bytes();
    let Some(room) = length.checked_sub(1) else {
        return Errno::ERANGE as c_int;
    };
    let written = text.len().min(room);
    // SAFETY: the caller's `buffer` has `length` bytes, which are more than `written`.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, written);
        *buffer.add(written) = 0;
    }
    if written < text.len() {
        return Errno::ERANGE as c_int;
    }
    0
}
