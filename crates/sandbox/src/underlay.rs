//! Hosts with an IP network between them: namespaces of one sandbox, each on a wire of its own to a
//! router, which is the sandbox's own namespace. Nothing but IP packets gets from one to another.

use crate::{Netns, Sandbox};

/// Makes the sandbox's own namespace a router.
pub fn router(sandbox: &Sandbox) {
    sandbox.host().sh("echo 1 >/proc/sys/net/ipv4/ip_forward
         echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
}

/// A host whose interface `eth0` has the addresses 172.20.N.2 and 2001:db8:N::2.
pub fn host(sandbox: &Sandbox, name: &str, n: usize) -> Netns {
    let host = sandbox.pod(name);
    sandbox.host().sh(&format!(
        "ip link add r{n} type veth peer name eth0 netns {name}
         echo 0 >/proc/sys/net/ipv6/conf/r{n}/accept_dad
         ip address add 172.20.{n}.1/24 dev r{n}
         ip address add 2001:db8:{n}::1/64 dev r{n} nodad
         ip link set r{n} up"
    ));
    host.sh(&format!(
        "ip link set lo up
         echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
         ip address add 172.20.{n}.2/24 dev eth0
         ip address add 2001:db8:{n}::2/64 dev eth0 nodad
         ip link set eth0 up
         ip route add default via 172.20.{n}.1
         ip -6 route add default via 2001:db8:{n}::1"
    ));
    host.wait_until("the wire is up", |host| {
        host.link("eth0").expect("eth0")["operstate"] == "UP"
    });
    host
}
