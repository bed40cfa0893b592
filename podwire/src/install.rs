//! Places the suite on a node, and takes it back.
//!
//! Other programs use the directories at the same time: runtimes execute the plugins, packages
//! and other installers replace them. So at every moment, also after a kill or a power failure,
//! each file is the old one or the new one, and whole; and a repeated run completes the work.
//! What is replaced is kept beside it for [`Places::withdraw`].

mod directory;
mod places;
mod record;
mod source;
mod watch;

pub use directory::Changes;
pub use places::{Places, Wanted};
pub use source::{Layout, Source};
pub use watch::watch;
