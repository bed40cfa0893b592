//! A private node with a bridge, pods, and a world outside that knows no route
//! to the pods.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cni::Attachment;
use cni::conf::ValidAttachment;
use cni::env::{ContainerId, IfName};
use netns::NetNs;
use sandbox::here::{add_pod, enter, feed, json, run};
use serde_json::Value;

/// The node's address towards the world.
pub const NODE: &str = "192.0.2.1";
/// The same in IPv6.
pub const NODE_V6: &str = "2001:db8::1";

/// A node: the calling thread's namespaces, until it ends.
pub struct Node {
    /// The node's own.
    pub here: NetNs,
    /// What is outside: 192.0.2.9 and 2001:db8::9.
    pub world: NetNs,
}

impl Node {
    /// Moves the calling thread into a new network namespace with a bridge `cni0`
    /// (10.22.0.1/24, fd00:22::1/64) and a link to the world.
    pub fn new() -> Self {
        Self::bare();
        // Else link-local addresses, which solicit neighbours, come a second late.
        run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        run("ip link add cni0 type bridge");
        run("ip link set cni0 up");
        run("ip address add 10.22.0.1/24 dev cni0");
        run("ip address add fd00:22::1/64 dev cni0 nodad");
        run("sysctl -qw net.ipv4.conf.cni0.route_localnet=1");
        let world = add_pod("world");
        run("ip netns exec world sysctl -qw net.ipv6.conf.default.accept_dad=0");
        run("ip link add up0 type veth peer name eth0 netns world");
        run("ip address add 192.0.2.1/24 dev up0");
        run("ip address add 2001:db8::1/64 dev up0 nodad");
        run("ip link set up0 up");
        run("ip -n world address add 192.0.2.9/24 dev eth0");
        run("ip -n world address add 2001:db8::9/64 dev eth0 nodad");
        run("ip -n world link set eth0 up");
        Self {
            here: NetNs::current().unwrap(),
            world: NetNs::open(&world).unwrap(),
        }
    }

    /// Moves the calling thread into a new network namespace with nothing but `lo`.
    pub fn bare() {
        enter();
        // As it is without the module br_netfilter, which is harder.
        for family in ["ip", "ip6"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
            assert!(fs::write(&path, "0").is_ok() || !Path::new(&path).exists());
        }
    }

    /// Adds pod `number`, 2 to 254: 10.22.0.number, fd00:22::number (as decimal
    /// digits), on a port with hairpin.
    pub fn pod(&self, number: u8) -> NetNs {
        let pod = format!("p{number}");
        let namespace = add_pod(&pod);
        let no_dad = "sysctl -qw net.ipv6.conf.default.accept_dad=0";
        run(&format!("ip netns exec {pod} {no_dad}"));
        run(&format!(
            "ip link add v{pod} type veth peer name eth0 netns {pod}"
        ));
        run(&format!("ip link set v{pod} master cni0 up"));
        run(&format!("bridge link set dev v{pod} hairpin on"));
        run(&format!(
            "ip -n {pod} address add 10.22.0.{number}/24 dev eth0"
        ));
        run(&format!(
            "ip -n {pod} address add fd00:22::{number}/64 dev eth0 nodad"
        ));
        run(&format!("ip -n {pod} link set eth0 up"));
        run(&format!("ip -n {pod} route add default via 10.22.0.1"));
        run(&format!("ip -n {pod} -6 route add default via fd00:22::1"));
        let port = format!("bridge -d link show dev v{pod}");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !run(&port).contains("state forwarding") {
            assert!(Instant::now() < deadline, "the port does not forward");
        }
        NetNs::open(&namespace).unwrap()
    }
}

/// An attachment of interface eth0.
pub fn attachment(network: &str, container: &str) -> Attachment {
    Attachment {
        network: network.to_owned(),
        container_id: ContainerId::parse(container).unwrap(),
        ifname: IfName::parse("eth0").unwrap(),
    }
}

/// The same as GC names it.
pub fn valid(container: &str) -> ValidAttachment {
    ValidAttachment {
        container_id: container.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

/// Feeds `script` to `nft -f -`.
pub fn nft(script: &str) {
    feed("nft -f -", script);
}

/// The rule set as nft prints it.
pub fn ruleset() -> String {
    run("nft list ruleset")
}

/// The rule set as data, without what a change leaves behind.
pub fn objects(kind: &str) -> Vec<Value> {
    let listed = json("nft -j list ruleset");
    let objects = listed["nftables"].as_array().unwrap().iter();
    objects.filter_map(|it| it.get(kind)).cloned().collect()
}
