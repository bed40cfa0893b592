//! The netlink transport, for rtnetlink ([`Route`]) and nfnetlink ([`Netfilter`]).
//!
//! A [`Socket`] sends a [`Request`] and hands over each answer as a [`Message`] that still
//! lies in the receive buffer. It numbers the requests, limits the time that an answer may
//! take, reads acknowledgements with the kernel's explanation of an error, repeats dumps that
//! were interrupted, and sends batches. What the messages mean is up to the caller.
//!
//! Everything is synchronous. Sources: netlink(7), linux/netlink.h,
//! linux/netfilter/nfnetlink.h, and the kernel's Documentation/userspace-api/netlink/.

mod attributes;
mod error;
mod message;
mod protocol;
mod socket;
mod system;
mod wait;

pub use attributes::{Attributes, attributes, find, find_in, flagged_attributes, text};
pub use cni::{Refusal, SystemError as Error};
pub use message::{HEADER, Message, Request, messages};
pub use protocol::{Netfilter, Protocol, Route};
pub use socket::{DEADLINE, Dump, Socket};
pub use system::attach_filter;
pub use wait::{Backoff, wait_readable};
