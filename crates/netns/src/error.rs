//! Why a namespace could not be opened, in the words that callers know.

use std::{fmt, io, path::Path};

use nix::errno::Errno;

/// What is wrong with a namespace path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There is nothing at the path.
    Missing,
    /// There is something, but no network namespace.
    NotANamespace,
    /// It is there and cannot be examined, opened or entered.
    Unusable,
}

/// A network namespace that cannot be used.
///
/// The texts for a missing path and for a file that is no namespace are those
/// of the Go plugins, to the letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    path: String,
    msg: String,
}

impl Error {
    /// What is wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the namespace is gone for good, so that a DEL finds nothing to
    /// do inside. A plain file counts: it is what a reboot, or an unmount
    /// without an unlink, leaves where the namespace was.
    pub fn is_gone(&self) -> bool {
        matches!(self.kind, Kind::Missing | Kind::NotANamespace)
    }

    pub(crate) fn statfs(path: &Path, errno: Errno) -> Self {
        let kind = match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE => Kind::Missing,
            _ => Kind::Unusable,
        };
        let reason = cni::reason(&errno.into());
        Self::new(kind, path, format!("failed to Statfs {path:?}: {reason}"))
    }

    pub(crate) fn magic(path: &Path, magic: u64) -> Self {
        let msg = format!("unknown FS magic on {path:?}: {magic:x}");
        Self::new(Kind::NotANamespace, path, msg)
    }

    pub(crate) fn open(path: &Path, error: &io::Error) -> Self {
        // Unmounted and unlinked since it was examined: as good as missing.
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::Missing,
            _ => Kind::Unusable,
        };
        Self::new(kind, path, format!("open {path:?}: {}", cni::reason(error)))
    }

    pub(crate) fn fstat(path: &Path, errno: Errno) -> Self {
        Self::unusable("examine", path, errno)
    }

    pub(crate) fn enter(path: &Path, errno: Errno) -> Self {
        // setns(2) says so of a namespace of another kind, which nsfs holds, too.
        if errno == Errno::EINVAL {
            return Self::other_kind("enter", path);
        }
        Self::unusable("enter", path, errno)
    }

    pub(crate) fn other_kind(action: &str, path: &Path) -> Self {
        let msg = format!("{action} {path:?}: it is no network namespace");
        Self::new(Kind::NotANamespace, path, msg)
    }

    fn unusable(action: &str, path: &Path, errno: Errno) -> Self {
        let reason = cni::reason(&errno.into());
        Self::new(Kind::Unusable, path, format!("{action} {path:?}: {reason}"))
    }

    fn new(kind: Kind, path: &Path, msg: String) -> Self {
        Self {
            kind,
            path: format!("{path:?}"),
            msg,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)
    }
}

impl std::error::Error for Error {}

impl From<Error> for cni::Error {
    /// What ADD and CHECK answer: libcni's code for an invalid namespace.
    fn from(error: Error) -> Self {
        cni::Code::InvalidNetns.err(format!("failed to open netns {}: {error}", error.path))
    }
}
