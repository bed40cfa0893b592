//! Containers, and the attachments that podwire makes for them.
//!
//! A container is a command that `podwire run` has started ([`Place`]), or one of another runtime
//! ([`runtimes`]). podwire attaches both: at the start, and later by `podwire network connect`. Each
//! attachment is recorded before it is made ([`journal`]). [`sweep`] removes what a killed process,
//! a runtime or a reboot has left.

mod attach;
mod gateway;
pub mod journal;
pub mod place;
pub mod processes;
mod running;
pub mod runtimes;
mod sweep;

pub use attach::{Attacher, Wanted};
pub use gateway::choose as choose_gateway;
pub use place::{Place, Published, Record, Resolver};
pub use running::{Init, Isolation, Started, not_executed};
pub use runtimes::Container;
pub use sweep::sweep;
