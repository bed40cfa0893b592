//! System calls of this machine by name, and how each of them may fail.

use nix::errno::Errno;
use nix::libc;

/// Numbers of arch/x86/entry/syscalls/syscall_64.tbl, as far as plugins and what they execute use them.
const NAMES: &[(u64, &str)] = &[
    (0, "read"),
    (1, "write"),
    (2, "open"),
    (3, "close"),
    (4, "stat"),
    (5, "fstat"),
    (6, "lstat"),
    (7, "poll"),
    (8, "lseek"),
    (9, "mmap"),
    (10, "mprotect"),
    (11, "munmap"),
    (12, "brk"),
    (13, "rt_sigaction"),
    (14, "rt_sigprocmask"),
    (16, "ioctl"),
    (17, "pread64"),
    (20, "writev"),
    (21, "access"),
    (22, "pipe"),
    (24, "sched_yield"),
    (25, "mremap"),
    (28, "madvise"),
    (32, "dup"),
    (33, "dup2"),
    (35, "nanosleep"),
    (39, "getpid"),
    (41, "socket"),
    (42, "connect"),
    (43, "accept"),
    (44, "sendto"),
    (45, "recvfrom"),
    (46, "sendmsg"),
    (47, "recvmsg"),
    (48, "shutdown"),
    (49, "bind"),
    (50, "listen"),
    (51, "getsockname"),
    (53, "socketpair"),
    (54, "setsockopt"),
    (55, "getsockopt"),
    (56, "clone"),
    (57, "fork"),
    (58, "vfork"),
    (59, "execve"),
    (60, "exit"),
    (61, "wait4"),
    (62, "kill"),
    (63, "uname"),
    (72, "fcntl"),
    (73, "flock"),
    (74, "fsync"),
    (75, "fdatasync"),
    (77, "ftruncate"),
    (79, "getcwd"),
    (80, "chdir"),
    (82, "rename"),
    (83, "mkdir"),
    (84, "rmdir"),
    (86, "link"),
    (87, "unlink"),
    (88, "symlink"),
    (89, "readlink"),
    (90, "chmod"),
    (91, "fchmod"),
    (95, "umask"),
    (96, "gettimeofday"),
    (97, "getrlimit"),
    (102, "getuid"),
    (104, "getgid"),
    (107, "geteuid"),
    (108, "getegid"),
    (109, "setpgid"),
    (112, "setsid"),
    (131, "sigaltstack"),
    (137, "statfs"),
    (138, "fstatfs"),
    (157, "prctl"),
    (158, "arch_prctl"),
    (186, "gettid"),
    (202, "futex"),
    (203, "sched_setaffinity"),
    (204, "sched_getaffinity"),
    (217, "getdents64"),
    (222, "timer_create"),
    (223, "timer_settime"),
    (218, "set_tid_address"),
    (228, "clock_gettime"),
    (230, "clock_nanosleep"),
    (231, "exit_group"),
    (232, "epoll_wait"),
    (233, "epoll_ctl"),
    (247, "waitid"),
    (257, "openat"),
    (258, "mkdirat"),
    (262, "newfstatat"),
    (263, "unlinkat"),
    (264, "renameat"),
    (265, "linkat"),
    (267, "readlinkat"),
    (268, "fchmodat"),
    (269, "faccessat"),
    (270, "pselect6"),
    (271, "ppoll"),
    (272, "unshare"),
    (273, "set_robust_list"),
    (280, "utimensat"),
    (285, "fallocate"),
    (288, "accept4"),
    (281, "epoll_pwait"),
    (289, "signalfd4"),
    (290, "eventfd2"),
    (291, "epoll_create1"),
    (292, "dup3"),
    (293, "pipe2"),
    (302, "prlimit64"),
    (307, "sendmmsg"),
    (308, "setns"),
    (316, "renameat2"),
    (318, "getrandom"),
    (332, "statx"),
    (334, "rseq"),
    (424, "pidfd_send_signal"),
    (434, "pidfd_open"),
    (435, "clone3"),
    (436, "close_range"),
    (439, "faccessat2"),
];

/// The name of a call with this second argument; its number where we have no name. fcntl(2) has one
/// where it copies a descriptor. With other commands it reads or sets flags, which cannot fail: musl's
/// fdopendir(3) would take a failure for another one.
pub fn name(number: u64, second: u64) -> String {
    let copies = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC].map(|it| it as u64);
    let is_named =
        |(it, name): &&(u64, &str)| *it == number && (*name != "fcntl" || copies.contains(&second));
    let known = NAMES.iter().find(is_named);
    known.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// The same name, if we have it.
pub fn known(name: &str) -> Option<&'static str> {
    let known = NAMES.iter().find(|(_, it)| *it == name);
    known.map(|(_, name)| *name)
}

/// The errors with which a call may fail when a resource runs out; empty for calls that cannot fail.
pub fn errors(call: &str) -> &'static [Errno] {
    use Errno::*;
    match call {
        "read" | "pread64" => &[EIO, EINTR],
        "write" | "writev" => &[ENOSPC, EIO, EINTR],
        "open" | "openat" => &[EMFILE, EACCES, ENOSPC],
        "close" => &[EIO],
        "stat" | "fstat" | "lstat" | "newfstatat" | "statx" | "access" | "faccessat" => &[EIO],
        "statfs" | "fstatfs" | "readlink" | "readlinkat" | "getdents64" => &[EIO],
        "mmap" | "mremap" | "brk" | "mprotect" | "munmap" => &[ENOMEM],
        "socket" => &[EMFILE, EPERM],
        "bind" | "getsockname" | "setsockopt" | "connect" => &[ENOMEM],
        "sendto" | "sendmsg" => &[ENOBUFS, EPERM, EINTR],
        "recvfrom" | "recvmsg" => &[ENOBUFS, ENOMEM, EINTR],
        "poll" | "ppoll" => &[EINTR, ENOMEM],
        "clone" | "clone3" | "fork" | "vfork" => &[EAGAIN],
        "execve" => &[ENOMEM, EACCES],
        "wait4" | "waitid" | "nanosleep" | "clock_nanosleep" | "getrandom" => &[EINTR],
        "pipe" | "pipe2" | "dup" | "dup2" | "fcntl" => &[EMFILE],
        "setns" => &[EPERM, ENOMEM],
        "timer_create" => &[EAGAIN],
        "unshare" | "ioctl" | "fsopen" | "fsconfig" | "fsmount" => &[EPERM],
        "mkdir" | "mkdirat" | "rename" | "renameat" => &[ENOSPC, EACCES],
        "link" | "linkat" | "symlink" => &[ENOSPC, EPERM],
        "unlink" | "unlinkat" | "rmdir" => &[EIO, EBUSY],
        "ftruncate" | "fsync" | "fdatasync" | "fallocate" => &[EIO, EINTR],
        "utimensat" | "fchmod" | "chmod" => &[EPERM, EIO],
        "flock" => &[EINTR, ENOLCK],
        _ => &[],
    }
}

/// Whether a program may end without an error message because this call failed: it cannot go on without memory.
pub fn is_memory(call: &str) -> bool {
    matches!(call, "mmap" | "mremap" | "brk" | "mprotect" | "munmap")
}

/// Whether this call may change the kernel's tables, a file or another process.
pub fn tells_others(call: &str) -> bool {
    let calls = [
        "sendto",
        "sendmsg",
        "sendmmsg",
        "write",
        "writev",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "execve",
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "mkdir",
        "mkdirat",
        "rmdir",
        "ftruncate",
        "kill",
        "exit_group",
    ];
    calls.contains(&call)
}

/// Whether another process can notice this call.
pub fn leaves_a_mark(call: &str) -> bool {
    !matches!(
        call,
        "read"
            | "pread64"
            | "readlink"
            | "readlinkat"
            | "getdents64"
            | "access"
            | "faccessat"
            | "lseek"
            | "stat"
            | "fstat"
            | "lstat"
            | "newfstatat"
            | "statx"
            | "statfs"
            | "fstatfs"
            | "mmap"
            | "mremap"
            | "brk"
            | "mprotect"
            | "munmap"
            | "madvise"
            | "rt_sigaction"
            | "rt_sigprocmask"
            | "sigaltstack"
            | "poll"
            | "ppoll"
            | "epoll_wait"
            | "epoll_pwait"
            | "epoll_ctl"
            | "signalfd4"
            | "futex"
            | "getpid"
            | "gettid"
            | "getuid"
            | "getgid"
            | "geteuid"
            | "getegid"
            | "getrandom"
            | "uname"
            | "arch_prctl"
            | "set_tid_address"
            | "set_robust_list"
            | "rseq"
            | "prlimit64"
            | "getrlimit"
            | "sched_getaffinity"
            | "sched_yield"
            | "clock_gettime"
            | "gettimeofday"
            | "getsockname"
            | "recvfrom"
            | "recvmsg"
    )
}
