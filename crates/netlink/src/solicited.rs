//! From when on an IPv6 address of this host can be asked for.

use std::fs;
use std::net::Ipv6Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// On a machine with six times as much to do as it can, it took up to 16 ms.
const LIMIT: Duration = Duration::from_millis(100);

/// Waits until neighbour solicitations for `ip`, which `link` of the calling thread's
/// namespace was just given, are heard there; for at most a tenth of a second.
///
/// They are sent to a group, and the kernel joins it when its worker gets to that
/// (`addrconf_dad_work` in net/ipv6/addrconf.c), whatever the flags of the address: not
/// before the request for the address is answered. Whoever asks in between is not heard,
/// and asks again after a second.
pub fn wait_until_solicited(link: &str, ip: Ipv6Addr) {
    let until = Instant::now() + LIMIT;
    // Where nobody can tell, there is no IPv6, or no /proc.
    while let Ok(groups) = fs::read_to_string("/proc/thread-self/net/igmp6") {
        if has_joined(&groups, link, ip) || Instant::now() > until {
            return;
        }
        sleep(Duration::from_millis(1));
    }
}

/// Whether `link` is in the group ff02::1:ffXX:XXXX of `ip` (RFC 4291, section 2.7.1).
fn has_joined(groups: &str, link: &str, ip: Ipv6Addr) -> bool {
    let [.., a, b, c] = ip.octets();
    let group = format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}");
    groups.lines().any(|line| {
        // Index, device, group, users, flags, timer.
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(link) && words.next() == Some(&group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_an_address_has_its_last_three_bytes() {
        let groups = "\
1    lo              ff020000000000000000000000000001     1 0000000C 0
7    cni0            ff0200000000000000000001ff00002a     1 00000004 0
7    cni0            ff020000000000000000000000000001     1 0000000C 0
";
        let joined = |link: &str, ip: &str| has_joined(groups, link, ip.parse().unwrap());
        assert!(joined("cni0", "fd00::2a") && joined("cni0", "2001:db8::ff00:2a"));
        assert!(!joined("cni0", "fd00::2b") && !joined("lo", "fd00::2a"));
        assert!(!joined("cni", "fd00::2a"));
    }
}
