//! Private namespaces for the calling thread: the only place that makes them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

/// Moves the calling thread into new network and mount namespaces. `/run` and `/var/lib` are
/// empty there, `/run/netns` exists, and `/sys` shows the devices of the new namespace.
///
/// # Errors
/// The step that failed and, where the machine forbids namespaces, the setting to change.
pub fn enter() -> Result<(), String> {
    let flags = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(flags).map_err(forbidden)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    let made = mount(None::<&str>, "/", None::<&str>, private, None::<&str>);
    step("make mounts private", made)?;
    // A new sysfs has no cgroups, which the container runtimes need. Keep a handle on them.
    let cgroup = File::open("/sys/fs/cgroup").map_err(|e| format!("open /sys/fs/cgroup: {e}"))?;
    // Hide the machine's runtime files, locks, named namespaces and plugin state.
    for (kind, path) in [("tmpfs", "/run"), ("tmpfs", "/var/lib"), ("sysfs", "/sys")] {
        let hidden = mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>);
        step(&format!("mount {kind} on {path}"), hidden)?;
    }
    let handle = format!("/proc/thread-self/fd/{}", cgroup.as_raw_fd());
    bind(Path::new(&handle), Path::new("/sys/fs/cgroup"))?;
    fs::create_dir("/run/netns").map_err(|e| format!("make /run/netns: {e}"))
}

/// Moves the calling thread into a new network namespace, and leaves its mounts as they are.
///
/// # Errors
/// As [`enter`].
pub fn enter_network() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(forbidden)
}

/// `mount --rbind from to`
pub(crate) fn bind(from: &Path, to: &Path) -> Result<(), String> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    let bound = mount(Some(from), to, None::<&str>, flags, None::<&str>);
    step(
        &format!("bind {} to {}", from.display(), to.display()),
        bound,
    )
}

/// Remounts `/` read-only. Mounts below it, such as `/run`, stay as they are.
pub(crate) fn make_root_read_only() -> Result<(), String> {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    // In a user namespace, flags that the mount has already are locked: keep them.
    let has = statvfs("/").map_err(|e| format!("statvfs /: {e}"))?.flags();
    for (have, keep) in [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if has.contains(have) {
            flags |= keep;
        }
    }
    let done = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    step("make / read-only", done)
}

fn step(what: &str, done: nix::Result<()>) -> Result<(), String> {
    done.map_err(|e| format!("cannot make the sandbox: {what}: {e}"))
}

fn forbidden(errno: Errno) -> String {
    let why = match errno {
        Errno::EPERM => {
            "CAP_SYS_ADMIN is missing: run the tests as root, or under `unshare -rnm`; the latter needs \
             kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) \
             and user.max_user_namespaces > 0, and no seccomp filter that forbids unshare"
        }
        Errno::ENOSPC => "user.max_net_namespaces or user.max_mnt_namespaces is used up: raise it",
        Errno::EINVAL => "the kernel lacks CONFIG_NET_NS or CONFIG_NAMESPACES",
        _ => "unexpected",
    };
    format!("cannot make the sandbox: unshare network and mount namespaces: {errno}: {why}")
}
