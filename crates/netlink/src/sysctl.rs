//! Kernel settings under /proc/sys, of the calling thread's network namespace.
//!
//! A key is a path (`net/ipv4/conf/eth0.5/arp_notify`), not the dotted form:
//! an interface's name may hold dots.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat},
    sys::{
        stat::Mode,
        statvfs::{FsFlags, statvfs},
    },
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::Error;

/// The root of the instance of proc of [`OwnProc`].
static OWN_PROC: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// How many pods with settings a node has at least, where [`OwnProc`] saves time.
pub const MANY_PODS: usize = 64;

/// If an [`OwnProc`] lives longer than this, the node is busy. Then the plugin waits for RCU itself: while
/// it waits, other processes have the processor, and a child would only cost time.
const QUICK: Duration = Duration::from_millis(4);

/// While this value lives, all settings are opened in an instance of proc for this process alone.
///
/// In one instance, the directories `net/ipv6` of all namespaces are entries with the same name, and
/// a lookup compares them one by one (`proc_sys_compare`, fs/proc/proc_sysctl.c). The entries of a
/// pod stay as long as it lives. An instance costs about 0.1 ms. At its end the kernel waits for RCU,
/// which a child does ([`deferred::close`]): 0.2 ms on a quiet node, up to 6 ms beside other changes
/// of namespaces. When 500 pods start at once, children would take 5 % of the processor time of their
/// ADDs.
#[derive(Debug)]
pub struct OwnProc {
    begin: Instant,
}

impl OwnProc {
    /// Makes an instance. `None` where the kernel makes none (rootless runtimes, Linux before 5.2),
    /// and where /proc/sys is read-only: settings are opened in /proc as before.
    pub fn new() -> Option<Self> {
        let begin = Instant::now();
        let flags = statvfs("/proc/sys").ok()?.flags();
        if flags.contains(FsFlags::ST_RDONLY) {
            return None;
        }
        *lock_own_proc() = Some(own_proc().ok()?);
        Some(Self { begin })
    }
}

impl Drop for OwnProc {
    fn drop(&mut self) {
        let proc = lock_own_proc().take();
        if let Some(proc) = proc.filter(|_| self.begin.elapsed() < QUICK) {
            deferred::close(proc.as_fd());
        }
    }
}

fn lock_own_proc() -> MutexGuard<'static, Option<OwnedFd>> {
    OWN_PROC.lock().unwrap_or_else(PoisonError::into_inner)
}

fn own_proc() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The value of `key`, without the newline.
///
/// # Errors
/// `ENOENT` when there is no such key: IPv6 is off, the interface is gone.
pub fn read(key: &str) -> Result<String, Error> {
    let op = || format!("read sysctl {key}");
    let file = open(key, OFlag::O_RDONLY, op)?;
    value(file).map_err(|error| Error::io(op(), &error))
}

/// The value in a file of /proc or /sys, without the newline.
pub(crate) fn read_value(path: &Path) -> io::Result<String> {
    value(File::open(path)?)
}

fn value(mut file: File) -> io::Result<String> {
    let mut buffer = [0; LONGEST];
    let length = file.read(&mut buffer)?;
    Ok(text(&buffer[..length]))
}

/// Every value is shorter, in bytes, so that one read is enough.
const LONGEST: usize = 1024;

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end().to_owned()
}

/// Sets `key` to `value`: `sysctl -w KEY=VALUE`.
///
/// # Errors
/// `ENOENT` when there is no such key, `EROFS` where /proc/sys is read-only,
/// `EINVAL` when the kernel refuses the value.
pub fn write(key: &str, value: &str) -> Result<(), Error> {
    let op = || format!("write {value} to sysctl {key}");
    open(key, OFlag::O_WRONLY, op)?
        .write_all(value.as_bytes())
        .map_err(|error| Error::io(op(), &error))
}

/// Sets `key` to `value` and returns the value it had; `None` if the setting can only be written,
/// as `net/ipv4/route/flush`. The file is opened once: see "Settings go through netlink" in
/// ARCHITECTURE.md for what that costs.
///
/// # Errors
/// As [`write`].
pub fn exchange(key: &str, value: &str) -> Result<Option<String>, Error> {
    let op = || format!("write {value} to sysctl {key}");
    let failed = |error: io::Error| Error::io(op(), &error);
    let file = match open(key, OFlag::O_RDWR, op) {
        // The permissions of settings bind root, too.
        Err(error) if error.errno() == Errno::EACCES => {
            write(key, value)?;
            return Ok(None);
        }
        opened => opened?,
    };
    let mut buffer = [0; LONGEST];
    let length = file.read_at(&mut buffer, 0).map_err(failed)?;
    // At the beginning: the kernel ignores what is written elsewhere (`sysctl_writes_strict`).
    file.write_at(value.as_bytes(), 0).map_err(failed)?;
    Ok(Some(text(&buffer[..length])))
}

/// Checks whether `key` could be set: opens it for writing, and changes nothing.
///
/// # Errors
/// As [`write`].
pub fn may_write(key: &str) -> Result<(), Error> {
    open(key, OFlag::O_WRONLY, || format!("write sysctl {key}")).map(drop)
}

/// Sets `key` to `value` unless it has that value, and returns whether it has written. A setting
/// that is right may be in a read-only /proc/sys.
///
/// # Errors
/// As [`read`] and [`write`].
pub fn write_if_different(key: &str, value: &str) -> Result<bool, Error> {
    if read(key)? == value {
        return Ok(false);
    }
    write(key, value)?;
    Ok(true)
}

/// The key of a setting of one interface: `net/ipv6/conf/eth0/accept_ra` for
/// `("ipv6", "eth0", "accept_ra")`.
pub fn interface_key(family: &str, interface: &str, setting: &str) -> String {
    format!("net/{family}/conf/{interface}/{setting}")
}

fn open(key: &str, flags: OFlag, op: impl Fn() -> String) -> Result<File, Error> {
    // An interface name must not lead out of /proc/sys.
    let outside = key
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..");
    if outside {
        return Err(Error::new(op(), Errno::EINVAL));
    }
    let flags = flags | OFlag::O_CLOEXEC;
    let opened = match &*lock_own_proc() {
        Some(proc) => openat(
            proc,
            Path::new("sys").join(key).as_path(),
            flags,
            Mode::empty(),
        ),
        None => openat(
            AT_FDCWD,
            Path::new("/proc/sys").join(key).as_path(),
            flags,
            Mode::empty(),
        ),
    };
    opened
        .map(File::from)
        .map_err(|errno| Error::new(op(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leads_out() {
        for key in ["net/../../passwd", "/etc/passwd", "", "net//ipv4", "./net"] {
            assert_eq!(read(key).unwrap_err().errno(), Errno::EINVAL, "{key}");
            assert_eq!(write(key, "1").unwrap_err().errno(), Errno::EINVAL, "{key}");
        }
    }

    #[test]
    fn a_value_comes_without_its_newline() {
        assert_eq!(read("kernel/ostype").unwrap(), "Linux");
        let error = read("net/nope").unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(
            error.to_string(),
            "read sysctl net/nope: no such file or directory (2)"
        );
    }

    #[test]
    fn an_interface_may_have_dots_in_its_name() {
        assert_eq!(
            interface_key("ipv4", "eth0.5", "arp_notify"),
            "net/ipv4/conf/eth0.5/arp_notify"
        );
    }
}
