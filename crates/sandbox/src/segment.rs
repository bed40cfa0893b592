//! A physical segment: a switch, the node on one port of it, another machine on the
//! next.

use serde_json::Value;

use crate::netns::Netns;
use crate::sandbox::Sandbox;

/// The other machine's addresses on a [`Segment`].
pub const MACHINE: [&str; 2] = ["10.1.0.99", "fd01::99"];

/// Two machines and the switch between them.
pub struct Segment {
    /// The switch: bridge `br0` with the ports `p1` (the node's) and `p2`.
    pub switch: Netns,
    /// The other machine. Its interface is `eth1`, too, with the addresses [`MACHINE`].
    pub machine: Netns,
}

impl Sandbox {
    /// Plugs the node's `eth1` into a switch with another machine.
    pub fn segment(&self) -> Segment {
        let segment = Segment {
            switch: self.pod("switch"),
            machine: self.pod("machine"),
        };
        // A switch has no addresses; snapshots are not to see any that settle.
        segment.switch.sh(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
             ip link add br0 type bridge
             ip link set br0 up",
        );
        self.plug(&segment.switch, "eth1", "p1");
        let [v4, v6] = MACHINE;
        self.host()
            .sh("ip link add m1 type veth peer name p2 netns switch
             ip link set m1 netns machine name eth1");
        segment.machine.sh(&format!(
            "ip link set lo up
             echo 0 >/proc/sys/net/ipv6/conf/eth1/accept_dad
             ip addr add {v4}/24 dev eth1
             ip addr add {v6}/64 dev eth1 nodad
             ip link set eth1 up"
        ));
        segment.switch.sh("ip link set p2 master br0 up");
        let local = format!("local {v6} ");
        segment.machine.wait_until("its wire is up", |it| {
            it.is_settled("eth1")
                && it
                    .sh("ip -6 route show table local dev eth1")
                    .contains(&local)
        });
        await_port(&segment.switch, "p2");
        // Before Linux 6.9 a look at a link does not make the kernel look, too.
        segment
            .switch
            .wait_until("the switch is up", |it| is_up(it, "br0"));
        segment
    }

    /// Gives the node an interface `eth1` with a carrier and no machine at its other end.
    pub fn wire(&self) {
        self.host().sh("ip link add eth1 type veth peer name far1
             for end in eth1 far1; do
                 echo 1 >/proc/sys/net/ipv6/conf/$end/disable_ipv6
                 ip link set $end up
             done");
        self.host()
            .wait_until("the wire is up", |host| is_up(host, "eth1"));
    }

    /// One more wire from the node to the switch of its segment.
    pub fn plug(&self, switch: &Netns, link: &str, port: &str) {
        self.host().sh(&format!(
            "ip link add {link} type veth peer name {port} netns switch
             echo 0 >/proc/sys/net/ipv6/conf/{link}/accept_dad
             ip link set {link} up
             ip -n switch link set {port} master br0 up"
        ));
        self.host()
            .wait_until("the wire is up", |host| host.is_settled(link));
        await_port(switch, port);
    }
}

impl Segment {
    /// Waits until the port at the other end of the node's `eth1` forwards (again).
    pub fn await_wire(&self) {
        await_port(&self.switch, "p1");
    }

    /// Whether the switch sends frames back through the port that they came in by.
    pub fn set_hairpin(&self, on: bool) {
        let word = if on { "on" } else { "off" };
        self.switch
            .sh(&format!("bridge link set dev p1 hairpin {word}"));
    }

    /// Pulls the plug of the node's `eth1`.
    pub fn unplug(&self, node: &Sandbox) {
        self.switch.sh("ip link set p1 down");
        let noticed = |host: &Netns| !is_up(host, "eth1");
        node.host().wait_until("the wire is cut", noticed);
    }
}

/// A port forwards a little after its link is up.
fn await_port(switch: &Netns, port: &str) {
    let state = |link: Value| link["linkinfo"]["info_slave_data"]["state"] == "forwarding";
    switch.wait_until("the port forwards", |it| it.link(port).is_some_and(state));
}

impl Netns {
    /// Whether a link is up, with a link-local address, and the group that goes with it:
    /// nothing that a snapshot sees will come by itself any more.
    pub fn is_settled(&self, link: &str) -> bool {
        let addresses = || self.sh(&format!("ip -6 addr show dev {link} -tentative"));
        let groups = || self.sh(&format!("bridge fdb show dev {link}"));
        is_up(self, link) && addresses().contains("fe80::") && groups().contains("33:33:ff")
    }
}

fn is_up(netns: &Netns, link: &str) -> bool {
    netns
        .link(link)
        .is_some_and(|link| link["operstate"] == "UP")
}
