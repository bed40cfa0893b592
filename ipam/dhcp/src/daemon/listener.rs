//! Where plugins come in: a socket of systemd's, or one of our own.

#![allow(unsafe_code)] // a descriptor that was passed is known by its number only

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

/// A listening socket. Our own is removed when this is dropped; systemd's is
/// systemd's.
pub struct Listener {
    /// Does not block.
    pub socket: UnixListener,
    own: Option<PathBuf>,
}

impl Listener {
    /// The socket that systemd passed, or a new one at `path`.
    ///
    /// # Errors
    /// When systemd passed more than one, or `path` cannot be listened at.
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
            // SAFETY: systemd says, by our process id, that this descriptor is ours,
            // and nothing else in this process knows it.
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
            // The daemon before us was killed. That nobody takes our place now is
            // what the lock on the leases is for.
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

/// Whether `path` is a socket at which nobody listens.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    is_socket && refused
}

/// A file with our process id, removed when this is dropped.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes it: mode 0644, no newline.
    ///
    /// # Errors
    /// In the words of the Go daemon, when `path` is not absolute or cannot be written.
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
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_that_nobody_listens_at_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/dhcp.sock");
        let mut first = Listener::open(&path).unwrap();
        let text = Listener::open(&path).err().unwrap().to_string();
        assert!(text.ends_with("bind: address already in use"), "{text}");
        // Killed: the file stays.
        first.own = None;
        drop(first);
        assert!(path.exists());
        let second = Listener::open(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(Listener::open(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_pidfile_is_absolute_and_goes_with_its_daemon() {
        assert_eq!(
            PidFile::write("pid").err().unwrap().to_string(),
            "Error writing pidfile \"pid\": path not absolute"
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::write(path.to_str().unwrap()).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            std::process::id().to_string()
        );
        drop(file);
        assert!(!path.exists());
    }
}
