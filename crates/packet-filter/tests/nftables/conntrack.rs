//! What the kernel remembers of UDP.

use packet_filter::Nftables;
use packet_filter::{Backend, Protocol};

use crate::hostport::{mapping, ports};
use crate::node::{NODE, NODE_V6, Node};
use crate::traffic::{UdpClient, serve_udp};
use sandbox::here::run;

#[test]
fn a_client_that_keeps_sending_reaches_the_pod_and_then_the_next() {
    let node = Node::new();
    for number in [2, 3] {
        let pod = node.pod(number);
        let name = if number == 2 { "one" } else { "two" };
        serve_udp(&pod, "0.0.0.0:53", name);
        serve_udp(&pod, &format!("[fd00:22::{number}]:53"), name);
    }
    let nat = Nftables::open().unwrap();
    let (first, second) = (
        ports(2, &[mapping(Protocol::Udp, 5353, 53)]),
        ports(3, &[mapping(Protocol::Udp, 5353, 53)]),
    );
    let v4 = UdpClient::new(&node.world, &format!("{NODE}:5353"));
    let v6 = UdpClient::new(&node.world, &format!("[{NODE_V6}]:5353"));
    // The kernel tracks each of these: to no pod, to one, to two. (A refused
    // datagram comes back as an error of the next send.)
    let both = |expected: &str| {
        for (client, ip) in [(&v4, "192.0.2.9"), (&v6, "2001:db8::9")] {
            let answer = client.ask().or_else(|_| client.ask());
            assert_eq!(answer.ok(), Some(format!("{expected} {ip}")));
        }
    };
    assert!(v4.ask().is_err() && v6.ask().is_err());
    nat.publish(&first).unwrap();
    both("one");
    nat.publish(&second).unwrap();
    both("two");
    nat.unpublish(&first.owner).unwrap();
    both("two");
    nat.unpublish(&second.owner).unwrap();
    assert!(v4.ask().is_err() && v6.ask().is_err());
    let left = run("conntrack -L -p udp --orig-port-dst 5353");
    assert!(!left.contains("10.22.0."), "{left}");
    nat.publish(&first).unwrap();
    both("one");
}

#[test]
fn connections_of_others_are_not_forgotten() {
    let node = Node::new();
    node.pod(2);
    let pod = node.pod(3);
    serve_udp(&node.world, "[::]:53", "dns");
    run("ip -n world route add 10.22.0.0/24 via 192.0.2.1");
    // conntrack(8) lists what the kernel's NAT looked at: have a table first.
    let nat = Nftables::open().unwrap();
    nat.publish(&ports(2, &[mapping(Protocol::Tcp, 1, 1)]))
        .unwrap();
    let dns = UdpClient::new(&pod, "192.0.2.9:53");
    dns.ask().unwrap();
    let line = || run("conntrack -L -p udp -s 10.22.0.3");
    assert_eq!(line().lines().count(), 1, "{}", line());
    nat.publish(&ports(2, &[mapping(Protocol::Udp, 53, 53)]))
        .unwrap();
    assert_eq!(line().lines().count(), 1, "the flow was flushed");
    nat.unpublish(&ports(2, &[]).owner).unwrap();
    assert_eq!(line().lines().count(), 1, "the flow was flushed");
}
