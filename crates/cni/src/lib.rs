//! The CNI protocol, without the kernel: the input from the environment and standard input,
//! the output, and what happens in between.
//!
//! A plugin implements [`Plugin`], and its `main` is [`run`]. The modules follow the life of
//! a call: [`env`] and [`conf`] read the input, [`request`] is what the plugin gets of it,
//! [`result`] is what it returns, [`delegate`] executes the IPAM plugin, and [`Undo`] rolls
//! back a failed ADD.

pub mod address;
#[cfg(target_env = "musl")]
mod allocator;
pub mod conf;
pub mod delegate;
pub mod env;
mod error;
#[cfg(target_env = "musl")]
mod error_text;
pub mod execute;
pub mod faults;
pub mod file;
pub mod foreign;
pub mod host;
pub mod ipam;
pub mod json;
pub mod linked;
pub mod lock;
#[cfg(all(target_env = "musl", target_arch = "x86_64"))]
mod memcpy;
pub mod names;
pub mod own_netns;
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
pub use run::{Plugin, SUITE, link, run};
pub use system_error::{Refusal, SystemError};
pub use undo::{BestEffort, Undo};
pub use version::Version;
