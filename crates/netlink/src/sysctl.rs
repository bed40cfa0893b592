//! Kernel settings under /proc/sys, of the calling thread's network namespace.
//!
//! A key is a path (`net/ipv4/conf/eth0.5/arp_notify`), not the dotted form:
//! an interface's name may hold dots.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::Error;

/// The value of `key`, without the newline.
///
/// # Errors
/// `ENOENT` when there is no such key: IPv6 is off, the interface is gone.
pub fn read(key: &str) -> Result<String, Error> {
    let op = || format!("read sysctl {key}");
    read_value(&path(key, op)?).map_err(|error| Error::io(op(), &error))
}

/// The value in a file of /proc or /sys, without the newline.
pub(crate) fn read_value(path: &Path) -> io::Result<String> {
    let mut buffer = [0; LONGEST];
    let length = File::open(path)?.read(&mut buffer)?;
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
    open(key, op)?
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
    let path = path(key, op)?;
    let failed = |error: io::Error| Error::io(op(), &error);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        // The permissions of settings bind root, too.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            write(key, value)?;
            return Ok(None);
        }
        opened => opened.map_err(failed)?,
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
    open(key, || format!("write sysctl {key}")).map(drop)
}

fn open(key: &str, op: impl Fn() -> String) -> Result<File, Error> {
    OpenOptions::new()
        .write(true)
        .open(path(key, &op)?)
        .map_err(|error| Error::io(op(), &error))
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

fn path(key: &str, op: impl Fn() -> String) -> Result<PathBuf, Error> {
    // An interface name must not lead out of /proc/sys.
    let outside = key
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..");
    if outside {
        return Err(Error::new(op(), Errno::EINVAL));
    }
    Ok(Path::new("/proc/sys").join(key))
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
