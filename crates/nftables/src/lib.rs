//! nf_tables over netlink: no program is executed.
//!
//! From the wire up: [`message`] (bytes), [`socket`] (requests), [`expression`] and
//! [`transaction`] (rules as data), [`listing`] (what the kernel has), [`conntrack`]
//! (connections that the kernel tracks).

pub mod conntrack;
mod error;
mod expression;
mod family;
pub mod listing;
pub mod message;
pub mod presence;
pub mod socket;
mod transaction;

pub use error::Error;
pub use expression::{Side, Statement};
pub use family::{Family, Protocol};
pub use socket::{Socket, retry};
pub use transaction::{
    COMMENT_LENGTH, Chain, Change, Element, Hook, Part, Point, Rule, Set, Table, Transaction, Type,
    fitting,
};
