//! Notes of a chained plugin: what an attachment uses on the node, unless that follows from its
//! names. A DEL or GC without a result reads them.
//!
//! They are files like those of [`Users`], in a directory of the plugin beside the directory of the
//! network. They are lost with `/run`, and pods of the Go plugins have none.

use anyhow::Result;
use cni::Attachment;
use cni::conf::ValidAttachment;

use crate::alias;
use crate::shared::ignore_unavailable;
use crate::users::Users;

/// The notes of one plugin about the attachments to one network.
#[derive(Debug)]
pub struct Notes {
    network: String,
    /// No network has a colon in its name.
    directory: String,
}

impl Notes {
    /// The notes of `plugin` about attachments to `network`.
    pub fn of(plugin: &str, network: &str) -> Self {
        Self {
            network: network.to_owned(),
            directory: format!("{}:{plugin}", cni::names::short(network)),
        }
    }

    /// Notes `content` about `owner`, which uses `what`. Where nothing can be written, nothing is
    /// noted.
    ///
    /// # Errors
    /// The file cannot be written; code 11: another call removes notes for too long.
    pub fn add(&self, what: &str, owner: &Attachment, content: &str) -> Result<()> {
        match Users::open_shared(&self.directory) {
            Ok(users) => users.note(what, owner, content).map(drop),
            Err(error) => ignore_unavailable(error),
        }
    }

    /// The content of a note about `owner`, for whichever use.
    pub fn find(&self, owner: &Attachment) -> Option<String> {
        let users = Users::find(&self.directory).ok()??;
        let uses = users.used().ok()?;
        uses.iter().find_map(|what| users.content(what, owner))
    }

    /// DEL: forgets `owner`, whose uses need no cleaning.
    ///
    /// # Errors
    /// As [`Notes::remove`].
    pub fn forget(&self, owner: &Attachment) -> Result<()> {
        self.remove(owner, |_| Ok(()))
    }

    /// DEL: forgets `owner`, then calls `unused` with each use that no attachment to any network
    /// has any more.
    ///
    /// # Errors
    /// As `unused`; a file cannot be read or removed; code 11 as [`Notes::add`].
    pub fn remove(&self, owner: &Attachment, unused: impl FnMut(&str) -> Result<()>) -> Result<()> {
        self.change(unused, |users, _| users.forget(owner).map(drop))
    }

    /// GC: calls `clean` with what is noted about each attachment that is not `valid`, forgets
    /// these attachments, then calls `unused` as [`Notes::remove`] does.
    ///
    /// # Errors
    /// As [`Notes::remove`] and `clean`.
    pub fn collect(
        &self,
        valid: &[ValidAttachment],
        mut clean: impl FnMut(&str) -> Result<()>,
        unused: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let kept = alias::of_valid(&self.network, valid);
        self.change(unused, |users, used| {
            for what in used {
                let [_, others] = users.contents(what, &kept)?;
                for content in others {
                    // If a note cannot be read, it stays: what it describes would never be removed.
                    clean(&content?)?;
                }
            }
            users.retain(&kept)
        })
    }

    fn change(
        &self,
        mut unused: impl FnMut(&str) -> Result<()>,
        change: impl FnOnce(&Users, &[String]) -> Result<()>,
    ) -> Result<()> {
        let users = match Users::find(&self.directory) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => Users::open_exclusive(&self.directory),
            Err(error) => Err(error),
        };
        let users = match users {
            Ok(users) => users,
            Err(error) => return ignore_unavailable(error),
        };
        let before = users.used()?;
        change(&users, &before)?;
        let after = users.used()?;
        for what in before.iter().filter(|it| !after.contains(it)) {
            if !self.is_used_elsewhere(what)? {
                unused(what)?;
            }
        }
        users.tidy();
        Ok(())
    }

    /// Whether attachments to other networks use `what`.
    fn is_used_elsewhere(&self, what: &str) -> Result<bool> {
        let suffix = self.directory.rsplit(':').next().unwrap_or_default();
        for directory in Users::directories()? {
            let is_of_plugin = directory.ends_with(&format!(":{suffix}"));
            if is_of_plugin
                && let Some(users) = Users::find(&directory)?
                && users.used()?.iter().any(|it| it == what)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
