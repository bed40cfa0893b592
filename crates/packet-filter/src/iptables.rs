//! iptables and ip6tables as a language and as programs; no rule of podwire is here.

pub mod program;
pub mod table;
