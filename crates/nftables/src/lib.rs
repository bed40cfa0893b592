//! nf_tables over netlink: no program is executed, and what is written is one transaction.
//!
//! Rules are data: a [`Rule`] is made of [`Statement`]s, a [`Transaction`] of changes. Both
//! have nft's text, which tests compare, and the bytes that the kernel reads. [`listing`] reads
//! what the kernel has and compares it with rules. [`conntrack`] deletes tracked connections
//! over the same socket. [`trace`] follows one packet through all rules.

pub mod conntrack;
mod expression;
mod family;
pub mod listing;
mod nfta;
pub mod packet_log;
mod set;
mod socket;
pub mod trace;
mod transaction;
mod userdata;

pub use expression::{Field, Side, Statement};
pub use family::{Family, Protocol};
pub use listing::Listed;
pub use set::{Element, Part, Set, Type};
pub use socket::{Socket, is_absent, retry};
pub use transaction::{Chain, Change, Point, Rule, Table, Transaction};
pub use transport::Error;
pub use userdata::{COMMENT_LENGTH, fitting};

type Attributes = transport::Attributes<transport::Netfilter>;
type Request = transport::Request<transport::Netfilter>;
