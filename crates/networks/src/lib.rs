//! Networks as runtimes keep them: lists of plugins on disk, the cache of attachments, and
//! the execution of a list's plugins.
//!
//! Files, texts and order are libcni's (v1.3.0), so that podwire and every program with libcni
//! can use each other's networks and delete each other's attachments.

mod cache;
mod chain;
mod list;
pub mod named;
pub mod request;

pub use cache::{Cache, CachedAttachment, Contents, Unidentified};
pub use chain::{Answer, Attachment, Chain, NOT_ROLLED_BACK, OnFailure};
pub use list::{NetworkList, PluginConf, check_name, files, side_dir};
