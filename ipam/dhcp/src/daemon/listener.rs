//! The socket that plugins connect to, from systemd or our own; the pidfile.

#![allow(unsafe_code)] // systemd passes a descriptor by its number

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use cni::{file, reason};

use crate::client::connect;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// A listening socket. Our own file is removed on drop; systemd removes its own.
pub struct Listener {
    /// In non-blocking mode.
    pub socket: UnixListener,
    own: Option<PathBuf>,
}

impl Listener {
    /// The socket that systemd passed, or a new one at `path`.
    ///
    /// # Errors
    /// When systemd passed more than one, or `path` cannot be bound.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = match passed()? {
            Some(socket) => Self { socket, own: None },
            None => Self {
                socket: listen(path)?,
                own: Some(path.to_owned()),
            },
        };
        opened.socket.set_nonblocking(true)?;
        Ok(opened)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.own {
            let _ = fs::remove_file(path);
        }
    }
}

fn passed() -> Result<Option<UnixListener>> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => Ok(None),
        Some(1) => {
            // SAFETY: LISTEN_PID is our process id, so systemd opened this descriptor for
            // us; nothing else in this process uses it.
            let fd = unsafe { OwnedFd::from_raw_fd(FIRST_PASSED) };
            Ok(Some(UnixListener::from(fd)))
        }
        Some(many) => {
            bail!("Error getting listener: Too many ({many}) FDs passed through socket activation")
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    let fault = |what: &str, error: &std::io::Error| {
        let (path, why) = (path.display(), reason(error));
        anyhow!("Error getting listener: listen unix {path}: {what}: {why}")
    };
    if let Some(dir) = path.parent() {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(|error| fault("mkdir", &error))?;
    }
    let bound = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
            // The previous daemon was killed. The lock on the leases keeps other daemons from
            // doing the same at this moment.
            fs::remove_file(path).map_err(|error| fault("remove", &error))?;
            UnixListener::bind(path)
        }
        bound => bound,
    };
    let socket = bound.map_err(|error| fault("bind", &error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        .map_err(|error| fault("chmod", &error))?;
    Ok(socket)
}

/// Whether `path` is a socket that no process listens on.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    is_socket && refused
}

/// A file with our process id, removed on drop.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it: mode 0644, no newline.
    ///
    /// # Errors
    /// With the Go daemon's text when `path` is not absolute or cannot be written.
    pub fn write(path: &str) -> Result<Self> {
        if !Path::new(path).is_absolute() {
            bail!("Error writing pidfile {path:?}: path not absolute");
        }
        file::overwrite(Path::new(path), std::process::id().to_string().as_bytes())
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)))
            .map_err(|error| anyhow!("Error writing pidfile {path:?}: {}", reason(&error)))?;
        Ok(Self(path.into()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_a_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(Listener::open(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_pidfile_is_absolute() {
        let text = PidFile::write("pid").err().unwrap().to_string();
        assert_eq!(text, "Error writing pidfile \"pid\": path not absolute");
    }
}
