use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
};

use netlink::Netlink;

use crate::{
    add_pod,
    apply::{attach, bridge, configure, dual_stack, plug},
};
use sandbox::here::{command, enter, json, ping, run};

/// The hardware address of `ip` in a neighbour table.
fn neighbour(ip: &str) -> serde_json::Value {
    json(&format!("ip -j neighbour show {ip}"))[0]["lladdr"].clone()
}

#[test]
fn a_reused_address_works_at_once_for_host_and_siblings() {
    enter();
    let bridge = bridge();
    let sibling = add_pod("sibling");
    attach(&bridge, &sibling, 9, 9);
    attach(&bridge, &add_pod("first"), 2, 7);
    for ip in ["10.1.0.7", "fd00:1::7"] {
        run(&format!("ping -n -q -c 1 -W 1 {ip}"));
        assert!(ping("sibling", ip, 1));
        assert_eq!(neighbour(ip), "02:00:00:00:02:02");
    }
    run("ip link delete veth2");

    attach(&bridge, &add_pod("second"), 3, 7);
    for ip in ["10.1.0.7", "fd00:1::7"] {
        assert_eq!(neighbour(ip), "02:00:00:00:02:03", "{ip}");
        // At once: after the first answer ping waits only briefly for the last.
        for from in ["", "ip netns exec sibling "] {
            let out = run(&format!("{from}ping -n -c 5 -l 5 -W 1 {ip}"));
            assert!(out.contains(" 0% packet loss"), "{out}");
        }
    }
}

/// tcpdump on the bridge, already listening; stopped by its count.
fn listen(filter: &str, count: u32) -> Child {
    let line = format!("timeout 20 tcpdump -Z root -i cni0 -n -l -vv -e -c {count} {filter}");
    let mut tcpdump = command(&line)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(tcpdump.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "tcpdump ended");
    }
    tcpdump
}

#[test]
fn announcements_are_well_formed() {
    enter();
    let bridge = bridge();
    let pod = add_pod("pod");
    let pair = plug(&bridge, &pod, 2);
    let configured = configure(&pod, &dual_stack(2)).unwrap();
    Netlink::open()
        .unwrap()
        .wait_for_port(pair.host.index)
        .unwrap();
    // Announcements of the kernel itself, if they arrive, look the same.
    let filter = "ether src 02:00:00:00:02:02 and (arp or (icmp6 and ip6[40] == 136))";
    // The IPv4 address, the IPv6 address, and the link-local one.
    let mut tcpdump = listen(filter, 3);
    configured.announce().unwrap();
    let mut seen = String::new();
    tcpdump
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut seen)
        .unwrap();
    assert!(tcpdump.wait().unwrap().success(), "{seen}");
    for part in [
        "02:00:00:00:02:02 > ff:ff:ff:ff:ff:ff",
        "Request who-has 10.1.0.2 (Broadcast) tell 10.1.0.2",
        "02:00:00:00:02:02 > 33:33:00:00:00:01",
        "fd00:1::2 > ff02::1: [icmp6 sum ok] ICMP6, neighbor advertisement",
        "tgt is fd00:1::2, Flags [override]",
        "destination link-address option (2), length 8 (1): 02:00:00:00:02:02",
    ] {
        let part = part.replace(" (Broadcast)", "");
        assert!(
            seen.replace(" (00:00:00:00:00:00)", "").contains(&part),
            "{part}: {seen}"
        );
    }
}
