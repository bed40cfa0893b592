//! The owner of a reservation, as its file names it.

use cni::Attachment;
use cni::conf::ValidAttachment;

/// The content of a reservation: `<container id>\r\n<interface>`, or the
/// container id alone as Go plugins of before 2018 wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(String);

impl Owner {
    /// The content that this plugin and the Go plugin write for `attachment`.
    pub fn of(attachment: &Attachment) -> Self {
        let Attachment {
            container_id,
            ifname,
            ..
        } = attachment;
        Self(format!("{container_id}\r\n{ifname}"))
    }

    /// The content that an old Go plugin wrote for any interface of the container.
    pub fn legacy(attachment: &Attachment) -> Self {
        Self(attachment.container_id.to_string())
    }

    /// Both, the newer first.
    pub fn both(attachment: &Attachment) -> [Self; 2] {
        [Self::of(attachment), Self::legacy(attachment)]
    }

    /// Both for an attachment that a GC must keep.
    pub fn of_valid(valid: &ValidAttachment) -> [Self; 2] {
        let ValidAttachment {
            container_id,
            ifname,
        } = valid;
        [
            Self(format!("{container_id}\r\n{ifname}")),
            Self(container_id.clone()),
        ]
    }

    /// The owner in a file. White space around it is ignored, as by the Go plugin.
    pub fn parse(content: &str) -> Self {
        Self(content.trim().to_owned())
    }

    /// The id of the container: all that precedes the interface.
    pub fn container(&self) -> &str {
        self.0.split_once("\r\n").map_or(&self.0, |(id, _)| id)
    }

    /// The content of the file.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
