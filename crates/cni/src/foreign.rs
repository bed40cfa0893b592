//! Networks in which another program handed out addresses during this boot: the Go plugins, or
//! a podwire that keeps its state in another form.
//!
//! Neighbours may remember a MAC for an address of such a network that podwire does not know,
//! so a pod that gets the address must be announced. An IPAM plugin that notices such a program
//! notes the network in `/run/podwire/foreign/<network>`, before its ADD returns. The note stays
//! until the boot ends: a neighbour may remember a MAC as long.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::OFlag;

use crate::file;
use crate::names;

/// Only root writes here. A boot clears it.
const DIRECTORY: &str = "/run/podwire/foreign";

/// Notes that another program hands out addresses of `network`. A note that cannot be written is
/// logged.
pub fn note(network: &str) {
    if is_noted(network) {
        return;
    }
    if let Err(error) = write(&path(network)) {
        crate::log(format_args!(
            "another program hands out addresses of network {network}; write {}: {error}",
            path(network).display()
        ));
    }
}

/// Whether another program has handed out addresses of `network` in this boot, as far as IPAM
/// plugins of podwire have noticed. Also true if it cannot be determined.
pub fn is_noted(network: &str) -> bool {
    match std::fs::symlink_metadata(path(network)) {
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        ),
        Ok(_) => true,
    }
}

/// Removes the note of a network that is removed.
///
/// # Errors
/// The file cannot be removed.
pub fn forget(network: &str) -> anyhow::Result<()> {
    let path = path(network);
    file::remove(&path).with_context(|| format!("remove {}", path.display()))
}

fn path(network: &str) -> PathBuf {
    Path::new(DIRECTORY).join(names::short(network))
}

fn write(note: &Path) -> io::Result<()> {
    file::make_private_dir(Path::new(DIRECTORY))?;
    file::open(note, OFlag::O_RDONLY | OFlag::O_CREAT).map(drop)
}
