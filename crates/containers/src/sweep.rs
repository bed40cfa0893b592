//! Removes what is left of containers that are gone: the supervisor was killed, the runtime did not
//! know of an attachment, or the node was booted again.

use std::path::Path;

use anyhow::Result;
use cni::BestEffort;

use crate::attach::Attacher;
use crate::journal::{Entry, Journal};
use crate::place::{self, Place};

/// Removes the attachments of containers that are gone, those that a killed process has left half
/// made, and the directories of containers of `podwire run` that have no supervisor any more.
///
/// # Errors
/// The first one; the rest is done, and what could not be removed is tried again the next time.
pub fn sweep(cache_dir: &Path) -> Result<()> {
    let mut all = BestEffort::new();
    for name in place::names()? {
        let what = format!("remove what is left of {name}");
        all.step(&what, || match Place::take_left(&name)? {
            Some(place) => clear(&place).and_then(|()| place.remove()),
            None => Ok(()),
        });
    }
    let journal = Journal::in_dir(cache_dir);
    let attacher = Attacher::new(cache_dir, Path::new(""), Vec::new());
    for file in journal.files()? {
        let what = format!("sweep {}", file.display());
        all.step(&what, || match journal.take(&file)? {
            Some((held, Some(entry))) if is_left(&attacher, &entry) => {
                let attachment = &entry.attachment;
                attacher.with_dirs_of(&entry).detach(attachment)?;
                drop(held);
                Ok(())
            }
            Some((held, None)) => held.remove(),
            _ => Ok(()),
        });
    }
    all.finish()
}

/// Removes the attachments of a container that has no supervisor. Its processes are gone: the kernel
/// kills them with the supervisor.
pub(crate) fn clear(place: &Place) -> Result<()> {
    // Without a record, the journal has the attachments.
    let Ok(Some(record)) = place.record() else {
        return Ok(());
    };
    place.forget_pid();
    Attacher::new(&record.cache_dir, Path::new(""), Vec::new()).detach_all(&record.id)
}

/// Whether an attachment without a process that makes it is to be removed.
fn is_left(attacher: &Attacher, entry: &Entry) -> bool {
    // An attachment that is complete is in the cache.
    let complete = |owner| attacher.cache.has(&owner);
    !entry.attachment.attachment().is_ok_and(complete) || entry.is_gone()
}

impl Place {
    /// Removes what a killed container of this name has left, and is empty then.
    ///
    /// # Errors
    /// A plugin fails.
    pub fn clear(&self) -> Result<()> {
        clear(self)
    }
}
