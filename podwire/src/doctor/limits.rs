//! Limits of the kernel that pods share.

use std::fs;

use super::Examination;
use super::finding::{About, Check, Finding, Severity};

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

pub fn check(found: &mut Examination) {
    for (family, table) in [("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")] {
        let key = format!("net.{family}.neigh.default.gc_thresh3");
        let text = fs::read_to_string(format!("/proc/net/stat/{table}"));
        let limit = number(&format!("net/{family}/neigh/default/gc_thresh3"));
        let (Some(count), Some(limit)) = (text.ok().and_then(|it| entries(&it)), limit) else {
            continue;
        };
        if is_near(count, limit) {
            let finding = Finding::new(
                &NEIGHBOURS,
                About::Node,
                format!("{count} entries of {limit} in {table}"),
            );
            let finding = finding.shown_by(
                format!("sysctl {key}; cat /proc/net/stat/{table}"),
                format!("{key} = {limit}"),
            );
            found.add(finding.command(format!("sysctl -w {key}={}", limit.saturating_mul(4))));
        }
    }
    let count = number("net/netfilter/nf_conntrack_count");
    let limit = number("net/netfilter/nf_conntrack_max");
    if let (Some(count), Some(limit)) = (count, limit)
        && is_near(count, limit)
    {
        let what = format!("{count} connections of {limit} are tracked");
        let finding = Finding::new(&CONNECTIONS, About::Node, what);
        let finding = finding.shown_by(
            "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
            format!("{count}, {limit}"),
        );
        let more = limit.saturating_mul(4);
        found.add(finding.command(format!("sysctl -w net.netfilter.nf_conntrack_max={more}")));
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

/// Whether nine tenths are used. A limit of 0 is none.
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
    }
}
