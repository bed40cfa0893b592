//! Files of the state directory: whole or absent, never through a link.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{AccessFlags, access, linkat};

/// No owner is longer: it came in through one environment variable, of which
/// the kernel takes 128 KiB (`MAX_ARG_STRLEN`, execve(2)).
const LONGEST: u64 = 256 * 1024;

/// Turns the error of a system call into `<action> <path>: <cause> (<errno>)`.
pub fn failed<'a>(action: &'a str, path: &'a Path) -> impl Fn(io::Error) -> anyhow::Error + 'a {
    move |error| {
        let cause = match errno(&error) {
            Some(errno) => format!("{} ({})", errno.desc().to_lowercase(), errno as i32),
            None => error.to_string(),
        };
        anyhow::anyhow!("{action} {}: {cause}", path.display())
    }
}

/// The content of a regular file, and what else is known of it. `None` where there is
/// nothing, or something that we did not put there: a link, a directory, a pipe.
pub fn read(path: &Path) -> io::Result<Option<(String, Metadata)>> {
    read_at_most(path, LONGEST)
}

/// The same for a file of any length up to `limit` bytes; what is beyond is not read.
pub fn read_at_most(path: &Path, limit: u64) -> io::Result<Option<(String, Metadata)>> {
    // O_NONBLOCK: opening a pipe must not wait for its writer.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if is_absent(&error) || is_link(&error) => return Ok(None),
        // A socket, or a device without a driver.
        Err(error) if errno(&error) == Some(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    // One read(2) where the end would otherwise be felt for: a directory may hold 65,000 of them.
    let length = metadata.len().min(limit);
    let mut content = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut content)?;
    let content = String::from_utf8_lossy(&content).into_owned();
    Ok(Some((content, metadata)))
}

/// Makes a directory of state for root's eyes only; one that is there stays as it
/// is. What lies above it may be others': it is made as everybody makes it.
pub fn make_private(dir: &Path) -> anyhow::Result<()> {
    let make = |dir: &Path| {
        let above = dir.parent().unwrap_or(Path::new("/"));
        match DirBuilder::new().recursive(true).mode(0o755).create(above) {
            // Also said of one that could not be looked at for a moment.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && above.is_dir() => {}
            made => made?,
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    };
    make(dir).map_err(failed("make directory", dir))
}

/// Fails where a network's directory is a symbolic link: nobody but who wants
/// our files elsewhere puts one there. The data directory above is the operator's choice.
pub fn refuse_link(dir: &Path) -> anyhow::Result<()> {
    let is_link = std::fs::symlink_metadata(dir).is_ok_and(|dir| dir.is_symlink());
    match is_link {
        true => anyhow::bail!("open {}: is a symbolic link", dir.display()),
        false => Ok(()),
    }
}

/// Makes `path` with `content`, at once or not at all; false if it is taken.
/// `spare` is a name beside it that nobody else uses while we hold the lock.
pub fn create_whole(path: &Path, content: &str, spare: &Path) -> io::Result<Option<File>> {
    let linked = match create_nameless(path, content) {
        // O_TMPFILE is not everywhere (NFS, overlayfs before Linux 6.3), nor is /proc.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            create_beside(path, content, spare)
        }
        linked => linked,
    };
    match linked {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file gets its name when it is complete: whatever kills us before leaves nothing.
fn create_nameless(path: &Path, content: &str) -> io::Result<File> {
    let file = nameless(path.parent().unwrap_or(Path::new(".")), content)?;
    // AT_EMPTY_PATH would need a capability (open(2), O_TMPFILE).
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    linkat(AT_FDCWD, name.as_str(), AT_FDCWD, path, follow)?;
    Ok(file)
}

/// A file in `dir` that is gone when it is closed, unless it gets a name.
fn nameless(dir: &Path, content: &str) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_TMPFILE.bits())
        .mode(0o600)
        .open(dir)?;
    file.write_all(content.as_bytes())?;
    Ok(file)
}

/// The same with a name in between. A kill may leave that name: it is removed,
/// never written to, because it may be a second name of a reservation by then.
pub fn create_beside(path: &Path, content: &str, spare: &Path) -> io::Result<File> {
    remove(spare)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(spare)?;
    let linked = file
        .write_all(content.as_bytes())
        .and_then(|()| std::fs::hard_link(spare, path));
    // After the link: a name that cannot be removed now is removed at the next call.
    let _ = std::fs::remove_file(spare);
    linked.map(|()| file)
}

/// Makes `path` hold `content`, in place. A kill in between leaves a mixture
/// of old and new; for what must be whole there is [`create_whole`].
pub fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .mode(0o600)
        .open(path)?;
    file.write_all(content.as_bytes())?;
    // Cut off what was longer, rather than empty the file first: ext4 takes the
    // latter for a replacement and writes to the disk when it is closed.
    let length = content.len() as u64;
    match file.metadata()?.len() > length {
        true => file.set_len(length),
        false => Ok(()),
    }
}

/// Makes `path` a new file with `content`, in place of what may be there: a link is not
/// followed, and ext4 does not write a file to the disk because it was emptied.
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    let create = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    };
    let mut file = match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            remove(path)?;
            create()?
        }
        created => created?,
    };
    file.write_all(content.as_bytes())
}

/// Removes a name; one that is absent already is as good.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Fails where no file can be written, for whatever reason. Leaves nothing.
pub fn try_write(dir: &Path) -> anyhow::Result<()> {
    let written = match nameless(dir, "?") {
        // What file systems without O_TMPFILE, and old kernels, answer (open(2)).
        Err(error) if matches!(errno(&error), Some(Errno::EOPNOTSUPP | Errno::EISDIR)) => {
            access(dir, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
        }
        written => written.map(drop),
    };
    written.map_err(failed("write to", dir))
}

/// Whether the error says that there is no such file.
pub fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

/// What O_NOFOLLOW answers for a symbolic link.
fn is_link(error: &io::Error) -> bool {
    errno(error) == Some(Errno::ELOOP)
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
