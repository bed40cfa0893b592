//! Files of the state directory: complete or absent, and never opened through a link.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use cni::SystemError;
pub use cni::file::{is_absent, overwrite, remove, replace};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{AccessFlags, access, linkat};

/// The longest reservation in bytes: container id and interface come from environment
/// variables, which the kernel limits to 128 KiB each (`MAX_ARG_STRLEN`, execve(2)).
const LONGEST: u64 = 256 * 1024;

/// Turns the error of a system call into `<action> <path>: <cause> (<errno>)`.
pub fn failed<'a>(action: &'a str, path: &'a Path) -> impl Fn(io::Error) -> anyhow::Error + 'a {
    move |error| {
        let op = format!("{action} {}", path.display());
        match errno(&error) {
            Some(errno) => SystemError::new(op, errno).into(),
            None => anyhow::Error::from(error).context(op),
        }
    }
}

/// Content and metadata of a file of ours; `None` if it does not exist.
///
/// # Errors
/// Also if the path holds a foreign object ([`cni::file::is_foreign`]).
pub fn read(path: &Path) -> io::Result<Option<(String, Metadata)>> {
    match cni::file::read(path, LONGEST) {
        Ok((content, metadata)) => {
            let content = String::from_utf8_lossy(&content).into_owned();
            Ok(Some((content, metadata)))
        }
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a directory that only its owner can use; an existing one stays unchanged. Its
/// parents may belong to other programs and get the usual mode.
pub fn make_private(dir: &Path) -> anyhow::Result<()> {
    let make = |dir: &Path| {
        let above = dir.parent().unwrap_or(Path::new("/"));
        match DirBuilder::new().recursive(true).mode(0o755).create(above) {
            // Also returned if a stat(2) of the directory failed for a moment.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && above.is_dir() => {}
            made => made?,
        }
        let is_other = || std::fs::symlink_metadata(dir).is_ok() && !dir.is_dir();
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !is_other() => Ok(()),
            made => made,
        }
    };
    make(dir).map_err(failed("make directory", dir))
}

/// Fails if a network's directory is a symbolic link: it may redirect our writes. The data
/// directory above it is the operator's choice.
pub fn refuse_link(dir: &Path) -> anyhow::Result<()> {
    if std::fs::symlink_metadata(dir).is_ok_and(|dir| dir.is_symlink()) {
        anyhow::bail!("open {}: is a symbolic link", dir.display());
    }
    Ok(())
}

/// Creates `path` with `content`; `None` if it already exists. A kill leaves a complete file or
/// none; an empty one on file systems without O_TMPFILE (NFS, overlayfs before Linux 6.3).
pub fn create(path: &Path, content: &str) -> io::Result<Option<File>> {
    let created = match create_nameless(path, content) {
        // /proc may be missing, too.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => create_named(path, content),
        created => created,
    };
    match created {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file gets its name when it is complete, so a kill before that leaves nothing.
fn create_nameless(path: &Path, content: &str) -> io::Result<File> {
    let file = nameless(path.parent().unwrap_or(Path::new(".")), content)?;
    match linkat(&file, "", AT_FDCWD, path, AtFlags::AT_EMPTY_PATH) {
        Err(Errno::ENOENT) => link_by_proc(&file, path)?,
        linked => linked?,
    }
    Ok(file)
}

/// For a process without CAP_DAC_READ_SEARCH, which AT_EMPTY_PATH needs (open(2), O_TMPFILE). It is slower
/// (`cni::own_netns`).
fn link_by_proc(file: &File, path: &Path) -> nix::Result<()> {
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    linkat(AT_FDCWD, name.as_str(), AT_FDCWD, path, follow)
}

/// A file in `dir` without a name: it disappears when it is closed, unless it gets one.
fn nameless(dir: &Path, content: &str) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .mode(0o600)
        .open(dir)?;
    file.write_all(content.as_bytes())?;
    Ok(file)
}

/// As the Go plugin does.
pub fn create_named(path: &Path, content: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if let Err(error) = file.write_all(content.as_bytes()) {
        remove(path)?;
        return Err(error);
    }
    Ok(file)
}

/// Fails if no file can be created in `dir`. Leaves nothing behind.
pub fn try_write(dir: &Path) -> anyhow::Result<()> {
    let written = match nameless(dir, "?") {
        // The errors of file systems without O_TMPFILE, and of old kernels (open(2)).
        Err(error) if matches!(errno(&error), Some(Errno::EOPNOTSUPP | Errno::EISDIR)) => {
            access(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
        }
        written => written.map(drop),
    };
    written.map_err(failed("write to", dir))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
