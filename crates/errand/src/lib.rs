//! What the kernel makes whoever asks wait for, although all is done: a child
//! waits in our place.
//!
//! Whoever has the kernel free what others may still be reading waits for RCU, some
//! ten milliseconds, before the call returns. A runtime waits for us, and a plugin is
//! over in a fraction of that. So a child asks ([`send`]), or has the last copy of
//! what is to be closed ([`close_later`], [`close_with_next`]), and outlives us by as
//! long as that takes.
//!
//! The child holds the descriptors of its errand and nothing else that anybody could
//! wait for: no standard stream, no file, no directory. It shares our memory, as a
//! child of `vfork(2)` does; a copy would cost more than all else that a plugin does.
//! Whoever kills us cannot stop it halfway, and if it is killed itself, the kernel
//! closes what it held.

#![allow(
    unsafe_code,
    reason = "a process that shares our memory, and its system calls"
)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

/// Bytes that a child can send: `struct nlmsghdr` and `struct ifinfomsg`.
pub const REQUEST: usize = 16 + 16;

/// Bytes for half a dozen system calls and a signal that may come in between.
const STACK: usize = 32 * 1024;

/// How long the kernel's own worker may take to begin, and to end, what it does
/// before and after it waits for RCU.
const MOMENT: Duration = Duration::from_millis(1);

/// How long to hold on where nobody tells when RCU is through.
const LONG: Duration = Duration::from_millis(20);

/// linux/membarrier.h
const MEMBARRIER_CMD_QUERY: libc::c_long = 0;
const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;

/// Children that may have ended meanwhile. A plugin ends before they do; what
/// runs on buries earlier ones with each new one.
static CHILDREN: Mutex<Vec<(Pid, Lent)>> = Mutex::new(Vec::new());

/// What the next child is to close.
static LEFT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// How many descriptors a child can hold.
const HELD: usize = 4;

/// A child that sends a request and waits for the answer of the call, which is not
/// the kernel's answer: that comes to whoever reads from the socket.
#[derive(Debug)]
pub struct Sending {
    ended: OwnedFd,
}

impl Sending {
    /// Can be read when the child has ended, and not before.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Has a child send `request` over `socket`. `None` when there can be no other process,
/// or a kernel before 5.9 could not close what it must not hold: nothing was sent then.
pub fn send(socket: BorrowedFd<'_>, request: [u8; REQUEST]) -> Option<Sending> {
    let (ended, alive) = pipe2(OFlag::O_CLOEXEC).ok()?;
    let socket = socket.as_raw_fd();
    start([socket, alive.as_raw_fd()], What::Send(socket, request))?;
    Some(Sending { ended })
}

/// Has a child hold a copy of `socket` until RCU has let go of what was deleted over it,
/// so that whoever closes it then need not wait. Does nothing where there can be no child.
pub fn close_later(socket: BorrowedFd<'_>) {
    let what = match tells_of_rcu() {
        true => What::HoldForRcu,
        false => What::HoldFor(LONG),
    };
    // A child that could not be born leaves all as it was: we wait ourselves.
    let _ = start([socket.as_raw_fd(); 2], what);
}

/// Leaves `socket` to the next child, of whatever errand; to us, at our end, if there is
/// none: for a wait that is not likely, and not worth a child of its own.
pub fn close_with_next(socket: OwnedFd) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    if left.len() < HELD - 2 {
        left.push(socket);
    }
}

/// Whether the kernel has a call that returns when RCU is through (`membarrier(2)`). A
/// kernel that keeps processors free of its clock has not.
fn tells_of_rcu() -> bool {
    // SAFETY: only asks.
    let known = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    known > 0 && known & MEMBARRIER_CMD_GLOBAL != 0
}

/// What a child works with.
#[repr(C, align(16))]
struct Errand {
    stack: [MaybeUninit<u8>; STACK],
    // A stack grows down: its top is here.
    held: [RawFd; HELD],
    what: What,
}

/// What a child does.
#[derive(Clone, Copy)]
enum What {
    /// Sends this over this socket.
    Send(RawFd, [u8; REQUEST]),
    /// Holds on until RCU is through.
    HoldForRcu,
    /// Holds on for so long.
    HoldFor(Duration),
}

/// An errand that a child may be working with.
struct Lent(NonNull<Errand>);

// SAFETY: we do not touch what it points to.
unsafe impl Send for Lent {}

impl Lent {
    fn new(held: [RawFd; HELD], what: What) -> Self {
        // Not built here and then copied there, stack and all.
        let mut errand = Box::<Errand>::new_uninit();
        let fields = errand.as_mut_ptr();
        // SAFETY: every field is written that is not itself uninitialised memory.
        let errand = unsafe {
            (&raw mut (*fields).held).write(held);
            (&raw mut (*fields).what).write(what);
            errand.assume_init()
        };
        Self(NonNull::from(Box::leak(errand)))
    }

    /// Frees it.
    ///
    /// # Safety
    /// No child works with it.
    unsafe fn take_back(&self) {
        // SAFETY: it was leaked by `new`, and nobody else has it, as the caller says.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Has a child hold `own`, and what was left to it. `None` when there is no child.
fn start(own: [RawFd; 2], what: What) -> Option<()> {
    bury();
    // Closes nothing: no descriptor is that great.
    if close_range(RawFd::MAX, RawFd::MAX) != 0 {
        return None;
    }
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held = [own[0]; HELD];
    held[1] = own[1];
    for (place, socket) in held[2..].iter_mut().zip(left.iter()) {
        *place = socket.as_raw_fd();
    }
    held.sort_unstable();
    let errand = Lent::new(held, what);
    let lent = errand.0.as_ptr();
    // SAFETY: `run` is all that the child does. It has a stack of its own, aligned as
    // every architecture wants it, and reads the errand, which nobody writes and which
    // lives until the child is buried. It makes system calls and ends: it allocates,
    // locks and drops nothing. `libc::syscall` may set `errno`, which it shares with
    // this thread, when a call fails; of those that it makes, none does.
    let pid = unsafe {
        let top = (&raw mut (*lent).held).cast();
        let flags = libc::CLONE_VM | libc::SIGCHLD;
        libc::clone(run, top, flags, lent.cast())
    };
    if pid == -1 {
        // SAFETY: there is no child.
        unsafe { errand.take_back() };
        return None;
    }
    CHILDREN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((Pid::from_raw(pid), errand));
    // The child has copies.
    left.clear();
    Some(())
}

fn bury() {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|(pid, errand)| {
        match waitpid(*pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                // SAFETY: it has ended.
                unsafe { errand.take_back() };
                false
            }
            Ok(_) => true,
            // Somebody else buried it. What it worked with is left lying.
            Err(_) => false,
        }
    });
}

/// What the child does: lets go of everything, runs its errand, and is gone.
extern "C" fn run(errand: *mut libc::c_void) -> libc::c_int {
    let errand: *const Errand = errand.cast();
    // SAFETY: that is what `clone` was given. No reference is made to it as a whole: the
    // stack that this runs on is a part of it.
    let (held, what) = unsafe { ((*errand).held, &raw const (*errand).what) };
    let mut next = 0;
    for fd in held {
        if next < fd {
            close_range(next, fd - 1);
        }
        next = fd + 1;
    }
    close_range(next, RawFd::MAX);
    // SAFETY: pointers to what lives. Not the functions of the C library: they look at
    // the state of the thread that they take us for.
    unsafe {
        libc::syscall(libc::SYS_chdir, c"/".as_ptr());
        match &*what {
            What::Send(socket, request) => {
                let none = null::<libc::c_void>();
                libc::syscall(libc::SYS_sendto, *socket, request, REQUEST, 0, none, 0);
            }
            What::HoldForRcu => {
                sleep(MOMENT);
                libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
                sleep(MOMENT);
            }
            What::HoldFor(duration) => sleep(*duration),
        }
        libc::syscall(libc::SYS_exit_group, 0);
    }
    0
}

fn sleep(duration: Duration) {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: libc::c_long::from(duration.subsec_nanos() as i32),
    };
    // SAFETY: reads `time`.
    unsafe {
        libc::syscall(
            libc::SYS_nanosleep,
            &raw const time,
            null::<libc::timespec>(),
        )
    };
}

fn close_range(first: RawFd, last: RawFd) -> libc::c_long {
    // SAFETY: called for what is not open, or by a process that is about to end.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }
}
