//! Why a namespace cannot be used. The texts for a missing path and for a file that is not a
//! namespace are those of the Go plugins, to the letter.

use std::path::Path;

pub use cni::SystemError as Error;
use nix::errno::Errno;

/// The errno of an error about a file that is not a network namespace: what NS_GET_NSTYPE
/// answers for a plain file (ioctl_ns(2)).
const NOT_A_NAMESPACE: Errno = Errno::ENOTTY;

/// Whether the namespace is gone for good, so that a DEL finds nothing to do inside. A plain
/// file counts: a reboot, or an unmount without an unlink, leaves one at the path.
pub fn is_gone(error: &Error) -> bool {
    matches!(
        error.errno(),
        Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | NOT_A_NAMESPACE
    )
}

/// `open "/run/netns/a": permission denied`
pub(crate) fn failed(action: &str, path: &Path, errno: Errno) -> Error {
    // setns(2) answers so for a namespace of another kind.
    if action == "enter" && errno == Errno::EINVAL {
        return other_kind(action, path);
    }
    let error = Error::new("", errno).reword(format!("{action} {path:?}"));
    // No capability of ours opens the files of another user's process.
    if errno == Errno::EACCES {
        return error.needs(&[]);
    }
    error
}

pub(crate) fn magic(path: &Path, magic: u64) -> Error {
    let op = format!("unknown FS magic on {path:?}");
    Error::worded(op, NOT_A_NAMESPACE, format!("{magic:x}"))
}

pub(crate) fn other_kind(action: &str, path: &Path) -> Error {
    let op = format!("{action} {path:?}");
    Error::worded(op, NOT_A_NAMESPACE, "it is not a network namespace")
}
