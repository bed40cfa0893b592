//! Packets, from and to a pod.

use packet_filter::{Backend, Mapping};

use crate::{count, host::on_both, host_ports, masquerade, owner, tcp};

const ID: &str = "aaaabbbbccccdddd";

#[test]
fn a_pod_reaches_the_outside_as_the_host() {
    on_both(|host| {
        host.wire();
        let out = "ip netns exec pod nc -n -w 1 -d 192.0.2.2 7000";
        assert_eq!(host.serve("outside", 7000, out), None);
        let wanted = masquerade(ID, &["10.22.0.2/24"]);
        host.iptables().masquerade(&wanted).unwrap();
        let seen = host.serve("outside", 7000, out).unwrap();
        assert!(seen.contains("received on 192.0.2.1 "), "{seen}");

        // Within its subnet it is itself.
        let inside = host.serve("pod", 7001, "nc -n -w 1 -d 10.22.0.2 7001");
        assert!(inside.unwrap().contains("received on 10.22.0.1 "));
    });
}

#[test]
fn a_published_port_leads_to_the_pod_from_everywhere() {
    on_both(|host| {
        host.wire();
        let ways = [
            (
                "ip netns exec outside nc -n -w 1 -d 192.0.2.1 8080",
                "192.0.2.2",
            ),
            ("nc -n -w 1 -d 192.0.2.1 8080", "192.0.2.1"),
            ("nc -n -w 1 -d 127.0.0.1 8080", "10.22.0.1"),
            (
                "ip netns exec pod nc -n -w 1 -d 192.0.2.1 8080",
                "10.22.0.1",
            ),
        ];
        assert_eq!(host.serve("pod", 80, ways[0].0), None);
        host.iptables()
            .publish(&host_ports(ID, &[tcp(8080, 80)]))
            .unwrap();
        for (way, peer) in ways {
            let seen = host.serve("pod", 80, way);
            let seen = seen.unwrap_or_else(|| panic!("{way}: no connection"));
            assert!(
                seen.contains(&format!("received on {peer} ")),
                "{way}: {seen}"
            );
        }
        host.iptables().unpublish(&owner(ID)).unwrap();
        assert_eq!(host.serve("pod", 80, ways[0].0), None);
    });
}

#[test]
fn a_published_port_of_an_address_is_of_no_other() {
    on_both(|host| {
        host.wire();
        host.run("ip addr add 192.0.2.7/32 dev lo");
        let mapping = Mapping {
            host_ip: Some("192.0.2.7".parse().unwrap()),
            ..tcp(8080, 80)
        };
        host.iptables()
            .publish(&host_ports(ID, &[mapping]))
            .unwrap();
        let to = |ip: &str| format!("ip netns exec outside nc -n -w 1 -d {ip} 8080");
        assert_eq!(host.serve("pod", 80, &to("192.0.2.1")), None);
        host.run("ip -n outside route add 192.0.2.7 via 192.0.2.1");
        assert!(host.serve("pod", 80, &to("192.0.2.7")).is_some());
    });
}

#[test]
fn the_newest_pod_gets_the_connections() {
    on_both(|host| {
        host.wire();
        let mut old = host_ports("old", &[tcp(8080, 80)]);
        old.pod_v4 = Some("10.22.0.99/24".parse().unwrap());
        host.iptables().publish(&old).unwrap();
        let from_outside = "ip netns exec outside nc -n -w 1 -d 192.0.2.1 8080";
        assert_eq!(host.serve("pod", 80, from_outside), None);
        let notices = host
            .iptables()
            .publish(&host_ports(ID, &[tcp(8080, 80)]))
            .unwrap();
        assert_eq!(notices.len(), 1);
        assert!(host.serve("pod", 80, from_outside).is_some());
    });
}

#[test]
fn a_nodes_loopback_is_closed_to_its_neighbours() {
    on_both(|host| {
        host.wire();
        for command in [
            "ip -n pod route add 127.0.0.0/8 via 10.22.0.1 table 7",
            "ip -n pod rule add pref 0 to 127.0.0.0/8 lookup 7",
            "ip -n pod rule add pref 1 lookup local",
            "ip -n pod rule del pref 0 lookup local",
            "ip netns exec pod sysctl -qw net.ipv4.conf.eth0.route_localnet=1",
        ] {
            host.run(command);
        }
        let _service = std::net::TcpListener::bind("127.0.0.1:9000").unwrap();
        let ask = |prefix: &str| {
            let ask = format!("{prefix} nc -n -z -w 1 127.0.0.1 9000");
            host.attempt(&ask).status.success()
        };
        // The hole that wire() has made, as portmap does.
        assert!(ask("ip netns exec pod"));
        host.iptables().close_localhost().unwrap();
        assert!(!ask("ip netns exec pod"));
        assert!(ask(""), "the node itself");
        let raw = host.run("iptables-save -t raw");
        for side in ["-d 127.0.0.0/8", "-s 127.0.0.0/8"] {
            assert_eq!(count(&raw, side), 1, "{raw}");
        }
        // An older version had the one for destinations alone.
        host.run("iptables -t raw -D PREROUTING 1");
        for _ in 0..2 {
            host.iptables().close_localhost().unwrap();
            let raw = host.run("iptables-save -t raw");
            assert_eq!(count(&raw, " -j DROP"), 2, "{raw}");
        }
    });
}
