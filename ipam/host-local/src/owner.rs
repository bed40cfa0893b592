//! Who holds an address, as its file says it.

use cni::Attachment;
use cni::conf::ValidAttachment;

/// The content of a reservation: `<container id>\r\n<interface>`, or the
/// container id alone as Go plugins of before 2018 wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(String);

impl Owner {
    /// What we and the Go plugin write for `attachment`.
    pub fn of(attachment: &Attachment) -> Self {
        let Attachment {
            container_id,
            ifname,
            ..
        } = attachment;
        Self(format!("{container_id}\r\n{ifname}"))
    }

    /// What an old Go plugin wrote for any interface of the container.
    pub fn legacy(attachment: &Attachment) -> Self {
        Self(attachment.container_id.to_string())
    }

    /// Both, the newer first.
    pub fn both(attachment: &Attachment) -> [Self; 2] {
        [Self::of(attachment), Self::legacy(attachment)]
    }

    /// Both for an attachment that a GC must leave alone.
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

    /// The owner in a file; the Go plugin, too, does not mind white space around it.
    pub fn parse(content: &str) -> Self {
        Self(content.trim().to_owned())
    }

    /// To the letter.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
