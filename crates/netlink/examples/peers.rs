//! Measures a reconciliation: `peers NAME COUNT` adds COUNT peers of mode `l3` to the VXLAN device
//! NAME, repeats that with nothing to change, then removes all; `peers NAME COUNT fdb` does it with
//! COUNT forwarding entries. Prints the milliseconds of each. `benches/fleet entries` runs it in a
//! namespace of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ipnetwork::IpNetwork;
use netlink::{Entry, Mac, Netlink, Overlay, Peers};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap();
    let count: u32 = arguments.next().unwrap().parse().unwrap();
    let forwarding_alone = arguments.next().is_some();
    let device = Netlink::open().unwrap().get_link(&name).unwrap().index;
    let overlay = Overlay {
        device,
        neighbours_on: device,
        learns_peers: false,
        segment: None,
    };
    let mut wanted: Vec<Entry> = (1..=count).flat_map(peer).collect();
    if forwarding_alone {
        wanted.retain(|it| matches!(it, Entry::Forward { .. }));
    }
    let peers = Peers::open().unwrap();
    let run = |wanted: &[Entry]| {
        let start = Instant::now();
        let done = peers.reconcile(overlay, wanted).unwrap();
        assert!(done.failed.is_empty(), "{:?}", &done.failed[..1]);
        start.elapsed().as_secs_f64() * 1000.0
    };
    let (added, kept, removed) = (run(&wanted), run(&wanted), run(&[]));
    println!("{added:.1} {kept:.1} {removed:.1}");
}

/// 10.0.0.0/8 in subnets of 256 addresses, on hosts in 198.18.0.0/15.
fn peer(number: u32) -> [Entry; 3] {
    let gw = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number * 256));
    let [_, a, b, c] = number.to_be_bytes();
    let mac = Mac([2, 0, 0, a, b, c]);
    [
        Entry::Neighbour { ip: gw, mac },
        Entry::Forward {
            mac,
            vtep: IpAddr::from(Ipv4Addr::from(0xc612_0000 + number)),
        },
        Entry::Route {
            dst: IpNetwork::new(gw, 24).unwrap(),
            gw,
        },
    ]
}
