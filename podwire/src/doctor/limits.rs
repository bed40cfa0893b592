//! Limits of the kernel that pods share.

use std::fs;

use super::finding::{About, Check, Finding, Severity};
use super::{Examination, Node};

pub const NEIGHBOURS: Check = Check {
    id: "PW050",
    severity: Severity::Warning,
    title: "the table of neighbours is nearly full",
    why: "All namespaces share it. When it is full, the kernel drops packets to hosts and pods that it \
          does not know yet: \"neighbour: arp_cache: neighbor table overflow!\".",
};
pub const CONNECTIONS: Check = Check {
    id: "PW051",
    severity: Severity::Warning,
    title: "connection tracking is nearly full",
    why: "When it is full, packets of new connections are dropped, with masquerade and published ports \
          as well: \"nf_conntrack: table full, dropping packet\".",
};
pub const FILES: Check = Check {
    id: "PW052",
    severity: Severity::Warning,
    title: "the node has nearly as many open files as it can have",
    why: "When there are no more, no program opens a socket, and an ADD fails with \"too many open files \
          in system\".",
};
pub const TASKS: Check = Check {
    id: "PW053",
    severity: Severity::Warning,
    title: "the node has nearly as many processes and threads as it can have",
    why: "When there are no more, no container starts, and no plugin is executed: \"resource temporarily \
          unavailable\".",
};

/// What is counted, and how many there may be.
struct Limit {
    check: &'static Check,
    /// What is counted, in words.
    what: String,
    count: Option<u64>,
    limit: Option<u64>,
    /// The command that shows both.
    command: String,
    /// The setting that is the limit.
    setting: String,
}

pub fn check(node: &Node<'_>, found: &mut Examination) {
    let families = [("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")];
    for (family, table) in families {
        neighbours(node, family, table).report(found);
    }
    Limit {
        check: &CONNECTIONS,
        what: "tracked connections".into(),
        count: number("net/netfilter/nf_conntrack_count"),
        limit: number("net/netfilter/nf_conntrack_max"),
        command: "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max".into(),
        setting: "net.netfilter.nf_conntrack_max".into(),
    }
    .report(found);
    // proc(5): open files, 0, the limit.
    let files = netlink::sysctl::read("fs/file-nr").unwrap_or_default();
    let mut files = files.split_whitespace().map(|it| it.parse().ok());
    Limit {
        check: &FILES,
        what: "open files".into(),
        count: files.next().flatten(),
        limit: files.nth(1).flatten(),
        command: "sysctl fs.file-nr".into(),
        setting: "fs.file-max".into(),
    }
    .report(found);
    for setting in ["kernel.pid_max", "kernel.threads-max"] {
        Limit {
            check: &TASKS,
            what: "processes and threads".into(),
            count: tasks(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            limit: number(&setting.replace('.', "/")),
            command: format!("cat /proc/loadavg; sysctl {setting}"),
            setting: setting.into(),
        }
        .report(found);
    }
}

/// Entries that a program has written, as those of VXLAN peers, do not count for the limit
/// (net/core/neighbour.c, `gc_entries`).
fn neighbours(node: &Node<'_>, family: &str, table: &str) -> Limit {
    let text = fs::read_to_string(format!("/proc/net/stat/{table}"));
    let is_ipv4 = family == "ipv4";
    let written = node
        .survey
        .node()
        .interfaces
        .iter()
        .flat_map(|it| &it.vteps);
    let written = written.filter(|it| it.written && it.address.is_ipv4() == is_ipv4);
    let written = written.count() as u64;
    let count = text.ok().and_then(|it| entries(&it));
    let setting = format!("net.{family}.neigh.default.gc_thresh3");
    Limit {
        check: &NEIGHBOURS,
        what: format!("entries in {table}"),
        count: count.map(|it| it.saturating_sub(written)),
        limit: number(&setting.replace('.', "/")),
        command: format!("cat /proc/net/stat/{table}; sysctl {setting}"),
        setting,
    }
}

impl Limit {
    /// Nine tenths of it are a finding. A limit of 0 is none; what cannot be read here, the kernel
    /// does not have.
    fn report(self, found: &mut Examination) {
        let (Some(count), Some(limit)) = (self.count, self.limit) else {
            return;
        };
        if !is_near(count, limit) {
            return;
        }
        let Self { what, setting, .. } = self;
        let about = format!("{count} {what}, and {setting} is {limit}");
        let finding = Finding::new(self.check, About::Node, about);
        let finding = finding.shown_by(self.command, format!("{count}, {limit}"));
        let more = count.max(limit).saturating_mul(4);
        found.add(finding.command(format!("sysctl -w {setting}={more}")));
    }
}

fn number(key: &str) -> Option<u64> {
    netlink::sysctl::read(key).ok()?.parse().ok()
}

/// The number of entries, in hexadecimal the first word of the second line.
fn entries(text: &str) -> Option<u64> {
    let word = text.lines().nth(1)?.split_whitespace().next()?;
    u64::from_str_radix(word, 16).ok()
}

/// proc(5): the fourth word of loadavg is `RUNNING/ALL`.
fn tasks(text: &str) -> Option<u64> {
    let word = text.split_whitespace().nth(3)?;
    word.split_once('/')?.1.parse().ok()
}

fn is_near(count: u64, limit: u64) -> bool {
    limit != 0 && count.saturating_mul(10) >= limit.saturating_mul(9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_tenths_are_near() {
        assert!(!is_near(921, 1024) && is_near(922, 1024) && is_near(2000, 1024));
        assert!(!is_near(5, 0));
        let text = "entries  allocs\n0000039a 00000000\n0000039a 00000001\n";
        assert_eq!(entries(text), Some(0x39a));
        assert_eq!(entries("entries\n"), None);
        assert_eq!(tasks("0.20 0.18 0.12 1/80 11206"), Some(80));
    }
}
