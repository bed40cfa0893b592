//! Runs slow kernel calls (RCU waits) in a child process, so that the plugin can exit early.
//!
//! When the kernel frees an object that others may still be reading, the calling process waits
//! for RCU, some ten milliseconds, before the system call returns, although everything visible is
//! done. A runtime waits for the plugin, and an ADD or DEL takes a fraction of that time. So a
//! child makes the call ([`send`]), or holds the last copy of a socket whose close would wait
//! ([`close`], [`close_with_next`]). It outlives the plugin by that time.
//!
//! The child holds the descriptors that it needs and nothing else that others could wait for: no
//! standard stream, no file, no directory. It shares our memory, as a child of vfork(2) does; a
//! copy would cost more than everything else that a plugin does. If the plugin is killed, the
//! child goes on. If the child is killed, the kernel closes what it held.
//!
//! The cost is this file, and some 150 lines of `crates/netlink/src/deletion.rs`. The gain, measured on
//! Linux 6.18 as the median of 20: a DEL of bridge takes 10 ms instead of 22, with masquerade and
//! spoof check 11 ms instead of 53.
//!
//! If the environment variable `PODWIRE_NO_DEFER` is set, or if no child can be started (the limit of
//! processes is reached, the kernel is older than 5.9), the caller makes the call itself, and waits.

#![allow(
    unsafe_code,
    reason = "a process that shares our memory, and its system calls"
)]

use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

/// The environment variable that switches children off, for tests and measurements.
const SWITCH: &str = "PODWIRE_NO_DEFER";

/// Bytes of a request that a child sends: `struct nlmsghdr` and `struct ifinfomsg`.
pub const REQUEST: usize = 16 + 16;

/// Bytes of its stack: for half a dozen system calls and a signal handler.
const STACK: usize = 32 * 1024;

/// How long the kernel's worker may take before and after it waits for RCU itself.
const MOMENT: Duration = Duration::from_millis(1);

/// How long to hold a socket where the kernel cannot report the end of the RCU wait.
const LONG: Duration = Duration::from_millis(20);

/// linux/membarrier.h
const MEMBARRIER_CMD_QUERY: libc::c_long = 0;
const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;

/// Children that may have ended. A plugin exits before they do; a long-running process reaps
/// earlier ones with each new one.
static CHILDREN: Mutex<Vec<(Pid, Shared)>> = Mutex::new(Vec::new());

/// The sockets that the next child closes.
static LEFT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// How many descriptors a child can hold.
const HELD: usize = 4;

/// A child that sends a request. The kernel's answer comes to the process that reads from the
/// socket.
#[derive(Debug)]
pub struct Sending {
    ended: OwnedFd,
}

impl Sending {
    /// Becomes readable when the child has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Starts a child that sends `request` over `socket`. `None` when there is no child: nothing was
/// sent then.
pub fn send(socket: BorrowedFd<'_>, request: [u8; REQUEST]) -> Option<Sending> {
    let (ended, alive) = pipe2(OFlag::O_CLOEXEC).ok()?;
    let socket = socket.as_raw_fd();
    start([socket, alive.as_raw_fd()], Task::Send(socket, request))?;
    Some(Sending { ended })
}

/// Starts a child that holds a copy of `socket` until the objects that were deleted over it are
/// freed, and then closes it without a wait. Without a child, the caller's close waits. Another
/// descriptor whose close waits for RCU, such as that of a mount, can take the place of a socket.
pub fn close(socket: BorrowedFd<'_>) {
    let task = if has_membarrier() {
        Task::HoldForRcu
    } else {
        Task::HoldFor(LONG)
    };
    let _ = start([socket.as_raw_fd(); 2], task);
}

/// Copies of the sockets for nf_tables that the process `pid` has: `pidfd_getfd(2)`. None where the
/// kernel (before 5.6) or a security module refuses, or children are switched off.
///
/// A program that is about to end closes its socket, and waits for RCU, some ten milliseconds, with
/// the commit lock held. If a child has a copy ([`close`]), it does not.
pub fn netfilter_sockets_of(pid: u32) -> Vec<OwnedFd> {
    /// The descriptors of a program that has opened few files.
    const FIRST: RangeInclusive<RawFd> = 3..=7;
    if std::env::var_os(SWITCH).is_some() {
        return Vec::new();
    }
    // The calls below return a new descriptor or -1.
    let owned = |fd: libc::c_long| match RawFd::try_from(fd) {
        // SAFETY: the descriptor is new, so it has no other owner.
        Ok(fd) if fd >= 0 => Some(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => None,
    };
    // SAFETY: it has no pointer.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Some(process) = owned(pidfd) else {
        return Vec::new();
    };
    let copy = |fd: RawFd| {
        // SAFETY: it has no pointer.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
        owned(copy)
    };
    let copies = FIRST.filter_map(copy);
    copies.filter(|it| is_netfilter(it.as_fd())).collect()
}

fn is_netfilter(socket: BorrowedFd<'_>) -> bool {
    let option = |name| {
        let mut value: libc::c_int = -1;
        let mut length = size_of_val(&value) as libc::socklen_t;
        // SAFETY: it writes at most `length` bytes of `value`.
        let read = unsafe {
            let value = (&raw mut value).cast();
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                value,
                &raw mut length,
            )
        };
        (read == 0).then_some(value)
    };
    option(libc::SO_DOMAIN) == Some(libc::AF_NETLINK)
        && option(libc::SO_PROTOCOL) == Some(libc::NETLINK_NETFILTER)
}

/// Leaves `socket` to the next child, whatever its task, or to the end of this process: for a wait
/// that is unlikely, and not worth a child of its own.
pub fn close_with_next(socket: OwnedFd) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    if left.len() < HELD - 2 {
        left.push(socket);
    }
}

/// Whether the kernel has a call that returns after an RCU grace period (membarrier(2)). With
/// `nohz_full` it has none.
fn has_membarrier() -> bool {
    // SAFETY: it changes nothing.
    let known = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    known > 0 && known & MEMBARRIER_CMD_GLOBAL != 0
}

/// The memory of a child.
#[repr(C, align(16))]
struct Memory {
    stack: [MaybeUninit<u8>; STACK],
    // A stack grows down: its top is here.
    held: [RawFd; HELD],
    task: Task,
}

/// What a child does.
#[derive(Clone, Copy)]
enum Task {
    /// Sends a request over a socket.
    Send(RawFd, [u8; REQUEST]),
    /// Waits for an RCU grace period.
    HoldForRcu,
    /// Waits for a time.
    HoldFor(Duration),
}

/// Memory that a child may be using.
struct Shared(NonNull<Memory>);

// SAFETY: this process does not touch what it points to.
unsafe impl Send for Shared {}

impl Shared {
    fn new(held: [RawFd; HELD], task: Task) -> Self {
        // Written in place: a copy would copy the stack, too.
        let mut memory = Box::<Memory>::new_uninit();
        let fields = memory.as_mut_ptr();
        // SAFETY: every field is written that is not itself uninitialised memory.
        let memory = unsafe {
            (&raw mut (*fields).held).write(held);
            (&raw mut (*fields).task).write(task);
            memory.assume_init()
        };
        Self(NonNull::from(Box::leak(memory)))
    }

    /// Frees it.
    ///
    /// # Safety
    /// No child uses it.
    unsafe fn free(&self) {
        // SAFETY: it was leaked by `new`, and by contract there is no other user.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Starts a child that holds `own` and the sockets that were left to it. `None` when there is no
/// child.
fn start(own: [RawFd; 2], task: Task) -> Option<()> {
    reap();
    // Closes nothing, as no descriptor is that high; fails where the kernel lacks the call.
    if std::env::var_os(SWITCH).is_some() || close_range(RawFd::MAX, RawFd::MAX) != 0 {
        return None;
    }
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held = [own[0]; HELD];
    held[1] = own[1];
    for (place, socket) in held[2..].iter_mut().zip(left.iter()) {
        *place = socket.as_raw_fd();
    }
    held.sort_unstable();
    let memory = Shared::new(held, task);
    let shared = memory.0.as_ptr();
    // SAFETY: the child runs `run` only. It has a stack of its own, aligned for every
    // architecture, and reads its memory, which is not written any more and lives until the
    // child is reaped. It makes system calls and exits: it allocates, locks and drops
    // nothing. `libc::syscall` sets `errno`, which it shares with this thread, when a call
    // fails; none of those that it makes does.
    let pid = unsafe {
        let top = (&raw mut (*shared).held).cast();
        let flags = libc::CLONE_VM | libc::SIGCHLD;
        libc::clone(run, top, flags, shared.cast())
    };
    if pid == -1 {
        // SAFETY: there is no child.
        unsafe { memory.free() };
        return None;
    }
    CHILDREN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((Pid::from_raw(pid), memory));
    // The child has copies.
    left.clear();
    Some(())
}

fn reap() {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|(pid, memory)| {
        match waitpid(*pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                // SAFETY: it has ended.
                unsafe { memory.free() };
                false
            }
            Ok(_) => true,
            // It was reaped elsewhere, at an unknown time: its memory is not freed.
            Err(_) => false,
        }
    });
}

/// The child: closes all other descriptors, does its task, and exits.
extern "C" fn run(memory: *mut libc::c_void) -> libc::c_int {
    let memory: *const Memory = memory.cast();
    // SAFETY: this is the argument of `clone`. No reference is made to the whole, of which
    // the stack of this function is a part.
    let (held, task) = unsafe { ((*memory).held, &raw const (*memory).task) };
    let mut next = 0;
    for fd in held {
        if next < fd {
            close_range(next, fd - 1);
        }
        next = fd + 1;
    }
    close_range(next, RawFd::MAX);
    // SAFETY: the pointers are to live memory. The functions of the C library are not used:
    // they would read the state of the parent's thread.
    unsafe {
        libc::syscall(libc::SYS_chdir, c"/".as_ptr());
        match &*task {
            Task::Send(socket, request) => {
                let none = null::<libc::c_void>();
                libc::syscall(libc::SYS_sendto, *socket, request, REQUEST, 0, none, 0);
            }
            Task::HoldForRcu => {
                sleep(MOMENT);
                libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
                sleep(MOMENT);
            }
            Task::HoldFor(duration) => sleep(*duration),
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
    // SAFETY: the descriptors are not open, or the process is about to exit.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }
}
