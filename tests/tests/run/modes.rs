//! The five network modes, and what a container sees.

use sandbox::{NODE, beyond_peer};

use crate::{Node, WHY, fails};

#[test]
fn none_has_lo_alone_and_it_is_up() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let snapshot = node.sandbox.snapshot().allow("dir /run/podwire");
        let seen = node.must(&[
            "run",
            "--network",
            "none",
            "sh",
            "-c",
            "ls /sys/class/net; cat /etc/hosts",
        ]);
        assert!(seen.starts_with("lo\n127.0.0.1\tlocalhost\n"), "{seen}");
        assert_eq!(seen.lines().count(), 7, "{seen}");
        node.must(&[
            "run",
            "--network",
            "none",
            "ping",
            "-c1",
            "-W1",
            "127.0.0.1",
        ]);
        node.must(&["run", "--network", "none", "ping", "-c1", "-W1", "::1"]);
        node.assert_clean();
        snapshot.assert_unchanged();
    });
}

#[test]
fn host_is_the_nodes_network_and_ignores_ports_with_a_warning() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.host().sh("ip link add there type bridge");
        let done = node.podwire(&[
            "run",
            "--network",
            "host",
            "-p",
            "80:80",
            "--add-host",
            "x:192.0.2.9",
            "sh",
            "-c",
            "ip -br link; cat /etc/hosts; cmp /proc/sys/kernel/hostname /etc/hostname",
        ]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.contains("there"), "{done:?}");
        assert!(done.stdout.contains("192.0.2.9\tx\n"), "{done:?}");
        let warning = "WARNING: Published ports are discarded when using host network mode";
        assert!(done.stderr.contains(warning), "{done:?}");
    });
}

#[test]
fn without_a_network_it_is_the_predefined_bridge_which_is_made_once() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let addresses = ["run", "--", "ip", "-4", "-o", "addr", "show", "eth0"];
        let first = node.must(&addresses);
        assert!(first.contains("inet 10.208.0.2/24 "), "{first}");
        let document = || node.must(&["network", "inspect", "bridge"]);
        let made = document();
        assert!(made.contains("\"Subnet\": \"10.208.0.0/24\""), "{made}");
        assert!(node.host().link("podwire0").is_some());
        let script =
            "ping -c1 -W1 $(ip route show default | cut -d' ' -f3) >/dev/null && echo reached";
        assert_eq!(
            node.must(&["run", "--network", "bridge", "sh", "-c", script]),
            "reached\n"
        );
        assert_eq!(document(), made);
        fails(
            &node.podwire(&["network", "rm", "bridge"]),
            1,
            "bridge is a pre-defined network and cannot be removed",
        );
        node.assert_clean();
    });
}

#[test]
fn ports_are_discarded_where_none_can_lead_to_the_network() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&["network", "create", "--internal", "quiet"]);
        let done = node.podwire(&["run", "--network", "quiet", "-p", "80:80", "true"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(
            done.stderr.contains("Published ports are discarded"),
            "{done:?}"
        );
        node.must(&["network", "rm", "quiet"]);
    });
}

#[test]
fn a_network_by_name_gives_addresses_routes_and_files() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let script = "ip -br addr show eth0; ip route; cat /etc/hosts; hostname; cat /etc/hostname /etc/resolv.conf; \
            echo $HOSTNAME; ls -d /proc/[0-9]* | wc -l";
        let seen = node.must(&[
            "run",
            "--network",
            "n",
            "--hostname",
            "web.example.com",
            "--dns",
            "192.0.2.53",
            "--dns-search",
            "a.example",
            "--dns-option",
            "ndots:2",
            "--add-host",
            "db:10.9.0.1",
            "sh",
            "-c",
            script,
        ]);
        for text in [
            "10.1.0.2/24",
            "fd01::2/64",
            "default via 10.1.0.1 dev eth0",
            "10.9.0.1\tdb\n",
            "10.1.0.2\tweb.example.com web\nfd01::2\tweb.example.com web\nweb.example.com\nweb.example.com\n",
            "nameserver 192.0.2.53\nsearch a.example\noptions ndots:2\nweb.example.com\n",
        ] {
            assert!(seen.contains(text), "no {text:?} in {seen}");
        }
        let processes: usize = seen.lines().last().unwrap().parse().unwrap();
        assert!(processes <= 5, "{seen}");
        node.assert_clean();
    });
}

#[test]
fn several_networks_are_several_interfaces_and_one_has_the_default_route() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let script = "ip -br addr; ip route get 192.0.2.1; ip -6 route show default";
        let default = |args: &[&str]| {
            let args = [&["run"], args, &["sh", "-c", script]].concat();
            node.must(&args)
        };
        let seen = default(&[
            "--network",
            "n",
            "--network",
            "m:ip=10.2.0.9,mac=02:00:00:00:00:09",
        ]);
        assert!(
            seen.contains("10.1.0.2/24") && seen.contains("10.2.0.9/24"),
            "{seen}"
        );
        assert!(seen.contains("via 10.1.0.1 dev eth0"), "{seen}");
        assert_eq!(
            seen.matches("default via fd01::1 dev eth0").count(),
            1,
            "{seen}"
        );
        assert!(!seen.contains("fd02::1"), "{seen}");
        let seen = default(&["--network", "n", "--network", "name=m,gw-priority=1"]);
        assert!(seen.contains("via 10.2.0.1 dev eth1"), "{seen}");
        assert!(seen.contains("default via fd02::1 dev eth1"), "{seen}");
        node.assert_clean();
    });
}

#[test]
fn a_container_shares_the_network_of_another() {
    beyond_peer(WHY, || {
        let node = Node::new();
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "--hostname",
            "here",
            "sleep",
            "1000",
        ]);
        let script = "ip -br addr show eth0; hostname; cat /etc/hosts";
        let seen = node.must(&["run", "--network", "container:web", "sh", "-c", script]);
        assert!(
            seen.contains("10.1.0.2/24") && seen.contains("here\n127.0.0.1"),
            "{seen}"
        );
        assert!(seen.contains("10.1.0.2\there\n"), "{seen}");
        for (option, value, text) in [
            ("--hostname", "x", "hostname and the network mode"),
            ("--dns", "1.2.3.4", "dns and the network mode"),
            (
                "--add-host",
                "a:1.2.3.4",
                "custom host-to-IP mapping and the network mode",
            ),
            (
                "-p",
                "80:80",
                "port publishing and the container type network mode",
            ),
            (
                "--expose",
                "80",
                "port exposing and the container type network mode",
            ),
            (
                "--mac-address",
                "02:00:00:00:00:01",
                "mac-address and the network mode",
            ),
        ] {
            let done = node.podwire(&["run", "--network", "container:web", option, value, "true"]);
            fails(&done, 125, &format!("conflicting options: {text}"));
        }
        node.must(&["stop", "-t", "1", "web"]);
        let done = node.podwire(&["run", "--network", "container:web", "true"]);
        fails(&done, 125, "No such container: web");
        node.assert_clean();
    });
}

#[test]
fn a_published_port_is_reached_from_outside_and_given_once() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let outside = node.sandbox.outside();
        let serve = "while :; do echo the page | nc -l -p 80 -q 0 || exit; done";
        node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "-p",
            "8080:80",
            "sh",
            "-c",
            serve,
        ]);
        let fetch = format!("nc -w 2 {} 8080 </dev/null", NODE[0]);
        outside.wait_until("the page", |it| {
            it.run(&["sh", "-c", &fetch]).stdout.contains("the page")
        });
        let again = node.podwire(&["run", "--network", "m", "-p", "8080:80", "true"]);
        fails(
            &again,
            125,
            "Bind for 0.0.0.0:8080 failed: port is already allocated",
        );
        node.must(&[
            "run",
            "-d",
            "--name",
            "other",
            "--network",
            "n",
            "-p",
            "80",
            "sleep",
            "1000",
        ]);
        let ps = node.ps();
        let ports: Vec<_> = ps.iter().map(|it| it["Ports"].as_str().unwrap()).collect();
        assert!(ports.contains(&"0.0.0.0:8080->80/tcp"), "{ports:?}");
        assert!(ports.iter().all(|it| it.ends_with("->80/tcp")), "{ports:?}");
        node.must(&["stop", "-t", "0", "web", "other"]);
        node.assert_clean();
    });
}

#[test]
fn requests_that_a_network_cannot_fulfil_leave_nothing() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let fixed = node.podwire(&[
            "run",
            "--network",
            "n",
            "--ip",
            "10.1.0.77",
            "--ip6",
            "fd01::77",
            "hostname",
            "-I",
        ]);
        assert!(fixed.stdout.starts_with("10.1.0.77 fd01::77"), "{fixed:?}");
        for (args, text) in [
            (&["--network", "nope"][..], "network nope not found"),
            (
                &["--network", "n", "--ip", "10.9.0.1"],
                "no configured subnet contains IP address 10.9.0.1",
            ),
            (&["--network", "n", "--ip", "10.1.0.1"], "10.1.0.1"),
            (&["--network", "n", "--ip", "x"], "invalid IP address"),
            (
                &["--network", "n", "--network", "n"],
                "network \"n\" is specified multiple times",
            ),
            (
                &["--network", "n", "--network", "none"],
                "cannot attach both user-defined and non-user-defined",
            ),
            (
                &["--network", "host", "--ip", "10.1.0.3"],
                "user-specified IP address is supported on user-defined networks only",
            ),
            (
                &["--network", "none", "--network-alias", "x"],
                "network-scoped aliases are only supported for user-defined networks",
            ),
            (
                &["--network", "n", "--name", "a/b"],
                "Invalid container name (a/b)",
            ),
            (&["--network", "n", "--hostname", "a b"], "invalid hostname"),
            (
                &["--network", "n", "-p", "x"],
                "invalid publish opts format",
            ),
            (&["--network", "container:nope"], "No such container: nope"),
            (
                &["--network", "n:ip=10.1.0.5", "--ip", "10.1.0.6"],
                "cannot specify both --ip and per-network IPv4 address",
            ),
        ] {
            let done = node.podwire(&[&["run"], args, &["true"]].concat());
            fails(&done, 125, text);
        }
        fails(&node.podwire(&["run", "--network"]), 125, "--network");
        fails(
            &node.podwire(&["run", "--netwrok", "n", "true"]),
            125,
            "a similar argument exists",
        );
        node.assert_clean();
    });
}

#[test]
fn ps_and_exec_find_a_container_by_name_id_and_prefix() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let id = node.must(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "n",
            "--expose",
            "53/udp",
            "sleep",
            "1000",
        ]);
        let id = id.trim();
        assert_eq!(id.len(), 64, "{id}");
        let ps = &node.ps()[0];
        assert_eq!(ps["Names"], "web");
        assert_eq!(ps["ID"], id[..12]);
        assert_eq!(ps["Networks"], "n");
        assert_eq!(ps["Addresses"], "10.1.0.2,fd01::2");
        assert_eq!(ps["Ports"], "53/udp");
        assert_eq!(node.must(&["ps", "-q", "--no-trunc"]).trim(), id);
        let named = node.must(&["ps", "--format", "{{.Names}} {{.Status}}"]);
        assert!(named.starts_with("web Up "), "{named}");
        assert!(node.must(&["ps"]).contains("\"sleep 1000\""));
        for word in ["web", id, &id[..4]] {
            let seen = node.must(&[
                "exec",
                word,
                "sh",
                "-c",
                "hostname; ip -br addr show eth0; pwd",
            ]);
            assert!(
                seen.contains(&id[..12]) && seen.contains("10.1.0.2/24"),
                "{seen}"
            );
        }
        assert_eq!(node.podwire(&["exec", "web", "sh", "-c", "exit 9"]).code, 9);
        fails(
            &node.podwire(&["exec", "web", "nope"]),
            127,
            "executable file not found",
        );
        fails(
            &node.podwire(&["exec", "nope", "true"]),
            1,
            "No such container: nope",
        );
        fails(
            &node.podwire(&["stop", "nope"]),
            1,
            "No such container: nope",
        );
        let again = node.podwire(&["run", "--name", "web", "--network", "n", "true"]);
        fails(
            &again,
            125,
            "Conflict. The container name \"/web\" is already in use by container",
        );
        assert_eq!(node.must(&["stop", "web"]), "web\n");
        assert!(node.ps().is_empty());
        node.assert_clean();
    });
}
