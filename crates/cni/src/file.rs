//! Files of our state on disk, safe against other objects in their place.
//!
//! Other programs with root may write to the same directories, and a power failure may leave
//! anything there. A pipe blocks the program that opens it, a symbolic link leads to another
//! program's file, and a sparse file of a gigabyte fills the memory. So files are opened
//! without blocking and without following links, must be regular files, and are read up to a
//! limit. Anything else is *foreign* ([`is_foreign`]): the error names it, and the caller
//! decides whether it can do without the file.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// The limit for a configuration, a cached result and standard input, in bytes. The longest
/// real document, a list of some thousand peers, has half a megabyte.
pub const LONGEST: u64 = 16 * 1024 * 1024;

/// Major and minor number of `/dev/null` (null(4)).
const NULL_DEVICE: u64 = nix::sys::stat::makedev(1, 3);

/// The object in the place of a file, such as `is a pipe, not a regular file`.
#[derive(Debug)]
struct Foreign(String);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Foreign {}

/// Whether the error is about an object that is not a file of ours: not a regular file, or
/// longer than the limit.
pub fn is_foreign(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Foreign>())
}

/// Whether the file does not exist.
pub fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

/// Opens a file of ours with `flags`, such as `O_RDONLY`. With `O_CREAT`, only its owner can
/// read a new file.
///
/// # Errors
/// A foreign one ([`is_foreign`]) for anything but a regular file, which stays unchanged.
pub fn open(path: &Path, flags: OFlag) -> io::Result<(File, Metadata)> {
    open_any(path, flags | OFlag::O_NOFOLLOW)
}

fn open_any(path: &Path, flags: OFlag) -> io::Result<(File, Metadata)> {
    // O_NONBLOCK: opening a pipe must not wait for its other end.
    // O_NOCTTY: a terminal must not become our controlling terminal.
    let flags = flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let opened = loop {
        match nix::fcntl::open(path, flags, mode) {
            Err(Errno::EINTR) => {}
            opened => break opened,
        }
    };
    let file = File::from(opened.map_err(|errno| match errno {
        // A link with O_NOFOLLOW; a loop of links without it.
        Errno::ELOOP => foreign("is a symbolic link, not a regular file"),
        // Opened for writing, or with O_CREAT.
        Errno::EISDIR => foreign("is a directory, not a regular file"),
        // A pipe only if it is opened for writing and has no reader.
        Errno::ENXIO => foreign("is a socket, a pipe or a device, not a regular file"),
        errno => errno.into(),
    })?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(not_regular(&metadata));
    }
    Ok((file, metadata))
}

/// Makes a directory below `/run/podwire`, and that one, for root alone.
///
/// # Errors
/// A foreign one ([`is_foreign`]) if either is something else: a symbolic link would lead to
/// another program's files.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    for dir in path.parent().into_iter().chain([path]) {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(dir)?.is_dir() {
                    return Err(foreign(format!("{} is not a directory", dir.display())));
                }
            }
            made => made?,
        }
    }
    Ok(())
}

fn foreign(what: impl Into<String>) -> io::Error {
    io::Error::other(Foreign(what.into()))
}

fn not_regular(metadata: &Metadata) -> io::Error {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_fifo() => "pipe",
        () if kind.is_dir() => "directory",
        () if kind.is_socket() => "socket",
        () => "device",
    };
    foreign(format!("is a {kind}, not a regular file"))
}

/// Content and metadata of a file of at most `limit` bytes.
///
/// # Errors
/// A foreign one ([`is_foreign`]) for anything but a regular file, and for a longer file.
pub fn read(path: &Path, limit: u64) -> io::Result<(Vec<u8>, Metadata)> {
    let (file, metadata) = open(path, OFlag::O_RDONLY)?;
    let content = content(file, &metadata, limit)?;
    Ok((content, metadata))
}

/// The content of a file whose path the operator has chosen. It may be a link, as
/// `/etc/resolv.conf` often is, or `/dev/null`, which is empty.
///
/// # Errors
/// As [`read`].
pub fn read_chosen(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.rdev() == NULL_DEVICE {
        return Ok(Vec::new());
    }
    let (file, metadata) = open_any(path, OFlag::O_RDONLY)?;
    content(file, &metadata, limit)
}

fn content(file: File, metadata: &Metadata, limit: u64) -> io::Result<Vec<u8>> {
    let too_long = || foreign(format!("is longer than {limit} bytes"));
    if metadata.len() > limit {
        return Err(too_long());
    }
    // Files of /proc have the length 0. Others are read by one read(2), without a second one
    // that finds the end: a directory may hold 65,000 reservations.
    let expected = match metadata.len() {
        0 => limit + 1,
        length => length,
    };
    let mut content = Vec::with_capacity(metadata.len() as usize);
    file.take(expected).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(too_long());
    }
    Ok(content)
}

/// Writes `content` to `path`, in place. A kill in between leaves a mixture of old and new.
///
/// # Errors
/// As [`open`].
pub fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    let (mut file, metadata) = open(path, OFlag::O_WRONLY | OFlag::O_CREAT)?;
    file.write_all(content)?;
    // Truncated after the write: ext4 treats a file that is emptied first as a replacement,
    // and writes it to the disk when it is closed.
    let length = content.len() as u64;
    if metadata.len() > length {
        file.set_len(length)?;
    }
    Ok(())
}

/// Creates `path` with `content`, and removes what was there before, except a directory. ext4 does
/// not write such a file to the disk when it is closed.
///
/// # Errors
/// As unlink(2), open(2) and write(2).
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let create = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(path)
    };
    let mut file = match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            remove(path)?;
            create()?
        }
        created => created?,
    };
    file.write_all(content)
}

/// Whether `path` is that of the open file: it may have been renamed, removed or replaced since.
pub fn is_at(file: &File, path: &Path) -> bool {
    let (there, ours) = (std::fs::symlink_metadata(path), file.metadata());
    let key = |it: Metadata| (it.dev(), it.ino());
    matches!((there.map(key), ours.map(key)), (Ok(there), Ok(ours)) if there == ours)
}

/// Removes a file. Succeeds if it does not exist.
///
/// # Errors
/// As unlink(2).
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    /// One object of each foreign kind, with the text of its error.
    fn foreign_objects(dir: &Path) -> Vec<(PathBuf, &'static str)> {
        let at = |name: &str| dir.join(name);
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        std::fs::write(at("file"), "precious").unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink(at("nothing"), at("dangling")).unwrap();
        drop(UnixListener::bind(at("socket")).unwrap());
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        vec![
            (at("pipe"), "is a pipe, not a regular file"),
            (at("directory"), "is a directory, not a regular file"),
            (at("link"), "is a symbolic link, not a regular file"),
            (at("dangling"), "is a symbolic link, not a regular file"),
            (
                at("socket"),
                "is a socket, a pipe or a device, not a regular file",
            ),
            ("/dev/zero".into(), "is a device, not a regular file"),
            (at("sparse"), "is longer than 100 bytes"),
        ]
    }

    #[test]
    fn foreign_objects_are_named_and_not_read() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in foreign_objects(dir.path()) {
            let error = read(&path, 100).unwrap_err();
            assert_eq!(error.to_string(), text, "{}", path.display());
            assert!(is_foreign(&error));
        }
        let absent = read(&dir.path().join("absent"), 100).unwrap_err();
        assert!(is_absent(&absent) && !is_foreign(&absent));
        let (content, metadata) = read(&dir.path().join("file"), 8).unwrap();
        assert_eq!((content.as_slice(), metadata.len()), (&b"precious"[..], 8));
        assert!(is_foreign(&read(&dir.path().join("file"), 7).unwrap_err()));
    }

    #[test]
    fn foreign_objects_are_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let objects = foreign_objects(dir.path());
        // So that opening the pipe for writing succeeds.
        let reader = File::from(
            nix::fcntl::open(
                &dir.path().join("pipe"),
                OFlag::O_RDONLY | OFlag::O_NONBLOCK,
                Mode::empty(),
            )
            .unwrap(),
        );
        for (path, _) in objects.iter().filter(|(path, _)| !path.ends_with("sparse")) {
            assert!(is_foreign(&overwrite(path, b"x").unwrap_err()), "{path:?}");
        }
        drop(reader);
        let precious = || std::fs::read_to_string(dir.path().join("file")).unwrap();
        assert_eq!(precious(), "precious");
        for name in ["pipe", "link", "dangling", "socket", "sparse"] {
            let path = dir.path().join(name);
            replace(&path, b"new").unwrap();
            assert_eq!(read(&path, 100).unwrap().0, b"new");
        }
        assert!(replace(&dir.path().join("directory"), b"new").is_err());
        assert_eq!(precious(), "precious");
    }

    #[test]
    fn a_private_directory_is_not_made_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        make_private_dir(&real.join("below")).unwrap();
        make_private_dir(&real.join("below")).unwrap();
        symlink(&real, &link).unwrap();
        let error = make_private_dir(&link.join("other")).unwrap_err();
        assert!(is_foreign(&error), "{error}");
        assert!(!real.join("other").exists());
    }

    #[test]
    fn a_longer_file_is_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        overwrite(&path, b"longer").unwrap();
        overwrite(&path, b"short").unwrap();
        assert_eq!(read(&path, 100).unwrap().0, b"short");
    }

    #[test]
    fn a_chosen_path_may_be_a_link_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let objects = foreign_objects(dir.path());
        let link = dir.path().join("link");
        assert_eq!(read_chosen(&link, 100).unwrap(), b"precious");
        assert_eq!(read_chosen(Path::new("/dev/null"), 100).unwrap(), b"");
        // Its length is 0.
        let proc = read_chosen(Path::new("/proc/self/status"), 100_000).unwrap();
        assert!(!proc.is_empty());
        assert!(read_chosen(Path::new("/proc/self/status"), 10).is_err());
        for (path, _) in objects {
            let is_link = path.ends_with("link") || path.ends_with("dangling");
            assert!(is_link || is_foreign(&read_chosen(&path, 100).unwrap_err()));
        }
    }
}
