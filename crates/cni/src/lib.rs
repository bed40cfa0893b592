//! The CNI protocol, without a kernel: what comes in through the environment
//! and standard input, what goes out, and what happens in between.

mod error;
mod undo;

pub use error::{Code, Error};
pub use undo::{BestEffort, Undo};
