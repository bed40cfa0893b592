//! Which capability a refusal is about.
//!
//! The kernel says "operation not permitted" and no more, and in a container of
//! containers nobody knows by heart who dropped what: an error says which of the
//! capabilities that plugins need this process lacks (capabilities(7)).

use std::fs;

use crate::error::{Code, Error};

/// What a plugin needs: to change links, addresses, routes and rules, and to
/// enter a network namespace. Numbers of linux/capability.h.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
/// Needed by legacy iptables, which asks over a raw socket.
const IPTABLES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
/// Needed to send and hear whole frames (packet(7)).
const FRAMES: [(u32, &str); 1] = [(13, "CAP_NET_RAW")];
/// Needed where a state directory belongs to another user.
const FOREIGN_FILES: [(u32, &str); 1] = [(1, "CAP_DAC_OVERRIDE")];

/// Adds to an error that tells of a refusal what this process lacks.
pub(crate) fn explain(error: &mut Error) {
    // Only our own words: a delegate has said what it lacks.
    if error.code != Code::Internal as u32 && error.code != Code::NotAvailable as u32 {
        return;
    }
    let needed = match refusal(&error.msg) {
        None => return,
        Some(Refusal::Said | Refusal::Kernel) => &NEEDED[..],
        Some(Refusal::Iptables) => &IPTABLES[..],
        Some(Refusal::Frames) => &FRAMES[..],
        Some(Refusal::File) => &FOREIGN_FILES[..],
    };
    let missing = missing(&effective(), needed);
    if !missing.is_empty() && !error.msg.contains(": needs ") {
        error.msg.push_str(": needs ");
        error.msg.push_str(&missing.join(" and "));
    }
}

/// Who refused.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// EPERM: a request needs a capability.
    Kernel,
    /// EPERM for a packet socket.
    Frames,
    /// iptables cannot do its work, for whatever reason.
    Iptables,
    /// EACCES: a file's mode forbids it.
    File,
    /// A program that we executed says so in its own words.
    Said,
}

fn refusal(msg: &str) -> Option<Refusal> {
    if msg.contains("can read its nat table") || msg.contains("ables: Permission denied") {
        return Some(Refusal::Iptables);
    }
    if msg.contains("packet socket") && msg.contains("peration not permitted") {
        return Some(Refusal::Frames);
    }
    if msg.contains("peration not permitted") {
        return Some(Refusal::Kernel);
    }
    if msg.contains("permission denied (13)") {
        return Some(Refusal::File);
    }
    msg.contains("Permission denied").then_some(Refusal::Said)
}

/// The effective capabilities as `/proc/self/status` writes them; empty where
/// that cannot be read.
fn effective() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.unwrap_or_default().trim().to_owned()
}

fn missing(mask: &str, needed: &[(u32, &'static str)]) -> Vec<&'static str> {
    // What is not known is not said.
    let mask = u64::from_str_radix(mask, 16).unwrap_or(u64::MAX);
    let lacks = |(bit, _): &&(u32, &str)| mask & (1 << bit) == 0;
    needed.iter().filter(lacks).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        assert!(missing("000001ffffffffff", &NEEDED).is_empty());
        assert_eq!(missing("0000000000001000", &NEEDED), ["CAP_SYS_ADMIN"]);
        assert_eq!(missing("0000000000200000", &NEEDED), ["CAP_NET_ADMIN"]);
        let both = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"];
        assert_eq!(missing("0", &NEEDED), both);
        assert!(missing("", &NEEDED).is_empty());
    }

    #[test]
    fn a_refusal_is_told_from_other_faults() {
        for (msg, expected) in [
            (
                "set link 2 up: operation not permitted (1)",
                Some(Refusal::Kernel),
            ),
            (
                "open lock /x/lock: permission denied (13)",
                Some(Refusal::File),
            ),
            (
                "iptables: Permission denied (you must be root)",
                Some(Refusal::Iptables),
            ),
            ("add veth a: file exists (17)", None),
        ] {
            assert_eq!(refusal(msg), expected, "{msg}");
        }
    }

    #[test]
    fn a_delegates_own_code_is_left_alone() {
        let mut error = Code::TryAgain.err("operation not permitted");
        explain(&mut error);
        assert_eq!(error.msg, "operation not permitted");
    }
}
