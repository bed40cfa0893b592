//! iptables: the text that its programs read and print, and their execution. No rule of podwire is
//! here.

pub mod policy;
pub mod program;
pub mod table;
