//! The CNI protocol, without a kernel: what comes in through the environment
//! and standard input, what goes out, and what happens in between.
//!
//! A plugin implements [`Plugin`] and its `main` is [`run`]. The modules follow
//! the life of a call: [`env`] and [`conf`] read it, [`request`] is what the
//! plugin sees of it, [`result`] what it answers, [`delegate`] whom it asks,
//! [`Undo`] what happens if it fails.

pub mod address;
pub mod conf;
pub mod delegate;
pub mod env;
mod error;
pub mod execute;
pub mod faults;
pub mod file;
pub mod ipam;
pub mod json;
pub mod linked;
pub mod lock;
pub mod names;
mod privilege;
pub mod process;
pub mod request;
pub mod result;
mod run;
mod system_error;
mod undo;
pub mod version;

pub use address::Cidr;
pub use error::{Code, Error, WithLabel, as_cause, reason};
pub use privilege::{Capability, Denied};
pub use process::log;
pub use request::{Add, Attachment, Call, Check, Del, Gc, Status};
pub use result::AddResult;
#[cfg(feature = "fuzzing")]
pub use run::fuzzing;
pub use run::{Plugin, SUITE, run};
pub use system_error::{Refusal, SystemError};
pub use undo::{BestEffort, Undo};
pub use version::Version;
