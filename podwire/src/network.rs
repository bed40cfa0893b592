//! Networks by name: what `podwire network` decides, reads and writes.

mod addressing;
mod attached;
mod conflist;
mod creation;
pub(crate) mod document;
pub mod filter;
pub mod format;
mod options;
mod pools;
mod removal;
mod resolver;
pub(crate) mod span;
pub(crate) mod taken;
mod update;

pub use addressing::Words;
pub use attached::Attached;
pub use creation::{Created, Request, create, default_bridge};
pub use document::{Document, created, native, row, with_go_names};
pub use options::HOST_BINDING;
pub use pools::FILE as POOL_FILE;
pub use removal::{Removal, complete};
pub use update::{Changes, Places, update};
